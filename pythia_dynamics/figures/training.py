"""Figures of training runs: losses, loss against the order parameter, phases, and the stop of a stationarity rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pythia_dynamics.claims.blog import Runs
from pythia_dynamics.figures.style import COLOURS, step_axis
from pythia_dynamics.measures.phases import Detector

__all__ = ["losses", "phases", "runs_against_order", "slope_against_order", "stopping"]

_SIGNALS: Mapping[Detector, str] = {
    "displacement_rate": "squared displacement\nper ∫η² or step (weight²)",
    "direction": "cosine of successive\nincrements",
    "bimodality": "Sarle's bimodality",
}


def losses(ax: Axes, runs: Runs, published: Mapping[str, xr.Dataset] | None = None) -> None:
    """The blog's Fig 3: training (solid) and validation loss (dashed) against the step, a colour per model.

    Parameters
    ----------
    ax
        The axes to draw on.
    runs
        The curves by model, one dataset over `step` per seed.
    published
        The published values by model, drawn as markers.
    """
    parts = {"train_loss": ("-", "o"), "validation_loss": ("--", "x")}
    _draw_runs(ax, runs, published, "step", parts)
    step_axis(ax, "loss (nats per token); dashed: validation", legend=True)


def runs_against_order(
    ax: Axes, runs: Runs, published: Mapping[str, xr.Dataset] | None = None, *, part: str = "train_loss"
) -> None:
    """The blog's Fig 4, with all models on one axes: a loss against b (logarithmic).

    Parameters
    ----------
    ax
        The axes to draw on.
    runs
        The curves by model, one dataset over `step` per seed.
    published
        The published values by model, drawn as markers.
    part
        The loss: ``train_loss`` or ``validation_loss``.
    """
    _draw_runs(ax, runs, published, "order_parameter", {part: ("-", "o")})
    _order_axis(ax, f"{part.replace('_', ' ').replace('train', 'training')} (nats per token)")


def slope_against_order(ax: Axes, runs: Runs, published: Mapping[str, xr.Dataset] | None = None) -> None:
    """The blog's Fig 5: dL/db of the training loss against b, as in the blog.

    It is the backward difference over b, and that between the untrained model and the next record is left out. The
    scale is logarithmic beyond ±1, because the slopes of the sizes differ by a factor of 100.

    Parameters
    ----------
    ax
        The axes to draw on.
    runs
        The curves by model, one dataset over `step` per seed.
    published
        The published values by model, drawn as markers.
    """
    _draw_runs(ax, runs, published, "order_parameter", {"dloss_db_backward": ("-", "o")}, first=2)
    ax.set_yscale("symlog", linthresh=1)
    _order_axis(ax, "dL/db of the training loss (nats per token), backward")


def stopping(ax: Axes, curves: xr.Dataset, *, threshold: float | None, stopped_at: int | None, name: str = "") -> None:
    """The displacement rate that a stationarity rule reads, its threshold and its stop (vertical line).

    Parameters
    ----------
    ax
        The axes to draw on.
    curves
        The `curves` of a `pythia_dynamics.training.stopping.Replay`. Stationary records have a marker.
    threshold
        Threshold of the displacement rate, None for a rule without one.
    stopped_at
        The step of the stop, None where there is none.
    name
        The title. The tensor that the curves are of is added to it.
    """
    rate = curves["displacement_rate"]
    ax.plot(curves["step"], rate, color=COLOURS[0], linewidth=1, label="displacement rate")
    shown = curves["stationary"].to_numpy()
    if shown.any():
        ax.plot(curves["step"][shown], rate[shown], "o", color=COLOURS[0], markersize=3, label="stationary")
    if threshold is not None:
        ax.axhline(threshold, color=COLOURS[1], linestyle="--", linewidth=1, label="threshold")
    if stopped_at is not None:
        ax.axvline(stopped_at, color=COLOURS[6], linestyle=":", linewidth=1, label="stops")
    if np.nanmax(rate.fillna(0)) > 0:
        ax.set_yscale("log")
    step_axis(ax, "relative displacement per 1,000 steps", title=_with_tensor(name, curves), legend=True)


def phases(
    axes: Sequence[Axes], signals: xr.Dataset, changes: Mapping[Detector, Sequence[int]], *, name: str = ""
) -> None:
    """One panel per signal over the steps, with the change points of its detector as vertical lines.

    Parameters
    ----------
    axes
        One axes for each signal.
    signals
        The dataset that `pythia_dynamics.measures.phases.phases` returns.
    changes
        The steps of the change points by signal.
    name
        The title. The tensor that the signals are of is added to it.
    """
    for ax, (variable, label) in zip(axes, _SIGNALS.items(), strict=True):
        ax.plot(signals["step"], signals[variable], ".-", color=COLOURS[0], linewidth=1, markersize=3)
        for step in changes.get(variable, ()):
            ax.axvline(step, color=COLOURS[1], linestyle="--", linewidth=1)
        if variable == "displacement_rate" and np.nanmax(signals[variable].fillna(0)) > 0:
            ax.set_yscale("log")
        step_axis(ax, label)
    axes[0].set_title(_with_tensor(name, signals))


def _with_tensor(name: str, result: xr.Dataset) -> str:
    """The title of a figure of a result: the model, and the tensor where the result knows it."""
    tensor = str(result.attrs.get("tensor", ""))
    return name if tensor in name else f"{name}, {tensor}".removeprefix(", ")


def _draw_runs(
    ax: Axes,
    runs: Runs,
    published: Mapping[str, xr.Dataset] | None,
    x: str,
    parts: Mapping[str, tuple[str, str]],
    first: int = 0,
) -> None:
    """Draw the variables `parts`, with line style and marker, against `x`, without the records before `first`.

    Several seeds are thin lines, their mean a thick one.
    """
    for colour, (name, seeds) in zip(COLOURS, runs.items(), strict=False):
        labels = iter([name])  # the first curve of a model has its name
        if len(seeds) > 1:  # every seed thin, and their mean at the steps that all of them have
            for run in seeds:
                for part, (line, _) in parts.items():
                    ax.plot(run[x][first:], run[part][first:], line, color=colour, linewidth=0.5, alpha=0.45)
            shared = xr.concat([run[[x, *parts]] for run in seeds], "seed", join="inner")
            drawn: Sequence[xr.Dataset] = [shared.mean("seed")]
        else:
            drawn = seeds
        for run in drawn:
            for part, (line, _) in parts.items():
                ax.plot(run[x][first:], run[part][first:], line, color=colour, linewidth=1.4, label=next(labels, None))
        if published and name in published:
            points = published[name].isel(step=slice(first, None))
            for part, (_, marker) in parts.items():
                ax.plot(points[x], points[part], marker, color=colour, markersize=3, alpha=0.6)
    if published:
        ax.plot([], [], "o", color="0.5", markersize=3, label="published")


def _order_axis(ax: Axes, quantity: str) -> None:
    """Make the x axis a logarithmic one of b, label the y axis, and draw the legend."""
    ax.set(xscale="log", xlabel="order parameter b", ylabel=quantity)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend()
