"""The curves for a rule about stationary weights: displacements, and MSD with that of a random walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import MSD, Integral, random_walk
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.gram import Gram, displacements

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["RATE_STEPS", "motion"]

RATE_STEPS = 1000
"""Displacement rates are per 1,000 steps, the interval of the checkpoints of Pythia."""


def motion(history: Any, *, steps: Sequence[int] | None = None, compute: Compute | None = None) -> xr.Dataset:
    """The curves that a `StationarityRule` needs, from one reading of a history.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step`: `frobenius_norm` (weight), `moved` Σ(w_t − w_s)² with the previous present step s (weight²),
        `displacement_rate` ‖w_t − w_s‖ / ‖w_t‖ per 1,000 steps, `msd` and `msd_null` (as `pythia_dynamics.msd`), and
        `msd_null_sd`, the standard deviation of the MSD of the random walk (weight²). Over (`step`, `other_step`):
        `squared_displacement` Σ(w_t − w_s)² (weight²), whose attribute `weights` is the number of weights. Missing
        steps, and steps with weights that are not finite, are NaN. So is the first rate.
    """
    return MOTION(history, steps=steps, compute=compute)


def _finish(history: History, integral: Integral, gram: Gram) -> xr.Dataset:
    curves = MSD.finish(history, integral)[["msd", "msd_null"]]
    sums, size, at = integral.total, integral.size, integral.indices
    squared = sums[:, 1] + 2 * integral.shift * sums[:, 0] + size * integral.shift**2
    norm = np.sqrt(np.maximum(squared, 0))
    moved = sums[:, 4]
    _, spread = random_walk(integral.spread_at_start, moved, size)
    rate = np.full(len(at), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate[1:] = np.sqrt(moved[1:]) / norm[1:] * RATE_STEPS / np.diff(history.steps[at])
    variables = {
        "frobenius_norm": Variable(norm, "Frobenius norm of W", "weight"),
        "moved": Variable(moved, "squared displacement since the step before", "weight^2"),
        "displacement_rate": Variable(rate, f"relative displacement per {RATE_STEPS} steps"),
        "msd_null_sd": Variable(spread, "standard deviation of the MSD of a random walk", "weight^2"),
    }
    found = curves.assign(step_dataset(history, variables, at=at).data_vars)
    pairs = np.full((len(history.steps),) * 2, np.nan)
    pairs[np.ix_(gram.indices, gram.indices)] = displacements(gram.increments())
    label = {"long_name": "squared displacement between two steps", "units": "weight^2", "weights": gram.size}
    return found.assign({"squared_displacement": (("step", "other_step"), pairs, label)}).assign_coords(
        other_step=history.steps
    )


MOTION = Measure(
    name="motion",
    title="Motion of the weights",
    source="Nicolini et al., arXiv 2403.08739, §5",
    function=motion,
    accumulators=(Integral, Gram),
    finish=_finish,
)
