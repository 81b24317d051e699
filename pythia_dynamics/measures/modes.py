"""The modes of a density of weights, from exact counts: how many there are, where, and whether noise could make them.

This is the one definition of a mode: the column ``modes``, the detectors of a bifurcation and the claims use it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.measures.dip import SAMPLE_SIZE, grid_spacing
from pythia_dynamics.measures.levels import TWO_SIDED

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "LASTING",
    "LEAST_PROMINENCE",
    "MODES_METHOD",
    "SIGMAS",
    "Estimate",
    "Modes",
    "estimate_at",
    "find_modes",
    "first_lasting",
    "independent_weights",
    "kernel_estimate",
    "modes_at",
    "modes_of",
    "onset_of_modes",
    "quantiles_of",
]

LASTING = 0.1
"""Least share of the steps, at the end, at which a condition holds that lasts."""

LEAST_PROMINENCE = 0.05
"""Least prominence of a mode as a share of the highest one: what is less cannot be seen in Fig 2."""

SIGMAS = 4.0
"""Standard deviations of the estimate that a mode must stand out by. A density has tens of places where noise can make
a mode, and a history 143 steps; a Gaussian exceeds +4 σ with probability 3e-5."""

MODES_METHOD = (
    "local maxima of the Gaussian kernel density estimate with Silverman's bandwidth 0.9 min(σ, IQR/1.34) n^(-1/5) "
    "(Silverman 1986, eq. 3.31), or the distance of neighbouring values on a grid where that is more, that stand out "
    "by at least 5 % of the highest and 4 standard deviations of the estimate (topographic prominence); n is the "
    "number of independent weights"
)

_CELLS = 8
"""Cells of the grid of the estimate per bandwidth: the position of a mode is known to a sixteenth of it."""

_MAX_CELLS = 1 << 14
"""Most cells of the grid of the density estimate; it bounds the time for weights with far outliers."""


@dataclass(frozen=True)
class Modes:
    """The modes of one density.

    Parameters
    ----------
    positions
        Weights at the modes that count, ascending; float64, shape (m,), m ≥ 1.
    heights
        Their heights relative to the highest, shape (m,).
    basins
        Weights at the lowest points between neighbouring modes, shape (m − 1,).
    prominence
        Prominence, relative to the highest mode, of the most significant other one, whether it counts or not; 0 where
        there is no other local maximum.
    deviation
        Standard deviation of that prominence; where it is 0, of the difference of two values at the top.
    places
        Number of places, one bandwidth apart, at which noise could make a mode.
    """

    positions: NDArray[np.float64]
    heights: NDArray[np.float64]
    basins: NDArray[np.float64]
    prominence: float
    deviation: float
    places: int

    @property
    def count(self) -> int:
        """The number of modes."""
        return len(self.positions)

    @property
    def may_hide_another(self) -> bool:
        """Whether there is one mode, and another local maximum whose prominence may be `LEAST_PROMINENCE`: that is in
        its 95 % interval."""
        return (
            self.count == 1 and self.prominence > 0 and self.prominence + TWO_SIDED * self.deviation >= LEAST_PROMINENCE
        )

    @property
    def least(self) -> float:
        """The least prominence that counts: 5 % of the highest mode, or 4 standard deviations where that is more."""
        return max(LEAST_PROMINENCE, SIGMAS * self.deviation)

    @property
    def p(self) -> float:
        """Probability that noise makes a second mode as prominent as this one, at any of its places (Bonferroni)."""
        from scipy.stats import norm

        if self.prominence == 0:
            return 1.0
        return float(min(self.places * norm.sf(self.prominence / self.deviation), 1.0)) if self.deviation else 0.0


@dataclass(frozen=True)
class Estimate:
    """A kernel density estimate on a grid.

    Parameters
    ----------
    grid
        Weights at the middle of the cells, shape (c,).
    share
        Share of the weights in each cell, shape (c,).
    smooth
        The same after smoothing, shape (c,).
    width
        Standard deviation of the kernel, in cells.
    independent
        n, the number of independent weights.
    """

    grid: NDArray[np.float64]
    share: NDArray[np.float64]
    smooth: NDArray[np.float64]
    width: float
    independent: int

    @property
    def noise(self) -> float:
        """Variance of a smoothed value relative to that value: Σ K² / n, with Σ K² = 1/(2√π width) of a Gaussian."""
        return min(1.0, 1 / (2 * math.sqrt(math.pi) * self.width)) / self.independent


def independent_weights(size: int, shape: Sequence[int]) -> int:
    """The number of weights of a step that are taken as independent.

    Weights of one row depend on each other, rows do much less. So it is the number of rows, but at least the number of
    weights that `dip_test` draws, which it takes as independent as well: a small matrix has too few rows to show a
    mode, and two of its weights, drawn at random, seldom share a row.

    Parameters
    ----------
    size
        Number of weights that are used, N.
    shape
        Shape of a frame, rows first. Weights without further dimensions are rows of one weight.
    """
    rows = size // math.prod(shape[1:]) if len(shape) > 1 else size
    return max(rows, min(size, SAMPLE_SIZE))


def kernel_estimate(
    values: NDArray[np.float64], counts: NDArray[Any], independent: int | None = None, *, counted_as: str | None = None
) -> Estimate | None:
    """The kernel density estimate of `MODES_METHOD`; None for weights of one value.

    Each value is shared between the two cells beside it (linear binning), because on a grid of values whole cells would
    make modes of their own.

    Parameters
    ----------
    values, counts, independent, counted_as
        As in `find_modes`.
    """
    from scipy.ndimage import gaussian_filter1d

    present = counts > 0
    values, numbers = values[present], counts[present].astype(np.float64)
    total = numbers.sum()
    independent = round(total) if independent is None else independent
    cumulated = np.append(0, np.cumsum(numbers))
    low, q1, q3, high = quantiles_of(values, cumulated, np.array([0.0005, 0.25, 0.75, 0.9995]))
    mean = float(numbers @ values) / total
    spread = math.sqrt(float(numbers @ (values - mean) ** 2) / total)
    width = 0.9 * (min(spread, (q3 - q1) / 1.34) or spread) * float(independent) ** -0.2
    if width == 0 or len(values) == 1:
        return None
    if counted_as is not None:  # with a narrower kernel every 16-bit value would be a mode
        width = max(width, _spacing(max(abs(low), abs(high)), counted_as))
    width = max(width, grid_spacing(values, counts[present]))
    low, high = low - 4 * width, high + 4 * width
    cells = int(min(max(np.ceil((high - low) / width * _CELLS), 32), _MAX_CELLS))
    grid = np.linspace(low, high, cells)
    at = (values - low) / (grid[1] - low)
    inside = (at >= 0) & (at <= cells - 1)
    left = np.minimum(at[inside].astype(np.int64), cells - 2)
    part, at = numbers[inside] / total, at[inside] - left
    share = np.zeros(cells)
    share += np.bincount(left, part * (1 - at), cells) + np.bincount(left + 1, part * at, cells)
    in_cells = width / (grid[1] - low)
    smooth = gaussian_filter1d(share, in_cells, mode="constant", truncate=6)
    return Estimate(grid, share, smooth, float(in_cells), independent)


def find_modes(
    values: NDArray[np.float64], counts: NDArray[Any], independent: int | None = None, *, counted_as: str | None = None
) -> Modes:
    """The modes of a density, by `MODES_METHOD`.

    Parameters
    ----------
    values
        Distinct finite values, ascending, shape (n,).
    counts
        How often each occurs, shape (n,); at least one of them more than 0. A single value is one mode.
    independent
        Number of independent weights; by default all.
    counted_as
        The dtype to which weights were rounded, ``float16`` or ``bfloat16``; None for values that were not rounded.
    """
    estimate = kernel_estimate(values, counts, independent, counted_as=counted_as)
    if estimate is None:
        only = values[counts > 0][:1].astype(np.float64)
        return Modes(only, np.ones(1), np.empty(0), 0.0, 0.0, 1)
    return modes_of(estimate)


def modes_of(estimate: Estimate) -> Modes:
    """The modes of an `estimate`, by `MODES_METHOD`."""
    from scipy.signal import find_peaks

    smooth = estimate.smooth
    peaks, found = find_peaks(np.concatenate([[0.0], smooth, [0.0]]), prominence=0)
    peaks, heights = peaks - 1, smooth[peaks - 1]
    top = int(np.argmax(heights))
    prominences = found["prominences"]
    # A prominence is the difference of two smoothed values, at the mode and at the saddle beside it.
    deviations = np.sqrt((2 * heights - prominences) * estimate.noise)
    counted = (prominences >= LEAST_PROMINENCE * heights[top]) & (prominences >= SIGMAS * deviations)
    counted[top] = True
    others = np.delete(np.arange(len(peaks)), top)
    prominence, deviation = 0.0, math.sqrt(2 * estimate.noise / heights[top])
    if len(others):
        # the one that counts most: what it stands out by, in units of what it would need
        needed = np.maximum(LEAST_PROMINENCE * heights[top], SIGMAS * deviations[others])
        second = others[np.argmax(prominences[others] / needed)]
        prominence, deviation = (float(x / heights[top]) for x in (prominences[second], deviations[second]))
    places = peaks[counted]
    basins = [a + int(np.argmin(smooth[a:b])) for a, b in itertools.pairwise(places)]
    bandwidths = max(round(len(smooth) / estimate.width), 1)
    return Modes(
        estimate.grid[places],
        heights[counted] / heights[top],
        estimate.grid[np.array(basins, dtype=np.int64)],
        prominence,
        deviation,
        bandwidths,
    )


def estimate_at(density: xr.Dataset, index: int) -> Estimate | None:
    """The kernel density estimate of one step of `pythia_dynamics.density`; None where all weights have one value.

    Parameters
    ----------
    density
        The dataset.
    index
        Index of a step that has a number of modes: it is not missing, and all weights are finite.
    """
    return kernel_estimate(*_counts_at(density, index), counted_as=str(density.attrs["counted_as"]))


def modes_at(density: xr.Dataset, index: int) -> Modes:
    """The modes of one step of `pythia_dynamics.density`.

    Parameters
    ----------
    density, index
        As in `estimate_at`.
    """
    return find_modes(*_counts_at(density, index), counted_as=str(density.attrs["counted_as"]))


def _counts_at(density: xr.Dataset, index: int) -> tuple[NDArray[np.float64], NDArray[Any], int]:
    """Values, their counts at a step, and the number of independent weights."""
    counts = density["counts"].transpose("step", "value")[index].to_numpy()
    return density["value"].to_numpy(), counts, int(density.attrs["independent_weights"])


def onset_of_modes(density: xr.Dataset) -> int | None:
    """The first step from which the density has two modes or more at every step to the end; None where there is none.

    They must last for a tenth of the steps (`first_lasting`). Where it is the first step, the density did not turn
    bimodal: it was.

    Parameters
    ----------
    density
        The dataset of `pythia_dynamics.density`, or the table of its moments. Steps without a number of modes are left
        out.
    """
    modes = density["modes"].to_numpy().astype(np.float64)
    known = np.isfinite(modes)
    return first_lasting(density["step"].to_numpy().astype(np.int64)[known], modes[known] >= 2)


def _spacing(value: float, counted_as: str) -> float:
    """The distance from a positive 16-bit value to the next greater one, or from the greatest to the next smaller."""
    if counted_as == "bfloat16":
        return float(np.spacing(np.float32(value))) * 2.0**16
    above = float(np.spacing(np.half(value)))  # not finite at the greatest float16
    return above if np.isfinite(above) else value - float(np.nextafter(np.half(value), np.half(0)))


def quantiles_of(
    values: NDArray[np.float64], cumulated: NDArray[Any], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The least value whose cumulative count reaches each level; for level 0 the least value.

    Parameters
    ----------
    values
        Distinct values, ascending, shape (n,).
    cumulated
        Their cumulative counts, the first 0, shape (n + 1,).
    levels
        Levels between 0 and 1.
    """
    ranks = np.maximum(np.ceil(levels * cumulated[-1]), 1).astype(np.int64)
    indices = np.searchsorted(cumulated[1:], ranks)
    chosen: NDArray[np.float64] = values[indices]
    return chosen


def first_lasting(steps: NDArray[np.int64], holds: NDArray[np.bool_], *, min_share: float = LASTING) -> int | None:
    """The first step from which a condition holds at every step to the end, or None.

    Parameters
    ----------
    steps
        Step numbers, shape (n,).
    holds
        Whether the condition holds at each step, shape (n,).
    min_share
        The condition must hold at the last `min_share` · n steps at least, and at the last three, so that one noisy
        value at the end is not enough.
    """
    failing = np.flatnonzero(~holds)
    start = int(failing[-1]) + 1 if len(failing) else 0
    lasting = len(steps) - start
    return int(steps[start]) if lasting >= max(3, min_share * len(steps)) else None
