"""The frames of a history as memory addresses for the kernels; slabs; warnings about steps that are left out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import torch

__all__ = [
    "Frames",
    "MissingStepsWarning",
    "NonFiniteWarning",
    "is_finite",
    "kernel_array",
    "slabs",
    "to_device",
    "warn_missing",
    "warn_nonfinite",
]


_KERNEL_DTYPES: dict[np.dtype[Any], type[np.generic]] = {
    np.dtype(np.float16): np.uint16,
    np.dtype(ml_dtypes.bfloat16): np.int16,
    np.dtype(np.float32): np.float32,
    np.dtype(np.float64): np.float64,
}
"""dtype of the array that a kernel gets, by dtype of the weights. Numba has no 16-bit floats, so it gets their bits."""


_SMALLEST_SLAB = 1 << 13
"""Weights. The work on a slab of this size takes much longer than the call of its kernels."""

_LARGEST_SLAB = 1 << 20
"""Weights. Counting slabs of half a million weights was 15 to 20 % slower, because the counting tables (256 kB a step)
leave the cache between two slabs. Larger slabs are too few to give all threads equal work."""

_ALIGNMENT = 64
"""Weights: at least one cache line of 64 bytes for every dtype, so that no two threads read the same line."""

_SLAB_MULTIPLE = 16
"""The number of slabs is a multiple of this, so that 2, 4, 8 or 16 threads get equal work."""


_UNIT = 2048
"""Weights: a multiple of the blocks of all kernels, which add in float32 inside a block. Pieces of a slab that are
whole blocks give the same sums as the slab, to the last bit."""

_SHORT_RUN = 4 * _UNIT
"""Weights of a run below which pieces are copied: their kernels would take less time than the calls."""

_COPIED = 8 * _UNIT
"""Weights per step of a piece that is copied. Of 143 frames of 16 bits they are 4.7 MB, which stay in the L3 cache."""


class MissingStepsWarning(UserWarning):
    """Steps of the history have no weights; the message names them. They are NaN in every result."""


class NonFiniteWarning(UserWarning):
    """Steps have weights that are NaN or infinite; the message names them. Only their own rows are NaN."""


def kernel_array(weights: NDArray[Any]) -> NDArray[Any]:
    """Weights as an array that the kernels accept.

    Parameters
    ----------
    weights
        float16, bfloat16, float32 or float64, of any shape.

    Returns
    -------
    array of the same shape
        C-contiguous: the bits of float16 as uint16, those of bfloat16 as int16; float32 and float64 unchanged. Shares
        the memory of C-contiguous weights.

    Raises
    ------
    PythiaDynError
        The weights have another dtype.
    """
    return _as_bits(np.ascontiguousarray(weights))


def _as_bits(weights: NDArray[Any]) -> NDArray[Any]:
    """A view of weights with the dtype that the kernels take."""
    if weights.dtype not in _KERNEL_DTYPES:
        raise PythiaDynError(f"weights must be float16, bfloat16, float32 or float64; got {weights.dtype}")
    return weights.view(_KERNEL_DTYPES[weights.dtype])


class Frames:
    """The frames in use: T' present steps of equal size, in step order, with their addresses in memory.

    The weights of a frame are numbered in row-major order. They are adjacent in memory, except those of a part of a
    fused tensor: these are runs of equal length. `pieces` and `values` read both.

    The object holds references to the arrays, so the addresses are valid while it exists. Pickling it sends its
    history: paths for a store, the weights for an array.

    Parameters
    ----------
    history : History
        The history whose present steps are used.
    rows : int
        Use the first `rows` rows of each frame.
    without : sequence of int
        Indices of steps that are left out in addition to the missing ones.
    part : tuple of History and int, optional
        Of a history that is streamed: the weights that are here now, as vectors, of each frame in use; and the index in
        the frame of the first of them. Only these can be read.

    Attributes
    ----------
    indices : array of int, shape (T',)
        Indices of the frames into the steps of the history.
    size : int
        Number of weights of each frame.
    run : int
        Number of weights that are adjacent in memory: `size`, except of a part of a fused tensor.
    like : array, shape (1,)
        An array of the dtype of the data at the addresses; see `pythia_dynamics.sweep.kernels`.

    Raises
    ------
    PythiaDynError
        No step has weights.
    """

    def __init__(
        self, history: History, rows: int, *, without: Sequence[int] = (), part: tuple[History, int] | None = None
    ) -> None:
        self.history, self.rows, self.without, self.part = history, rows, tuple(without), part
        self.shape = (rows, *history.frame_shape[1:])
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.indices = np.array([index for index in np.flatnonzero(history.present).tolist() if index not in without])
        if not len(self.indices):
            raise PythiaDynError(f"no step of {history.name} has weights to analyse")
        here, self.start = part or (history, 0)
        readable = list(range(len(here))) if part else [] if history.remote else self.indices.tolist()
        self._arrays: list[NDArray[Any]] = []
        for index in readable:
            segments = here.segments(index)
            assert segments is not None  # only present steps are in use
            self._arrays.append(_as_bits(segments))
        self.run = self._arrays[0].shape[1] if self._arrays and len(self._arrays[0]) > 1 else self.size
        self.like = kernel_array(np.zeros(1, history.dtype))
        before = self.start * self.like.itemsize  # the kernels add the index of a weight in its frame
        addresses = [(array.ctypes.data - before) % (1 << 64) for array in self._arrays]
        self._addresses = np.array(addresses, dtype=np.uint64)
        self._strides = np.array([array.strides[0] for array in self._arrays], dtype=np.uint64)
        self._means: NDArray[np.float64] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _frames, (self.history, self.rows, self.without, self.part, self._means)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def addresses(self) -> NDArray[np.uint64]:
        """The address of the first weight of each frame, shape (T',), where all weights of a frame are adjacent.

        Raises `PythiaDynError` where they are not.
        """
        if self.run < self.size:
            raise PythiaDynError(f"{self.history.tensor} is not in one piece in memory: read it with Frames.pieces")
        return self._addresses

    def loaded(
        self, ranges: Sequence[tuple[int, int]], progress: Progress = silent
    ) -> Iterator[tuple[Frames, Sequence[tuple[int, int]]]]:
        """Frames of which ranges of weights can be read: these, or of a history that is streamed one after another.

        Parameters
        ----------
        ranges
            Consecutive ranges (start, stop) of weights.
        progress
            Called with the number of ranges that have arrived, and of all. Only for a history that is streamed.

        Yields
        ------
        tuple of Frames and sequence of tuple
            Frames, and the ranges that they have. They are valid until the next ones.
        """
        remote = self.history.remote
        if remote is None:
            yield self, ranges
            return
        before = 0
        for group in remote.windows(ranges, len(self)):
            start, stop = group[0][0], group[-1][1]
            arrived = partial(_arrived, progress, before, len(group), len(ranges))
            before += len(group)
            with self.history.read_ranges(self.steps.tolist(), [(start, stop)], arrived) as history:
                local = Frames(
                    replace(self.history, remote=None), self.rows, without=self.without, part=(history, start)
                )
                local._means = self._means
                try:
                    yield local, group
                finally:  # the disk gets the space of a deleted file back when its last map is closed
                    local._arrays.clear()

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step numbers of the frames in use."""
        steps: NDArray[np.int64] = self.history.steps[self.indices]
        return steps

    @property
    def computing_type(self) -> type[np.floating[Any]]:
        """The type to compute in: float64 for float64 weights, else float32, which is exact for 16-bit weights."""
        return np.float64 if self.history.dtype == np.float64 else np.float32

    def bits(self, position: int, start: int, stop: int) -> NDArray[Any]:
        """As `values`, in the dtype that kernels take."""
        array, run = self._arrays[position], self.run
        start, stop = start - self.start, stop - self.start
        first, last = start // run, (stop - 1) // run
        if first == last:
            return array[first, start - first * run : stop - first * run]
        inner = array[first + 1 : last].reshape(-1)
        return np.concatenate([array[first, start - first * run :], inner, array[last, : stop - last * run]])

    def values(self, position: int, start: int, stop: int) -> NDArray[Any]:
        """The weights `start` to `stop` of the frame `position` in the dtype of the history, shape (n,).

        A view where they are adjacent in memory, else a copy.
        """
        return self.bits(position, start, stop).view(self.history.dtype)

    def pieces(
        self, start: int, stop: int, *, multiple: int = 1, unit: int = _UNIT, origin: int | None = None
    ) -> Iterator[tuple[NDArray[np.uint64], int, int]]:
        """The weights `start` to `stop` of every frame, in pieces that are adjacent in memory.

        Runs are read in place, as far as they are long. Where a run ends, and where runs are short, a piece is copied;
        its memory is valid until the next piece.

        Parameters
        ----------
        start, stop
            The weights, usually a slab.
        multiple
            The last address is repeated until the number of addresses is a multiple of this.
        unit, origin
            Two pieces meet at a weight whose distance from `origin` is a multiple of `unit`. By default `origin` is
            `start`, and `unit` a multiple of the blocks of all kernels: their sums over the pieces are those over the
            whole to the last bit.

        Yields
        ------
        tuple
            Addresses, uint64 of shape (T' or more,); first weight; last weight + 1. A weight k of the piece has the
            address ``addresses[t] + k * like.itemsize``.
        """
        origin, size = start if origin is None else origin, self.like.itemsize
        while start < stop:
            section, inside = divmod(start, self.run)
            end = min(start + self.run - inside, stop)
            if end < stop:
                end -= (end - origin) % unit
            if end > start and (end == stop or self.run >= _SHORT_RUN):
                first = self._addresses + np.uint64(section) * self._strides
                yield _padded(first - _offset(section * self.run * size), multiple), start, end
            else:
                end = start + (_UNIT if self.run >= _SHORT_RUN else _COPIED)
                end = min(end + (origin - end) % unit, stop)
                copied = np.stack([self.bits(t, start, end) for t in range(len(self))])
                first = np.array([row.ctypes.data for row in copied], dtype=np.uint64)
                yield _padded(first - _offset(start * size), multiple), start, end
            start = end

    def provisional_means(self, count: int = 4, length: int = 1024) -> NDArray[np.float64]:
        """An estimate of the mean of each frame, from samples, rounded to the dtype of the weights; shape (T',).

        Sums of weight − estimate lose no digits when the exact mean is subtracted afterwards. The estimate is rounded,
        so that a constant frame minus its estimate is exactly zero. It is 0 if a sample is not finite.

        Parameters
        ----------
        count, length
            Number of samples, and consecutive weights of each. 4 · 1,024 independent weights give the mean to within
            about σ/64, small compared with the spread of the weights.
        """
        if self._means is not None:
            return self._means
        starts = np.unique(np.linspace(0, max(self.size - length, 0), count).astype(int)).tolist()
        means = np.empty(len(self))
        for t, sample in enumerate(self._samples([(start, min(start + length, self.size)) for start in starts])):
            with np.errstate(all="ignore"):
                means[t] = sample.astype(np.float64).mean()
        means[~np.isfinite(means)] = 0
        self._means = means.astype(self.history.dtype).astype(np.float64)
        return self._means

    def _samples(self, ranges: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        """The weights of some ranges of each frame, one after the other."""
        if self.history.remote is None:
            for t in range(len(self)):
                yield np.concatenate([self.values(t, start, stop) for start, stop in ranges])
            return
        with self.history.read_ranges(self.steps.tolist(), ranges) as history:
            for t in range(len(self)):
                yield history.at(int(self.steps[t]))


def _offset(nbytes: int) -> NDArray[np.uint64]:
    """A number of bytes to subtract from addresses. As an array, since a difference below zero wraps, as in a kernel,
    and NumPy warns of scalars that do."""
    return np.array([nbytes], dtype=np.uint64)


def _padded(addresses: NDArray[np.uint64], multiple: int) -> NDArray[np.uint64]:
    """Addresses with the last one repeated until their number is a multiple of `multiple`."""
    padding = -len(addresses) % multiple
    return np.concatenate([addresses, np.repeat(addresses[-1:], padding)]) if padding else addresses


def _arrived(progress: Progress, before: int, group: int, total: int, done: int, steps: int) -> None:
    """Report that `done` steps of a group of ranges have arrived, as a number of ranges of all."""
    progress(before + group * done // steps, total)


def _frames(
    history: History,
    rows: int,
    without: tuple[int, ...],
    part: tuple[History, int] | None,
    means: NDArray[np.float64] | None,
) -> Frames:
    frames = Frames(history, rows, without=without, part=part)
    frames._means = means
    return frames


def slabs(size: int, slab: int | None = None) -> list[tuple[int, int]]:
    """Divide the weights of a frame into ranges (start, stop), the slabs of a pass.

    Parameters
    ----------
    size : int
        Number of weights of a frame.
    slab : int, optional
        Weights of a slab, rounded up to whole cache lines. By default there are 16 equal slabs or a multiple of 16;
        a small frame has fewer.

    Raises
    ------
    PythiaDynError
        `slab` is below 1.
    """
    if slab is None:
        count = _SLAB_MULTIPLE * -(-size // (_SLAB_MULTIPLE * _LARGEST_SLAB))
        slab = max(-(-size // max(count, 1)), _SMALLEST_SLAB)
    if slab < 1:
        raise PythiaDynError(f"a slab must have at least one weight; got {slab}")
    slab = -(-slab // _ALIGNMENT) * _ALIGNMENT
    return [(start, min(start + slab, size)) for start in range(0, size, slab)]


def warn_missing(history: History) -> None:
    """Issue a `MissingStepsWarning` that names the steps of the history without weights, if there are any."""
    missing = history.steps[~history.present].tolist()
    if missing:
        warnings.warn(
            f"{history.name} lacks {listed(missing)}: NaN there, and skipped in sums over steps",
            MissingStepsWarning,
            stacklevel=3,
        )


def warn_nonfinite(history: History, steps: Sequence[int]) -> None:
    """Issue a `NonFiniteWarning` that names the steps with weights that are NaN or infinite, if there are any."""
    if steps:
        warnings.warn(
            f"{history.name} has weights that are not finite at {listed(steps)}: NaN there, and skipped in sums",
            NonFiniteWarning,
            stacklevel=3,
        )


def is_finite(frames: Frames, position: int) -> bool:
    """Whether all weights of one frame are finite. `position` is its index among the frames in use."""
    one = Frames(frames.history.select([int(frames.steps[position])]), frames.rows)
    with np.errstate(invalid="ignore"):  # bfloat16 warns of signalling NaNs
        return all(
            np.isfinite(local.values(0, start, stop)).all()
            for local, ranges in one.loaded(slabs(one.size))
            for start, stop in ranges
        )


def to_device(values: NDArray[Any], device: str) -> torch.Tensor:
    """A copy of weights on a torch device, as float64 of the same shape.

    16-bit weights are transferred as 16-bit numbers and widened on the device.
    """
    import torch

    sent = values.copy()
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if sent.dtype.name in kinds:
        return torch.from_numpy(sent.view(np.int16)).to(device).view(kinds[sent.dtype.name]).to(torch.float64)
    return torch.from_numpy(sent).to(device).to(torch.float64)
