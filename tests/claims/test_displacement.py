"""Verdicts on the displacement, on histories whose truth is known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.claims.calibration import measured
from pythia_dynamics.claims.displacement import (
    changes_at_the_end,
    msd_peak,
    msd_time_peak,
    quasi_linear_msd,
    two_regimes,
)
from pythia_dynamics.claims.motions import COSINE
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.truths import truth
from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.history.history import History

SIZE, T = 2048, 143
STEPS = np.arange(1, T + 1) * 1000
SMALL, LARGE = "pythia-70m-deduped", "pythia-410m-deduped"


@lru_cache(maxsize=4)
def tables_of(name: str, seed: int = 0):
    return measured(truth(name).history(seed, T, SIZE))


def saved(name: str, seed: int = 0, model: str = SMALL, *, rate: bool = True) -> SavedResults:
    tables = dict(tables_of(name, seed))
    if not rate:
        tables = {
            key: table.drop_vars("learning_rate") if "learning_rate" in table.coords else table
            for key, table in tables.items()
        }
    return SavedResults.in_memory(model, tables)


def of_frames(frames: np.ndarray, model: str = SMALL) -> SavedResults:
    array = frames.astype(np.float32).reshape(T, -1, 32)
    history = History.from_array(array, STEPS, name=model, tensor=EMBED_OUT, learning_rate=COSINE)
    return SavedResults.in_memory(model, measured(history))


@lru_cache(maxsize=4)
def flip(at: int = 80):
    """Every weight crosses zero at a record, and stays at ±1 after it."""
    rng = np.random.default_rng(0)
    start, gone = rng.normal(size=SIZE), 1 / (1 + np.exp(-(np.arange(T) - at)))[:, None]
    return (1 - gone) * start - gone * np.sign(start) + 0.05 * rng.normal(size=(T, SIZE))


@pytest.mark.parametrize(
    "name", ["walk-cosine", "walk-persistent", "walk-rank-3", "walk-jitter-5", "ou-5", "relaxation"]
)
def test_walks_and_other_motion_support_nothing(name: str) -> None:
    results = saved(name)
    for claim in (msd_peak, msd_time_peak, quasi_linear_msd, two_regimes):
        assert claim(results).verdict != "supported", claim.__name__


def test_a_walk_refutes_where_the_test_has_power() -> None:
    results = saved("walk-cosine")
    assert {claim(results).verdict for claim in (msd_peak, msd_time_peak, quasi_linear_msd, two_regimes)} == {
        "not supported"
    }


def test_a_turn_makes_the_peak_and_is_named() -> None:
    decision = msd_peak(of_frames(flip()))
    assert decision.verdict == "supported"
    assert "a turn of the weight vector" in decision.reason
    assert decision.evidence.p < 0.005
    assert msd_time_peak(of_frames(flip())).verdict == "supported"


def test_a_peak_at_another_step_than_the_papers_refutes() -> None:
    decision = msd_peak(of_frames(flip(110)))
    assert decision.verdict == "not supported"
    assert decision.refuted
    assert "but the paper's peak is at about 80,000" in decision.reason
    assert msd_peak(of_frames(flip(110), LARGE)).verdict == "supported"  # the paper names no step there


def test_a_motion_in_few_directions_leaves_the_peak_over_time_open() -> None:
    decision = msd_time_peak(saved("walk-rank-3"))
    assert decision.verdict == "undecided"
    assert decision.evidence.power < 0.8


def test_independent_weights_about_zero_make_a_linear_msd() -> None:
    for seed in range(3):
        decision = quasi_linear_msd(of_frames(np.random.default_rng(seed).normal(size=(T, SIZE))))
        assert decision.verdict == "supported"
        assert decision.numbers["exponent"] == pytest.approx(1, abs=0.1)
        assert decision.evidence.power > 0.95
        assert decision.evidence.low <= decision.evidence.effect <= decision.evidence.high


def test_an_exponent_at_the_limit_is_not_linear() -> None:
    """Integrals that grow with the exponent 1.25: fractional Gaussian noise in SIZE directions."""
    n = np.arange(T, dtype=float)
    lag = np.abs(n[:, None] - n)
    noise = (np.abs(lag + 1) ** 1.25 + np.abs(lag - 1) ** 1.25 - 2 * lag**1.25) / 2
    root = np.linalg.cholesky(noise)
    words = []
    for seed in range(8):
        frames = root @ np.random.default_rng(seed).normal(size=(T, SIZE))
        words.append(quasi_linear_msd(of_frames(frames)).verdict)
    assert words.count("supported") <= 1


@pytest.mark.parametrize("name", ["story", "plateau"])
def test_a_walk_that_comes_to_rest_has_two_regimes(name: str) -> None:
    decision = two_regimes(saved(name))
    assert decision.verdict == "supported"
    assert decision.numbers["exponent_before"] == pytest.approx(1, abs=0.1)
    assert decision.numbers["exponent_after"] == pytest.approx(0, abs=0.1)


def test_a_walk_that_turns_straight_has_two_regimes() -> None:
    rng = np.random.default_rng(0)
    rate = np.nan_to_num(COSINE.at(STEPS.tolist()))[:, None]
    moves = rng.normal(size=(T, SIZE))
    moves[80:] = rng.normal(size=SIZE)
    decision = two_regimes(of_frames(np.cumsum(rate * moves, axis=0) + 3e-3 * rng.normal(size=SIZE)))
    assert decision.verdict == "supported"
    assert decision.numbers["exponent_after"] > 1.75
    assert "ballistically" in decision.reason


def test_without_a_learning_rate_regimes_and_the_end_are_open() -> None:
    decision = two_regimes(saved("story", rate=False))
    assert decision.open
    assert decision.verdict == "undecided"
    decision = changes_at_the_end(saved("faster-end", model=LARGE, rate=False))
    assert decision.open
    assert "without a known learning rate" in decision.reason


def test_noise_of_single_records_is_no_regime_and_no_change() -> None:
    for name in ("walk-jitter-2", "walk-jitter-5"):
        assert two_regimes(saved(name)).verdict != "supported"
        assert changes_at_the_end(saved(name, model=LARGE)).verdict != "supported"


def test_a_faster_end_is_a_change_at_the_end() -> None:
    for seed in range(3):
        decision = changes_at_the_end(saved("faster-end", seed, LARGE))
        assert decision.verdict == "supported"
        assert decision.evidence.effect == pytest.approx(4, rel=0.3)  # steps twice as long
        assert "more" in decision.reason


@pytest.mark.parametrize("name", ["walk-cosine", "walk-stepped", "walk-persistent", "drift", "relaxation", "ou-20"])
def test_a_decaying_learning_rate_and_smooth_motion_are_no_change(name: str) -> None:
    assert changes_at_the_end(saved(name, model=LARGE)).verdict == "not supported"


def test_the_end_is_claimed_for_one_model_only() -> None:
    with pytest.raises(NotTestableError, match="410M"):
        changes_at_the_end(saved("walk-cosine"))


def test_what_is_missing_or_short_is_not_testable() -> None:
    with pytest.raises(NotTestableError, match=r"two_time\.zarr is missing"):
        msd_peak(SavedResults.in_memory(SMALL, {"msd.csv": tables_of("walk-cosine")["msd.csv"]}))
    short = SavedResults.in_memory(LARGE, measured(truth("walk-cosine").history(0, 9, 128)))
    for claim in (msd_peak, quasi_linear_msd, two_regimes, changes_at_the_end):
        with pytest.raises(NotTestableError):
            claim(short)
    sparse = SavedResults.in_memory(SMALL, measured(truth("walk-cosine").history(0, 24, 128)))
    with pytest.raises(NotTestableError, match="too few"):
        two_regimes(sparse)
