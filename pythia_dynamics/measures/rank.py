"""Rank of the covariance of randomly projected weights (Garden of Forking Paths, §4.3, Fig 7).

A batch V of B standard normal vectors, the same at every step, is sent through the head: V̂ = V W_Uᵀ. The covariance
of V̂ over the batch is v×v and is never formed: its non-zero singular values are those of the B×B matrix
H V G Vᵀ H / (B−1), with G = W_UᵀW_U and H the centring over the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.frame_gram import FrameGram, Precision, over_grams
from pythia_dynamics.sweep.frames import warn_missing

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CONVENTIONS", "TOLERANCES", "Projection", "covariance_rank", "from_ranks"]

CONVENTIONS = ("absolute", "relative")
TOLERANCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Projection:
    """The experiment as a value: applied to a step's Gram matrix it gives the ranks of every batch.

    The batches depend on `seed`, the batch size and the width of the weights alone, so every step meets the same.
    """

    batch_sizes: Sequence[int] = (16, 32, 64)
    tolerances: Sequence[float] = TOLERANCES
    draws: int = 8
    seed: int = 0

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
        """All draws of one batch size, (draws, size, width)."""
        return _batches(self.seed, self.draws, size, width)

    def __call__(self, frame: FrameGram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ranks (batch size, draw, tolerance, convention) and those of an infinite batch (tolerance, convention)."""
        ranks = np.empty((len(self.batch_sizes), self.draws, len(self.tolerances), len(CONVENTIONS)))
        for row, size in zip(ranks, self.batch_sizes, strict=True):
            batches = self.batches(size, len(frame.gram))
            batches = batches - batches.mean(axis=1, keepdims=True)
            covariance = batches @ frame.gram @ batches.transpose(0, 2, 1) / (size - 1)
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
    batches.flags.writeable = False  # every step meets the same
    return batches


def covariance_rank(
    history: Any,
    *,
    batch_sizes: Sequence[int] = (16, 32, 64),
    tolerances: Sequence[float] = TOLERANCES,
    draws: int = 8,
    seed: int = 0,
    drop_padding: int | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Rank of the covariance of random batches sent through the weights, at every step.

    The rank is the number of singular values of the covariance above a tolerance, either absolute (as the `tol` of
    `numpy.linalg.matrix_rank`) or relative to the largest. As the batch is centred, it is at most B − 1.

    Returns a dataset with dimensions (step, batch_size, tolerance, convention): `rank`, its mean over `draws`
    batches, `rank_se`, the standard error of that mean (NaN for one draw), and `rank_difference`, the change of the
    mean since the present step before. `rank_infinite` (step, tolerance, convention) is the rank in the limit of an
    infinite batch, whose covariance is exactly W_U W_Uᵀ.

    Missing steps and steps with weights that are not finite are NaN. `precision`, `device`,
    `threads` and `executor` are those of `spectrum`; `progress` counts steps.
    """
    history = as_history(history)
    warn_missing(history)
    projection = Projection(tuple(batch_sizes), tuple(tolerances), draws, seed)
    (rows,) = over_grams(
        history,
        [projection],
        drop_padding=drop_padding,
        precision=precision,
        device=device,
        threads=threads,
        executor=executor,
        progress=progress,
    )
    return from_ranks(history, projection, rows)


def from_ranks(
    history: History,
    projection: Projection,
    rows: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]] | None],
) -> xr.Dataset:
    """The dataset of `covariance_rank` from the ranks of each step, None where there are none."""
    import xarray as xr

    limits = (len(projection.tolerances), len(CONVENTIONS))
    mean = np.full((len(rows), len(projection.batch_sizes), *limits), np.nan)
    error, change = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    infinite = np.full((len(rows), *limits), np.nan)
    before = None
    for t, row in enumerate(rows):
        if row is None:
            continue
        ranks, infinite[t] = row
        mean[t] = ranks.mean(axis=1)
        if projection.draws > 1:
            error[t] = ranks.std(axis=1, ddof=1) / np.sqrt(projection.draws)
        if before is not None:
            change[t] = mean[t] - mean[before]
        before = t
    dims = ("step", "batch_size", "tolerance", "convention")
    return xr.Dataset(
        {
            "rank": (dims, mean, {"long_name": "rank of the batch covariance", "units": "1"}),
            "rank_se": (dims, error, {"long_name": "standard error of the rank", "units": "1"}),
            "rank_difference": (dims, change, {"long_name": "change of rank since the step before", "units": "1"}),
            "rank_infinite": (
                ("step", *dims[2:]),
                infinite,
                {"long_name": "rank for an infinite batch", "units": "1"},
            ),
        },
        coords={
            "step": history.steps,
            "batch_size": list(projection.batch_sizes),
            "tolerance": list(projection.tolerances),
            "convention": list(CONVENTIONS),
        },
        attrs={**history.provenance, "draws": projection.draws, "seed": projection.seed},
    )
