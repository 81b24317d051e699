"""Hartigan's dip test of the density at every step: is there more than one mode?

J. A. Hartigan and P. M. Hartigan, The dip test of unimodality, Annals of Statistics 13 (1985), 70-84.
"""

# Numba's own annotations stop half-way:
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pythia_dynamics.sweep.counts import code_values

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SAMPLE", "TAIL", "dip", "dip_p", "dip_test"]

SAMPLE = 2000
"""The most weights of a step that are drawn; `dip_p` knows samples of that size."""

TAIL = (
    *(0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5),
    *(0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002),
    *(0.001, 0.0005, 0.0002, 0.0001, 0.00005, 0.00002, 0.00001),
)
"""Of a million uniform samples, the share whose dip is greater than each of `_DIPS` (benchmarks/dip_table.py)."""

_DIPS = (
    *(0.004825, 0.005422, 0.005663, 0.006068, 0.006478, 0.007039, 0.007494, 0.007921, 0.008354),
    *(0.008826, 0.009367, 0.010058, 0.011100, 0.012041, 0.013155, 0.013924, 0.014661, 0.015578),
    *(0.016223, 0.016861, 0.017667, 0.018188, 0.018732, 0.019432, 0.019847),
)


def dip_test(density: xr.Dataset) -> xr.Dataset:
    """The dip of 2,000 weights of every step of a dataset of `pythia_dynamics.density`, from its exact counts.

    Returns a dataset over `step` of `dip`, the statistic, and `dip_p`, the p-value of the density having one mode. All
    weights are taken where there are fewer. The step number is the seed of the draw, so that every step errs on its
    own. Each weight is moved at random within its rounding: equal values would count as modes. NaN where the density
    is; where all weights have one value: 0 and 1.
    """
    import xarray as xr

    steps, values = density["step"].to_numpy(), density["value"].to_numpy()
    table = density["counts"].transpose("step", "value").to_numpy()
    low, high = _cells(values, density.attrs["counted_as"])
    statistic, p = np.full((2, len(steps)), np.nan)
    for t in np.flatnonzero((density["nonfinite"].to_numpy() == 0) & table.any(axis=1)):
        cumulated = np.cumsum(table[t], dtype=np.int64)
        if len(np.unique(values[table[t] > 0])) == 1:
            statistic[t], p[t] = 0, 1
            continue
        rng = np.random.default_rng(abs(int(steps[t])))
        size = min(SAMPLE, int(cumulated[-1]))
        drawn = np.sort(rng.choice(cumulated[-1], size, replace=False, shuffle=False))
        places = np.searchsorted(cumulated, drawn, side="right")
        statistic[t] = dip(low[places] + (high[places] - low[places]) * rng.random(size))
        p[t] = dip_p(statistic[t], size)
    return xr.Dataset(
        {
            "dip": ("step", statistic, {"long_name": "Hartigan's dip statistic of a subsample", "units": "1"}),
            "dip_p": ("step", p, {"long_name": "p-value of the dip: the density has one mode", "units": "1"}),
        },
        coords={"step": steps},
    )


def _cells(values: NDArray[np.float64], dtype: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is rounded to each of the values: from half-way to the code below to half-way to the one above."""
    codes = np.unique(code_values(dtype)[np.isfinite(code_values(dtype))])
    borders = np.concatenate([codes[:1], (codes[1:] + codes[:-1]) / 2, codes[-1:]])
    places = np.searchsorted(codes, values)
    return borders[places], borders[places + 1]


def dip(sample: NDArray[Any]) -> float:
    """The dip statistic of a sample of finite numbers: the least, over all distributions that have a density of one
    mode, of the greatest distance between the distribution and the sample's.

    It is at least 1/(2n), and 1/4 for two modes that share nothing. An atom of k equal numbers costs k/(2n).
    """
    values, counts = np.unique(np.asarray(sample, dtype=np.float64), return_counts=True)
    return float(_dip(values, np.append(0.0, np.cumsum(counts))))


def dip_p(statistic: float, size: int = SAMPLE) -> float:
    """The share of uniform samples of that size whose dip is greater: the p-value of there being one mode.

    Known for samples of 2,000; of others the dip is scaled by √n, on which its distribution hardly depends. Between the
    percentiles of a million simulated samples log p is interpolated; a dip greater than nearly all of them gets 1e-5,
    the least that is known.
    """
    return float(np.exp(np.interp(statistic * np.sqrt(size / SAMPLE), _DIPS, np.log(TAIL))))


@njit(cache=True, nogil=True)
def _dip(x: Any, c: Any) -> Any:
    """The dip by the algorithm of the paper's section 3, of distinct sorted values and their cumulated counts.

    The distribution steps at x_i from c_i to c_{i+1}. `minorant` has the contacts of its greatest convex minorant with
    the lower corners (x_i, c_i), from the left; `majorant` those of its least concave majorant with the upper corners
    (x_i, c_{i+1}), from the right. In the interval of the mode the two may be as far apart as `depth`, and beyond it
    the distribution from the one and the other; the interval shrinks until both hold.
    """
    n = x.size
    minorant, majorant = np.empty(n, np.int64), np.empty(n, np.int64)
    low, high, depth = 0, n - 1, np.max(np.diff(c))
    while True:
        lower, upper = _contacts(x, c[:-1], low, high, minorant), _contacts(x, c[1:], high, low, majorant)
        gap, left, right = -1.0, low, high
        j = upper - 1
        for i in range(lower):  # at the contacts of the minorant
            at = minorant[i]
            while j > 1 and majorant[j - 1] <= at:
                j -= 1
            beyond = majorant[max(j - 1, 0)]
            distance = _line(x, c[1:], majorant[j], beyond, at) - c[at]
            if distance > gap:
                gap, left, right = distance, at, beyond
        i = 0
        for j in range(upper - 1, -1, -1):  # at those of the majorant
            at = majorant[j]
            while i < lower - 2 and minorant[i + 1] < at:
                i += 1
            distance = c[at + 1] - _line(x, c[:-1], minorant[i], minorant[min(i + 1, lower - 1)], at)
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
        if left == low and right == high:
            break
        low, high = left, right
    return depth / (2 * c[-1])


@njit(cache=True, nogil=True)
def _contacts(x: Any, y: Any, start: int, stop: int, out: Any) -> int:
    """The corners of the convex hull of (x_i, y_i) from `start` to `stop`: from the left those of the convex minorant,
    from the right those of the concave majorant. Returns how many there are in `out`."""
    count = 0
    way = 1 if stop >= start else -1
    for i in range(start, stop + way, way):
        while count > 1:
            a, b = out[count - 2], out[count - 1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            count -= 1
        out[count] = i
        count += 1
    return count


@njit(cache=True, nogil=True)
def _line(x: Any, y: Any, a: int, b: int, at: int) -> Any:
    """The height at x_at of the line through the corners a and b."""
    if a == b:
        return float(y[a])
    return y[a] + (y[b] - y[a]) * (x[at] - x[a]) / (x[b] - x[a])
