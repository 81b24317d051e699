"""How far a loss rises along growing b, beyond its noise; and whether its increments follow those of b."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.measures.kink import autoregressive
from pythia_dynamics.measures.levels import ALL_DRAWS, FEW_EXTREME, FIRST_DRAWS, LEVEL

__all__ = ["LEAST_POINTS", "MAX_RISE", "LossRise", "correlate_increments", "largest_rise", "loss_rise"]

_Array = NDArray[np.float64]

MAX_RISE = 0.05
"""Largest rise of the loss, relative to its range, that still counts as a monotone fall: about what the blog's training
losses, means over batches, vary by."""

LEAST_POINTS = 8
"""Fewest points: noise is measured about parabolas over seven points."""

_MIN_DISTANCE = 0.01
"""Losses are compared where b differs by more than this share of its range: below it b counts as constant, since b that
falls by this much still counts as growing."""

_POINTS_PER_SIDE, _SIDE = 20, (3, 7)
"""A local parabola is fitted to a twentieth of the points on either side, three at the least and seven at most. Slower
changes are those of the curve."""

_LAGS = (1, 2, 3)
"""Lags of the autocorrelations: the residuals of parabolas over seven to fifteen points depend on a few neighbours."""

_CLIP = 3.0
"""Residuals are limited to three standard deviations where their autocorrelation is measured: a parabola is off by more
where a loss falls from its untrained value."""

_PHI = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Autocorrelations of the noise that are tried. Slower noise is a change of the curve: over seven to fifteen points its
size cannot be told."""

_BUMP = 0.05
"""Share of the points over which a planted rise lasts, two at the least: a short rise is harder to see than a long one,
so p is not too small for either."""


@dataclass(frozen=True)
class LossRise:
    """The largest rise of a loss along growing b, relative to the range of the loss.

    Parameters
    ----------
    measured
        The largest rise of the measured values.
    rise
        The same without what noise adds to the largest of many differences; at least 0.
    low, high
        Its 95 % interval.
    p
        Probability of such a small measured rise where the loss rises by `MAX_RISE` somewhere.
    p_monotone
        Probability of such a large measured rise where the loss falls monotonically.
    power
        Probability of p ≤ 0.05 where the loss falls monotonically.
    noise
        Standard deviation of the noise, in the unit of the loss.
    autocorrelation
        Autocorrelation of the noise between neighbouring points.
    points
        Number of points.
    """

    measured: float
    rise: float
    low: float
    high: float
    p: float
    p_monotone: float
    power: float
    noise: float
    autocorrelation: float
    points: int


def largest_rise(b: _Array, loss: _Array) -> _Array:
    """The largest rise of a loss above its value at a smaller b.

    Parameters
    ----------
    b
        Order parameter, shape (n,), n ≥ 2, not constant.
    loss
        Losses, shape (n,) or (n, m) for m curves.

    Returns
    -------
    array, shape () or (m,)
        In the unit of the loss; 0 where it never rises. b that are closer than 1 % of their range are not compared.
    """
    order = np.argsort(b, kind="stable")
    before, after = _pairs(b[order])
    values = loss[order]
    least = np.minimum.accumulate(values, axis=0)
    rise: _Array = np.maximum((values[after] - least[before]).max(axis=0), 0.0)
    return rise


def _pairs(b: _Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For sorted b: indices of points with an earlier one far enough away, and of the last of these."""
    last = np.searchsorted(b, b - _MIN_DISTANCE * (b[-1] - b[0]), side="left") - 1
    after = np.flatnonzero(last >= 0)
    return last[after], after


def loss_rise(b: _Array, loss: _Array, *, seed: int = 0) -> LossRise:
    """The largest rise of a loss along growing b, held against noise.

    The best curve that falls monotonically (isotonic regression), with simulated noise, says what noise alone adds; the
    same curve with a rise by `MAX_RISE` at a random place says how small the measured rise can be where the loss does
    rise. The noise is first-order autoregressive in the order of the points; its size and autocorrelation are those of
    what local parabolas of the loss over b leave.

    Parameters
    ----------
    b, loss
        Order parameter and loss in the order of the steps, finite, shape (n,), n ≥ `LEAST_POINTS`; neither is constant.
    seed
        Seed of the simulation.
    """
    from scipy.optimize import isotonic_regression

    rng, extent = np.random.default_rng(seed), float(np.ptp(loss))
    order = np.argsort(b, kind="stable")
    noise, phi = _noise(b, loss)
    falling = np.empty_like(loss)
    falling[order] = isotonic_regression(loss[order], increasing=False).x
    measured = float(largest_rise(b, loss))

    def simulated(height: float, count: int) -> _Array:
        """Largest measured rises of curves that rise by `height` somewhere."""
        errors = noise * autoregressive(phi, rng.standard_normal((len(b), count)))
        return largest_rise(b, _with_rise(b, falling, height, count, rng) + errors)

    risen = simulated(MAX_RISE * extent, FIRST_DRAWS)
    if np.count_nonzero(risen <= measured) <= FEW_EXTREME:
        risen = np.concatenate([risen, simulated(MAX_RISE * extent, ALL_DRAWS - FIRST_DRAWS)])
    monotone = simulated(0.0, len(risen))
    rise = max(measured - float(np.median(monotone)), 0.0)
    added = simulated(rise, FIRST_DRAWS) - rise if rise > 0 else monotone
    low, high = measured - np.quantile(added, (0.975, 0.025))
    return LossRise(
        measured=measured / extent,
        rise=rise / extent,
        low=max(float(low), 0.0) / extent,
        high=max(float(high), rise) / extent,
        p=float((1 + np.count_nonzero(risen <= measured)) / (1 + len(risen))),
        p_monotone=float((1 + np.count_nonzero(monotone >= measured)) / (1 + len(monotone))),
        power=float(np.mean(monotone <= np.quantile(risen, LEVEL))),
        noise=noise,
        autocorrelation=phi,
        points=len(b),
    )


def _with_rise(b: _Array, falling: _Array, height: float, count: int, rng: np.random.Generator) -> _Array:
    """Copies (n, count) of a curve that falls along b, each with a rise by `height` at a random place."""
    curves = np.repeat(falling[:, None], count, axis=1)
    if height <= 0:
        return curves
    order = np.argsort(b, kind="stable")
    before, after = _pairs(b[order])
    width = max(2, round(_BUMP * len(b)))
    for column, pick in enumerate(rng.integers(len(after), size=count)):
        raised = order[after[pick] : after[pick] + width]
        curves[raised, column] = falling[order[before[pick]]] + height
    return curves


def _noise(b: _Array, loss: _Array) -> tuple[float, float]:
    """Standard deviation and autocorrelation of the noise, from what local parabolas of the loss over b leave."""
    rest = _local_residuals(b)
    residuals = rest @ loss
    # The median is not moved by the few points at which a parabola does not follow the first fall of a loss.
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    if spread <= 0:
        return 0.0, 0.0
    limited = np.clip(residuals, -_CLIP * spread, _CLIP * spread)
    found = float(limited[1:] @ limited[:-1]) / float(limited @ limited)
    lags = np.abs(np.subtract.outer(np.arange(len(b)), np.arange(len(b))))
    covariances = [rest @ np.power(phi, lags) @ rest.T for phi in _PHI]  # 0⁰ is 1
    expected = [float(np.trace(each, 1) / np.trace(each)) for each in covariances]
    phi = float(np.interp(found, np.maximum.accumulate(expected), _PHI))
    share = float(np.trace(rest @ np.power(phi, lags) @ rest.T)) / len(b)
    return spread / float(np.sqrt(share)), phi


def _local_residuals(x: _Array) -> _Array:
    """The linear map (n, n) from values at x to what parabolas fitted to the points around each of them leave."""
    order = np.argsort(x, kind="stable")
    ordered = x[order]
    count = len(x)
    width = min(2 * int(np.clip(count // _POINTS_PER_SIDE, *_SIDE)) + 1, count)
    rest = np.eye(count)
    for i in range(count):
        start = int(np.clip(i - width // 2, 0, count - width))
        near = slice(start, start + width)
        scaled = (ordered[near] - ordered[i]) / (float(np.ptp(ordered[near])) or 1.0)
        # The constant of a parabola about the point is its value there.
        rest[order[i], order[near]] -= np.linalg.pinv(np.vander(scaled, 3, increasing=True))[0]
    return rest


def correlate_increments(steps: NDArray[np.int64], b: _Array, loss: _Array) -> tuple[float, float]:
    """Rank correlation of the increments of loss and b, without their smooth trends in the step.

    Two series that fall and grow for reasons of their own correlate; their increments, without the trends, do not. The
    trend is that of local parabolas over ln(step); what is left is divided by the size of the increments around it,
    which falls during training.

    Parameters
    ----------
    steps
        Step numbers, shape (n,), n ≥ `LEAST_POINTS`.
    b, loss
        Order parameter and loss at these steps, finite, shape (n,).

    Returns
    -------
    tuple of float
        Spearman's correlation, and the probability that it is as far from 0 for independent series. Its number of
        independent values is that of the increments, less what the trend takes, and corrected for the autocorrelations
        of both (Bartlett 1935). NaN where the increments of one series do not differ from their trend.
    """
    from scipy.stats import rankdata, t

    place = np.log(steps[1:].astype(np.float64))
    rest = _local_residuals(place)
    near = np.abs(np.eye(len(place)) - rest)
    ranks = []
    for series in (loss, b):
        increments = np.diff(series)
        residuals, sizes = rest @ increments, near @ np.abs(increments)
        if float(np.abs(residuals).max()) <= 1e-12 * float(np.abs(series).max()):
            return float("nan"), float("nan")
        centred = rankdata(residuals / np.maximum(sizes, np.finfo(float).tiny)) - len(place) / 2 - 0.5
        ranks.append(centred / np.linalg.norm(centred))
    found = float(ranks[0] @ ranks[1])
    products = [float(ranks[0][lag:] @ ranks[0][:-lag]) * float(ranks[1][lag:] @ ranks[1][:-lag]) for lag in _LAGS]
    independent = float(np.sum(rest**2)) / max(1 + 2 * sum(products), 1.0)
    freedom = max(independent - 2, 1.0)
    p = 2 * float(t.sf(abs(found) * np.sqrt(freedom / max(1 - found**2, 1e-12)), freedom))
    return found, p
