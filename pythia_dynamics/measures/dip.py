"""Hartigan's dip test of the density at every step: whether it has more than one mode.

J. A. Hartigan and P. M. Hartigan, The dip test of unimodality, Annals of Statistics 13 (1985), 70-84.
"""

# The annotations of Numba are incomplete:
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.compiled import kernel
from pythia_dynamics.sweep.counts import code_values

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SAMPLE_SIZE", "TAIL_PROBABILITIES", "dip", "dip_p", "dip_test", "grid_spacing"]

SAMPLE_SIZE = 2000
"""Number of weights that are drawn at a step, at most. The table of `dip_p` is for samples of this size."""

TAIL_PROBABILITIES = (
    *(0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5),
    *(0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002),
    *(0.001, 0.0005, 0.0002, 0.0001, 0.00005, 0.00002, 0.00001),
)
"""p-values of the table: the share of a million uniform samples whose dip is greater than each of `_DIP_QUANTILES`."""

_FEWEST_ON_A_GRID = 8
"""Weights with at most as many values, 3 bits, are taken as quantised, not as rounded."""

_LEAST_SHARED = 5
"""Least number of weights with the value of the middle weight, on a grid. Weights that are drawn from a continuous
density and rounded to a fine grid share few values, and their distances are those of the sample."""

_DIP_QUANTILES = (
    *(0.004825, 0.005422, 0.005663, 0.006068, 0.006478, 0.007039, 0.007494, 0.007921, 0.008354),
    *(0.008826, 0.009367, 0.010058, 0.011100, 0.012041, 0.013155, 0.013924, 0.014661, 0.015578),
    *(0.016223, 0.016861, 0.017667, 0.018188, 0.018732, 0.019432, 0.019847),
)
"""Dips at these p-values, computed by benchmarks/dip_table.py."""


def dip_test(density: xr.Dataset) -> xr.Dataset:
    """The dip test of 2,000 weights of every step, or of all weights if there are fewer.

    The weights are drawn from the exact counts. The step number is the seed of the draw, so that the errors of
    different steps are independent. Each weight is moved at random within its rounding interval, or by up to half the
    spacing of a coarser grid (`grid_spacing`), because equal values would look like modes.

    Parameters
    ----------
    density
        The dataset of `pythia_dynamics.density`.

    Returns
    -------
    xarray.Dataset
        Over `step`: `dip`, the statistic, and `dip_p`, the p-value of the hypothesis of one mode. NaN at missing steps
        and at steps with weights that are not finite. If all weights of a step have one value: 0 and 1.
    """
    import xarray as xr

    steps, values = density["step"].to_numpy(), density["value"].to_numpy()
    table = density["counts"].transpose("step", "value").to_numpy()
    low, high = _rounding_intervals(values, density.attrs["counted_as"])
    statistic, p = np.full((2, len(steps)), np.nan)
    for t in np.flatnonzero((density["nonfinite"].to_numpy() == 0) & table.any(axis=1)):
        cumulated = np.cumsum(table[t], dtype=np.int64)
        if len(np.unique(values[table[t] > 0])) == 1:
            statistic[t], p[t] = 0, 1
            continue
        rng = np.random.default_rng(abs(int(steps[t])))
        size = min(SAMPLE_SIZE, int(cumulated[-1]))
        drawn = np.sort(rng.choice(cumulated[-1], size, replace=False, shuffle=False))
        indices = np.searchsorted(cumulated, drawn, side="right")
        half = grid_spacing(values, table[t]) / 2
        lower, upper = (np.minimum(low, values - half)[indices], np.maximum(high, values + half)[indices])
        statistic[t] = dip(lower + (upper - lower) * rng.random(size))
        p[t] = dip_p(statistic[t], size)
    return xr.Dataset(
        {
            "dip": ("step", statistic, {"long_name": "Hartigan's dip statistic of a subsample", "units": "1"}),
            "dip_p": ("step", p, {"long_name": "p-value of the dip: the density has one mode", "units": "1"}),
        },
        coords={"step": steps},
    )


def grid_spacing(values: NDArray[np.float64], counts: NDArray[Any]) -> float:
    """The distance of neighbouring values where weights lie on a grid; 0 where they do not.

    Weights may have been rounded before: bfloat16 that is stored as float16, or 8-bit integers times a scale. On a grid
    the middle weight shares its value with others, and the values are many: weights that take eight values or fewer
    are quantised, and those values are modes.

    Parameters
    ----------
    values
        Distinct finite values, ascending, shape (n,).
    counts
        How often each occurs, shape (n,).

    Returns
    -------
    float
        The median, over weights, of the distance from a value that occurs to the next one that does.
    """
    present = counts > 0
    values, numbers = values[present], counts[present].astype(np.float64)
    if len(values) <= _FEWEST_ON_A_GRID or _weighted_median(numbers, numbers) < _LEAST_SHARED:
        return 0.0
    return _weighted_median(np.diff(values), numbers[:-1])


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    cumulated = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(cumulated, cumulated[-1] / 2)]])


def _rounding_intervals(values: NDArray[np.float64], dtype: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper limit of the numbers that round to each value: half-way to the next code below and above."""
    codes = np.unique(code_values(dtype)[np.isfinite(code_values(dtype))])
    limits = np.concatenate([codes[:1], (codes[1:] + codes[:-1]) / 2, codes[-1:]])
    indices = np.searchsorted(codes, values)
    return limits[indices], limits[indices + 1]


def dip(sample: NDArray[Any]) -> float:
    """The dip statistic of a sample: the distance of its distribution function from the nearest unimodal one.

    The distance of two distribution functions is their greatest difference. The dip is at least 1/(2n). It is 1/4 for
    two separate modes of equal weight. k equal numbers raise it to at least k/(2n).

    Parameters
    ----------
    sample
        Finite numbers, shape (n,), in any order.
    """
    values, counts = np.unique(np.asarray(sample, dtype=np.float64), return_counts=True)
    return float(_dip(values, np.append(0.0, np.cumsum(counts))))


def dip_p(statistic: float, size: int = SAMPLE_SIZE) -> float:
    """The p-value of the hypothesis of one mode: the share of uniform samples of that size whose dip is greater.

    log p is interpolated between the quantiles of a million simulated samples of 2,000 numbers. A dip beyond the table
    gets 1e-5, its least p. For another size the dip is scaled by √n; its scaled distribution hardly depends on n.

    Parameters
    ----------
    statistic
        The dip.
    size
        n, the number of values in the sample.
    """
    return float(np.exp(np.interp(statistic * np.sqrt(size / SAMPLE_SIZE), _DIP_QUANTILES, np.log(TAIL_PROBABILITIES))))


@kernel
def _dip(x: Any, c: Any) -> Any:
    """The dip by the algorithm of section 3 of the paper, from distinct sorted values and their cumulative counts.

    The distribution function rises at x_i from c_i to c_{i+1}. `minorant` has the points where its greatest convex
    minorant touches the lower corners (x_i, c_i), from left to right. `majorant` has the points where its least concave
    majorant touches the upper corners (x_i, c_{i+1}), from right to left. The interval of the mode shrinks until two
    conditions hold: inside, minorant and majorant differ by at most `depth`; outside, the distribution function
    differs from them by at most `depth`.
    """
    n = x.size
    minorant, majorant = np.empty(n, np.int64), np.empty(n, np.int64)
    low, high, depth = 0, n - 1, np.max(np.diff(c))
    while True:
        lower, upper = _contacts(x, c[:-1], low, high, minorant), _contacts(x, c[1:], high, low, majorant)
        gap, left, right = -1.0, low, high
        j = upper - 1
        for i in range(lower):  # at the points of the minorant
            at = minorant[i]
            while j > 1 and majorant[j - 1] <= at:
                j -= 1
            beyond = majorant[max(j - 1, 0)]
            distance = _line_height(x, c[1:], majorant[j], beyond, at) - c[at]
            if distance > gap:
                gap, left, right = distance, at, beyond
        i = 0
        for j in range(upper - 1, -1, -1):  # at the points of the majorant
            at = majorant[j]
            while i < lower - 2 and minorant[i + 1] < at:
                i += 1
            distance = c[at + 1] - _line_height(x, c[:-1], minorant[i], minorant[min(i + 1, lower - 1)], at)
            if distance >= gap:
                gap, left, right = distance, minorant[i], at
        if gap <= depth:
            break
        for i in range(lower - 1):
            a, b = minorant[i], minorant[i + 1]
            slope = (c[b] - c[a]) / (x[b] - x[a])
            for at in range(a, min(b, left) + 1):
                depth = max(depth, c[at + 1] - c[a] - slope * (x[at] - x[a]))
        for j in range(upper - 1):
            a, b = majorant[j], majorant[j + 1]
            slope = (c[a + 1] - c[b + 1]) / (x[a] - x[b])
            for at in range(max(b, right), a + 1):
                depth = max(depth, c[a + 1] - slope * (x[a] - x[at]) - c[at])
        # Smaller than before: at either end of it the two differ by one rise at most, which is no gap above `depth`.
        low, high = left, right
    return depth / (2 * c[-1])


@kernel
def _contacts(x: Any, y: Any, start: int, stop: int, out: Any) -> int:
    """Write the corners of the convex hull of (x_i, y_i) from `start` to `stop` to `out`, and return their number.

    From left to right they are those of the convex minorant, from right to left those of the concave majorant.
    """
    count = 0
    direction = 1 if stop >= start else -1
    for i in range(start, stop + direction, direction):
        while count > 1:
            a, b = out[count - 2], out[count - 1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            count -= 1
        out[count] = i
        count += 1
    return count


@kernel
def _line_height(x: Any, y: Any, a: int, b: int, at: int) -> Any:
    """The value at x_at of the line through the points a and b."""
    if a == b:
        return float(y[a])
    return y[a] + (y[b] - y[a]) * (x[at] - x[a]) / (x[b] - x[a])
