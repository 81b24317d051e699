"""A kink in a curve: a change of slope that no smooth curve of the usual families explains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.measures.levels import ALL_DRAWS, FEW_EXTREME, FIRST_DRAWS, LEVEL
from pythia_dynamics.measures.smooth_curves import FAMILIES, SmoothFit, fit_smooth

__all__ = ["LEAST_RATIO", "MIN_POINTS", "Kink", "autoregressive", "find_kink"]

_Array = NDArray[np.float64]

LEAST_RATIO = 1.5
"""Least ratio of the slopes that counts as a kink: smooth laws fitted to a part of a curve differ by less there."""

MIN_POINTS = 12
"""Fewest points: a smooth family has up to six parameters, the kink two, and the noise needs four more."""

_PHI = np.array([0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.98])
"""Autocorrelations of the noise that are tried. The grid is finer towards 1, where the likelihood changes fastest."""

_MAX_PLACES = 48
"""Most places of a kink that are tried: neighbours of 48 have hinges that correlate by more than 0.99."""

_MARGIN = 0.08
"""Share of the points on either side at which no kink is looked for; three points at least. A hinge over fewer points
is a deviation of the last values."""

_POWER_DRAWS = 100
"""Draws for each place of a planted kink: the power to ± 0.04 at 0.8."""

_MAX_RATIO = 1e3
"""Largest ratio of slopes that is reported: beyond it one slope cannot be told from 0."""


@dataclass(frozen=True)
class Kink:
    """The best kink of a curve and its test against smooth curves.

    Parameters
    ----------
    at
        x of the kink.
    slope_before, slope_after
        Slopes of the fitted curve on both sides of it.
    ratio
        1 + |change of slope| / the smaller |slope|: the ratio of the two slopes where they have one sign. At most 1000.
    low, high
        95 % interval of the ratio, from the covariance of both slopes, that of the place included.
    gain
        Gain of the log-likelihood by the hinge over the smooth curve of `null`.
    p
        The largest probability, over the families of smooth curves, of such a gain where the curve has no kink.
    power
        Probability that a kink by `LEAST_RATIO` has p ≤ 0.05 in this curve: the least of three places, at the quartiles
        of the points.
    null
        The family of smooth curves with the largest p.
    noise
        Standard deviation of the noise.
    autocorrelation
        Autocorrelation of the noise between neighbouring points, of the smooth fit.
    points
        Number of points.
    """

    at: float
    slope_before: float
    slope_after: float
    ratio: float
    low: float
    high: float
    gain: float
    p: float
    power: float
    null: str
    noise: float
    autocorrelation: float
    points: int

    @property
    def steeper(self) -> bool:
        """Whether the curve is steeper after the kink than before."""
        return abs(self.slope_after) > abs(self.slope_before)


def find_kink(x: Any, y: Any, *, seed: int = 0) -> Kink | None:
    """The best kink of y(x), held against smooth curves with autocorrelated noise.

    A curve is a smooth function of x plus, with a kink, c·max(x − x₀, 0), and first-order autoregressive noise in the
    order of the points. The smooth function is of one of `FAMILIES`, linearised about its best fit; its likelihood and
    that with the kink are each maximised over the autocorrelation. The gain of the kink is compared with that of
    simulated curves without one, whose noise has the autocorrelation of the smooth fit, corrected for the bias of its
    estimate. Where a family explains the curve, its p is large; p is the largest one.

    Parameters
    ----------
    x, y
        The data in the order of measurement, shape (n,). Points that are not finite are left out.
    seed
        Seed of the simulation.

    Returns
    -------
    Kink or None
        None for fewer than `MIN_POINTS` points or distinct x, and where y does not change.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    distinct = np.unique(x)
    if len(distinct) < MIN_POINTS or np.ptp(y) <= 1e-12 * np.abs(y).max():
        return None
    low, span, level, height = float(distinct[0]), float(np.ptp(x)), float(y.mean()), float(np.ptp(y))
    u, v, places = (x - low) / span, (y - level) / height, (distinct - low) / span
    margin = max(3, round(_MARGIN * len(places)))
    places = places[margin:-margin]
    places = places[np.unique(np.linspace(0, len(places) - 1, _MAX_PLACES).round().astype(int))]
    rng = np.random.default_rng(seed)
    tests = [_Test(fit_smooth(family, u, v), u, v, places) for family in FAMILIES]
    # A line or a parabola lies in every other family, so it explains nothing that these do not.
    nulls = [test for test in tests if test.smooth.family.degree >= 3 or test.smooth.family.shape is not None]
    draws = [test.null_gains(FIRST_DRAWS, rng) for test in nulls]
    if max(_exceeding(test, gains) for test, gains in zip(nulls, draws, strict=True)) <= FEW_EXTREME:
        more = [test.null_gains(ALL_DRAWS - FIRST_DRAWS, rng) for test in nulls]
        draws = [np.concatenate(both) for both in zip(draws, more, strict=True)]
    p_values = [(1 + _exceeding(test, gains)) / (1 + len(gains)) for test, gains in zip(nulls, draws, strict=True)]
    worst = int(np.argmax(p_values))
    null, fit = nulls[worst], min(tests, key=lambda test: test.criterion)
    (before, after), covariance = fit.slopes()
    drawn = rng.multivariate_normal([before, after], covariance, size=ALL_DRAWS, method="svd")
    interval = np.quantile(_ratio(drawn[:, 0], drawn[:, 1]), (0.025, 0.975))
    critical = float(np.quantile(draws[worst], 1 - LEVEL))
    unit = height / span
    return Kink(
        at=low + span * fit.refined,
        slope_before=float(before) * unit,
        slope_after=float(after) * unit,
        ratio=float(_ratio(before, after)),
        low=float(interval[0]),
        high=float(interval[1]),
        gain=null.gain,
        p=p_values[worst],
        power=null.power(critical, fit.noise, fit.phi, rng),
        null=null.smooth.family.name,
        noise=fit.noise * height,
        autocorrelation=null.phi_null,
        points=len(x),
    )


def _exceeding(test: _Test, gains: _Array) -> int:
    return int(np.count_nonzero(gains >= test.gain))


def _ratio(before: _Array, after: _Array) -> _Array:
    """1 + |change| / the smaller slope, at most `_MAX_RATIO`."""
    least = np.minimum(np.abs(before), np.abs(after))
    ratio: _Array = np.minimum(1 + np.abs(after - before) / np.maximum(least, np.finfo(float).tiny), _MAX_RATIO)
    return ratio


class _Test:
    """Fits of one family without and with a hinge, for many curves at once.

    Parameters
    ----------
    smooth
        The fitted family.
    u, v
        The curve, shape (n,).
    places
        Places of the hinge, shape (h,).
    """

    def __init__(self, smooth: SmoothFit, u: _Array, v: _Array, places: _Array) -> None:
        self.smooth, self.u, self.v, self.places = smooth, u, v, places
        self.hinges = np.maximum(u[:, None] - places, 0)
        self._projections = []
        for phi in _PHI:
            basis, _ = np.linalg.qr(_whiten(phi, smooth.basis))
            hinges = _whiten(phi, self.hinges)
            hinges = hinges - basis @ (basis.T @ hinges)
            size = np.linalg.norm(hinges, axis=0)
            self._projections.append((basis, hinges / np.where(size > 1e-9, size, np.inf)))
        # What remains of a curve that a family fits to rounding is noise of that size, not less.
        self._floor = 1e-20 * float(np.sum(v**2))
        ends, self._chosen, phi_indices = self._likelihoods(v[:, None])
        self.gain = float(ends[1][0] - ends[0][0])
        self.best = int(self._chosen[0])
        self._phi_index = [int(index[0]) for index in phi_indices]

    @property
    def phi(self) -> float:
        """Autocorrelation of the noise of the fit with the hinge."""
        return float(_PHI[self._phi_index[1]])

    @property
    def criterion(self) -> float:
        """Corrected Akaike criterion of the fit with the hinge, its place and the noise included."""
        k, n = self.smooth.parameters + 4, len(self.u)
        total = float(np.sum(self._left(self.refined) ** 2)) + self._floor
        return 2 * k + n * float(np.log(total)) - float(np.log(1 - self.phi**2)) + 2 * k * (k + 1) / max(n - k - 1, 1)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of the fit with the hinge."""
        freedom = max(len(self.u) - self.smooth.parameters - 2, 1)
        return float(np.sqrt(np.sum(self._left(self.refined) ** 2) / freedom / (1 - self.phi**2)))

    def _likelihoods(self, curves: _Array) -> tuple[tuple[_Array, _Array], NDArray[np.intp], tuple[Any, Any]]:
        """Log-likelihoods without and with a hinge of each column; the index of the hinge; those of φ."""
        n, count = curves.shape
        smooth, kinked = np.empty((2, len(_PHI), count))
        chosen = np.empty((len(_PHI), count), dtype=np.intp)
        for i, (phi, (basis, hinges)) in enumerate(zip(_PHI, self._projections, strict=True)):
            rest = _whiten(phi, curves)
            rest = rest - basis @ (basis.T @ rest)
            gained = (hinges.T @ rest) ** 2
            chosen[i] = gained.argmax(axis=0)
            total = (rest**2).sum(axis=0) + self._floor
            left = np.maximum(total - gained.max(axis=0), self._floor)
            for target, value in ((smooth, total), (kinked, left)):
                target[i] = (np.log(1 - phi**2) - n * np.log(value)) / 2
        indices = smooth.argmax(axis=0), kinked.argmax(axis=0)
        return (smooth.max(axis=0), kinked.max(axis=0)), chosen[indices[1], np.arange(count)], indices

    @cached_property
    def phi_null(self) -> float:
        """Autocorrelation of the noise of the smooth fit, corrected for its bias.

        The fit follows dependent noise, so its residuals depend less: that φ whose simulated curves have this estimate
        on average.
        """
        white = np.random.default_rng(0).standard_normal((len(self.u), FIRST_DRAWS))
        expected = [_PHI[self._likelihoods(autoregressive(phi, white))[2][0]].mean() for phi in _PHI]
        rising = np.maximum.accumulate(expected) + 1e-9 * np.arange(len(_PHI))  # np.interp asks for increasing values
        return float(np.interp(_PHI[self._phi_index[0]], rising, _PHI))

    def null_gains(self, count: int, rng: np.random.Generator) -> _Array:
        """The gain by a hinge of `count` simulated smooth curves."""
        noise = autoregressive(self.phi_null, rng.standard_normal((len(self.u), count)))
        (smooth, kinked), *_ = self._likelihoods(noise)
        return kinked - smooth

    def power(self, critical: float, noise: float, phi: float, rng: np.random.Generator) -> float:
        """Share of curves with a kink by `LEAST_RATIO` whose gain is critical: the least of three places."""
        step = 1e-3
        coefficients = np.linalg.lstsq(self.smooth.columns(self.u), self.v, rcond=1e-10)[0]
        shares = []
        for quarter in (0.25, 0.5, 0.75):
            at = float(np.quantile(self.u, quarter))
            ends = self.smooth.columns(np.array([at - step, at + step])) @ coefficients
            change = abs(ends[1] - ends[0]) / (2 * step) * (1 - 1 / LEAST_RATIO)
            curves = noise * autoregressive(phi, rng.standard_normal((len(self.u), _POWER_DRAWS)))
            (smooth, kinked), *_ = self._likelihoods(curves + change * np.maximum(self.u - at, 0)[:, None])
            shares.append(float(np.mean(kinked - smooth >= critical)))
        return min(shares)

    @cached_property
    def refined(self) -> float:
        """The place of the hinge between the two places beside the best one that leaves the least."""
        from scipy.optimize import minimize_scalar

        beside = self.places[[max(self.best - 1, 0), min(self.best + 1, len(self.places) - 1)]]
        found = minimize_scalar(lambda at: float(np.sum(self._left(at) ** 2)), bounds=beside, method="bounded")
        at = float(self.places[self.best])
        return float(found.x) if found.fun < np.sum(self._left(at) ** 2) else at

    def _left(self, at: float) -> _Array:
        """What the fit with a hinge leaves, whitened, shape (n,)."""
        basis, _ = self._projections[self._phi_index[1]]
        columns = np.column_stack([self.v, np.maximum(self.u - at, 0)])
        rest = _whiten(self.phi, columns)
        curve, hinge = (rest - basis @ (basis.T @ rest)).T
        left: _Array = curve - hinge * (hinge @ curve) / max(float(hinge @ hinge), np.finfo(float).tiny)
        return left

    def slopes(self) -> tuple[_Array, _Array]:
        """Slopes (2,) before and after the hinge, and their covariance (2, 2), by generalised least squares.

        The covariance includes that of the place, by linearisation (Muggeo 2003).
        """
        at, step = self.refined, 1e-4
        smooth = np.column_stack([self.smooth.columns(self.u), np.maximum(self.u - at, 0)])
        inverse = np.linalg.pinv(_whiten(self.phi, smooth), rcond=1e-10)
        ends = self.smooth.columns(np.array([at - step, at + step]))
        before = np.append((ends[1] - ends[0]) / (2 * step), 0.0)
        after = before + np.eye(len(before))[-1]
        coefficients = inverse @ _whiten(self.phi, self.v[:, None])[:, 0]
        moved = np.column_stack([smooth, -coefficients[-1] * (self.u > at)])
        design = np.linalg.pinv(_whiten(self.phi, moved), rcond=1e-10)
        maps = np.array([np.append(before, 0.0), np.append(after, 0.0)]) @ design
        variance = self.noise**2 * (1 - self.phi**2)
        return np.array([before @ coefficients, after @ coefficients]), variance * (maps @ maps.T)


def _whiten(phi: float, columns: _Array) -> _Array:
    """Columns (n, m) with first-order autoregressive noise turned into columns with white noise of variance 1 − φ²."""
    white = columns.copy()
    white[1:] -= phi * columns[:-1]
    white[0] *= np.sqrt(1 - phi**2)
    return white


def autoregressive(phi: float, white: _Array) -> _Array:
    """First-order autoregressive noise of unit variance from white noise; shape (n, draws).

    Parameters
    ----------
    phi
        Autocorrelation of neighbouring values, from 0 to below 1.
    white
        White noise of unit variance, shape (n, draws).
    """
    from scipy.signal import lfilter

    driven = np.sqrt(1 - phi**2) * white
    driven[0] = white[0]
    noise: _Array = lfilter([1.0], [1.0, -phi], driven, axis=0)
    return noise
