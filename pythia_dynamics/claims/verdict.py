"""Claims, the decision of a test on one claim, and the verdict that is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pythia_dynamics.claims.evidence import VERDICTS, Evidence, VerdictWord, holm
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
    "corrected",
    "decision_of",
]

_Data = TypeVar("_Data")

Work = Literal[
    "The Garden of Forking Paths",
    "A Large Language Model Order Parameter",
    "Why do small language models underperform?",
]
"""The two works whose claims are tested; and Godey et al., arXiv 2404.07647, who explain what late training does."""

Number = float | int | str | bool | None
"""One number, word or truth value of a decision; None where it is not known."""

Numbers = Mapping[str, Number]
"""The numbers that a decision rests on, by name."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a work, made precise enough to test.

    Parameters
    ----------
    id
        Short name, the key in ``claims.json`` (``msd-peak`` …).
    statement
        The claim in one sentence.
    figure
        Figure or section of the work that shows it.
    test
        The test in words: statistic, null, how the p-value comes about.
    tolerance
        The least effect that counts, and other thresholds, in words.
    work
        The work that makes the claim.
    bifurcation
        Whether the claim is about the bifurcation. A random walk must not support such a claim.
    remark
        What a reader has to know beside the verdict, such as what else could give the same curve.
    """

    id: str
    statement: str
    figure: str
    test: str
    tolerance: str
    work: Work
    bifurcation: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Decision:
    """The result of one test.

    Parameters
    ----------
    reason
        The reason in one sentence.
    numbers
        The numbers that the decision rests on.
    evidence
        Statistic, effect, null, p-value and power; None where the claim cannot be tested.
    refuted
        Whether something beside the evidence contradicts the claim for certain, such as a peak at another step than
        the one claimed. Then it is not supported.
    open
        Whether something beside the evidence leaves the claim open, such as a learning rate that is not known. Then it
        is undecided at best.
    p_corrected
        The p-value corrected for the tests of a scorecard; None before the correction.
    """

    reason: str
    numbers: Numbers
    evidence: Evidence | None = None
    refuted: bool = False
    open: bool = False
    p_corrected: float | None = None

    @property
    def verdict(self) -> VerdictWord:
        """The word: that of the evidence, unless something beside it refutes the claim or leaves it open."""
        if self.evidence is None:
            return "not testable here"
        if self.refuted:
            return "not supported"
        return "undecided" if self.open else self.evidence.word(self.p_corrected)


class NotTestableError(PythiaDynError):
    """The data cannot decide a claim.

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
        return Decision(str(error), error.numbers)


def corrected(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """The decisions of one scorecard, with p-values corrected for the number of its tests (`holm`)."""
    values = holm([float("nan") if decision.evidence is None else decision.evidence.p for decision in decisions])
    return tuple(
        decision if decision.evidence is None or decision.evidence.is_exact else replace(decision, p_corrected=p)
        for decision, p in zip(decisions, values, strict=True)
    )


@dataclass(frozen=True)
class Verdict:
    """A claim together with the decision on it for one model, flat as in ``claims.json``.

    The fields are those of `Claim` (its `id` is `claim` here) and of `Decision`. `evidence` is a mapping of the fields
    of `Evidence`, where what is not known is None; or it is None. Raises `UnknownNameError` for a verdict that is not
    in `VERDICTS`.
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
    remark: str = ""
    evidence: Mapping[str, Any] | None = None
    p_corrected: float | None = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise UnknownNameError("verdict", self.verdict, VERDICTS)

    @classmethod
    def of(cls, claim: Claim, decision: Decision) -> Verdict:
        """Combine a claim with the decision on it."""
        about = vars(claim).copy()
        return cls(
            claim=about.pop("id"),
            **about,
            verdict=decision.verdict,
            reason=decision.reason,
            numbers=decision.numbers,
            evidence=None if decision.evidence is None else _known(vars(decision.evidence)),
            p_corrected=decision.p_corrected,
        )


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an evidence with None for numbers that are not finite, which JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
