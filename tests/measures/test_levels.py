"""The quantiles of the normal distribution belong to the level, and each threshold has one definition."""

from __future__ import annotations

from inspect import signature

import pytest
from scipy.stats import norm

from pythia_dynamics.claims import drops, evidence, populations, published
from pythia_dynamics.measures import bifurcation, levels, modes, peak


def test_quantiles_are_those_of_the_level() -> None:
    assert levels.normal(levels.ONE_SIDED) == pytest.approx(1 - levels.LEVEL, abs=1e-6)
    assert levels.normal(levels.TWO_SIDED) == pytest.approx(1 - levels.LEVEL / 2, abs=1e-6)
    assert levels.normal(-0.3) == pytest.approx(norm.cdf(-0.3))


def test_thresholds_have_one_definition() -> None:
    assert evidence.LEVEL is levels.LEVEL
    assert f"{drops.LEAST_DROP:.0%}" in published.DROPS.tolerance
    assert populations.LEAST_SHIFT is peak.SAME_STEP
    assert signature(bifurcation.bifurcation).parameters["tolerance"].default is peak.SAME_STEP
    assert signature(modes.first_lasting).parameters["min_share"].default is modes.LASTING
