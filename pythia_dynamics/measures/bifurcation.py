"""Where the weights are said to bifurcate: a peak of the displacement, a second mode of the density, and whether both
fall together (Garden of Forking Paths, §4.1).

Each detector looks at one curve of `msd` or `density` and names a step, or says why there is none. It is no claim: what
stands against noise is judged in `pythia_dynamics.claims`.
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
"""Detectors of a peak; demeaned over time the MSD itself peaks always, so only its ratio to the walk's is asked."""

DENSITY: Mapping[str, str] = {
    "modes": "two modes or more of a kernel density estimate of all weights",
    "sarle": "Sarle's bimodality coefficient above 5/9, that of a uniform density",
    "dip": "Hartigan's dip test of a subsample: p < 0.05 for one mode",
}
"""Detectors of a second mode, from the variables `modes`, `bimodality` and `dip_p`."""

_PROMINENCE = 0.1
_BIMODAL: Mapping[str, tuple[str, Callable[[NDArray[np.float64]], NDArray[np.bool_]]]] = {
    "modes": ("modes", lambda values: values >= 2),
    "sarle": ("bimodality", lambda values: values > 5 / 9),
    "dip": ("dip_p", lambda values: values < 0.05),
}


@dataclass(frozen=True, slots=True)
class Detection:
    """The step that a detector names, or None and the reason."""

    step: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A peak and a second mode: by which detectors, how many steps apart, and whether that is the same step."""

    displacement: str
    density: str
    apart: int
    agree: bool


@dataclass(frozen=True, slots=True)
class Bifurcation:
    """What every detector found, and which pairs of a peak and a second mode agree to within `tolerance` steps.

    `by_chance` is the number of pairs that would agree if both lay anywhere between the first and the last step.
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
    """Put every detector to the datasets of `pythia_dynamics.msd` and `pythia_dynamics.density` of one history.

    The dip test is made where `density` does not have its result (see `dip_test`).

    A peak lies before the last known step and after the first, and stands out by 10 % over both. A second mode is
    there from the first step from which it stays until the last (see `first_lasting`); where that is the first known
    step, nothing has bifurcated. Missing steps are passed over. Two steps are the same when they are apart by at most
    `tolerance` times the span of the steps.

    Raises `PythiaDynError` where the datasets are not of the same steps, or `tolerance` is not between 0 and 1.
    """
    if not 0 <= tolerance <= 1:
        raise PythiaDynError(f"the tolerance is a share of the training, 0 to 1; got {tolerance:g}")
    steps = msd["step"].to_numpy().astype(np.int64)
    if not np.array_equal(steps, density["step"].to_numpy()):
        raise PythiaDynError("msd and density are not of the same steps; compute both again")
    if "dip_p" not in density:
        density = density.assign(dip_test(density))
    with np.errstate(divide="ignore", invalid="ignore"):
        curves = {
            name: np.where(null > 0, curve / null, np.nan)
            for name in ("msd", "msd_time")
            for curve, null in [(_column(msd, name), _column(msd, f"{name}_null"))]
        }
    peaks = {
        "msd": _peak(steps, _column(msd, "msd")),
        "msd_over_null": _peak(steps, curves["msd"]),
        "msd_time_over_null": _peak(steps, curves["msd_time"]),
    }
    modes = {name: _onset(steps, _column(density, column), holds) for name, (column, holds) in _BIMODAL.items()}
    span = float(steps[-1] - steps[0]) if len(steps) else 0.0
    pairs = tuple(
        Pair(first, second, abs(peak.step - onset.step), abs(peak.step - onset.step) <= tolerance * span)
        for first, peak in peaks.items()
        for second, onset in modes.items()
        if peak.step is not None and onset.step is not None
    )
    return Bifurcation(peaks, modes, tolerance * span, pairs, len(pairs) * (1 - (1 - tolerance) ** 2))


def first_lasting(steps: NDArray[np.int64], holds: NDArray[np.bool_], *, least: float = 0.1) -> int | None:
    """The first step from which something holds at every step to the end; None where that is not a tenth of all steps.

    Three steps are asked for in any case. `steps` and `holds` have shape (n,).
    """
    failing = np.flatnonzero(~holds)
    start = int(failing[-1]) + 1 if len(failing) else 0
    lasting = len(steps) - start
    return int(steps[start]) if lasting >= max(3, least * len(steps)) else None


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
    if max(known[0], known[-1]) > (1 - _PROMINENCE) * known.max():
        return Detection(None, f"greatest at step {step:,}, by less than {_PROMINENCE:.0%} over an end")
    return Detection(step)


def _onset(
    steps: NDArray[np.int64],
    curve: NDArray[np.float64],
    holds: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
) -> Detection:
    known = np.isfinite(curve)
    if np.count_nonzero(known) < 3:
        return Detection(None, "too few steps")
    steps, bimodal = steps[known], holds(curve[known])
    since = first_lasting(steps, bimodal)
    if since is None:
        count = np.count_nonzero(bimodal)
        return Detection(None, f"at {count} of {len(steps)} steps, but not to stay" if count else "at no step")
    if since == steps[0]:
        return Detection(None, "from the first step on")
    return Detection(since)
