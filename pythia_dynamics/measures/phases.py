"""Phases of training: where the way the weights move changes, by three detectors, and whether they agree.

Each detector looks at one signal and fits it by straight lines, as many as pay for themselves: PELT (Killick, Fearnhead
& Eckley 2012, as `ruptures` has it) with a penalty of the kind of BIC. A change point is the first step of a new line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.gram import Gram
from pythia_dynamics.sweep.sweep import sweep

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

_SHORTEST = 4  # records of a phase


def phases(
    history: Any,
    *,
    strength: float = 5.0,
    drop_padding: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """The signals of a history and where they change, over `step`.

    `displacement_rate` Σ(w_t − w_s)² / (t − s) from the present step s before t (weight²), `direction` the cosine
    between the increments that end and begin at a step, `bimodality` Sarle's coefficient; NaN where not known. Beside
    each, `<signal>_change` is true at the first step of every new phase by its detector (`DETECTORS`,
    `change_points` with this `strength`). Missing steps, and those with weights that are not finite, are skipped.
    """
    import xarray as xr

    history = as_history(history)
    warn_missing(history)
    accumulators: list[Any] = [Gram(), Counts()]
    gram, counts = sweep(history, accumulators, drop_padding=drop_padding, threads=threads, progress=progress)
    steps = history.steps
    known = steps[gram.indices].astype(np.float64)
    products = gram.increments()
    sizes = np.diag(products)
    length = len(steps)
    columns = {name: np.full(length, np.nan) for name in DETECTORS}
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
    data: dict[str, Any] = {}
    for name, column in columns.items():
        data[name] = ("step", column, {"long_name": name.replace("_", " "), "units": units[name]})
        found = change_points(steps, watched[name], strength=strength)
        data[f"{name}_change"] = ("step", np.isin(steps, found), {"detector": DETECTORS[name]})
    return xr.Dataset(data, {"step": steps}, {**history.provenance, "strength": strength})


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


def change_points(steps: Any, signal: Any, *, strength: float = 5.0) -> tuple[int, ...]:
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
    """One change point, and who else sees it.

    `before` and `after` are the medians of the signal over the phases beside it. `detectors` is the number of other
    detectors of this model that have a change within the tolerance, `models` the number of other models whose detector
    of this kind has one; `detectors_by_chance` and `models_by_chance` are what those numbers would be on average if
    the others' changes lay anywhere.
    """

    model: str
    detector: str
    step: int
    before: float
    after: float
    detectors: int
    detectors_by_chance: float
    models: int
    models_by_chance: float


def agreement(results: Mapping[str, xr.Dataset], *, tolerance: float = 0.05) -> tuple[Change, ...]:
    """Every change point of the models (datasets of `phases`, by name), with those of others beside it.

    Two agree when they are apart by no more than `tolerance` times the span of the steps.
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
                changes.append(
                    Change(
                        name,
                        kind,
                        step,
                        before,
                        after,
                        _near(step, beside, reach),
                        _chance(step, beside, reach, steps),
                        _near(step, elsewhere, reach),
                        _chance(step, elsewhere, reach, steps),
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


def _chance(step: int, others: list[list[int]], reach: float, steps: NDArray[np.int64]) -> float:
    """The expected number of `others` with a change that near, were each anywhere between the first and last step."""
    low, high = max(step - reach, float(steps[0])), min(step + reach, float(steps[-1]))
    share = (high - low) / max(float(steps[-1] - steps[0]), 1.0)
    return float(sum(1 - (1 - share) ** len(changes) for changes in others))
