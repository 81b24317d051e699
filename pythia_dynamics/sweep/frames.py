"""The frames of a history as memory: addresses for the kernels, slabs, rows, and warnings about steps left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.history.history import History

if TYPE_CHECKING:
    import torch

__all__ = [
    "Frames",
    "MissingStepsWarning",
    "NonFiniteWarning",
    "carrier",
    "is_finite",
    "slabs",
    "to_device",
    "warn_missing",
    "warn_nonfinite",
]


_CARRIERS: dict[np.dtype[Any], type[np.generic]] = {
    np.dtype(np.float16): np.uint16,
    np.dtype(ml_dtypes.bfloat16): np.int16,
    np.dtype(np.float32): np.float32,
    np.dtype(np.float64): np.float64,
}


_SMALLEST_SLAB = 1 << 13
"""Weights: enough for the work on a slab to outweigh the call of its kernels."""

_LARGEST_SLAB = 1 << 20
"""Weights. Slabs of half a million were 15 to 20 % slower to count, because the counting tables (256 kB a step) leave
the cache between two slabs; larger ones share out unevenly among threads."""

_ALIGNMENT = 64
"""Weights: at least a cache line of 64 bytes for every dtype, so that no two threads read the same line."""

_SLABS = 16
"""The number of slabs is a multiple of this, so that 2, 4, 8 or 16 threads end together."""


class MissingStepsWarning(UserWarning):
    """Steps of the history have no weights; the message names them. They are NaN in every result."""


class NonFiniteWarning(UserWarning):
    """Steps have weights that are NaN or infinite; the message names them. Only their own rows are NaN."""


def carrier(weights: NDArray[Any]) -> NDArray[Any]:
    """Weights as the kernels take them, C-contiguous: the bits of float16 as uint16, those of bfloat16 as int16."""
    if weights.dtype not in _CARRIERS:
        raise PythiaDynError(f"weights must be float16, bfloat16, float32 or float64; got {weights.dtype}")
    return np.ascontiguousarray(weights).view(_CARRIERS[weights.dtype])


class Frames:
    """The frames in use, as memory: T' present steps of equal size, in step order.

    It holds references to the arrays, so the addresses are valid as long as this object. It is pickled as its history:
    paths for a store, the weights themselves for an array.

    Parameters
    ----------
    history : History
        The history whose present steps are used.
    rows : int
        Number of rows of each frame to use, the first ones.
    without : sequence of int
        Places on the step axis that are left out besides the missing ones.

    Attributes
    ----------
    indices : array of int, shape (T',)
        Places of the frames on the step axis of the history.
    size : int
        Weights of each frame.
    addresses : array of uint64, shape (T',)
        Where each frame begins in memory.
    like : array, shape (1,)
        Its dtype tells the kernels what lies at the addresses; see `pythia_dynamics.sweep.kernels`.

    Raises
    ------
    PythiaDynError
        Where no step has weights.
    """

    def __init__(self, history: History, rows: int, *, without: Sequence[int] = ()) -> None:
        self.history, self.rows, self.without = history, rows, tuple(without)
        self.shape = (rows, *history.frame_shape[1:])
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.arrays: list[NDArray[Any]] = []
        indices = []
        for index in range(len(history.steps)):
            frame = None if index in self.without else history.frame(index)
            if frame is not None:
                self.arrays.append(carrier(frame).reshape(-1)[: self.size])
                indices.append(index)
        if not indices:
            raise PythiaDynError(f"no step of {history.name} has weights to analyse")
        self.indices = np.array(indices)
        self.addresses = np.array([array.ctypes.data for array in self.arrays], dtype=np.uint64)
        self.like = np.zeros(1, self.arrays[0].dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return _frames, (self.history, self.rows, self.without)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step numbers of the frames in use."""
        steps: NDArray[np.int64] = self.history.steps[self.indices]
        return steps

    @property
    def computing_type(self) -> type[np.floating[Any]]:
        """float32, in which 16-bit weights are exact; float64 for float64 weights."""
        return np.float64 if self.history.dtype == np.float64 else np.float32

    def values(self, position: int, start: int, stop: int) -> NDArray[Any]:
        """A copy-free view of the weights `start` to `stop` of one frame, in the dtype of the history."""
        return self.arrays[position][start:stop].view(self.history.dtype)

    def rough_means(self, pieces: int = 4, piece: int = 1024) -> NDArray[np.float64]:
        """A provisional mean of each frame from a few short stretches of it, rounded to the dtype of the weights.

        Sums of values shifted by it do not cancel when the exact mean is subtracted from them afterwards. Rounded, so
        that a constant frame is exactly zero after the shift. 0 where a stretch is not finite.
        """
        starts = np.unique(np.linspace(0, max(self.size - piece, 0), pieces).astype(int))
        means = np.empty(len(self))
        for t in range(len(self)):
            stretches = [self.values(t, start, min(start + piece, self.size)) for start in starts]
            with np.errstate(all="ignore"):
                means[t] = np.concatenate(stretches).astype(np.float64).mean()
        means[~np.isfinite(means)] = 0
        rounded: NDArray[np.float64] = means.astype(self.history.dtype).astype(np.float64)
        return rounded

    def padded(self, multiple: int) -> NDArray[np.uint64]:
        """The addresses, the last one repeated up to a multiple."""
        short = -len(self) % multiple
        return np.concatenate([self.addresses, np.repeat(self.addresses[-1:], short)])


def _frames(history: History, rows: int, without: tuple[int, ...]) -> Frames:
    return Frames(history, rows, without=without)


def slabs(size: int, slab: int | None = None) -> list[tuple[int, int]]:
    """The ranges (start, stop) of weights that one pass over frames goes through.

    Parameters
    ----------
    size : int
        Weights of a frame.
    slab : int, optional
        Weights of a range, rounded up to whole cache lines. By default there are 16 equal ranges or a multiple of 16,
        fewer where the frame is small.
    """
    if slab is None:
        count = _SLABS * -(-size // (_SLABS * _LARGEST_SLAB))
        slab = max(-(-size // max(count, 1)), _SMALLEST_SLAB)
    if slab < 1:
        raise PythiaDynError(f"a slab must have at least one weight; got {slab}")
    slab = -(-slab // _ALIGNMENT) * _ALIGNMENT
    return [(start, min(start + slab, size)) for start in range(0, size, slab)]


def warn_missing(history: History) -> None:
    """Name the steps of the history that have no weights in a `MissingStepsWarning`, if there are any."""
    gone = history.steps[~history.present].tolist()
    if gone:
        warnings.warn(
            f"{history.name} lacks {listed(gone)}: NaN there, and skipped in sums over steps",
            MissingStepsWarning,
            stacklevel=3,
        )


def warn_nonfinite(history: History, steps: Sequence[int]) -> None:
    """Name steps with weights that are NaN or infinite in a `NonFiniteWarning`, if there are any."""
    if steps:
        warnings.warn(
            f"{history.name} has weights that are not finite at {listed(steps)}: NaN there, and skipped in sums",
            NonFiniteWarning,
            stacklevel=3,
        )


def is_finite(frames: Frames, position: int) -> bool:
    """Whether all weights of one frame are finite; `position` counts the frames in use."""
    pieces = (frames.values(position, start, stop) for start, stop in slabs(frames.size))
    with np.errstate(invalid="ignore"):  # bfloat16 warns of signalling NaNs
        return all(np.isfinite(piece).all() for piece in pieces)


def to_device(values: NDArray[Any], device: str) -> torch.Tensor:
    """A copy of weights on a device of torch, as float64; 16-bit weights are sent as they are and widened there."""
    import torch

    sent = values.copy()
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if sent.dtype.name in kinds:
        return torch.from_numpy(sent.view(np.int16)).to(device).view(kinds[sent.dtype.name]).to(torch.float64)
    return torch.from_numpy(sent).to(device).to(torch.float64)
