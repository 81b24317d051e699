"""The x axis of figures over steps: the step, its logarithm, the tokens seen, or the cumulative learning rate.

Figures are drawn over the step, linear or, where everything happens early, logarithmic (`choose_step_scale`).
`StepAxis.apply` then changes the scale of each axis that has the label of a step axis: positions and ticks are those of
the tokens or of the cumulative learning rate, while the data stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, Locator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.figures.step_scale import set_step_scale, step_axes
from pythia_dynamics.figures.style import STEP_LABEL
from pythia_dynamics.measures.learning_rate import cumulative_learning_rate
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.populations import recorded_coordinate

__all__ = ["AxisKind", "StepAxis", "along", "axis_of", "saved_axis"]

AxisKind = Literal["step", "linear-step", "log-step", "tokens", "learning-rate"]
"""What the x axis of a figure over steps shows. ``step``: linear or logarithmic, as `choose_step_scale` says."""

_LABELS: Mapping[AxisKind, str] = {
    **dict.fromkeys(("step", "linear-step", "log-step"), STEP_LABEL),
    "tokens": "tokens seen",
    "learning-rate": "cumulative learning rate Ση",
}
_COORDINATES: Mapping[AxisKind, str] = {"tokens": "tokens", "learning-rate": "learning_rate"}


@dataclass(frozen=True, eq=False)
class StepAxis:
    """The value of an axis at each step.

    Parameters
    ----------
    kind
        What it shows.
    steps
        N steps, strictly increasing; not used for ``step``.
    values
        The value at each of them, strictly increasing. Between them and beyond, it is continued linearly.
    """

    kind: AxisKind
    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def label(self) -> str:
        """The label of the axis."""
        return _LABELS[self.kind]

    def at(self, steps: ArrayLike) -> NDArray[np.float64]:
        """The value at some steps.

        Parameters
        ----------
        steps
            Steps, or any numbers between them.
        """
        return _continued(np.asarray(steps, dtype=np.float64), self.steps, self.values)

    def step_at(self, values: ArrayLike) -> NDArray[np.float64]:
        """The steps at which the axis has some values: the inverse of `at`."""
        return _continued(np.asarray(values, dtype=np.float64), self.values, self.steps)

    def apply(self, axes: Any) -> None:
        """Change every axis over steps of a finished figure.

        Parameters
        ----------
        axes
            One `Axes`, or an array of them. Only an axis with the label of a step axis is changed.

        Raises
        ------
        PythiaDynError
            The figure has steps for which the value is not known.
        """
        if self.kind == "step":
            return
        for ax, name, axis in step_axes(axes):
            if self.kind in _COORDINATES:
                self._replace(ax, name, axis)
            else:
                set_step_scale(ax, name, logarithmic=self.kind == "log-step")

    def same_as(self, other: StepAxis) -> bool:
        """Whether it shows the same value as another one at each step of both."""
        if self.kind not in _COORDINATES:
            return self.kind == other.kind
        steps = np.union1d(self.steps, other.steps)
        return self.kind == other.kind and bool(np.allclose(self.at(steps), other.at(steps), rtol=1e-6))

    def _replace(self, ax: Axes, name: str, axis: Axis) -> None:
        low, high = ax.dataLim.intervalx if name == "x" else ax.dataLim.intervaly
        # The outer cells of a heat map go half an interval beyond the steps.
        first, last = 2 * self.steps[0] - self.steps[1], 2 * self.steps[-1] - self.steps[-2]
        if np.isfinite([low, high]).all() and (low < first or high > last):
            known = f"known from step {self.steps[0]:.0f} to {self.steps[-1]:.0f} only"
            raise PythiaDynError(f"a figure has steps {low:.0f} to {high:.0f}, but its axis ({self.label}) is {known}")
        {"x": ax.set_xscale, "y": ax.set_yscale}[name]("function", functions=(self.at, self.step_at))
        axis.set_major_locator(_Ticks(self))
        units = EngFormatter(sep="")
        shown: Formatter = FuncFormatter(
            lambda step, _: units(float(self.at(step))) if self.kind == "tokens" else f"{float(self.at(step)):.4g}"
        )
        axis.set_major_formatter(shown)
        axis.set_label_text(self.label)


class _Ticks(Locator):
    """Ticks at round values of the axis."""

    def __init__(self, axis: StepAxis) -> None:
        self._of = axis
        self._round = MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], min_n_ticks=3)

    def set_axis(self, axis: Any) -> None:
        super().set_axis(axis)
        self._round.set_axis(axis)

    def __call__(self) -> Sequence[float]:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        low, high = (float(self._of.at(value)) for value in (vmin, vmax))
        ticks: list[float] = self._of.step_at(self._round.tick_values(low, high)).tolist()
        return ticks


def _continued(wanted: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation that continues the first and the last line beyond the ends."""
    index = np.clip(np.searchsorted(x, wanted) - 1, 0, len(x) - 2)
    slope = (y[index + 1] - y[index]) / (x[index + 1] - x[index])
    result: NDArray[np.float64] = y[index] + slope * (wanted - x[index])
    return result


def axis_of(kind: AxisKind, steps: ArrayLike, coordinates: Mapping[str, ArrayLike], *, where: str) -> StepAxis:
    """The axis of a history or of a result.

    Parameters
    ----------
    kind
        What it shows.
    steps
        T steps.
    coordinates
        ``tokens`` and ``learning_rate`` at these steps, where they are known.
    where
        The model, for messages.

    Raises
    ------
    UnknownNameError
        There is no such axis.
    PythiaDynError
        The tokens or the learning rate are not known at each of the steps, or do not grow with them.
    """
    if kind not in get_args(AxisKind):
        raise UnknownNameError("axis", kind, get_args(AxisKind))
    at = np.asarray(steps, dtype=np.float64)
    if kind not in _COORDINATES:
        return StepAxis(kind, at, at)
    name = _COORDINATES[kind]
    words = name.replace("_", " ")
    found = np.asarray(coordinates.get(name, np.full(len(at), np.nan)), dtype=np.float64)
    # A rate that is missing between two known ones is interpolated, and so are the tokens.
    values = cumulative_learning_rate(at, found) if kind == "learning-rate" else found
    known = np.isfinite(values)
    if not known.any():
        why = f" at step {int(at[0])}, from which it is summed" if np.isfinite(found).any() else ""
        hint = "; give it with --learning-rate FILE" if kind == "learning-rate" else ""
        raise PythiaDynError(f"the {words} of {where} {_verb(kind)} not known{why}{hint}")
    if not known[-1] or not known[0]:
        first = int(at[~known][0])
        raise PythiaDynError(f"the {words} of {where} {_verb(kind)} not known at step {first}")
    at, values = at[known], values[known]
    rises = np.concatenate([[True], np.diff(values) > 0])
    if (np.diff(values) < 0).any() or rises.sum() < 2:
        raise PythiaDynError(f"the {words} of {where} cannot be an axis: the values do not grow with the step")
    return StepAxis(kind, at[rises], values[rises])


def _verb(kind: AxisKind) -> str:
    return "are" if kind == "tokens" else "is"


def saved_axis(results: Results, kind: AxisKind) -> StepAxis:
    """The axis of saved results, from the tokens and the learning rates that their provenance records.

    Parameters
    ----------
    results
        The results of a model, or of a tensor of it.
    kind
        What it shows.

    Raises
    ------
    PythiaDynError
        As `axis_of`.
    """
    if kind not in _COORDINATES:
        return axis_of(kind, [], {}, where=results.name)
    name = _COORDINATES[kind]
    known = recorded_coordinate(results, name)
    ordered = sorted(known)
    return axis_of(kind, ordered, {name: [known[step] for step in ordered]}, where=results.name)


def along(specs: Sequence[FigureSpec], *axes: StepAxis) -> list[FigureSpec]:
    """Figures with another x axis.

    Parameters
    ----------
    specs
        The figures.
    axes
        The axis of each model in them.

    Raises
    ------
    PythiaDynError
        The axes of the models differ, so that no axis is that of all.
    """
    first = axes[0]
    if first.kind == "step":
        return list(specs)
    if not all(first.same_as(other) for other in axes[1:]):
        words = _COORDINATES[first.kind].replace("_", " ")
        raise PythiaDynError(f"models with a different {words} at a step have no common axis")

    def moved(spec: FigureSpec) -> FigureSpec:
        def draw(panels: Any) -> None:
            spec.draw(panels)
            first.apply(panels)

        return replace(spec, draw=draw)

    return [moved(spec) for spec in specs]
