"""A peak of the displacement, tested against random walks that move like the history.

The MSD of Eq 4 in "The Garden of Forking Paths" integrates the weights themselves. Its expectation for independent
increments never falls, but a walk in few directions falls in some cases, and weights that turn or return always make
it fall. Demeaned over time every curve has a peak, so that its ratio to the mean of the walks' curves is used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.levels import LEVEL
from pythia_dynamics.measures.walks import (
    Motion,
    batch_size,
    exceedance,
    integrated,
    integrated_over_time,
    simulate_walks,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "DETECTORS",
    "LEAST_PROMINENCE",
    "MIN_STEPS",
    "SAME_STEP",
    "STRICT",
    "Peak",
    "PeakTest",
    "Turn",
    "p_limit",
    "peak_of",
    "peak_tests",
]

DETECTORS: Mapping[str, str] = {
    "msd": "interior peak of the MSD (Eq 5), p ≤ 0.05 among random walks",
    "msd_time_over_null": "the same of the MSD demeaned over time, relative to the mean of random walks",
}
"""The two curves whose peak is tested. The MSD demeaned over time has a peak for every walk, its ratio has not."""

LEAST_PROMINENCE = 0.1
"""Least prominence of a peak that counts, beyond the median of the walks: 10 % of its height, so that one noisy value
at the end of a rising curve is no peak."""

MIN_STEPS = 10
"""Fewest steps for an interior peak: with fewer, one noisy value makes one."""

SAME_STEP = 0.1
"""Two steps count as the same when they differ by at most this share of the span of the steps. The paper gives its
steps as "about" 80,000 and 105,000 of 143,000."""

STRICT = 0.025
"""Share of the walks that may be as extreme for the limit of p to be 0.05: 4 or 5 of 200 (`p_limit`)."""

_SEED = 20_240_308
"""Seed of the walks, so that a result is the same in every run: the day of arXiv 2403.08739."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The greatest value of a curve against its two ends.

    Parameters
    ----------
    step
        The step at which it lies.
    rise
        Rise from the first value to it, relative to it.
    fall
        Fall from it to the last value, relative to it.
    """

    step: int
    rise: float
    fall: float

    @property
    def prominence(self) -> float:
        """The smaller of rise and fall; 0 for a peak at an end."""
        return min(self.rise, self.fall)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the weights do at a peak of the MSD, besides anything that their density shows.

    Parameters
    ----------
    cosine
        Cosine between the sum of the weights up to the peak and the sum after it. The MSD of Eq 4 falls only where it
        is negative: where the weight vector turns by more than 90°.
    returns
        Fall of the displacement from the first step, from its greatest value to the last, relative to it.
    dimensions
        Number of independent directions of the motion (`Motion.dimensions`).
    """

    cosine: float
    returns: float
    dimensions: float

    @property
    def angle(self) -> float:
        """The angle between the weights up to the peak and after it, in degrees."""
        return float(np.degrees(np.arccos(np.clip(self.cosine, -1, 1))))


@dataclass(frozen=True, slots=True)
class PeakTest:
    """A peak, and how often random walks have one as prominent.

    Parameters
    ----------
    peak
        The peak of the curve: of the MSD, or of the ratio of the MSD demeaned over time to the mean of the walks'.
    prominence
        Its prominence; 0 where it is not one that is looked for (see `peak_tests`).
    p
        Probability of such a prominence for a random walk, as an upper limit (`p_limit`).
    typical
        Median prominence of the walks.
    critical
        Prominence that 5 % of the walks exceed.
    power
        Probability that p ≤ 0.05 where the prominence is `LEAST_PROMINENCE` more than that of a walk.
    turn
        What the weights do at the peak.
    reason
        Why `prominence` is 0 although the curve has a peak; empty otherwise.
    height
        Value at the peak.
    """

    peak: Peak
    prominence: float
    p: float
    typical: float
    critical: float
    power: float
    turn: Turn
    reason: str = ""
    height: float = np.nan

    @property
    def effect(self) -> float:
        """Prominence beyond the median of the walks."""
        return self.prominence - self.typical

    @property
    def found(self) -> bool:
        """Whether the peak counts, and random walks do not explain it."""
        return self.effect >= LEAST_PROMINENCE and self.p <= LEVEL


def p_limit(p: float, count: int) -> float:
    """The upper 95 % limit of a simulated p-value (Clopper & Pearson 1934).

    A p-value of 0.04 from 200 walks may be one of 0.06. With the limit in its place, a test at 5 % is wrong in less
    than 5 % of histories; what none of 1,200 walks reaches still has 0.0025.

    Parameters
    ----------
    p
        (1 + k)/(1 + count), where k of the simulated values are as extreme (`exceedance`).
    count
        Number of simulated values.
    """
    from scipy.stats import beta

    extreme = round(p * (count + 1)) - 1
    return 1.0 if extreme >= count else float(beta.ppf(1 - LEVEL, extreme + 1, count - extreme))


def peak_of(steps: NDArray[np.int64], values: NDArray[np.float64]) -> Peak:
    """The peak of a curve.

    Parameters
    ----------
    steps
        Step numbers, shape (n,), n ≥ 1.
    values
        float64, shape (n,), finite. Where none is positive, rise and fall are 0.
    """
    top = int(np.argmax(values))
    height = values[top]
    if height <= 0:
        return Peak(int(steps[top]), 0.0, 0.0)
    return Peak(int(steps[top]), float(1 - values[0] / height), float(1 - values[-1] / height))


def peak_tests(msd: xr.Dataset, pairs: xr.Dataset) -> dict[str, PeakTest]:
    """Test the peaks of both MSDs against random walks with the measured sizes, directions and persistence of steps.

    * ``msd``: the prominence of the peak of the MSD.
    * ``msd_time_over_null``: the ratio of the MSD demeaned over time to the mean of the walks' curves. Its prominence
      counts only where the ratio exceeds 1 there, and the curve itself has its peak at the same step (within 10 % of
      the span); else it is 0. The last step is left out, because the curve is zero there by definition.

    The walks are the same for both, and the same in every call.

    Parameters
    ----------
    msd
        The dataset of `pythia_dynamics.msd`, or its table.
    pairs
        The dataset of `pythia_dynamics.two_time` of the same weights.

    Returns
    -------
    dict of PeakTest
        By name of the detector, see `DETECTORS`.

    Raises
    ------
    PythiaDynError
        Fewer than ten steps, weights that never move, or datasets of different steps.
    """
    motion = Motion.of(pairs)
    curves = {name: msd[name].to_numpy().astype(np.float64) for name in ("msd", "msd_time")}
    steps = msd["step"].to_numpy().astype(np.int64)
    known = np.isfinite(curves["msd"])
    if not np.array_equal(steps[known], motion.steps):
        raise PythiaDynError("msd and two_time are not of the same steps; compute both again")
    if len(motion.steps) < MIN_STEPS:
        raise PythiaDynError(f"{len(motion.steps)} steps are too few to tell a peak from an end")
    walks = _Walks(motion)
    whole, inner = curves["msd"][known], curves["msd_time"][known][:-1]
    reference = walks.batch(0)[1].mean(axis=0)
    ratio = np.divide(inner, reference, out=np.zeros_like(inner), where=reference > 0)

    def ratio_prominence(walked: NDArray[np.float64]) -> NDArray[np.float64]:
        return _ratio_prominence(motion.steps, walked, reference)

    own, top = peak_of(motion.steps[:-1], inner), peak_of(motion.steps[:-1], ratio)
    reason = ""
    if ratio.max() <= 1:
        reason = "nowhere greater than a random walk's"
    elif abs(top.step - own.step) > SAME_STEP * float(motion.steps[-1] - motion.steps[0]):
        reason = f"greatest relative to a random walk's at step {top.step:,}, but with its own peak at {own.step:,}"
    return {
        "msd": _test(motion, peak_of(motion.steps, whole), float(whole.max()), walks, 0, _prominence),
        "msd_time_over_null": _test(motion, top, float(ratio.max()), walks, 1, ratio_prominence, reason),
    }


class _Walks:
    """The two MSDs of random walks like a motion, drawn when they are needed and kept."""

    def __init__(self, motion: Motion) -> None:
        self._motion, self._generator = motion, np.random.default_rng(_SEED)
        self._batches: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def batch(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """MSD, shape (k, n), and MSD demeaned over time without its last step, shape (k, n − 1), of k walks."""
        while len(self._batches) <= index:
            products = simulate_walks(self._motion, batch_size(len(self._motion.steps)), self._generator)
            over_time = integrated_over_time(products, self._motion.size)[:, :-1]
            self._batches.append((integrated(products, self._motion.size), over_time))
        return self._batches[index]

    def statistics(
        self, kind: int, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> Iterator[NDArray[np.float64]]:
        """The statistic of the batches, one after the other."""
        for index in count():
            yield statistic(self.batch(index)[kind])


def _test(
    motion: Motion,
    peak: Peak,
    height: float,
    walks: _Walks,
    kind: int,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    reason: str = "",
) -> PeakTest:
    prominence = 0.0 if reason else peak.prominence
    drawing = walks.statistics(kind, statistic)
    p, drawn = exceedance(prominence, drawing, more=prominence >= LEAST_PROMINENCE)
    critical = float(np.quantile(drawn, 1 - LEVEL))
    power = float(np.mean(drawn + LEAST_PROMINENCE > np.quantile(drawn, 1 - STRICT)))
    p = p_limit(p, len(drawn))
    turn = _turn(motion, peak.step)
    return PeakTest(peak, prominence, p, float(np.median(drawn)), critical, power, turn, reason, height)


def _prominence(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prominence of the peak of each curve, shape (count, n); 0 for curves that are nowhere positive."""
    top = curves.max(axis=1)
    ends = np.maximum(curves[:, 0], curves[:, -1])
    found: NDArray[np.float64] = 1 - np.divide(ends, top, out=np.ones_like(top), where=top > 0)
    return found


def _ratio_prominence(
    steps: NDArray[np.int64], curves: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same of the ratio to `reference`, with the conditions of `peak_tests`."""
    ratio = np.divide(curves, reference, out=np.zeros_like(curves), where=reference > 0)
    apart = np.abs(steps[np.argmax(ratio, axis=1)] - steps[np.argmax(curves, axis=1)])
    counts = (ratio.max(axis=1) > 1) & (apart <= SAME_STEP * float(steps[-1] - steps[0]))
    return np.where(counts, _prominence(ratio), 0.0)


def _turn(motion: Motion, step: int) -> Turn:
    """What the weights do at a step."""
    gram = np.cumsum(np.cumsum(motion.products, axis=0), axis=1)
    before = motion.steps <= step
    inner = float(gram[np.ix_(before, ~before)].sum())
    sizes = float(gram[np.ix_(before, before)].sum()) * float(gram[np.ix_(~before, ~before)].sum())
    away = motion.squared[0]
    returns = float(1 - away[-1] / away.max()) if away.max() > 0 else 0.0
    return Turn(inner / np.sqrt(sizes) if sizes > 0 else 1.0, returns, motion.dimensions)
