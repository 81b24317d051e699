"""Change points: found where they were planted, not found in walks, and whether detectors and models agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import pythia_dynamics as pyd
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.change_points import change_points
from pythia_dynamics.measures.learning_rate import cumulative_learning_rate, learning_rate_integrals
from pythia_dynamics.measures.phases import DETECTORS, agreement, phases

T = 80
STEPS = np.arange(T) * 1000


def walk(rng: np.random.Generator, increments: np.ndarray, start: float = 1.0) -> np.ndarray:
    first = rng.normal(size=increments.shape[1:]) * start
    return np.cumsum(np.concatenate([first[None], increments]), axis=0).astype(np.float32)


def found(result: xr.Dataset) -> dict[str, list[int]]:
    return {kind: result["step"].to_numpy()[result[f"{kind}_change"].to_numpy()].tolist() for kind in DETECTORS}


CONSTANT = dict.fromkeys(STEPS.tolist(), 1e-3)
FALLING = {int(step): 1e-3 * (1 - 0.9 * step / STEPS[-1]) for step in STEPS}


def changes_of(weights: np.ndarray, rate: Mapping[int, float] | None = CONSTANT) -> dict[str, list[int]]:
    return found(phases(History.from_array(weights, STEPS, learning_rate=rate)))


# -- the signals ----------------------------------------------------------------------------------------------


def test_the_signals_against_their_formulas() -> None:
    rng = np.random.default_rng(0)
    weights = walk(rng, rng.normal(size=(9, 30, 7)) * 0.1)
    steps = np.array([0, 1, 2, 4, 8, 100, 200, 300, 1000, 1100])
    rates = np.linspace(1e-3, 1e-4, 10)
    rate = dict(zip(steps.tolist(), rates.tolist(), strict=True))
    with pytest.warns(UserWarning, match="lacks step 8"):
        result = phases(History.from_array(weights, steps, missing={8: "lost"}, learning_rate=rate))
    with pytest.warns(UserWarning, match="lacks step 8"):
        without = phases(History.from_array(weights, steps, missing={8: "lost"}))
    present = [i for i in range(10) if i != 4]
    w = weights[present].reshape(9, -1).astype(float)
    jumps = np.diff(w, axis=0)
    sizes = np.linalg.norm(jumps, axis=1)
    covered = np.diff(cumulative_learning_rate(steps, rates, 2)[present])
    np.testing.assert_allclose(result["displacement_rate"][present][1:], sizes**2 / covered, rtol=1e-5)
    per_step = sizes**2 / np.diff(steps[present])
    np.testing.assert_allclose(without["displacement_rate"][present][1:], per_step, rtol=1e-5)
    assert (result.attrs["learning_rate_known"], without.attrs["learning_rate_known"]) == (1, 0)
    cosine = [jumps[i] @ jumps[i + 1] / sizes[i] / sizes[i + 1] for i in range(7)]
    np.testing.assert_allclose(result["direction"][present][1:-1], cosine, atol=1e-6)
    np.testing.assert_allclose(result["bimodality"][present], pyd.density(weights[present])["bimodality"], rtol=1e-9)
    for kind in DETECTORS:
        assert np.isnan(result[kind][4])
    assert np.isnan(result["direction"].to_numpy()[[0, -1]]).all()
    assert pyd.phases is phases


# -- planted changes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2.0, 0.5, 0.0])
@pytest.mark.parametrize("rate", [CONSTANT, FALLING])
def test_a_change_of_the_step_size(factor: float, rate: Mapping[int, float]) -> None:
    """A squared rate that changes by 4, or stops, at 45,000."""
    rng = np.random.default_rng(1)
    eta = np.array(list(rate.values()))
    passed = np.sqrt(learning_rate_integrals(STEPS, eta, 2))
    increments = rng.normal(size=(T - 1, 40, 25)) * passed[:, None, None]
    increments[44:] *= factor
    changes = changes_of(walk(rng, increments), rate)
    assert changes["displacement_rate"] == [45_000]
    assert changes["direction"] == []


def test_without_a_learning_rate_a_change_of_the_rate_is_undecided() -> None:
    rng = np.random.default_rng(1)
    increments = rng.normal(size=(T - 1, 40, 25)) * 0.01
    increments[44:] *= 2
    result = phases(History.from_array(walk(rng, increments), STEPS))
    assert found(result)["displacement_rate"] == []
    assert STEPS[result["displacement_rate_undecided"].to_numpy()].tolist() == [45_000]
    known = phases(History.from_array(walk(rng, increments), STEPS, learning_rate=CONSTANT))
    assert not known["displacement_rate_undecided"].any()


def test_a_change_of_direction() -> None:
    rng = np.random.default_rng(2)
    increments = rng.normal(size=(T - 1, 40, 25))
    drift = rng.normal(size=(40, 25))
    increments[39:] = increments[39:] * np.sqrt(0.5) + drift * np.sqrt(0.5)
    changes = changes_of(walk(rng, increments))
    assert len(changes["direction"]) == 1
    assert abs(changes["direction"][0] - 40_000) <= 1000
    assert changes["displacement_rate"] == []


def test_a_density_that_parts() -> None:
    rng = np.random.default_rng(3)
    weights = walk(rng, rng.normal(size=(T - 1, 100, 40)) * 0.003)
    weights += np.sign(rng.normal(size=(100, 40))) * np.maximum(np.arange(T) - 50, 0)[:, None, None] * 0.1
    changes = changes_of(weights)
    assert min(abs(step - 50_000) for step in itertools.chain(*changes.values())) <= 2000


# -- no change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["walk", "persistent", "rank 3", "noise of records", "drift", "relaxation", "rotation"]
)
def test_histories_without_an_event_show_no_changes(name: str) -> None:
    """Under a learning rate that falls by ten; at most one in twenty of each kind, as the calibration measures."""
    steps_with_changes = 0
    passed = np.sqrt(learning_rate_integrals(STEPS, np.array(list(FALLING.values())), 2))[:, None]
    share = np.concatenate([[0], np.cumsum(learning_rate_integrals(STEPS, np.array(list(FALLING.values())), 1))])
    share = (share / share[-1])[:, None]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(T - 1, 600))
        if name == "rank 3":
            noise = rng.normal(size=(T - 1, 3)) @ rng.normal(size=(3, 600))
        if name == "persistent":
            for i in range(1, T - 1):
                noise[i] = 0.9 * noise[i - 1] + np.sqrt(1 - 0.81) * noise[i]
        weights = walk(rng, passed * noise).astype(float)
        first, second = rng.normal(size=(2, 600))
        if name == "noise of records":
            weights += 2 * np.sqrt((passed**2).mean()) * rng.normal(size=weights.shape)
        elif name == "drift":
            weights += share * first
        elif name == "relaxation":
            weights += (1 - np.exp(-4 * share)) * first
        elif name == "rotation":
            weights += np.cos(4 * share) * first + np.sin(4 * share) * second
        steps_with_changes += any(changes_of(weights.reshape(T, 30, 20), FALLING).values())
    assert steps_with_changes <= 1


@pytest.mark.parametrize("length", [20, 30, 60, 142])
@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("curve", ["constant", "exponential", "quadratic"])
def test_smooth_curves_with_correlated_noise_have_no_changes(length: int, memory: float, curve: str) -> None:
    rng, false = np.random.default_rng(length), 0
    x = np.linspace(0, 1, length)
    smooth = {"constant": 0 * x, "exponential": 100 * np.exp(-5 * x), "quadratic": 100 * x**2}[curve]
    for _ in range(100):
        noise = rng.normal(size=length)
        for i in range(1, length):
            noise[i] += memory * noise[i - 1]
        false += bool(change_points(np.arange(length), smooth + noise))
    assert false <= 6


@pytest.mark.parametrize("length", [20, 40, 143])
def test_smooth_curves_without_noise_have_no_changes(length: int) -> None:
    x = np.linspace(0, 1, length)
    for values in (np.exp(-5 * x), np.exp(-15 * x), x**2, 1 / (0.1 + x), np.sin(4 * x), x / 3, 1e5 + np.pi * x):
        assert change_points(np.arange(length), values) == ()


@pytest.mark.parametrize(
    "values",
    [np.ones(40), np.full(40, np.nan), np.arange(2.0), np.array([0.0, 1, 5]), np.empty(0), np.arange(40.0)],
)
def test_signals_without_anything_to_find(values: np.ndarray) -> None:
    assert change_points(np.arange(len(values)), values) == ()


def test_a_step_is_found_where_it_is() -> None:
    values = np.where(np.arange(40) < 17, 0.0, 3.0)
    assert change_points(np.arange(40) * 10, values) == (170,)
    noise = np.random.default_rng(0).normal(size=40) * 0.1
    assert change_points(np.arange(40) * 10, values + noise) == (170,)
    assert change_points(np.arange(40) * 10, values + noise, least=4.0) == ()
    values[[3, 30]] = np.nan
    assert change_points(np.arange(40) * 10, values) == (170,)
    with pytest.raises(PythiaDynError, match="above 0"):
        change_points(np.arange(40), values, strength=0)
    steps = np.repeat([0.0, 4, 1], [20, 30, 30]) + np.random.default_rng(0).normal(size=80) * 0.1
    assert change_points(np.arange(80), steps) == (20, 50)


def test_three_steps_have_one_direction() -> None:
    weights = walk(np.random.default_rng(5), np.random.default_rng(6).normal(size=(2, 30, 7)))
    one, other = (step.reshape(-1).astype(float) for step in np.diff(weights, axis=0))
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(phases(weights)["direction"], [np.nan, cosine, np.nan], atol=1e-6)


def test_short_and_still_histories() -> None:
    for weights in (np.ones((1, 3, 2)), np.ones((2, 3, 2)), np.ones((30, 3, 2)), np.zeros((30, 3, 2))):
        assert found(phases(weights)) == {kind: [] for kind in DETECTORS}


# -- agreement ------------------------------------------------------------------------------------------------


def result(**changes: list[int]) -> xr.Dataset:
    data: dict[str, object] = {kind: ("step", np.arange(101.0)) for kind in DETECTORS}
    data |= {f"{kind}_change": ("step", np.isin(np.arange(101), changes.get(kind, []))) for kind in DETECTORS}
    return xr.Dataset(data, {"step": np.arange(101)})


def test_who_agrees_and_who_would_by_chance() -> None:
    models = {
        "a": result(displacement_rate=[20, 60], direction=[24], bimodality=[66]),
        "b": result(displacement_rate=[61], direction=[2, 50]),
        "c": result(displacement_rate=[55]),
    }
    rows = {(row.model, row.detector, row.step): row for row in agreement(models, tolerance=0.05)}
    assert len(rows) == 8
    first = rows["a", "displacement_rate", 20]
    assert (first.detectors, first.models) == (1, 0)
    assert first.detectors_by_chance == pytest.approx(0.2)  # two others with one change each, ±5 of 100
    assert first.models_by_chance == pytest.approx(0.2)
    assert (first.before, first.after) == (9.5, 39.5)
    second = rows["a", "displacement_rate", 60]
    assert (second.detectors, second.models) == (0, 2)
    assert rows["c", "displacement_rate", 55].models == 1
    edge = rows["b", "direction", 2]
    assert edge.detectors_by_chance == pytest.approx(0.07)
    assert edge.models_by_chance == pytest.approx(0.07)
    two = rows["c", "displacement_rate", 55].models_by_chance
    assert two == pytest.approx((1 - 0.9**2) + 0.1)
    for tolerance in (2, -0.5):
        with pytest.raises(PythiaDynError, match="0 to 1"):
            agreement(models, tolerance=tolerance)
    assert agreement(models, tolerance=0)[0].detectors == 0
    assert agreement(models, tolerance=1)[0].detectors == 2


def test_chance_and_levels_at_the_ends() -> None:
    models = {"a": result(displacement_rate=[20], direction=[24, 97], bimodality=[66])}
    rows = {(row.detector, row.step): row for row in agreement(models, tolerance=0.05)}
    one, two = 0.1, 1 - 0.9**2
    assert rows["displacement_rate", 20].detectors_by_chance == pytest.approx(one + two)
    assert rows["displacement_rate", 20].any_by_chance == pytest.approx(1 - (1 - one) * (1 - two))
    last = rows["direction", 97]
    assert last.any_by_chance == pytest.approx(1 - (1 - 0.08) ** 2)  # 92 to 100
    assert (last.before, last.after) == (60.0, 98.5)  # of 24 … 96, of 97 … 100
    assert agreement({"a": result(direction=[50])})[0].any_by_chance == 0


def test_the_number_of_the_first_step_does_not_matter() -> None:
    models = {
        "a": result(displacement_rate=[20, 60], direction=[24], bimodality=[66]),
        "b": result(displacement_rate=[61], direction=[2, 50]),
    }
    later = {name: one.assign_coords(step=one["step"] + 1000) for name, one in models.items()}
    expected = tuple(replace(row, step=row.step + 1000) for row in agreement(models))
    assert agreement(later) == expected


def test_a_log_that_begins_one_checkpoint_late_is_enough() -> None:
    weights = np.cumsum(np.random.default_rng(0).normal(size=(30, 20, 10)), axis=0)
    steps = np.arange(30) * 500
    late = phases(History.from_array(weights, steps, learning_rate={int(step): 1e-3 for step in steps[1:]}))
    assert late.attrs["learning_rate_known"] == 1
    assert late.attrs["learning_rate_note"] == "the learning rate is taken from the nearest step at step 0"
    later = phases(History.from_array(weights, steps, learning_rate={int(step): 1e-3 for step in steps[2:]}))
    assert later.attrs["learning_rate_known"] == 0
    assert "missing at steps 0, 500" in later.attrs["learning_rate_note"]
