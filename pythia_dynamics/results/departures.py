"""Runs that leave the others: which, from which step, and how sure that is. No file is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics.results.spread import END_RECORDS, LEVEL, scaled, tolerance_of

__all__ = ["ALARMS", "MIN_RUNS", "Departure", "Departures", "departures"]

_Array = NDArray[np.float64]

ALARMS = 0.025
"""Level of the test of departures: the share of populations of exchangeable runs in which any run is said to leave, if
ends are normal. It is half of 5 %, so that 5 % hold for heavier tails too, those of Student's distribution with 5
degrees of freedom (measured in 600 populations of 5 and of 9 runs)."""

MIN_RUNS = 5
"""Fewest runs in which one can be found to have left the others. Of four, the other three have a spread with two
degrees of freedom, and 14 times their standard deviation would be asked for."""


@dataclass(frozen=True)
class Departure:
    """A run that leaves the others.

    Parameters
    ----------
    run
        Its name.
    step
        The first step from which it stays outside the 95 % prediction interval of the runs that stay, on one side.
    last_step
        Its last step that was compared.
    deviations
        Its end, less the mean of the others, in standard deviations of the others; infinite if these are equal.
    ratio
        Its end over the geometric mean of the others; NaN where values are not all positive.
    p
        p-value of the end, corrected for the number of runs and of tests.
    """

    run: str
    step: int
    last_step: int
    deviations: float
    ratio: float
    p: float


@dataclass(frozen=True)
class Departures:
    """The runs that leave the others.

    Parameters
    ----------
    found
        They, in the order of their steps.
    tested
        Number of runs that were compared with at least `MIN_RUNS` − 1 others.
    reason
        Why nothing was decided; empty if runs were tested.
    """

    found: tuple[Departure, ...]
    tested: int
    reason: str = ""


def departures(values: xr.DataArray) -> Departures:
    """The runs that leave the others and do not come back, and the step from which each stays outside.

    A run has left if its end, the mean of its last `END_RECORDS` records, is outside of what the other runs give there,
    by the generalised extreme studentised deviate (Rosner 1983): the most extreme of n runs is compared with the others
    by Student's distribution with n − 2 degrees of freedom, is left out, and so on for up to (n − 1)/4 runs, so that
    two that leave do not hide each other. Each p-value is multiplied by the number of runs and of these tests
    (Bonferroni). Only ends are tested, once per run. So, whatever the correlation of a curve along the steps, at most
    `ALARMS` of all populations of exchangeable runs with normal ends have a departure at all.

    Parameters
    ----------
    values
        A curve over `run` and `step`; NaN is no record. A run that ends early is compared at its own end.

    Returns
    -------
    Departures
        Nothing is decided for fewer than `MIN_RUNS` runs. A run that is outside for fewer than `END_RECORDS` records is
        not listed.
    """
    curve, logarithmic = scaled(values)
    names, steps = [str(name) for name in values["run"].to_numpy()], values["step"].to_numpy()
    known, tolerance = np.isfinite(curve), tolerance_of(curve)
    present = known.any(axis=1)
    groups: dict[int, list[int]] = {}
    for run in np.flatnonzero(present).tolist():
        if (at := np.flatnonzero(known[run] & (known.sum(axis=0) >= MIN_RUNS))).size:
            groups.setdefault(int(at[-1]), []).append(run)
    if not groups:
        few = f"{int(present.sum())} runs" if present.sum() < MIN_RUNS else f"no step has {MIN_RUNS} runs"
        return Departures((), 0, f"{few}; {MIN_RUNS} are needed")
    found = []
    for end, own in groups.items():
        compared: list[int] = np.flatnonzero(known[:, end]).tolist()
        common = np.flatnonzero(known[compared, : end + 1].all(axis=0))[-END_RECORDS:]
        outside = _outliers(curve[np.ix_(np.array(compared), common)].mean(axis=1), int(present.sum()), tolerance)
        stay = [run for place, run in enumerate(compared) if place not in outside]
        for place, (deviations, p) in outside.items():
            run = compared[place]
            since = _since(curve[:, : end + 1], run, stay, np.sign(deviations), tolerance)
            if run in own and since is not None:
                ends = curve[np.ix_(np.array([run, *stay]), common)].mean(axis=1)
                ratio = float(np.exp(ends[0] - ends[1:].mean())) if logarithmic else np.nan
                found.append(Departure(names[run], int(steps[since]), int(steps[end]), deviations, ratio, p))
    ordered = tuple(sorted(found, key=lambda one: (one.step, one.run)))
    return Departures(ordered, sum(map(len, groups.values())))


def _deviation(value: float, others: _Array, tolerance: float) -> tuple[float, float]:
    """A value less the mean of the others in their standard deviations, and Student's t of a new observation."""
    difference, spread = float(value - others.mean()), float(others.std(ddof=1))
    if abs(difference) <= tolerance:
        return 0.0, 0.0
    if spread <= tolerance:
        return float(np.copysign(np.inf, difference)), float(np.copysign(np.inf, difference))
    return difference / spread, difference / spread / float(np.sqrt(1 + 1 / len(others)))


def _outliers(ends: _Array, runs: int, tolerance: float) -> dict[int, tuple[float, float]]:
    """The places of the ends that are outliers: deviation from those that stay, and corrected p-value."""
    from scipy.stats import t

    left, order, p_values = list(range(len(ends))), [], []
    tests = (len(ends) - 1) // 4
    for _ in range(tests):
        place = max(left, key=lambda one: abs(ends[one] - ends[left].mean()))
        left.remove(place)
        student = _deviation(ends[place], ends[left], tolerance)[1]
        order.append(place)
        p_values.append(min(float(2 * t.sf(abs(student), len(left) - 1)) * runs * tests, 1.0))
    count = max((number for number, p in enumerate(p_values, 1) if p <= ALARMS), default=0)
    others = ends[[place for place in range(len(ends)) if place not in order[:count]]]
    # One that the next hides has the p-value of the test in which both are seen.
    return {
        place: (_deviation(ends[place], others, tolerance)[0], min(p_values[number:count]))
        for number, place in enumerate(order[:count])
    }


def _since(curve: _Array, run: int, stay: Sequence[int], side: float, tolerance: float) -> int | None:
    """The first record from which a run stays outside the prediction interval of those that stay, on one side."""
    from scipy.stats import t

    since, lasted = None, 0
    for record in range(curve.shape[1] - 1, -1, -1):
        others = curve[stay, record]
        others = others[np.isfinite(others)]
        if not np.isfinite(curve[run, record]) or len(others) < MIN_RUNS - 2:
            continue  # a gap says nothing
        student = _deviation(curve[run, record], others, tolerance)[1]
        if student * side <= t.isf(LEVEL / 2, len(others) - 1):
            break
        since, lasted = record, lasted + 1
    return since if lasted >= END_RECORDS else None
