"""Smooth curves without a kink, as the null of a kink: fits of several families, and bases that contain them.

A loss that falls with b can bend in many smooth ways. Each family here is a shape g(u; θ) of one or two parameters plus
a parabola, so that it contains the usual convex laws and their small deformations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAMILIES", "Family", "SmoothFit", "fit_smooth"]

_Array = NDArray[np.float64]

_INDEPENDENT = 1e-5
"""Least part of a unit column outside the span of the columns before it: a smaller one is mostly rounding."""

_STARTS = 3
"""Starts of a fit: with a parabola beside the shape, the squares often have two or three minima over θ."""

_DIFFERENCE = 1e-4
"""Step of the derivatives with respect to θ, which is of order 1: far above rounding, far below the grid."""


@dataclass(frozen=True)
class Family:
    """A family of smooth curves c₀ + c₁ u + c₂ u² + c₃ g(u; θ), with u from 0 to 1.

    Parameters
    ----------
    name
        Its name.
    shape
        g(u, θ): arrays of shape (n,) and (m,) to shape (n,); None for a polynomial.
    degree
        Degree of the polynomial.
    grid
        The values of every θ from which a fit starts. The least and the largest are also its bounds.
    """

    name: str
    shape: Callable[[_Array, _Array], _Array] | None = None
    degree: int = 2
    grid: tuple[tuple[float, ...], ...] = ()

    def columns(self, u: _Array, theta: _Array) -> _Array:
        """The columns of the linear coefficients at `u` (n,), shape (n, degree + 1) or (n, degree + 2)."""
        polynomial = np.vander(u, self.degree + 1, increasing=True)
        return polynomial if self.shape is None else np.column_stack([polynomial, self.shape(u, theta)])

    def tangents(self, u: _Array, theta: _Array) -> _Array:
        """∂g/∂θ at `u` (n,), shape (n, m): the change of the curve where θ changes a little."""
        if self.shape is None:
            return np.empty((len(u), 0))
        moves = _DIFFERENCE * np.eye(len(theta))
        differences = [self.shape(u, theta + move) - self.shape(u, theta - move) for move in moves]
        return np.column_stack(differences) / (2 * _DIFFERENCE)


def _exponential(sign: float) -> Callable[[_Array, _Array], _Array]:
    """exp(−k u), or exp(−k (1 − u)) for a sign of −1, with θ = ln k. Both are at most 1."""
    return lambda u, theta: np.exp(-np.exp(theta[0]) * (u if sign > 0 else 1 - u))


def _power(u: _Array, theta: _Array) -> _Array:
    """((u + c)/c)^(−p) with θ = (ln c, ln p)."""
    values: _Array = np.exp(-np.exp(theta[1]) * np.log1p(u * np.exp(-theta[0])))
    return values


def _logistic(u: _Array, theta: _Array) -> _Array:
    """1/(1 + exp((u − m)/w)) with θ = (m, ln w): the logistic function, a tanh with another scale."""
    from scipy.special import expit

    return np.asarray(expit((theta[0] - u) * np.exp(-theta[1])), dtype=np.float64)


_RATES = tuple(np.log(np.geomspace(0.5, 60, 9)).tolist())
"""ln k: from a curve that a parabola fits to one that falls by e within a sixtieth of the range."""
_OFFSETS = tuple(np.log(np.geomspace(0.01, 3, 7)).tolist())
_EXPONENTS = tuple(np.log(np.geomspace(0.1, 6, 5)).tolist())
_MIDDLES = tuple(np.linspace(-0.1, 1.1, 13).tolist())
_WIDTHS = tuple(np.log(np.geomspace(0.04, 0.5, 8)).tolist())
"""ln w: a narrower step than a twenty-fifth of the range is a jump between two records of 41."""

FAMILIES = (
    Family("line", degree=1),
    Family("parabola", degree=2),
    Family("cubic", degree=3),
    Family("exponential", _exponential(1), grid=(_RATES,)),
    Family("growing exponential", _exponential(-1), grid=(_RATES,)),
    Family("power law", _power, grid=(_OFFSETS, _EXPONENTS)),
    Family("logistic", _logistic, grid=(_MIDDLES, _WIDTHS)),
)
"""The families, simple ones first."""


@dataclass(frozen=True)
class SmoothFit:
    """The least-squares fit of a family.

    Parameters
    ----------
    family
        The family.
    theta
        θ, shape (m,).
    basis
        Orthonormal columns, shape (n, p), that span the family near the fit: its columns and its tangents.
    """

    family: Family
    theta: _Array
    basis: _Array

    @property
    def parameters(self) -> int:
        """Number of parameters, linear and not."""
        return int(self.basis.shape[1])

    def columns(self, u: _Array) -> _Array:
        """The columns that span the family near the fit at `u` (n,), shape (n, q)."""
        return np.column_stack([self.family.columns(u, self.theta), self.family.tangents(u, self.theta)])


def fit_smooth(family: Family, u: _Array, y: _Array) -> SmoothFit:
    """Fit a family by least squares: the best starts of its grid, then variable projection (Golub & Pereyra 1973).

    Parameters
    ----------
    family
        The family.
    u
        The places, shape (n,), from 0 to 1.
    y
        The values, shape (n,).
    """
    from scipy.optimize import least_squares

    def residuals(theta: _Array) -> _Array:
        basis, _ = np.linalg.qr(family.columns(u, theta))
        left: _Array = y - basis @ (basis.T @ y)
        return left

    theta = np.empty(0)
    if family.grid:
        points = [np.array(point) for point in product(*family.grid)]
        low, high = (np.array([pick(axis) for axis in family.grid]) for pick in (min, max))
        margin = 1e-6 * (high - low)  # least_squares asks for a start inside of the bounds
        points.sort(key=lambda point: float(np.sum(residuals(point) ** 2)))
        fits = [
            least_squares(residuals, np.clip(point, low + margin, high - margin), bounds=(low, high))
            for point in _apart(points, (high - low) / 4)
        ]
        theta = min(fits, key=lambda fit: float(fit.cost)).x
    columns = np.column_stack([family.columns(u, theta), family.tangents(u, theta)])
    return SmoothFit(family, theta, _orthonormal(columns))


def _apart(points: list[_Array], distance: _Array) -> list[_Array]:
    """The first `_STARTS` of the points that differ from those before by `distance` in some θ."""
    chosen: list[_Array] = []
    for point in points:
        if len(chosen) < _STARTS and all(np.any(np.abs(point - other) > distance) for other in chosen):
            chosen.append(point)
    return chosen


def _orthonormal(columns: _Array) -> _Array:
    """Orthonormal columns of the same span, without columns that depend on those before them (Gram–Schmidt)."""
    basis = np.empty((len(columns), 0))
    for column in columns.T:
        size = float(np.linalg.norm(column))
        rest = column / (size or 1.0)
        for _ in range(2):  # the second pass removes what rounding leaves of the first (Kahan)
            rest = rest - basis @ (basis.T @ rest)
        left = float(np.linalg.norm(rest))
        if left > _INDEPENDENT:
            basis = np.column_stack([basis, rest / left])
    return basis
