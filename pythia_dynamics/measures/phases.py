"""Phases of training: change points of the motion of the weights by three detectors, and their agreement.

Each detector fits one signal by straight lines. A penalty like that of BIC chooses their number. A change point is the
first step of a new line.

The fit is exact. The library `ruptures` 1.1.10 has the same search with pruning, but it prunes too early where a line
has a least length, and misses the best lines of one short signal in 25; its search without pruning takes 3.6 s for 143
values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.gram import Gram

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DETECTORS", "Change", "Detector", "agreement", "change_points", "phases"]

Detector = Literal["displacement_rate", "direction", "bimodality"]

DETECTORS: Mapping[Detector, str] = {
    "displacement_rate": "logarithm of the squared displacement per step since the step before",
    "direction": "cosine between the increments before and after a step",
    "bimodality": "change of Sarle's coefficient of the density per step since the step before",
}
"""The signal of each detector. For a random walk with increments of constant size all three are constant with
independent noise: the squared displacement is divided by the number of steps, and the changes of Sarle's coefficient
are used, because the coefficient itself is a random walk."""

_MIN_RECORDS = 4
"""Fewest records of a phase: a line has two parameters, so two degrees of freedom remain for noise."""

STRENGTH = 5.0
"""Penalty for each change point, in units of σ² ln n. That of BIC is 3; `change_points` gives the reason for 5."""

TOLERANCE = 0.05
"""Two change points agree within this share of the training, which is the window of the claims about changes."""


def phases(history: Any, *, strength: float = STRENGTH, compute: Compute | None = None) -> xr.Dataset:
    """The signals of three detectors for a history, and their change points.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    strength : float
        Penalty for each change point, in units of σ² ln n; see `change_points`.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step`: `displacement_rate` Σ(w_t − w_s)² / (t − s) from the present step s before t (weight²),
        `direction`, the cosine between the increments that end and begin at a step, and `bimodality`, Sarle's
        coefficient; NaN where not known. For each, `<signal>_change` is true at the first step of every new phase by
        its detector (`DETECTORS`). Missing steps, and steps with weights that are not finite, are skipped.

    Raises
    ------
    PythiaDynError
        `strength` is not above 0.
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
    signals = {
        "displacement_rate": _log(columns["displacement_rate"]),
        "direction": columns["direction"],
        "bimodality": _slope(steps, columns["bimodality"]),
    }
    units = {"displacement_rate": "weight^2", "direction": "1", "bimodality": "1"}
    variables: dict[str, Variable] = {}
    for name, column in columns.items():
        variables[name] = Variable(column, name.replace("_", " "), units[name])
        changes = np.isin(steps, change_points(steps, signals[name], strength=strength))
        label = f"change point of the {name.replace('_', ' ')}"
        variables[f"{name}_change"] = Variable(changes, label, attrs={"detector": DETECTORS[name]})
    return step_dataset(history, variables, attrs={"strength": strength})


PHASES = Measure(
    name="phases",
    title="Phases of training",
    source="Jackson et al. 2005; Liu, Wu & Zidek 1997",
    function=phases,
    accumulators=(Gram, Counts),
    finish=_finish,
)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm: NDArray[np.float64] = np.log(values)
    return logarithm


def _slope(steps: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change per step since the previous known value; NaN at the first."""
    slope = np.full(len(values), np.nan)
    at = np.flatnonzero(np.isfinite(values))
    if len(at) > 1:
        slope[at[1:]] = np.diff(values[at]) / np.diff(steps[at])
    return slope


def change_points(steps: Any, signal: Any, *, strength: float = STRENGTH) -> tuple[int, ...]:
    """The first step of every straight line after the first, in a fit of a signal by several lines.

    Each additional line must lower the sum of squares by more than strength · σ² ln n. σ² is the variance of the noise,
    estimated from the median distance of a value to the line through its two neighbours. The strength of BIC is 3, for
    the three parameters of a line (level, slope, place). The default 5 gives fewer false change points, as in Liu, Wu &
    Zidek (1997). Of constant signals with independent Gaussian noise, 5 % with 30 values have a change point, 2 % with
    60, 0.3 % with 143. With the heavy-tailed noise of Student's t with 5 degrees of freedom it is 11 %, 7 % and 6 %.

    Parameters
    ----------
    steps
        Step numbers, shape (T,), increasing.
    signal
        Values, shape (T,). NaN is skipped. A phase has at least four of the others.
    strength
        Penalty for each change point, above 0.

    Raises
    ------
    PythiaDynError
        `strength` is not above 0.
    """
    if strength <= 0:
        raise PythiaDynError(f"the strength of the penalty must be above 0; got {strength:g}")
    numbers, values = np.asarray(steps), np.asarray(signal, dtype=np.float64)
    finite = np.isfinite(values)
    numbers, values = numbers[finite], values[finite]
    if len(values) < 2 * _MIN_RECORDS or np.ptp(values) == 0:
        return ()
    at = (numbers - numbers[0]) / float(numbers[-1] - numbers[0])
    values = (values - np.median(values)) / np.ptp(values)
    weight = (at[2:] - at[1:-1]) / (at[2:] - at[:-2])
    residual = values[1:-1] - weight * values[:-2] - (1 - weight) * values[2:]
    noise = float(np.median(np.abs(residual / np.sqrt(1 + weight**2 + (1 - weight) ** 2)))) / 0.6745
    penalty = strength * max(noise, 1e-6) ** 2 * np.log(len(values))  # noise is at least rounding
    return tuple(int(numbers[start]) for start in _starts(at, values, penalty))


def _starts(at: NDArray[np.float64], values: NDArray[np.float64], penalty: float) -> list[int]:
    """Where the lines after the first start in the fit with the least sum of squares and penalties.

    The best lines for the first n values are one from some start to n, and the best lines for the values before that
    start (Jackson et al. 2005). All starts are tried at once; the sum of squares about a line is computed from
    cumulative sums. Abscissae are relative to the end of the line, so that steps that are close together keep their
    distances.
    """
    count = len(values)
    least, last = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=np.intp)
    least[0] = 0.0
    for end in range(_MIN_RECORDS, count + 1):
        before = end - _MIN_RECORDS + 1
        to_end, level = at[:end] - at[end - 1], values[:end]
        terms = np.stack([np.ones(end), to_end, level, to_end**2, to_end * level])
        n, x, y, xx, xy = np.cumsum(terms[:, ::-1], axis=1)[:, ::-1][:, :before]
        costs = least[:before] - y**2 / n - (xy - x * y / n) ** 2 / (xx - x**2 / n)  # without Σy², the same for all
        last[end] = np.argmin(costs)
        least[end] = costs[last[end]] + penalty
    starts = [int(last[-1])]
    while starts[0]:
        starts.insert(0, int(last[starts[0]]))
    return starts[1:]


@dataclass(frozen=True, slots=True)
class Change:
    """One change point, and how many others agree with it.

    Parameters
    ----------
    model, detector, step
        Name of the model, name of the detector, step of the change point.
    before, after : float
        Medians of the signal over the phases before and after it; NaN where not known.
    detectors : int
        Number of other detectors of this model with a change point within the tolerance.
    detectors_by_chance : float
        Expected value of that number if the change points of the others were uniform over the training.
    any_by_chance : float
        Probability that the number is at least one in that case.
    models : int
        Number of other models with a change point of the same detector within the tolerance.
    models_by_chance : float
        Expected value of that number if their change points were uniform over the training.
    """

    model: str
    detector: Detector
    step: int
    before: float
    after: float
    detectors: int
    detectors_by_chance: float
    any_by_chance: float
    models: int
    models_by_chance: float


def agreement(results: Mapping[str, xr.Dataset], *, tolerance: float = TOLERANCE) -> tuple[Change, ...]:
    """Every change point of several models, and how many others agree with it.

    Parameters
    ----------
    results : mapping of str to xarray.Dataset
        The results of `phases` by model.
    tolerance : float
        Two change points agree when their difference is at most this share of the span of the steps, 0 to 1.

    Raises
    ------
    PythiaDynError
        The tolerance is not between 0 and 1.
    """
    if not 0 <= tolerance <= 1:
        raise PythiaDynError(f"the tolerance is a share of the training, 0 to 1; got {tolerance:g}")
    found = {name: {kind: _steps(result, kind) for kind in DETECTORS} for name, result in results.items()}
    changes = []
    for name, result in results.items():
        steps = result["step"].to_numpy()
        window = tolerance * float(steps[-1] - steps[0])
        for kind, own in found[name].items():
            for step in own:
                detectors = [found[name][other] for other in DETECTORS if other != kind]
                models = [found[other][kind] for other in results if other != name]
                before, after = _levels(result, kind, step, own)
                by_chance = _chance_probabilities(step, detectors, window, steps)
                changes.append(
                    Change(
                        model=name,
                        detector=kind,
                        step=step,
                        before=before,
                        after=after,
                        detectors=_count_near(step, detectors, window),
                        detectors_by_chance=sum(by_chance),
                        any_by_chance=1 - math.prod(1 - probability for probability in by_chance),
                        models=_count_near(step, models, window),
                        models_by_chance=sum(_chance_probabilities(step, models, window, steps)),
                    )
                )
    return tuple(changes)


def _steps(result: xr.Dataset, kind: Detector) -> list[int]:
    steps: list[int] = result["step"].to_numpy()[result[f"{kind}_change"].to_numpy()].tolist()
    return steps


def _levels(result: xr.Dataset, kind: Detector, step: int, all_changes: list[int]) -> tuple[float, float]:
    steps, values = result["step"].to_numpy(), result[kind].to_numpy()
    first = max((other for other in all_changes if other < step), default=int(steps[0]))
    end = min((other for other in all_changes if other > step), default=int(steps[-1]) + 1)
    sides = (values[(steps >= first) & (steps < step)], values[(steps >= step) & (steps < end)])
    before, after = (float(np.median(side[np.isfinite(side)])) if np.isfinite(side).any() else np.nan for side in sides)
    return before, after


def _count_near(step: int, others: list[list[int]], window: float) -> int:
    return sum(any(abs(other - step) <= window for other in changes) for changes in others)


def _chance_probabilities(step: int, others: list[list[int]], window: float, steps: NDArray[np.int64]) -> list[float]:
    """For each of `others` the probability of a change within the window if its changes are uniform over the steps."""
    low, high = max(step - window, float(steps[0])), min(step + window, float(steps[-1]))
    share = (high - low) / float(steps[-1] - steps[0])
    return [float(1 - (1 - share) ** len(changes)) for changes in others]
