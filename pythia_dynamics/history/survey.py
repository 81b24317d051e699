"""What a source holds, found from headers alone, and what fetching it would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import ListingBudget, RevisionReader
from pythia_dynamics.checkpoints.registry import PAPER_STEPS, Model, parse_steps
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.history.store import CHECKSUM_BYTES, Store, TensorSpec

__all__ = ["Survey", "held_steps", "summary", "survey", "wanted_steps"]

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
    cache: LayoutCache | None = None,
    listings: ListingBudget | None = None,
) -> Survey:
    """What the first readable one of these revisions holds, from its headers alone.

    Raises `AccessError`; the `UnknownNameError` of three revisions that all lack the tensor, or of the only one; or
    `CheckpointError` when none can be read.
    """
    cache = LayoutCache() if cache is None else cache
    listings = ListingBudget() if listings is None else listings
    errors: list[PythiaDynError] = []
    for revision in revisions:
        reader = RevisionReader(source, revision, headers_only=True)
        try:
            found = tuple(request.tensor for request in reader.find(patterns, cache, listings=listings))
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


def summary(reasons: Iterable[str]) -> str:
    """The commonest of several reasons, and how many others there are."""
    counts = Counter(reasons)
    if not counts:
        return "there is none"
    why, count = counts.most_common(1)[0]
    more = counts.total() - count
    return f"{why} (and {more} more)" if more else why
