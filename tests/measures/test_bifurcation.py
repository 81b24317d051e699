"""The detectors of a bifurcation: steps where they were planted, reasons where there is nothing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from support.walks import walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.bifurcation import DENSITY, DISPLACEMENT, bifurcation, first_lasting
from pythia_dynamics.measures.density import density
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.sweep.frames import MissingStepsWarning

STEPS = np.array([0, 1, 2, 4, *range(1000, 41_000, 1000)])


def curves(steps=STEPS, **values):
    names = ("msd", "msd_null", "msd_time", "msd_time_null")
    return xr.Dataset({name: ("step", values.get(name, np.ones(len(steps)))) for name in names}, {"step": steps})


def moments(steps=STEPS, *, modes=1.0, bimodality=1 / 3, dip_p=0.5):
    known = {"modes": modes, "bimodality": bimodality, "dip_p": dip_p}
    return xr.Dataset(
        {name: ("step", np.broadcast_to(values, len(steps)).astype(float)) for name, values in known.items()},
        {"step": steps},
    )


def named(detections):
    return {name: found.step for name, found in detections.items() if found.step is not None}


def test_every_detector_finds_what_was_planted_for_it() -> None:
    peaked = 10 - np.abs(STEPS - 20_000) / 4000.0
    over = 1 + np.exp(-(((STEPS - 30_000) / 5000) ** 2))
    late = STEPS >= 23_000
    found = bifurcation(
        curves(msd=peaked, msd_null=peaked / over, msd_time=over, msd_time_null=np.ones(len(STEPS))),
        moments(modes=1 + late, bimodality=np.where(STEPS >= 21_000, 0.6, 0.5), dip_p=np.where(late, 0.01, 0.2)),
    )
    assert named(found.displacement) == {"msd": 20_000, "msd_over_null": 30_000, "msd_time_over_null": 30_000}
    assert named(found.density) == {"modes": 23_000, "sarle": 21_000, "dip": 23_000}
    assert found.tolerance == 4000
    assert len(found.pairs) == 9
    assert {(pair.displacement, pair.density): pair.apart for pair in found.pairs if pair.agree} == {
        ("msd", "modes"): 3000,
        ("msd", "sarle"): 1000,
        ("msd", "dip"): 3000,
    }
    assert found.agreeing == 3
    assert set(found.displacement) == set(DISPLACEMENT)
    assert set(found.density) == set(DENSITY)


def test_missing_steps_are_passed_over() -> None:
    peaked = 10 - np.abs(STEPS - 20_000) / 4000.0
    peaked[STEPS == 20_000] = np.nan
    modes = np.where(STEPS >= 23_000, 2.0, 1)
    modes[(STEPS == 23_000) | (STEPS == 40_000)] = np.nan
    found = bifurcation(curves(msd=peaked), moments(modes=modes))
    assert found.displacement["msd"].step in (19_000, 21_000)
    assert found.density["modes"].step == 24_000


def test_what_is_not_there_has_its_reason() -> None:
    growing, barely = STEPS + 1.0, 10 - np.abs(STEPS - 20_000) / 40_000
    found = bifurcation(
        curves(msd=growing, msd_null=growing / barely, msd_time=np.full(len(STEPS), np.nan)),
        moments(modes=2, bimodality=np.where(STEPS == 9000, 0.6, 0.4)),
    )
    assert named(found.displacement) == named(found.density) == {}
    assert found.displacement["msd"].reason == "greatest at an end"
    assert found.displacement["msd_over_null"].reason == "greatest at step 20,000, by less than 10% over an end"
    assert found.displacement["msd_time_over_null"].reason == "too few steps"
    assert found.density["modes"].reason == "from the first step on"
    assert found.density["sarle"].reason == f"at 1 of {len(STEPS)} steps, but not to stay"
    assert found.density["dip"].reason == "at no step"
    assert (found.pairs, found.agreeing, found.by_chance) == ((), 0, 0)


def test_the_weights_split_at_a_step_and_the_density_says_so() -> None:
    rng = np.random.default_rng(0)
    side = np.where(rng.random((60, 40)) < 0.5, 1.0, -1.0)
    apart = np.clip(np.arange(30) - 14, 0, None)[:, None, None] * 0.06
    frames = walk(30, 60, 40, np.float32) + apart * side
    history = History.from_array(frames.astype(np.float16), np.arange(30) * 1000, missing={17_000: "lost"})
    with pytest.warns(MissingStepsWarning):
        found = bifurcation(msd(history), density(history))
    assert set(named(found.density)) == set(DENSITY)
    assert all(14_000 < step <= 18_000 for step in named(found.density).values())


def test_a_random_walk_has_no_second_mode() -> None:
    for seed in range(3):
        frames = walk(30, 120, 40, np.float16, seed)
        assert named(bifurcation(msd(frames), density(frames)).density) == {}


def test_agreement_by_chance_is_that_of_steps_anywhere() -> None:
    steps = np.arange(101)
    falling = np.where(steps == 50, 9.0, 1.0)
    found = bifurcation(curves(steps, msd=falling), moments(steps, modes=1 + (steps >= 55)), tolerance=0.05)
    assert next((pair.displacement, pair.apart, pair.agree) for pair in found.pairs) == ("msd", 5, True)
    both = list(product(range(101), repeat=2))
    share = np.mean([abs(a - b) <= 5 for a, b in both])
    assert found.by_chance / len(found.pairs) == pytest.approx(share, abs=0.02)


def test_other_steps_and_tolerances_are_refused() -> None:
    with pytest.raises(PythiaDynError, match="not of the same steps"):
        bifurcation(curves(), moments(STEPS[1:]))
    with pytest.raises(PythiaDynError, match="0 to 1"):
        bifurcation(curves(), moments(), tolerance=2)
    with pytest.raises(PythiaDynError, match="0 to 1"):
        bifurcation(curves(), moments(), tolerance=-0.5)


def test_the_tolerance_is_a_share_of_the_span() -> None:
    steps = STEPS + 7000
    assert bifurcation(curves(steps), moments(steps)).tolerance == 4000


def test_by_default_a_tenth_of_the_steps_must_last() -> None:
    steps = np.arange(50)
    assert first_lasting(steps, steps >= 45) == 45
    assert first_lasting(steps, steps >= 46) is None


def test_a_value_at_the_level_of_a_test_is_no_second_mode() -> None:
    found = bifurcation(
        curves(), moments(bimodality=np.where(STEPS < 2000, 0.55, 5 / 9), dip_p=np.where(STEPS < 9000, 0.2, 0.05))
    )
    assert named(found.density) == {}
    assert found.density["dip"].reason == found.density["sarle"].reason == "at no step"


@given(holds=st.lists(st.booleans(), max_size=60), least=st.floats(0, 1))
def test_what_lasts_lasts_to_the_end(holds, least) -> None:
    steps = np.arange(len(holds)) * 10
    since = first_lasting(steps, np.array(holds, dtype=bool), min_share=least)
    starts = [i for i in range(len(holds)) if all(holds[i:]) and len(holds) - i >= max(3, least * len(holds))]
    assert since == (steps[starts[0]] if starts else None)


def test_a_peak_must_exceed_both_ends() -> None:
    steps = np.arange(12)
    for first, last, step in ((8.9, 1.0, 5), (9.1, 1.0, None), (9.0, 1.0, 5), (1.0, 8.9, 5), (1.0, 9.1, None)):
        curve = np.array([first, *[2.0] * 4, 10.0, *[2.0] * 5, last])  # the neighbours of the ends are low
        assert bifurcation(curves(steps, msd=curve), moments(steps)).displacement["msd"].step == step


def test_three_known_steps_are_enough() -> None:
    steps, later = np.arange(4), np.array([np.nan, 1.0, 2.0, 2.0])
    found = bifurcation(curves(steps, msd=np.array([1.0, np.nan, 2.0, 1.0])), moments(steps, modes=later))
    assert found.displacement["msd"].step == 2
    assert found.density["modes"].reason == "at 2 of 3 steps, but not to stay"  # a mode must last for three
    two = np.array([1.0, np.nan, np.nan, 1.0])
    found = bifurcation(curves(steps, msd=two), moments(steps, modes=two))
    assert found.displacement["msd"].reason == found.density["modes"].reason == "too few steps"


def test_where_the_walk_has_not_moved_there_is_no_ratio() -> None:
    steps = np.arange(6)
    null = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    curve = np.array([1.0, 5.0, 1.0, 4.0, 1.0, 1.0])
    found = bifurcation(curves(steps, msd=curve, msd_null=null), moments(steps))
    assert found.displacement["msd_over_null"].step == 3


@pytest.mark.parametrize("tolerance", [0, 1])
def test_the_bounds_of_the_tolerance_are_allowed(tolerance: float) -> None:
    steps = np.arange(101)
    peaked = np.where(steps == 50, 9.0, 1.0)
    found = bifurcation(curves(steps, msd=peaked), moments(steps, modes=1 + (steps >= 60)), tolerance=tolerance)
    assert {pair.agree for pair in found.pairs} == {tolerance == 1}
    assert found.tolerance == 100 * tolerance


def test_a_history_without_steps_has_no_bifurcation() -> None:
    found = bifurcation(curves(STEPS[:0]), moments(STEPS[:0]))
    assert (found.tolerance, found.pairs) == (0, ())
