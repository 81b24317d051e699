"""Random walks in every dtype that weights have."""

from __future__ import annotations

import ml_dtypes
import numpy as np

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def walk(steps, rows, columns, dtype, seed=0, scale=0.02):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((1, rows, columns)) * scale
    moves = rng.standard_normal((steps, rows, columns)) * scale / 10
    return (start + np.cumsum(moves, axis=0)).astype(dtype)
