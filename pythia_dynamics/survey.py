"""What a source holds, found from headers alone, and what fetching it would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.history import store_path
from pythia_dynamics.plan import FetchPlan, Memory, estimate
from pythia_dynamics.reader import RevisionReader
from pythia_dynamics.sources import AccessError, Revision, Source, checkpoint_files, open_source
from pythia_dynamics.store import CHECKSUM_BYTES, Store, TensorSpec
from pythia_dynamics.suites import PAPER_STEPS, UNEMBEDDING, Model, parse_steps, resolve
from pythia_dynamics.tensorfile import TensorSlice

__all__ = ["REGISTRY", "Survey", "held_steps", "new_tickets", "preview", "summary", "survey", "wanted_steps"]

REGISTRY = "registry"
"""A source for plans alone: what the registry says, no network."""

_LISTINGS = 16
"""Revisions whose file list may be asked for (an API request each) when their layout is a new one."""

_ATTEMPTS = 3


@dataclass(frozen=True)
class Survey:
    """What one revision holds of the tensors: where they lie, and the whole size of the files they lie in."""

    revision: Revision
    tensors: tuple[TensorSlice, ...]
    file_sizes: Mapping[str, int]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors)


def survey(
    source: Source,
    revisions: Iterable[Revision],
    patterns: Sequence[str],
    *,
    memory: Memory | None = None,
    tickets: list[None] | None = None,
) -> Survey:
    """What the first readable one of these revisions holds, from its headers alone.

    Raises `AccessError`; the `UnknownNameError` of three revisions that all lack the tensor, or of the only one; or
    `CheckpointError` when none can be read.
    """
    memory = Memory() if memory is None else memory
    tickets = new_tickets() if tickets is None else tickets
    errors: list[PythiaDynError] = []
    for revision in revisions:
        reader = RevisionReader(source, revision, dry=True)
        try:
            found = tuple(take.tensor for take in reader.takes(patterns, memory, tickets=tickets))
            return Survey(revision, found, dict(reader.sizes))
        except AccessError:
            raise
        except PythiaDynError as error:
            errors.append(error)
            if sum(isinstance(each, UnknownNameError) for each in errors) == _ATTEMPTS:
                raise
        finally:
            reader.close()
    if len(errors) == 1:
        raise errors[0]
    raise CheckpointError(f"no revision of {source.location} can be read: {summary(map(str, errors))}")


def preview(
    model: str | Path | Model,
    *,
    source: str | Source = "hub",
    steps: str | Iterable[int] | None = None,
    tensors: str | Sequence[str] = (UNEMBEDDING,),
    cache: str | Path | None = None,
    pattern: str | None = None,
) -> FetchPlan:
    """What `download` with the same arguments would cost, from the headers of one revision and two API requests.

    Where the Hub cannot be reached, or with `REGISTRY` as the source, W_U of a Pythia model is estimated from the
    registry's shapes; `FetchPlan.note` says so. Raises as `download`.
    """
    found = model if isinstance(model, Model) else resolve(model)
    patterns = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    wanted, _ = wanted_steps(found, steps)
    if source == REGISTRY:
        sizes = _registered(found, wanted, patterns, "from the registry's shapes")
    else:
        opened = open_source(found, source, pattern=pattern) if isinstance(source, str) else source
        try:
            sizes = _stated(opened, wanted, patterns)
        except AccessError as error:
            if not _is_registered(found, patterns):
                raise
            sizes = _registered(found, wanted, patterns, f"from the registry's shapes: {error}")
    path = store_path(found.name, cache)
    present = set(sizes.steps)
    for spec in sizes.specs:
        present &= held_steps(Store.open(path), spec) if path.is_dir() else set()
    return estimate(
        [spec.nbytes for spec in sizes.specs],
        steps=len(sizes.steps),
        present=len(present),
        missing=sizes.missing,
        layout=sizes.layout,
        checkpoint_bytes=sizes.checkpoint_bytes,
        note=sizes.note,
    )


@dataclass(frozen=True)
class _Sizes:
    """What a plan is made from: the steps asked for, those the source lacks, the tensors and files of one revision."""

    steps: tuple[int, ...]
    missing: int
    specs: tuple[TensorSpec, ...]
    layout: str
    checkpoint_bytes: int
    note: str = ""


def _stated(source: Source, wanted: tuple[int, ...] | None, patterns: tuple[str, ...]) -> _Sizes:
    """What the headers and the file list of the first readable revision say."""
    revisions = source.revisions()
    steps = tuple(revisions) if wanted is None else wanted
    there = [revisions[step] for step in steps if step in revisions]
    memory = Memory()
    surveyed = survey(source, there, patterns, memory=memory)
    files = source.files(surveyed.revision)
    whole = sum(files[name] for name in checkpoint_files(files))
    return _Sizes(steps, len(steps) - len(there), surveyed.specs, memory.layouts[0], whole)


def _is_registered(model: Model, patterns: tuple[str, ...]) -> bool:
    return model.is_pythia and patterns == (UNEMBEDDING,)


def _registered(model: Model, wanted: tuple[int, ...] | None, patterns: tuple[str, ...], note: str) -> _Sizes:
    """What the registry says of W_U of a Pythia model."""
    shape = model.architecture
    if shape is None or not _is_registered(model, patterns):
        raise PythiaDynError(f"the registry knows {UNEMBEDDING} of Pythia models only, not {model.name}")
    specs = (TensorSpec(UNEMBEDDING, "float16", (shape.vocab, shape.d_model)),)
    return _Sizes(wanted or model.published_steps, 0, specs, "safetensors", shape.checkpoint_bytes, note)


def wanted_steps(model: Model, steps: str | Iterable[int] | None) -> tuple[tuple[int, ...] | None, bool]:
    """The steps that are asked for, None for all there are; and whether the user named each of them."""
    if steps is None:
        return (PAPER_STEPS if model.is_pythia and not model.is_local else None), False
    if isinstance(steps, str):
        named = all(part.strip().isdigit() for part in steps.split(","))
        return parse_steps(steps), named
    chosen = tuple(sorted({int(step) for step in steps}))
    if not chosen:
        raise PythiaDynError("no step is asked for")
    return chosen, True


def held_steps(store: Store, spec: TensorSpec) -> set[int]:
    """The steps whose chunk is there, whole, with its record."""
    size = spec.nbytes + CHECKSUM_BYTES
    chunks = {step: store.chunk_path(spec.name, step) for step in store.records(spec.name)}
    return {step for step, path in chunks.items() if path.is_file() and path.stat().st_size == size}


def new_tickets() -> list[None]:
    """Leave for a constant number of file lists, whatever the number of revisions."""
    return [None] * _LISTINGS


def summary(reasons: Iterable[str]) -> str:
    """The commonest of several reasons, and how many others there are."""
    counts = Counter(reasons)
    if not counts:
        return "there is none"
    why, count = counts.most_common(1)[0]
    more = counts.total() - count
    return f"{why} (and {more} more)" if more else why
