"""Sums over the weights of two frames, for the distances between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pythia_dynamics.compiled import kernel

__all__ = ["compare_rows"]


# No fused multiply-add: of two equal weights it would leave the rounding of one product as their difference.
@kernel(fastmath={"reassoc", "nsz"}, error_model="numpy")
def compare_rows(first: Any, second: Any, factors: Any, norms: Any, unit: Any, sums: Any, rows: Any) -> None:
    """Add up squares of differences over rows of two frames, in float64.

    Parameters
    ----------
    first, second
        Rows x and y of the two frames, float32 or float64 of shape (n, d).
    factors
        What each frame is multiplied with before squares are taken: powers of two, shape (2,).
    norms
        ‖X‖ and ‖Y‖ of the multiplied frames, shape (2,).
    unit
        Power of two. The displacement is that of the frames divided by it.
    sums
        Set to Σ (x/‖X‖ − y/‖Y‖)², Σ (x/‖X‖ + y/‖Y‖)² and Σ ((x − y)/unit)², shape (3,).
    rows
        Set to ‖x/‖x‖ − y/‖y‖‖² and ‖x/‖x‖ + y/‖y‖‖² of each row, shape (n, 2); NaN for a row of zeros.
    """
    a, b = factors[0], factors[1]
    of_first, of_second = 1 / norms[0], 1 / norms[1]
    back, other_back = 1 / (a * unit), 1 / (b * unit)
    apart = together = moved = 0.0
    for r in range(first.shape[0]):
        x, y = first[r], second[r]
        norm = other_norm = 0.0
        for j in range(x.size):
            u, v = np.float64(x[j]) * a, np.float64(y[j]) * b
            norm += u * u
            other_norm += v * v
            step = u * back - v * other_back
            moved += step * step
            u, v = u * of_first, v * of_second
            apart += (u - v) * (u - v)
            together += (u + v) * (u + v)
        p, q = 1 / np.sqrt(norm), 1 / np.sqrt(other_norm)
        near = far = 0.0
        for j in range(x.size):
            u, v = np.float64(x[j]) * a * p, np.float64(y[j]) * b * q
            near += (u - v) * (u - v)
            far += (u + v) * (u + v)
        rows[r, 0] = near
        rows[r, 1] = far
    sums[0], sums[1], sums[2] = apart, together, moved
