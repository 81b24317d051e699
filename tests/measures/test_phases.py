"""Change points: found where they were planted, not found in walks, and whether detectors and models agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import pythia_dynamics as pyd
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.phases import DETECTORS, _slope, agreement, change_points, phases

T = 80
STEPS = np.arange(T) * 1000


def walk(rng: np.random.Generator, increments: np.ndarray, start: float = 1.0) -> np.ndarray:
    first = rng.normal(size=increments.shape[1:]) * start
    return np.cumsum(np.concatenate([first[None], increments]), axis=0).astype(np.float32)


def found(result: xr.Dataset) -> dict[str, list[int]]:
    return {kind: result["step"].to_numpy()[result[f"{kind}_change"].to_numpy()].tolist() for kind in DETECTORS}


# -- the signals ----------------------------------------------------------------------------------------------


def test_the_signals_against_their_formulas() -> None:
    rng = np.random.default_rng(0)
    weights = walk(rng, rng.normal(size=(9, 30, 7)) * 0.1)
    steps = np.array([0, 1, 2, 4, 8, 100, 200, 300, 1000, 1100])
    with pytest.warns(UserWarning, match="lacks step 8"):
        result = phases(History.from_array(weights, steps, missing={8: "lost"}))
    present = [i for i in range(10) if i != 4]
    w = weights[present].reshape(9, -1).astype(float)
    jumps = np.diff(w, axis=0)
    sizes = np.linalg.norm(jumps, axis=1)
    np.testing.assert_allclose(result["displacement_rate"][present][1:], sizes**2 / np.diff(steps[present]), rtol=1e-5)
    cosine = [jumps[i] @ jumps[i + 1] / sizes[i] / sizes[i + 1] for i in range(7)]
    np.testing.assert_allclose(result["direction"][present][1:-1], cosine, atol=1e-6)
    np.testing.assert_allclose(result["bimodality"][present], pyd.density(weights[present])["bimodality"], rtol=1e-9)
    for kind in DETECTORS:
        assert np.isnan(result[kind][4])
    assert np.isnan(result["direction"].to_numpy()[[0, -1]]).all()
    assert pyd.phases is phases


def test_the_change_per_step_of_a_coefficient() -> None:
    steps = np.array([0, 1, 4, 8, 100, 1000])
    np.testing.assert_allclose(_slope(steps, 2.0 * steps), [np.nan, 2, 2, 2, 2, 2])
    gaps = np.array([np.nan, 3, np.nan, 17, 1, np.nan])
    np.testing.assert_allclose(_slope(steps, gaps), [np.nan, np.nan, np.nan, 2, -16 / 92, np.nan])
    np.testing.assert_allclose(_slope(steps[1:3], np.array([1.0, 2.5])), [np.nan, 0.5])
    for known in (0, 1):
        assert np.isnan(_slope(steps, np.where(steps < known, 5.0, np.nan))).all()


# -- planted changes ------------------------------------------------------------------------------------------


def test_a_change_of_the_step_size() -> None:
    rng = np.random.default_rng(1)
    increments = rng.normal(size=(T - 1, 40, 25)) * 0.01
    increments[44:] *= 1.5
    changes = found(phases(History.from_array(walk(rng, increments), STEPS)))
    assert changes["displacement_rate"] == [45_000]
    assert changes["direction"] == []


def test_a_change_of_direction() -> None:
    rng = np.random.default_rng(2)
    increments = rng.normal(size=(T - 1, 40, 25))
    drift = rng.normal(size=(40, 25))
    increments[39:] = increments[39:] * np.sqrt(0.5) + drift * np.sqrt(0.5)
    changes = found(phases(History.from_array(walk(rng, increments), STEPS)))
    assert len(changes["direction"]) == 1
    assert abs(changes["direction"][0] - 40_000) <= 1000
    assert changes["displacement_rate"] == []


def test_a_density_that_parts() -> None:
    rng = np.random.default_rng(3)
    increments = rng.normal(size=(T - 1, 100, 40)) * 0.003
    weights = walk(rng, increments)
    away = np.sign(rng.normal(size=(100, 40)))
    weights += away * np.maximum(np.arange(T) - 50, 0)[:, None, None] * 0.05
    changes = found(phases(History.from_array(weights, STEPS)))
    # Sarle's coefficient grows with the square of the distance at first: seen some steps later
    assert min(abs(step - 50_000) for step in changes["bimodality"]) <= 6000


def test_a_trend_is_no_change_and_uneven_steps_are_none() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(size=T) * 0.1
    assert change_points(STEPS, noise + np.linspace(0, 20, T)) == ()
    bent = np.maximum(STEPS - 30_000, 0) * 2e-4
    assert abs(change_points(STEPS, noise + bent)[0] - 30_000) <= 2000
    # a walk has the same squared displacement per step over intervals of 1 and of 1,000 steps
    steps = np.array([0, *(2**k for k in range(10)), *range(1000, 60_000, 1000)])
    gaps = np.diff(steps)
    increments = rng.normal(size=(len(gaps), 50, 20)) * np.sqrt(gaps)[:, None, None] * 1e-3
    assert found(phases(History.from_array(walk(rng, increments), steps)))["displacement_rate"] == []


# -- no change ------------------------------------------------------------------------------------------------


def test_pure_walks_show_no_changes() -> None:
    """By the docstring 1 to 2 % of signals of 80 values do: 60 walks with three signals each show few, if any."""
    false = dict.fromkeys(DETECTORS, 0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        result = phases(History.from_array(walk(rng, rng.normal(size=(T - 1, 20, 15)) * 0.02), STEPS))
        for kind, steps in found(result).items():
            false[kind] += bool(steps)
    assert sum(false.values()) <= 12
    assert max(false.values()) <= 6


@pytest.mark.parametrize(("length", "stated"), [(30, 0.05), (60, 0.02)])
def test_the_stated_rate_of_false_changes(length: int, stated: float) -> None:
    rng = np.random.default_rng(length)
    false = sum(bool(change_points(np.arange(length), rng.normal(size=length))) for _ in range(300))
    assert false / 300 == pytest.approx(stated, abs=0.03)
    assert sum(bool(change_points(np.arange(length), rng.normal(size=length), strength=1.0)) for _ in range(40)) > 20


@pytest.mark.parametrize(
    "values",
    [
        np.ones(40),
        np.full(40, np.nan),
        np.arange(2.0),
        np.array([0.0, 1, 5]),
        np.arange(5.0),
        np.empty(0),
        np.arange(40.0),
    ],
)
def test_signals_without_anything_to_find(values: np.ndarray) -> None:
    assert change_points(np.arange(len(values)), values) == ()


def test_a_step_without_noise_is_found_where_it_is() -> None:
    values = np.where(np.arange(40) < 17, 0.0, 3.0)
    assert change_points(np.arange(40) * 10, values) == (170,)
    values[[3, 30]] = np.nan
    assert change_points(np.arange(40) * 10, values) == (170,)
    with pytest.raises(PythiaDynError, match="above 0"):
        change_points(np.arange(40), values, strength=0)


def least_cost(steps: np.ndarray, values: np.ndarray, strength: float) -> tuple[int, ...]:
    """`change_points` from its definition: of all ways to part the values, the one with the least cost."""
    at = steps.astype(float)
    residual, spread = [], []
    for i in range(1, len(at) - 1):
        share = (at[i + 1] - at[i]) / (at[i + 1] - at[i - 1])
        residual.append(values[i] - share * values[i - 1] - (1 - share) * values[i + 1])
        spread.append(np.sqrt(1 + share**2 + (1 - share) ** 2))
    noise = np.median(np.abs(np.array(residual) / spread)) / 0.6745
    penalty = strength * noise**2 * np.log(len(values))
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (-penalty, ())}
    for end in range(4, len(values) + 1):
        choices = []
        for start in (start for start in best if end - start >= 4):
            x, y = at[start:end] - at[start], values[start:end]
            line = np.polyfit(x / x[-1], y, 1)
            cost = float(np.sum((np.polyval(line, x / x[-1]) - y) ** 2))
            before, ends = best[start]
            choices.append((before + penalty + cost, (*ends, start) if start else ends))
        if choices:
            best[end] = min(choices)
    return tuple(int(steps[start]) for start in best[len(values)][1])


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.5, 5.0])
def test_change_points_are_those_of_the_least_cost(strength: float) -> None:
    seen = set()
    for seed in range(25):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(8, 26))
        steps = np.cumsum(rng.integers(1, 2000, size=count))
        levels = np.repeat(rng.normal(size=9) * 2, 3)[:count]
        values = levels + rng.normal(size=count)
        found = change_points(steps, values, strength=strength)
        assert found == least_cost(steps, values, strength)
        seen.add(len(found))
    assert len(seen) > 1


@pytest.mark.parametrize("span", [10**5, 10**7, 10**9])
def test_steps_that_are_close_together_at_the_end_of_a_long_training(span: int) -> None:
    rng = np.random.default_rng(0)
    steps = np.concatenate([np.linspace(0, span, 20).astype(int), span + np.arange(1, 7)])
    values = np.concatenate([rng.normal(size=10), 500 + rng.normal(size=16)]) * 0.01
    assert change_points(steps, values) == (steps[10],)


def test_the_level_of_a_signal_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values = np.where(np.arange(60) < 27, 0.0, 3.0) + rng.normal(size=60)
    assert len(change_points(STEPS[:60], values)) == 1
    for level in (1e5, -1e7, 1e9):
        assert change_points(STEPS[:60], level + values) == change_points(STEPS[:60], values)


def test_rounding_is_no_noise_that_lines_could_explain() -> None:
    steps = np.arange(143) * 10
    for values in (np.linspace(0, 1 / 3, 143), np.arange(143) * 0.1 + 7, np.arange(143) * np.pi * 1e3 + 1e5):
        assert change_points(steps, values) == ()
    assert change_points(steps, np.maximum(steps - 580, 0) * 0.1) == (580,)


def test_eight_values_can_have_two_phases() -> None:
    values = np.array([0, 0, 0, 0, 5.0, 5, 5, 5])
    assert change_points(np.arange(8), values) == (4,)
    assert change_points(np.arange(7), values[:-1]) == ()


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
