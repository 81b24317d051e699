"""The order parameter b = ‖W‖_F / d_model and the loss as a function of it.

Ziyin & Ueda 2022; "A Large Language Model Order Parameter", Eq 3 (the blog).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.kink import find_kink
from pythia_dynamics.measures.measure import Flag, Measure, Table
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset

if TYPE_CHECKING:
    import xarray as xr

    Loss = Mapping[int, float] | Sequence[float] | NDArray[Any] | xr.DataArray

__all__ = ["backward_derivative", "derivative", "order_parameter"]

_MIN_CHANGE = 1e-9
"""Least relative change of b between steps; below it dL/db is a ratio of rounding errors."""


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
    steps: Sequence[int] | None = None,
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
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
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
        attributes of `loss` have the best kink of loss(b), without the untrained model: `kink_b`, `slope_before`,
        `slope_after`, `kink_ratio`, `kink_p` (see `pythia_dynamics.measures.kink.Kink`), absent with fewer than twelve
        points. Missing steps, and steps with weights that are not finite, are NaN.

    Raises
    ------
    PythiaDynError
        The loss has no step of the history, or a sequence has another length than the history.
    """
    return ORDER(history, loss=loss, steps=steps, compute=compute)


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
        trained = history.steps > 0  # from the untrained model the loss falls at once by most of its range
        kink = find_kink(b[trained], known[trained])
        found: dict[str, Any] = {}
        if kink is not None:
            found = {
                "kink_b": kink.at,
                "slope_before": kink.slope_before,
                "slope_after": kink.slope_after,
                "kink_ratio": kink.ratio,
                "kink_p": kink.p,
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
        if "kink_b" in fit:
            sentence += (
                f"; the best kink is at b = {fit['kink_b']:.4g}, where dL/db goes from {fit['slope_before']:.3g} to "
                f"{fit['slope_after']:.3g} (p = {fit['kink_p']:.2g} for a smooth curve)"
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
