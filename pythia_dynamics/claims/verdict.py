"""Claims, the decision of a test on one claim, and the verdict that is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from pythia_dynamics.errors import UnknownNameError

__all__ = [
    "VERDICTS",
    "Claim",
    "Decision",
    "Numbers",
    "Verdict",
    "VerdictWord",
    "Work",
    "not_supported",
    "not_testable",
    "supported",
]

VerdictWord = Literal["supported", "not supported", "not testable here"]
VERDICTS: tuple[VerdictWord, ...] = get_args(VerdictWord)

Work = Literal["The Garden of Forking Paths", "A Large Language Model Order Parameter"]
"""The two works whose claims are tested."""

Numbers = Mapping[str, float | int | str | bool | None]
"""The numbers that a decision rests on, by name."""


@dataclass(frozen=True)
class Claim:
    """One sentence of one of the two works, made precise enough to test.

    Parameters
    ----------
    id
        Short name, the key in ``claims.json`` (``msd-peak`` …).
    work
        The work that makes the claim.
    statement
        The claim in one sentence.
    figure
        Figure or section of the work that shows it.
    test
        The test in words.
    tolerance
        The thresholds of the test in words.
    bifurcation
        Whether the claim is about the bifurcation. A random walk must not support such a claim.
    """

    id: str
    work: Work
    statement: str
    figure: str
    test: str
    tolerance: str
    bifurcation: bool = False


@dataclass(frozen=True)
class Decision:
    """The result of one test.

    Parameters
    ----------
    verdict
        One of `VERDICTS`.
    reason
        The reason in one sentence.
    numbers
        The numbers that the decision rests on.
    """

    verdict: VerdictWord
    reason: str
    numbers: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A claim together with the decision on it for one model, flat as in ``claims.json``.

    The fields are those of `Claim` (its `id` is `claim` here) and of `Decision`. Raises `UnknownNameError` for a
    verdict that is not in `VERDICTS`.
    """

    claim: str
    work: Work
    statement: str
    verdict: VerdictWord
    reason: str
    numbers: Numbers
    figure: str
    test: str
    tolerance: str
    bifurcation: bool = False

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise UnknownNameError("verdict", self.verdict, VERDICTS)

    @classmethod
    def of(cls, claim: Claim, decision: Decision) -> Verdict:
        """Combine a claim with the decision on it."""
        about = vars(claim).copy()
        return cls(claim=about.pop("id"), **about, **vars(decision))


def supported(reason: str, **numbers: float | int | str | bool | None) -> Decision:
    """The decision that a claim is supported, for this `reason` and with these `numbers`."""
    return Decision("supported", reason, numbers)


def not_supported(reason: str, **numbers: float | int | str | bool | None) -> Decision:
    """The decision that a claim is not supported, for this `reason` and with these `numbers`."""
    return Decision("not supported", reason, numbers)


def not_testable(reason: str, **numbers: float | int | str | bool | None) -> Decision:
    """The decision that the saved results cannot decide a claim, for this `reason` and with these `numbers`."""
    return Decision("not testable here", reason, numbers)
