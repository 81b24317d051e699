"""Figures with a step slider: a map over all steps, and below it the curve of the chosen step.

The script of the report moves two parts, by their ids: ``keep-<key>-step``, the marker in the map, and
``keep-<key>-curve``.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.figures.measures import density, density_range
from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis
from pythia_dynamics.figures.two_time import cosine

__all__ = ["cosine_at", "density_at", "viridis"]


def viridis(count: int = 256) -> bytes:
    """The colours of heat maps, for the script of the page: red, green and blue of each, from dark to bright.

    Parameters
    ----------
    count
        Number of colours.
    """
    ramp = mpl.colormaps["viridis"](np.linspace(0, 1, count), bytes=True)
    return bytes(np.asarray(ramp)[:, :3].tobytes())


@of_a_result
def density_at(axes: Any, result: xr.Dataset, index: int, *, key: str) -> None:
    """Garden Fig 2 and its section at one step.

    Parameters
    ----------
    axes
        Two panels: for the map, and for the density at the chosen step.
    result
        The result of `pythia_dynamics.density`.
    index
        Place of the chosen step on the step axis.
    key
        Key of the figure on the page; it is part of the ids.
    """
    values = result["density"].to_numpy()
    limits = density_range(values)
    density(axes[0], result)
    section = _section(axes, result, result["weight"], np.where(values[index] > 0, values[index], np.nan), index, key)
    if limits:
        section.set(yscale="log", ylim=(limits[0] / 1.5, limits[1] * 1.5))
    section.set(
        xlim=(float(result["weight"][0]), float(result["weight"][-1])), xlabel="weight", ylabel="density (1/weight)"
    )


@of_a_result
def cosine_at(axes: Any, result: xr.Dataset, index: int, *, key: str) -> None:
    """The cosine between the weights at every two steps, and its section between one step and all others.

    Parameters
    ----------
    axes
        Two panels: for the map, and for the cosines with the chosen step.
    result
        The result of `pythia_dynamics.two_time`.
    index
        Place of the chosen step on the step axis.
    key
        Key of the figure on the page; it is part of the ids.
    """
    values = result["cosine"].transpose("step", "other_step").to_numpy()
    low = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    cosine(axes[0], result)
    axes[0].set_aspect("auto")  # a step has the same abscissa in both panels
    section = _section(axes, result, result["other_step"], values[index], index, key)
    section.set(xlim=axes[0].get_xlim(), ylim=(low - 0.02 * (1 - low), 1 + 0.02 * (1 - low)))
    step_axis(section, "cosine with the chosen step")
    section.set_xlabel("other step")


def _section(axes: Any, result: xr.Dataset, x: Any, y: Any, index: int, key: str) -> Axes:
    """Mark the chosen step in the map, draw its curve in the second panel, and return that panel."""
    marker = axes[0].axvline(float(result["step"][index]), color=COLOURS[1], linewidth=1.2)
    marker.set_gid(f"keep-{key}-step")
    (line,) = axes[1].plot(x, y, color=COLOURS[0])
    line.set_gid(f"keep-{key}-curve")
    section: Axes = axes[1]
    return section
