"""Peaks of the displacement against random walks: turns are found, walks of every kind are not."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.measures.peak import DETECTORS, p_limit, peak_of, peak_tests
from pythia_dynamics.measures.two_time import two_time

LENGTH, SIZE = 60, 600


def examined(frames):
    frames = frames.reshape(len(frames), -1, 20).astype(np.float32)
    return peak_tests(msd(frames), two_time(frames))


def walk(seed, *, rank=None, memory=0.0):
    rng = np.random.default_rng(seed)
    moves = rng.normal(size=(LENGTH, rank or SIZE))
    for t in range(1, LENGTH):
        moves[t] = memory * moves[t - 1] + np.sqrt(1 - memory**2) * moves[t]
    path = np.cumsum(moves, axis=0)
    return (path @ rng.normal(size=(rank, SIZE)) if rank else path) + 3 * rng.normal(size=SIZE)


def flip(seed=0):
    rng = np.random.default_rng(seed)
    start, gone = rng.normal(size=SIZE), 1 / (1 + np.exp(-(np.arange(LENGTH) - 30)))
    return (1 - 2 * gone)[:, None] * start + 0.02 * rng.normal(size=(LENGTH, SIZE))


def test_a_turn_is_found_and_named() -> None:
    found = examined(flip())
    assert set(found) == set(DETECTORS)
    test = found["msd"]
    assert test.found
    assert 27 <= test.peak.step <= 32
    assert test.p < 0.005  # of 2,000 walks none
    assert test.power == 1
    assert test.turn.cosine < -0.9
    assert test.turn.angle > 150


@pytest.mark.parametrize("memory", [0.0, 0.9, 0.95])
@pytest.mark.parametrize("rank", [None, 3, 10])
def test_walks_have_no_peak_beyond_walks(memory, rank) -> None:
    found = [test.found for seed in range(3) for test in examined(walk(seed, rank=rank, memory=memory)).values()]
    assert sum(found) <= (0 if rank is None else 1)


def test_few_directions_leave_no_power() -> None:
    test = examined(walk(0, rank=3))["msd_time_over_null"]
    assert test.turn.dimensions == pytest.approx(3, abs=1)
    assert test.critical > 0.1
    assert test.power < 0.8


def test_a_peak_relative_to_walks_must_be_where_the_curve_has_its_own() -> None:
    rng = np.random.default_rng(1)
    drift = np.arange(LENGTH)[:, None] * rng.normal(size=SIZE) + 0.3 * np.cumsum(rng.normal(size=(LENGTH, SIZE)), 0)
    test = examined(drift)["msd_time_over_null"]
    assert test.reason
    assert test.prominence == 0


def test_the_same_history_gives_the_same_p() -> None:
    assert examined(walk(5, rank=3)) == examined(walk(5, rank=3))


def test_peaks_and_limits() -> None:
    steps = np.arange(4) * 10
    peak = peak_of(steps, np.array([1.0, 4.0, 2.0, 3.0]))
    assert (peak.step, peak.rise, peak.fall, peak.prominence) == (10, 0.75, 0.25, 0.25)
    assert peak_of(steps, np.zeros(4)).prominence == 0
    assert p_limit(1 / 2001, 2000) == pytest.approx(0.0015, abs=1e-4)
    assert p_limit(5 / 201, 200) < 0.05 < p_limit(6 / 201, 200)
    assert p_limit(1.0, 200) == 1


def test_other_steps_and_short_histories_are_refused() -> None:
    frames = flip().reshape(LENGTH, -1, 20)
    curves, pairs = msd(frames), two_time(frames)
    with pytest.raises(PythiaDynError, match="not of the same steps"):
        peak_tests(curves.isel(step=slice(1, None)), pairs)
    with pytest.raises(PythiaDynError, match="too few"):
        peak_tests(msd(frames[:9]), two_time(frames[:9]))
    with pytest.raises(PythiaDynError, match="never move"):
        peak_tests(msd(np.ones((12, 3, 4))), two_time(np.ones((12, 3, 4))))


def test_tables_with_a_missing_step_are_read() -> None:
    frames = flip().reshape(LENGTH, -1, 20)
    pairs = two_time(frames).copy()
    hole = xr.where(pairs["step"] == 17, np.nan, 1.0)
    for name in ("gram", "displacement"):
        pairs[name] = pairs[name] * hole * hole.rename(step="other_step")
    curves = msd(frames)
    curves["msd"] = curves["msd"] * hole
    curves["msd_time"] = curves["msd_time"] * hole
    assert peak_tests(curves, pairs)["msd"].found
