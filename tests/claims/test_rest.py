"""The claims about rest: what is supported, what is not, and where the data cannot decide."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics.claims.rest import stationary, stop_when_stationary
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Decision, decision_of
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.learning_rate import learning_rate_integrals
from pythia_dynamics.measures.two_time import two_time

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
