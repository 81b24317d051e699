"""The weights of a history as one array of which only the frames in use are read."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Weights"]


@dataclass(frozen=True, eq=False)
class Weights:
    """The frames of a history as one lazy array. Indexing reads the frames it needs; missing ones are NaN."""

    shape: tuple[int, ...]
    """(T, *frame_shape)."""
    dtype: np.dtype[Any]
    """dtype of the weights."""
    frame: Callable[[int], NDArray[Any] | None]
    """The weights of the step at an index; None where it is missing."""

    @property
    def ndim(self) -> int:
        """Number of axes, with the step axis."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        parts = key if isinstance(key, tuple) else (key,)
        if not parts or parts[0] is Ellipsis:
            whole: NDArray[Any] = np.asarray(self)[key]
            return whole
        first, rest = parts[0], parts[1:]
        if not isinstance(first, (slice, list, np.ndarray)):
            return np.asarray(self._frame(operator.index(first))[rest])
        chosen = np.arange(len(self))[first]
        if not len(chosen):
            return np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]
        stacked: NDArray[Any] = np.stack([self._frame(int(i))[rest] for i in chosen])
        return stacked

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a history's frames lie in separate files: an array of them is a copy")
        stacked: NDArray[Any] = np.stack([self._frame(i) for i in range(len(self))])
        result: NDArray[Any] = stacked.astype(dtype or self.dtype, copy=False)
        return result

    def _frame(self, index: int) -> NDArray[Any]:
        frame = self.frame(index)
        return np.full(self.shape[1:], np.nan, dtype=self.dtype) if frame is None else frame
