"""The scale of an axis over steps: linear, or logarithmic where everything happens early."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator

from pythia_dynamics.figures.style import STEP_LABEL

__all__ = ["EARLY", "choose_step_scale", "set_step_scale", "step_axes"]

EARLY = (0.1, 0.75)
"""Everything happens early where, in the first of these shares of the steps, the median curve of a figure makes the
second of these shares of its change. On a linear axis it is then a vertical line and a flat one: in the demo, for which
the rule was made, the spectrum, the rank and the perplexities. A curve that changes at an even rate makes 0.1."""

_ZERO_DECADES = 0.3
"""Room between step 0 and the first step after it, in decades."""


def choose_step_scale(axes: Any) -> None:
    """Make the axes over steps of a figure logarithmic where everything happens early, as `EARLY` says.

    All panels of a figure have the same scale. Heat maps do not count. Step 0 has a place of its own, left of the first
    step after it: the scale is linear between the two.

    Parameters
    ----------
    axes
        One `Axes`, or an array of them, with all curves drawn. Only axes with the label of a step axis count.
    """
    part, share = EARLY
    panels = [ax for ax, name, _ in step_axes(axes) if name == "x"]
    shares = [early for ax in panels for line in ax.lines if np.isfinite(early := _early_change(ax, line, part))]
    if shares and np.median(shares) >= share:
        for ax in panels:
            set_step_scale(ax, "x", logarithmic=True)


def _early_change(ax: Axes, line: Line2D, part: float) -> float:
    """The range of a curve in the first part of its steps over its whole range, on the y scale; NaN without a range."""
    x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data())
    if ax.get_yscale() == "log":
        y = np.log(np.where(y > 0, y, np.nan))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) < 3 or np.ptp(y) == 0 or np.ptp(x) == 0:  # two points are a line that marks a value
        return np.nan
    return float(np.ptp(y[x <= x[0] + part * (x[-1] - x[0])]) / np.ptp(y))


def step_axes(axes: Any) -> Iterator[tuple[Axes, Literal["x", "y"], Axis]]:
    """Every axis with the label of a step axis: its `Axes`, ``x`` or ``y``, and the axis.

    Parameters
    ----------
    axes
        One `Axes`, or an array of them.
    """
    for ax in np.atleast_1d(np.asarray(axes, dtype=object)).flat:
        sides: tuple[tuple[Literal["x", "y"], Axis], ...] = (("x", ax.xaxis), ("y", ax.yaxis))
        yield from ((ax, name, axis) for name, axis in sides if axis.get_label_text() == STEP_LABEL)


def set_step_scale(ax: Axes, name: Literal["x", "y"], *, logarithmic: bool) -> None:
    """Make an axis over steps logarithmic, with a place for step 0, or linear.

    Parameters
    ----------
    ax
        The panel, with all that it shows.
    name
        Which of its axes.
    logarithmic
        Whether it becomes logarithmic. An axis without a positive step stays linear.
    """
    axis, set_scale = {"x": (ax.xaxis, ax.set_xscale), "y": (ax.yaxis, ax.set_yscale)}[name]
    low, high = ax.dataLim.intervalx if name == "x" else ax.dataLim.intervaly
    if not logarithmic or not np.isfinite([low, high]).all() or high <= 0:
        set_scale("linear")
    elif low > 0:
        set_scale("log")
    else:
        first = _first_positive_step(ax, name)
        set_scale("symlog", linthresh=first, linscale=_ZERO_DECADES)
        decades = 10.0 ** np.arange(np.ceil(np.log10(first)), np.floor(np.log10(high)) + 1)
        axis.set_major_locator(FixedLocator([0.0, *decades]))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _first_positive_step(ax: Axes, name: Literal["x", "y"]) -> float:
    """The first step after 0 that a panel shows, from its curves, or from the middles of the cells of its map."""
    shown = [np.asarray(line.get_xdata(), dtype=np.float64) for line in ax.lines if name == "x"]
    for mesh in ax.collections:
        if isinstance(mesh, QuadMesh):
            corners = np.asarray(mesh.get_coordinates(), dtype=np.float64)
            borders = corners[0, :, 0] if name == "x" else corners[:, 0, 1]
            shown.append((borders[1:] + borders[:-1]) / 2)
    steps = np.concatenate([np.ravel(values) for values in shown]) if shown else np.ones(1)
    return float(steps[steps > 0].min(initial=np.inf)) if (steps > 0).any() else 1.0
