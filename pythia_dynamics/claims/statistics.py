"""Statistical tests that the claims share: peaks against a null, level shifts, second modes, rounding to three values.

The thresholds that more than one claim uses are here as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.saved import Curve

__all__ = [
    "MAX_BREAK_P",
    "MAX_B_FALL",
    "MAX_LOSS_RISE",
    "MIN_EXCESS",
    "SAME_STEP",
    "SIGMAS",
    "LevelShift",
    "Peak",
    "cubic_residual",
    "drawdown",
    "level_shift_at",
    "null_margin",
    "peak",
    "second_mode",
    "ternary_error",
]

MIN_EXCESS = 0.1
"""Least relative size of an effect. 10 % is also the prominence that `measures.bifurcation` asks of a peak."""

SAME_STEP = 0.1
"""Two steps count as the same when they differ by at most this share of the training looked at.

As in `measures.bifurcation`. The paper gives its steps as "about" 80,000 and 105,000 of 143,000. Two steps drawn at
random agree to 10 % in 1 − 0.9² = 19 % of cases.
"""

SIGMAS = 4.0
"""Standard deviations that a deviation from a null must exceed.

A Gaussian exceeds +4 σ with probability 3.2e-5, so the largest of 143 values does in 0.5 % of cases.
"""

MAX_B_FALL = 0.01
"""Largest fall of b, relative to its range, that still counts as monotone growth.

The blog's published b never falls; 1 % allows for rounding of the weights.
"""

MAX_LOSS_RISE = 0.05
"""Largest rise of the loss, relative to its range, that still counts as a monotone fall.

The blog's published training loss never rises. A loss is measured on sampled batches; 5 % allows for their noise.
"""

MAX_BREAK_P = 0.01
"""Largest p of a break in the line L(b). `break_in_line` finds p < 0.05 in up to 16 % of lines with dependent noise, so
the usual 0.05 is too large."""

_SHIFT_WINDOW = 0.05
"""Width of a window as a share of the span: 7 of Pythia's 143 steps, which averages noise and still resolves 10 %."""

_MIN_COMPARISONS = 20
"""Fewest other places to compare a shift with: the greatest of 21 exchangeable values is one place in 5 % of cases."""

_MIN_MODE_PROMINENCE = 0.05
"""Least height of a second mode relative to the highest, as in `measures.density.MODES_METHOD`."""


def null_margin(rows: int) -> float:
    """Least relative difference of an MSD from its null: 10 %, or four standard deviations of the null if that is more.

    The MSD of a walk over N independent directions has a relative standard deviation of at most √(2/N). Weights of one
    row are not independent, so N is the number of rows.

    Parameters
    ----------
    rows
        v, the number of rows of the matrix.

    Returns
    -------
    float
        The margin, relative to the curve.
    """
    return max(MIN_EXCESS, SIGMAS * float(np.sqrt(2 / rows)))


@dataclass(frozen=True)
class Peak:
    """The greatest value of a curve.

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


def peak(curve: Curve) -> Peak:
    """The peak of a positive `curve` of one point or more, against its two ends. Rise and fall are 0 where it is 0."""
    top = int(np.argmax(curve.values))
    height = curve.values[top]
    if height <= 0:
        return Peak(int(curve.steps[top]), 0.0, 0.0)
    return Peak(int(curve.steps[top]), float(1 - curve.values[0] / height), float(1 - curve.values[-1] / height))


@dataclass(frozen=True)
class LevelShift:
    """The change of a curve's level near a step, beyond its trend, and the greatest drop elsewhere.

    Parameters
    ----------
    step
        The step near the one asked for at which the drop is greatest.
    value
        The change there, in the units of the curve; negative for a drop.
    elsewhere
        The most negative change at any other place.
    """

    step: int
    value: float
    elsewhere: float


def level_shift_at(curve: Curve, step: int, *, within: float) -> LevelShift | None:
    """The greatest drop of a curve near a step, beyond its trend.

    Four adjacent windows have a width of 5 % of the curve's span each; the third begins at the step looked at. The
    change is the difference between the means of the two inner windows, minus what the mean slope of the outer pairs
    predicts. It is 0 for a straight line and the height of a jump for a jump. Every place that is two windows away
    from the neighbourhood is measured in the same way, for comparison.

    Parameters
    ----------
    curve
        The curve.
    step
        The step to look at.
    within
        Half the width of the neighbourhood, in training steps.

    Returns
    -------
    LevelShift or None
        None where the neighbourhood has no place with two points in each window, or fewer than 20 other places do.
    """
    width = _SHIFT_WINDOW * curve.span
    if not len(curve) or width <= 0:
        return None
    inner = (curve.steps >= curve.steps[0] + 2 * width) & (curve.steps <= curve.steps[-1] - 2 * width)
    places = curve.steps[inner]
    changes = np.array([_change(curve, float(place), width) for place in places])
    known = np.isfinite(changes)
    places, changes = places[known], changes[known]
    distance = np.abs(places - step)
    near, far = distance <= within, distance > within + 2 * width
    if not near.any() or np.count_nonzero(far) < _MIN_COMPARISONS:
        return None
    best = int(np.argmin(np.where(near, changes, np.inf)))
    return LevelShift(int(places[best]), float(changes[best]), float(changes[far].min()))


def _change(curve: Curve, place: float, width: float) -> float:
    """The change of level at one place; NaN where a window has fewer than two points."""
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
    """Prominence of the second mode of a density, in units of the least prominence that noise does not explain.

    The counts are smoothed by a Gaussian with Silverman's bandwidth h = 0.9 min(σ, IQR/1.34) n^(−1/5) (1986, eq. 3.31)
    with n = `rows`. The least prominence is 5 % of the highest mode, or four standard deviations of the estimate at its
    highest point f, relatively √(1/(2√π n h f)), if that is more.

    Parameters
    ----------
    values
        float64, shape (k,), sorted.
    counts
        float64, shape (k,): how often each value occurs; their sum is not 0.
    rows
        The number of independent observations.

    Returns
    -------
    float
        At least 1 for two modes that noise does not explain; 0 for one mode.
    """
    # `measures.density.count_modes` uses the same bandwidth for another question: it counts all weights as independent
    # and takes a grid of h/4. Sharing its grid (differences of cumulated integer counts in place of a histogram of
    # shares) changes the result by up to 1.3e-15 in 234 of 300 random densities, so both estimates stay.
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
    return float(np.sort(found["prominences"])[-2] / top / max(_MIN_MODE_PROMINENCE, SIGMAS * noise))


def ternary_error(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The best scale s and the share of Σw² that rounding the weights to {−s, 0, +s} leaves as error.

    The share is 0 for weights with two or three such values, 1/9 for a uniform density and 0.19 for a Gaussian
    (Max 1960).

    Parameters
    ----------
    values
        float64, shape (k,).
    counts
        float64, shape (k,): how often each value occurs; their sum is not 0.

    Returns
    -------
    tuple of float
        s, the best of 2,048 scales between 0 and max |w| or 4 rms, and the share. Both are 0 where all weights are 0.
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
    """The largest fall of `values` (n,) below an earlier value, relative to their range; 0 where they never fall."""
    spread = float(np.ptp(values))
    return float(np.max(np.maximum.accumulate(values) - values)) / spread if spread > 0 else 0.0


def cubic_residual(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Residual sum of squares of a cubic fitted to `y` (n,) over `x` (n,).

    A cubic has four parameters, as many as a line with one free break.
    """
    u = (x - x.mean()) / (np.ptp(x) or 1.0)
    fit = np.polynomial.Polynomial.fit(u, y, 3)
    return float(np.sum((y - fit(u)) ** 2))
