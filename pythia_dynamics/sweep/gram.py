"""The two-time Gram matrix K_ts = Σ_k w_tk w_sk of a history, and the displacements that follow from it.

It accumulates the Gram matrix of the *increments*, D_ij = Σ_k δ_ik δ_jk with δ_0 = w_0 and δ_i = w_i − w_{i−1}.
K is its double running sum. A displacement over a short lag is a sum of the few entries of D inside the lag, not the
difference of two large entries of K: it keeps its relative accuracy however small it is beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.frames import Frames, to_device
from pythia_dynamics.sweep.sweep import PerSlab

__all__ = ["Gram", "displacements"]

_FLOAT64_BELOW_INCREMENT = 0.02
"""A squared displacement below this share of the largest squared increment within it is computed in float64: float32
has an error of 3e-6 of that increment, hence 3e-6 / 0.02 < 2e-4 of the displacement."""

_FLOAT64_BELOW_NORM = 1e-4
"""So is a history whose least squared norm is below this share of the largest: products of small and large weights are
lost in the rounding of the large ones."""

_DEVICE_NUMBERS = 1 << 24
"""float64 numbers of one slab that one thread has on a device at a time: 128 MB."""


@dataclass(kw_only=True)
class Gram(PerSlab):
    """Accumulator of the Gram matrix of the increments, and of Σ w and Σ w² at every step.

    One partial sum per slab: `products` (R, R), lower triangle, R the number of frames rounded up to a tile, and
    `sums` (T', 2), float64. On a CUDA `device`, or if `double`, all of it is float64; else float32 inside blocks of
    1,024 weights, which bounds the relative error of a step size by 5e-6.
    """

    mixes_steps: ClassVar[bool] = True

    double: bool = False
    device: str = "cpu"
    products: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def start(self, frames: Frames, device: str) -> Self:
        """Empty sums for these frames, computed on this device."""
        double = self.double or device != "cpu" or frames.computing_type == np.float64
        return replace(super().start(frames, device), device=device, double=double, products={})

    def fork(self) -> Self:
        """Empty sums for one more thread."""
        return replace(self, products={}, sums={})

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Add the weights `start` to `stop` of every frame."""
        if self.device != "cpu":
            self.products[start], self.sums[start] = _on_device(frames, start, stop, self.device)
            return
        rows = -(-len(frames) // kernels.TILE) * kernels.TILE
        work = kernels.workspace(rows, kernels.GRAM_BLOCK, np.float64 if self.double else np.float32)
        products, sums = np.zeros((rows, rows)), np.zeros((len(frames), 2))
        kernels.gram(frames.addresses, frames.like, start, stop, work, products, sums)
        self.products[start], self.sums[start] = products, sums

    def merge(self, other: Self) -> None:
        """Add the slabs of another object of the same pass."""
        self.products |= other.products
        self.sums |= other.sums

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Steps whose sum of squares is not finite."""
        return ~np.isfinite(self.total[:, 1])

    def refine(self) -> Self | None:
        """Rerun in float64, or None.

        float32 does not suffice for a displacement that is small beside the increments between its two steps, as
        across a step with other weights, nor for products of small weights and large ones.
        """
        if self.double:
            return None
        increments, squares = self.increments(), self.total[:, 1]
        if squares.min() < _FLOAT64_BELOW_NORM * squares.max():
            return type(self)(double=True)
        with np.errstate(invalid="ignore"):
            squared = displacements(increments)
        greatest = np.zeros(len(increments))
        for j in range(1, len(increments)):
            greatest[:j] = np.maximum(greatest[:j], increments[j, j])  # of those between i and j
            if np.any(squared[:j, j] < _FLOAT64_BELOW_INCREMENT * greatest[:j]):
                return type(self)(double=True)
        return None

    def increments(self) -> NDArray[np.float64]:
        """D, (T', T'), symmetric."""
        length = len(self.indices)
        lower = np.zeros((length, length))
        for start in sorted(self.products):
            lower += self.products[start][:length, :length]
        lower = np.tril(lower)
        return lower + np.tril(lower, -1).T


def _on_device(frames: Frames, start: int, stop: int, device: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One slab on a CUDA device, in float64."""
    import torch

    length = len(frames)
    products = torch.zeros((length, length), dtype=torch.float64, device=device)
    sums = torch.zeros((length, 2), dtype=torch.float64, device=device)
    piece = max(_DEVICE_NUMBERS // length, 1)
    for low in range(start, stop, piece):
        high = min(low + piece, stop)
        weights = torch.empty((length, high - low), dtype=torch.float64, device=device)
        for t, row in enumerate(weights):
            row.copy_(to_device(frames.values(t, low, high), device))
        sums[:, 0] += weights.sum(dim=1)
        sums[:, 1] += torch.linalg.vecdot(weights, weights)
        weights[1:] = weights[1:] - weights[:-1]
        products += weights @ weights.T
    return products.cpu().numpy(), sums.cpu().numpy()


def displacements(increments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_k (w_tk − w_sk)² for every pair of frames, (T', T'), from the Gram matrix of the increments.

    Each is summed up from the entries between its two frames alone.
    """
    length = len(increments)
    result = np.zeros((length, length))
    for j in range(1, length):
        # beyond[t] = Σ_{t<i<j} D_ij, summed from j downwards
        beyond = np.zeros(j)
        beyond[:-1] = np.cumsum(increments[j, j - 1 : 0 : -1])[::-1]
        result[:j, j] = np.maximum(result[:j, j - 1] + increments[j, j] + 2 * beyond, 0)
    return result + result.T
