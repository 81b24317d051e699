"""Mean squared displacement against its formula, its nulls and analytic truth."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracles
from support.walks import walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import interior_peak, msd, random_walk
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
CURVES = ("msd", "msd_null", "msd_time", "msd_time_null", "displacement")


def check(result, w, present=None, rtol=2e-6):
    """Against the oracle: relative to each curve's own largest value, for the curves end near zero."""
    flat = w.reshape(len(w), -1).astype(np.float64)
    expected = oracles.msd(flat, present) | oracles.nulls(flat, present)
    for name in CURVES:
        scale = np.nanmax(expected[name])
        np.testing.assert_allclose(result[name], expected[name], rtol=rtol, atol=rtol * scale, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12),
    rows=st.integers(2, 60),
    columns=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
    offset=st.sampled_from([0.0, 1.0]),
    gaps=st.sets(st.integers(0, 11)),
)
def test_msd_is_eq_4_and_5(steps, rows, columns, dtype, threads, offset, gaps):
    w = (walk(steps, rows, columns, np.float64) + offset).astype(dtype)
    present = np.array([t not in gaps for t in range(steps)])
    if not present.any():
        present[0] = True
    numbers = np.arange(steps) ** 2
    missing = {int(numbers[t]): "gone" for t in np.flatnonzero(~present)}
    history = History.from_array(w, numbers, missing=missing)
    if missing:
        with pytest.warns(MissingStepsWarning, match=str(max(missing))):
            result = msd(history, compute=Compute(threads=threads))
    else:
        result = msd(history, compute=Compute(threads=threads))
    check(result, w, present, rtol=1e-10 if dtype == np.float64 else 2e-6)
    assert result["step"].values.tolist() == numbers.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_do_not_move_have_no_msd(dtype):
    # equal weights: each is its own mean, at every step; they may differ between steps
    for levels in ([0.1] * 5, [0.1, -0.3, 0.7, 0.0, 2.5]):
        w = np.broadcast_to(np.array(levels).astype(dtype)[:, None, None], (5, 50, 7))
        result = msd(w)
        assert (result["msd"] == 0).all()
    # weights that differ but stay: demeaned over time, nothing is left
    still = np.broadcast_to(walk(1, 50, 7, dtype), (5, 50, 7))
    result = msd(still)
    for name in ("msd_time", "msd_time_null", "displacement"):
        assert (result[name] == 0).all(), name
    np.testing.assert_allclose(result["msd"], result["msd_null"], rtol=1e-6)
    assert "peak_step" not in result["msd"].attrs
    for seed in range(5):  # the ratio to the null is 1, but for rounding: no peak either
        still = np.broadcast_to(walk(1, 50, 7, dtype, seed), (9, 50, 7))
        assert "peak_over_null_step" not in msd(still)["msd"].attrs


def test_ballistic_motion_grows_with_the_square_of_the_displacement():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(2000)
    w = np.arange(1, 41)[:, None] * direction * 1e-2
    result = msd(w)
    slope = np.polyfit(np.log(np.arange(1, 40)), np.log(result["displacement"][1:]), 1)[0]
    assert slope == pytest.approx(2, abs=1e-9)
    sums = np.cumsum(np.arange(1, 41)) ** 2 * np.var(direction, ddof=1) * 1e-4
    np.testing.assert_allclose(result["msd"], sums, rtol=1e-10)
    assert (result["msd"][-1] > 5 * result["msd_null"][-1]).item()


def test_a_random_walk_is_its_own_null():
    # Monte-Carlo: 200 independent walks of few weights, averaged
    rng = np.random.default_rng(1)
    sizes = rng.uniform(0.5, 2, 20)
    start = rng.standard_normal(30)
    total = {name: np.zeros(21) for name in CURVES}
    runs = 400
    for _ in range(runs):
        steps = rng.standard_normal((20, 30))
        steps *= sizes[:, None] / np.linalg.norm(steps, axis=1, keepdims=True)
        w = np.concatenate([start[None], start + np.cumsum(steps, axis=0)])
        result = msd(w, compute=Compute(threads=1))
        for name in CURVES:
            total[name] += result[name].values / runs
    np.testing.assert_allclose(total["msd"], total["msd_null"], rtol=0.05)
    middle = slice(2, 18)
    np.testing.assert_allclose(total["msd_time"][middle], total["msd_time_null"][middle], rtol=0.12)
    np.testing.assert_allclose(total["displacement"][1:], np.cumsum(sizes**2) / 30, rtol=0.05)


@pytest.mark.parametrize(("spread", "size"), [(0.0, 3), (9.0, 3), (9.0, 12), (400.0, 12)])
def test_mean_and_spread_of_the_msd_of_a_walk(spread, size):
    rng = np.random.default_rng(7)
    moved = np.array([5.0, 1.0, 4.0, 0.25, 2.0])  # the first is not used
    start = rng.standard_normal(size)
    start = (start - start.mean()) / np.std(start) * np.sqrt(spread / size)
    steps = rng.standard_normal((40_000, 5, size)) * np.sqrt(np.append(0, moved[1:]) / size)[:, None]
    sums = np.cumsum(start + np.cumsum(steps, axis=1), axis=1)
    found = np.var(sums, axis=2, ddof=1)
    expected, deviation = random_walk(spread, moved, size)
    np.testing.assert_allclose(found.mean(axis=0), expected, rtol=0.03)
    np.testing.assert_allclose(found.std(axis=0)[1:], deviation[1:], rtol=0.03)
    assert deviation[0] == 0


def test_demeaned_over_time_the_integral_ends_at_zero_and_peaks_mid_way():
    result = msd(walk(41, 200, 10, np.float32), compute=Compute(threads=1))
    assert result["msd_time"][-1] < 1e-9 * result["msd_time"].max()
    assert result["msd_time_null"][-1] == pytest.approx(0, abs=1e-12)
    assert 10 <= result["msd_time"].attrs["peak_step"] <= 30
    assert 10 <= np.argmax(result["msd_time_null"].data) <= 30


def test_a_history_that_barely_moves_keeps_its_accuracy():
    # weights near 1 that move by 1e-5 a step: what moves is far below the rounding of what stands
    rng = np.random.default_rng(2)
    w = (1 + rng.standard_normal((1, 4000)) + np.cumsum(rng.standard_normal((30, 4000)), axis=0) * 1e-5).astype(
        np.float32
    )
    result = msd(w)
    expected = oracles.msd(w.astype(np.float64)) | oracles.nulls(w.astype(np.float64))
    inner = slice(1, 29)
    for name in ("msd_time", "displacement", "msd_time_null"):
        np.testing.assert_allclose(result[name][inner], expected[name][inner], rtol=1e-3, err_msg=name)


def test_a_step_that_is_not_finite_is_skipped_like_a_missing_one():
    w = walk(6, 30, 5, np.float16)
    w[3, 2, 1] = np.inf
    w[3, 4, 4] = np.nan
    with pytest.warns(NonFiniteWarning, match="step 3"):
        result = msd(w)
    check(result, w, np.array([True, True, True, False, True, True]))
    w[:] = np.nan
    with pytest.warns(NonFiniteWarning, match="steps 0, 1, 2, 3, 4, 5"):
        assert np.isnan(msd(w)["msd"]).all()


def test_one_weight_has_no_spread():
    result = msd(np.ones((3, 1), np.float32))
    assert np.isnan(result["msd"]).all()
    assert (result["displacement"] == 0).all()


def test_a_history_without_any_weights_is_refused():
    history = History.from_array(np.zeros((1, 3)), missing={0: "lost"})
    with pytest.warns(MissingStepsWarning), pytest.raises(PythiaDynError, match="no step"):
        msd(history)


def test_peaks_are_interior():
    steps = np.array([0, 1, 10, 100])
    assert interior_peak(steps, np.array([0.0, 1, 3, 2])) == 10
    assert interior_peak(steps, np.array([0.0, 1, 2, 3])) is None
    assert interior_peak(steps, np.array([3.0, 2, 1, 0])) is None
    assert interior_peak(steps, np.array([1.0, np.nan, 5, 2])) == 10
    assert interior_peak(steps, np.full(4, np.nan)) is None
    assert interior_peak(steps, np.zeros(4)) is None
    assert interior_peak(steps, np.array([0.0, 3, 1, 3])) is None  # as high at the end
    assert interior_peak(steps, np.array([0.0, 3, 1, 2.9])) == 1
    for ends, margin, peak in (
        ((2.9, 1), 0.1, None),
        ((1, 2.9), 0.1, None),
        ((2.7, 2.7), 0.1, 1),
        ((2.7, 1), 0.2, None),
    ):
        assert interior_peak(steps, np.array([ends[0], 3.0, 1, ends[1]]), margin) == peak
    assert interior_peak(steps, np.array([np.nan, 1, 3, 2])) == 10  # three are enough
    assert interior_peak(steps, np.array([np.nan, np.nan, 3, 2])) is None
    for curve in ([-4.0, -3, -2, -1], [-1.0, -2, -3, -4]):  # a share of a negative value is below that value
        assert interior_peak(steps, np.array(curve), 0.1) is None


def test_variables_say_what_they_are():
    result = msd(History.from_array(walk(3, 5, 5, np.float16), name="suite"))
    assert list(result.data_vars) == list(CURVES)
    assert all({"units", "long_name"} <= set(result[name].attrs) for name in CURVES)
    assert result.attrs["source"] == "suite"


def test_the_peak_of_the_ratio_to_the_null():
    # straight on for twelve steps, then a walk of the same step sizes: the ratio is greatest between the ends, while
    # both curves grow until the last step
    rng = np.random.default_rng(0)
    moves = rng.standard_normal((40, 300))
    moves[:12] = moves[0]
    w = np.cumsum(moves, axis=0)
    steps = np.arange(40) * 7
    result = msd(History.from_array(w[:, None, :], steps))
    expected = oracles.msd(w) | oracles.nulls(w)
    ratio = expected["msd"] / expected["msd_null"]
    assert 0 < np.argmax(ratio) < 39
    assert result["msd"].attrs["peak_over_null_step"] == steps[np.argmax(ratio)]
    assert "peak_step" not in result["msd"].attrs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_msd_is_negative(dtype):
    # every second step undoes the spread of the one before: what is left of the sums is equal for all weights
    rng = np.random.default_rng(0)
    spread = rng.integers(-64, 64, 300) / 64
    levels = rng.standard_normal(30)
    w = np.concatenate([[level + spread, level - spread] for level in levels]).astype(dtype)
    found = msd(w[:, :, None])["msd"].to_numpy()
    assert (found >= 0).all()
    np.testing.assert_allclose(found[1::2], 0, atol=1e-9)


def test_a_low_peak_between_the_ends_is_one():
    base = np.random.default_rng(1).normal(size=(30, 5))
    base -= base.mean()
    moved = np.array([1.0, 1, 1, -0.2])[:, None, None] * base  # the integral is 1, 2, 3 and 2.8 times the base
    assert msd(moved)["msd"].attrs["peak_step"] == 2


def test_weights_near_1e100_have_the_curves_of_others_scaled():
    w = walk(6, 30, 8, np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, large = msd(w), msd(w * 1e100)
    for name in plain.data_vars:
        power = {"weight^2": 200, "weight": 100}[plain[name].attrs["units"]]
        expected = plain[name].to_numpy() * 10.0**power
        least = 1e-9 * float(abs(expected).max())
        np.testing.assert_allclose(large[name].to_numpy(), expected, rtol=1e-9, atol=least, err_msg=str(name))


def test_steps_whose_squares_are_too_large_are_named():
    w = walk(4, 30, 5, np.float32)
    w[2] *= 1e25
    with pytest.raises(PythiaDynError, match="at step 2 are too large for their squares"):
        msd(w)
