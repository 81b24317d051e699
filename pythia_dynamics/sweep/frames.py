"""The frames of a history as memory: addresses for the kernels, slabs, rows, and warnings about steps left out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.history.history import History

__all__ = [
    "Frames",
    "MissingStepsWarning",
    "NonFiniteWarning",
    "carrier",
    "is_finite",
    "rows_kept",
    "slabs",
    "warn_missing",
    "warn_nonfinite",
    "workers",
]


_CARRIERS: dict[np.dtype[Any], type[np.generic]] = {
    np.dtype(np.float16): np.uint16,
    np.dtype(ml_dtypes.bfloat16): np.int16,
    np.dtype(np.float32): np.float32,
    np.dtype(np.float64): np.float64,
}


_LEAST, _MOST = 1 << 13, 1 << 20  # weights in a slab: enough to amortise a call, little enough to share out evenly
_ALIGNMENT = 64  # weights; slabs begin on cache lines


_SHARES = 16  # the slabs of a pass are a multiple of this: few, as a counting table leaves the cache between two


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
    """The frames in use, as memory: T' present steps of the same `size`, in step order.

    `indices` are their places on the history's step axis. `rows` keeps the first rows of each frame (the vocabulary
    without its padding). The arrays stay referenced here, so the addresses stay valid as long as this object. It
    pickles as its history: paths for a store, the weights themselves for an array.
    """

    def __init__(self, history: History, rows: int | None = None, *, without: Sequence[int] = ()) -> None:
        self.history, self.rows, self.without = history, rows, tuple(without)
        kept = rows_kept(history, rows)
        self.shape = (kept, *history.frame_shape[1:])
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


def _frames(history: History, rows: int | None, without: tuple[int, ...]) -> Frames:
    return Frames(history, rows, without=without)


def slabs(size: int, slab: int | None = None) -> list[tuple[int, int]]:
    """The ranges of weights of one pass over frames of `size` weights, of `slab` weights each; by default 16 equal
    ranges or a multiple of it, fewer of a small frame."""
    if slab is None:
        count = _SHARES * -(-size // (_SHARES * _MOST))
        slab = max(-(-size // max(count, 1)), _LEAST)
    if slab < 1:
        raise PythiaDynError(f"a slab must have at least one weight; got {slab}")
    slab = -(-slab // _ALIGNMENT) * _ALIGNMENT
    return [(start, min(start + slab, size)) for start in range(0, size, slab)]


def workers(threads: int | None = None) -> int:
    """The number of threads to use: `threads`, or the cores this process may run on."""
    if threads is not None:
        if threads < 1:
            raise PythiaDynError(f"the number of threads must be at least 1; got {threads}")
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rows_kept(history: History, drop_padding: int | None) -> int:
    """Rows of each frame to use: all, or the first `drop_padding`. Raises when there are not that many."""
    rows = history.frame_shape[0]
    if drop_padding is None:
        return rows
    whole = isinstance(drop_padding, (int, np.integer)) and not isinstance(drop_padding, bool)
    if not whole or not 1 <= drop_padding <= rows:
        raise PythiaDynError(f"drop_padding is the number of rows to keep, 1 to {rows}; got {drop_padding}")
    return int(drop_padding)


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
    pieces = (frames.values(position, start, stop) for start, stop in slabs(frames.size))
    with np.errstate(invalid="ignore"):  # bfloat16 remarks on signalling NaNs
        return all(np.isfinite(piece).all() for piece in pieces)
