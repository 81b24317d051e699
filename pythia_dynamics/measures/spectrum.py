"""Singular values of the weights at every step, with entropy, ranks, condition number and power law.

All are computed from the Gram matrix of the smaller side of each step's (v, d) matrix W, which is not decomposed.
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

__all__ = ["FrameSpectrum", "PowerLaw", "fit_power_law", "frame_spectrum", "power_law", "spectrum"]

_MIN_EIGENVALUES = 10
"""Fewest eigenvalues of a power law. With fewer, the best cut-off often leaves two points, which any power law fits."""

_CUTOFFS = 64
"""Cut-offs that are tried at a time: an array (64, d) of float64 for d = 2,048 has 1 MB and stays in the L2 cache."""


def spectrum(history: Any, *, steps: Sequence[int] | None = None, compute: Compute | None = None) -> xr.Dataset:
    """Singular values of the weights at every step, and statistics of them.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …, d).
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute. The precision ``"float32"`` resolves eigenvalues of WᵀW down to 1e-7 of the largest. A step with
        an eigenvalue below 1e-6 is repeated in float64, which resolves 1e-13. ``"float64"`` computes all steps in
        float64 and takes twice as long.

    Returns
    -------
    xarray.Dataset
        Over `step`, NaN at missing steps and at steps with weights that are not finite: `singular_values` (step,
        index), descending, and with p_i = σ_i / Σσ

        * `entropy` H = −Σ p_i ln p_i in nats and `effective_rank` exp(H) (Roy & Vetterli 2007);
        * `stable_rank` ‖W‖_F² / σ_1²;
        * `condition_number` σ_1 / σ_min, infinite if σ_min is not resolved;
        * `alpha`, the exponent of a power law for the density of the eigenvalues σ² above a cut-off, fitted as in
          WeightWatcher (see `power_law`); NaN for fewer than ten eigenvalues;
        * `mean_row_fraction` v‖w̄‖² / ‖W‖_F², the share of the squared norm in the mean row w̄ (Godey et al. 2024).

    Raises
    ------
    PythiaDynError
        The squares of the weights are not finite.
    """
    return SPECTRUM(history, steps=steps, compute=compute)


@dataclass(frozen=True)
class FrameSpectrum:
    """The spectrum of one step. The fields are the variables of the dataset of `spectrum`."""

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
    """The spectrum of one step from its Gram matrix. If all weights are zero, everything but σ is NaN."""
    eigenvalues = np.maximum(frame.eigenvalues, 0)
    resolved = eigenvalues[eigenvalues > frame.resolution * eigenvalues[0]]
    sigma = np.sqrt(eigenvalues)
    if not len(resolved):
        return FrameSpectrum(sigma, *[np.nan] * 6)
    p = np.sqrt(resolved) / np.sqrt(resolved).sum()  # the others are rounding errors
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
    """The exponent α of a density λ^−α, fitted to the eigenvalues above the best cut-off (see `fit_power_law`).

    Parameters
    ----------
    eigenvalues
        Shape (n,), in any order; those that are not positive are left out.

    Returns
    -------
    float
        α; NaN for fewer than ten eigenvalues, or if no fit has α > 1.
    """
    return fit_power_law(eigenvalues).alpha


@dataclass(frozen=True)
class PowerLaw:
    """A power law λ^−α above a cut-off; NaN where there is none.

    Parameters
    ----------
    alpha
        α.
    cutoff
        The least eigenvalue to which it is fitted.
    distance
        Kolmogorov-Smirnov distance from the empirical distribution above the cut-off.
    """

    alpha: float
    cutoff: float
    distance: float


def fit_power_law(eigenvalues: NDArray[np.float64]) -> PowerLaw:
    """The power law λ^−α that fits the eigenvalues above the best cut-off.

    The method is that of WeightWatcher 0.7 (after Clauset, Shalizi & Newman 2009). Every eigenvalue except the largest
    is tried as cut-off x, with α = 1 + n / Σ ln(λ/x) over the n eigenvalues λ ≥ x. Of the fits with α > 1, the result
    is the one with the least Kolmogorov-Smirnov distance from the empirical distribution.

    Parameters
    ----------
    eigenvalues
        Shape (n,), in any order; those that are not positive are left out.

    Returns
    -------
    PowerLaw
        NaN for fewer than ten eigenvalues, or if no fit has α > 1.
    """
    data = np.sort(eigenvalues[eigenvalues > 0])
    count = len(data)
    if count < _MIN_EIGENVALUES:
        return PowerLaw(np.nan, np.nan, np.nan)
    logs = np.log(data)
    tail_sums = np.cumsum(logs[::-1])[::-1]  # Σ_{j≥i} ln λ_j
    index = np.arange(count)
    best, alpha, cutoff = np.inf, np.nan, np.nan
    for start in range(0, count - 1, _CUTOFFS):
        cutoffs = index[start : min(start + _CUTOFFS, count - 1), None]
        n = count - cutoffs
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # equal eigenvalues, and those below a cut
            exponents = 1 + n / (tail_sums[cutoffs] - n * logs[cutoffs])
            fitted = 1 - np.exp((1 - exponents) * (logs[start:] - logs[cutoffs]))
        deviations = np.where(index[start:] >= cutoffs, np.abs(fitted - (index[start:] - cutoffs) / n), 0)
        distances = np.where(np.isfinite(exponents) & (exponents > 1), deviations.max(axis=1, keepdims=True), np.inf)
        least = int(np.argmin(distances))
        if distances[least, 0] < best:
            best, alpha, cutoff = distances[least, 0], exponents[least, 0], data[start + least]
    return PowerLaw(float(alpha), float(cutoff), float(best) if np.isfinite(best) else np.nan)
