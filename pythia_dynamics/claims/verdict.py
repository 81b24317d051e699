"""Claims, the decision of a test on one claim, and the verdict that is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from pythia_dynamics.errors import PythiaDynError, UnknownNameError

__all__ = [
    "VERDICTS",
    "Claim",
    "Decision",
    "NotTestableError",
    "Number",
    "Numbers",
    "Verdict",
    "VerdictWord",
    "Work",
    "decision_of",
]

_Data = TypeVar("_Data")

VerdictWord = Literal["supported", "not supported", "not testable here"]
VERDICTS: tuple[VerdictWord, ...] = get_args(VerdictWord)

Work = Literal["The Garden of Forking Paths", "A Large Language Model Order Parameter"]
"""The two works whose claims are tested."""

Number = float | int | str | bool | None
"""One number, word or truth value of a decision; None where it is not known."""

Numbers = Mapping[str, Number]
"""The numbers that a decision rests on, by name."""


@dataclass(frozen=True)
class Claim:
    """One sentence of one of the two works, made precise enough to test.

    Parameters
    ----------
    id
        Short name, the key in ``claims.json`` (``msd-peak`` …).
    statement
        The claim in one sentence.
    figure
        Figure or section of the work that shows it.
    test
        The test in words.
    tolerance
        The thresholds of the test in words.
    work
        The work that makes the claim.
    bifurcation
        Whether the claim is about the bifurcation. A random walk must not support such a claim.
    """

    id: str
    statement: str
    figure: str
    test: str
    tolerance: str
    work: Work
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
    numbers: Numbers

    @classmethod
    def of(cls, holds: bool, reason: str, numbers: Numbers) -> Decision:
        """The decision that a claim is supported where it `holds`, else that it is not supported."""
        return cls("supported" if holds else "not supported", reason, numbers)


class NotTestableError(PythiaDynError):
    """The data cannot decision_of a claim.

    Parameters
    ----------
    reason
        The reason in one sentence.
    numbers
        The numbers that are known all the same.
    """

    def __init__(self, reason: str, numbers: Numbers | None = None) -> None:
        super().__init__(reason)
        self.numbers = numbers or {}


def decision_of(test: Callable[[_Data], Decision], data: _Data) -> Decision:
    """The decision of a test on its data.

    Parameters
    ----------
    test
        A function that returns a decision, or raises `NotTestableError`.
    data
        Its argument.
    """
    try:
        return test(data)
    except NotTestableError as error:
        return Decision("not testable here", str(error), error.numbers)


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
