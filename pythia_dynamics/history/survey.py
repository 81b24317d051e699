"""What a source has, read from the headers of a few revisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.roles import Role
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.history.spec import TensorSpec

__all__ = ["Survey", "common_specs", "most_common", "survey", "survey_suite"]

_UNKNOWN_NAME_LIMIT = 3
"""Revisions that must all lack the tensor before its name counts as wrong: one or two may be broken uploads."""


@dataclass(frozen=True)
class Survey:
    """What one revision has of the requested tensors.

    Parameters
    ----------
    revision
        The revision that was read.
    tensors
        File, byte range, dtype and shape of each tensor.
    roles
        What each tensor is for; None where that is not known.
    file_sizes
        Bytes of every file that was opened, by name.
    sha256
        Checksum of each of these files, None where the source states none.
    """

    revision: Revision
    tensors: tuple[TensorSlice, ...]
    roles: tuple[tuple[Role, ...] | None, ...]
    file_sizes: Mapping[str, int]
    sha256: Mapping[str, str | None]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype, shape and roles of each tensor."""
        return tuple(
            TensorSpec(tensor.name, tensor.dtype, tensor.shape, roles)
            for tensor, roles in zip(self.tensors, self.roles, strict=True)
        )


def survey(
    source: Source,
    revisions: Iterable[Revision],
    patterns: Sequence[str],
    *,
    cache: LayoutCache,
) -> Survey:
    """Read the headers of the first revision that has the requested tensors and can be read.

    Parameters
    ----------
    source
        Where the revisions are.
    revisions
        The candidates, tried in this order.
    patterns
        Names, roles and globs of tensors; see `select`.
    cache
        What earlier revisions of the model looked like; it is updated.

    Raises
    ------
    AccessError
        The repository cannot be reached.
    UnknownNameError
        Three revisions, or the only one, do not have a tensor of that name.
    CheckpointError
        None of the revisions can be read.
    """
    errors: list[PythiaDynError] = []
    for revision in revisions:
        reader = RevisionReader(source, revision, headers_only=True)
        try:
            found = list(reader.find(patterns, cache))
            tensors, roles = tuple(each.tensor for each in found), tuple(each.roles for each in found)
            return Survey(revision, tensors, roles, dict(reader.sizes), dict(reader.sha256))
        except AccessError:
            raise
        except PythiaDynError as error:
            errors.append(error)
            if sum(isinstance(each, UnknownNameError) for each in errors) == _UNKNOWN_NAME_LIMIT:
                raise
        finally:
            reader.close()
    if len(errors) == 1:
        raise errors[0]
    raise CheckpointError(f"no revision of {source.location} can be read: {most_common(map(str, errors))}")


def survey_suite(
    source: Source,
    revisions: Sequence[Revision],
    patterns: Sequence[str],
    *,
    cache: LayoutCache,
) -> Iterator[Survey]:
    """Read the headers of the first revision that can be read, of the middle and of the last one.

    Parameters
    ----------
    source, revisions, patterns, cache
        As for `survey`; the revisions in increasing order.

    Yields
    ------
    Survey
        One to three times, without the middle and last revisions that cannot be read.

    Raises
    ------
    PythiaDynError
        As `survey`.
    """
    first = survey(source, revisions, patterns, cache=cache)
    yield first
    for revision in {each.step: each for each in (revisions[len(revisions) // 2], revisions[-1])}.values():
        if revision.step > first.revision.step:
            try:
                yield survey(source, [revision], patterns, cache=cache)
            except AccessError:
                raise
            except PythiaDynError:
                continue  # as the fetch of the step will say


def common_specs(surveys: Sequence[Survey]) -> tuple[TensorSpec, ...]:
    """The tensors that most of the surveyed revisions have, each as most of them have it.

    Of a tie, the names of the first, and the dtype that holds the others without loss.

    Parameters
    ----------
    surveys
        At least one.
    """
    names = Counter(tuple(spec.name for spec in each.specs) for each in surveys)
    usual = next(each for each in surveys if tuple(spec.name for spec in each.specs) == names.most_common(1)[0][0])
    specs = []
    for spec in usual.specs:
        kinds = Counter(other for each in surveys for other in each.specs if other.name == spec.name)
        frequent = [kind for kind, count in kinds.items() if count == max(kinds.values())]
        chosen = max(frequent, key=lambda kind: sum(kind.holds(other) for other in frequent))
        specs.append(replace(chosen, roles=spec.roles))
    return tuple(specs)


def most_common(reasons: Iterable[str]) -> str:
    """The most common of several reasons, and the number of those that differ: ``…; 3 other steps fail too``.

    Parameters
    ----------
    reasons
        Messages; equal ones are counted together. Without any the result is ``there is none``.
    """
    counts = Counter(reasons)
    reason, count = next(iter(counts.most_common(1)), ("there is none", 0))
    more = counts.total() - count
    also = "1 other step fails too" if more == 1 else f"{more} other steps fail too"
    return f"{reason}; {also}" if more else reason
