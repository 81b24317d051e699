"""Figures with a hand on the step: a map over all steps beside the curve of the one that is chosen.

The parts that a page moves have ids beginning with ``keep-<key>-``: ``step``, the marker in the map, and ``curve``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.figures.measures import density
from pythia_dynamics.figures.style import COLOURS, step_axis
from pythia_dynamics.figures.two_time import cosine

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["cosine_at", "density_at"]


def density_at(axes: Any, result: xr.Dataset, index: int, *, key: str) -> None:
    """Garden Fig 2 and its section at one step: the map on the first of two `Axes`, the density on the second."""
    first, second = axes
    density(first, result)
    _marker(first, result, index, key)
    values = result["density"].to_numpy()
    positive = values[np.isfinite(values) & (values > 0)]
    (line,) = second.plot(result["weight"], np.where(values[index] > 0, values[index], np.nan), color=COLOURS[0])
    line.set_gid(f"keep-{key}-curve")
    if positive.size:
        second.set_yscale("log")
        second.set_ylim(max(positive.min(), positive.max() * 1e-6) / 1.5, positive.max() * 1.5)
    second.set_xlim(float(result["weight"][0]), float(result["weight"][-1]))
    second.set_xlabel("weight")
    second.set_ylabel("density")


def cosine_at(axes: Any, result: xr.Dataset, index: int, *, key: str) -> None:
    """The cosine between the weights at every two steps, and its section: between one step and all others."""
    first, second = axes
    cosine(first, result)
    first.set_aspect("auto")  # so that its steps stand above those of the section
    _marker(first, result, index, key)
    values = result["cosine"].transpose("step", "other_step").to_numpy()
    low = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    (line,) = second.plot(result["other_step"], values[index], color=COLOURS[0])
    line.set_gid(f"keep-{key}-curve")
    second.set_xlim(first.get_xlim())
    second.set_ylim(low - 0.02 * (1 - low), 1 + 0.02 * (1 - low))
    second.set_ylabel("cosine with the chosen step")
    step_axis(second)
    second.set_xlabel("other step")


def _marker(ax: Axes, result: xr.Dataset, index: int, key: str) -> None:
    line = ax.axvline(float(result["step"][index]), color=COLOURS[1], linewidth=1.2)
    line.set_gid(f"keep-{key}-step")
