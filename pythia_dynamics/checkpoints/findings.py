"""What a verification finds: damaged, equal, mixed, stray or missing checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from pythia_dynamics.checkpoints.registry import is_pythia
from pythia_dynamics.errors import UnknownNameError, listed

__all__ = ["EQUAL_IN_PYTHIA", "Finding", "FindingKind", "Verification", "equal_content", "groups_of_equal"]

FindingKind = Literal[
    "damaged",
    "equal",
    "equal-elsewhere",
    "discontinuous",
    "disagree",
    "mixed",
    "size",
    "stray",
    "superseded",
    "non-finite",
    "missing",
    "unreadable",
]
"""``damaged``: a chunk fails its checksum. ``equal``: different steps have the same content. ``equal-elsewhere``: steps
have the same content as steps of another repository. ``discontinuous``: the next steps of a run do not continue its
first one. ``disagree``: the files of a step in two formats are not of the same step. ``mixed``: different steps have
some shards in common, but not all. ``size``: the weights of a step have another size than those of the others.
``stray``: the weights of a step seem to be those of another step or training. ``superseded``: a step has been replaced
or removed at the source since it was fetched. ``non-finite``: weights are NaN or infinite. ``missing``: there is no
such step, or it has no weights, or not all. ``unreadable``: the files of a step cannot be listed."""

EQUAL_IN_PYTHIA = (0, 1)
"""Steps that have the same weights in every published Pythia model: the learning rate of the first update is 0."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One irregularity.

    Parameters
    ----------
    kind
        What kind of irregularity it is.
    steps
        The steps that are concerned.
    message
        One sentence for the user.
    fault
        False where the irregularity is known and harmless.
    elsewhere
        The (repository, step) that the steps are compared with, where these are of other repositories.
    sha256
        Checksums of the files that show it, where it is shown by files.

    Raises
    ------
    UnknownNameError
        There is no such kind.
    """

    kind: FindingKind
    steps: tuple[int, ...]
    message: str
    fault: bool = True
    elsewhere: tuple[tuple[str, int], ...] = ()
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(FindingKind):
            raise UnknownNameError("kind of finding", self.kind, get_args(FindingKind))


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying one tensor of a store, or the files of a repository.

    Parameters
    ----------
    model
        Name of the model.
    location
        Repository id or directory that the weights are from.
    subject
        Name of the tensor, or `pythia_dynamics.checkpoints.verify.REMOTE`.
    checked
        The steps that were checked.
    findings
        What was found.
    """

    model: str
    location: str
    subject: str
    checked: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are not known to be harmless."""
        return tuple(finding for finding in self.findings if finding.fault)


def equal_content(steps: tuple[int, ...], location: str, what: str, sha256: tuple[str, ...] = ()) -> Finding:
    """The finding that steps have the same content; harmless for steps 0 and 1 of Pythia.

    Parameters
    ----------
    steps
        The steps, in increasing order.
    location
        Repository id or directory that the weights are from.
    what
        What was compared, as the message names it: a tensor, ``safetensors files``.
    sha256
        Checksums of the files that were compared, if any.
    """
    if steps == EQUAL_IN_PYTHIA and is_pythia(location):
        message = f"steps 0 and 1 have the same {what}, as in all of Pythia"
        return Finding("equal", steps, message, fault=False, sha256=sha256)
    message = f"{listed(steps)} have the same {what}: at most one of them is the step it is named"
    return Finding("equal", steps, message, sha256=sha256)


def groups_of_equal(keys: Iterable[tuple[int, Hashable]]) -> list[tuple[int, ...]]:
    """Groups of steps that have the same key.

    Parameters
    ----------
    keys
        Pairs of a step and its key, such as a checksum.

    Returns
    -------
    list of tuple of int
        The steps of each key that occurs more than once, in increasing order.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for step, key in keys:
        groups[key].append(step)
    return [tuple(sorted(steps)) for steps in groups.values() if len(steps) > 1]
