"""Verdicts on the second mode of the density and on the symmetry of the modes."""

from __future__ import annotations

import numpy as np
import pytest

from pythia_dynamics.claims import bifurcation_step
from pythia_dynamics.claims.bifurcation_step import ReferenceStep
from pythia_dynamics.claims.density import (
    DENSITY_BIMODAL,
    SYMMETRIC_MODES,
    _power_of_a_split,
    density_bimodal,
    symmetric_modes,
)
from pythia_dynamics.claims.evidence import LEAST_POWER
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import NotTestableError, decision_of
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.density import DENSITY
from pythia_dynamics.measures.modes import find_modes
from pythia_dynamics.sweep.frames import NonFiniteWarning

STEPS = np.arange(1000, 61_000, 2000)
EVENT = 31_000


def split(seed=0, *, noise=0.15, share=1.0, ends=(-1.0, 1.0), balance=0.5, rows=128, since=EVENT):
    """Weights of standard deviation 0.02; a share of them moves to ±0.06 over four records."""
    rng = np.random.default_rng(seed)
    shape = (rows, 64)
    rest = 0.02 * rng.normal(size=shape)
    chosen = rng.random(shape) < share
    target = np.where(chosen, 0.06 * np.where(rng.random(shape) < balance, *ends), rest)
    done = np.clip((STEPS - since + 2000) / 8000, 0, 1)[:, None, None]
    frames = (1 - done) * rest + done * target
    return frames + done * noise * 0.06 * chosen * rng.normal(size=(len(STEPS), *shape))


def gaussian(seed=0, rows=128):
    rng = np.random.default_rng(seed)
    return 0.02 * rng.normal(size=(rows, 64)) + np.cumsum(0.003 * rng.normal(size=(len(STEPS), rows, 64)), axis=0)


def results(frames, *, steps=STEPS, name="suite", without=()):
    history = History.from_array(frames.astype(np.float16), steps, name=name)
    found = analyse(history, ["density", "msd"])
    assert DENSITY.on_save is not None
    density = DENSITY.on_save(found["density"])
    tables = {"density.zarr": density, "moments.csv": density, "msd.csv": found["msd"]}
    return SavedResults.in_memory(name, {file: table for file, table in tables.items() if file not in without})


@pytest.mark.parametrize(("share", "noise"), [(1, 0.05), (1, 0.3), (0.5, 0.05), (0.5, 0.15)])
@pytest.mark.parametrize("seed", range(3))
def test_a_split_turns_the_density_bimodal(share, noise, seed):
    decision = density_bimodal(results(split(seed, share=share, noise=noise)))
    assert decision.verdict == "supported", decision.reason
    assert EVENT <= decision.numbers["bimodal_since"] <= EVENT + 8000
    assert decision.numbers["bifurcation_from"] == "detectors"
    assert decision.evidence.p < 1e-6
    assert decision.evidence.low <= decision.evidence.effect <= decision.evidence.high


@pytest.mark.parametrize("seed", range(3))
def test_a_split_of_half_that_this_many_weights_cannot_show_leaves_the_claim_open(seed):
    decision = density_bimodal(results(split(seed, share=0.5, noise=0.3)))
    assert decision.verdict == "undecided"
    assert "can hide a second mode" in decision.reason


@pytest.mark.parametrize("independent", [200, 2000])
@pytest.mark.parametrize("seed", range(3))
def test_one_mode_is_not_supported_where_a_split_would_be_seen(independent, seed):
    saved = results(gaussian(seed))
    saved.find("density.zarr").attrs["independent_weights"] = independent
    decision = density_bimodal(saved)
    assert decision.verdict == "not supported"
    assert decision.evidence.p == 1
    assert decision.evidence.power > 0.8
    assert "one mode" in decision.reason


def test_few_weights_leave_one_mode_undecided():
    saved = results(gaussian())
    saved.find("density.zarr").attrs["independent_weights"] = 20
    decision = density_bimodal(saved)
    assert decision.verdict == "undecided"
    assert decision.evidence.power < 0.8


def test_the_power_is_that_of_planted_splits():
    for count in (60, 100, 150):
        seen = [find_modes(*np.unique(planted(seed, count), return_counts=True)).count > 1 for seed in range(200)]
        assert (_power_of_a_split(count) >= LEAST_POWER) == (np.mean(seen) >= LEAST_POWER)


def planted(seed, count):
    rng = np.random.default_rng(seed)
    return rng.choice([-1, 1], count) * (1 + 0.3 * rng.normal(size=count))


def test_a_density_of_one_value_has_one_mode():
    frames = np.ones((len(STEPS), 32, 64))
    assert density_bimodal(results(frames)).verdict == "not supported"


def test_a_density_that_is_bimodal_from_the_start_does_not_turn_so():
    decision = density_bimodal(results(split(since=-20_000)))
    assert (decision.verdict, decision.numbers["bimodal_since"]) == ("not supported", 1000)


def test_modes_that_do_not_last_long_enough_leave_the_claim_open():
    frames = split(since=59_000, noise=0.05)
    frames[-1] = split(since=0, noise=0.05)[-1]
    decision = density_bimodal(results(frames))
    assert decision.verdict == "undecided"
    assert "not at the last tenth" in decision.reason


def test_modes_that_vanish_are_not_supported():
    frames = split()
    frames[-5:] = gaussian()[-5:]
    assert density_bimodal(results(frames)).verdict != "supported"


def test_another_step_of_the_bifurcation_refutes_it(monkeypatch):
    monkeypatch.setattr(bifurcation_step, "reference_step", lambda saved: ReferenceStep(9000, "paper"))
    decision = density_bimodal(results(split()))
    assert decision.verdict == "not supported"
    assert "9,000" in decision.reason


def test_without_a_step_of_the_bifurcation_it_is_open():
    assert density_bimodal(results(split(), without=("msd.csv",))).verdict == "undecided"


def test_weights_that_are_coarse_are_not_bimodal():
    frames = np.round(gaussian() / 0.01) * 0.01
    assert density_bimodal(results(frames)).numbers["steps_with_two_modes"] == 0


@pytest.mark.parametrize("test", [density_bimodal, symmetric_modes])
def test_what_cannot_be_tested(test):
    assert decision_of(test, SavedResults.in_memory("suite", {})).verdict == "not testable here"
    saved = results(split())
    del saved.find("density.zarr").attrs["independent_weights"]
    with pytest.raises(NotTestableError, match="run pythia-dyn density"):
        test(saved)
    with pytest.raises(NotTestableError, match="no step with finite weights"), pytest.warns(NonFiniteWarning):
        test(results(np.full((2, 8, 4), np.nan), steps=[1, 2]))


def test_few_steps_have_no_onset():
    with pytest.raises(NotTestableError, match="4 steps are too few"):
        density_bimodal(results(split()[-4:], steps=STEPS[-4:]))


@pytest.mark.parametrize(("share", "noise"), [(1, 0), (1, 0.05), (1, 0.3), (0.5, 0.05), (0.5, 0.15)])
@pytest.mark.parametrize("seed", range(3))
def test_symmetric_splits(share, noise, seed):
    decision = symmetric_modes(results(split(seed, share=share, noise=noise)[-1:], steps=[60_000]))
    assert decision.verdict == "supported", decision.reason
    assert decision.numbers["lower_mode"] == pytest.approx(-0.06, abs=0.006)
    assert decision.evidence.p <= 0.05 / 5
    assert decision.evidence.power >= 0.8
    assert decision.evidence.low <= decision.evidence.effect <= decision.evidence.high


def test_the_interval_of_a_symmetric_split_holds_no_asymmetry():
    found = [symmetric_modes(results(split(seed)[-1:], steps=[60_000])).evidence for seed in range(10)]
    assert sum(evidence.low <= 0 <= evidence.high for evidence in found) >= 7


@pytest.mark.parametrize(
    "asymmetric", [{"ends": (-1, 2)}, {"ends": (-0.5, 1.5)}, {"ends": (1, 3)}, {"balance": 0.7}, {"balance": 0.6}]
)
def test_asymmetric_splits(asymmetric):
    for seed in range(3):
        decision = symmetric_modes(results(split(seed, **asymmetric)[-1:], steps=[60_000]))
        assert decision.verdict == "not supported", decision.reason
        assert decision.evidence.low > 0.05


def test_few_weights_leave_the_symmetry_undecided():
    decision = symmetric_modes(results(split(rows=2)[-1:], steps=[60_000]))
    assert decision.verdict in ("undecided", "not testable here")


@pytest.mark.parametrize("frames", [gaussian()[-1:], np.ones((1, 8, 4))])
def test_one_mode_has_no_symmetry(frames):
    with pytest.raises(NotTestableError, match="one mode"):
        symmetric_modes(results(frames, steps=[60_000]))


def test_the_draws_depend_on_the_step_only():
    saved = results(split()[-1:], steps=[60_000])
    assert symmetric_modes(saved).evidence == symmetric_modes(saved).evidence


def test_the_claims_are_about_the_bifurcation():
    assert DENSITY_BIMODAL.bifurcation
    assert SYMMETRIC_MODES.bifurcation
    assert "Eq 4" in DENSITY_BIMODAL.remark
