"""Signs of a bifurcation of the weights, and the step S at which two of them agree (Garden of Forking Paths, §4.1).

Two detectors look for a peak of the displacement that random walks do not explain, three for a second mode of the
density that stays. A peak alone is a turn of the weights or a return: S needs a second mode. This is the one definition
of S; the claims use it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures import peak
from pythia_dynamics.measures.dip import dip_test
from pythia_dynamics.measures.levels import LEVEL
from pythia_dynamics.measures.modes import first_lasting, modes_at
from pythia_dynamics.measures.peak import SAME_STEP, PeakTest, peak_tests

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DENSITY", "DISPLACEMENT", "Bifurcation", "Detection", "Pair", "bifurcation"]

DISPLACEMENT: Mapping[str, str] = peak.DETECTORS
"""Detectors of a peak of the displacement, see `peak_tests`."""

DENSITY: Mapping[str, str] = {
    "modes": "two modes or more of a kernel density estimate of all weights",
    "sarle": "Sarle's bimodality coefficient above 5/9, that of a uniform density",
    "dip": "Hartigan's dip test of a subsample: p < 0.05 for one mode",
}
"""Detectors of a second mode, from the variables `modes`, `bimodality` and `dip_p`."""

_BIMODAL: Mapping[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.bool_]]]] = {
    "modes": ("modes", lambda values: values >= 2),
    "sarle": ("bimodality", lambda values: values > 5 / 9),
    "dip": ("dip_p", lambda values: values < LEVEL),
}
"""By detector its variable and its test: two modes or more, above 5/9 (a uniform density), and the usual 5 % level."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The result of one detector.

    Parameters
    ----------
    step
        The step that the detector found, or None.
    reason
        Why there is no step; empty if there is one.
    p
        Probability of such a peak for a random walk; None for detectors of a second mode, and where it is not tested.
    """

    step: int | None
    reason: str = ""
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two detectors that both found a step, at least one of them a detector of a second mode.

    Parameters
    ----------
    first, second
        Names of the two detectors, in the order of `DISPLACEMENT` and `DENSITY`.
    apart
        Difference of their step numbers.
    agree
        Whether the difference is within the tolerance.
    """

    first: str
    second: str
    apart: int
    agree: bool


@dataclass(frozen=True, slots=True)
class Bifurcation:
    """The step of the bifurcation, the results of all detectors, and the pairs that agree.

    Parameters
    ----------
    step
        S: the middle one of the steps of the detectors that agree (of an even number the earlier); None where no two
        agree.
    origin
        Names of the detectors that agree on S; empty without S.
    reason
        Why there is no S; empty if there is one.
    undecided
        Whether there may be one all the same: noise of so few independent weights can hide a second mode.
    displacement, density
        Results by name of the detector: see `DISPLACEMENT` and `DENSITY`.
    tolerance
        Largest difference, in steps, of two steps that agree.
    pairs
        Every pair of detectors that both found a step, at least one of them by the density.
    by_chance
        Expected number of these pairs that agree if all steps were independent and uniform between the first and the
        last step. Detectors of a second mode are not independent of each other.
    """

    step: int | None
    origin: tuple[str, ...]
    reason: str
    undecided: bool
    displacement: Mapping[str, Detection]
    density: Mapping[str, Detection]
    tolerance: float
    pairs: tuple[Pair, ...]
    by_chance: float

    @property
    def agreeing(self) -> int:
        """The number of pairs that agree, to be compared with `by_chance`."""
        return sum(pair.agree for pair in self.pairs)


def bifurcation(
    msd: xr.Dataset,
    density: xr.Dataset,
    two_time: xr.Dataset | None = None,
    *,
    tolerance: float = SAME_STEP,
    peaks: Mapping[str, PeakTest] | None = None,
) -> Bifurcation:
    """Apply every detector to the results of one history, and look for the step at which two of them agree.

    A peak counts where it is 10 % more prominent than the median of random walks with the measured sizes, directions
    and persistence of steps, and p ≤ 0.05 among them (`peak_tests`). A second mode begins at the first step from which
    it stays to the end (see `first_lasting`); if that is the first known step, the density did not turn bimodal.
    Missing steps are skipped.

    S is the step of the largest group of detectors whose steps all agree with each other and of which at least one is
    of the density; of two such groups, of the one with the smaller range of steps.

    Parameters
    ----------
    msd
        The dataset of `pythia_dynamics.msd`.
    density
        The dataset of `pythia_dynamics.density`. If it has no `dip_p`, the dip test is computed (see `dip_test`). The
        table of its moments will do; without the counts, it is not known whether noise can hide a second mode.
    two_time
        The dataset of `pythia_dynamics.two_time`, from which the random walks follow. Without it no peak counts.
    tolerance
        Two steps agree when their difference is at most this share of the span of the steps, 0 to 1. The default, a
        tenth, is 14 of Pythia's 143 steps.
    peaks
        The result of `peak_tests` where it is known already.

    Raises
    ------
    PythiaDynError
        The datasets do not have the same steps, or `tolerance` is not between 0 and 1.
    """
    if not 0 <= tolerance <= 1:
        raise PythiaDynError(f"the tolerance is a share of the training, 0 to 1; got {tolerance:g}")
    steps = msd["step"].to_numpy().astype(np.int64)
    for other in (density, two_time):
        if other is not None and not np.array_equal(steps, other["step"].to_numpy()):
            raise PythiaDynError("msd, density and two_time are not of the same steps; compute them again")
    if "dip_p" not in density:
        density = density.assign(dip_test(density))
    modes = {name: _onset(steps, _column(density, column), test) for name, (column, test) in _BIMODAL.items()}
    turns = _peaks(msd, two_time, peaks)
    allowed = tolerance * (float(steps[-1] - steps[0]) if len(steps) else 0.0)
    found = {name: at.step for name, at in (*turns.items(), *modes.items()) if at.step is not None}
    pairs = tuple(
        Pair(first, second, abs(found[first] - found[second]), abs(found[first] - found[second]) <= allowed)
        for first, second in combinations(found, 2)
        if second in DENSITY  # detectors of the displacement stand first
    )
    origin = _agreeing(found, allowed)
    step = sorted(found[name] for name in origin)[(len(origin) - 1) // 2] if origin else None
    by_chance = len(pairs) * (1 - (1 - tolerance) ** 2)
    reason, undecided = _no_step(found, allowed, origin), not set(found) & set(DENSITY) and _may_hide_a_mode(density)
    if undecided:
        reason += "; noise of so few independent weights can hide a second mode"
    return Bifurcation(step, origin, reason, undecided, turns, modes, allowed, pairs, by_chance)


def _agreeing(found: Mapping[str, int], allowed: float) -> tuple[str, ...]:
    """The largest group of detectors that agree, one of them of the density at least; empty where no two do."""
    groups = [
        (count, -(max(steps) - min(steps)), names)
        for count in range(2, len(found) + 1)
        for names in combinations(found, count)
        for steps in [[found[name] for name in names]]
        if max(steps) - min(steps) <= allowed and any(name in DENSITY for name in names)
    ]
    return max(groups, key=lambda group: group[:2])[2] if groups else ()


def _no_step(found: Mapping[str, int], allowed: float, origin: tuple[str, ...]) -> str:
    """Why there is no S; empty if there is one."""
    if origin:
        return ""
    if not found:
        return "no peak of the displacement beyond random walks, and no second mode of the density that stays"
    where = ", ".join(f"{name} at {step:,}" for name, step in found.items())
    if not set(found) & set(DENSITY):
        return f"the displacement peaks ({where}), but the density has no second mode: a turn or a return"
    if len(found) == 1:
        return f"one detector alone found a step: {where}"
    return f"no two detectors agree to {allowed:,.0f} steps, with one of them of the density: {where}"


def _may_hide_a_mode(density: xr.Dataset) -> bool:
    """Whether noise can hide a second mode at the last known step; False where the counts are not known."""
    known = np.flatnonzero(np.isfinite(_column(density, "modes")))
    return "counts" in density and len(known) > 0 and modes_at(density, int(known[-1])).may_hide_another


def _peaks(msd: xr.Dataset, two_time: xr.Dataset | None, peaks: Mapping[str, PeakTest] | None) -> dict[str, Detection]:
    """The results of the detectors of a peak."""
    if peaks is None and two_time is None:
        return dict.fromkeys(DISPLACEMENT, Detection(None, "not tested: the displacements of all pairs of steps lack"))
    if peaks is None and two_time is not None:
        try:
            peaks = peak_tests(msd, two_time)
        except PythiaDynError as error:
            return dict.fromkeys(DISPLACEMENT, Detection(None, str(error)))
    return {name: _detection(test) for name, test in (peaks or {}).items()}


def _detection(test: PeakTest) -> Detection:
    if test.found:
        return Detection(test.peak.step, "", test.p)
    if test.reason:
        reason = test.reason
    elif test.prominence == 0:
        reason = "greatest at an end"
    else:
        reason = (
            f"greatest at step {test.peak.step:,}, by {test.prominence:.0%} over an end; 5 % of random walks exceed "
            f"{test.critical:.0%}, half of them {test.typical:.0%}"
        )
    return Detection(None, reason, test.p)


def _column(dataset: xr.Dataset, name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = dataset[name].to_numpy().astype(np.float64)
    return values


def _onset(
    steps: NDArray[np.int64],
    curve: NDArray[np.float64],
    is_bimodal: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
) -> Detection:
    known = np.isfinite(curve)
    if np.count_nonzero(known) < 3:
        return Detection(None, "too few steps")
    steps, bimodal = steps[known], is_bimodal(curve[known])
    onset = first_lasting(steps, bimodal)
    if onset is None:
        count = np.count_nonzero(bimodal)
        return Detection(None, f"at {count} of {len(steps)} steps, but not to stay" if count else "at no step")
    if onset == steps[0]:
        return Detection(None, "from the first step on")
    return Detection(onset)
