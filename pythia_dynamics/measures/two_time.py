"""What every pair of steps says: Gram matrix, displacement, ageing (arXiv 1803.06969), cosine, trajectory."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.gram import Gram, displacements
from pythia_dynamics.sweep.sweep import sweep

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Exponent", "classical_scaling", "fit_exponent", "from_gram", "lag_table", "two_time"]


def two_time(
    history: Any,
    *,
    components: int = 5,
    longest: float = 0.1,
    confidence: float = 0.95,
    drop_padding: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """What every pair of steps says: Gram matrix, displacement, ageing, cosine, trajectory PCA.

    Returns a dataset over `step` and `other_step` (the same numbers):

    * `gram` K_ts = Σ_k w_tk w_sk and `cosine` K_ts / √(K_tt K_ss);
    * `displacement` Δ(t,s) = Σ_k (w_tk − w_sk)² / N;
    * `ageing` (step, lag): Δ(t_w, t_w + lag) for waiting step t_w, NaN where there is no step that far ahead. A lag is
      a difference of step numbers; of those on an uneven grid the 4 T most frequent are kept;
    * `displacement_by_lag`, its mean over waiting steps, and `pairs`, how many there were. Its attributes hold the
      log-log `exponent` over lags up to `longest` of the whole span (at a tenth the interval covers 90 to 95 % of
      random walks, at a quarter 85 %), with `exponent_low` and `exponent_high` (see
      `fit_exponent`): 1 for a random walk, 2 for ballistic motion;
    * `coordinate` (step, component), the trajectory on its first principal components, and `explained`, their shares
      of variance; beside them `coordinate_null` and `explained_null`, those of a walk of infinitely many dimensions
      with independent increments of the measured sizes, whose components are cosines (Antognini & Sohl-Dickstein 2018).

    Relative errors: about 1e-7 of a displacement, however small it is beside the weights (where the weights come back
    to where they have been, the history is read once more, in float64), and of √(K_tt K_ss). A CUDA `device` computes
    in float64. Missing steps, and those with weights that are not finite, are NaN.
    """
    history = as_history(history)
    warn_missing(history)
    (gram,) = sweep(
        history,
        [Gram(device=device)],
        drop_padding=drop_padding,
        threads=threads,
        executor=executor,
        progress=progress,
    )
    return from_gram(history, gram, components=components, longest=longest, confidence=confidence)


def from_gram(
    history: History, gram: Gram, *, components: int = 5, longest: float = 0.1, confidence: float = 0.95
) -> xr.Dataset:
    """The dataset of `two_time` from products already made."""
    import xarray as xr

    at, length = gram.indices, len(history.steps)
    steps = history.steps[at]
    increments, squares = gram.increments(), gram.totals()[:, 1]
    if not np.isfinite(increments).all():
        if np.isfinite(squares).any():
            raise PythiaDynError(f"the weights of {history.name} are too large for their squares; scale them")
        increments[:], squares[:] = np.nan, np.nan  # no step was finite: there was nothing to leave out
    squared = displacements(increments) + 0 * squares  # NaN on the diagonal, too
    products = (squares[:, None] + squares - squared) / 2
    norms = np.sqrt(squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = products / norms / norms[:, None]
    lags, table = lag_table(steps, squared / gram.size)
    pairs = np.isfinite(table).sum(axis=0)
    averaged = np.where(pairs > 0, np.nansum(table, axis=0) / np.maximum(pairs, 1), np.nan)
    exponent = fit_exponent(lags, table, longest=longest * float(steps[-1] - steps[0]), confidence=confidence)
    moved = np.cumsum(np.append(0.0, np.diag(increments)[1:]))
    components = min(components, len(at))
    explained, coordinate = classical_scaling(squared, components)
    explained_null, coordinate_null = classical_scaling(np.abs(moved[:, None] - moved), components)

    def pairwise(values: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.full((length, length), np.nan)
        full[np.ix_(at, at)] = values
        return full

    def stepwise(values: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.full((length, values.shape[1]), np.nan)
        full[at] = values
        return full

    both, by_component = ("step", "other_step"), ("step", "component")
    walk = "of a random walk with the same step sizes"
    data: dict[str, tuple[Any, Any, str, str]] = {
        "gram": (both, pairwise(products), "Gram matrix of the weights", "weight^2"),
        "cosine": (both, pairwise(cosine), "cosine between the weights", "1"),
        "displacement": (both, pairwise(squared / gram.size), "mean squared displacement", "weight^2"),
        "ageing": (("step", "lag"), stepwise(table), "mean squared displacement after waiting", "weight^2"),
        "displacement_by_lag": (
            "lag",
            averaged,
            "time-averaged mean squared displacement",
            "weight^2",
        ),
        "pairs": ("lag", pairs, "pairs of steps at this lag", "1"),
        "coordinate": (by_component, stepwise(coordinate), "principal coordinate", "weight"),
        "coordinate_null": (by_component, stepwise(coordinate_null), f"principal coordinate {walk}", "weight"),
        "explained": ("component", explained, "share of variance", "1"),
        "explained_null": ("component", explained_null, f"share of variance {walk}", "1"),
    }
    result = xr.Dataset(
        {
            name: (dims, values, {"long_name": label, "units": units})
            for name, (dims, values, label, units) in data.items()
        },
        coords={
            "step": history.steps,
            "other_step": history.steps,
            "lag": lags,
            "component": np.arange(1, components + 1),
        },
        attrs=dict(history.provenance),
    )
    found = {"exponent": exponent.value, "exponent_low": exponent.low, "exponent_high": exponent.high}
    result["displacement_by_lag"].attrs |= {name: value for name, value in found.items() if np.isfinite(value)}
    return result


_BLOCKS = 10  # of waiting times, for the jackknife


def lag_table(steps: NDArray[np.int64], squared: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Displacements by waiting step and lag in step numbers: the lags (L,) and the table (T', L), NaN where there is
    no step that far ahead.

    On an uneven grid most lags occur once; of those the 4 T' most frequent are kept, the shorter of equals.
    """
    length = len(steps)
    first, second = np.triu_indices(length, 1)
    lags, inverse, count = np.unique(steps[second] - steps[first], return_inverse=True, return_counts=True)
    kept = np.sort(np.lexsort((lags, -count))[: 4 * length])
    place = np.full(len(lags), -1)
    place[kept] = np.arange(len(kept))
    table = np.full((length, len(kept)), np.nan)
    column = place[inverse]
    table[first[column >= 0], column[column >= 0]] = squared[first, second][column >= 0]
    return lags[kept], table


@dataclass(frozen=True)
class Exponent:
    """The slope of log displacement over log lag and its confidence interval, NaN where it cannot be had."""

    value: float
    low: float
    high: float


def fit_exponent(
    lags: NDArray[np.int64], table: NDArray[np.float64], *, longest: float, confidence: float = 0.95
) -> Exponent:
    """Fit the time-averaged displacement by a power of the lag, over lags up to `longest`, or the shortest three.

    Least squares in logarithms, every stretch of log lag weighing the same. The interval is Student's, with the error
    of a jackknife that leaves out ten blocks of waiting times in turn: displacements over overlapping stretches are
    not independent, so the scatter about the line says nothing of the error. Only lags that occur in at least half of
    the blocks are used: on an uneven grid the short ones are of one age, and would compare it with all others.
    """
    from scipy.stats import t as student

    blocks = np.array_split(np.arange(len(table) - 1), min(_BLOCKS, max(len(table) - 1, 1)))
    known = np.isfinite(table)
    common = np.sum([known[block].any(axis=0) for block in blocks], axis=0) >= len(blocks) / 2
    used = common & (lags <= max(longest, *lags[common][:3]) if common.any() else False)
    value = _slope(lags[used], table[:, used])
    left_out = np.array([_slope(lags[used], np.delete(table[:, used], block, axis=0)) for block in blocks])
    groups = len(blocks)
    if groups < 3 or not np.isfinite(left_out).all():
        return Exponent(value, np.nan, np.nan)
    error = np.sqrt((groups - 1) / groups * np.sum((left_out - left_out.mean()) ** 2))
    reach = float(student.ppf((1 + confidence) / 2, groups - 1) * error)
    return Exponent(value, value - reach, value + reach)


def _slope(lags: NDArray[np.int64], table: NDArray[np.float64]) -> float:
    count = np.isfinite(table).sum(axis=0)
    mean = np.nansum(table, axis=0) / np.maximum(count, 1)
    good = (count > 0) & (mean > 0)
    if np.count_nonzero(good) < 2:
        return np.nan
    x, y = np.log(lags[good].astype(np.float64)), np.log(mean[good])
    weight = np.gradient(x)
    x = x - np.average(x, weights=weight)
    return float(np.sum(weight * x * y) / np.sum(weight * x * x))


def classical_scaling(squared: NDArray[np.float64], components: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components of a trajectory from its squared distances: the share of variance of each (C,) and the
    coordinates (T', C), each starting on the negative side. NaN for distances that are not finite.

    The double-centred distances are the Gram matrix about the mean (Torgerson 1952).
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
