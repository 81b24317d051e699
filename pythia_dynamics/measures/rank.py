"""Rank of the covariance of randomly projected weights (Garden of Forking Paths, §4.3, Fig 7).

A batch V of B standard normal vectors, the same at every step, is multiplied by the head: V̂ = V W_Uᵀ. The covariance
of V̂ over the batch is v×v and is not computed. Its non-zero singular values are those of the B×B matrix
H V G Vᵀ H / (B−1), where G = W_UᵀW_U and H centres over the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.measure import Flag, Measure, Table
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset
from pythia_dynamics.sweep.frame_gram import FrameGram

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CONVENTIONS", "TOLERANCES", "Projection", "covariance_rank"]

CONVENTIONS = ("absolute", "relative")
"""Tolerances are absolute, or relative to the largest singular value."""

BATCH_SIZES = (16, 32, 64)
"""The batch sizes of the paper."""

TOLERANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The tolerances of the paper, absolute and relative."""


@dataclass(frozen=True)
class Projection:
    """The experiment as a value: a function of the Gram matrix of a step that returns the rank of every batch.

    The batches depend only on `seed`, the batch size and the width of the weights, so they are the same at every step.

    Parameters
    ----------
    batch_sizes, tolerances, draws, seed
        As for `covariance_rank`.

    Raises
    ------
    PythiaDynError
        Batch sizes are below 2, tolerances are not positive, either repeats, `draws` is below 1 or `seed` negative.
    """

    batch_sizes: Sequence[int]
    tolerances: Sequence[float]
    draws: int
    seed: int

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 2 or len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise PythiaDynError(f"batch sizes must be different numbers of at least 2; got {self.batch_sizes}")
        if not self.tolerances or min(self.tolerances) <= 0 or len(set(self.tolerances)) < len(self.tolerances):
            raise PythiaDynError(f"tolerances must be different positive numbers; got {self.tolerances}")
        if self.draws < 1:
            raise PythiaDynError(f"the number of draws must be at least 1; got {self.draws}")
        if self.seed < 0:
            raise PythiaDynError(f"a seed must not be negative; got {self.seed}")

    def batches(self, size: int, width: int) -> NDArray[np.float64]:
        """All draws of one batch size, shape (draws, size, width)."""
        return _batches(self.seed, self.draws, size, width)

    def __call__(self, frame: FrameGram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ranks (batch size, draw, tolerance, convention) and those of an infinite batch (tolerance, convention)."""
        ranks = np.empty((len(self.batch_sizes), self.draws, len(self.tolerances), len(CONVENTIONS)))
        for row, size in zip(ranks, self.batch_sizes, strict=True):
            batches = self.batches(size, frame.columns)
            batches = batches - batches.mean(axis=1, keepdims=True)
            covariance = frame.batch_gram(batches) / (size - 1)
            for draw, values in zip(row, np.linalg.eigvalsh(covariance), strict=True):
                draw[:] = self._count(values)
        return ranks, self._count(frame.eigenvalues)

    def _count(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        levels = np.asarray(self.tolerances)[:, None, None] * np.array([1.0, values.max()])[:, None]
        ranks: NDArray[np.float64] = np.count_nonzero(values > levels, axis=-1).astype(np.float64)
        return ranks


@functools.lru_cache(maxsize=16)
def _batches(seed: int, draws: int, size: int, width: int) -> NDArray[np.float64]:
    batches: NDArray[np.float64] = np.random.default_rng([seed, size]).standard_normal((draws, size, width))
    batches.flags.writeable = False  # shared by all steps
    return batches


def covariance_rank(
    history: Any,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tolerances: Sequence[float] = TOLERANCES,
    draws: Annotated[int, Flag("Random batches per size.", minimum=1)] = 8,
    seed: Annotated[int, Flag("Seed of the batches.", minimum=0)] = 0,
    steps: Sequence[int] | None = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Rank of the covariance of random batches multiplied by the weights, at every step (Garden, §4.3, Fig 7).

    The rank is the number of singular values of the covariance above a tolerance, either absolute (as the `tol` of
    `numpy.linalg.matrix_rank`) or relative to the largest. As the batch is centred, it is at most B − 1.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    batch_sizes : sequence of int
        Sizes B of the batches, at least 2.
    tolerances : sequence of float
        Tolerances, positive.
    draws : int
        Number of batches of each size, at least 1.
    seed : int
        Seed of the batches. They depend only on it, the batch size and the width of the weights, so they are the same
        at every step.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        `rank` (step, batch_size, tolerance, convention), its mean over the draws, `rank_se`, the standard error of that
        mean (NaN for one draw), and `rank_difference`, the change of the mean since the previous present step.
        `rank_infinite` (step, tolerance, convention) is the rank in the limit of an infinite batch, whose covariance is
        exactly W_U W_Uᵀ. Missing steps and steps with weights that are not finite are NaN.

    Raises
    ------
    PythiaDynError
        Batch sizes are below 2, tolerances are not positive, either repeats, `draws` is below 1 or `seed` negative.
    """
    options = {"batch_sizes": batch_sizes, "tolerances": tolerances, "draws": draws, "seed": seed}
    return RANK(history, **options, steps=steps, compute=compute)


def _finish(
    history: History,
    rows: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]] | None],
    *,
    batch_sizes: Sequence[int],
    tolerances: Sequence[float],
    draws: int,
    seed: int,
) -> xr.Dataset:
    at = np.array([i for i, row in enumerate(rows) if row is not None], dtype=np.intp)
    found = [row for row in rows if row is not None]
    limits = (len(tolerances), len(CONVENTIONS))
    ranks = np.array([row[0] for row in found]).reshape(len(found), len(batch_sizes), draws, *limits)
    mean = ranks.mean(axis=2)
    error = ranks.std(axis=2, ddof=1) / np.sqrt(draws) if draws > 1 else np.full_like(mean, np.nan)
    change = np.full_like(mean, np.nan)
    change[1:] = np.diff(mean, axis=0)
    infinite = np.array([row[1] for row in found]).reshape(len(found), *limits)
    dims = ("step", "batch_size", "tolerance", "convention")
    variables = {
        "rank": Variable(mean, "rank of the batch covariance", dims=dims),
        "rank_se": Variable(error, "standard error of the rank", dims=dims),
        "rank_difference": Variable(change, "change of rank since the step before", dims=dims),
        "rank_infinite": Variable(infinite, "rank for an infinite batch", dims=("step", *dims[2:])),
    }
    coords = {"batch_size": list(batch_sizes), "tolerance": list(tolerances), "convention": list(CONVENTIONS)}
    return step_dataset(history, variables, at=at, coords=coords, attrs={"draws": draws, "seed": seed})


SHOWN_TOLERANCES = {"absolute": 0.5, "relative": 0.1}
"""Tolerance of figures and summaries by convention. 0.5 is the middle of the range of the paper. 0.1 is its smallest
relative tolerance, which counts the most singular values."""


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    size = int(dataset["batch_size"][-1])
    sentences, facts = [], {}
    for convention, tolerance in SHOWN_TOLERANCES.items():
        curve = dataset["rank"].sel(convention=convention, batch_size=size)
        curve = curve.sel({"tolerance": tolerance}, method="nearest")
        facts[convention] = ends(curve)
        sentences.append(f"{convention} tolerance {tolerance:g}: rank {format_ends(facts[convention], 6)}")
    return f"batch {size}, " + "; ".join(sentences), {"batch_size": size, **facts}


RANK = Measure(
    name="rank",
    title="Covariance rank (Garden, Fig 7)",
    source="Nicolini et al., arXiv 2403.08739, §4.3",
    function=covariance_rank,
    per_step=Projection,
    finish=_finish,
    tables={
        "rank": Table(
            ("step", "batch_size", "tolerance", "convention", "rank", "rank_se", "rank_difference"),
            keys=("step", "batch_size", "tolerance", "convention"),
        ),
        "rank-infinite": Table(
            ("step", "tolerance", "convention", "rank"),
            keys=("step", "tolerance", "convention"),
            renamed={"rank": "rank_infinite"},
        ),
    },
    summarise=_summarise,
)
