"""The order parameter b = ‖W‖_F / d_model and the loss as a function of it.

Ziyin & Ueda 2022; "A Large Language Model Order Parameter", Eq 3 (the blog).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Flag, Measure, Table
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset

if TYPE_CHECKING:
    import xarray as xr

    Loss = Mapping[int, float] | Sequence[float] | NDArray[Any] | xr.DataArray

__all__ = ["BrokenLine", "backward_derivative", "break_in_line", "derivative", "order_parameter"]

_PHI_GRID = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Autocorrelations φ of noise that are tried. The grid is finer towards 1, where residuals change fastest with φ."""

_DRAWS_PER_PHI = 200
"""Random series for each φ: enough for the mean autocorrelation of their residuals to ± 0.01."""

_MIN_CHANGE = 1e-9
"""Least relative change of b between steps; below it dL/db is a ratio of rounding errors."""


@dataclass(frozen=True)
class BrokenLine:
    """A continuous line with one break, fitted by least squares, and its test against a straight line.

    The place of the break is fitted too, so `f` does not have an F distribution. `p` comes from a Monte-Carlo test. Its
    noise is autoregressive, with an autocorrelation estimated from the residuals. Of straight lines with noise of
    autocorrelation up to 0.5, 1 to 7 % have p < 0.05; at 0.9 it is 11 to 16 %. Noise whose variance changes along the
    line makes p too small.

    Parameters
    ----------
    at
        x of the break.
    slope_before, slope_after
        Slopes of the line on both sides of the break.
    f
        F statistic of the two additional parameters at the best break.
    p
        Share of straight lines with Gaussian noise, at the same x, whose best break has an F at least as large.
    """

    at: float
    slope_before: float
    slope_after: float
    f: float
    p: float


def order_parameter(
    history: Any,
    *,
    loss: Annotated[
        Loss | None,
        Flag(
            "CSV or JSON lines with step and loss (nll_mean, train_loss), or a trainer_state.json.  [default: the "
            "forward perplexity, else losses.csv of the suite]",
            is_file=True,
        ),
    ] = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Frobenius norm and order parameter at every step, and dL/db if a loss is given (blog, Eq 3).

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    loss : mapping, Series, DataArray or sequence, optional
        The loss in nats per token: by step number, over `step`, or one value per step of the history (NaN if it is not
        known).
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step`: `frobenius_norm` ‖W‖_F, `order_parameter` b = ‖W‖_F / d_model with d_model the last axis of the
        frames, `rms` = ‖W‖_F / √(d v), and with a loss `loss` and `dloss_db`, (dL/dstep)/(db/dstep) by second-order
        differences on the uneven grid of step numbers (first-order at both ends), NaN where b is constant, and
        `dloss_db_backward`, (L_i − L_{i−1})/(b_i − b_{i−1}), which the blog publishes. The central `dloss_db` estimates
        the slope at a step; the backward one is the mean slope since the step before, half an interval earlier. The
        attributes of `loss` have the fit of loss(b) by a line with one break: `break_b`, `slope_before`, `slope_after`,
        `break_f`, `break_p` (see `BrokenLine`), absent with fewer than six points. Missing steps, and steps with
        weights that are not finite, are NaN.

    Raises
    ------
    PythiaDynError
        The loss has no step of the history, or a sequence has another length than the history.
    """
    return ORDER(history, loss=loss, compute=compute)


def _finish(history: History, counts: Counts, *, loss: Loss | None) -> xr.Dataset:
    norm = np.full(len(history.steps), np.nan)
    norm[counts.indices] = np.sqrt(counts.moments.square_sum)
    b = norm / history.frame_shape[-1]
    variables = {
        "frobenius_norm": Variable(norm, "Frobenius norm of W"),
        "order_parameter": Variable(b, "order parameter b = ‖W‖_F / d_model"),
        "rms": Variable(norm / np.sqrt(counts.size), "root mean square weight"),
    }
    if loss is not None:
        known = _aligned(history, loss)
        fit = break_in_line(b, known)
        found: dict[str, Any] = {}
        if fit is not None:
            found = {
                "break_b": fit.at,
                "slope_before": fit.slope_before,
                "slope_after": fit.slope_after,
                "break_f": fit.f,
                "break_p": fit.p,
            }
        variables["loss"] = Variable(known, "loss", "nat", attrs=found)
        variables["dloss_db"] = Variable(derivative(history.steps, b, known), "dL/db", "nat")
        backward = backward_derivative(b, known)
        variables["dloss_db_backward"] = Variable(backward, "dL/db, backward difference", "nat")
    return step_dataset(history, variables)


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    first, last = ends(dataset["order_parameter"])
    facts: dict[str, Any] = {"first": first, "last": last}
    sentence = f"order parameter b {format_ends((first, last), 6)}"
    if "loss" in dataset:
        losses, fit = ends(dataset["loss"]), dataset["loss"].attrs
        facts |= {"loss": losses, "fit": dict(fit)}
        sentence += f", loss {format_ends(losses)}"
        if "break_b" in fit:
            sentence += (
                f"; a line with one break fits best at b = {fit['break_b']:.4g}, where dL/db goes from "
                f"{fit['slope_before']:.3g} to {fit['slope_after']:.3g} (p = {fit['break_p']:.2g} for no break)"
            )
    return sentence, facts


ORDER = Measure(
    name="order",
    title="Order parameter",
    source="Ziyin & Ueda 2022; A Large Language Model Order Parameter, Eq 3",
    function=order_parameter,
    accumulators=(Counts,),
    finish=_finish,
    tables={
        "order": Table(
            ("step", "frobenius_norm", "order_parameter", "rms", "loss", "dloss_db", "dloss_db_backward"),
            title="Order parameter",
        )
    },
    summarise=_summarise,
)


def derivative(steps: NDArray[np.int64], b: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """dL/db at each step: the ratio of the derivatives of loss and b with respect to the step number (central).

    Parameters
    ----------
    steps
        Step numbers, shape (T,).
    b, loss
        Order parameter and loss, shape (T,); NaN where not known.

    Returns
    -------
    array, shape (T,)
        Differences between the nearest steps at which both are known. NaN at other steps, and where b is constant.
    """
    slope = np.full(len(steps), np.nan)
    known = np.flatnonzero(np.isfinite(b) & np.isfinite(loss))
    if len(known) < 2:
        return slope
    at = steps[known].astype(np.float64)
    db, dl = np.gradient(b[known], at), np.gradient(loss[known], at)
    half_span = np.gradient(at)  # half the steps of a difference
    resolved = np.abs(db) * half_span > _MIN_CHANGE * np.abs(b[known])
    slope[known[resolved]] = dl[resolved] / db[resolved]
    return slope


def backward_derivative(b: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """dL/db as the blog computes it: (L_i − L_{i−1})/(b_i − b_{i−1}), the backward difference over b.

    Parameters
    ----------
    b, loss
        Order parameter and loss in the order of the steps, shape (T,); NaN where not known.

    Returns
    -------
    array, shape (T,)
        Differences to the nearest step before at which both are known. NaN at the first of these, at other steps, and
        where b has not changed.
    """
    slope = np.full(len(b), np.nan)
    known = np.flatnonzero(np.isfinite(b) & np.isfinite(loss))
    db, dl = np.diff(b[known]), np.diff(loss[known])
    resolved = np.abs(db) > _MIN_CHANGE * np.abs(b[known[1:]])
    slope[known[1:][resolved]] = dl[resolved] / db[resolved]
    return slope


def break_in_line(x: Any, y: Any, *, draws: int = 999, seed: int = 0) -> BrokenLine | None:
    """Fit y(x) by a continuous line with one break.

    The break is at that x of the data with the least sum of squares, excluding the first two and the last two.

    Parameters
    ----------
    x, y
        The data, shape (n,). Points that are not finite are left out.
    draws
        Number of simulated straight lines for p. With 999 the least p is 0.001.
    seed
        Seed of the simulation.

    Returns
    -------
    BrokenLine or None
        None for fewer than six points or fewer than five distinct x.
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
    hinges = np.maximum(u[:, None] - breaks, 0)
    hinges -= line @ (line.T @ hinges)
    hinges /= np.linalg.norm(hinges, axis=0)

    def fit_breaks(targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]]:
        """F of the best break of every column, the index of that break, and the residuals of the fit."""
        line_residuals = targets - line @ (line.T @ targets)  # residuals of a straight line
        coefficients = hinges.T @ line_residuals
        index = np.abs(coefficients).argmax(axis=0)
        residuals = line_residuals - hinges[:, index] * coefficients[index, np.arange(targets.shape[1])]
        straight, broken = (line_residuals**2).sum(axis=0), (residuals**2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = (straight - broken) / 2 / (broken / (len(x) - 4))
        f[straight <= 1e-24 * np.maximum((targets**2).sum(axis=0), np.finfo(float).tiny)] = 0  # only rounding errors
        return f, index, residuals

    (f,), (index,), residuals = fit_breaks((y - y.mean())[:, None])
    at = breaks[index]
    design = np.column_stack([np.ones_like(u), u, np.maximum(u - at, 0)])
    _, before, change = np.linalg.lstsq(design, y, rcond=None)[0]
    # Noise with the autocorrelation of the data. The fit follows such noise, so its residuals have less of it. Hence
    # the φ whose simulated residuals have the autocorrelation of the measured ones.
    white = np.random.default_rng(seed).standard_normal((len(x), draws))
    expected = [np.mean(_autocorrelation(fit_breaks(_noise(phi, white[:, :_DRAWS_PER_PHI]))[2])) for phi in _PHI_GRID]
    phi = float(np.interp(_autocorrelation(residuals)[0], expected, _PHI_GRID))
    null = fit_breaks(_noise(phi, white))[0]
    return BrokenLine(
        at=float(low + at * span),
        slope_before=float(before / span),
        slope_after=float((before + change) / span),
        f=float(f),
        p=float((1 + np.count_nonzero(null >= f)) / (draws + 1)),
    )


def _noise(phi: float, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """First-order autoregressive noise of unit variance, from white noise; shape (n, draws)."""
    noise = draws.copy()
    for i in range(1, len(noise)):
        noise[i] = phi * noise[i - 1] + np.sqrt(1 - phi**2) * draws[i]
    return noise


def _autocorrelation(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """The autocorrelation at lag 1 of each column; 0 for a column of zeros."""
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
    elif hasattr(loss, "to_dict"):  # a Series of pandas, with steps as its index
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
