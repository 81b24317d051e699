"""Designs of the scan for drops: ramps of all places and widths, the trend, and the models of the noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIDE", "WIDTHS", "Design", "NoiseModel", "design_of"]

WIDTHS = (1, 2, 3, 5, 10, 20, 40)
"""Widths of a drop in records, of Pythia's 143; in proportion for fewer or more records."""

_RECORDS = 143
"""The records that `WIDTHS` refers to."""

SIDE = 3
"""Fewest records on each side of a drop: one record at the end of a curve is an outlier, not a level."""

_PERSISTENCE = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
"""Autocorrelation of the noise over the median distance of records; 1 is a random walk."""

_SMOOTH_SCALE = 0.15
"""Length scale of the smooth random function, as a share of training. A ramp over 40 of 143 records has a slope of
standard deviation 0.08, a logistic with 10–90 % over 44 % of training one of 0.18."""

_SMOOTH_VARIANCE = (0.0, 1e3, 1e6)
"""Variance of the smooth function relative to that of one innovation of the noise: none, 30 and 1000 times its size."""

_SLOW = (0.14, 0.18, 0.23, 0.3)
"""Time scales of logistic falls that are a trend and no drop, as shares of training. At 0.14, 10–90 % of the fall take
62 % of training; of a ramp over 40 of 143 records, 22 %."""

_SLOW_PLACES = tuple(np.linspace(0.1, 0.9, 17))
"""Middles of these falls, as shares of training: closer to each other than the shortest time scale."""

_SLOW_PRICE = 2.0
"""What a logistic fall costs in −2 log likelihood, as a parameter in Akaike's criterion. Without a price, drops over 40
records are found less often; with 4, logistic falls with independent noise passed in 10 of 100 curves, with 2 in 6."""

_LEAST_INFORMATION = 1e-3
"""Least share of a ramp's information that the trend leaves. A ramp with less cannot be told from a trend."""


@dataclass(frozen=True)
class NoiseModel:
    """A noise model.

    `factor` (m, m) is the Cholesky factor of the covariance of a curve without its trend, for innovations of unit
    variance, and `whiten` its inverse; `ramps` (m, c) are the whitened ramps of unit length, `length` (c,) the lengths
    that they had, and `sigmoids` (m, s) the whitened slow falls of unit length.
    """

    persistence: float
    log_determinant: float
    factor: NDArray[np.float64]
    whiten: NDArray[np.float64]
    ramps: NDArray[np.float64]
    length: NDArray[np.float64]
    sigmoids: NDArray[np.float64]

    def smooth_rss(self, whitened: NDArray[np.float64], rss: NDArray[np.float64]) -> NDArray[np.float64]:
        """Residual sums of squares without a drop: of the trend, or with a slow fall and its price where that is less.

        Parameters
        ----------
        whitened
            Curves without their trend, multiplied by `whiten`; shape (m, …).
        rss
            Their residual sums of squares of the trend (…).
        """
        gain = np.maximum(-(self.sigmoids.T @ whitened).min(axis=0), 0) ** 2
        best: NDArray[np.float64] = np.minimum(rss, (rss - gain) * np.exp(_SLOW_PRICE / len(whitened)))
        return best


@dataclass(frozen=True)
class Design:
    """What depends on the steps alone. `contrasts` (m, n) takes the trend out; `start` and `end` are indices (c,)."""

    contrasts: NDArray[np.float64]
    start: NDArray[np.intp]
    end: NDArray[np.intp]
    models: tuple[NoiseModel, ...]


@functools.lru_cache(maxsize=8)
def design_of(steps: tuple[int, ...]) -> Design:
    """Contrasts, ramps and noise models of curves at these `steps`."""
    from scipy.linalg import null_space, solve_triangular

    time = np.array(steps, np.float64)
    n = len(time)
    contrasts = null_space(_trend(time).T).T
    scale = n / _RECORDS
    widths = sorted({max(round(width * scale), 1) for width in WIDTHS})
    stride = max(n // (2 * _RECORDS), 1)  # as many places for more records
    ends = [(i, i + w) for w in widths for i in range(SIDE - 1, n - SIDE - w + 1, stride)]
    start, end = np.array(ends, np.intp).reshape(-1, 2).T
    ramps = np.clip((time[:, None] - time[start]) / (time[end] - time[start]), 0, 1)
    reduced = contrasts @ ramps
    slow = contrasts @ _sigmoids(time)
    distance = np.abs(time[:, None] - time)
    typical = float(np.median(np.diff(time)))
    smooth = np.exp(-0.5 * (distance / (_SMOOTH_SCALE * (time[-1] - time[0]))) ** 2)
    plain = np.linalg.norm(ramps - ramps.mean(axis=0), axis=0)
    usable = np.linalg.norm(reduced, axis=0) ** 2 > _LEAST_INFORMATION * plain**2
    start, end, reduced = start[usable], end[usable], reduced[:, usable]
    models = []
    for persistence in _PERSISTENCE:
        if persistence < 1:
            noise = persistence ** (distance / typical) / (1 - persistence**2)
        else:
            noise = np.minimum.outer(time - time[0], time - time[0]) / typical
        for variance in _SMOOTH_VARIANCE:
            factor = np.linalg.cholesky(contrasts @ (noise + variance * smooth) @ contrasts.T)
            whiten = solve_triangular(factor, np.eye(len(factor)), lower=True)
            rows = whiten @ reduced
            length = np.linalg.norm(rows, axis=0)
            determinant = 2 * float(np.log(np.diag(factor)).sum())
            falls = whiten @ slow
            falls /= np.linalg.norm(falls, axis=0)
            models.append(NoiseModel(persistence, determinant, factor, whiten, rows / length, length, falls))
    return Design(contrasts, start, end, tuple(models))


def _trend(time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic B-splines in log time, one piece for each factor of e; shape (n, pieces + 3)."""
    from scipy.interpolate import BSpline

    x = np.log(time)
    pieces = int(np.clip(round(x[-1] - x[0]), 1, len(x) // 2 - 4))
    inner = np.linspace(x[0], x[-1], pieces + 1)
    knots = np.r_[[x[0]] * 3, inner, [x[-1]] * 3]
    basis: NDArray[np.float64] = BSpline.design_matrix(x, knots, 3).toarray()
    return basis


def _sigmoids(time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logistic curves of all places and of times that are too long for a drop, shape (n, curves)."""
    share = (time - time[0]) / (time[-1] - time[0])
    curves = [1 / (1 + np.exp(-(share - place) / scale)) for scale in _SLOW for place in _SLOW_PLACES]
    shapes: NDArray[np.float64] = np.array(curves).T
    return shapes
