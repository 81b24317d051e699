"""The figure of a population: every run, the median and the central 80 %, and the runs that leave the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.axis import AxisKind, axis_of
from pythia_dynamics.figures.step_scale import choose_step_scale, set_step_scale
from pythia_dynamics.figures.style import COLOURS, STEP_LABEL, of_a_result
from pythia_dynamics.results.curves import curve_of, per_parameter, replicates
from pythia_dynamics.results.departures import Departure, departures
from pythia_dynamics.results.spread import CENTRAL, band

__all__ = ["population"]

_Array = NDArray[np.float64]

_COORDINATES = {"tokens": "tokens", "learning-rate": "learning_rate"}

_DASHES = ("-", "--", ":")
"""Lines of the medians of more groups than there are colours."""

_LEAVING = ("--", ":", "-.")
"""Lines of the runs that leave, beside the line of the median. More than three in one group repeat them."""

_LOGARITHMIC = 10.0
"""Least ratio of the greatest to the least value from which the y axis is logarithmic: on a linear one the lower half
of a decade takes a twentieth of the height."""


@of_a_result
def population(
    ax: Axes,
    result: xr.Dataset,
    *,
    variable: str | None = None,
    axis: AxisKind = "step",
    divide: bool = False,
    name: str = "",
) -> None:
    """Runs of one training: thin lines; their median and central 80 %; a mark where a run leaves the others for good.

    Runs of several sizes, or in which different parts are random, have a colour, a median and a band each. A gap is a
    gap in every line; a record between two gaps is a dot.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.gather`.
    variable
        Its variable. Default: the main one of the measure.
    axis
        The x axis. Groups may have different tokens or learning rates at a step, runs of one group may not.
    divide
        Whether to divide by the number of parameters of each model.
    name
        The title.

    Raises
    ------
    PythiaDynError
        As `curve_of`; or the tokens, the learning rates or the numbers of parameters are not known.
    """
    curve = curve_of(result, variable)
    label = str(curve.name).replace("_", " ") + (" per parameter" if divide else "")
    told = [str(curve.attrs[name]) for name in ("units", "selected") if curve.attrs.get(name, "1") != "1"]
    label += f" ({', '.join(told)})" if told else ""
    curve = per_parameter(curve) if divide else curve
    groups = replicates(curve)
    x_label = STEP_LABEL
    for number, (group, runs) in enumerate(groups.items()):
        x, x_label = _x(runs, axis, group)
        _draw_group(ax, x, runs, group, number, alone=len(groups) == 1)
    known = curve.to_numpy()[np.isfinite(curve.to_numpy())]
    if known.size and known.min() > 0 and known.max() >= _LOGARITHMIC * known.min():
        ax.set_yscale("log")
    ax.set(xlabel=x_label, ylabel=label, title=name)
    ax.xaxis.set_major_formatter(EngFormatter(sep="") if axis != "learning-rate" else ax.xaxis.get_major_formatter())
    if axis == "step":
        choose_step_scale(ax)
    elif axis in ("linear-step", "log-step"):
        set_step_scale(ax, "x", logarithmic=axis == "log-step")
    ax.legend()


def _draw_group(ax: Axes, x: _Array, runs: xr.DataArray, group: str, number: int, *, alone: bool) -> None:
    """The band, the median, the runs and the departures of one group."""
    colour, dashes = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
    left = departures(runs).found
    leaving = {one.run: one for one in left}
    spread = band(runs)
    count = runs.sizes["run"]
    if count > 1:
        share = f"central {CENTRAL[1] - CENTRAL[0]:.0%}" if alone else None
        ax.fill_between(x, spread["low"], spread["high"], color=colour, alpha=0.22, linewidth=0, label=share)
    for run in runs["run"].to_numpy().astype(str):
        if run not in leaving and count > 1:
            _line(ax, x, runs.sel(run=run).to_numpy(), color=colour, linewidth=0.5, alpha=0.6)
    median = f"{group}: median of {count} runs" if count > 1 else group
    _line(ax, x, spread["median"].to_numpy(), color=colour, linestyle=dashes, label=median)
    for place, one in enumerate(left):
        own = COLOURS[(1 + place) % len(COLOURS)] if alone else colour
        short = one.run.removeprefix(f"{group}-") if alone else one.run  # the median names the family
        label = f"{short} leaves at step {one.step:,}"
        _mark(ax, x, runs.sel(run=one.run), one, color=own, linestyle=_LEAVING[place % len(_LEAVING)], label=label)


def _mark(ax: Axes, x: _Array, run: xr.DataArray, one: Departure, *, color: str, **style: Any) -> None:
    """A run that leaves, and the step at which it does."""
    values = run.to_numpy()
    _line(ax, x, values, color=color, linewidth=1.1, **style)
    at = int(np.flatnonzero(run["step"].to_numpy() == one.step)[0])
    ax.plot(x[at], values[at], "o", color=color, markersize=4)


def _line(ax: Axes, x: _Array, values: _Array, *, color: str, **style: Any) -> None:
    """A line that is broken at gaps, with a dot for each record that stands alone."""
    ax.plot(x, values, color=color, **style)
    known = np.concatenate([[False], np.isfinite(values), [False]])
    single = known[1:-1] & ~known[:-2] & ~known[2:]
    if single.any():
        shown = {"alpha": style["alpha"]} if "alpha" in style else {}
        ax.plot(x[single], values[single], ".", color=color, markersize=3, **shown)


def _x(runs: xr.DataArray, axis: AxisKind, group: str) -> tuple[_Array, str]:
    """The x values of a group at each step, and the label of the axis."""
    steps = runs["step"].to_numpy().astype(np.float64)
    if axis not in _COORDINATES:
        return steps, axis_of(axis, steps, {}, where=group).label
    coordinate = _COORDINATES[axis]
    if coordinate not in runs.coords:
        return steps, axis_of(axis, steps, {}, where=group).label  # raises: not known
    rows = np.atleast_2d(runs[coordinate].to_numpy())
    known = np.isfinite(rows)
    first = np.where(known.any(axis=0), rows[known.argmax(axis=0), np.arange(len(steps))], np.nan)
    if not (np.isclose(rows, first, rtol=1e-6, atol=0) | ~known).all():
        words = coordinate.replace("_", " ")
        raise PythiaDynError(f"runs of {group} with a different {words} at a step have no common axis")
    present = np.flatnonzero(np.isfinite(runs.to_numpy()).any(axis=0))
    if not present.size:
        return steps, axis_of("step", steps, {}, where=group).label
    within = slice(int(present[0]), int(present[-1]) + 1)  # the steps of other groups need not be known in this one
    found = axis_of(axis, steps[within], {coordinate: first[within]}, where=group)
    return found.at(steps), found.label
