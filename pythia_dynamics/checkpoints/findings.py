"""What a verification finds: damaged, equal, mixed, stray or missing checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from pythia_dynamics.checkpoints.registry import is_pythia
from pythia_dynamics.errors import listed

__all__ = ["Finding", "Verification", "equal_content", "groups_of_equal"]


_FIRST = (0, 1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One oddity: its kind, the steps it is about, a sentence; not a `fault` where it is known and harmless.

    Kinds: ``damaged`` (fails its checksum), ``equal`` (the same content under different steps), ``mixed`` (some shards
    of different steps are the same), ``stray`` (farther from its neighbours than they are from each other),
    ``non-finite``, ``missing``, ``unreadable``.
    """

    kind: str
    steps: tuple[int, ...]
    message: str
    fault: bool = True


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at (a tensor, or `REMOTE`), at which steps, and what was found."""

    model: str
    location: str
    subject: str
    checked: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are not known to be harmless."""
        return tuple(finding for finding in self.findings if finding.fault)


def equal_content(steps: tuple[int, ...], location: str, what: str) -> Finding:
    if steps == _FIRST and is_pythia(location):
        message = f"steps 0 and 1 have the same {what}, as in all of Pythia"
        return Finding("equal", steps, message, fault=False)
    return Finding("equal", steps, f"{listed(steps)} have the same {what}: at most one of them is what its name says")


def groups_of_equal(keys: Iterable[tuple[int, Hashable]]) -> list[tuple[int, ...]]:
    """The steps that share a key with another, by key."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for step, key in keys:
        groups[key].append(step)
    return [tuple(sorted(steps)) for steps in groups.values() if len(steps) > 1]
