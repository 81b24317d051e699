"""The order parameter b = ‖W‖_F / d_model and the loss against it (Ziyin & Ueda 2022; "A Large Language Model Order
Parameter", Eq 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.sweep import sweep

if TYPE_CHECKING:
    import xarray as xr

    Loss = Mapping[int, float] | Sequence[float] | NDArray[Any] | xr.DataArray

__all__ = ["BrokenLine", "break_in_line", "derivative", "from_counts", "order_parameter"]

_DEPENDENCES = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_TRIED = 200  # draws at each of them
_STALL = 1e-9  # relative change of b below which dL/db says nothing


@dataclass(frozen=True)
class BrokenLine:
    """A continuous line with one break, fitted by least squares, and its test against a straight line.

    `f` is the F statistic of the two extra parameters at the best break. As the break was searched for, its
    distribution is not F: `p` is the share of straight lines with Gaussian noise, at the same abscissae, whose best
    break reaches that F (a Monte-Carlo test). The noise is autoregressive, as dependent from one point to the next as
    the residuals say: of straight lines 1 to 7 % have p < 0.05 up to a dependence of 0.5, 11 to 16 % at 0.9. Noise that
    changes its size along the line makes p too small.
    """

    at: float
    slope_before: float
    slope_after: float
    f: float
    p: float


def order_parameter(
    history: Any,
    *,
    loss: Loss | None = None,
    drop_padding: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Frobenius norm and order parameter at every step, and the loss against it where one is given.

    `loss` is the loss per step: a mapping or a Series of pandas by step number, a `DataArray` over `step`, or one value
    for each step of the history (NaN where unknown), in nats per token.

    Returns a dataset over `step`: `frobenius_norm` ‖W‖_F, `order_parameter` b = ‖W‖_F / d_model with d_model the last
    axis of the frames, `rms` = ‖W‖_F / √(d v), and with a loss `loss` and `dloss_db`, (dL/dstep)/(db/dstep) by
    second-order differences on the uneven grid of step numbers (first-order at both ends), NaN where b stalls. The
    attributes of `loss` then hold the fit of loss against b by a line with one break: `break_b`, `slope_before`,
    `slope_after`, `break_f`, `break_p` (see `BrokenLine`), absent with fewer than six points.

    Missing steps, and steps with weights that are not finite, are NaN. `drop_padding` is the number of rows to keep.
    """
    history = as_history(history)
    warn_missing(history)
    (counts,) = sweep(
        history, [Counts()], drop_padding=drop_padding, threads=threads, executor=executor, progress=progress
    )
    return from_counts(history, counts, loss=loss)


def from_counts(history: History, counts: Counts, *, loss: Loss | None = None) -> xr.Dataset:
    """The dataset of `order_parameter` from counts already made."""
    import xarray as xr

    norm = np.full(len(history.steps), np.nan)
    norm[counts.indices] = np.sqrt(counts.moments.square_sum)
    b = norm / history.frame_shape[-1]
    data: dict[str, Any] = {
        "frobenius_norm": ("step", norm, {"long_name": "Frobenius norm of W", "units": "1"}),
        "order_parameter": ("step", b, {"long_name": "order parameter b = ‖W‖_F / d_model", "units": "1"}),
        "rms": ("step", norm / np.sqrt(counts.size), {"long_name": "root mean square weight", "units": "1"}),
    }
    if loss is not None:
        known = _aligned(history, loss)
        attributes: dict[str, Any] = {"long_name": "loss", "units": "nat"}
        fit = break_in_line(b, known)
        if fit is not None:
            attributes |= {
                "break_b": fit.at,
                "slope_before": fit.slope_before,
                "slope_after": fit.slope_after,
                "break_f": fit.f,
                "break_p": fit.p,
            }
        data["loss"] = ("step", known, attributes)
        slope = derivative(history.steps, b, known)
        data["dloss_db"] = ("step", slope, {"long_name": "dL/db", "units": "nat"})
    return xr.Dataset(data, coords={"step": history.steps}, attrs=dict(history.provenance))


def derivative(steps: NDArray[np.int64], b: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """dL/db along the steps: the ratio of both derivatives with respect to the step number.

    Differences span the nearest steps at which both are known; NaN elsewhere, and where b stalls.
    """
    slope = np.full(len(steps), np.nan)
    known = np.flatnonzero(np.isfinite(b) & np.isfinite(loss))
    if len(known) < 2:
        return slope
    at = steps[known].astype(np.float64)
    db, dl = np.gradient(b[known], at), np.gradient(loss[known], at)
    reach = np.gradient(at)  # steps that half a difference spans
    moving = np.abs(db) * reach > _STALL * np.abs(b[known])
    slope[known[moving]] = dl[moving] / db[moving]
    return slope


def break_in_line(x: Any, y: Any, *, draws: int = 999, seed: int = 0) -> BrokenLine | None:
    """Fit y(x) by a continuous line with one break; None with fewer than six points at five distinct x.

    The break lies at one of the data's x, at least two of them from either end, wherever the residual is least.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    distinct = np.unique(x)
    if len(x) < 6 or len(distinct) < 5:
        return None
    low, span = distinct[0], distinct[-1] - distinct[0]
    u = (x - low) / span
    breaks = (distinct[2:-2] - low) / span
    line, _ = np.linalg.qr(np.column_stack([np.ones_like(u), u]))
    kinks = np.maximum(u[:, None] - breaks, 0)
    kinks -= line @ (line.T @ kinks)
    kinks /= np.linalg.norm(kinks, axis=0)

    def fitted(targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]]:
        """F of the best break of every column, which break that is, and what it leaves."""
        rest = targets - line @ (line.T @ targets)  # what a straight line leaves
        heights = kinks.T @ rest
        place = np.abs(heights).argmax(axis=0)
        left = rest - kinks[:, place] * heights[place, np.arange(targets.shape[1])]
        straight, broken = (rest**2).sum(axis=0), (left**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = (straight - broken) / 2 / (broken / (len(x) - 4))
        f[straight <= 1e-24 * np.maximum((targets**2).sum(axis=0), np.finfo(float).tiny)] = 0  # nothing but rounding
        return f, place, left

    (f,), (place,), left = fitted((y - y.mean())[:, None])
    at = breaks[place]
    design = np.column_stack([np.ones_like(u), u, np.maximum(u - at, 0)])
    _, before, change = np.linalg.lstsq(design, y, rcond=None)[0]
    # Noise as dependent from one point to the next as what is left. The fit follows such noise and leaves less of it:
    # of the dependences tried it is the one that leaves as much.
    draw = np.random.default_rng(seed).standard_normal((len(x), draws))
    leaves = [np.mean(_dependence(fitted(_noise(phi, draw[:, :_TRIED]))[2])) for phi in _DEPENDENCES]
    phi = float(np.interp(_dependence(left)[0], leaves, _DEPENDENCES))
    null = fitted(_noise(phi, draw))[0]
    return BrokenLine(
        at=float(low + at * span),
        slope_before=float(before / span),
        slope_after=float((before + change) / span),
        f=float(f),
        p=float((1 + np.count_nonzero(null >= f)) / (draws + 1)),
    )


def _noise(phi: float, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Autoregressive noise of the first order, of unit variance, from white noise (n, draws)."""
    noise = draws.copy()
    for i in range(1, len(noise)):
        noise[i] = phi * noise[i - 1] + np.sqrt(1 - phi**2) * draws[i]
    return noise


def _dependence(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The autocorrelation of each column from one point to the next, 0 where there is nothing."""
    total = (residuals**2).sum(axis=0)
    correlation: NDArray[np.float64] = (residuals[1:] * residuals[:-1]).sum(axis=0) / np.where(total > 0, total, 1)
    return correlation


def _aligned(history: History, loss: Loss) -> NDArray[np.float64]:
    """The loss at each step of the history, NaN where it is not known."""
    import xarray as xr

    known: dict[Any, Any]
    if isinstance(loss, xr.DataArray):
        known = dict(zip(loss["step"].to_numpy().tolist(), loss.to_numpy().tolist(), strict=True))
    elif isinstance(loss, Mapping):
        known = dict(loss)
    elif hasattr(loss, "to_dict"):  # a Series of pandas has an index
        known = loss.to_dict()
    else:
        values = np.asarray(loss, dtype=np.float64)
        if values.shape != history.steps.shape:
            raise PythiaDynError(
                f"a loss must have one value for each of the {len(history.steps)} steps; got shape {values.shape}"
            )
        return values
    found = [known.get(step) for step in history.steps.tolist()]
    if known and all(value is None for value in found):
        raise PythiaDynError(f"the loss is of none of the {len(history.steps)} steps of {history.name}")
    return np.array(found, dtype=np.float64)
