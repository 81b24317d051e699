"""The exit protocol as a rule: when it stops, what it looks at, what it saves and costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

import pythia_dynamics as pyd
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import random_walk
from pythia_dynamics.measures.learning_rate import learning_rate_integrals
from pythia_dynamics.measures.stationarity import motion
from pythia_dynamics.training.stopping import StationarityRule, replay


def curves(steps: list[int], rate: list[float], msd: list[float] | None = None) -> xr.Dataset:
    """Curves with these rates, and an MSD that grows with its null unless given."""
    null = np.arange(1.0, len(steps) + 1) ** 2
    return xr.Dataset(
        {
            "displacement_rate": ("step", np.array(rate, float)),
            "msd": ("step", null if msd is None else np.array(msd, float)),
            "msd_null": ("step", null),
            "msd_null_sd": ("step", 0.01 * null),
        },
        {"step": np.array(steps)},
    )


# -- the rule -------------------------------------------------------------------------------------------------


def test_patience_counts_records_in_a_row() -> None:
    data = curves([0, 1, 2, 3, 4, 5, 6, 7], [np.nan, 0.1, 0.005, 0.1, 0.005, 0.004, 0.003, 0.1])
    assert StationarityRule("displacement", 0.01, patience=1).stop(data) == 2
    assert StationarityRule("displacement", 0.01, patience=2).stop(data) == 5
    assert StationarityRule("displacement", 0.01, patience=3).stop(data) == 6
    assert StationarityRule("displacement", 0.01, patience=4).stop(data) is None
    assert StationarityRule("displacement", 0.01, patience=2, after=5).stop(data) == 6
    assert StationarityRule("msd", 0.01, patience=1).stop(data) is None


def test_a_missing_record_is_passed_over_and_the_first_is_never_stationary() -> None:
    data = curves([0, 1, 2, 3, 4], [np.nan, 0.001, np.nan, 0.001, 0.001], [1, 4, np.nan, 16, 25])
    assert StationarityRule("displacement", 0.01, patience=2).stop(data) == 3
    assert StationarityRule("displacement", 0.01, patience=2).stationary(data).tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]
    assert StationarityRule("displacement", 1e9, patience=1).stop(curves([5], [np.nan])) is None


def test_past_the_peak_means_below_what_the_null_shows() -> None:
    steps, rate = list(range(6)), [1.0] * 6
    peaked = curves(steps, rate, [1, 4, 9, 7, 6, 5])
    assert StationarityRule("msd", patience=1).stop(peaked) == 3
    assert StationarityRule("msd", patience=3).stop(peaked) == 5
    assert StationarityRule("either", threshold=1e-9, patience=3).stop(peaked) == 5
    assert StationarityRule("msd", patience=1).stop(curves(steps, rate, [1, 4, 9, 9.5, 9.6, 9.7])) is None  # no peak
    # a dip that the null itself takes, or one within its spread, is none
    dip = curves(steps, rate, [1, 4, 9, 7, 12, 13])
    dip["msd_null"] = ("step", np.array([1, 4, 9, 7.1, 12, 13]))
    dip["msd_null_sd"] = 0.02 * dip["msd_null"]
    assert StationarityRule("msd", patience=1).stop(dip) is None
    assert StationarityRule("msd", patience=1, sigmas=0).stop(dip) == 3


def test_what_is_said_of_a_record_does_not_depend_on_later_ones() -> None:
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(40, 30, 4)), axis=0)
    walk[20:] = walk[20] * np.linspace(1, -1, 20)[:, None, None]  # turns round: the integral shrinks
    whole = motion(walk)
    rule = StationarityRule("either", threshold=40.0, patience=2)
    said = rule.stationary(whole)
    assert said.any()
    for length in (5, 19, 30, 39):
        part = motion(History.from_array(walk[:length]))
        np.testing.assert_array_equal(rule.stationary(part), said[:length])


def test_rules_that_cannot_be() -> None:
    with pytest.raises(UnknownNameError, match="no rule 'mds'; did you mean msd"):
        StationarityRule("mds")  # type: ignore[arg-type]
    with pytest.raises(PythiaDynError, match="at least 1"):
        StationarityRule(patience=0)
    with pytest.raises(PythiaDynError, match="above 0"):
        StationarityRule(threshold=0.0)
    with pytest.raises(PythiaDynError, match="with_gram=True"):
        StationarityRule().stop(curves([0, 1], [np.nan, 1.0]))


# -- stationary weights ---------------------------------------------------------------------------------------

T = 60
STEPS = np.arange(1, T + 1) * 1000
FALLING = {int(step): 1e-3 * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS[-1]))) for step in STEPS}


def moving(name: str, seed: int) -> History:
    """60 records of 1,200 weights: a walk whose steps follow a learning rate that falls by ten, or another motion."""
    rng = np.random.default_rng(seed)
    sizes = np.sqrt(learning_rate_integrals(STEPS, np.array(list(FALLING.values())), 2))
    noise = rng.normal(size=(T - 1, 1200))
    if name == "rank 3":
        noise = rng.normal(size=(T - 1, 3)) @ rng.normal(size=(3, 1200))
    weights = np.concatenate([np.zeros((1, 1200)), np.cumsum(sizes[:, None] * noise, axis=0)])
    if name.startswith("plateau"):
        weights[25:] = weights[25]
    if name in ("noise of records", "plateau with noise"):
        weights += (2 if name == "noise of records" else 0.5) * sizes.mean() * rng.normal(size=weights.shape)
    if name == "drift":
        weights += np.concatenate([[0], np.cumsum(sizes)])[:, None] * rng.normal(size=1200)
    if name == "equilibrium":
        memory, weights = np.exp(-1 / 3), rng.normal(size=(T, 1200))
        for i in range(1, T):
            weights[i] = memory * weights[i - 1] + np.sqrt(1 - memory**2) * weights[i]
    first = 5 * rng.normal(size=1200)
    return History.from_array((weights + first).reshape(T, 40, 30), STEPS, learning_rate=FALLING)


@pytest.mark.parametrize("name", ["walk", "rank 3", "noise of records", "drift"])
def test_what_moves_on_is_not_stopped(name: str) -> None:
    assert sum(replay(moving(name, seed)).stopped_at is not None for seed in range(6)) <= 1


@pytest.mark.parametrize("name", ["plateau", "plateau with noise", "equilibrium"])
def test_what_rests_is_stopped(name: str) -> None:
    stops = [replay(moving(name, seed)).stopped_at for seed in range(4)]
    assert sum(step is not None for step in stops) >= 3
    if name != "equilibrium":
        assert all(step > 26_000 for step in stops if step is not None)


def test_a_stop_needs_a_learning_rate_unless_the_whole_history_is_in_equilibrium() -> None:
    for name, stops in (("plateau", False), ("equilibrium", True)):
        without = History.from_array(np.asarray(moving(name, 0).weights), STEPS)
        assert (replay(without).stopped_at is not None) == stops


def test_the_rule_needs_the_records_up_to_now_only() -> None:
    curves_ = motion(moving("plateau", 0))
    rule = StationarityRule()
    stop = rule.stop(curves_)
    assert stop is not None
    place = int(np.searchsorted(STEPS, stop))
    past = curves_.isel(step=slice(place + 1), other_step=slice(place + 1))
    assert rule.stop(past) == stop
    assert rule.stops_now(past)
    before = curves_.isel(step=slice(place), other_step=slice(place))
    assert rule.stop(before) is None
    assert not rule.stops_now(before)
    assert rule.until_stop(past)[-3:].all()
    assert StationarityRule(after=stop + 1000).stop(past) is None


def uneven(steps: NDArray[np.int64], seed: int, *, noise: float, moves: bool = True) -> History:
    """A walk with unit steps per 1,000 and noise of records, or that noise alone."""
    rng = np.random.default_rng(seed)
    sizes = np.sqrt(np.diff(steps) / 1000)[:, None] * moves
    weights = np.cumsum(np.r_[np.zeros((1, 1200)), sizes * rng.normal(size=(len(sizes), 1200))], axis=0)
    weights += noise * rng.normal(size=weights.shape)
    rate = {int(step): 1e-3 for step in steps}
    return History.from_array(weights.reshape(-1, 40, 30), steps, learning_rate=rate)


@pytest.mark.parametrize("grid", ["geometric", "powers of two"])
def test_noise_of_records_that_lie_close_hides_no_walk(grid: str) -> None:
    steps = np.unique(np.geomspace(1, 143_000, 58).round().astype(int))
    if grid != "geometric":
        steps = np.r_[0, 2 ** np.arange(10), np.arange(1, 50) * 1000]
    assert [replay(uneven(steps, seed, noise=2)).stopped_at for seed in range(5)] == [None] * 5
    if grid != "geometric":
        assert replay(uneven(steps, 0, noise=2, moves=False)).stopped_at is not None


def test_a_log_that_begins_one_checkpoint_late_is_enough_to_stop() -> None:
    late = {step: rate for step, rate in FALLING.items() if step > STEPS[0]}
    weights = np.asarray(moving("plateau", 0).weights)
    assert replay(History.from_array(weights, STEPS, learning_rate=late)).stopped_at is not None


# -- the curves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_motion_against_the_formulas(dtype: type) -> None:
    rng = np.random.default_rng(1)
    weights: NDArray[Any] = (0.3 + np.cumsum(rng.normal(scale=0.05, size=(9, 50, 6)), axis=0)).astype(dtype)
    steps = np.array([0, 1, 2, 4, 8, 1000, 2000, 2500, 4000])
    history = History.from_array(weights, steps, missing={8: "lost"})
    with pytest.warns(UserWarning, match="lacks step 8"):
        found = motion(history)
    present = [0, 1, 2, 3, 5, 6, 7, 8]
    w = weights.astype(np.float64)[present].reshape(8, -1)
    norms = np.linalg.norm(w, axis=1)
    sizes = np.linalg.norm(np.diff(w, axis=0), axis=1)
    np.testing.assert_allclose(found["frobenius_norm"][present], norms, rtol=1e-6)
    np.testing.assert_allclose(found["moved"][present][1:], sizes**2, rtol=1e-5)
    rates = sizes / norms[1:] / np.diff(steps[present]) * 1000
    np.testing.assert_allclose(found["displacement_rate"][present][1:], rates, rtol=1e-5)
    assert np.isnan(found["displacement_rate"].to_numpy()[[0, 4]]).all()
    between = ((w[:, None] - w[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found["squared_displacement"].to_numpy()[np.ix_(present, present)], between, rtol=1e-4)
    assert np.isnan(found["squared_displacement"].to_numpy()[4]).all()
    msd = pyd.msd(history.select(steps[present].tolist()))
    np.testing.assert_allclose(found["msd"][present], msd["msd"])
    np.testing.assert_allclose(found["msd_null"][present], msd["msd_null"])


def test_uneven_steps_count_by_their_numbers() -> None:
    """Weights that grow steadily with the step number move at one rate, however the steps are spaced."""
    steps = np.array([0, 1, 2, 4, 100, 150, 1000])
    weights = 1e4 + np.multiply.outer(steps.astype(float), np.ones((20, 5)))
    rates = motion(History.from_array(weights, steps))["displacement_rate"].to_numpy()[1:]
    np.testing.assert_allclose(rates, 1000 / (1e4 + steps[1:]), rtol=1e-6)


def test_the_spread_of_a_walk_is_what_walks_show() -> None:
    rng = np.random.default_rng(2)
    start = rng.normal(size=60)
    start -= start.mean()
    sizes = rng.uniform(0.2, 1.0, size=12)
    found = []
    for _ in range(3000):
        steps = rng.normal(size=(12, 60)) * sizes[:, None] / np.sqrt(60)
        steps[0] = start
        w = np.cumsum(steps, axis=0)
        integral = np.cumsum(w - w.mean(axis=1, keepdims=True), axis=0)
        found.append((integral**2).sum(axis=1) / 59)
    expected, spread = random_walk(float(start @ start), sizes**2, 60)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=0.02)
    np.testing.assert_allclose(np.std(found, axis=0)[1:], spread[1:], rtol=0.06)
    assert spread[0] == 0


def test_degenerate_histories() -> None:
    one = replay(np.ones((1, 5, 4)))
    assert (one.stopped_at, one.last_step, one.saved) == (None, 0, 0.0)
    rest = replay(np.ones((9, 5, 4)), StationarityRule("displacement", patience=2))
    assert rest.stopped_at == 2  # nothing moves from the first interval on
    assert replay(np.ones((40, 5, 4))).stopped_at is None  # weights that have never moved come to no rest
    zero = replay(np.zeros((4, 5, 4)), StationarityRule("displacement"))
    assert zero.stopped_at is None  # 0 / 0 is no rate


def test_a_pure_walk_never_passes_its_peak() -> None:
    for seed in range(20):
        steps = np.random.default_rng(seed).normal(size=(60, 40, 10))
        assert replay(np.cumsum(steps, axis=0), StationarityRule("msd", patience=1)).stopped_at is None


# -- the replay -----------------------------------------------------------------------------------------------


def test_what_stopping_saves_and_costs() -> None:
    data = curves([0, 1000, 2000, 3000, 4000], [np.nan, 0.1, 0.001, 0.001, 0.001])
    rule = StationarityRule("displacement", patience=2)
    loss = {0: 5.0, 1000: 3.0, 2900: 2.5, 3500: 2.1, 4000: 2.2, 9000: 0.0}
    found = replay(data, rule, loss=loss)
    assert (found.stopped_at, found.last_step, found.saved) == (3000, 4000, 0.25)
    assert (found.loss_step, found.loss_at_stop, found.loss_last) == (2900, 2.5, 2.2)
    assert found.loss_cost == pytest.approx(0.3)
    assert found.loss_best_after == 2.1
    assert found.curves["stationary"].to_numpy().tolist() == [False, False, True, True, True]
    unknown = replay(data, rule)
    assert np.isnan(unknown.loss_cost)
    assert unknown.loss_step is None
    never = replay(data, StationarityRule("displacement", threshold=1e-9), loss=loss)
    assert (never.stopped_at, never.saved) == (None, 0.0)
    assert np.isnan(never.loss_cost)
