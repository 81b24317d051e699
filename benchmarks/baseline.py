"""What a reader of the paper would write: one checkpoint after the other, plain NumPy. The yardstick and the oracle.

python benchmarks/baseline.py FILE.npy …        one (vocab, d_model) array per step, in step order
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["density", "gram", "msd", "order_parameter", "singular_values"]

Frames = Iterable[NDArray[np.floating]]


def msd(frames: Frames) -> list[float]:
    """Eq 4 and 5: integrate the demeaned weights over the steps, then average the squares."""
    integrated: NDArray[np.float32] | None = None
    result = []
    for frame in frames:
        w = frame.astype(np.float32).ravel()
        w = w - w.mean()
        integrated = w if integrated is None else integrated + w
        result.append(float(np.sum(integrated**2) / (w.size - 1)))
    return result


def density(frames: Frames, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """A histogram of every step."""
    return np.stack([np.histogram(frame.astype(np.float32), bins=edges)[0] for frame in frames])


def order_parameter(frames: Frames) -> list[float]:
    """b = ‖W‖_F / d_model."""
    return [float(np.linalg.norm(frame.astype(np.float32)) / frame.shape[1]) for frame in frames]


def gram(frames: Frames) -> NDArray[np.float32]:
    """K = W Wᵀ with one row per step."""
    rows = np.stack([frame.astype(np.float32).ravel() for frame in frames])
    return rows @ rows.T


def singular_values(frames: Frames) -> list[NDArray[Any]]:
    """A decomposition of every step."""
    return [np.linalg.svd(frame.astype(np.float32), compute_uv=False) for frame in frames]


if __name__ == "__main__":
    arrays = [np.load(path, mmap_mode="r") for path in sys.argv[1:]]
    low, high = (float(f(f(a) for a in arrays)) for f in (min, max))
    print("step,msd,order_parameter")
    for step, (moved, b) in enumerate(zip(msd(arrays), order_parameter(arrays), strict=True)):
        print(f"{step},{moved:.9g},{b:.9g}")
    print(density(arrays, np.linspace(low, high, 513)).sum(axis=0))
