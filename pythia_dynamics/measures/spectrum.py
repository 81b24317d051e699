"""The singular values of the weights at every step, and what they say: entropy, ranks, conditioning, power law.

All of it comes from the d×d Gram matrix G = WᵀW of each step, so the (v, d) matrix is read once and never decomposed.
Unlike the other analyses this one goes step by step: the Gram matrices of all steps at once would not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.frame_gram import FrameGram, Precision, over_grams
from pythia_dynamics.sweep.frames import warn_missing

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Measures", "from_measures", "measure", "power_law", "spectrum"]

_LEAST_FOR_POWER_LAW = 10
_CUTS = 64  # cut-offs tried at once


def spectrum(
    history: Any,
    *,
    drop_padding: int | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Singular values of the weights at every step and what follows from them.

    Returns a dataset over `step`: `singular_values` (step, index), descending, and with p_i = σ_i / Σσ

    * `entropy` H = −Σ p_i ln p_i in nats and `effective_rank` exp(H) (Roy & Vetterli 2007);
    * `stable_rank` ‖W‖_F² / σ_1²;
    * `condition_number` σ_1 / σ_min, infinite where σ_min is not resolved;
    * `alpha`, the exponent of the density of the eigenvalues σ² above a cut-off, as WeightWatcher fits it (see
      `power_law`), NaN with fewer than ten eigenvalues;
    * `mean_row_fraction` v‖w̄‖² / ‖W‖_F², the share of the weight that all rows have in common (Godey et al. 2024).

    ``precision="float32"`` multiplies blocks of 1,024 rows in float32 and adds them in float64, which resolves
    eigenvalues of WᵀW down to 1e-7 of the largest; a step that has some below 1e-6 is computed once more in float64,
    which goes to 1e-13. ``"float64"`` does that to all of them and takes twice as long. A CUDA `device` always works in
    float64. Steps are shared out among `threads`, each of which needs a few (d, d) matrices; an `executor` gets one
    task per step. `progress` counts steps. Missing steps and steps with weights that are not finite are NaN.
    """
    history = as_history(history)
    warn_missing(history)
    (rows,) = over_grams(
        history,
        [measure],
        drop_padding=drop_padding,
        precision=precision,
        device=device,
        threads=threads,
        executor=executor,
        progress=progress,
    )
    return from_measures(history, rows)


@dataclass(frozen=True)
class Measures:
    """What `spectrum` says of one step."""

    singular_values: NDArray[np.float64]
    entropy: float
    effective_rank: float
    stable_rank: float
    condition_number: float
    alpha: float
    mean_row_fraction: float


_LABELS = {
    "entropy": ("entropy of the singular values", "nat"),
    "effective_rank": ("effective rank exp(H)", "1"),
    "stable_rank": ("stable rank ‖W‖_F² / σ₁²", "1"),
    "condition_number": ("condition number σ₁ / σ_min", "1"),
    "alpha": ("power-law exponent of the eigenvalue density", "1"),
    "mean_row_fraction": ("share of the weight in the mean row", "1"),
}


def measure(frame: FrameGram) -> Measures:
    """The measures of one step; NaN for all-zero weights."""
    eigenvalues = np.maximum(frame.eigenvalues, 0)
    resolved = eigenvalues[eigenvalues > frame.resolution * eigenvalues[0]]
    sigma = np.sqrt(eigenvalues)
    if not len(resolved):
        return Measures(sigma, *[np.nan] * 6)
    p = np.sqrt(resolved) / np.sqrt(resolved).sum()  # the others are rounding
    entropy = float(-(p * np.log(p)).sum())
    norm = float(np.trace(frame.gram))
    return Measures(
        singular_values=sigma,
        entropy=entropy,
        effective_rank=float(np.exp(entropy)),
        stable_rank=norm / float(eigenvalues[0]),
        condition_number=float(sigma[0] / sigma[-1]) if len(resolved) == len(sigma) else np.inf,
        alpha=power_law(resolved),
        mean_row_fraction=frame.rows * float(frame.mean_row @ frame.mean_row) / norm,
    )


def from_measures(history: History, rows: Sequence[Measures | None]) -> xr.Dataset:
    """The dataset of `spectrum` from the measures of each step, None where there is none."""
    import xarray as xr

    width = max((len(row.singular_values) for row in rows if row is not None), default=0)
    sigma = np.full((len(rows), width), np.nan)
    columns = {name: np.full(len(rows), np.nan) for name in _LABELS}
    for t, row in enumerate(rows):
        if row is not None:
            sigma[t] = row.singular_values
            for name, column in columns.items():
                column[t] = getattr(row, name)
    data: dict[str, Any] = {
        "singular_values": (("step", "index"), sigma, {"long_name": "singular values of W", "units": "1"})
    }
    for name, (label, units) in _LABELS.items():
        data[name] = ("step", columns[name], {"long_name": label, "units": units})
    data["alpha"][2]["method"] = "maximum likelihood above the cut-off of least Kolmogorov-Smirnov distance"
    return xr.Dataset(data, coords={"step": history.steps, "index": np.arange(width)}, attrs=dict(history.provenance))


def power_law(eigenvalues: NDArray[np.float64]) -> float:
    """The exponent α of a density λ^−α, fitted to the eigenvalues from the cut-off that fits best.

    The method of WeightWatcher 0.7 (after Clauset, Shalizi & Newman 2009): for every eigenvalue but the largest as
    cut-off x, α = 1 + n / Σ ln(λ/x) over the n eigenvalues from x on; of those with α > 1 the one whose distribution
    function is nearest to the empirical one (Kolmogorov-Smirnov).
    """
    data = np.sort(eigenvalues[eigenvalues > 0])
    count = len(data)
    if count < _LEAST_FOR_POWER_LAW:
        return np.nan
    logs = np.log(data)
    tails = np.cumsum(logs[::-1])[::-1]  # Σ_{j≥i} ln λ_j
    place = np.arange(count)
    best, alpha = np.inf, np.nan
    for start in range(0, count - 1, _CUTS):
        cuts = place[start : min(start + _CUTS, count - 1), None]
        n = count - cuts
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # equal eigenvalues, and those below a cut
            exponents = 1 + n / (tails[cuts] - n * logs[cuts])
            fitted = 1 - np.exp((1 - exponents) * (logs[start:] - logs[cuts]))
        gaps = np.where(place[start:] >= cuts, np.abs(fitted - (place[start:] - cuts) / n), 0)
        distances = np.where(np.isfinite(exponents) & (exponents > 1), gaps.max(axis=1, keepdims=True), np.inf)
        least = int(np.argmin(distances))
        if distances[least, 0] < best:
            best, alpha = distances[least, 0], exponents[least, 0]
    return float(alpha)
