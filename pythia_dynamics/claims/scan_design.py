"""Designs of the scan for drops: ramps of all places and widths, the trend, the models of the noise, and their fits."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIDE", "WIDTHS", "Design", "Fit", "NoiseModel", "design_of", "fit_of", "likeliest", "likeliest_spike"]

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

_LEAST_SHARE = 0.1
"""Least share of a ramp's information that other changes leave. Below it, two changes at nearly the same place, one up
and one down, fit the curve with sizes of several times its range."""

_SPIKE = 0.05
"""Longest spike that is left out, as a share of the records. A drop is looked for within 10 % of training of a step: a
fall that comes back in half of that is no drop."""

_LEAST_LEFT = 1e-3
"""Least information on a spike, relative to that on one record: a record that is left out has none."""

_WALK_SHARE = 0.04
"""Share of the innovations in the variance of noise with a persistence of 0.98."""

_TINY = float(np.finfo(np.float32).tiny)
"""Least noise of a curve of zeros."""


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

    def given(self, columns: NDArray[np.float64]) -> NoiseModel:
        """The model with these columns (m, q) in the trend, without which ramps are fitted.

        Ramps and slow falls are projected and have unit length again; a ramp that the columns explain has `length` 0.
        The determinant is that of the restricted likelihood.
        """
        along, triangle = np.linalg.qr(self.whiten @ columns)

        def left(shapes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            rest = shapes - along @ (along.T @ shapes)
            length = np.linalg.norm(rest, axis=0)
            length[length**2 < _LEAST_SHARE] = 0
            return np.where(length > 0, rest / np.where(length > 0, length, 1), 0), length

        ramps, share = left(self.ramps)
        determinant = self.log_determinant + 2 * float(np.log(np.abs(np.diag(triangle))).sum())
        whiten = self.whiten - along @ (along.T @ self.whiten)
        falls, _ = left(self.sigmoids)
        return NoiseModel(self.persistence, determinant, self.factor, whiten, ramps, self.length * share, falls)


@dataclass(frozen=True)
class Design:
    """What depends on the steps alone.

    `contrasts` (m, n) takes the trend out; `shapes` (n, c) are the ramps, `start` and `end` (c,) the indices of their
    ends; `freedom` is m less the number of columns that were added to the trend.
    """

    contrasts: NDArray[np.float64]
    shapes: NDArray[np.float64]
    start: NDArray[np.intp]
    end: NDArray[np.intp]
    models: tuple[NoiseModel, ...]
    freedom: int

    def given(self, columns: NDArray[np.float64]) -> tuple[Design, NDArray[np.bool_]]:
        """The design with other changes, columns (n, q), in the trend, and which ramps (c,) can be told from them."""
        models = [model.given(self.contrasts @ columns) for model in self.models]
        kept = np.all([model.length > 0 for model in models], axis=0)
        models = [replace(model, ramps=model.ramps[:, kept], length=model.length[kept]) for model in models]
        freedom = self.freedom - columns.shape[1]
        shapes, start, end = self.shapes[:, kept], self.start[kept], self.end[kept]
        return Design(self.contrasts, shapes, start, end, tuple(models), freedom), kept


@dataclass(frozen=True)
class Fit:
    """All noise models (k) and ramps (c) fitted to one curve.

    `rss` (k,) and `rest` (k, c) are the residual sums of squares of the trend, and with a ramp; `without` (k,) and
    `free` (k, c) −2 log likelihood; `falling` (k, c) that with A < 0; `sizes` (k, c) is A; `length` (k, c) its inverse
    standard error in units of the noise; `constant` (k,) the part of −2 log likelihood that is no residual; `floor`
    (k,) the least residual sums of squares.
    """

    rss: NDArray[np.float64]
    rest: NDArray[np.float64]
    without: NDArray[np.float64]
    free: NDArray[np.float64]
    falling: NDArray[np.float64]
    sizes: NDArray[np.float64]
    length: NDArray[np.float64]
    constant: NDArray[np.float64]
    floor: NDArray[np.float64]
    left: int

    @functools.cached_property
    def scores(self) -> NDArray[np.float64]:
        """The score of every ramp (c,)."""
        found: NDArray[np.float64] = np.maximum(self.without.min() - self.falling.min(axis=0), 0)
        return found

    @functools.cached_property
    def _rising(self) -> NDArray[np.float64]:
        """−2 log likelihood with A > 0 (k, c)."""
        fits: NDArray[np.float64] = np.where(self.sizes > 0, self.free, np.inf)
        return fits

    @functools.cached_property
    def rises(self) -> NDArray[np.float64]:
        """The score of every ramp as a rise, A > 0 (c,)."""
        found: NDArray[np.float64] = np.maximum(self.without.min() - self._rising.min(axis=0), 0)
        return found

    def rise(self, ramp: int) -> float:
        """A of a ramp with the noise model in which it fits best as a rise."""
        return float(self.sizes[np.argmin(self._rising[:, ramp]), ramp])

    def size(self, ramp: int) -> float:
        """A of a ramp with the noise model that fits best: with A < 0 where the ramp has a score."""
        fits = self.falling if self.scores[ramp] > 0 else self.free
        return float(self.sizes[np.argmin(fits[:, ramp]), ramp])


def fit_of(design: Design, reduced: NDArray[np.float64], error: float, rounding: float) -> Fit:
    """Fit all noise models and ramps to a curve without its trend (m,), with a known `error` and `rounding` of it."""
    m, models = design.freedom, design.models
    # An error bounds the variance of the noise from below. That of its innovations is 1 − persistence² of it. The
    # variance of a random walk has no bound: it counts as the most persistent of the others.
    share = np.array([max(1 - model.persistence**2, _WALK_SHARE) for model in models])
    floor = m * (share * error**2 + max(rounding, _TINY) ** 2)
    whitened = [model.whiten @ reduced for model in models]
    rss = np.maximum([each @ each for each in whitened], floor)
    along = np.array([each @ model.ramps for each, model in zip(whitened, models, strict=True)])
    rest = np.maximum(rss[:, None] - along**2, floor[:, None])
    smooth = [model.smooth_rss(each, np.array(r)) for r, model, each in zip(rss, models, whitened, strict=True)]
    constant = np.array([model.log_determinant for model in models])
    without = m * np.log(np.maximum(smooth, floor) / m) + constant
    free = m * np.log(rest / m) + constant[:, None]
    length = np.array([model.length for model in models])
    falling = np.where(along < 0, free, np.inf)
    return Fit(rss, rest, without, free, falling, along / length, length, constant, floor, m)


def likeliest(fit: Fit, among: NDArray[np.bool_]) -> int:
    """The index of the likeliest drop `among` some ramps; where there is none, of the likeliest change."""
    best = int(np.argmax(np.where(among, fit.scores, -1)))
    return best if fit.scores[best] > 0 else int(np.argmin(np.where(among, fit.free.min(axis=0), np.inf)))


def likeliest_spike(fit: Fit, design: Design, reduced: NDArray[np.float64]) -> tuple[float, int, int]:
    """The score of the likeliest spike, its first record, and the first one after it.

    A spike is a change of a few records by the same amount, with as many records on each side as it has itself.
    """
    n, m = len(design.shapes), design.freedom
    longest = max(round(_SPIKE * n), 1)
    start, width = (
        np.concatenate(each)
        for each in zip(
            *((np.arange(w, n - 2 * w + 1), np.full(n - 3 * w + 1, w)) for w in range(1, longest + 1)), strict=True
        )
    )
    end = start + width
    fits = np.empty((len(design.models), len(start)))
    for k, model in enumerate(design.models):
        weights = model.whiten @ design.contrasts
        along = np.r_[0, np.cumsum(weights.T @ (model.whiten @ reduced))]
        sums = np.zeros((n + 1, n + 1))
        sums[1:, 1:] = (weights.T @ weights).cumsum(axis=0).cumsum(axis=1)
        length = sums[end, end] - sums[start, end] - sums[end, start] + sums[start, start]
        known = length > _LEAST_LEFT * np.mean(np.diag(weights.T @ weights))
        gain = np.where(known, (along[end] - along[start]) ** 2 / np.where(known, length, 1), 0)
        fits[k] = m * np.log(np.maximum(fit.rss[k] - gain, fit.floor[k]) / m) + model.log_determinant
    scores = fit.without.min() - fits.min(axis=0)
    best = int(np.argmax(scores))
    return float(scores[best]), int(start[best]), int(end[best])


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
    return Design(contrasts, ramps[:, usable], start, end, tuple(models), len(contrasts))


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
