"""EleutherAI's published LAMBADA curves, and the distributions of their statistics on a plateau."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.results.published_lambada import published_lambada

__all__ = ["WINDOW", "PublishedCurve", "chosen_best_p", "p_of", "plateaus", "scatter_of"]

WINDOW = 3
"""Steps of a level: the fewest of which one that stands out does not decide the mean."""

_LATE = 0.1
"""Part of training before the steps of which one can be the best: in it perplexities fall by orders of magnitude."""

_DRAWS = 9999
"""Simulated plateaus: a p-value of 0.05 is then known to 0.002. The seed is fixed, so verdicts are reproducible."""


@dataclass(frozen=True)
class PublishedCurve:
    """The published values of one model that are evidence.

    Parameters
    ----------
    model
        Its name in the table.
    steps
        int64, shape (n,), increasing.
    log
        Logarithm of the last-word perplexity, float64, shape (n,).
    error
        Its standard error: that of the perplexity, relative to it; shape (n,).
    accuracy
        Share of right last words, and its standard error: shape (2, n).
    suspect
        Steps that are left out because their values are wrong.
    """

    model: str
    steps: NDArray[np.int64]
    log: NDArray[np.float64]
    error: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    suspect: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: str) -> PublishedCurve:
        """The curve of a model of the table. Raises `UnknownNameError` for another one."""
        table = published_lambada(model)
        good = ~table["suspect"].to_numpy()
        perplexity, error, share, share_error = (
            table[name].to_numpy()[good] for name in ("ppl", "ppl_stderr", "accuracy", "accuracy_stderr")
        )
        steps = table["step"].to_numpy()
        return cls(
            model=str(table.attrs["model"]),
            steps=steps[good],
            log=np.log(perplexity),
            error=error / perplexity,
            accuracy=np.array([share, share_error]),
            suspect=tuple(steps[~good].tolist()),
        )

    @cached_property
    def best(self) -> int:
        """Place of the least perplexity."""
        return int(np.argmin(self.log))

    @cached_property
    def late(self) -> slice:
        """The steps of which one can be the best: those after a tenth of training."""
        first = int(np.searchsorted(self.steps, _LATE * self.steps[-1]))
        return slice(min(first, self.best), None)

    @cached_property
    def scatter(self) -> float:
        """Standard deviation of the late logarithms about a smooth curve; see `scatter_of`."""
        return float(scatter_of(self.log[self.late]))


def chosen_best_p(curve: PublishedCurve, rise: float, shift: float = 0.0) -> float:
    """P(x_last − min_i x_i ≥ rise) for independent normal x_i of the published errors, and mean `shift` at the last.

    The plateau over all late steps is the null with the most steps to choose the best from, so p is not too small.
    """
    from scipy.integrate import trapezoid
    from scipy.special import log_ndtr

    if rise <= 0:
        return 1.0
    errors = curve.error[curve.late]
    grid = np.linspace(-9, 9, 4001)  # in standard errors; the normal density beyond them is below 1e-18
    none_below = log_ndtr(-(errors[-1] * grid[:, None] + shift - rise) / errors[:-1]).sum(axis=1)
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.clip(trapezoid(-np.expm1(none_below) * density, grid), 0, 1))


def scatter_of(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of values about a smooth curve, from their second differences along the last axis.

    Those of a straight line are zero; those of independent noise have 6 times its variance.
    """
    return np.asarray(np.sqrt(np.mean(np.diff(logs, 2, axis=-1) ** 2, axis=-1) / 6))


def plateaus(count: int, persistence: float = 0.0) -> NDArray[np.float64]:
    """Noise of unit variance at `count` steps, shape (_DRAWS, count), with a correlation between neighbouring steps."""
    from scipy.signal import lfilter

    fresh = np.random.default_rng(0).standard_normal((_DRAWS, count))
    fresh[:, 1:] *= math.sqrt(1 - persistence**2)
    return np.asarray(lfilter([1.0], [1.0, -persistence], fresh, axis=-1))


def p_of(simulated: NDArray[np.float64], found: float) -> float:
    """The p-value of a statistic from those of simulated plateaus."""
    return float((1 + np.count_nonzero(simulated >= found)) / (1 + simulated.size))
