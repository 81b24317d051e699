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
from pythia_dynamics.measures.bifurcation import DENSITY, DISPLACEMENT, bifurcation
from pythia_dynamics.measures.density import density
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.measures.modes import first_lasting
from pythia_dynamics.measures.peak import Peak, PeakTest, Turn
from pythia_dynamics.measures.two_time import two_time
from pythia_dynamics.sweep.frames import MissingStepsWarning

STEPS = np.array([0, 1, 2, 4, *range(1000, 41_000, 1000)])


def curves(steps=STEPS):
    return xr.Dataset({"msd": ("step", np.ones(len(steps)))}, {"step": steps})


def at(step, *, prominence=0.5, p=0.001, typical=0.0, reason=""):
    turn = Turn(-0.5, 0.0, 100.0)
    return PeakTest(Peak(step, prominence, prominence), prominence, p, typical, 0.05, 1.0, turn, reason, 2.0)


def peaks(msd=None, over_time=None):
    """Tests of peaks, by default of curves that have none."""
    none = at(40_000, prominence=0.0, p=1.0)
    return {"msd": msd or none, "msd_time_over_null": over_time or none}


def moments(steps=STEPS, *, modes=1.0, bimodality=1 / 3, dip_p=0.5):
    known = {"modes": modes, "bimodality": bimodality, "dip_p": dip_p}
    return xr.Dataset(
        {name: ("step", np.broadcast_to(values, len(steps)).astype(float)) for name, values in known.items()},
        {"step": steps},
    )


def named(detections):
    return {name: found.step for name, found in detections.items() if found.step is not None}


def test_every_detector_finds_what_was_planted_for_it() -> None:
    late = STEPS >= 23_000
    found = bifurcation(
        curves(),
        moments(modes=1 + late, bimodality=np.where(STEPS >= 21_000, 0.6, 0.5), dip_p=np.where(late, 0.01, 0.2)),
        peaks=peaks(at(20_000), at(30_000)),
    )
    assert named(found.displacement) == {"msd": 20_000, "msd_time_over_null": 30_000}
    assert named(found.density) == {"modes": 23_000, "sarle": 21_000, "dip": 23_000}
    assert found.tolerance == 4000
    assert {(pair.first, pair.second): pair.apart for pair in found.pairs if pair.agree} == {
        ("msd", "modes"): 3000,
        ("msd", "sarle"): 1000,
        ("msd", "dip"): 3000,
        ("modes", "sarle"): 2000,
        ("modes", "dip"): 0,
        ("sarle", "dip"): 2000,
    }
    assert (found.agreeing, len(found.pairs)) == (6, 9)  # two peaks alone are no pair
    assert (found.step, found.origin, found.reason) == (21_000, ("msd", "modes", "sarle", "dip"), "")
    assert set(found.displacement) == set(DISPLACEMENT)
    assert set(found.density) == set(DENSITY)


def test_a_displacement_alone_is_a_turn_and_no_bifurcation() -> None:
    found = bifurcation(curves(), moments(), peaks=peaks(at(20_000), at(21_000)))
    assert (found.step, found.pairs) == (None, ())
    assert "a turn or a return" in found.reason


def test_a_peak_that_random_walks_have_as_well_does_not_count() -> None:
    late = moments(modes=1 + (STEPS >= 21_000))
    for test in (at(20_000, p=0.06), at(20_000, typical=0.45), at(20_000, prominence=0.0, reason="nowhere")):
        found = bifurcation(curves(), late, peaks=peaks(test))
        assert named(found.displacement) == {}
        assert found.step is None
        assert found.reason == "one detector alone found a step: modes at 21,000"
    assert found.displacement["msd"].reason == "nowhere"
    assert bifurcation(curves(), late, peaks=peaks(at(20_000))).origin == ("msd", "modes")


def test_detectors_that_disagree_name_no_step() -> None:
    found = bifurcation(curves(), moments(modes=1 + (STEPS >= 30_000)), peaks=peaks(at(20_000)))
    assert found.step is None
    assert found.reason.startswith("no two detectors agree to 4,000 steps")


def test_two_detectors_of_the_density_are_enough() -> None:
    found = bifurcation(curves(), moments(modes=1 + (STEPS >= 30_000), dip_p=np.where(STEPS >= 31_000, 0.01, 0.2)))
    assert (found.step, found.origin) == (30_000, ("modes", "dip"))
    assert {each.reason[:10] for each in found.displacement.values()} == {"not tested"}


def test_missing_steps_are_passed_over() -> None:
    modes = np.where(STEPS >= 23_000, 2.0, 1)
    modes[(STEPS == 23_000) | (STEPS == 40_000)] = np.nan
    assert bifurcation(curves(), moments(modes=modes)).density["modes"].step == 24_000


def test_what_is_not_there_has_its_reason() -> None:
    found = bifurcation(
        curves(),
        moments(modes=2, bimodality=np.where(STEPS == 9000, 0.6, 0.4)),
        peaks=peaks(over_time=at(20_000, prominence=0.02, p=0.6)),
    )
    assert named(found.displacement) == named(found.density) == {}
    assert found.displacement["msd"].reason == "greatest at an end"
    assert found.displacement["msd_time_over_null"].reason.startswith("greatest at step 20,000, by 2% over an end")
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
        found = bifurcation(msd(history), density(history), two_time(history))
    assert {"sarle", "dip"} <= set(named(found.density))
    assert all(14_000 < step <= 18_000 for step in named(found.density).values())
    assert found.step is not None
    assert 14_000 < found.step <= 18_000


def test_a_random_walk_has_no_second_mode() -> None:
    for seed in range(3):
        frames = walk(30, 120, 40, np.float16, seed)
        assert named(bifurcation(msd(frames), density(frames)).density) == {}


def test_agreement_by_chance_is_that_of_steps_anywhere() -> None:
    steps = np.arange(101)
    found = bifurcation(
        curves(steps), moments(steps, modes=1 + (steps >= 55)), tolerance=0.05, peaks=peaks(at(50), at(40))
    )
    assert next((pair.first, pair.apart, pair.agree) for pair in found.pairs) == ("msd", 5, True)
    both = list(product(range(101), repeat=2))
    share = np.mean([abs(a - b) <= 5 for a, b in both])
    assert found.by_chance == pytest.approx(2 * share, abs=0.04)  # in pairs, as `agreeing`
    assert found.agreeing == 1


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


def test_three_known_steps_are_enough() -> None:
    steps, later = np.arange(4), np.array([np.nan, 1.0, 2.0, 2.0])
    found = bifurcation(curves(steps), moments(steps, modes=later))
    assert found.density["modes"].reason == "at 2 of 3 steps, but not to stay"  # a mode must last for three
    found = bifurcation(curves(steps), moments(steps, modes=np.array([1.0, np.nan, np.nan, 1.0])))
    assert found.density["modes"].reason == "too few steps"


@pytest.mark.parametrize("tolerance", [0, 1])
def test_the_bounds_of_the_tolerance_are_allowed(tolerance: float) -> None:
    steps = np.arange(101)
    found = bifurcation(
        curves(steps), moments(steps, modes=1 + (steps >= 60)), tolerance=tolerance, peaks=peaks(at(50))
    )
    assert {pair.agree for pair in found.pairs} == {tolerance == 1}
    assert found.tolerance == 100 * tolerance


def test_a_history_without_steps_has_no_bifurcation() -> None:
    found = bifurcation(curves(STEPS[:0]), moments(STEPS[:0]))
    assert (found.step, found.tolerance, found.pairs) == (None, 0, ())


def test_a_history_that_is_too_short_for_walks_has_no_peak() -> None:
    frames = walk(6, 20, 10, np.float32)
    found = bifurcation(msd(frames), density(frames), two_time(frames))
    assert {each.reason for each in found.displacement.values()} == {"6 steps are too few to tell a peak from an end"}


def test_a_walk_in_few_directions_names_no_bifurcation() -> None:
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        frames = np.cumsum(rng.normal(size=(60, 3)), axis=0) @ rng.normal(size=(3, 1200)) + rng.normal(size=1200)
        frames = frames.reshape(60, 60, 20).astype(np.float32)
        found.append(bifurcation(msd(frames), density(frames), two_time(frames)).step)
    assert found == [None] * 4
