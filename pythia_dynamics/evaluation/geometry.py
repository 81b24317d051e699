"""Statistics of the spectrum of hidden states, and what isotropic Gaussian states of the same number would give.

* RankMe (Garrido et al., arXiv 2210.02885): exp of the entropy of σ_k / Σσ, with the singular values σ of the n × d
  matrix of the states as they are, not centred.
* Effective rank: the same of λ_k / Σλ, with the eigenvalues λ of the covariance of the states. Li et al. (arXiv
  2509.23024) have it under the name of RankMe. The two differ: λ weighs the large directions more, and the mean of the
  states is a direction of the first only.
* α-ReQ (Agrawal et al. 2022): the exponent of λ_k ∝ k^−α.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["decay_exponent", "entropy_rank", "gaussian_eigenvalues", "mean_cosine", "mean_cosine_sd", "resolved"]

_RESOLUTION = 1e-13
"""Eigenvalues below this part of the trace are rounding errors of 0: those of sums over a million states in float64 are
some 1e-15 of it, and 1e-13 is where `pythia_dynamics.spectrum` draws the line."""

_FIRST, _LAST = 11, 100
"""Ranks of the eigenvalues that α-ReQ is fitted to, as in its authors' code: the first ten do not follow the law."""

_FEWEST = 10
"""Fewest eigenvalues of a fit, so that it spans at least the ranks 11 to 20, nearly an octave."""

_GRID = 1 << 16
"""Intervals of the Marchenko-Pastur distribution: 13 for each of the 5,120 dimensions of a 12b."""


def resolved(eigenvalues: NDArray[np.float64], rank: int, size: float) -> NDArray[np.float64]:
    """Eigenvalues of a matrix without negative ones, in descending order; those that are rounding errors are 0.

    Parameters
    ----------
    eigenvalues
        As computed, shape (d,), in any order.
    rank
        The largest possible rank, at least 0: eigenvalues after it are 0.
    size
        The trace of the matrix, or of the one that it is a difference of: its rounding errors have this size times
        1e-16.
    """
    ordered = np.sort(eigenvalues)[::-1]
    ordered[rank:] = 0
    return np.where(ordered > _RESOLUTION * size, ordered, 0.0)


def entropy_rank(values: NDArray[np.float64]) -> float:
    """exp(−Σ p_k ln p_k) with p_k = v_k / Σv: the number of equal values that have this entropy.

    Garrido et al. add 1e-7 to each p_k so that their logarithm is finite. Here 0 ln 0 is 0 instead; the difference is
    below 2e-6 d.

    Parameters
    ----------
    values
        Values v ≥ 0, shape (d,): singular values for RankMe, eigenvalues of the covariance for the effective rank.

    Returns
    -------
    float
        Between 1 and d. NaN where all values are 0, and where there is none.
    """
    positive = values[values > 0]
    if not len(positive):
        return np.nan
    p = positive / positive.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def decay_exponent(eigenvalues: NDArray[np.float64], rank: int) -> tuple[float, float]:
    """α of λ_k ∝ k^−α (α-ReQ), and its standard error.

    A line through ln λ_k against ln k by least squares with the weights 1/k, over the ranks k = 11 … 100, as the code
    of the authors does (after Stringer et al. 2019). Where the rank can be no more than 200, the fit ends at half of
    it: the end of the spectrum of a sample falls faster than any power law, and a LayerNorm makes its last eigenvalue
    0.

    Parameters
    ----------
    eigenvalues
        Of the covariance, descending, shape (d,).
    rank
        The largest possible rank: the lesser of d and n − 1.

    Returns
    -------
    tuple of float
        α, and the standard error of the slope by the residuals of the line. Neighbouring eigenvalues are not
        independent: the error says how straight the spectrum is, not how α would vary over samples. NaN for fewer than
        ten positive eigenvalues in the range, so for a rank below 40.
    """
    last = min(_LAST, rank // 2, int(np.count_nonzero(eigenvalues)))
    if last - _FIRST + 1 < _FEWEST:
        return np.nan, np.nan
    k = np.arange(_FIRST, last + 1, dtype=np.float64)
    x, y, weights = np.log(k), np.log(eigenvalues[_FIRST - 1 : last]), 1 / k
    x = x - np.average(x, weights=weights)
    y = y - np.average(y, weights=weights)
    spread = (weights * x * x).sum()
    slope = (weights * x * y).sum() / spread
    variance = (weights * (y - slope * x) ** 2).sum() / (len(k) - 2)
    return float(-slope), float(np.sqrt(variance / spread))


def mean_cosine(mean_direction: NDArray[np.float64], count: int) -> float:
    """The mean cosine of all pairs of different states: (‖Σ ĥ‖² − n) / (n (n − 1)) (Godey et al., arXiv 2404.07647).

    Parameters
    ----------
    mean_direction
        Mean of the states divided by their norms, Σ ĥ / n, shape (d,).
    count
        Number n of states.

    Returns
    -------
    float
        NaN for fewer than two states.
    """
    if count < 2:
        return np.nan
    return float((count * float(mean_direction @ mean_direction) - 1) / (count - 1))


def mean_cosine_sd(count: int, width: int) -> float:
    """The standard deviation of `mean_cosine`, whose mean is 0, for independent isotropic states: √(2 / (d n (n − 1))).

    The cosine of two of them has the variance 1/d, and different pairs are uncorrelated. NaN for fewer than two states.
    """
    return float(np.sqrt(2 / (width * count * (count - 1)))) if count > 1 else np.nan


def gaussian_eigenvalues(count: int, width: int) -> NDArray[np.float64]:
    """Eigenvalues of HᵀH for n independent standard normal states in d dimensions, up to a factor.

    The quantiles (k − ½) / min(n, d) of the Marchenko-Pastur distribution, and 0 beyond n. The statistics of such a
    sample differ from those of these values by 1 % where n and d are about 30, and by less where they are larger.

    Parameters
    ----------
    count, width
        n and d.

    Returns
    -------
    array of shape (d,)
        In descending order.
    """
    found, least = np.zeros(width), min(count, width)
    if least < 1:
        return found
    ratio = least / max(count, width)
    # With λ = 1 + γ + 2√γ cos θ the density of θ is (2/π) sin² θ / λ, which is smooth.
    edges = np.linspace(0, np.pi, _GRID + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    density = np.sin(middle) ** 2 / (1 + ratio + 2 * np.sqrt(ratio) * np.cos(middle))
    above = np.concatenate([[0], np.cumsum(density)])
    theta = np.interp((np.arange(least) + 0.5) / least, above / above[-1], edges)
    found[:least] = 1 + ratio + 2 * np.sqrt(ratio) * np.cos(theta)
    return found
