"""The spread of several runs of one training: their band, between-run and within-run variance, and where it is from.

Every function takes a curve as an array over `run` and `step`, NaN where a run has no record, and reads no file. A
curve that is positive everywhere is compared on its logarithm, so that a spread is relative.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError

__all__ = [
    "CENTRAL",
    "END_RECORDS",
    "LEVEL",
    "WINDOW",
    "Origin",
    "Variances",
    "band",
    "curves_of",
    "data_or_weights",
    "scaled",
    "tolerance_of",
    "variances",
]

_Array = NDArray[np.float64]

CENTRAL = (0.1, 0.9)
"""Quantiles of the band: the central 80 % of the runs. Of nine seeds it leaves out about one at each side."""

LEVEL = 0.05
"""Level of intervals, and of the decision between data and weights where neither makes the difference."""

END_RECORDS = 3
"""Records whose mean is the end of a curve, and the fewest over which a departure must last. The mean of three takes
out most of the noise of one record, and is short beside the 143 or more records of a training."""

WINDOW = 7
"""Records of a local parabola. Fewer leave no degrees of freedom for the noise, more smooth over the fall of a
perplexity, which takes about ten of the published records."""

_ROUNDING = 1e-9
"""Differences between runs below this part of their values are rounding of sums in float32 and of CSV, no spread."""

_MIN_EACH = 3
"""Fewest data seeds, and weight seeds, whose variances are compared: of two, a variance has one degree of freedom, and
the interval of the ratio goes over a factor of 400,000."""

_MAX_DIVISIONS = 20_000
"""Most divisions that are all compared: those of 8 and 8 runs are 12,870. The seed of random ones is fixed."""


def band(values: xr.DataArray) -> xr.Dataset:
    """The median and the central 80 % of the runs at each step.

    Parameters
    ----------
    values
        A curve over `run` and `step`; NaN is no record.

    Returns
    -------
    xarray.Dataset
        Over `step`: ``median``, ``low`` and ``high`` (the quantiles of `CENTRAL`, linear between order statistics),
        and ``runs``, the number of runs with a record. NaN where no run has one.
    """
    curve = curves_of(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step without a record has NaN
        low, median, high = np.nanquantile(curve, [CENTRAL[0], 0.5, CENTRAL[1]], axis=0)
    label = str(values.attrs.get("long_name", values.name or "values"))
    units = {"units": values.attrs["units"]} if "units" in values.attrs else {}
    share = f"{CENTRAL[1] - CENTRAL[0]:.0%} of the runs"
    named = {
        "median": (median, f"{label}, median over runs"),
        "low": (low, f"{label}, lower end of the central {share}"),
        "high": (high, f"{label}, upper end of the central {share}"),
    }
    found = {name: ("step", column, {"long_name": text, **units}) for name, (column, text) in named.items()}
    counts = ("step", np.isfinite(curve).sum(axis=0), {"long_name": "runs with a record", "units": "1"})
    return xr.Dataset({**found, "runs": counts}, {"step": values["step"]})


@dataclass(frozen=True)
class Variances:
    """How a curve varies between runs and within them.

    Parameters
    ----------
    between
        σ_b², the variance between runs of the smooth curves, mean over the steps.
    within
        σ_w², the variance of a record about the smooth curve of its run.
    icc
        The intraclass correlation σ_b²/(σ_b² + σ_w²): of two records of one run at a step, if there were two; the share
        of the variance about the mean curve that is the run's. NaN where not known.
    runs
        Number of runs with at least `WINDOW` records.
    logarithmic
        Whether the variances are of the natural logarithm, so that their roots are relative.
    reason
        Why they are not known; empty if they are.
    """

    between: float
    within: float
    icc: float
    runs: int
    logarithmic: bool
    reason: str = ""


def variances(values: xr.DataArray) -> Variances:
    """Between-run and within-run variance of a curve.

    Each run is smoothed by local parabolas over `WINDOW` records (Savitzky & Golay 1964), f = H y. With the residuals
    e = y − f, σ_w² = Σ e² / Σ tr (I − H)ᵀ(I − H), sums over runs. The variance of the smooth values over runs at a
    step, less the part of it that is noise, σ_w² Σ_j H_tj², is the variance between runs; its mean over the steps is
    σ_b², and not below 0. The ratio is ICC(1) of Shrout & Fleiss 1979, in components of variance.

    Parameters
    ----------
    values
        A curve over `run` and `step`; NaN is no record. Parabolas are over the number of the record, because steps may
        be spaced evenly, by powers of two or both.

    Returns
    -------
    Variances
        NaN with a reason for fewer than two runs with `WINDOW` records at common steps, or without any variance.
    """
    curve, logarithmic = scaled(values)
    known = np.isfinite(curve)
    chosen = np.flatnonzero(known.sum(axis=1) >= WINDOW)
    if len(chosen) < 2:
        reason = f"{len(chosen)} of {len(curve)} runs have {WINDOW} records or more; two are needed"
        return Variances(np.nan, np.nan, np.nan, len(chosen), logarithmic, reason)
    smooth, noise = np.full((2, len(chosen), curve.shape[1]), np.nan)
    squares, freedom = 0.0, 0.0
    for row, run in enumerate(chosen):
        at = known[run]
        hat = _smoother(int(at.sum()))
        smooth[row, at] = hat @ curve[run, at]
        noise[row, at] = (hat**2).sum(axis=1)
        squares += float(((curve[run, at] - smooth[row, at]) ** 2).sum())
        freedom += float(((np.eye(len(hat)) - hat) ** 2).sum())
    common = np.isfinite(smooth).sum(axis=0) >= 2
    if not common.any():
        return Variances(np.nan, np.nan, np.nan, len(chosen), logarithmic, "no two runs have a step in common")
    within = squares / freedom
    spread = np.nanvar(smooth[:, common], axis=0, ddof=1) - within * np.nanmean(noise[:, common], axis=0)
    between = max(float(spread.mean()), 0.0)
    total = between + within
    shared = curve[chosen][:, common]
    if (np.nanmax(shared, axis=0) - np.nanmin(shared, axis=0)).max() <= tolerance_of(curve) or total == 0:
        return Variances(between, within, np.nan, len(chosen), logarithmic, "the runs are equal")
    return Variances(between, within, between / total, len(chosen), logarithmic)


@dataclass(frozen=True)
class Origin:
    """Which of the two makes runs differ: the order of the data, or the initial weights.

    Parameters
    ----------
    answer
        ``data`` or ``weights``, whose variance is the greater one; ``undecided``.
    ratio
        Variance among the data seeds over that among the weight seeds.
    low, high
        The 95 % interval of the ratio, for normal ends.
    p
        p-value of the permutation test that both are equal, two-sided.
    data, weights
        Number of runs of each.
    steps
        The last common steps that were used.
    reason
        Why it is undecided; empty if it is not.
    """

    answer: Literal["data", "weights", "undecided"]
    ratio: float
    low: float
    high: float
    p: float
    data: int
    weights: int
    steps: tuple[int, ...]
    reason: str = ""


def data_or_weights(values: xr.DataArray, kinds: Sequence[str]) -> Origin:
    """Whether runs differ more if only the order of the data is changed, or if only the initial weights are.

    The end of a run is the mean of its last `END_RECORDS` records at steps that all these runs have; s²_d and s²_w are
    the variances of the ends among the data seeds and among the weight seeds. |ln s²_d/s²_w| is compared with that of
    all ways to divide the ends, each less the mean of its own kind, into two groups of these sizes (a permutation test:
    the F test is not used, because for ends with heavy tails it is wrong up to four times as often as it says). The
    interval of the ratio is that of F(n_d − 1, n_w − 1). Three runs of each can be divided in 20 ways, so that p is at
    least 0.1: they are always undecided.

    Parameters
    ----------
    values
        A curve over `run` and `step`; NaN is no record.
    kinds
        For each run ``data`` or ``weight``: what is random in it. Runs of other kinds are left out.

    Raises
    ------
    PythiaDynError
        For another number of kinds than of runs.
    """
    from scipy.stats import f

    if len(kinds) != values.sizes["run"]:
        raise PythiaDynError(f"there must be a kind for each run; got {len(kinds)} for {values.sizes['run']} runs")
    curve, _ = scaled(values)
    kind = np.where(np.isfinite(curve).any(axis=1), np.asarray(kinds, dtype=object), "")
    rows = [np.flatnonzero(kind == name) for name in ("data", "weight")]
    counts = len(rows[0]), len(rows[1])
    unknown = Origin("undecided", np.nan, np.nan, np.nan, np.nan, *counts, ())
    if min(counts) < _MIN_EACH:
        few = f"{counts[0]} data seeds and {counts[1]} weight seeds; {_MIN_EACH} of each are needed"
        return replace(unknown, reason=few)
    common = np.flatnonzero(np.isfinite(curve[np.concatenate(rows)]).all(axis=0))[-END_RECORDS:]
    if not common.size:
        return replace(unknown, reason="no step is common to the data seeds and the weight seeds")
    ends = [curve[np.ix_(row, common)].mean(axis=1) for row in rows]
    unknown = replace(unknown, steps=tuple(values["step"].to_numpy()[common].tolist()))
    spread = [float(values.var(ddof=1)) for values in ends]
    if min(spread) <= tolerance_of(curve) ** 2:  # copies of one run, most likely
        return replace(unknown, reason=f"the {'data' if spread[0] <= spread[1] else 'weight'} seeds are equal")
    ratio, freedom = spread[0] / spread[1], (counts[0] - 1, counts[1] - 1)
    low, high = (float(ratio / f.ppf(level, *freedom)) for level in (1 - LEVEL / 2, LEVEL / 2))
    found = replace(unknown, ratio=ratio, low=low, high=high, p=_permuted(ends[0], ends[1]))
    if found.p > LEVEL:
        return replace(found, reason=f"as unequal in {found.p:.2g} of all ways to divide these runs")
    return replace(found, answer="data" if ratio > 1 else "weights")


def _permuted(one: _Array, other: _Array) -> float:
    """p-value of the ratio of two variances, by division of the values, each less the mean of its group, anew."""
    left = np.concatenate([one - one.mean(), other - other.mean()])
    if comb(len(left), len(one)) <= _MAX_DIVISIONS:
        chosen = np.array(list(combinations(range(len(left)), len(one))))
    else:
        generator = np.random.default_rng(0)
        random = [generator.permutation(len(left))[: len(one)] for _ in range(_MAX_DIVISIONS - 1)]
        chosen = np.array([np.arange(len(one)), *random])
    first = np.zeros((len(chosen), len(left)), bool)
    np.put_along_axis(first, chosen, values=True, axis=1)
    rows = np.broadcast_to(left, first.shape)
    variance = [rows[place].reshape(len(chosen), -1).var(axis=1, ddof=1) for place in (first, ~first)]
    with np.errstate(divide="ignore"):
        sizes = np.abs(np.log(variance[0]) - np.log(variance[1]))
    return float(np.mean(sizes >= sizes[0] * (1 - _ROUNDING)))


def curves_of(values: xr.DataArray) -> _Array:
    """The curves as float64 of shape (run, step), with NaN for what is not finite.

    Parameters
    ----------
    values
        A curve over `run` and `step`.

    Raises
    ------
    PythiaDynError
        For values over other dimensions.
    """
    if set(values.dims) != {"run", "step"}:
        raise PythiaDynError(f"a curve of several runs is over run and step, not {', '.join(map(str, values.dims))}")
    curve = values.transpose("run", "step").to_numpy().astype(np.float64)
    return np.where(np.isfinite(curve), curve, np.nan)


def scaled(values: xr.DataArray) -> tuple[_Array, bool]:
    """The curves on the scale on which runs are compared, and whether that is the natural logarithm.

    Parameters
    ----------
    values
        A curve over `run` and `step`. Logarithms are taken if all values that are finite are positive.
    """
    curve = curves_of(values)
    logarithmic = bool(np.isfinite(curve).any() and (curve[np.isfinite(curve)] > 0).all())
    return (np.log(curve) if logarithmic else curve), logarithmic


def tolerance_of(curve: _Array) -> float:
    """The difference up to which two values of curves are equal.

    Parameters
    ----------
    curve
        The curves as `scaled` returns them.
    """
    known = curve[np.isfinite(curve)]
    return _ROUNDING * max(1.0, float(np.abs(known).max(initial=0.0)))


def _smoother(count: int) -> _Array:
    """The matrix H of local parabolas over `WINDOW` records, shape (count, count); at the ends, of the outer window."""
    hat = np.zeros((count, count))
    for record in range(count):
        first = min(max(record - WINDOW // 2, 0), count - WINDOW)
        powers = np.vander(np.arange(first, first + WINDOW, dtype=np.float64) - record, 3, increasing=True)
        hat[record, first : first + WINDOW] = np.linalg.pinv(powers)[0]
    return hat
