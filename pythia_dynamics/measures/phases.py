"""Phases of training: where the way the weights move changes, by three detectors, and whether they agree.

Each detector looks at one signal and fits it by straight lines, as many as pay for themselves: PELT (Killick, Fearnhead
& Eckley 2012, as `ruptures` has it) with a penalty of the kind of BIC. A change point is the first step of a new line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.gram import Gram

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DETECTORS", "Change", "agreement", "change_points", "phases"]

DETECTORS: Mapping[str, str] = {
    "displacement_rate": "logarithm of the squared displacement per step since the step before",
    "direction": "cosine between the increments before and after a step",
    "bimodality": "change of Sarle's coefficient of the density per step since the step before",
}
"""What each detector looks at. Of a random walk with steady increments all three are level, with independent noise: a
squared displacement grows with the number of steps, Sarle's coefficient itself wanders, its changes do not."""

_SHORTEST = 4
"""Records of a phase: a line has two parameters, so two records remain to tell it from noise."""

STRENGTH = 5.0
"""Penalty for one change point more, in units of σ² ln n; BIC's is 3, see `change_points`."""

TOLERANCE = 0.05
"""Share of the training within which two change points are the same: the window of the claims about changes."""


def phases(history: Any, *, strength: float = STRENGTH, compute: Compute | None = None) -> xr.Dataset:
    """The signals of a history and where they change.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    strength : float
        Of the penalty for one change point more, in units of σ² ln n; see `change_points`.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step`: `displacement_rate` Σ(w_t − w_s)² / (t − s) from the present step s before t (weight²),
        `direction`, the cosine between the increments that end and begin at a step, `bimodality`, Sarle's coefficient;
        NaN where not known. Beside each, `<signal>_change` is true at the first step of every new phase by its
        detector (`DETECTORS`). Missing steps, and those with weights that are not finite, are skipped.
    """
    return PHASES(history, strength=strength, compute=compute)


def _finish(history: History, gram: Gram, counts: Counts, *, strength: float) -> xr.Dataset:
    steps = history.steps
    known = steps[gram.indices].astype(np.float64)
    products = gram.increments()
    sizes = np.diag(products)
    columns = {name: np.full(len(steps), np.nan) for name in DETECTORS}
    columns["displacement_rate"][gram.indices[1:]] = sizes[1:] / np.diff(known)
    if len(known) > 2:
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.diag(products, 1)[1:] / np.sqrt(sizes[1:-1] * sizes[2:])
        columns["direction"][gram.indices[1:-1]] = cosine
    columns["bimodality"][counts.indices] = counts.moments.bimodality
    watched = {
        "displacement_rate": _log(columns["displacement_rate"]),
        "direction": columns["direction"],
        "bimodality": _slope(steps, columns["bimodality"]),
    }
    units = {"displacement_rate": "weight^2", "direction": "1", "bimodality": "1"}
    variables = {}
    for name, column in columns.items():
        variables[name] = Variable(column, name.replace("_", " "), units[name])
        changes = np.isin(steps, change_points(steps, watched[name], strength=strength))
        label = f"change point of the {name.replace('_', ' ')}"
        variables[f"{name}_change"] = Variable(changes, label, attrs={"detector": DETECTORS[name]})
    return step_dataset(history, variables, attrs={"strength": strength})


PHASES = Measure(
    name="phases",
    title="Phases of training",
    source="Killick, Fearnhead & Eckley 2012; Liu, Wu & Zidek 1997",
    function=phases,
    accumulators=(Gram, Counts),
    finish=_finish,
)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm: NDArray[np.float64] = np.log(values)
    return logarithm


def _slope(steps: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change per step since the known value before; NaN at the first."""
    slope = np.full(len(values), np.nan)
    at = np.flatnonzero(np.isfinite(values))
    if len(at) > 1:
        slope[at[1:]] = np.diff(values[at]) / np.diff(steps[at])
    return slope


def change_points(steps: Any, signal: Any, *, strength: float = STRENGTH) -> tuple[int, ...]:
    """The steps at which a signal (T,) over `steps` (T,) goes over to another straight line; NaN values are skipped.

    A line more must lower the sum of squares by more than strength · σ² ln n, with σ² the variance of the noise, from
    the median distance of values to the line through their neighbours. BIC asks 3 for a line's three parameters (level,
    slope, place); 5 is on the side of few: strengthened as in Liu, Wu & Zidek (1997). Of level signals with
    independent Gaussian noise 5 % of those with 30 values show a change, 2 % with 60, 0.3 % with 143; with noise as
    heavy-tailed as Student's t of 5 degrees of freedom 11 %, 7 % and 6 %. Phases have at least four records.
    """
    with optional_import("pythia-dyn phases", "phases"):
        import ruptures

    if strength <= 0:
        raise PythiaDynError(f"the strength of the penalty must be above 0; got {strength:g}")
    numbers, values = np.asarray(steps), np.asarray(signal, dtype=np.float64)
    finite = np.isfinite(values)
    numbers, values = numbers[finite], values[finite]
    if len(values) < 2 * _SHORTEST or np.ptp(values) == 0:
        return ()
    at = (numbers - numbers[0]) / float(numbers[-1] - numbers[0])
    values = (values - np.median(values)) / np.ptp(values)
    ahead = (at[2:] - at[1:-1]) / (at[2:] - at[:-2])
    distance = values[1:-1] - ahead * values[:-2] - (1 - ahead) * values[2:]
    noise = float(np.median(np.abs(distance / np.sqrt(1 + ahead**2 + (1 - ahead) ** 2)))) / 0.6745
    penalty = strength * max(noise, 1e-6) ** 2 * np.log(len(values))  # no signal is free of rounding
    search = ruptures.Pelt(custom_cost=_line_cost(at), min_size=_SHORTEST, jump=1).fit(values[:, None])
    return tuple(int(numbers[end]) for end in search.predict(pen=penalty)[:-1])


def _line_cost(at: NDArray[np.float64]) -> Any:
    """The sum of squares about the best line through any stretch, from cumulated sums: a cost of `ruptures`.

    Its own linear cost solves least squares anew for each stretch, and takes a hundred times as long.
    """
    from ruptures.base import BaseCost

    class Line(BaseCost):  # type: ignore[misc]
        model, min_size = "line", _SHORTEST

        def fit(self, signal: NDArray[np.float64]) -> Line:
            y = signal[:, 0]
            terms = np.column_stack([np.ones_like(at), at, y, at**2, at * y, y**2])
            self.signal, self.sums = signal, np.vstack([np.zeros(6), np.cumsum(terms, axis=0)])
            return self

        def error(self, start: int, end: int) -> float:
            n, t, y, tt, ty, yy = self.sums[end] - self.sums[start]
            across, along = tt - t * t / n, ty - t * y / n
            return max(float(yy - y * y / n - (along * along / across if across > 0 else 0)), 0.0)

    return Line()


@dataclass(frozen=True, slots=True)
class Change:
    """One change point, and which others agree with it.

    Parameters
    ----------
    model, detector, step
        Whose change point it is, by which detector, at which step.
    before, after : float
        Medians of the signal over the phases beside it.
    detectors : int
        Number of other detectors of this model with a change point within the tolerance.
    detectors_by_chance : float
        The mean of that number if the others' change points lay anywhere.
    any_by_chance : float
        The probability that it would be at least one.
    models : int
        Number of other models whose detector of this kind has a change point within the tolerance.
    models_by_chance : float
        The mean of that number if theirs lay anywhere.
    """

    model: str
    detector: str
    step: int
    before: float
    after: float
    detectors: int
    detectors_by_chance: float
    any_by_chance: float
    models: int
    models_by_chance: float


def agreement(results: Mapping[str, xr.Dataset], *, tolerance: float = TOLERANCE) -> tuple[Change, ...]:
    """Every change point of some models, with the others that agree with it.

    Parameters
    ----------
    results : mapping of str to xarray.Dataset
        The results of `phases` by model.
    tolerance : float
        Two change points agree when they are apart by at most this share of the span of the steps.

    Raises
    ------
    PythiaDynError
        For a tolerance that is not between 0 and 1.
    """
    if not 0 <= tolerance <= 1:
        raise PythiaDynError(f"the tolerance is a share of the training, 0 to 1; got {tolerance:g}")
    found = {name: {kind: _steps(result, kind) for kind in DETECTORS} for name, result in results.items()}
    changes = []
    for name, result in results.items():
        steps = result["step"].to_numpy()
        reach = tolerance * float(steps[-1] - steps[0])
        for kind, own in found[name].items():
            for step in own:
                beside = [found[name][other] for other in DETECTORS if other != kind]
                elsewhere = [found[other][kind] for other in results if other != name]
                before, after = _levels(result, kind, step, own)
                by_chance = _chances(step, beside, reach, steps)
                changes.append(
                    Change(
                        model=name,
                        detector=kind,
                        step=step,
                        before=before,
                        after=after,
                        detectors=_near(step, beside, reach),
                        detectors_by_chance=sum(by_chance),
                        any_by_chance=1 - math.prod(1 - chance for chance in by_chance),
                        models=_near(step, elsewhere, reach),
                        models_by_chance=sum(_chances(step, elsewhere, reach, steps)),
                    )
                )
    return tuple(changes)


def _steps(result: xr.Dataset, kind: str) -> list[int]:
    steps: list[int] = result["step"].to_numpy()[result[f"{kind}_change"].to_numpy()].tolist()
    return steps


def _levels(result: xr.Dataset, kind: str, step: int, all_changes: list[int]) -> tuple[float, float]:
    steps, values = result["step"].to_numpy(), result[kind].to_numpy()
    first = max((other for other in all_changes if other < step), default=int(steps[0]))
    end = min((other for other in all_changes if other > step), default=int(steps[-1]) + 1)
    sides = (values[(steps >= first) & (steps < step)], values[(steps >= step) & (steps < end)])
    before, after = (float(np.median(side[np.isfinite(side)])) if np.isfinite(side).any() else np.nan for side in sides)
    return before, after


def _near(step: int, others: list[list[int]], reach: float) -> int:
    return sum(any(abs(other - step) <= reach for other in changes) for changes in others)


def _chances(step: int, others: list[list[int]], reach: float, steps: NDArray[np.int64]) -> list[float]:
    """For each of `others` the probability of a change that near, were its changes anywhere between both ends."""
    low, high = max(step - reach, float(steps[0])), min(step + reach, float(steps[-1]))
    share = (high - low) / max(float(steps[-1] - steps[0]), 1.0)
    return [float(1 - (1 - share) ** len(changes)) for changes in others]
