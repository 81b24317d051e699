"""What a claim comes to: a verdict with its numbers, its test and its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["VERDICTS", "Claim", "Decision", "Verdict", "Word", "no", "untestable", "yes"]

Word = Literal["supported", "not supported", "not testable here"]
VERDICTS: tuple[Word, ...] = ("supported", "not supported", "not testable here")

Number = float | int | str | bool | None


@dataclass(frozen=True)
class Claim:
    """A sentence of one of the two works, made precise: where it is from, how it is tested, within what tolerance.

    `bifurcation` claims are those that a random walk must not support.
    """

    id: str
    work: str
    statement: str
    figure: str
    test: str
    tolerance: str
    bifurcation: bool = False


@dataclass(frozen=True)
class Decision:
    """What one test found: a word, the reason in a sentence, and the numbers it rests on."""

    verdict: Word
    reason: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A claim and what the saved results of one model say of it."""

    claim: str
    work: str
    statement: str
    verdict: Word
    reason: str
    numbers: Mapping[str, Number]
    figure: str
    test: str
    tolerance: str
    bifurcation: bool = False

    @classmethod
    def of(cls, claim: Claim, decision: Decision) -> Verdict:
        """The verdict that a decision is for a claim."""
        return cls(
            claim=claim.id,
            work=claim.work,
            statement=claim.statement,
            verdict=decision.verdict,
            reason=decision.reason,
            numbers=decision.numbers,
            figure=claim.figure,
            test=claim.test,
            tolerance=claim.tolerance,
            bifurcation=claim.bifurcation,
        )


def yes(reason: str, **numbers: Number) -> Decision:
    """The claim is supported."""
    return Decision("supported", reason, numbers)


def no(reason: str, **numbers: Number) -> Decision:
    """The claim is not supported."""
    return Decision("not supported", reason, numbers)


def untestable(reason: str, **numbers: Number) -> Decision:
    """These results cannot tell."""
    return Decision("not testable here", reason, numbers)
