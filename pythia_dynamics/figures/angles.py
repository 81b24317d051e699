"""Figures of the angle between neighbouring steps and of the norm of the weights, beside their null and equilibrium."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis

__all__ = ["angle", "norm_growth", "weight_norm"]


@of_a_result
def angle(ax: Axes, result: xr.Dataset) -> None:
    """The angle between the weights of neighbouring steps (Kosson et al. 2023), on a logarithmic scale.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.angles`, or the table ``angles.csv``.
    """
    _beside(ax, result, "angle", "orthogonal increment")
    if np.any(result["angle"].to_numpy() > 0):
        ax.set_yscale("log")
    step_axis(ax, "angle to the step before (degrees)", legend=True)


@of_a_result
def weight_norm(ax: Axes, result: xr.Dataset) -> None:
    """The norm of the weights, and what it would be if increments were orthogonal to the weights.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `angle`.
    """
    _beside(ax, result, "norm", "orthogonal increments")
    step_axis(ax, "norm of the weights (weight)", legend=True)


@of_a_result
def norm_growth(ax: Axes, result: xr.Dataset) -> None:
    """The relative growth of the norm: positive where the weights grow, negative where the decay wins.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `angle`.
    """
    ax.plot(result["step"], 1e5 * result["norm_growth"], color=COLOURS[0])
    ax.axhline(0, color="0.5", linewidth=0.8)
    step_axis(ax, "growth of the norm (% per 1,000 steps)")


def _beside(ax: Axes, result: xr.Dataset, name: str, null: str) -> None:
    """Draw a curve, its null, and the equilibrium of AdamW where it is known."""
    ax.plot(result["step"], result[name], color=COLOURS[0], label="measured")
    ax.plot(result["step"], result[f"{name}_null"], "--", color=COLOURS[0], linewidth=1, label=null)
    if f"equilibrium_{name}" in result:
        label = "equilibrium of AdamW"
        ax.plot(result["step"], result[f"equilibrium_{name}"], ":", color=COLOURS[1], label=label)
