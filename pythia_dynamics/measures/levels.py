"""The level of the tests, the power that is asked of them, and the quantiles of the normal distribution they use."""

from __future__ import annotations

__all__ = ["ALL_DRAWS", "FEW_EXTREME", "FIRST_DRAWS", "LEAST_POWER", "LEVEL", "ONE_SIDED", "TWO_SIDED", "normal"]

LEVEL = 0.05
"""Largest p-value that supports a claim, and of a peak that random walks do not explain: the usual level."""

LEAST_POWER = 0.8
"""Least probability of seeing the least effect, for a test that saw nothing to count against a claim."""

ONE_SIDED = 1.644854
"""Standard deviations that a Gaussian exceeds with probability `LEVEL`: the 95 % quantile."""

TWO_SIDED = 1.959964
"""Standard deviations within which a Gaussian is with probability 1 − `LEVEL`: the 97.5 % quantile."""


FIRST_DRAWS, ALL_DRAWS, FEW_EXTREME = 199, 1999, 2
"""Draws of a simulated p: 199, so that it can be as small as 0.005; and 1,999 where at most two of the first ones are
as extreme, so that it can be as small as 0.0005, because a scorecard multiplies it by the number of its tests."""


def normal(z: float) -> float:
    """Probability that a standard Gaussian is below `z`."""
    from scipy.special import ndtr

    return float(ndtr(z))
