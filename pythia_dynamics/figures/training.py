"""Figures of training runs: losses, the loss against the order parameter, phases, where a rule would have stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.figures.style import COLOURS, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["losses", "phases", "runs_against_order", "slope_against_order", "stopping"]

_PARTS = {"train_loss": ("-", "o"), "validation_loss": ("--", "x")}
_SIGNALS = {
    "displacement_rate": "squared displacement\nper step (weight²)",
    "direction": "cosine of successive\nincrements",
    "bimodality": "Sarle's bimodality",
}

Runs = Mapping[str, Sequence["xr.Dataset"]]


def losses(ax: Axes, runs: Runs, published: Mapping[str, xr.Dataset] | None = None) -> None:
    """The blog's Fig 3: training (solid) and validation loss (dashed) against the step, a colour per model.

    `runs` has one dataset or more (seeds) per model, with `train_loss` and `validation_loss` over `step`; what was
    `published` are markers.
    """
    for colour, (name, several) in zip(COLOURS, runs.items(), strict=False):
        for run in several:
            for part, (line, _) in _PARTS.items():
                label = name if run is several[0] and part == "train_loss" else None
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
    """The blog's Fig 4 with all models on one axes: the loss of a `part` against b (logarithmic)."""
    for colour, (name, several) in zip(COLOURS, runs.items(), strict=False):
        for run in several:
            label = name if run is several[0] else None
            ax.plot(run["order_parameter"], run[part], color=colour, linewidth=1.2, label=label)
        if published and name in published:
            points = published[name]
            ax.plot(points["order_parameter"], points[part], "o", color=colour, markersize=3, alpha=0.6)
    _order_axis(ax)
    _legend(ax, published)
    ax.set_ylabel(f"{part.replace('_', ' ').replace('train', 'training')} (nats per token)")


def slope_against_order(ax: Axes, runs: Runs, published: Mapping[str, xr.Dataset] | None = None) -> None:
    """The blog's Fig 5: dL/db of the training loss against b, as there without the untrained model.

    The scale is logarithmic on both sides of ±1, because the slopes of the sizes differ a hundredfold.
    """
    for colour, (name, several) in zip(COLOURS, runs.items(), strict=False):
        for run in several:
            label = name if run is several[0] else None
            ax.plot(run["order_parameter"][1:], run["dloss_db"][1:], color=colour, linewidth=1.2, label=label)
        if published and name in published:
            points = published[name]
            ax.plot(points["order_parameter"][1:], points["dloss_db"][1:], "o", color=colour, markersize=3, alpha=0.6)
    _order_axis(ax)
    ax.set_yscale("symlog", linthresh=1)
    _legend(ax, published)
    ax.set_ylabel("dL/db of the training loss (nats)")


def stopping(ax: Axes, curves: xr.Dataset, *, threshold: float | None, stopped_at: int | None, name: str = "") -> None:
    """The displacement rate that a stationarity rule reads, its threshold, and where it stops (vertical).

    `curves` are those of `pythia_dynamics.training.stopping.replay`; stationary records are filled.
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
    """One panel per signal over the steps, the change points of its detector as verticals.

    `signals` has the variables of `pythia_dynamics.phases`, `changes` the steps by variable.
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
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("order parameter b")


def _legend(ax: Axes, published: Mapping[str, xr.Dataset] | None) -> None:
    if published:
        ax.plot([], [], "o", color="0.5", markersize=3, label="published")
    ax.legend()
