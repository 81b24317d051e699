"""The scan for a drop at a step, on curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from pythia_dynamics.claims.saved import Curve
from pythia_dynamics.claims.scan import Change, scan
from pythia_dynamics.claims.verdict import NotTestableError

RECORDS, STEP, LEAST = 143, 80_000, -float(np.log(0.9))
STEPS = np.arange(1, RECORDS + 1) * 1000
TIME = STEPS / STEPS[-1]

SMOOTH = {
    "exponential": np.exp(-TIME / 0.3),
    "steep at the start": np.exp(-TIME / 0.03),
    "power law": TIME**-0.35 / 10,
    "logistic": 1 / (1 + np.exp((TIME - 0.5) / 0.2)),
    "flat": np.zeros(RECORDS),
}


def noise(seed: int, size: float, memory: float) -> np.ndarray:
    """White noise, AR(1) of this standard deviation, or a random walk of this step."""
    white = np.random.default_rng(seed).normal(size=RECORDS)
    if memory < 1:
        white[1:] *= np.sqrt(1 - memory**2)
    return size * lfilter([1], [1, -memory], white)


def drop(share: float, width: int, *, at: float = 79.0) -> np.ndarray:
    """The logarithm of a fall by a share, over `width` records, centred on record `at`."""
    return np.log(1 - share) * np.clip((np.arange(RECORDS) - at) / width + 0.5, 0, 1)


def found(values: np.ndarray, steps: np.ndarray = STEPS, *, step: int = STEP, error: float = 0.0) -> Change:
    return scan(Curve(steps, values), step, least=LEAST, error=error)


def supports(change: Change) -> bool:
    return -change.change >= LEAST and change.p <= 0.05 and change.greatest


@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("shape", list(SMOOTH))
def test_smooth_curves_with_noise_have_no_drop(shape: str, memory: float) -> None:
    size = 0.01 if memory == 1 else 0.03
    wrong = sum(supports(found(3 + 2 * SMOOTH[shape] + noise(seed, size, memory))) for seed in range(20))
    assert wrong <= 3  # 5 % of 20: more than 3 in 1.6 % of cases


@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("width", [1, 5, 20, 40])
def test_sharp_and_gradual_drops_are_found(width: int, memory: float) -> None:
    changes = [
        found(3 + 2 * SMOOTH["exponential"] + noise(s, 0.01, memory) + drop(0.4, width, at=79.5 if width == 5 else 79))
        for s in range(10)
    ]
    assert sum(map(supports, changes)) >= 9
    assert np.median([change.change for change in changes]) == pytest.approx(np.log(0.6), abs=0.1)
    assert np.mean([change.low <= np.log(0.6) <= change.high for change in changes]) >= 0.7


def test_a_drop_that_begins_at_the_step_counts() -> None:
    assert supports(found(3 + noise(0, 0.01, 0.6) + drop(0.4, 40, at=99)))


@pytest.mark.parametrize(("width", "at"), [(1, 40), (10, 120), (20, 40)])
def test_a_drop_elsewhere_is_not_one_here(width: int, at: float) -> None:
    for seed in range(5):
        change = found(3 + 2 * SMOOTH["exponential"] + noise(seed, 0.01, 0.6) + drop(0.4, width, at=at))
        assert change.is_other
        assert not change.greatest
        assert change.elsewhere == pytest.approx(np.log(0.6), abs=0.1)


def test_a_fall_that_comes_back_is_no_drop() -> None:
    for width in (1, 4, 10):
        change = found(3 + noise(0, 0.01, 0.6) + drop(0.4, 1) - drop(0.4, 1, at=79 + width))
        if width < 5:  # left out; correlated noise may add a neighbour
            assert width <= change.removed <= width + 2
            assert not supports(change)
            assert abs(change.change) < LEAST
        else:
            assert change.rises_there


def test_changes_beside_the_drop_are_fitted() -> None:
    values = 3 + noise(0, 0.01, 0.6) + drop(0.4, 5, at=79.5)
    alone, beside = found(values), found(values - 2 * drop(0.4, 3, at=30.5) + drop(0.2, 5, at=119.5))
    assert alone.others == 0
    assert beside.others == 2
    assert supports(beside)
    assert beside.change == pytest.approx(alone.change, abs=0.02)
    assert beside.power == pytest.approx(alone.power, abs=0.3)
    assert (beside.elsewhere_start, beside.elsewhere_end) == (118_000, 123_000)


def test_a_rise_is_no_drop() -> None:
    change = found(3 + noise(0, 0.01, 0.6) - drop(0.4, 5))
    assert change.is_other
    assert change.rise_score > change.score
    assert change.low > -LEAST  # the interval excludes a drop by 10 %


def test_a_drop_within_the_noise_is_left_open() -> None:
    quiet, loud = found(3 + noise(0, 0.005, 0.0)), found(3 + noise(0, 0.3, 0.0))
    assert quiet.power > 0.9
    assert quiet.low > -LEAST
    assert loud.power < 0.5
    assert loud.low < -LEAST
    assert loud.p > 0.05


def test_p_becomes_small_enough_for_a_correction() -> None:
    assert found(3 + noise(0, 0.01, 0.6) + drop(0.4, 5)).p == pytest.approx(1 / 2000, rel=0.01)


def test_the_size_of_the_curve_does_not_matter() -> None:
    values = noise(3, 0.02, 0.6) + drop(0.2, 10)
    first, second = found(values), scan(Curve(STEPS, 100 * values + 7), STEP, least=100 * LEAST)
    assert second.p == pytest.approx(first.p)
    assert second.change == pytest.approx(100 * first.change)
    assert second.power == pytest.approx(first.power)


def test_uneven_steps_and_gaps() -> None:
    early = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    generator = np.random.default_rng(0)
    kept = np.sort(generator.choice(RECORDS, 90, replace=False))
    values = 3 + 2 * SMOOTH["exponential"] + noise(1, 0.01, 0.6) + drop(0.4, 10)
    change = found(np.r_[np.linspace(11, 6, 11), values[kept]], np.r_[early, STEPS[kept]])
    assert supports(change)
    assert change.records == 90  # the warm-up is left out
    assert change.start < STEP < change.end + 10_000


def test_curves_without_noise() -> None:
    flat = found(np.full(RECORDS, 3.0))
    assert flat.change == pytest.approx(0, abs=1e-6)
    assert flat.low > -LEAST
    jump = found(3.0 - 1.0 * (STEP <= STEPS))
    assert supports(jump)
    assert (jump.start, jump.end) == (79_000, 80_000)
    assert jump.change == pytest.approx(-1)


def test_a_known_error_bounds_the_noise() -> None:
    values = 3 + noise(0, 0.001, 0.0)
    assert found(values).power > found(values, error=0.2).power
    assert found(values, error=0.2).low < -LEAST < found(values).low


def test_too_few_records() -> None:
    with pytest.raises(NotTestableError, match="15 records are too few"):
        found(np.ones(15), np.arange(1, 16) * 1000)
    with pytest.raises(NotTestableError, match="around step 200,000"):
        found(np.ones(RECORDS), step=200_000)
    few = np.arange(1, 17) * 500
    assert found(np.random.default_rng(0).normal(size=16), few, step=4000).power < 0.8
