"""Figures of training runs: losses, loss against the order parameter, phases, and the stop of a stationarity rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.figures.style import COLOURS, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from pythia_dynamics.claims.blog import Runs

__all__ = ["losses", "phases", "runs_against_order", "slope_against_order", "stopping"]

_PARTS = {"train_loss": ("-", "o"), "validation_loss": ("--", "x")}
_SIGNALS = {
    "displacement_rate": "squared displacement\nper step (weight²)",
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
    for colour, (name, seeds) in zip(COLOURS, runs.items(), strict=False):
        for run in seeds:
            for part, (line, _) in _PARTS.items():
                label = name if run is seeds[0] and part == "train_loss" else None
                ax.plot(run["step"], run[part], line, color=colour, linewidth=1.2, label=label)
        for part, (_, marker) in _PARTS.items():
            if published and name in published:
                ax.plot(published[name]["step"], published[name][part], marker, color=colour, markersize=3, alpha=0.6)
    _legend(ax, published)
    ax.set_ylabel("loss (nats per token); dashed: validation")
    step_axis(ax)


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
    for colour, (name, seeds) in zip(COLOURS, runs.items(), strict=False):
        for run in seeds:
            label = name if run is seeds[0] else None
            ax.plot(run["order_parameter"], run[part], color=colour, linewidth=1.2, label=label)
        if published and name in published:
            points = published[name]
            ax.plot(points["order_parameter"], points[part], "o", color=colour, markersize=3, alpha=0.6)
    _order_axis(ax)
    _legend(ax, published)
    ax.set_ylabel(f"{part.replace('_', ' ').replace('train', 'training')} (nats per token)")


def slope_against_order(ax: Axes, runs: Runs, published: Mapping[str, xr.Dataset] | None = None) -> None:
    """The blog's Fig 5: dL/db of the training loss against b, without the untrained model, as in the blog.

    The scale is logarithmic beyond ±1, because the slopes of the sizes differ by a factor of 100.

    Parameters
    ----------
    ax
        The axes to draw on.
    runs
        The curves by model, one dataset over `step` per seed.
    published
        The published values by model, drawn as markers.
    """
    for colour, (name, seeds) in zip(COLOURS, runs.items(), strict=False):
        for run in seeds:
            label = name if run is seeds[0] else None
            ax.plot(run["order_parameter"][1:], run["dloss_db"][1:], color=colour, linewidth=1.2, label=label)
        if published and name in published:
            points = published[name]
            ax.plot(points["order_parameter"][1:], points["dloss_db"][1:], "o", color=colour, markersize=3, alpha=0.6)
    _order_axis(ax)
    ax.set_yscale("symlog", linthresh=1)
    _legend(ax, published)
    ax.set_ylabel("dL/db of the training loss (nats)")


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
        The title.
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
    ax.set_ylabel("relative displacement per 1,000 steps")
    ax.set_title(name)
    ax.legend()
    step_axis(ax)


def phases(axes: Sequence[Axes], signals: xr.Dataset, changes: Mapping[str, Sequence[int]], *, name: str = "") -> None:
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
        The title.
    """
    for ax, (variable, label) in zip(axes, _SIGNALS.items(), strict=True):
        ax.plot(signals["step"], signals[variable], ".-", color=COLOURS[0], linewidth=1, markersize=3)
        for step in changes.get(variable, ()):
            ax.axvline(step, color=COLOURS[1], linestyle="--", linewidth=1)
        if variable == "displacement_rate" and np.nanmax(signals[variable].fillna(0)) > 0:
            ax.set_yscale("log")
        ax.set_ylabel(label)
        step_axis(ax)
    axes[0].set_title(name)


def _order_axis(ax: Axes) -> None:
    """Make the abscissa a logarithmic axis of b."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("order parameter b")


def _legend(ax: Axes, published: Mapping[str, xr.Dataset] | None) -> None:
    """Draw the legend, with an entry for the published values."""
    if published:
        ax.plot([], [], "o", color="0.5", markersize=3, label="published")
    ax.legend()
