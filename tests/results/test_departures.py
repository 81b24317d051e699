"""Runs that leave the others: false alarms on exchangeable runs, power on planted ones, and the definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t
from support.populations import COURSES, STEPS, Course, curves, exchangeable, positive

from pythia_dynamics.results.departures import ALARMS, MIN_RUNS, departures

POPULATIONS = 400
DEPARTURE = np.clip((np.arange(len(STEPS)) - 20) / 10, 0, 1)
"""A run begins to leave after step 21,000 and is away from step 31,000 on."""

LEAST = {9: 8.0, 5: 12.0}
"""Standard deviations of the ends over runs by which a run must have left in the end to be found in 80 % of cases."""


@pytest.mark.parametrize("runs", [5, 9])
@pytest.mark.parametrize("course", COURSES)
def test_exchangeable_runs_raise_few_alarms(course: Course, runs: int) -> None:
    """The seed is another one than that on which the level was chosen; the bound is that of the claim, 5 %."""
    rng = np.random.default_rng(20_261)
    alarms = sum(bool(departures(positive(exchangeable(rng, runs, course))).found) for _ in range(POPULATIONS))
    assert alarms <= 0.05 * POPULATIONS


@pytest.mark.parametrize("runs", [5, 9])
def test_heavier_tails_raise_few_alarms_too(runs: int) -> None:
    rng = np.random.default_rng(20_262)
    alarms = sum(
        bool(departures(positive(exchangeable(rng, runs, course, tails=5))).found)
        for course in COURSES
        for _ in range(POPULATIONS // 4)
    )
    assert alarms <= 0.05 * POPULATIONS


@pytest.mark.parametrize("runs", [5, 9])
@pytest.mark.parametrize("course", ["walk", "offset"])
def test_a_planted_departure_is_found_at_its_step(course: Course, runs: int) -> None:
    rng = np.random.default_rng(20_263)
    found, steps = 0, []
    for number in range(100):
        values = exchangeable(rng, runs, course)
        values[0] += (-1) ** number * LEAST[runs] * DEPARTURE
        own = [one for one in departures(positive(values)).found if one.run == "r0"]
        found += len(own)
        steps += [one.step for one in own]
    assert found >= 80
    assert 21_000 <= np.median(steps) <= 26_000


def test_two_that_leave_together_do_not_hide_each_other() -> None:
    rng, both = np.random.default_rng(20_264), 0
    for _ in range(100):
        values = exchangeable(rng, 9, "walk")
        values[[2, 3]] += 9 * DEPARTURE
        both += {one.run for one in departures(positive(values)).found} == {"r2", "r3"}
    assert both >= 80


def test_the_end_is_compared_by_students_distribution() -> None:
    """One outlier of five, so one test: the formula by hand."""
    ends = np.array([10.0, 0.1, -0.2, 0.3, 0.05])
    values = curves(np.repeat(ends[:, None], 40, axis=1))
    (one,) = departures(values).found
    others = ends[1:]
    student = (ends[0] - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / 4))
    assert one.p == pytest.approx(min(2 * t.sf(student, 3) * 5, 1))
    assert one.deviations == pytest.approx((ends[0] - others.mean()) / others.std(ddof=1))
    assert (one.run, one.step, one.last_step) == ("r0", 1000, 40_000)
    assert np.isnan(one.ratio)
    student_needed = t.isf(ALARMS / 2 / 5, 3) * others.std(ddof=1) * np.sqrt(1 + 1 / 4)
    for size, expected in ((1.01, 1), (0.99, 0)):
        ends[0] = others.mean() + size * student_needed
        assert len(departures(curves(np.repeat(ends[:, None], 40, axis=1))).found) == expected


def planted() -> np.ndarray:
    values = exchangeable(np.random.default_rng(7), 9, "offset") * 0.2
    values[4] += 30 * DEPARTURE
    return values


def test_a_ratio_is_told_where_values_are_positive() -> None:
    (one,) = departures(positive(planted())).found
    assert one.run == "r4"
    assert one.ratio == pytest.approx(np.exp(3.0), rel=0.1)
    (same,) = departures(curves(-np.exp(1 + 0.1 * planted()))).found
    assert same.run == "r4"


def test_a_run_that_comes_back_has_not_left() -> None:
    values = planted()
    values[4] -= 30 * DEPARTURE
    values[4, 10:30] += 30
    assert departures(positive(values)).found == ()


def test_gaps_say_nothing_and_early_ends_are_compared_where_they_are() -> None:
    values = planted()
    (whole,) = departures(positive(values)).found
    values[4, 33] = np.nan
    values[1, 25:27] = np.nan
    (gapped,) = departures(positive(values)).found
    assert gapped.step == whole.step
    values[4, 35:] = np.nan  # the training of the run that leaves ends early
    (early,) = departures(positive(values)).found
    assert (early.run, early.step, early.last_step) == ("r4", whole.step, 35_000)
    short = planted()
    short[4, -1] = np.nan  # before that, it is far away
    short[4, :-1] -= 30 * DEPARTURE[:-1]
    short[4, -3:-1] += 30
    assert departures(positive(short)).found == ()  # outside for fewer records than a departure lasts


def test_too_few_runs_are_undecided() -> None:
    values = planted()
    few = departures(positive(values[: MIN_RUNS - 1]))
    assert (few.found, few.tested, few.reason) == ((), 0, "4 runs; 5 are needed")
    apart = np.full((6, 40), np.nan)
    for run in range(6):
        apart[run, run::6] = 1.0 + run
    assert departures(curves(apart)).reason == "no step has 5 runs; 5 are needed"
    assert departures(curves(np.full((9, 40), np.nan))).reason == "0 runs; 5 are needed"
    one_missing = np.vstack([values[:5], np.full((1, 40), np.nan)])
    assert departures(positive(one_missing)).tested == 5


def test_equal_runs_and_one_that_differs() -> None:
    values = np.repeat(1 + np.arange(40.0)[None], 9, axis=0)
    assert departures(curves(values)) == departures(curves(values * (1 + 1e-12 * np.arange(9)[:, None])))
    assert departures(curves(values)).found == ()
    values[6, 15:] *= 1.5
    (one,) = departures(curves(values)).found
    assert (one.run, one.step, one.deviations, one.p) == ("r6", 16_000, np.inf, 0.0)
    assert one.ratio == pytest.approx(1.5)
