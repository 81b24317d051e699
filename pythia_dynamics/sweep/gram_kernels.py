"""The inner loops of Gram matrices: of steps, of the columns of a matrix, and of its rows.

They read frames as the loops of `pythia_dynamics.sweep.kernels` do, which explains addresses and types. Inside a block
sums are of the type of the work array, between blocks of float64.
"""

# The annotations of Numba are incomplete (carray, intrinsic):
# mypy: disable-error-code="untyped-decorator, no-untyped-call, attr-defined, call-arg, unreachable"

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from pythia_dynamics.compiled import kernel
from pythia_dynamics.sweep.intrinsics import FASTMATH, minus, pointer, widen, widest_vectors
from pythia_dynamics.sweep.kernels import TILE

__all__ = ["COLUMN_BLOCK", "GRAM_BLOCK", "column_gram", "gram", "row_gram"]

GRAM_BLOCK = 1024
"""Weights per step in a block of `gram`: (143, GRAM_BLOCK) float32, 590 kB, stays in the L2 cache."""

COLUMN_BLOCK = 1024
"""Rows in a block of `column_gram`, columns in one of `row_gram`: as in `gram`, so that float32 sums have the same
bound of their rounding error."""

_PANEL_ROWS = 64
"""Rows that `_products` keeps in the L2 cache: 64 · 1,024 float32 are 256 kB."""

_TRANSPOSED_COLUMNS = 32
"""Columns that `column_gram` transposes at a time: the 32 cache lines that it writes, 2 kB, stay in the L1 cache."""


@kernel(fastmath=FASTMATH)
def gram(addresses: Any, like: Any, start: int, stop: int, work: Any, out: Any, sums: Any) -> None:
    """The Gram matrix of the increments over the weights `start` to `stop`.

    With δ_0 = x_0 and δ_t = x_t − x_{t−1}, adds Σ δ_t δ_s for s ≤ t to the lower triangle of `out`, float64 (R, R), and
    Σ x_t and Σ x_t² to row t of `sums`, float64 (steps, 2). `work` is a `workspace` of (R, GRAM_BLOCK) of the type to
    compute in. R is a multiple of `TILE`; rows without a frame are set to zero here. `pythia_dynamics.sweep.gram`
    explains why it sums increments.
    """
    widest_vectors()
    steps = addresses.size
    rows = work.shape[0]
    size = np.uint64(like.itemsize)
    kind = work.dtype.type
    zero = kind(0)
    for begin in range(start, stop, GRAM_BLOCK):
        n = min(GRAM_BLOCK, stop - begin)
        offset = np.uint64(begin) * size
        for t in range(rows):
            row = work[t]
            if t >= steps:
                for j in range(n):
                    row[j] = zero
                continue
            s = q = zero
            current = nb.carray(pointer(addresses[t] + offset, like), (n,))
            if t == 0:
                for j in range(n):
                    x = kind(widen(current[j]))
                    row[j] = x
                    s += x
                    q += x * x
            else:
                previous = nb.carray(pointer(addresses[t - 1] + offset, like), (n,))
                for j in range(n):
                    x = kind(widen(current[j]))
                    row[j] = minus(x, kind(widen(previous[j])))
                    s += x
                    q += x * x
            sums[t, 0] += s
            sums[t, 1] += q
        _products(work, n, out)


@kernel(fastmath=FASTMATH)
def column_gram(address: Any, like: Any, start: int, stop: int, work: Any, out: Any, total: Any) -> None:
    """The Gram matrix of the columns, over the rows `start` to `stop` of the row-major matrix at `address`.

    Adds Σ_r x_ri x_rj for j ≤ i to the lower triangle of `out`, float64 (R, R), and Σ_r x_ri to `total`, float64
    (columns,). `work` is a `workspace` of (R, COLUMN_BLOCK) of the type to compute in. R is the number of columns
    rounded up to a multiple of `TILE`.
    """
    columns, rows = total.size, work.shape[0]
    size = np.uint64(like.itemsize)
    for t in range(columns, rows):
        for j in range(COLUMN_BLOCK):
            work[t, j] = 0
    for begin in range(start, stop, COLUMN_BLOCK):
        n = min(COLUMN_BLOCK, stop - begin)
        for group in range(0, columns, _TRANSPOSED_COLUMNS):
            width = min(_TRANSPOSED_COLUMNS, columns - group)
            for j in range(n):
                offset = (np.uint64(begin + j) * np.uint64(columns) + np.uint64(group)) * size
                row = nb.carray(pointer(address + offset, like), (width,))
                for t in range(width):
                    work[group + t, j] = widen(row[t])
            for t in range(group, group + width):
                row_sum = 0.0
                for j in range(n):
                    row_sum += work[t, j]
                total[t] += row_sum
        _products(work, n, out)


@kernel(fastmath=FASTMATH)
def row_gram(address: Any, like: Any, length: int, work: Any, out: Any, total: Any) -> None:
    """The Gram matrix of the `length` rows of the row-major matrix at `address`.

    Adds Σ_c x_ic x_jc for j ≤ i to the lower triangle of `out`, float64 (R, R), and Σ_i x_ic to `total`, float64
    (columns,). `work` is a `workspace` of (R, COLUMN_BLOCK) of the type to compute in. R is the number of rows rounded
    up to a multiple of `TILE`.
    """
    columns = total.size
    size = np.uint64(like.itemsize)
    for i in range(length, work.shape[0]):
        for j in range(COLUMN_BLOCK):
            work[i, j] = 0
    for begin in range(0, columns, COLUMN_BLOCK):
        n = min(COLUMN_BLOCK, columns - begin)
        for i in range(length):
            row = nb.carray(
                pointer(address + (np.uint64(i) * np.uint64(columns) + np.uint64(begin)) * size, like), (n,)
            )
            for j in range(n):
                x = widen(row[j])
                work[i, j] = x
                total[begin + j] += x
        _products(work, n, out)


@kernel(fastmath=FASTMATH)
def _products(work: Any, n: int, out: Any) -> None:
    """Add the products of the rows of `work`, over its first `n` columns, to the lower triangle of `out`.

    `work` is (R, n or more) and `out` is float64 (R, R). The inner loop computes 16 products in registers: eight loads
    for 16 multiplications. The outer loop keeps `_PANEL_ROWS` rows in the L2 cache while it reads the others.
    """
    widest_vectors()
    rows = work.shape[0]
    zero = work.dtype.type(0)
    for panel in range(0, rows, _PANEL_ROWS):
        for t in range(panel, rows, TILE):
            a0, a1, a2, a3 = work[t], work[t + 1], work[t + 2], work[t + 3]
            for u in range(panel, min(t + 1, panel + _PANEL_ROWS), TILE):
                b0, b1, b2, b3 = work[u], work[u + 1], work[u + 2], work[u + 3]
                s00 = s01 = s02 = s03 = zero
                s10 = s11 = s12 = s13 = zero
                s20 = s21 = s22 = s23 = zero
                s30 = s31 = s32 = s33 = zero
                for j in range(n):
                    x0, x1, x2, x3 = a0[j], a1[j], a2[j], a3[j]
                    z = b0[j]
                    s00, s10, s20, s30 = s00 + x0 * z, s10 + x1 * z, s20 + x2 * z, s30 + x3 * z
                    z = b1[j]
                    s01, s11, s21, s31 = s01 + x0 * z, s11 + x1 * z, s21 + x2 * z, s31 + x3 * z
                    z = b2[j]
                    s02, s12, s22, s32 = s02 + x0 * z, s12 + x1 * z, s22 + x2 * z, s32 + x3 * z
                    z = b3[j]
                    s03, s13, s23, s33 = s03 + x0 * z, s13 + x1 * z, s23 + x2 * z, s33 + x3 * z
                _add4(out[t], u, s00, s01, s02, s03)
                _add4(out[t + 1], u, s10, s11, s12, s13)
                _add4(out[t + 2], u, s20, s21, s22, s23)
                _add4(out[t + 3], u, s30, s31, s32, s33)


@kernel(inline="always")
def _add4(row: Any, u: int, a: Any, b: Any, c: Any, d: Any) -> None:
    row[u] += a
    row[u + 1] += b
    row[u + 2] += c
    row[u + 3] += d
