"""Phases of training: abrupt changes of the motion of the weights by three detectors, and their agreement.

Each detector has a signal from which the learning rate is taken out. A change point is a step in the signal that a
smooth trend does not explain (`pythia_dynamics.measures.change_points`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.change_points import STRENGTH, change_points, window_of
from pythia_dynamics.measures.learning_rate import walk_time
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.gram import Gram

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DETECTORS", "Change", "Detector", "agreement", "phases"]

Detector = Literal["displacement_rate", "direction", "bimodality"]

DETECTORS: Mapping[Detector, str] = {
    "displacement_rate": "logarithm of the squared displacement since the step before, without the noise of records, "
    "relative to that expected from the learning rate",
    "direction": "cosine between the increments before and after a step, less that of the noise of records",
    "bimodality": "change of Sarle's coefficient of the density since the step before, relative to the displacement",
}
"""The signal of each detector. For a random walk whose steps follow the learning rate η, with or without noise of each
record, all three are constant with noise: the expected squared displacement is a + b ∫η²."""

_LEAST: Mapping[Detector, float] = {"displacement_rate": float(np.log(2)), "direction": 0.2, "bimodality": 0.0}
"""Least change that counts: a rate that doubles, a cosine that differs by 0.2. It rules out the tiny irregularities of
curves without noise. For the bimodality `_LEAST_BIMODALITY` does so."""

_FACTOR: Mapping[Detector, float] = {"displacement_rate": 1.0, "direction": 1.0, "bimodality": 2.0}
"""Factor of the strength. Sarle's coefficient follows the few largest weights: while heavy tails build up, its noise is
far larger than later."""

_LEAST_BIMODALITY = 0.04
"""Least change of Sarle's coefficient, over a window, that counts: a fifth of the way from that of a Gaussian,
0.333, to that of a uniform density, 0.555."""

_STILL = 1e-6
"""A squared displacement below this share of the expected one is no motion; its logarithm is that of this share."""

TOLERANCE = 0.05
"""Two change points agree within this share of the training, which is the window of the claims about changes."""


def phases(
    history: Any, *, strength: float = STRENGTH, steps: Sequence[int] | None = None, compute: Compute | None = None
) -> xr.Dataset:
    """The signals of three detectors for a history, and their change points.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    strength : float
        Least size of a change, in robust standard deviations; see `change_points`.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step`: `displacement_rate` Σ(w_t − w_s)² / ∫η² from the present step s before t (weight²), or per step
        where the learning rate is not known; `direction`, the cosine between the increments that end and begin at a
        step; and `bimodality`, Sarle's coefficient; NaN where not known. For each, `<signal>_change` is true at the
        first step of every new phase by its detector (`DETECTORS`). Where the learning rate is not known, a change of
        the displacement rate may be one of the schedule: `displacement_rate_change` is then false, and
        `displacement_rate_undecided` true at its steps. Missing steps, and steps with weights that are not finite, are
        skipped. The attribute `learning_rate_known` says which it is, and `learning_rate_note` why it is not known, or
        at which steps it is taken from the nearest one (`walk_time`).

    Raises
    ------
    PythiaDynError
        `strength` is not above 0.
    """
    return PHASES(history, strength=strength, steps=steps, compute=compute)


def _finish(history: History, gram: Gram, counts: Counts, *, strength: float) -> xr.Dataset:
    steps, at = history.steps, gram.indices
    products = gram.increments()
    sizes = np.diag(products)
    covered = walk_time(steps, history.coordinates.get("learning_rate"), at)
    rate_known, passed = covered.known, np.diff(covered.time)
    columns = {name: np.full(len(steps), np.nan) for name in DETECTORS}
    signals = {name: np.full(len(steps), np.nan) for name in DETECTORS}
    least: dict[Detector, float] = dict(_LEAST)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["displacement_rate"][at[1:]] = np.where(passed > 0, sizes[1:] / passed, np.nan)
        columns["direction"][at[1:-1]] = np.diag(products, 1)[1:] / np.sqrt(sizes[1:-1] * sizes[2:])
    columns["bimodality"][counts.indices] = counts.moments.bimodality
    if len(at) > 2 and sizes[1:].any():
        noise = _noise(products[1:, 1:])
        expected = _expected(sizes[1:], passed, noise)
        signals["displacement_rate"][at[1:]] = _relative_rate(products[1:, 1:], expected, passed, noise)
        with np.errstate(divide="ignore", invalid="ignore"):
            opposed = noise / np.sqrt(expected[:-1] * expected[1:])
            signals["direction"][at[1:-1]] = columns["direction"][at[1:-1]] + opposed
            distance = np.full(len(steps), np.nan)
            distance[at[1:]] = np.sqrt(sizes[1:] / np.median(sizes[1:][sizes[1:] > 0]))
            signals["bimodality"] = _differences(columns["bimodality"]) / distance
        least["bimodality"] = _LEAST_BIMODALITY / window_of(len(at))
    units = {"displacement_rate": "weight^2", "direction": "1", "bimodality": "1"}
    variables: dict[str, Variable] = {}
    for name, column in columns.items():
        variables[name] = Variable(column, name.replace("_", " "), units[name])
        changes = np.isin(
            steps, change_points(steps, signals[name], strength=_FACTOR[name] * strength, least=least[name])
        )
        label = f"change point of the {name.replace('_', ' ')}"
        about = {"detector": DETECTORS[name]}
        if name == "displacement_rate":
            undecided = changes & (not rate_known)
            changes &= rate_known
            text = f"{label}, or change of the learning rate, which is not known"
            variables[f"{name}_undecided"] = Variable(undecided, text, attrs=about)
        variables[f"{name}_change"] = Variable(changes, label, attrs=about)
    attributes = {"strength": strength, "learning_rate_known": int(rate_known), "learning_rate_note": covered.note}
    return step_dataset(history, variables, attrs=attributes)


def _noise(products: NDArray[np.float64]) -> float:
    """Squared size of the noise of single records, 0 where neighbouring increments do not oppose each other.

    The noise of a record is in the increments before and after it with opposite signs. Increments that oppose each
    other by less than four standard errors of the mean cosine, or by a cosine of 0.03, are taken as free of it.
    """
    sizes = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.diag(products, 1) / (sizes[1:] * sizes[:-1])
    cosines = cosines[np.isfinite(cosines)]
    if len(cosines) < 2 or cosines.mean() > -max(4 * cosines.std() / np.sqrt(len(cosines)), 0.03):
        return 0.0
    return max(-float(np.mean(np.diag(products, 1))), 0.0)


def _relative_rate(
    products: NDArray[np.float64], expected: NDArray[np.float64], passed: NDArray[np.float64], noise: float
) -> NDArray[np.float64]:
    """Logarithm of squared displacements relative to the expected ones, without the noise of records.

    δ_i·(δ_{i−1} + δ_i + δ_{i+1}) has no noise of records on average. Its own error is about √2 ‖δ_i‖² times that of a
    cosine between neighbours. Three times it is added to both sides of the ratio, so that the logarithm is of a
    positive number.
    """
    moved = np.diag(products)
    if noise:
        beside = np.diag(products, 1)
        found = moved + np.append(beside, beside[-1]) + np.append(beside[0], beside)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines = beside / np.sqrt(moved[1:] * moved[:-1])
            rates = found / passed
        error = 1.48 * float(np.nanmedian(np.abs(np.diff(cosines)))) / np.sqrt(2)
        floor = 3 * np.sqrt(2) * error * moved
        usual = max(float(np.median(rates[np.isfinite(rates)])), 0.0) * passed
    else:
        found, floor, usual = moved, np.zeros_like(moved), expected
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(usual + floor > 0, np.maximum(found + floor, 0) / (usual + floor), np.nan)
    logarithm: NDArray[np.float64] = np.log(np.maximum(relative, _STILL))
    return logarithm


def _expected(moved: NDArray[np.float64], passed: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """The squared displacement a + b ∫η² of a walk with noise of records: a is twice the noise, b a median."""
    usable = (passed > 0) & (moved > 0)
    rate = float(np.median(np.maximum(moved[usable] - 2 * noise, 0) / passed[usable])) if usable.any() else 0.0
    return 2 * noise + rate * passed


PHASES = Measure(
    name="phases",
    title="Phases of training",
    source="regression discontinuity in a moving window",
    function=phases,
    accumulators=(Gram, Counts),
    finish=_finish,
)


def _differences(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change since the previous known value; NaN at the first."""
    found = np.full(len(values), np.nan)
    at = np.flatnonzero(np.isfinite(values))
    found[at[1:]] = np.diff(values[at])
    return found


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
