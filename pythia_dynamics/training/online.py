"""Statistics of one tensor that are updated with each record during training.

They are those that the analyses find in the store afterwards. A record reads the new weights, the previous ones and the
first ones; only the row of the Gram matrix reads all earlier ones.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.compiled import kernel
from pythia_dynamics.measures.displacement import random_walk
from pythia_dynamics.measures.stationarity import RATE_STEPS
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.counts import Moments, central_moments

__all__ = ["COLUMNS", "OnlineStatistics"]

COLUMNS: Mapping[str, str] = {
    "frobenius_norm": "Frobenius norm of W",
    "order_parameter": "order parameter b = ‖W‖_F / d_model",
    "msd": "MSD, demeaned over weights (Eq 5)",
    "msd_null": "MSD of a random walk, demeaned over weights",
    "msd_null_sd": "standard deviation of the MSD of a random walk",
    "displacement": "mean squared displacement from the first step",
    "moved": "squared displacement since the record before",
    "displacement_rate": f"relative displacement per {RATE_STEPS} steps",
    "cosine_first": "cosine with the weights of the first record",
    "cosine_before": "cosine with the weights of the record before",
    "mean": "mean weight",
    "std": "standard deviation of the weights",
    "skewness": "skewness",
    "kurtosis": "excess kurtosis",
    "bimodality": "Sarle's bimodality coefficient",
    "nonfinite": "number of weights that are not finite",
}
"""The statistics of a record by name, with their labels. Definitions are those of the analyses."""

_PIECE = 1 << 20
"""Weights that are widened at a time, so that a widened copy takes at most 8 MB."""

_ROW = 1024
"""Weights whose products are added up in float32, as in the Gram matrix of the sweep."""


@dataclass
class OnlineStatistics:
    """The statistics of one tensor at each record.

    Parameters
    ----------
    size
        N, the number of weights.
    width
        d, the length of the last dimension.
    with_gram
        Whether `products` has the inner products with all earlier records, or with the first and the last only.
    steps
        The steps of the records.
    rows
        The statistics of each record by the names of `COLUMNS`; NaN where weights are not finite.
    products
        For each record its inner products with earlier records whose weights are finite, and with itself.
    displaced
        For each record its squared displacements from those earlier records, and 0 from itself.
    integral
        Σ_t (w_t − m_t), float64 of shape (N,): the only large array in memory.
    frames
        The weights of the records that are finite, mapped from the store.
    """

    size: int
    width: int
    with_gram: bool = True
    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    products: list[NDArray[np.float64]] = field(default_factory=list)
    displaced: list[NDArray[np.float64]] = field(default_factory=list)
    integral: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    frames: list[NDArray[Any]] = field(default_factory=list)

    def add(self, step: int, frame: NDArray[Any]) -> None:
        """Add the record of a `step`; `frame` has its weights, shape (N,), in the dtype of the store."""
        moments = _moments(frame)
        earlier = self.frames if self.with_gram else [*self.frames[:1], *self.frames[-1:]]
        row = dict.fromkeys(COLUMNS, float("nan")) | {"nonfinite": float(moments.nonfinite[0])}
        self.steps.append(step)
        self.rows.append(row)
        if row["nonfinite"]:
            self.products.append(np.empty(0))
            self.displaced.append(np.empty(0))
            return
        for name in ("mean", "std", "skewness", "kurtosis", "bimodality"):
            row[name] = float(getattr(moments, name)[0])
        pairs = [_dot(other, frame) for other in earlier]
        products = np.array([*(product for product, _ in pairs), float(moments.square_sum[0])])
        self.products.append(products)
        self.displaced.append(np.array([*(squared for _, squared in pairs), 0.0]))
        if not len(self.integral):
            self.integral = np.zeros(self.size)
        sums = np.zeros(3)
        first, previous = (earlier[0], earlier[-1]) if earlier else (frame, frame)
        for i in range(0, self.size, _PIECE):
            w, before, start = (_wide(array[i : i + _PIECE]) for array in (frame, previous, first))
            sums += _advance(w, before, start, self.integral[i : i + _PIECE], row["mean"])
        integrated, moved, displaced = sums.tolist()
        norm = np.sqrt(products[-1])
        row["frobenius_norm"], row["order_parameter"] = float(norm), float(norm / self.width)
        row["displacement"], row["moved"] = displaced / self.size, moved
        row["msd"] = integrated / (self.size - 1 if self.size > 1 else np.nan)
        finite = [(at, other) for at, other in zip(self.steps, self.rows, strict=True) if not other["nonfinite"]]
        moves = np.array([other["moved"] for _, other in finite])
        expected, spread = random_walk(self.size * finite[0][1]["std"] ** 2, moves, self.size)
        row["msd_null"], row["msd_null_sd"] = float(expected[-1]), float(spread[-1])
        if earlier:
            norms = np.array([other["frobenius_norm"] for _, other in finite])
            with np.errstate(divide="ignore", invalid="ignore"):
                row["displacement_rate"] = float(np.sqrt(moved) / norm * RATE_STEPS / (step - finite[-2][0]))
                row["cosine_first"] = float(products[0] / norms[0] / norm)
                row["cosine_before"] = float(products[-2] / norms[-2] / norm)
        self.frames.append(frame)


def _moments(frame: NDArray[Any]) -> Moments:
    """The moments of N weights from power sums about a provisional mean, as in `density`; NaN if one is not finite."""
    n = frame.size
    shift = float(np.nan_to_num(frame[:: max(n // 4096, 1)].astype(np.float64)).mean())
    sums = np.zeros(5)
    least, greatest = np.inf, -np.inf
    for i in range(0, n, _PIECE):
        piece = frame[i : i + _PIECE]
        s1, s2, s3, s4, low, high, bad = kernels.power_sums(_wide(piece), shift)
        sums += (s1, s2, s3, s4, bad)
        least, greatest = min(least, low), max(greatest, high)
    s1, s2, s3, s4 = sums[:4] / n
    with np.errstate(all="ignore"):
        m2, m3, m4 = central_moments(s1, s2, s3, s4)
        values = np.array([shift + s1, np.sqrt(m2), m3 / m2**1.5, m4 / m2**2 - 3, least, greatest])
    if sums[4]:
        values[:] = np.nan
    mean, std, skewness, kurtosis, lowest, highest = values[:, None]
    return Moments(n, mean, std, skewness, kurtosis, lowest, highest, nonfinite=sums[4:])


def _dot(first: NDArray[Any], second: NDArray[Any]) -> tuple[float, float]:
    """Σ w v and Σ (w − v)², in float32 inside rows of 1,024 weights and in float64 over the rows.

    The second is summed by itself: from the products, small displacements of large weights would be lost in rounding.
    """
    product = squared = 0.0
    for i in range(0, first.size, _PIECE):
        a, b = _wide(first[i : i + _PIECE]), _wide(second[i : i + _PIECE])
        product += _sum_of_products(a, b)
        difference = a - b
        squared += _sum_of_products(difference, difference)
    return product, squared


def _sum_of_products(a: NDArray[Any], b: NDArray[Any]) -> float:
    whole = a.size - a.size % _ROW
    rows = np.einsum("ij,ij->i", a[:whole].reshape(-1, _ROW), b[:whole].reshape(-1, _ROW))
    return float(rows.sum(dtype=np.float64)) + float(a[whole:].astype(np.float64) @ b[whole:].astype(np.float64))


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """The weights in float32, which holds 16-bit ones exactly, or in float64; 32- and 64-bit ones are not copied."""
    kind: Any = np.float64 if values.dtype == np.float64 else np.float32
    wide: NDArray[Any] = np.asarray(values).astype(kind, copy=False)
    return wide


@kernel(fastmath={"reassoc", "nsz", "contract", "arcp"})
def _advance(w: Any, before: Any, first: Any, integral: Any, mean: float) -> tuple[float, float, float]:
    """Add w − mean to the integral; Σ integral², Σ (w − before)² and Σ (w − first)², in float64."""
    squares = moved = displaced = 0.0
    for i in range(w.size):
        x = np.float64(w[i])
        total = integral[i] + (x - mean)
        integral[i] = total
        squares += total * total
        moved += (x - np.float64(before[i])) ** 2
        displaced += (x - np.float64(first[i])) ** 2
    return squares, moved, displaced
