"""What users give as weights as NumPy arrays, and files of weights as memory maps."""

from __future__ import annotations

import contextlib
import math
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError

__all__ = ["as_numpy", "masked", "memory_map"]


def as_numpy(array: Any) -> NDArray[Any]:
    """An array-like as a NumPy array. A tensor of torch on the CPU is not copied, bfloat16 included."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            bits = array.new_empty(0).short().dtype  # torch.int16, without importing torch here
            return np.asarray(array.contiguous().view(bits)).view(ml_dtypes.bfloat16)
    return np.asarray(array)


def masked(array: Any, steps: NDArray[Any]) -> dict[int, str]:
    """The steps of a masked array that are masked completely. Raises for one that is masked in part."""
    if not np.ma.isMaskedArray(array):
        return {}
    masks = np.ma.getmaskarray(array).reshape(len(steps), -1)
    partly = steps[masks.any(axis=1) & ~masks.all(axis=1)]
    if len(partly):
        raise PythiaDynError(f"step {partly[0]} is masked in part; mask the whole step, or fill its weights")
    return dict.fromkeys(steps[masks.all(axis=1)].tolist(), "masked")


def memory_map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The weights at the start of a file, as a read-only memory map.

    Huge pages are requested, which Linux has for files of some file systems: fewer pages to map, and 2 MB of readahead.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            content.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(content, dtype, math.prod(shape)).reshape(shape)
