"""How far the weights move: mean squared displacement, of one step and of two (Garden of Forking Paths, Eq 4 and 5).

T steps, N weights per step; w_tk is the k-th weight at step t, m_t its mean over k.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.frames import Frames, warn_missing
from pythia_dynamics.sweep.sweep import sweep

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Integral", "from_integral", "interior_peak", "msd"]


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
