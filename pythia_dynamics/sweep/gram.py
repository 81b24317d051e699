"""The two-time Gram matrix K_ts = Σ_k w_tk w_sk of a history, and the displacements that follow from it.

The accumulator sums the Gram matrix of the *increments*, D_ij = Σ_k δ_ik δ_jk with δ_0 = w_0 and δ_i = w_i − w_{i−1}.
K is the cumulative sum of D along both axes. A displacement over a short lag is a sum of the few entries of D inside
the lag, not the difference of two large entries of K. Its relative accuracy does not depend on the size of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.sweep import gram_kernels
from pythia_dynamics.sweep.frames import Frames, to_device
from pythia_dynamics.sweep.intrinsics import workspace
from pythia_dynamics.sweep.kernels import TILE
from pythia_dynamics.sweep.sweep import PerSlab

__all__ = ["Gram", "displacements"]

_FLOAT64_BELOW_INCREMENT = 0.02
"""A squared displacement below this share of the largest squared increment between its two steps is computed in
float64. float32 has an error of 3e-6 of that increment, hence less than 3e-6 / 0.02 < 2e-4 of other displacements."""

_FLOAT64_BELOW_NORM = 1e-4
"""A history whose least squared norm is below this share of the largest is computed in float64: float32 would
lose products of small and large weights in the rounding of the large ones. 1e-4 is a ratio of 100 between norms."""

_DEVICE_ELEMENTS = 1 << 24
"""float64 numbers of one slab that one thread has on a device at a time: 128 MB, so that 16 threads need 2 GB of the
memory of the device."""


@dataclass(kw_only=True)
class Gram(PerSlab):
    """Accumulator of the Gram matrix of the increments, and of Σ w and Σ w² at every step.

    On a CUDA `device`, or if `double`, everything is computed in float64. Otherwise blocks of 1,024 weights are summed
    in float32, which bounds the relative error of the size of an increment by 5e-6.

    Attributes
    ----------
    double
        Whether to compute in float64.
    device
        Where to compute.
    products
        Partial sums of D by the first weight of the slab: lower triangle, float64 of shape (R, R), where R is T'
        rounded up to a multiple of `TILE`.
    sums
        Partial sums of w and w² by the first weight of the slab: float64 of shape (T', 2).
    """

    mixes_steps: ClassVar[bool] = True
    uses_device: ClassVar[bool] = True

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
        rows = -(-len(frames) // TILE) * TILE
        work = workspace(rows, gram_kernels.GRAM_BLOCK, np.float64 if self.double else np.float32)
        products, sums = np.zeros((rows, rows)), np.zeros((len(frames), 2))
        for addresses, begin, end in frames.pieces(start, stop):
            gram_kernels.gram(addresses, frames.like, begin, end, work, products, sums)
        self.products[start], self.sums[start] = products, sums

    def merge(self, other: Self) -> None:
        """Add the slabs of another object of the same pass."""
        self.products |= other.products
        self.sums |= other.sums

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Frames whose sum of squares is not finite, shape (T',)."""
        return ~np.isfinite(self.total[:, 1])

    def refine(self) -> Self | None:
        """Rerun in float64, or None.

        float32 is not precise enough for a displacement that is much smaller than the increments between its two
        steps, nor for products of small and large weights.
        """
        if self.double:
            return None
        increments, squares = self.increments(), self.total[:, 1]
        if squares.min() < _FLOAT64_BELOW_NORM * squares.max():
            return type(self)(double=True)
        with np.errstate(invalid="ignore"):
            squared = displacements(increments)
        largest = np.zeros(len(increments))
        for j in range(1, len(increments)):
            largest[:j] = np.maximum(largest[:j], increments[j, j])  # largest squared increment between i and j
            if np.any(squared[:j, j] < _FLOAT64_BELOW_INCREMENT * largest[:j]):
                return type(self)(double=True)
        return None

    def increments(self) -> NDArray[np.float64]:
        """D, the Gram matrix of the increments, shape (T', T'), symmetric."""
        length = len(self.indices)
        lower = np.zeros((length, length))
        for start in sorted(self.products):
            lower += self.products[start][:length, :length]
        lower = np.tril(lower)
        return lower + np.tril(lower, -1).T


def _on_device(frames: Frames, start: int, stop: int, device: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of one slab on a CUDA device, in float64."""
    import torch

    length = len(frames)
    products = torch.zeros((length, length), dtype=torch.float64, device=device)
    sums = torch.zeros((length, 2), dtype=torch.float64, device=device)
    chunk = max(_DEVICE_ELEMENTS // length, 1)
    for low in range(start, stop, chunk):
        high = min(low + chunk, stop)
        weights = torch.empty((length, high - low), dtype=torch.float64, device=device)
        for t, row in enumerate(weights):
            row.copy_(to_device(frames.values(t, low, high), device))
        sums[:, 0] += weights.sum(dim=1)
        sums[:, 1] += torch.linalg.vecdot(weights, weights)
        weights[1:] = weights[1:] - weights[:-1]
        products += weights @ weights.T
    return products.cpu().numpy(), sums.cpu().numpy()


def displacements(increments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared displacements Σ_k (w_tk − w_sk)² of every pair of frames.

    Parameters
    ----------
    increments
        D, the Gram matrix of the increments, shape (T', T').

    Returns
    -------
    array, shape (T', T')
        Symmetric, in weight². Each is the sum of the entries of D between its two frames only.
    """
    length = len(increments)
    result = np.zeros((length, length))
    for j in range(1, length):
        # cross[t] = Σ_{t<i<j} D_ij, summed from j downwards
        cross = np.zeros(j)
        cross[:-1] = np.cumsum(increments[j, j - 1 : 0 : -1])[::-1]
        result[:j, j] = np.maximum(result[:j, j - 1] + increments[j, j] + 2 * cross, 0)
    return result + result.T
