"""Signs of a bifurcation of the weights: a peak of the displacement, a second mode of the density, and whether both
occur at the same step (Garden of Forking Paths, §4.1).

Each detector takes one curve of `msd` or `density` and gives a step, or the reason why there is none. It does not test
significance: `pythia_dynamics.claims` compares with noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.dip import dip_test
from pythia_dynamics.measures.displacement import interior_peak

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DENSITY", "DISPLACEMENT", "Bifurcation", "Detection", "Pair", "bifurcation", "first_lasting"]

DISPLACEMENT: Mapping[str, str] = {
    "msd": "interior peak of the MSD (Eq 5)",
    "msd_over_null": "interior peak of the MSD over that of a random walk",
    "msd_time_over_null": "the same, demeaned over time",
}
"""Detectors of a peak. The MSD demeaned over time always has a peak, so only its ratio to that of the walk is used."""

DENSITY: Mapping[str, str] = {
    "modes": "two modes or more of a kernel density estimate of all weights",
    "sarle": "Sarle's bimodality coefficient above 5/9, that of a uniform density",
    "dip": "Hartigan's dip test of a subsample: p < 0.05 for one mode",
}
"""Detectors of a second mode, from the variables `modes`, `bimodality` and `dip_p`."""

_MIN_PROMINENCE = 0.1
"""Share of its height by which a peak must exceed both ends of the curve, so that one noisy value at the end of a
rising curve is not a peak."""

_BIMODAL: Mapping[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.bool_]]]] = {
    "modes": ("modes", lambda values: values >= 2),
    "sarle": ("bimodality", lambda values: values > 5 / 9),
    "dip": ("dip_p", lambda values: values < 0.05),
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
    """

    step: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A peak and a second mode that were both found.

    Parameters
    ----------
    displacement, density
        Names of the two detectors.
    apart
        Difference of their step numbers.
    agree
        Whether the difference is within the tolerance.
    """

    displacement: str
    density: str
    apart: int
    agree: bool


@dataclass(frozen=True, slots=True)
class Bifurcation:
    """The results of all detectors, and the pairs of a peak and a second mode.

    Parameters
    ----------
    displacement, density
        Results by name of the detector: see `DISPLACEMENT` and `DENSITY`.
    tolerance
        Largest difference, in steps, of two steps that agree.
    pairs
        Every pair of a peak and a second mode that were both found.
    by_chance
        Expected number of pairs that agree if both steps are independent and uniform between the first and last step.
    """

    displacement: Mapping[str, Detection]
    density: Mapping[str, Detection]
    tolerance: float
    pairs: tuple[Pair, ...]
    by_chance: float

    @property
    def agreeing(self) -> int:
        """The number of pairs that agree."""
        return sum(pair.agree for pair in self.pairs)


def bifurcation(msd: xr.Dataset, density: xr.Dataset, *, tolerance: float = 0.1) -> Bifurcation:
    """Apply every detector to the results of one history.

    A peak is between the first and the last known step and exceeds both values by 10 % of its height. A second mode
    begins at the first step from which it stays to the end (see `first_lasting`). If that is the first known step,
    there is no bifurcation. Missing steps are skipped.

    Parameters
    ----------
    msd
        The dataset of `pythia_dynamics.msd`.
    density
        The dataset of `pythia_dynamics.density`. If it has no `dip_p`, the dip test is computed (see `dip_test`).
    tolerance
        Two steps agree when their difference is at most this share of the span of the steps, 0 to 1. The default, a
        tenth, is 14 of Pythia's 143 steps.

    Raises
    ------
    PythiaDynError
        The datasets do not have the same steps, or `tolerance` is not between 0 and 1.
    """
    if not 0 <= tolerance <= 1:
        raise PythiaDynError(f"the tolerance is a share of the training, 0 to 1; got {tolerance:g}")
    steps = msd["step"].to_numpy().astype(np.int64)
    if not np.array_equal(steps, density["step"].to_numpy()):
        raise PythiaDynError("msd and density are not of the same steps; compute both again")
    if "dip_p" not in density:
        density = density.assign(dip_test(density))
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is no peak
        curves = {
            name: curve / null
            for name in ("msd", "msd_time")
            for curve, null in [(_column(msd, name), _column(msd, f"{name}_null"))]
        }
    peaks = {
        "msd": _peak(steps, _column(msd, "msd")),
        "msd_over_null": _peak(steps, curves["msd"]),
        "msd_time_over_null": _peak(steps, curves["msd_time"]),
    }
    modes = {name: _onset(steps, _column(density, column), test) for name, (column, test) in _BIMODAL.items()}
    span = float(steps[-1] - steps[0]) if len(steps) else 0.0
    pairs = tuple(
        Pair(first, second, abs(peak.step - onset.step), abs(peak.step - onset.step) <= tolerance * span)
        for first, peak in peaks.items()
        for second, onset in modes.items()
        if peak.step is not None and onset.step is not None
    )
    return Bifurcation(peaks, modes, tolerance * span, pairs, len(pairs) * (1 - (1 - tolerance) ** 2))


def first_lasting(steps: NDArray[np.int64], holds: NDArray[np.bool_], *, min_share: float = 0.1) -> int | None:
    """The first step from which a condition holds at every step to the end, or None.

    Parameters
    ----------
    steps
        Step numbers, shape (n,).
    holds
        Whether the condition holds at each step, shape (n,).
    min_share
        The condition must hold at the last `min_share` · n steps at least, and at the last three, so that one noisy
        value at the end is not enough.
    """
    failing = np.flatnonzero(~holds)
    start = int(failing[-1]) + 1 if len(failing) else 0
    lasting = len(steps) - start
    return int(steps[start]) if lasting >= max(3, min_share * len(steps)) else None


def _column(dataset: xr.Dataset, name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = dataset[name].to_numpy().astype(np.float64)
    return values


def _peak(steps: NDArray[np.int64], curve: NDArray[np.float64]) -> Detection:
    known = curve[np.isfinite(curve)]
    if len(known) < 3:
        return Detection(None, "too few steps")
    step = interior_peak(steps, curve)
    if step is None:
        return Detection(None, "greatest at an end")
    if max(known[0], known[-1]) > (1 - _MIN_PROMINENCE) * known.max():
        return Detection(None, f"greatest at step {step:,}, by less than {_MIN_PROMINENCE:.0%} over an end")
    return Detection(step)


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
