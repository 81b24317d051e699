"""Time by the learning rate: against the sum over all training steps, slow loops and analytic truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.learning_rate import LearningRate
from pythia_dynamics.checkpoints.registry import PAPER_STEPS, resolve
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import PER_LEARNING_RATE, msd
from pythia_dynamics.measures.learning_rate import cumulative_learning_rate, learning_rate_integrals, walk_time
from pythia_dynamics.sweep.frames import MissingStepsWarning

SCHEDULES = {
    "constant": LearningRate(2e-3, 1000, decay="constant"),
    "cosine": LearningRate(1e-3, 1000, final=0.1),
    "warmup": LearningRate(1e-3, 1000, warmup_steps=200, final=0.1),
    "linear": LearningRate(1e-3, 1000, warmup_steps=100, decay="linear"),
}
STEPS = np.cumsum([0, *[10, 40] * 20])


@pytest.mark.parametrize(("power", "at_the_end", "after_the_warmup"), [(1, 1.2e-3, 3e-5), (2, 2.9e-3, 5e-5)])
@pytest.mark.parametrize("size", ["70m", "410m"])
def test_143_steps_give_nearly_the_sum_over_all_steps(
    size: str, power: int, at_the_end: float, after_the_warmup: float
) -> None:
    """The numbers in the docstring: 0.12 % and 0.29 % at the end, at most 2e-5 and 4e-5 from step 2000 on."""
    rate = resolve(size).suite.learning_rate
    assert rate is not None
    sums = np.concatenate([[0], np.cumsum(rate.at(range(143_000)) ** power)])
    for first, bound in ((1000, at_the_end), (2000, after_the_warmup)):
        steps = np.array([step for step in PAPER_STEPS if step >= first])
        found = cumulative_learning_rate(steps, rate.at(steps), power)
        assert found[0] == 0
        exact = sums[steps] - sums[first]
        assert abs(found[-1] / exact[-1] - 1) <= bound
        assert found[-1] != exact[-1]
    assert np.abs(found[1:] / exact[1:] - 1).max() <= after_the_warmup


@given(
    gaps=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    data=st.data(),
    power=st.sampled_from([1, 2]),
)
def test_the_integral_of_the_straight_lines(gaps: list[int], data: st.DataObject, power: int) -> None:
    steps = np.cumsum([7, *gaps])
    known = data.draw(st.lists(st.one_of(st.just(math.nan), st.floats(0, 3)), min_size=len(steps), max_size=len(steps)))
    rate = np.array(known)
    found, intervals = cumulative_learning_rate(steps, rate, power), learning_rate_integrals(steps, rate, power)
    at = [i for i, value in enumerate(known) if value == value]
    total = 0.0 if at and at[0] == 0 else math.nan
    for i, value in enumerate(found):
        if i:
            inside = bool(at) and at[0] <= i - 1 and i <= at[-1]
            part = _slow(steps[i - 1], steps[i], steps[at], rate[at], power) if inside else math.nan
            np.testing.assert_allclose(intervals[i - 1], part, rtol=1e-9, atol=1e-12)
            total += part
        np.testing.assert_allclose(value, total, rtol=1e-9, atol=1e-12)


def _slow(start: int, stop: int, steps: np.ndarray, rate: np.ndarray, power: int) -> float:
    """Simpson's rule, which is exact for a parabola, between all neighbouring training steps."""
    total = 0.0
    for u in range(int(start), int(stop)):
        at = [float(np.interp(x, steps, rate)) ** power for x in (u, u + 0.5, u + 1)]
        total += (at[0] + 4 * at[1] + at[2]) / 6
    return total


def test_where_the_learning_rate_is_not_known() -> None:
    steps, rate = [0, 10, 20, 30, 40], [1.0, math.nan, 3.0, 3.0, math.nan]
    np.testing.assert_allclose(cumulative_learning_rate(steps, rate), [0, 15, 40, 70, math.nan])
    assert np.isnan(cumulative_learning_rate(steps, [math.nan, 1, 1, 1, 1])).all()
    assert np.isnan(cumulative_learning_rate(steps, [math.nan] * 5)).all()
    np.testing.assert_allclose(learning_rate_integrals(steps, [math.nan, 1, 1, 1, 1]), [math.nan, 10, 10, 10])
    assert cumulative_learning_rate([5], [1.0]).tolist() == [0]
    assert cumulative_learning_rate([], []).tolist() == []
    assert pyd.cumulative_learning_rate(np.array([0, 10]), np.array([1.0, 2.0]), power=2)[1] == pytest.approx(70 / 3)


@pytest.mark.parametrize(
    ("steps", "rate", "power", "message"),
    [
        ([0, 1], [1, 1], 3, "with the power 1 or 2, not 3"),
        ([0, 1], [1, 1], True, "power 1 or 2"),
        ([0, 1], [1, 1, 1], 1, "a learning rate for each step"),
        ([1, 1], [1, 1], 1, "strictly increasing"),
        ([0, 1], [1, -1], 1, "finite and at least 0"),
        ([0, 1], [1, math.inf], 1, "finite and at least 0"),
    ],
)
def test_other_input_is_refused(steps: list[int], rate: list[float], power: int, message: str) -> None:
    with pytest.raises(PythiaDynError, match=message):
        cumulative_learning_rate(steps, rate, power)


# -- displacement per learning rate ---------------------------------------------------------------------------


def moving(rate: LearningRate, kind: str, size: int = 20_000) -> np.ndarray:
    """Weights (T, size, 1) at `STEPS` of a training each of whose 1,000 steps moves them in proportion to η."""
    rng = np.random.default_rng(3)
    direction = rng.normal(size=size) / math.sqrt(size)
    w, frames = rng.normal(size=size), []
    for step, eta in enumerate(rate.at(range(STEPS[-1] + 1))):
        if step in STEPS:
            frames.append(w.copy())
        w += eta * (direction if kind == "ballistic" else rng.normal(size=size) / math.sqrt(size))
    return np.array(frames)[:, :, None]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("kind", "constant", "other"), [("ballistic", 0, 1), ("walk", 1, 0)])
def test_what_does_not_depend_on_the_schedule(schedule: str, kind: str, constant: int, other: int) -> None:
    rate = SCHEDULES[schedule]
    w = moving(rate, kind, size=2000)
    result = msd(History.from_array(w, STEPS, learning_rate=rate))
    # Each step is of length 1 per learning rate; the sum over the steps and the integral differ by η's slope.
    per_rate = result[PER_LEARNING_RATE[constant]].to_numpy()
    assert np.isnan(per_rate[0])
    rates = rate.at(STEPS)
    settled = np.minimum(rates[1:], rates[:-1]) > 0.05 * rate.peak
    np.testing.assert_allclose(per_rate[1:][settled], 1, rtol=0.2 if kind == "walk" else 0.1)
    assert np.mean(per_rate[1:][settled]) == pytest.approx(1, abs=0.03)
    assert (result[PER_LEARNING_RATE[constant]].attrs["units"]) == ("weight", "weight^2")[constant]
    wrong = result[PER_LEARNING_RATE[other]].to_numpy()[1:][settled]
    assert wrong.max() > 1.8 * wrong.min()  # the other one depends on the length of the intervals
    moved = np.linalg.norm(np.diff(w[:, :, 0], axis=0), axis=1) ** (constant + 1) / np.diff(STEPS)
    assert moved[settled].max() > 1.8 * moved[settled].min() or schedule == "constant"  # and this one on η


def test_the_integral_goes_over_missing_steps() -> None:
    steps, rate = np.array([0, 10, 20, 30]), {0: 1.0, 10: 2.0, 20: 4.0, 30: 4.0}
    w = np.array([0.0, 1.0, 5.0, 7.0])[:, None, None] * np.ones((1, 3, 2))
    history = History.from_array(w, steps, missing={20: "gone"}, learning_rate=rate)
    with pytest.warns(MissingStepsWarning):
        result = msd(history)
    linear, squared = (result[name].to_numpy() for name in PER_LEARNING_RATE)
    np.testing.assert_allclose(linear, [math.nan, math.sqrt(6) / 15, math.nan, math.sqrt(6) * 6 / 70])
    np.testing.assert_allclose(squared[3], 6 * 36 / ((4 + 8 + 16) * 10 / 3 + 160))


def test_a_step_without_a_learning_rate_is_unknown_and_zero_is_no_divisor() -> None:
    w = np.arange(4.0)[:, None, None] * np.ones((1, 3, 2))
    result = msd(History.from_array(w, [0, 1, 2, 3], learning_rate={1: 0.0, 2: 0.0, 3: 1.0}))
    linear = result[PER_LEARNING_RATE[0]].to_numpy()
    assert np.isnan(linear[:3]).all()
    assert linear[3] == pytest.approx(math.sqrt(6) / 0.5)


def test_without_a_learning_rate_nothing_changes() -> None:
    w = np.arange(3.0)[:, None, None] * np.ones((1, 3, 2))
    plain = msd(w)
    assert not set(PER_LEARNING_RATE) & set(plain.data_vars)
    assert plain.attrs["learning_rate"] == "not known"
    only_one = msd(History.from_array(w, learning_rate={1: 1.0}))
    assert not set(PER_LEARNING_RATE) & set(only_one.data_vars)
    known = msd(History.from_array(w, learning_rate={0: 1.0, 2: 1.0}))
    assert known.attrs["learning_rate"] == "given as a mapping"
    for name in plain.data_vars:
        np.testing.assert_array_equal(plain[name], known[name])


def test_the_time_of_a_walk_holds_the_learning_rate_over_one_interval_at_each_end() -> None:
    steps, nan = [0, 10, 20, 40, 80], math.nan
    held = walk_time(steps, [nan, 2.0, 2.0, 2.0, nan])
    assert held.known
    assert held.note == "the learning rate is taken from the nearest step at steps 0, 80"
    np.testing.assert_allclose(held.time, 4 * np.array(steps))
    assert walk_time(steps, [2.0] * 5).note == ""
    for rate, named in (([nan, nan, 2, 2, 2], "steps 0, 10"), ([2, 2, 2, nan, nan], "steps 40, 80")):
        found = walk_time(steps, rate)
        assert not found.known
        assert found.note == f"the learning rate is missing at {named}"
        np.testing.assert_array_equal(found.time, steps)
    inside = walk_time(
        steps, [nan, nan, 2, 2, nan], [1, 2, 3]
    )  # what is missing beyond the present steps is not needed
    assert inside.known
    np.testing.assert_allclose(inside.time, [0, 40, 120])
    assert walk_time(steps, None).note == ""
    assert "known at these steps" in walk_time(steps, [nan] * 5).note
    assert walk_time(steps, [0.0] * 5).note == "the learning rate is 0 at all of these steps"
    assert not walk_time([5], [1.0]).known
    assert walk_time([], []).time.tolist() == []
    many = walk_time(range(9), [nan] * 8 + [1.0]).note
    assert many == "the learning rate is missing at steps 0, 1, 2, 3 and 4 further ones"
