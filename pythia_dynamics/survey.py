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
from pythia_dynamics.suites import ALL_STEPS, PAPER_STEPS, UNEMBEDDING, Model, parse_steps, resolve
from pythia_dynamics.tensorfile import TensorSlice

__all__ = ["Survey", "held_steps", "new_tickets", "preview", "summary", "survey", "wanted_steps"]

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

    Where the Hub cannot be reached, W_U of a Pythia model is estimated from the registry; `FetchPlan.note` says so.
    Raises as `download`.
    """
    found = model if isinstance(model, Model) else resolve(model)
    patterns = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    wanted, _ = wanted_steps(found, steps)
    try:
        opened = open_source(found, source, pattern=pattern) if isinstance(source, str) else source
        revisions = opened.revisions()
        asked = wanted if wanted is not None else tuple(revisions)
        there = [revisions[step] for step in asked if step in revisions]
        memory = Memory()
        surveyed = survey(opened, there, patterns, memory=memory)
        specs, layout = surveyed.specs, memory.layouts[0]
        files = opened.files(surveyed.revision)
        whole = sum(files[name] for name in checkpoint_files(files))
        note = ""
    except AccessError as error:
        if found.architecture is None or patterns != (UNEMBEDDING,):
            raise
        asked = wanted if wanted is not None else ALL_STEPS
        there = [Revision(step, "") for step in asked]
        shape = (found.architecture.vocab, found.architecture.d_model)
        specs, layout = (TensorSpec(UNEMBEDDING, "float16", shape),), "safetensors"
        whole, note = 2 * found.architecture.parameters, f"from the registry's shapes: {error}"
    path = store_path(found.name, cache)
    present = set(asked)
    for spec in specs:
        present &= held_steps(Store.open(path), spec) if path.is_dir() else set()
    return estimate(
        [spec.nbytes for spec in specs],
        steps=len(asked),
        present=len(present),
        missing=len(asked) - len(there),
        layout=layout,
        checkpoint_bytes=whole,
        note=note,
    )


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
