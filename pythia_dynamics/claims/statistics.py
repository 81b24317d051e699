"""The tests that the claims rest on: peaks against a null, changes at a step, second modes, kinks, three levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.saved import Curve

__all__ = [
    "FALL",
    "Change",
    "Peak",
    "change_at",
    "cubic_residual",
    "drawdown",
    "first_lasting",
    "null_margin",
    "peak",
    "second_mode",
    "ternary_error",
]

FALL = 0.1
"""Least relative excess of anything over what it is held against."""

_SIGMAS = 4.0
_WINDOW = 0.05
_LEAST_PLACEBOS = 20


def null_margin(rows: int) -> float:
    """By how much a displacement must differ from its null: 10 %, or four times the null's sampling spread.

    Over N independent directions the MSD of a walk has a relative standard deviation of at most √(2/N). Weights are
    not independent, so only whole rows are counted: N = v.
    """
    return max(FALL, _SIGMAS * float(np.sqrt(2 / rows)))


@dataclass(frozen=True)
class Peak:
    """The greatest value of a curve: its step, how far the curve rises to it and falls after it (relative to it)."""

    step: int
    rise: float
    fall: float

    @property
    def prominence(self) -> float:
        """The lesser of both, 0 for a peak at an end."""
        return min(self.rise, self.fall)


def peak(curve: Curve) -> Peak:
    """The peak of a positive curve against its two ends."""
    top = int(np.argmax(curve.values))
    height = curve.values[top]
    if height <= 0:
        return Peak(int(curve.steps[top]), 0.0, 0.0)
    return Peak(int(curve.steps[top]), float(1 - curve.values[0] / height), float(1 - curve.values[-1] / height))


@dataclass(frozen=True)
class Change:
    """How much a curve changes at a step beyond its trend, and the greatest such change elsewhere.

    `value` and `elsewhere` are in the units of the curve, negative for a drop; `step` is where within the tolerance
    the change is greatest; `placebos` is the number of other places that were looked at.
    """

    step: int
    value: float
    elsewhere: float
    placebos: int


def change_at(curve: Curve, step: int, *, within: float) -> Change | None:
    """The greatest drop of a curve within `within` steps of a step, beyond its trend.

    Of four adjacent windows of 5 % of the curve's span, the third beginning with the step looked at, it is the
    difference between the means of the two in the middle, less what the mean slope of the two on either side makes up
    for: nothing for a straight line, the height of a jump. The same is asked of every other place that is two windows
    clear of the neighbourhood. None where there are too few points.
    """
    width = _WINDOW * curve.span
    if not len(curve) or width <= 0:
        return None
    inner = (curve.steps >= curve.steps[0] + 2 * width) & (curve.steps <= curve.steps[-1] - 2 * width)
    places = curve.steps[inner]
    changes = np.array([_change(curve, float(place), width) for place in places])
    known = np.isfinite(changes)
    places, changes = places[known], changes[known]
    apart = np.abs(places - step)
    near, far = apart <= within, apart > within + 2 * width
    if not near.any() or np.count_nonzero(far) < _LEAST_PLACEBOS:
        return None
    best = int(np.argmin(np.where(near, changes, np.inf)))
    return Change(int(places[best]), float(changes[best]), float(changes[far].min()), int(np.count_nonzero(far)))


def _change(curve: Curve, place: float, width: float) -> float:
    times, means = [], []
    for offset in (-2, -1, 0, 1):
        low, high = place + offset * width, place + (offset + 1) * width
        inside = (curve.steps >= low) & (curve.steps < high)
        if np.count_nonzero(inside) < 2:
            return np.nan
        times.append(curve.steps[inside].mean())
        means.append(curve.values[inside].mean())
    at, mean = np.diff(times), np.diff(means)
    trend = (mean[0] / at[0] + mean[2] / at[2]) / 2
    return float(mean[1] - trend * at[1])


def second_mode(values: NDArray[np.float64], counts: NDArray[np.float64], rows: int) -> float:
    """How far the second mode of a density stands out, relative to the highest, in units of what would be needed.

    `counts` of the sorted `values` are smoothed by a Gaussian of Silverman's bandwidth 0.9 min(σ, IQR/1.34) n^(−1/5)
    (1986, eq. 3.31) with n = `rows`; needed is a prominence of 5 %, or four standard deviations of such an estimate at
    its highest point, √(1/(2√π n h f)) relatively. At least 1 means two modes; 0 means one.
    """
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import find_peaks

    share = counts / counts.sum()
    mean = float(share @ values)
    spread = float(np.sqrt(share @ (values - mean) ** 2))
    cumulated = np.cumsum(share)
    q1, q3 = values[np.searchsorted(cumulated, (0.25, 0.75))]
    low, high = values[np.searchsorted(cumulated, (0.0005, 0.9995)).clip(max=len(values) - 1)]
    narrow = min(spread, (q3 - q1) / 1.34) or spread
    width = 0.9 * narrow * rows**-0.2
    if width <= 0:
        return 0.0
    low, high = low - 4 * width, high + 4 * width
    cells = int(min(max(np.ceil((high - low) / (width / 8)), 32), 1 << 14))
    histogram, _ = np.histogram(values, bins=cells, range=(low, high), weights=share)
    step = (high - low) / cells
    smooth = gaussian_filter1d(histogram, width / step, mode="constant", truncate=6)
    top = smooth.max()
    peaks, found = find_peaks(np.concatenate([[0.0], smooth, [0.0]]), prominence=0)
    if len(peaks) < 2:
        return 0.0
    noise = np.sqrt(1 / (2 * np.sqrt(np.pi) * rows * width * top / step))
    return float(np.sort(found["prominences"])[-2] / top / max(0.05, _SIGMAS * noise))


def first_lasting(steps: NDArray[np.int64], holds: NDArray[np.bool_], *, least: float = 0.1) -> int | None:
    """The first step from which something holds at every step to the end, for a tenth of all steps at least."""
    failing = np.flatnonzero(~holds)
    start = int(failing[-1]) + 1 if len(failing) else 0
    lasting = len(steps) - start
    return int(steps[start]) if lasting >= max(3, least * len(steps)) else None


def ternary_error(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The best scale s and the share of Σw² that rounding the weights to {−s, 0, +s} leaves as error.

    0 for weights that have three such values or two, 1/9 for a uniform density and 0.19 for a Gaussian (Max 1960).
    """
    sizes = np.abs(values)
    order = np.argsort(sizes)
    sizes, weights = sizes[order], counts[order] / counts.sum()
    total = float(weights @ sizes**2)
    if total == 0:
        return 0.0, 0.0
    # Above the threshold s/2 a weight w leaves (|w| − s)², below it w²: the gain is Σ (2 s |w| − s²) over those above.
    above_mass = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
    above_size = np.append(np.cumsum((weights * sizes)[::-1])[::-1], 0.0)
    scales = np.linspace(0, 1, 1025)[1:] * sizes[-1]
    scales = np.union1d(scales, np.linspace(0, 1, 1025)[1:] * 4 * np.sqrt(total))
    cut = np.searchsorted(sizes, scales / 2, side="right")
    gain = 2 * scales * above_size[cut] - scales**2 * above_mass[cut]
    best = int(np.argmax(gain))
    return float(scales[best]), float(max(1 - gain[best] / total, 0.0))


def drawdown(values: NDArray[np.float64]) -> float:
    """The largest fall of a sequence below a value it had before, relative to its range; 0 when it never falls."""
    spread = float(np.ptp(values))
    return float(np.max(np.maximum.accumulate(values) - values)) / spread if spread > 0 else 0.0


def cubic_residual(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Sum of squares that a cubic, as many parameters as a line with one free break, leaves of y(x)."""
    u = (x - x.mean()) / (np.ptp(x) or 1.0)
    fit = np.polynomial.Polynomial.fit(u, y, 3)
    return float(np.sum((y - fit(u)) ** 2))
