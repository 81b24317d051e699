"""Exact counts of every 16-bit value at every step, and the moments that follow from them.

A 16-bit float has 65,536 codes. Their exact counts give every histogram, quantile and moment without another reading
of the weights. float32 and float64 weights are counted after rounding to float16; their moments,
minimum and maximum come from the values themselves, in float64.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.frames import Frames
from pythia_dynamics.sweep.sweep import PerSlab

__all__ = ["Counts", "Moments", "central_moments", "code_values"]


CODES = 1 << 16
"""Number of codes of a 16-bit float."""

_MOST_OWN = 64
"""Steps up to which each thread has tables of its own, 16 MB for 64 steps. With more steps the threads share one set: a
step is counted by one thread at a time, and so many steps are enough that threads seldom wait for one another."""


@dataclass(frozen=True)
class Moments:
    """Moments of T' frames: arrays of shape (T',), NaN for a frame with a weight that is not finite.

    Parameters
    ----------
    size
        Number of weights of each frame.
    mean, std
        Mean and population standard deviation of the weights.
    skewness, kurtosis
        Third standardised moment; fourth standardised moment minus 3 (0 for a Gaussian).
    min, max
        Least and greatest weight.
    nonfinite
        Number of weights that are not finite; never NaN.
    """

    size: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    skewness: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    nonfinite: NDArray[np.float64]

    @property
    def bimodality(self) -> NDArray[np.float64]:
        """Sarle's coefficient (g₁² + 1) / (g₂ + 3(n−1)²/((n−2)(n−3))): 1/3 for a Gaussian, 5/9 for a uniform density,
        1 for two points; NaN for fewer than four weights."""
        n = self.size
        if n < 4:
            return np.full_like(self.mean, np.nan)
        return (self.skewness**2 + 1) / (self.kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))

    @property
    def square_sum(self) -> NDArray[np.float64]:
        """Σ_k w², the squared Frobenius norm."""
        return self.size * (self.std**2 + self.mean**2)


@dataclass(kw_only=True)
class Counts(PerSlab):
    """Accumulator that counts exactly how often each 16-bit code occurs at each step.

    Attributes
    ----------
    dtype
        dtype of the weights.
    direct
        Whether the weights are float32 or float64. Their moments come from power sums, not from the counts.
    shift
        Provisional mean of each frame, shape (T',). With `direct`, `sums` has the power sums of weight − shift.
    table
        Counts, uint32 of shape (T', 65536). Codes are those of bfloat16 for bfloat16 weights, else those of float16.
        With more than 64 steps all threads count in the same table.
    locks
        Of each row of a table that threads share; empty before `fork`.
    """

    dtype: np.dtype[Any] = field(default=np.dtype(np.float16))
    direct: bool = False
    shift: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    table: NDArray[np.uint32] = field(default_factory=lambda: np.empty((0, CODES), np.uint32))
    locks: list[threading.Lock] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "locks": []}

    def start(self, frames: Frames, device: str) -> Self:
        """Empty tables for these frames."""
        if frames.size >= 1 << 32:
            raise PythiaDynError(f"a frame of {frames.size} weights is too large to count in 32 bits")
        direct = frames.like.dtype.kind == "f"
        shift = frames.provisional_means() if direct else np.zeros(len(frames))
        table = np.zeros((len(frames), CODES), np.uint32)
        started = super().start(frames, device)
        return replace(started, dtype=frames.history.dtype, direct=direct, shift=shift, table=table)

    def fork(self) -> Self:
        """Empty tables for one more thread, or the same tables with a lock for each step."""
        if len(self.table) <= _MOST_OWN:
            return replace(self, table=np.zeros_like(self.table), sums={})
        self.locks = self.locks or [threading.Lock() for _ in self.table]
        return replace(self, sums={})

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Count the weights `start` to `stop` of every frame."""
        locks: Sequence[AbstractContextManager[Any]] = self.locks or [nullcontext()] * len(self.table)
        if not self.direct:
            for addresses, begin, end in frames.pieces(start, stop):
                for row, address, lock in zip(self.table, addresses, locks, strict=True):
                    with lock:
                        kernels.count_codes(address + np.uint64(2 * begin), end - begin, row)
            return
        codes = np.empty(stop - start, np.uint16)
        partial = np.empty((len(frames), 7))
        for t, (row, lock) in enumerate(zip(self.table, locks, strict=True)):
            values = frames.bits(t, start, stop)
            partial[t] = kernels.power_sums(values, self.shift[t])
            if values.dtype == np.float32:
                kernels.narrow(values, codes)
            else:
                with np.errstate(over="ignore", invalid="ignore"):
                    codes[:] = values.astype(np.float16).view(np.uint16)
            with lock:
                kernels.count_codes(np.uint64(codes.ctypes.data), len(codes), row)
        self.sums[start] = partial

    def merge(self, other: Self) -> None:
        """Add the counts of another object of the same pass."""
        if other.table is not self.table:
            self.table += other.table
        self.sums |= other.sums

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Frames with weights that are not finite, shape (T',), and float64 frames whose squares are not finite."""
        found = self._nonfinite() > 0
        if self.direct:
            found |= ~np.isfinite(np.sum([partial[:, 1] for partial in self.sums.values()], axis=0))
        return found

    @property
    def counted_as(self) -> str:
        """The name of the dtype of the codes: ``"bfloat16"`` or ``"float16"``."""
        return "bfloat16" if self.dtype == ml_dtypes.bfloat16 else "float16"

    @property
    def code_values(self) -> NDArray[np.float64]:
        """The number that each code stands for, shape (65536,)."""
        return code_values(self.counted_as)

    def _nonfinite(self) -> NDArray[np.int64]:
        found: NDArray[np.int64]
        if self.direct:
            found = np.sum([partial[:, 6] for partial in self.sums.values()], axis=0).astype(np.int64)
        else:
            found = self.table[:, ~np.isfinite(self.code_values)].sum(axis=1, dtype=np.int64)
        return found

    @functools.cached_property
    def moments(self) -> Moments:
        """Moments in float64, exact except for rounding. Computed once, so they must be read after the pass."""
        return self._moments_of_values() if self.direct else self._moments_of_codes()

    @functools.cached_property
    def occurring(self) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
        """The finite values that occur at any step, ascending, and their counts, shape (T', values). Computed once.

        +0 and −0 are two values.
        """
        codes = np.flatnonzero(self.table.any(axis=0))
        codes = codes[np.isfinite(self.code_values[codes])]
        codes = codes[np.argsort(self.code_values[codes], kind="stable")]
        return self.code_values[codes], np.take(self.table, codes, axis=1)

    def _moments_of_codes(self) -> Moments:
        values, table = self.occurring
        rows, nonfinite = np.full((len(table), 6), np.nan), self._nonfinite()
        for row, counts, invalid in zip(rows, table, nonfinite, strict=True):
            if not invalid:  # only values of this step, so that other steps cannot change the last bit
                present = np.flatnonzero(counts)
                row[:] = kernels.counted_moments(values[present], counts[present])
        return _moments(self.size, rows, nonfinite)

    def _moments_of_values(self) -> Moments:
        n = self.size
        partials = np.array([self.sums[start] for start in sorted(self.sums)])
        s1, s2, s3, s4 = np.moveaxis(partials[..., :4].sum(axis=0), -1, 0) / n
        with np.errstate(all="ignore"):
            m2, m3, m4 = central_moments(s1, s2, s3, s4)
        rows = (self.shift + s1, m2, m3, m4, partials[..., 4].min(axis=0), partials[..., 5].max(axis=0))
        return _moments(n, np.stack(rows, axis=1), self._nonfinite())


def central_moments(s1: Any, s2: Any, s3: Any, s4: Any) -> tuple[Any, Any, Any]:
    """Central moments of order 2, 3 and 4 from the means of x, x², x³ and x⁴.

    Parameters
    ----------
    s1, s2, s3, s4
        Means of the powers of x − shift, for any shift: float64 scalars, or arrays of one shape.

    Returns
    -------
    tuple
        m₂ (at least 0), m₃ and m₄, of the same shape. They do not depend on the shift.
    """
    m2 = np.maximum(s2 - s1**2, 0)
    m3 = s3 - 3 * s1 * s2 + 2 * s1**3
    m4 = s4 - 4 * s1 * s3 + 6 * s1**2 * s2 - 3 * s1**4
    return m2, m3, m4


@functools.cache
def code_values(dtype: str) -> NDArray[np.float64]:
    """The number that each of the 65,536 codes of ``"float16"`` or ``"bfloat16"`` stands for, shape (65536,)."""
    codes = np.arange(CODES, dtype=np.uint16).view(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16)
    with np.errstate(invalid="ignore"):  # NumPy warns when it widens a signalling NaN
        values: NDArray[np.float64] = codes.astype(np.float64)
    values.flags.writeable = False
    return values


def _moments(n: int, rows: NDArray[np.float64], nonfinite: NDArray[np.int64]) -> Moments:
    rows = np.where((nonfinite > 0)[:, None], np.nan, rows)
    mean, m2, m3, m4, least, greatest = rows.T
    with np.errstate(all="ignore"):
        skewness, kurtosis = m3 / m2**1.5, m4 / m2**2 - 3
    return Moments(
        n,
        mean=mean,
        std=np.sqrt(m2),
        skewness=skewness,
        kurtosis=kurtosis,
        min=least,
        max=greatest,
        nonfinite=nonfinite.astype(np.float64),
    )
