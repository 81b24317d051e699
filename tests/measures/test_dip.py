"""Hartigan's dip: the statistic, its distribution under the null, and the test of every step."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracles
from support.walks import DTYPES

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.density import density
from pythia_dynamics.measures.dip import (
    _DIP_QUANTILES,
    SAMPLE_SIZE,
    TAIL_PROBABILITIES,
    _rounding_intervals,
    dip,
    dip_p,
    dip_test,
)
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning


def dips_of(weights):
    return dip_test(density(weights))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 8), st.floats(-3, 3, width=16)), min_size=2, max_size=10),
)
def test_the_dip_is_the_least_distance_to_one_mode(sample):
    assert dip(np.array(sample)) == pytest.approx(oracles.dip(sample), abs=1e-7)


@pytest.mark.parametrize("sample", [[4, 1, 4, 1, 5, 0], [1, 1, 2, 3, 3, 3, 7], [0, 0, 5, 5], [2, 2, 2, 3, 9, 9, 9, 4]])
def test_equal_numbers_are_one_rise(sample):
    assert dip(np.array(sample, dtype=float)) == pytest.approx(oracles.dip(sample), abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_dip_of_samples_with_modes(seed):
    rng = np.random.default_rng(seed)
    sample = np.concatenate([rng.normal(size=12), rng.normal(4, 0.5, size=9), rng.pareto(1, size=4)])
    assert dip(sample) == pytest.approx(oracles.dip(sample), abs=1e-7)


@pytest.mark.parametrize("seed", range(24))
def test_the_dip_of_longer_samples(seed):
    rng = np.random.default_rng(seed)
    kinds = (rng.normal(size=18), rng.choice(6, 20) + 0.0, np.cumsum(rng.exponential(size=16)), rng.beta(0.4, 0.4, 17))
    sample = np.concatenate([kinds[seed % 4], 3 * rng.normal(size=seed % 3 * 4)])
    assert dip(sample) == pytest.approx(oracles.dip(sample), abs=1e-7)


def test_the_table_falls_smoothly():
    p, quantiles = np.array(TAIL_PROBABILITIES), np.array(_DIP_QUANTILES)
    assert np.all(np.diff(p) < 0)
    assert np.all(np.diff(quantiles) > 0)
    normal = quantiles[(p <= 0.5) & (p >= 1e-4)]  # a tail like that of a Gaussian: log p is quadratic in the dip
    fit = np.polyfit(normal, np.log(p[(p <= 0.5) & (p >= 1e-4)]), 2)
    np.testing.assert_allclose(np.polyval(fit, normal), np.log(p[(p <= 0.5) & (p >= 1e-4)]), atol=0.1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_each_weight_is_moved_within_its_rounding(dtype):
    weights = (np.random.default_rng(9).normal(0, 2, (1, 20, 10))).astype(dtype)
    found = dip_test(density(History.from_array(weights, [4000])))
    with np.errstate(invalid="ignore"):
        codes = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float64)
    codes = np.unique(codes[np.isfinite(codes)])
    sample = np.sort(weights.reshape(-1).astype(np.float64))
    at = np.searchsorted(codes, sample)
    low, high = (codes[at - 1] + codes[at]) / 2, (codes[at] + codes[at + 1]) / 2
    rng = np.random.default_rng(4000)
    rng.choice(200, 200, replace=False, shuffle=False)
    moved = low + (high - low) * rng.random(200)
    assert float(found["dip"][0]) == pytest.approx(dip(moved), rel=1e-12)
    assert float(found["dip_p"][0]) == pytest.approx(dip_p(dip(moved), 200), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_intervals_end_half_way_and_at_the_greatest_values(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    low, high = _rounding_intervals(np.array([-largest, 1.0, largest]), dtype)
    spacing = float(ml_dtypes.finfo(dtype).eps)  # above 1; below it is half of that
    next_to_largest = largest - largest / (2 / spacing - 1)
    assert low.tolist() == [-largest, 1 - spacing / 4, (largest + next_to_largest) / 2]
    assert high.tolist() == [-(largest + next_to_largest) / 2, 1 + spacing / 2, largest]


def test_two_thousand_weights_are_drawn():
    weights = np.sort(np.random.default_rng(3).normal(0, 0.1, 5000)).astype(np.float16)
    found = dips_of(History.from_array(weights.reshape(1, 50, 100), [7000]))
    rng = np.random.default_rng(7000)
    drawn = weights[np.sort(rng.choice(5000, 2000, replace=False, shuffle=False))].astype(np.float64)
    low, high = _rounding_intervals(drawn, "float16")
    assert float(found["dip"][0]) == pytest.approx(dip(low + (high - low) * rng.random(2000)), rel=1e-12)


def test_a_step_with_a_weight_that_is_not_finite_has_no_dip():
    weights = np.random.default_rng(1).normal(0, 0.05, (2, 60, 40)).astype(np.float16)
    weights[1, 3, 4] = np.inf
    with pytest.warns(NonFiniteWarning):
        assert np.isnan(dips_of(weights)["dip"]).values.tolist() == [False, True]


def test_dips_that_are_known():
    assert dip(np.arange(7)) == pytest.approx(1 / 14)
    assert dip(np.array([0.0, 1e-9, 2e-9, 1, 1 + 1e-9, 1 + 2e-9])) == pytest.approx(1 / 4, rel=1e-6)
    rng = np.random.default_rng(0)
    sample = rng.normal(size=500)
    assert dip(-3 * sample + 1) == pytest.approx(dip(sample))
    assert dip(rng.permutation(sample)) == dip(sample)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(5)
    p = np.array([dip_p(dip(rng.random(SAMPLE_SIZE))) for _ in range(2000)])
    for share in (0.01, 0.05, 0.1, 0.5, 0.9):
        assert np.mean(p <= share) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 2000))
    assert dip_p(0.1) == pytest.approx(1e-5)
    assert dip_p(0) == pytest.approx(0.999)


def test_the_dip_tells_two_modes_from_one():
    rng = np.random.default_rng(1)
    one = rng.normal(0, 0.05, (400, 50))
    two = one + np.where(rng.random(one.shape) < 0.5, 0.12, -0.12)
    constant = np.full((400, 50), 0.25)
    frames = np.stack([one, two, constant, np.full((400, 50), np.nan)]).astype(np.float16)
    with pytest.warns(NonFiniteWarning):
        p = dips_of(frames)["dip_p"]
    assert p[0] > 0.2
    assert p[1] < 1e-3
    assert p[2] == 1
    assert np.isnan(p[3])
    assert dips_of(constant[None].astype(np.float32))["dip_p"].item() == 1


def test_a_value_that_occurs_once_is_a_value():
    weights = np.array([[0.0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], np.float16)
    found = dips_of(weights)
    assert found["dip"][0] >= 1 / 14  # the least dip of seven numbers
    assert found["dip_p"][0] < 1
    assert (float(found["dip"][1]), float(found["dip_p"][1])) == (0, 1)


def test_a_step_of_one_value_leaves_the_later_ones():
    weights = np.random.default_rng(1).normal(0, 0.05, (3, 60, 40)).astype(np.float16)
    weights[1] = 0.25
    found = dips_of(weights)
    assert (float(found["dip"][1]), float(found["dip_p"][1])) == (0, 1)
    assert (found["dip"].values[[0, 2]] > 0).all()


def test_a_missing_step_has_no_dip():
    weights = np.random.default_rng(1).normal(0, 0.05, (3, 60, 40)).astype(np.float16)
    with pytest.warns(MissingStepsWarning):
        result = density(History.from_array(weights, [0, 1, 2], missing={1: "lost"}))
    assert np.isnan(dip_test(result)["dip"].to_numpy()).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [16, 64, 512])
def test_few_weights_of_one_mode_are_taken_for_that(size):
    weights = np.random.default_rng(6).normal(0, 0.02, (200, 1, size)).astype(np.float16)
    assert np.mean(dips_of(weights)["dip_p"] < 0.05) < 0.1


def test_a_zero_of_either_sign_is_one_value():
    weights = np.array([0.0, -0.0] * 50, np.float16).reshape(1, 10, 10)
    assert dips_of(weights)["dip_p"].item() == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_three_values_have_more_than_one_mode(dtype):
    # moved within their rounding, not across the gaps that no weight fills
    weights = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], (3, 200, 30)).astype(dtype)
    assert (dips_of(weights)["dip_p"] < 1e-3).all()


def test_every_step_draws_weights_of_its_own():
    frame = np.random.default_rng(4).normal(0, 0.05, (60, 40)).astype(np.float16)
    found = dips_of(History.from_array(np.stack([frame] * 3), [1000, 2000, 5000]))["dip"]
    assert len(np.unique(found)) == 3
    alone = dips_of(History.from_array(frame[None], [2000]))["dip"]
    assert float(alone[0]) == float(found.sel(step=2000))


def test_rounding_is_no_mode():
    weights = np.random.default_rng(2).normal(0, 0.05, (40, 300, 20)).astype(ml_dtypes.bfloat16)
    assert np.mean(dips_of(weights)["dip_p"] < 0.05) < 0.15
