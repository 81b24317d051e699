"""The step of the bifurcation: the same for the claims and for ``bifurcation.json``."""

from __future__ import annotations

import pytest

from pythia_dynamics.claims.bifurcation_step import bifurcation_of, motion_of, peaks_of, reference_step
from pythia_dynamics.claims.calibration import measured
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.truths import truth
from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.measures.bifurcation import bifurcation

RECORDS, SIZE = 60, 2048


@pytest.fixture(scope="module")
def split():
    return measured(truth("split-all-15").history(1, RECORDS, SIZE))


@pytest.fixture(scope="module")
def walk():
    return measured(truth("walk-cosine").history(1, RECORDS, SIZE))


def test_the_step_is_where_detectors_agree_and_the_same_as_in_the_measure(split) -> None:
    saved = SavedResults.in_memory("suite", split)
    reference = reference_step(saved)
    found = bifurcation(split["msd.csv"], split["moments.csv"], split["two_time.zarr"])
    assert bifurcation_of(saved) == found
    assert (reference.step, reference.detectors) == (found.step, found.origin)
    assert reference.origin == "detectors"
    assert abs(reference.step - 80_000) <= 14_200
    assert "agree" in reference.description


def test_results_are_computed_once(split) -> None:
    saved = SavedResults.in_memory("suite", split)
    assert bifurcation_of(saved) is bifurcation_of(saved)
    assert peaks_of(saved) is peaks_of(saved)
    assert motion_of(saved) is motion_of(saved)


def test_without_detectors_that_agree_it_is_the_papers_step(walk) -> None:
    reference = reference_step(SavedResults.in_memory("pythia-70m-deduped", walk))
    assert (reference.step, reference.origin) == (80_000, "paper")
    assert "the paper's" in reference.description
    assert reference_step(SavedResults.in_memory("pythia-160m", walk)).step == 105_000
    with pytest.raises(NotTestableError, match="no step to look at: no peak of the displacement"):
        reference_step(SavedResults.in_memory("pythia-410m-deduped", walk))


def test_what_is_missing_is_said(walk) -> None:
    saved = SavedResults.in_memory("suite", {"msd.csv": walk["msd.csv"]})
    with pytest.raises(NotTestableError, match=r"moments\.csv is missing"):
        reference_step(saved)
    with pytest.raises(NotTestableError, match=r"two_time\.zarr is missing"):
        motion_of(saved)
    with pytest.raises(NotTestableError, match=r"msd\.csv is missing"):
        reference_step(SavedResults.in_memory("suite", {}))
    # without displacements of all pairs the density alone may still name a step
    bare = {name: walk[name] for name in ("msd.csv", "moments.csv")}
    assert bifurcation_of(SavedResults.in_memory("suite", bare)).step is None


def test_tables_of_other_steps_are_not_testable(walk) -> None:
    tables = {**walk, "msd.csv": walk["msd.csv"].isel(step=slice(1, None))}
    with pytest.raises(NotTestableError, match="not of the same steps"):
        reference_step(SavedResults.in_memory("suite", tables))


def test_a_second_mode_that_noise_may_hide_is_undecided_not_denied() -> None:
    """A split of half of the weights with noise of 30 % of a: a shoulder that a walk does not have."""
    hidden = measured(truth("split-half-30").history(2_000_000, 143, 8192))
    found = bifurcation_of(SavedResults.in_memory("suite", hidden))
    assert (found.step, found.undecided) == (None, True)
    assert "noise of so few independent weights can hide a second mode" in found.reason
    by_moments = bifurcation(hidden["msd.csv"], hidden["moments.csv"], hidden["two_time.zarr"])
    assert not by_moments.undecided  # it is not known without the counts


def test_a_walk_and_a_split_that_is_seen_are_decided(split, walk) -> None:
    assert not bifurcation_of(SavedResults.in_memory("suite", walk)).undecided
    assert not bifurcation_of(SavedResults.in_memory("suite", split)).undecided
