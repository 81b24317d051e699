"""When to stop training: the exit protocol of "The Garden of Forking Paths", made precise, and what it would cost.

The paper stops once the weights are stationary. Here that is a rule on a few curves which are known while training
goes on, so that it can stop a run (`StationarityStop`) or be replayed over any history (`replay`).

The MSD that is demeaned over *time* is no such curve: its mean is over steps still to come, and at whatever step one
takes it, it has passed a peak already, for a random walk as well. The rule uses Eq 4's, demeaned over the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.cache import as_history
from pythia_dynamics.measures.displacement import Integral, from_integral
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.sweep import sweep

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCALE", "motion", "walk"]

SCALE = 1000
"""Steps that a displacement rate is per: one interval of Pythia's checkpoints."""


def walk(start: float, moved: Any, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The MSD (Eq 5) of a random walk over N = `size` weights: its expectation and standard deviation, (n,) each.

    The walk starts at weights with Σ(w − m)² = `start` and has independent isotropic Gaussian increments of squared
    sizes `moved` (n,), the first of which is no step and not used. With A = Σ_i (n−i)² s_i²,

    E = [n² start + A (N−1)/N] / (N−1),  Var = [4 n² start A/N + 2 A² (N−1)/N²] / (N−1)².
    """
    squared = np.array(moved, dtype=np.float64)
    squared[:1] = 0
    n = np.arange(1, len(squared) + 1, dtype=np.float64)
    ahead = np.maximum(n[:, None] - np.arange(len(squared)), 0)
    reach = ahead**2 @ squared
    free = size - 1 if size > 1 else np.nan
    expected = (n**2 * start + reach * (size - 1) / size) / free
    variance = (4 * n**2 * start * reach / size + 2 * reach**2 * (size - 1) / size**2) / free**2
    return expected, np.sqrt(variance)


def motion(
    history: Any, *, drop_padding: int | None = None, threads: int | None = None, progress: Progress = silent
) -> xr.Dataset:
    """The curves that a `StationarityRule` reads, over `step`, from one reading of a history.

    `frobenius_norm`, `moved` (Σ(w_t − w_{t−1})² between present steps), `displacement_rate` (relative, per 1,000
    steps), and `msd`, `msd_null` (as `pythia_dynamics.msd`), `msd_null_sd`. Missing steps, and those with weights that
    are not finite, are NaN; so is the first rate.
    """
    history = as_history(history)
    warn_missing(history)
    (integral,) = sweep(history, [Integral()], drop_padding=drop_padding, threads=threads, progress=progress)
    curves = from_integral(history, integral)[["msd", "msd_null"]]
    sums, size, at = integral.total(), integral.size, integral.indices
    squared = sums[:, 1] + 2 * integral.shift * sums[:, 0] + size * integral.shift**2
    norm = np.sqrt(np.maximum(squared, 0))
    moved = sums[:, 4]
    _, spread = walk(sums[0, 1] - sums[0, 0] ** 2 / size, moved, size)
    rate = np.full(len(at), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate[1:] = np.sqrt(moved[1:]) / norm[1:] * SCALE / np.diff(history.steps[at])
    columns = {
        "frobenius_norm": (norm, "Frobenius norm of W", "weight"),
        "moved": (moved, "squared displacement since the step before", "weight^2"),
        "displacement_rate": (rate, f"relative displacement per {SCALE} steps", "1"),
        "msd_null_sd": (spread, "standard deviation of the MSD of a random walk", "weight^2"),
    }
    for name, (values, label, units) in columns.items():
        column = np.full(len(history.steps), np.nan)
        column[at] = values
        curves[name] = ("step", column, {"long_name": label, "units": units})
    return curves
