"""Random walks like a history: the null of everything that is claimed about motion.

A history of n present steps is n − 1 increments δ_i = w_i − w_{i−1} after its first weights w_0. Displacements and the
MSD follow from the inner products of these n vectors alone. A walk like the history has increments of the measured
sizes. Its directions are random in as many dimensions as the measured ones seem to have, and keep to each other over
as many steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.learning_rate import walk_time

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Motion",
    "batch_size",
    "exceedance",
    "integrated",
    "integrated_over_time",
    "simulate_walks",
    "squared_displacements",
]

_FAR = 0.2
"""Increments that are further apart than this share of the history show how many directions there are, those nearer
show persistence. It has to be longer than any memory of the motion that is not a regime of its own."""

_SIGNIFICANT = 2.0
"""Standard errors above 0 up to which an autocorrelation of the increments counts as persistence."""

_FIRST_WALKS, _MOST_WALKS = 199, 1199
"""Walks for a p-value, and for one that is small: a scorecard of 16 tests asks for p ≤ 0.003, and where none of 1,199
walks is as extreme, the upper limit of their share is 0.0025 (95 %)."""

_RARE = 2
"""So few of the first walks must be as extreme for more walks to be drawn."""

_MOST_BYTES = 64e6
"""Inner products of the walks that are simulated at a time. A few arrays of this size are in use at once."""

_BATCH = 200
"""Most walks that are simulated at a time: those of a p-value that is not small."""


@dataclass(frozen=True)
class Motion:
    """The motion of a history, as inner products of its first weights and its increments.

    Parameters
    ----------
    steps
        int64, shape (n,): the present steps.
    time
        float64, shape (n,): ∫η² since the first of them where the learning rate η is known, else the steps since it.
        A walk whose steps are proportional to η covers equal squared displacements in equal times.
    rate_known
        Whether `time` is ∫η².
    products
        float64, shape (n, n): row and column 0 are of the first weights w_0, row i of the increment w_i − w_{i−1}. In
        weight².
    size
        N, the number of weights.
    rate_note
        Why η is not known, or at which steps it was taken from the nearest one (see `walk_time`).
    """

    steps: NDArray[np.int64]
    time: NDArray[np.float64]
    rate_known: bool
    products: NDArray[np.float64]
    size: int
    rate_note: str = ""

    @classmethod
    def of(cls, pairs: xr.Dataset) -> Self:
        """The motion of a history from the result of `pythia_dynamics.two_time`.

        Parameters
        ----------
        pairs
            With `gram` and `displacement` over `step` and `other_step`, and the coordinate `learning_rate` where it is
            known. Missing steps are left out.

        Raises
        ------
        PythiaDynError
            Fewer than three present steps, or weights that never move.
        """
        displacement, gram = pairs["displacement"].to_numpy(), pairs["gram"].to_numpy()
        known = np.flatnonzero(np.isfinite(np.diag(displacement)))
        if len(known) < 3:
            raise PythiaDynError(f"{len(known)} steps are too few for a motion")
        displacement, gram = displacement[np.ix_(known, known)], gram[np.ix_(known, known)]
        first, second = np.unravel_index(int(np.argmax(displacement)), displacement.shape)
        if displacement[first, second] <= 0:
            raise PythiaDynError("the weights never move")
        total = gram[first, first] + gram[second, second] - 2 * gram[first, second]
        size = max(round(float(total / displacement[first, second])), 1)
        found = cls.from_squared(
            displacement * size,
            pairs["step"].to_numpy(),
            known,
            size=size,
            learning_rate=pairs["learning_rate"].to_numpy() if "learning_rate" in pairs.coords else None,
        )
        found.products[0, 0] = gram[0, 0]
        found.products[0, 1:] = found.products[1:, 0] = np.diff(gram[0])
        return found

    @classmethod
    def from_squared(
        cls,
        squared: NDArray[np.float64],
        steps: NDArray[np.int64],
        at: NDArray[np.intp],
        *,
        size: int,
        start: float = 0.0,
        learning_rate: NDArray[np.float64] | None = None,
    ) -> Self:
        """The motion of a history from its squared displacements; the first weights are taken as orthogonal to it.

        Parameters
        ----------
        squared
            Squared displacements between the present steps, shape (n, n), weight².
        steps
            All steps of the history, shape (T,).
        at
            Indices of the present steps, shape (n,).
        size
            N, the number of weights.
        start
            ‖w_0‖², weight².
        learning_rate
            η at `steps`, NaN where it is not known; None where none is.
        """
        products = np.zeros(squared.shape)
        # Polarisation: (w_i − w_{i−1})·(w_j − w_{j−1}) from the squared distances of their four ends.
        products[1:, 1:] = (squared[:-1, 1:] + squared[1:, :-1] - squared[:-1, :-1] - squared[1:, 1:]) / 2
        products[0, 0] = start
        covered = walk_time(steps, learning_rate, at)
        return cls(steps[at].astype(np.int64), covered.time, covered.known, products, size, covered.note)

    @property
    def increments(self) -> NDArray[np.float64]:
        """Inner products of the increments, shape (n − 1, n − 1), weight²."""
        return self.products[1:, 1:]

    @property
    def moved(self) -> NDArray[np.float64]:
        """Squared sizes of the increments, shape (n − 1,), weight²."""
        return np.maximum(np.diag(self.increments), 0)

    @property
    def start(self) -> float:
        """‖w_0‖², weight²."""
        return float(self.products[0, 0])

    @cached_property
    def squared(self) -> NDArray[np.float64]:
        """Squared displacement Σ_k (w_tk − w_sk)² of every pair of steps, shape (n, n), weight²."""
        return squared_displacements(self.products)

    @cached_property
    def cosines(self) -> NDArray[np.float64]:
        """Cosines between increments, shape (n − 1, n − 1); NaN for increments of size 0."""
        sizes = np.where(self.moved > 0, np.sqrt(self.moved), np.nan)
        found: NDArray[np.float64] = np.clip(self.increments / sizes / sizes[:, None], -1, 1)
        return found

    @cached_property
    def dimensions(self) -> float:
        """The number r of directions in which the increments are spread, between 1 and N.

        In r dimensions the squared cosine of two independent directions has the distribution Beta(1/2, (r − 1)/2). r is
        the one that has the median of the measured ones, over pairs of increments that are more than a fifth of the
        history apart. A median, because a part of the history may have one direction throughout.
        """
        from scipy.optimize import brentq
        from scipy.stats import beta

        count = len(self.moved)
        apart = np.subtract.outer(np.arange(count), np.arange(count)) > _FAR * count
        found = self.cosines[apart]
        found = found[np.isfinite(found)] ** 2
        if not len(found):
            return float(self.size)
        median = float(np.median(found))

        def excess(log_dimensions: float) -> float:
            return float(beta.median(0.5, np.expm1(log_dimensions) / 2)) - median

        low, high = np.log(1.01), np.log(max(float(self.size), 2.0))
        if excess(low) <= 0:
            return 1.0
        return float(self.size) if excess(high) >= 0 else float(np.exp(brentq(excess, low, high)))

    @cached_property
    def persistence(self) -> NDArray[np.float64]:
        """Mean cosine between increments by their distance 1, 2 …, up to the first that noise explains; shape (L,)."""
        count, found = len(self.moved), []
        for lag in range(1, int(_FAR * count) + 1):
            along = np.diag(self.cosines, lag)
            along = along[np.isfinite(along)]
            if not len(along) or along.mean() <= _SIGNIFICANT / np.sqrt(len(along) * self.dimensions):
                break
            found.append(float(along.mean()))
        return np.array(found)

    @cached_property
    def jitter(self) -> float:
        """Squared size of the noise that each record has of its own, from the products of neighbouring increments.

        Noise ε_t of a record is in the increment before it and, with the opposite sign, in that after it: their product
        is −‖ε‖² on average. 0 where neighbouring increments do not oppose each other. In weight².
        """
        return max(-float(np.mean(np.diag(self.increments, 1))), 0.0)


def squared_displacements(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared displacements of every pair of steps from the inner products of increments.

    Parameters
    ----------
    products
        As `Motion.products`, shape (…, n, n).

    Returns
    -------
    array, shape (…, n, n)
        Σ_k (w_tk − w_sk)², in weight².
    """
    gram = products.copy()
    gram[..., 0, :] = gram[..., :, 0] = 0  # the first weights cancel
    np.cumsum(gram, axis=-1, out=gram)
    np.cumsum(gram, axis=-2, out=gram)
    norm = np.diagonal(gram, axis1=-2, axis2=-1).copy()
    gram *= -2
    gram += norm[..., :, None]
    gram += norm[..., None, :]
    return np.maximum(gram, 0, out=gram)


def integrated(products: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """MSD of Eq 4 and 5 of "The Garden of Forking Paths" from inner products, without demeaning over the weights.

    Parameters
    ----------
    products
        As `Motion.products`, shape (…, n, n).
    size
        N, the number of weights.

    Returns
    -------
    array, shape (…, n)
        Σ_k (Σ_{t≤τ} w_tk)² / (N − 1). For weights without a mean it is the MSD; for those of a walk, up to 1/N.
    """
    count = products.shape[-1]
    times = np.maximum(np.subtract.outer(np.arange(count), np.arange(count)) + 1.0, 0)
    return _quadratic(times, products) / max(size - 1, 1)


def integrated_over_time(products: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The same with the mean of each weight over time taken off instead; 0 at the last step.

    Parameters
    ----------
    products, size
        As for `integrated`.
    """
    count = products.shape[-1]
    at = np.arange(count)
    times = np.maximum(np.subtract.outer(at, at) + 1.0, 0) - (at[:, None] + 1) / count * (count - at)
    return _quadratic(times, products) / max(size - 1, 1)


def _quadratic(factors: NDArray[np.float64], products: NDArray[np.float64]) -> NDArray[np.float64]:
    """c_τ · D · c_τ for each row c_τ of `factors` (n, n) and each D of `products` (…, n, n)."""
    found: NDArray[np.float64] = np.maximum(((factors @ products) * factors).sum(axis=-1), 0)
    return found


def simulate_walks(
    motion: Motion,
    count: int,
    generator: np.random.Generator,
    *,
    moved: NDArray[np.float64] | None = None,
    persistent: bool = True,
    jitter: float = 0.0,
) -> NDArray[np.float64]:
    """Inner products of random walks like a history.

    Parameters
    ----------
    motion
        The history.
    count
        Number of walks.
    generator
        Source of the random numbers.
    moved
        Squared sizes of the increments without jitter, shape (n − 1,), in weight²; by default the measured ones.
    persistent
        Whether neighbouring increments keep the measured direction (`Motion.persistence`).
    jitter
        Squared size of independent noise of each record, in weight², which is added to the walk.

    Returns
    -------
    array, shape (count, n, n)
        As `Motion.products`. The first weights have the measured size and a random direction; each increment has its
        size exactly.
    """
    sizes = np.sqrt(motion.moved if moved is None else np.maximum(moved, 0))
    rows = len(sizes) + 1
    covariance = np.zeros((rows, rows))
    covariance[0, 0] = motion.start
    correlation = _correlation(motion.persistence if persistent else np.empty(0), len(sizes))
    covariance[1:, 1:] = correlation * sizes * sizes[:, None]
    if jitter > 0:
        covariance[1:, 1:] += jitter * (2 * np.eye(len(sizes)) - np.eye(len(sizes), k=1) - np.eye(len(sizes), k=-1))
    deviations = np.sqrt(np.diag(covariance))
    vectors = _vectors(rows, motion.dimensions, count, generator)
    if np.count_nonzero(covariance) > np.count_nonzero(deviations):  # else the vectors are independent
        scale = np.where(deviations > 0, deviations, 1)
        values, directions = np.linalg.eigh(covariance / scale / scale[:, None])
        vectors = (directions * np.sqrt(np.maximum(values, 0))) @ directions.T @ vectors
    own = np.sqrt(np.einsum("kij,kij->ki", vectors, vectors))
    vectors *= np.where(own > 0, deviations / np.where(own > 0, own, 1), 0)[:, :, None]
    products: NDArray[np.float64] = vectors @ vectors.transpose(0, 2, 1)
    return products


def _correlation(persistence: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The correlations of `count` increments with this autocorrelation; the nearest that is positive definite."""
    column = np.zeros(count)
    column[0], column[1 : len(persistence) + 1] = 1, persistence
    matrix = column[np.abs(np.subtract.outer(np.arange(count), np.arange(count)))]
    values, vectors = np.linalg.eigh(matrix)
    if values[0] >= 0:
        return matrix
    matrix = (vectors * np.maximum(values, 0)) @ vectors.T
    sizes = np.sqrt(np.diag(matrix))
    found: NDArray[np.float64] = matrix / sizes / sizes[:, None]
    return found


def _vectors(rows: int, dimensions: float, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """`rows` vectors, of shape (count, rows, k), with the inner products of standard normal ones in so many dimensions.

    In at least as many dimensions as rows by Bartlett's decomposition (1933), which draws rows² numbers instead of
    rows · dimensions.
    """
    if dimensions < rows:
        return generator.standard_normal((count, rows, max(round(dimensions), 1)))
    below, at = np.tril_indices(rows, -1), np.arange(rows)
    factor = np.zeros((count, rows, rows))
    factor[:, below[0], below[1]] = generator.standard_normal((count, len(below[0])))
    factor[:, at, at] = np.sqrt(generator.chisquare(dimensions - at, (count, rows)))
    return factor


def batch_size(records: int) -> int:
    """How many walks of so many records are simulated at a time: 200 of up to 200 records, then fewer."""
    return max(min(_BATCH, int(_MOST_BYTES / (8 * max(records, 1) ** 2))), 1)


def exceedance(
    observed: float,
    draw: Iterable[NDArray[np.float64]],
    *,
    more: bool = True,
) -> tuple[float, NDArray[np.float64]]:
    """p-value of a statistic against simulated ones; more are drawn where it is small.

    Parameters
    ----------
    observed
        The statistic; greater is more extreme. NaN gives p = 1.
    draw
        Gives arrays of simulated statistics, shape (k,), as long as they are asked for; NaN counts as not extreme.
    more
        Whether a small p-value is of use; it is not where the effect is too small to count.

    Returns
    -------
    tuple
        (1 + number of simulated ≥ observed) / (1 + number), and the simulated statistics. 199 are drawn, and up to
        1,199 where at most two of them are as extreme.
    """
    found = np.empty(0)
    for batch in draw:
        found = np.concatenate([found, batch])
        if len(found) >= (_MOST_WALKS if more else _FIRST_WALKS) or (
            len(found) >= _FIRST_WALKS and np.count_nonzero(found >= observed) > _RARE
        ):
            break
    if np.isnan(observed):
        return 1.0, found
    return float((1 + np.count_nonzero(found >= observed)) / (1 + len(found))), found
