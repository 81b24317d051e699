"""The claims about rest: what is supported, what is not, and where the data cannot decide."""

from __future__ import annotations

import tracemalloc
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics.claims.rest import stationary, stop_when_stationary
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Decision, corrected, decision_of
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.learning_rate import learning_rate_integrals
from pythia_dynamics.measures.rest import RestSearch, rest_p_value, rest_power, standstill
from pythia_dynamics.measures.two_time import two_time
from pythia_dynamics.measures.walks import Motion

T = 80
STEPS = np.arange(1, T + 1) * 1000
FALLING = {int(step): 1e-3 * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS[-1]))) for step in STEPS}


def walk(seed: int, *, rank: int | None = None, jitter: float = 0.0, stops: int | None = None) -> NDArray[np.float64]:
    """Steps that follow the learning rate; noise of records relative to their mean; a record at which it stops."""
    rng = np.random.default_rng(seed)
    sizes = np.sqrt(learning_rate_integrals(STEPS, np.array(list(FALLING.values())), 2))
    noise = rng.normal(size=(T - 1, 1200))
    if rank is not None:
        noise = rng.normal(size=(T - 1, rank)) @ rng.normal(size=(rank, 1200))
    weights = np.concatenate([np.zeros((1, 1200)), np.cumsum(sizes[:, None] * noise, axis=0)])
    if stops is not None:
        weights[stops:] = weights[stops]
    return weights + jitter * sizes.mean() * rng.normal(size=weights.shape) + rng.normal(size=1200)


def equilibrium(seed: int, time: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    memory, weights = np.exp(-1 / time), rng.normal(size=(T, 1200))
    for i in range(1, T):
        weights[i] = memory * weights[i - 1] + np.sqrt(1 - memory**2) * weights[i]
    return weights


def judge(weights: NDArray[np.float64], *, known: bool = True, loss: NDArray[np.float64] | None = None) -> Decision:
    history = History.from_array(weights.reshape(len(weights), 40, -1), STEPS[: len(weights)])
    tables = {"two_time.zarr": two_time(history.with_learning_rate(FALLING) if known else history)}
    if loss is None:
        return decision_of(stationary, SavedResults.in_memory("own", tables))
    tables["perplexity-forward.csv"] = xr.Dataset({"nll_mean": ("step", loss)}, {"step": STEPS})
    return decision_of(stop_when_stationary, SavedResults.in_memory("own", tables))


@pytest.mark.parametrize("jitter", [0.0, 2.0])
def test_a_walk_under_a_decaying_learning_rate_is_not_stationary(jitter: float) -> None:
    found = judge(walk(0, jitter=jitter))
    assert found.verdict in ("not supported", "undecided")
    assert found.evidence is not None
    assert found.evidence.effect > found.evidence.least
    if not jitter:
        assert found.verdict == "not supported"


def test_a_walk_in_few_directions_is_not_supported() -> None:
    assert sum(judge(walk(seed, rank=3)).verdict == "supported" for seed in range(8)) <= 1


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_a_plateau_is_supported_where_the_learning_rate_is_known(jitter: float) -> None:
    found = judge(walk(1, jitter=jitter, stops=40))
    assert found.verdict == "supported"
    assert abs(int(found.numbers["since"] or 0) - 41_000) <= 12_000
    assert found.evidence is not None
    assert found.evidence.p <= 0.005
    without = judge(walk(1, jitter=jitter, stops=40), known=False)
    assert without.verdict == "undecided"
    if not jitter:
        assert "do not move at all" in found.reason
    if "at rest from no step" not in without.reason:
        assert "--learning-rate" in without.reason


@pytest.mark.parametrize("known", [True, False])
def test_an_equilibrium_from_the_first_record_on_needs_no_learning_rate(known: bool) -> None:
    found = judge(equilibrium(0, 4), known=known)
    assert found.verdict == "supported"
    assert found.numbers["whole_history"] is True


def test_a_slow_equilibrium_is_neither_a_walk_nor_saturated() -> None:
    assert judge(equilibrium(0, 40), known=False).verdict == "undecided"


def test_histories_that_cannot_be_judged() -> None:
    assert judge(np.ones((T, 1200))).verdict == "not testable here"  # never moves
    assert judge(walk(0)[:12]).verdict == "not testable here"  # too short


def test_stopping_costs_nothing_where_the_loss_is_flat() -> None:
    rng, x = np.random.default_rng(0), np.arange(T) / T
    weights = walk(1, stops=40)
    assert judge(weights, loss=3 + 0.003 * rng.normal(size=T)).verdict == "supported"
    falling = judge(weights, loss=3 - 0.3 * x + 0.003 * rng.normal(size=T))
    assert falling.verdict == "not supported"
    assert float(falling.numbers["gain"] or 0) == pytest.approx(0.05, abs=0.015)
    assert judge(weights, loss=3 + 0.2 * rng.normal(size=T)).verdict == "undecided"
    assert judge(walk(0), loss=np.full(T, 3.0)).verdict == "not testable here"  # not at rest
    assert judge(weights, loss=np.full(T, 3.0)).verdict == "supported"  # without noise


def test_the_p_value_of_stopping_covers_the_rest() -> None:
    tables = {"two_time.zarr": two_time(History.from_array(walk(1, jitter=1.0, stops=40).reshape(T, 40, -1), STEPS))}
    tables["two_time.zarr"] = tables["two_time.zarr"].assign_coords(learning_rate=("step", list(FALLING.values())))
    loss = 3 + 0.003 * np.random.default_rng(0).normal(size=T)
    tables["perplexity-forward.csv"] = xr.Dataset({"nll_mean": ("step", loss)}, {"step": STEPS})
    saved = SavedResults.in_memory("own", tables)
    rest, stop = decision_of(stationary, saved), decision_of(stop_when_stationary, saved)
    assert rest.evidence is not None
    assert stop.evidence is not None
    assert stop.evidence.p == max(rest.evidence.p, float(stop.numbers["p_loss"] or 0))
    for p in (0.03, 0.2):  # a rest that the correction, or its own p, leaves undecided leaves the stop undecided
        unsure = replace(rest, evidence=replace(rest.evidence, p=p))
        saved = SavedResults.in_memory("own", tables)
        saved.once("stationary", partial(replace, unsure))
        after = decision_of(stop_when_stationary, saved)
        assert [found.verdict for found in corrected([unsure, after])] == ["undecided", "undecided"]


def test_a_rest_of_few_records_on_an_uneven_grid_is_undecided() -> None:
    steps = np.unique(np.geomspace(1, 143_000, 58).round().astype(int))
    sizes = np.sqrt(np.diff(steps))[:, None]
    weights = np.cumsum(np.r_[np.zeros((1, 600)), sizes * np.random.default_rng(0).normal(size=(len(sizes), 600))], 0)
    weights[steps > 80_000] = weights[steps > 80_000][0]
    history = History.from_array(weights.reshape(-1, 20, 30), steps, learning_rate={int(step): 1e-3 for step in steps})
    found = decision_of(stationary, SavedResults.in_memory("own", {"two_time.zarr": two_time(history)}))
    assert found.verdict == "undecided"
    assert found.evidence is not None
    assert found.evidence.power < 0.1


def test_weights_that_stand_still_after_one_jump_are_at_rest() -> None:
    weights = np.repeat(np.random.default_rng(0).normal(size=(2, 1200)), 30, axis=0)
    found = judge(weights)
    assert found.verdict == "supported"
    assert found.numbers["since"] == 31_000
    assert judge(weights, known=False).verdict == "undecided"
    still = History.from_array(weights.reshape(60, 40, 30), STEPS[:60])
    ends = {int(step): 1e-3 * (step <= 35_000) for step in STEPS[:60]}  # the learning rate is 0 soon after
    assert standstill(Motion.of(two_time(still.with_learning_rate(ends)))) is None


@pytest.mark.parametrize("late", [False, True])
def test_a_learning_rate_of_0_while_the_weights_move_gives_no_warning(late: bool) -> None:
    weights = np.cumsum(np.random.default_rng(0).normal(size=(60, 1200)), axis=0)
    if late:
        weights[:57] = weights[0]
    history = History.from_array(weights.reshape(60, 40, 30), STEPS[:60])
    history = history.with_learning_rate({int(step): 1e-3 * (step > 20_000) for step in STEPS[:60]})
    saved = SavedResults.in_memory("own", {"two_time.zarr": two_time(history)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decision_of(stationary, saved)
    assert found.verdict != "supported"
    assert "inf" not in found.reason


def test_memory_does_not_grow_with_the_square_of_many_records() -> None:
    n = 400
    weights = np.cumsum(np.random.default_rng(0).normal(size=(n, 64)), axis=0)
    squared = ((weights[:, None] - weights) ** 2).sum(axis=2)
    motion = Motion.from_squared(squared, np.arange(n), np.arange(n), size=64, learning_rate=np.ones(n))
    tracemalloc.start()
    generator = np.random.default_rng(0)
    search = RestSearch.over(motion.time)
    _, null = rest_p_value(motion, generator, search, more=False)
    rest_power(motion, null, generator, search)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 500e6
