"""The evidence on one claim: effect, null, p-value and power; the word that follows; the correction for several tests.

DESIGN: *supported* asks for the least effect that counts and p ≤ 0.05, corrected for the tests of a scorecard; *not
supported* asks for a test that could have seen that effect; what is neither is *undecided*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.levels import LEAST_POWER, LEVEL

__all__ = ["LEAST_POWER", "LEVEL", "VERDICTS", "Evidence", "VerdictWord", "holm"]

VerdictWord = Literal["supported", "not supported", "undecided", "not testable here"]
VERDICTS: tuple[VerdictWord, ...] = get_args(VerdictWord)

_ROUNDING = 1e-9
"""Relative difference of an effect from the least effect that is rounding: an effect exactly as large counts."""


@dataclass(frozen=True)
class Evidence:
    """What a test says about its claim.

    Parameters
    ----------
    statistic
        What is measured, in words, with its unit.
    effect
        The size of the effect; NaN where there is none to measure, such as the height of a peak that does not exist.
    least
        The least effect that counts. With `at_most`, the largest that is allowed.
    null
        What the effect is compared with, in words. Empty where the statistic is exact.
    p
        Probability of an effect as favourable to the claim where it is false. NaN where the statistic is exact: all
        weights are read, and nothing is drawn.
    power
        Probability that the test supports the claim where the effect is `least`, uncorrected; for an exact statistic 1.
        NaN where it is not known, which never refutes a claim.
    low, high
        95 % interval of the effect; NaN where not known.
    at_most
        Whether small effects support the claim: "b does not fall", "the loss gains nothing".
    """

    statistic: str
    effect: float
    least: float
    null: str = ""
    p: float = math.nan
    power: float = math.nan
    low: float = math.nan
    high: float = math.nan
    at_most: bool = False

    def __post_init__(self) -> None:
        for name in ("p", "power"):
            value = getattr(self, name)
            if not (math.isnan(value) or 0 <= value <= 1):
                raise PythiaDynError(f"{name} of {self.statistic} is a probability; got {value:g}")

    @classmethod
    def exact(cls, statistic: str, effect: float, least: float, *, at_most: bool = False) -> Evidence:
        """The evidence of a statistic without error: its power is 1, its interval a point."""
        return cls(statistic, effect, least, power=1.0, low=effect, high=effect, at_most=at_most)

    @property
    def is_exact(self) -> bool:
        """Whether nothing is drawn at random: there is no p-value."""
        return math.isnan(self.p)

    @property
    def large_enough(self) -> bool:
        """Whether the effect is one that counts. False for NaN."""
        slack = _ROUNDING * max(abs(self.least), abs(self.effect)) if math.isfinite(self.effect) else 0.0
        return self.effect <= self.least + slack if self.at_most else self.effect >= self.least - slack

    @property
    def excluded(self) -> bool:
        """Whether the whole interval of the effect is on the side that refutes the claim."""
        return self.low > self.least if self.at_most else self.high < self.least

    def word(self, p: float | None = None) -> VerdictWord:
        """The word that follows.

        Parameters
        ----------
        p
            The p-value corrected for several tests; by default `p` itself.
        """
        p = self.p if p is None else p
        if self.large_enough:
            return "supported" if self.is_exact or p <= LEVEL else "undecided"
        seen = self.power >= LEAST_POWER or self.excluded  # a power that is not known, NaN, refutes nothing
        return "not supported" if seen else "undecided"


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number (Holm 1979): at most 5 % of scorecards of false claims support one.

    Parameters
    ----------
    values
        p-values; NaN, of exact statistics, is not counted and stays.

    Returns
    -------
    tuple of float
        In the order of `values`: the largest of (m − i) p_i over the smaller ones, at most 1.
    """
    order = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected, largest = list(values), 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min((len(order) - rank) * value, 1.0))
        corrected[place] = largest
    return tuple(corrected)
