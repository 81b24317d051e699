"""How far the weights move: mean squared displacement, of one step and of two (Garden of Forking Paths, Eq 4 and 5).

T steps, N weights per step; w_tk is the k-th weight at step t, m_t its mean over k.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics import kernels
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.gram import Gram, classical_scaling, displacements, fit_exponent, lag_table
from pythia_dynamics.history import History, as_history
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep import Frames, sweep, warn_missing

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Integral", "from_gram", "from_integral", "interior_peak", "msd", "two_time"]


_ROUNDING = 1e-5  # share by which the ratio of a curve to its null may exceed its ends without being a peak


@dataclass
class Integral:
    """Accumulator of Eq 4's running integral and of everything the nulls need.

    `sums` has one (T', 6) float64 array per slab, its columns those of `kernels.integrate`. The weights are shifted
    by `shift`, a provisional mean per step, so that subtracting the exact one afterwards cancels nothing.
    """

    couples: ClassVar[bool] = True

    size: int = 0
    indices: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    shift: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def begin(self, frames: Frames) -> Self:
        """Empty sums for these frames."""
        return type(self)(size=frames.size, indices=frames.indices, shift=frames.rough_means())

    def fork(self) -> Self:
        """An empty copy."""
        return replace(self, sums={})

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Take in the weights `start` to `stop` of every frame."""
        addresses = frames.padded(kernels.TILE)
        kind = frames.computing_type
        keep, shift = np.zeros(len(addresses), kind), np.zeros(len(addresses), kind)
        keep[: len(frames)], shift[: len(frames)] = 1, self.shift
        work = kernels.workspace(4, kernels.BLOCK, kind)
        out = np.zeros((len(addresses), 6))
        kernels.integrate(addresses, frames.like, start, stop, shift, keep, work, out)
        self.sums[start] = out[: len(frames)]

    def merge(self, other: Self) -> None:
        """Take in another's slabs."""
        self.sums |= other.sums

    def total(self) -> NDArray[np.float64]:
        """The sums over all weights, (T', 6), added up in the order of the weights."""
        total: NDArray[np.float64] = np.sum([self.sums[start] for start in sorted(self.sums)], axis=0)
        return total

    def suspects(self) -> NDArray[np.bool_]:
        """Steps whose sum of squares is not finite."""
        return ~np.isfinite(self.total()[:, 1])

    def again(self) -> Self | None:
        """Sums of squares lose nothing."""
        return None


def msd(
    history: Any,
    *,
    drop_padding: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Mean squared displacement of the integrated weights, by both demeanings, each beside its null.

    With n steps summed up to τ, of T in all (missing ones skipped), s_i the measured ‖w_i − w_{i−1}‖ between
    consecutive present steps, and N weights:

    * `msd`: ŵ_τk = Σ_{t≤τ} (w_tk − m_t), MSD = Σ_k ŵ²_τk / (N−1) (Eq 4 and 5);
    * `msd_null`: its exact expectation for a walk from the same start with independent isotropic increments of the
      same sizes, [n² Σ_k (w_0k − m_0)² + Σ_{i=1}^{n−1} (n−i)² s_i² (N−1)/N] / (N−1);
    * `msd_time`: the same as `msd` with m_t replaced by the mean over time of each weight; it ends at zero by
      construction and peaks mid-way even for a pure walk;
    * `msd_time_null`: Σ_i c_i² s_i² / (N−1), c_i = max(n−i, 0) − (n/T)(T−i);
    * `displacement`: Σ_k (w_tk − w_0k)² / N from the first present step.

    Units are weight². Missing steps are NaN; a `MissingStepsWarning` names them. Steps with weights that are not
    finite are treated as missing (`NonFiniteWarning`). Fewer than two weights: NaN throughout. The attributes of a
    curve give `peak_step`, where it peaks before its end and after its start, and `peak_over_null_step`, where its
    ratio to the null does; absent when there is no such peak. `drop_padding` is the number of rows to keep.
    """
    history = as_history(history)
    warn_missing(history)
    (integral,) = sweep(
        history, [Integral()], drop_padding=drop_padding, threads=threads, executor=executor, progress=progress
    )
    return from_integral(history, integral)


def from_integral(history: History, integral: Integral) -> xr.Dataset:
    """The dataset of `msd` from sums already made."""
    import xarray as xr

    sums, size, length = integral.total(), integral.size, len(integral.indices)
    if not np.isfinite(sums).all():
        if np.isfinite(sums[:, 1]).any():
            raise PythiaDynError(f"the weights of {history.name} are too large for their squares; scale them")
        sums[:] = np.nan  # no step was finite: there was nothing to leave out
    free = size - 1 if size > 1 else np.nan
    drift = np.cumsum(sums[:, 0]) / size
    start = sums[0, 1] - sums[0, 0] ** 2 / size
    moved = sums[:, 4]  # s_i², zero for i = 0
    n = np.arange(1, length + 1, dtype=np.float64)[:, None]
    i = np.arange(length, dtype=np.float64)[None, :]
    ahead = np.maximum(n - i, 0)
    curves = {
        "msd": ("MSD, demeaned over weights (Eq 5)", np.maximum(sums[:, 2] - size * drift**2, 0) / free),
        "msd_null": (
            "MSD of a random walk, demeaned over weights",
            (n[:, 0] ** 2 * start + (ahead**2 @ moved) * (size - 1) / size) / free,
        ),
        "msd_time": ("MSD, demeaned over time", sums[:, 5] / free),
        "msd_time_null": (
            "MSD of a random walk, demeaned over time",
            ((ahead - n / length * (length - i)) ** 2) @ moved / free,
        ),
        "displacement": ("mean squared displacement from the first step", sums[:, 3] / size),
    }
    data: dict[str, Any] = {}
    for name, (label, values) in curves.items():
        column = np.full(len(history.steps), np.nan)
        column[integral.indices] = values
        data[name] = ("step", column, {"long_name": label, "units": "weight^2"})
    result = xr.Dataset(data, coords={"step": history.steps}, attrs=dict(history.provenance))
    for name in ("msd", "msd_time"):
        curve, null = result[name].to_numpy(), result[f"{name}_null"].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(null > 0, curve / null, np.nan)
        for label, values, margin in (("peak_step", curve, 0.0), ("peak_over_null_step", ratio, _ROUNDING)):
            peak = interior_peak(history.steps, values, margin)
            if peak is not None:
                result[name].attrs[label] = peak
    return result


def interior_peak(steps: NDArray[np.int64], curve: NDArray[np.float64], margin: float = 0.0) -> int | None:
    """The step at which a curve is greatest, None where that is its first or last finite point, or it is flat.

    It must be higher than both by more than the share `margin`.
    """
    finite = np.flatnonzero(np.isfinite(curve))
    if len(finite) < 3:
        return None
    values = curve[finite]
    top = int(np.argmax(values))
    if top in (0, len(values) - 1) or values[top] <= (1 + margin) * max(values[0], values[-1]):
        return None
    return int(steps[finite[top]])


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
