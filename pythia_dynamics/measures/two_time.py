"""Statistics of pairs of steps: Gram matrix, displacement, ageing (arXiv 1803.06969), cosine, trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.gram import Gram, displacements

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Exponent", "classical_scaling", "fit_exponent", "lag_table", "two_time"]

_JACKKNIFE_BLOCKS = 10
"""Blocks of waiting steps in the jackknife: ten give nine degrees of freedom for Student's interval."""

LONGEST_LAG = 0.1
"""Longest lag of the fitted exponent as a share of the span; `two_time` gives the reason."""


def lag_table(steps: NDArray[np.int64], squared: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Displacements by waiting step and lag. A lag is a difference of step numbers.

    Parameters
    ----------
    steps
        Step numbers, shape (T',), increasing.
    squared
        Displacement of every pair of steps, shape (T', T').

    Returns
    -------
    tuple of array
        The lags, shape (L,), and the displacements, shape (T', L); NaN if there is no step at this lag. On an uneven
        grid most lags occur once. The 4 T' most frequent lags are kept, the shorter ones among equals: this bounds the
        table, and an even grid, with T' − 1 lags, keeps all.
    """
    length = len(steps)
    first, second = np.triu_indices(length, 1)
    lags, inverse, count = np.unique(steps[second] - steps[first], return_inverse=True, return_counts=True)
    kept = np.sort(np.lexsort((lags, -count))[: 4 * length])
    column_of = np.full(len(lags), -1)
    column_of[kept] = np.arange(len(kept))
    table = np.full((length, len(kept)), np.nan)
    column = column_of[inverse]
    table[first[column >= 0], column[column >= 0]] = squared[first, second][column >= 0]
    return lags[kept], table


@dataclass(frozen=True)
class Exponent:
    """The slope of log displacement over log lag, and the limits of its confidence interval; NaN where not known."""

    value: float
    low: float
    high: float


def fit_exponent(
    lags: NDArray[np.int64], table: NDArray[np.float64], *, longest: float, confidence: float = 0.95
) -> Exponent:
    """Fit the time-averaged displacement by a power of the lag.

    The fit is by least squares in logarithms, with equal weight for equal intervals of log lag. The interval is
    Student's, with the standard error of a jackknife over ten blocks of waiting steps. Displacements over overlapping
    intervals are not independent, so the scatter about the line does not give the error. Only lags that occur in at
    least half of the blocks are used. On an uneven grid the short lags occur in one part of the training only, and a
    fit with them would compare different parts of the training.

    Parameters
    ----------
    lags, table
        As returned by `lag_table`.
    longest
        Longest lag of the fit, in steps. The three shortest usable lags are always used.
    confidence
        Probability of the interval.

    Returns
    -------
    Exponent
        NaN with fewer than two usable lags. The interval is NaN if one of the fits of the jackknife is not possible.
    """
    from scipy.stats import t as student

    blocks = np.array_split(np.arange(len(table) - 1), min(_JACKKNIFE_BLOCKS, max(len(table) - 1, 1)))
    known = np.isfinite(table)
    common = np.sum([known[block].any(axis=0) for block in blocks], axis=0) >= len(blocks) / 2
    used = common & (lags <= max(longest, *lags[common][:3]) if common.any() else False)
    value = _slope(lags[used], table[:, used])
    jackknife = np.array([_slope(lags[used], np.delete(table[:, used], block, axis=0)) for block in blocks])
    groups = len(blocks)
    if groups < 3 or not np.isfinite(jackknife).all():
        return Exponent(value, np.nan, np.nan)
    error = np.sqrt((groups - 1) / groups * np.sum((jackknife - jackknife.mean()) ** 2))
    half_width = float(student.ppf((1 + confidence) / 2, groups - 1) * error)
    return Exponent(value, value - half_width, value + half_width)


def _slope(lags: NDArray[np.int64], table: NDArray[np.float64]) -> float:
    count = np.isfinite(table).sum(axis=0)
    mean = np.nansum(table, axis=0) / np.maximum(count, 1)
    usable = (count > 0) & (mean > 0)
    if np.count_nonzero(usable) < 2:
        return np.nan
    x, y = np.log(lags[usable].astype(np.float64)), np.log(mean[usable])
    weight = np.gradient(x)
    x = x - np.average(x, weights=weight)
    return float(np.sum(weight * x * y) / np.sum(weight * x * x))


def classical_scaling(squared: NDArray[np.float64], components: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components of a trajectory from its squared distances (classical scaling, Torgerson 1952).

    The double-centred distances are the Gram matrix about the mean.

    Parameters
    ----------
    squared
        Squared distances of every pair of steps, shape (T', T').
    components
        C, the number of components.

    Returns
    -------
    tuple of array
        The share of variance of each component, shape (C,), and the coordinates, shape (T', C). The sign is chosen so
        that the first coordinate is not positive. NaN if a distance is not finite.
    """
    length = len(squared)
    if not np.isfinite(squared).all():
        return np.full(components, np.nan), np.full((length, components), np.nan)
    centring = np.eye(length) - 1 / length
    values, vectors = np.linalg.eigh(-0.5 * centring @ squared @ centring)
    values, vectors = np.maximum(values[::-1], 0)[:components], vectors[:, ::-1][:, :components]
    total = np.trace(-0.5 * centring @ squared @ centring)
    signs = np.where(vectors[0] > 0, -1.0, 1.0)
    share = values / total if total > 0 else np.full(len(values), np.nan)
    return share, vectors * signs * np.sqrt(values)


def two_time(
    history: Any,
    *,
    components: int = 5,
    longest: float = LONGEST_LAG,
    confidence: float = 0.95,
    steps: Sequence[int] | None = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Statistics of all pairs of steps: Gram matrix, displacement, ageing, cosine, principal components.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    components : int
        Number of principal components of the trajectory, at most the number of steps.
    longest : float
        The exponent is fitted over lags up to this share of the span of the steps. Of random walks, 90 to 95 % have the
        true exponent in the 95 % interval at a tenth, and 85 % at a quarter.
    confidence : float
        Probability of the confidence interval of the exponent.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step` and `other_step` (the same numbers), NaN at missing steps and at steps with weights that are not
        finite:

        * `gram` K_ts = Σ_k w_tk w_sk and `cosine` K_ts / √(K_tt K_ss);
        * `displacement` Δ(t,s) = Σ_k (w_tk − w_sk)² / N;
        * `ageing` (step, lag): Δ(t_w, t_w + lag) for waiting step t_w; NaN if there is no step at this lag. A lag is a
          difference of step numbers. On an uneven grid the 4 T most frequent lags are kept;
        * `displacement_by_lag`, its mean over waiting steps, and `pairs`, their number. Its attributes have the
          log-log `exponent`, `exponent_low` and `exponent_high` (see `fit_exponent`): 1 for a random walk, 2 for
          ballistic motion;
        * `coordinate` (step, component), the trajectory on its first principal components, and `explained`, their
          shares of variance; `coordinate_null` and `explained_null`, those of a random walk in infinitely many
          dimensions with increments of the measured sizes, whose components are cosines (Antognini & Sohl-Dickstein
          2018).

        The error of a displacement is about 1e-7 of it, also if it is small compared with the weights. If weights
        return to earlier values, the history is read again in float64. The error of K_ts is 1e-7 of √(K_tt K_ss).

    Raises
    ------
    PythiaDynError
        The squares of the weights are not finite.
    """
    return TWO_TIME(
        history, components=components, longest=longest, confidence=confidence, steps=steps, compute=compute
    )


def _finish(history: History, gram: Gram, *, components: int, longest: float, confidence: float) -> xr.Dataset:
    at = gram.indices
    steps = history.steps[at]
    increments, squares = gram.increments(), gram.total[:, 1]
    if not np.isfinite(increments).all():
        if np.isfinite(squares).any():
            raise PythiaDynError(f"the weights of {history.name} are too large for their squares; scale them")
        increments[:], squares[:] = np.nan, np.nan  # no step is finite, so the sweep left out none
    squared = displacements(increments) + 0 * squares  # NaN on the diagonal too
    products = (squares[:, None] + squares - squared) / 2
    norms = np.sqrt(squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = products / norms / norms[:, None]
    lags, table = lag_table(steps, squared / gram.size)
    pairs = np.isfinite(table).sum(axis=0)
    averaged = np.where(pairs > 0, np.nansum(table, axis=0) / np.maximum(pairs, 1), np.nan)
    exponent = fit_exponent(lags, table, longest=longest * float(steps[-1] - steps[0]), confidence=confidence)
    fit = {"exponent": exponent.value, "exponent_low": exponent.low, "exponent_high": exponent.high}
    moved = np.cumsum(np.append(0.0, np.diag(increments)[1:]))
    components = min(components, len(at))
    explained, coordinate = classical_scaling(squared, components)
    explained_null, coordinate_null = classical_scaling(np.abs(moved[:, None] - moved), components)
    by_pair, by_lag, by_component = ("step", "other_step"), ("step", "lag"), ("step", "component")
    walk = "of a random walk with the same step sizes"
    variables = {
        "gram": Variable(products, "Gram matrix of the weights", "weight^2", by_pair),
        "cosine": Variable(cosine, "cosine between the weights", dims=by_pair),
        "displacement": Variable(squared / gram.size, "mean squared displacement", "weight^2", by_pair),
        "ageing": Variable(table, "mean squared displacement after waiting", "weight^2", by_lag),
        "displacement_by_lag": Variable(
            averaged,
            "time-averaged mean squared displacement",
            "weight^2",
            ("lag",),
            {name: value for name, value in fit.items() if np.isfinite(value)},
        ),
        "pairs": Variable(pairs, "pairs of steps at this lag", dims=("lag",)),
        "coordinate": Variable(coordinate, "principal coordinate", "weight", by_component),
        "coordinate_null": Variable(coordinate_null, f"principal coordinate {walk}", "weight", by_component),
        "explained": Variable(explained, "share of variance", dims=("component",)),
        "explained_null": Variable(explained_null, f"share of variance {walk}", dims=("component",)),
    }
    coords = {"lag": lags, "component": np.arange(1, components + 1)}
    return step_dataset(history, variables, at=at, coords=coords)


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    fit = {name: float(value) for name, value in dataset["displacement_by_lag"].attrs.items() if "exponent" in name}
    shares, nulls = (dataset[name].to_numpy()[:1].tolist() for name in ("explained", "explained_null"))
    cosine = dataset["cosine"].dropna("step", how="all").dropna("other_step", how="all")
    last = float(cosine[0, -1]) if cosine.size else np.nan
    parts = []
    if "exponent" in fit:
        interval = f" (95 %: {fit['exponent_low']:.3g} to {fit['exponent_high']:.3g})" if "exponent_low" in fit else ""
        parts.append(f"displacement ∝ lag^{fit['exponent']:.3g}{interval}")
    parts.append(f"cosine of the last weights with the first {last:.4g}" if cosine.size else "no step is known")
    sentence = ", ".join(parts)
    if np.isfinite(shares).any():
        sentence += f"; first principal component {shares[0]:.1%} of the variance, of a random walk's {nulls[0]:.1%}"
    return sentence, {**fit, "cosine_of_ends": last, "explained": shares, "explained_null": nulls}


TWO_TIME = Measure(
    name="two_time",
    title="Two-time displacement",
    source="Baity-Jesi et al., arXiv 1803.06969; Antognini & Sohl-Dickstein, arXiv 1806.08805",
    function=two_time,
    accumulators=(Gram,),
    finish=_finish,
    saves_array=True,
    summarise=_summarise,
)
