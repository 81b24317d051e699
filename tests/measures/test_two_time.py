"""The two-time Gram matrix and what follows from it, against all pairs one by one and analytic truth."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracles
from support.walks import DTYPES, walk

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.measures.two_time import classical_scaling, fit_exponent, lag_table, two_time
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning
from pythia_dynamics.sweep.gram import displacements


@settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 10),
    rows=st.integers(1, 60),
    columns=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
    gaps=st.sets(st.integers(0, 9)),
)
def test_every_pair_is_as_computed_one_by_one(steps, rows, columns, dtype, threads, gaps):
    w = walk(steps, rows, columns, dtype)
    present = np.array([t not in gaps for t in range(steps)])
    if not present.any():
        present[0] = True
    numbers = np.arange(steps) ** 2
    missing = {int(numbers[t]): "gone" for t in np.flatnonzero(~present)}
    history = History.from_array(w, numbers, missing=missing)
    if missing:
        with pytest.warns(MissingStepsWarning):
            result = two_time(history, compute=Compute(threads=threads))
    else:
        result = two_time(history, compute=Compute(threads=threads))
    flat = w.reshape(steps, -1).astype(np.float64)
    flat[~present] = np.nan
    gram, moved = oracles.gram(flat), oracles.displacement(flat)
    rtol = 1e-11 if dtype == np.float64 else 2e-6
    np.testing.assert_allclose(result["gram"], gram, rtol=rtol, atol=rtol * np.nanmax(gram))
    np.testing.assert_allclose(result["displacement"], moved, rtol=rtol, atol=rtol * np.nanmax(moved))
    np.testing.assert_allclose(result["cosine"], gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram))), atol=10 * rtol)
    for t, s in np.ndindex(steps, steps):
        lag = numbers[s] - numbers[t]
        if lag > 0 and present[t] and present[s]:
            found = float(result["ageing"].sel(step=numbers[t], lag=lag))
            assert found == pytest.approx(moved[t, s], rel=10 * rtol, abs=rtol * np.nanmax(moved))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("threads", [1, 2])
def test_short_lags_do_not_cancel(dtype, threads):
    # after a long way from the start, steps whose square is some 1e-5 of the weights'
    rng = np.random.default_rng(0)
    start, away = rng.standard_normal((2, 60_000))
    frames = [start.astype(dtype)]
    here = (start + 3 * away).astype(dtype)
    for _ in range(12):
        nudge = here.astype(np.float64) * (1 + 3e-2 * (rng.uniform(size=60_000) < 0.01) * rng.standard_normal(60_000))
        here = nudge.astype(dtype)
        frames.append(here)
    w = np.stack(frames)
    exact = oracles.displacement(w.astype(np.float64))
    ratio = exact[1, 2] / np.mean(w[1].astype(np.float64) ** 2)
    assert ratio < 1.2e-5
    found = two_time(w, compute=Compute(threads=threads))["displacement"].values
    np.testing.assert_allclose(found, exact, rtol=2e-6)


def test_displacements_ignore_what_is_outside_the_lag():
    # one move a billion times longer than the others
    w = np.cumsum(np.concatenate([np.eye(4), [[1e9, 1, 0, 0]], np.eye(4) * [[1], [-1], [1], [1]]]), axis=0)
    increments = np.diff(w, axis=0, prepend=0)
    found = displacements(increments @ increments.T)
    np.testing.assert_allclose(found[:4, :4], 4 * oracles.displacement(w[:4]), rtol=1e-12)
    np.testing.assert_allclose(found[5:, 5:], 4 * oracles.displacement(w[5:]), rtol=1e-12)


def test_a_walk_has_exponent_1_and_a_straight_line_2():
    rng = np.random.default_rng(1)
    w = np.cumsum(rng.standard_normal((81, 20_000)), axis=0).astype(np.float32)
    found = two_time(w)["displacement_by_lag"].attrs
    assert found["exponent_low"] <= 1 <= found["exponent_high"]
    assert found["exponent"] == pytest.approx(1, abs=0.01)
    straight = np.arange(81.0)[:, None] * rng.standard_normal(50)
    found = two_time(straight)["displacement_by_lag"].attrs
    assert found["exponent"] == pytest.approx(2, abs=1e-9)
    assert found["exponent_high"] - found["exponent_low"] < 1e-6


def test_exponents_go_by_step_number_on_an_uneven_grid():
    # steps 0, 1, 2, 4 … 512, then every 1000, as the published checkpoints; the walk is one of step numbers
    numbers = np.array([0, *(2 ** np.arange(10)), *range(1000, 40_001, 1000)])
    rng = np.random.default_rng(2)
    moves = rng.standard_normal((len(numbers), 5000)) * np.sqrt(np.diff(numbers, prepend=0))[:, None]
    history = History.from_array(np.cumsum(moves, axis=0), numbers)
    result = two_time(history)
    assert result["displacement_by_lag"].attrs["exponent"] == pytest.approx(1, abs=0.02)
    assert float(result["displacement_by_lag"].sel(lag=2000)) == pytest.approx(2000, rel=0.05)
    assert int(result["pairs"].sel(lag=1000)) == 40
    assert result.sizes["lag"] <= 4 * len(numbers)


PYTHIA = np.array([0, *(1 << i for i in range(10)), *range(1000, 144_000, 1000)])


def walk_over(steps, rng, dimensions=20):
    moves = rng.standard_normal((len(steps) - 1, dimensions)) * np.sqrt(np.diff(steps))[:, None]
    return np.cumsum(np.concatenate([np.zeros((1, dimensions)), moves]), axis=0)


@pytest.mark.parametrize("steps", [np.arange(101), PYTHIA], ids=["even", "pythia"])
def test_the_interval_of_the_exponent_covers_it(steps):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        lags, table = lag_table(steps, oracles_squared(walk_over(steps, rng)))
        found = fit_exponent(lags, table, longest=0.1 * steps[-1])
        covered += found.low <= 1 <= found.high
    assert covered >= 87


@pytest.mark.parametrize("early", [0.1, 3])
def test_steps_of_one_age_do_not_bend_the_exponent(early):
    # Pythia's steps before 1,000 have lags of their own: a walk that was faster or slower then is a walk all the same
    w = walk_over(PYTHIA, np.random.default_rng(4), 500)
    young = PYTHIA < 1000
    w[young] *= early
    w[~young] += w[young][-1] - w[young][-1] / early
    result = two_time(History.from_array(w[:, None, :], PYTHIA))
    assert result["displacement_by_lag"].attrs["exponent"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12, 25])
@pytest.mark.parametrize("even", [True, False])
def test_the_exponent_and_its_interval_from_their_definition(count, even):
    rng = np.random.default_rng(count)
    steps = np.arange(count) * 5 if even else np.cumsum(rng.integers(1, 4, size=count))
    lags, table = lag_table(steps, oracles_squared(walk_over(steps, rng)))
    for longest in (0, 10, steps[-1] / 2, steps[-1]):
        for confidence in (0.5, 0.95):
            found = fit_exponent(lags, table, longest=longest, confidence=confidence)
            expected = oracles.exponent(lags, table, longest, confidence)
            np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-9)


def test_the_longest_lag_is_a_share_of_the_span():
    # the number of the first step does not matter
    w = walk(61, 20, 5, np.float64)
    for first in (0, 1000):
        steps = first + 5 * np.arange(61)
        lags, table = lag_table(steps, oracles.displacement(w.reshape(61, -1)))
        found = two_time(History.from_array(w, steps))["displacement_by_lag"].attrs
        expected = oracles.exponent(lags, table, 0.1 * 300)
        assert [found["exponent"], found["exponent_low"], found["exponent_high"]] == pytest.approx(expected, rel=1e-6)


def test_the_displacement_by_lag_is_the_mean_over_its_pairs():
    steps = np.array([3, 4, 6, 10, 11, 20])
    w = walk(6, 20, 5, np.float64)
    moved = oracles.displacement(w.reshape(6, -1))
    result = two_time(History.from_array(w, steps))
    for lag, mean, count in zip(*(result[name] for name in ("lag", "displacement_by_lag", "pairs")), strict=True):
        pairs = [moved[i, j] for i in range(6) for j in range(6) if steps[j] - steps[i] == lag]
        assert int(count) == len(pairs)
        assert float(mean) == pytest.approx(np.mean(pairs), rel=1e-9)


def test_two_lags_have_a_slope():
    lags, table = np.array([1, 4]), np.array([[1.0, 8.0], [1.0, 8.0], [1.0, 8.0], [1.0, 8.0]])
    assert fit_exponent(lags, table, longest=4).value == pytest.approx(1.5)
    assert np.isnan(fit_exponent(lags, table * [1, 0], longest=4).value)


def oracles_squared(w):
    norms = np.sum(w**2, axis=1)
    return norms[:, None] + norms - 2 * w @ w.T


def test_few_steps_have_no_interval():
    lags, table = lag_table(np.array([0, 1]), np.array([[0, 1], [1, 0]]))
    assert lags.tolist() == [1]
    assert np.isnan(fit_exponent(lags, table, longest=1).value)
    result = two_time(np.ones((1, 5, 2)))
    assert result.sizes["lag"] == 0
    assert "exponent" not in result["displacement_by_lag"].attrs


def test_the_most_frequent_lags_are_kept():
    numbers = np.cumsum(np.arange(1, 30) ** 2)
    squared = np.abs(numbers[:, None] - numbers).astype(float)
    lags, table = lag_table(numbers, squared)
    assert len(lags) == 4 * 29
    assert np.all(np.diff(lags) > 0)
    assert np.array_equal(table[np.isfinite(table)], np.broadcast_to(lags, table.shape)[np.isfinite(table)])


def test_both_msds_follow_from_the_gram_matrix():
    w = walk(15, 40, 8, np.float16)
    result, expected = two_time(w), msd(w)
    means = w.reshape(15, -1).astype(np.float64).mean(axis=1)
    centred = result["gram"].values - 320 * np.outer(means, means)
    follows = [centred[: t + 1, : t + 1].sum() / 319 for t in range(15)]
    np.testing.assert_allclose(expected["msd"], follows, rtol=1e-5)
    double = np.eye(15) - 1 / 15
    centred = double @ result["gram"].values @ double
    follows = [centred[: t + 1, : t + 1].sum() / 319 for t in range(14)]
    np.testing.assert_allclose(expected["msd_time"][:14], follows, rtol=1e-4)


def test_principal_components_are_those_of_the_weights():
    w = walk(12, 40, 5, np.float64)
    flat = w.reshape(12, -1)
    centred = flat - flat.mean(axis=0)
    u, sigma, _ = np.linalg.svd(centred, full_matrices=False)
    result = two_time(w, components=3)
    np.testing.assert_allclose(result["explained"], (sigma**2 / np.sum(sigma**2))[:3], rtol=1e-9)
    np.testing.assert_allclose(np.abs(result["coordinate"]), np.abs(u * sigma)[:, :3], rtol=1e-6, atol=1e-9)
    assert (result["coordinate"][0] <= 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_coordinates_have_the_distances(seed):
    points = np.random.default_rng(seed).standard_normal((7, 3))
    squared = oracles_squared(points)
    share, coordinates = classical_scaling(squared, 7)
    np.testing.assert_allclose(oracles_squared(coordinates), squared, atol=1e-9)
    assert share.sum() == pytest.approx(1)
    assert (coordinates[0] <= 0).all()


def test_a_walk_has_the_components_of_its_null():
    rng = np.random.default_rng(4)
    result = two_time(np.cumsum(rng.standard_normal((60, 50_000)), axis=0))
    np.testing.assert_allclose(result["explained"], result["explained_null"], rtol=0.02)
    # Antognini & Sohl-Dickstein: 6/π² of the variance lies along the first
    assert float(result["explained_null"][0]) == pytest.approx(6 / np.pi**2, abs=0.01)


def test_a_still_history_has_no_components():
    share, coordinates = classical_scaling(np.zeros((4, 4)), 2)
    assert np.isnan(share).all()
    assert (coordinates == 0).all()
    result = two_time(np.broadcast_to(walk(1, 30, 4, np.float16), (5, 30, 4)))
    assert (result["displacement"] == 0).all()
    assert "exponent" not in result["displacement_by_lag"].attrs


def test_steps_that_are_not_finite_are_left_out():
    w = walk(6, 30, 5, np.float16)
    clean = np.delete(w, 3, axis=0)
    w[3, 2, 1] = np.inf
    with pytest.warns(NonFiniteWarning, match="step 3"):
        result = two_time(w)
    kept = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(result["gram"].values[np.ix_(kept, kept)], two_time(clean)["gram"])
    assert np.isnan(result["gram"][3]).all()
    assert np.isnan(result["displacement"][:, 3]).all()


def test_nothing_is_known_where_no_step_is_finite():
    with pytest.warns(NonFiniteWarning, match="steps 0, 1, 2"):
        result = two_time(np.full((3, 20, 4), np.inf))
    for name, values in result.data_vars.items():
        assert name == "pairs" or np.isnan(values).all(), name
    assert (result["pairs"] == 0).all()
    assert "exponent" not in result["displacement_by_lag"].attrs


def test_pieces_on_a_device_add_up(monkeypatch):
    w = walk(6, 40, 5, np.float16)
    whole = two_time(w, compute=Compute(device="cpu:0"))
    monkeypatch.setattr("pythia_dynamics.sweep.gram._DEVICE_ELEMENTS", 6 * 64)  # pieces of 64 weights
    for name, values in two_time(w, compute=Compute(device="cpu:0")).data_vars.items():
        np.testing.assert_allclose(np.abs(values), np.abs(whole[name]), rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_device_of_torch_gives_the_same(dtype):
    # "cpu:0" goes the way of a CUDA device, through torch and in float64
    w = walk(6, 40, 5, dtype)
    flat = w.reshape(6, -1).astype(np.float64)
    result = two_time(w, compute=Compute(device="cpu:0"))
    np.testing.assert_allclose(result["gram"], oracles.gram(flat), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result["displacement"], oracles.displacement(flat), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("moves", [1e-3, 1e-4])
def test_short_lags_across_a_step_that_does_not_belong(dtype, moves):
    rng = np.random.default_rng(0)
    w = 0.05 * (rng.standard_normal((300, 16)) + np.cumsum(moves * rng.standard_normal((12, 300, 16)), axis=0))
    w[5] = 0.05 * rng.standard_normal((300, 16))
    w = w.astype(dtype)
    flat = w.astype(np.float64).reshape(12, -1)
    expected = np.mean((flat[:, None] - flat[None]) ** 2, axis=2)
    np.testing.assert_allclose(two_time(w)["displacement"], expected, rtol=1e-5, atol=0)


def test_weights_that_shrink_keep_their_norm_and_direction():
    rng = np.random.default_rng(1)
    first = 0.05 * rng.standard_normal((400, 16))
    w = np.stack([first, 1e-4 * first + 1e-7 * rng.standard_normal(first.shape), 1e-4 * first]).astype(np.float32)
    flat = w.astype(np.float64).reshape(3, -1)
    result, norms = two_time(w), np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(np.diag(result["gram"]), norms**2, rtol=1e-6)
    np.testing.assert_allclose(result["cosine"], flat @ flat.T / norms / norms[:, None], rtol=1e-4)
