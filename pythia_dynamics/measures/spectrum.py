"""The singular values of the weights at every step, and what they say: entropy, ranks, conditioning, power law.

All of it comes from the (d, d) Gram matrix G = WᵀW of each step, so the (v, d) matrix is read once and never
decomposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Measure, Table
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset
from pythia_dynamics.sweep.frame_gram import FrameGram

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FrameSpectrum", "frame_spectrum", "power_law", "spectrum"]

_FEWEST_FOR_POWER_LAW = 10
"""Eigenvalues that a power law is fitted to: with fewer the least Kolmogorov-Smirnov distance is that of two points."""

_CUTS = 64
"""Cut-offs tried at once: blocks of (64, d) float64 stay in the L2 cache for d up to 2,048."""


def spectrum(history: Any, *, compute: Compute | None = None) -> xr.Dataset:
    """Singular values of the weights at every step and what follows from them.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …, d).
    compute : Compute, optional
        How to compute. Its `precision` ``"float32"`` resolves eigenvalues of WᵀW down to 1e-7 of the largest; a step
        with some below 1e-6 is repeated in float64, which resolves 1e-13. ``"float64"`` does that to all steps and
        takes twice as long.

    Returns
    -------
    xarray.Dataset
        Over `step`, NaN at missing steps and at steps with weights that are not finite: `singular_values` (step,
        index), descending, and with p_i = σ_i / Σσ

        * `entropy` H = −Σ p_i ln p_i in nats and `effective_rank` exp(H) (Roy & Vetterli 2007);
        * `stable_rank` ‖W‖_F² / σ_1²;
        * `condition_number` σ_1 / σ_min, infinite where σ_min is not resolved;
        * `alpha`, the exponent of the density of the eigenvalues σ² above a cut-off, as WeightWatcher fits it (see
          `power_law`), NaN with fewer than ten eigenvalues;
        * `mean_row_fraction` v‖w̄‖² / ‖W‖_F², the share of the weight that all rows have in common (Godey et al.
          2024).

    Raises
    ------
    PythiaDynError
        Where the squares of the weights are not finite.
    """
    return SPECTRUM(history, compute=compute)


@dataclass(frozen=True)
class FrameSpectrum:
    """The spectrum of one step; fields are those of the dataset of `spectrum`."""

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


def frame_spectrum(frame: FrameGram) -> FrameSpectrum:
    """The spectrum of one step from its Gram matrix; NaN for all-zero weights."""
    eigenvalues = np.maximum(frame.eigenvalues, 0)
    resolved = eigenvalues[eigenvalues > frame.resolution * eigenvalues[0]]
    sigma = np.sqrt(eigenvalues)
    if not len(resolved):
        return FrameSpectrum(sigma, *[np.nan] * 6)
    p = np.sqrt(resolved) / np.sqrt(resolved).sum()  # the others are rounding
    entropy = float(-(p * np.log(p)).sum())
    norm = float(np.trace(frame.gram))
    return FrameSpectrum(
        singular_values=sigma,
        entropy=entropy,
        effective_rank=float(np.exp(entropy)),
        stable_rank=norm / float(eigenvalues[0]),
        condition_number=float(sigma[0] / sigma[-1]) if len(resolved) == len(sigma) else np.inf,
        alpha=power_law(resolved),
        mean_row_fraction=frame.rows * float(frame.mean_row @ frame.mean_row) / norm,
    )


def _finish(history: History, rows: Sequence[FrameSpectrum | None]) -> xr.Dataset:
    at = np.array([i for i, row in enumerate(rows) if row is not None], dtype=np.intp)
    found = [row for row in rows if row is not None]
    sigma = np.array([row.singular_values for row in found]).reshape(len(found), -1 if found else 0)
    method = {"method": "maximum likelihood above the cut-off of least Kolmogorov-Smirnov distance"}
    variables = {"singular_values": Variable(sigma, "singular values of W", dims=("step", "index"))}
    for name, (label, units) in _LABELS.items():
        values = np.array([getattr(row, name) for row in found])
        variables[name] = Variable(values, label, units, attrs=method if name == "alpha" else {})
    return step_dataset(history, variables, at=at, coords={"index": np.arange(sigma.shape[1])})


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    names = ("entropy", "effective_rank", "stable_rank", "mean_row_fraction")
    facts: dict[str, Any] = {name: ends(dataset[name]) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {format_ends(both)}" for name, both in facts.items()), facts


SPECTRUM = Measure(
    name="spectrum",
    title="Spectrum of W_U",
    source="Roy & Vetterli 2007; Godey et al., arXiv 2404.07647; Clauset, Shalizi & Newman 2009",
    function=spectrum,
    per_step=lambda: frame_spectrum,
    finish=_finish,
    tables={"spectrum": Table(("step", *_LABELS), title="Spectrum")},
    saves_array=True,
    summarise=_summarise,
)


def power_law(eigenvalues: NDArray[np.float64]) -> float:
    """The exponent α of a density λ^−α, fitted to the eigenvalues from the cut-off that fits best.

    The method of WeightWatcher 0.7 (after Clauset, Shalizi & Newman 2009): for every eigenvalue but the largest as
    cut-off x, α = 1 + n / Σ ln(λ/x) over the n eigenvalues from x on; of those with α > 1 the one whose distribution
    function is nearest to the empirical one (Kolmogorov-Smirnov).
    """
    data = np.sort(eigenvalues[eigenvalues > 0])
    count = len(data)
    if count < _FEWEST_FOR_POWER_LAW:
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
