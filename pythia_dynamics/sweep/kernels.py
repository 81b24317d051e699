"""The inner loops of the sweep. Numba compiles them at the first call and caches them on disk.

A kernel gets the address of each frame. A history is T separate memory maps, and a loop over steps inside the kernel
reads each of them in place. The array `like` gives the type of the data at the addresses: uint16 for the bits of
float16, int16 for the bits of bfloat16, float32 and float64 for themselves. One hardware instruction widens them to
float32 in registers, so 16-bit weights are not copied.

Sums over weights are float64. Sums inside a block of `BLOCK` weights are float32 vectors (float64 for float64 weights).
This bounds the relative error of a sum of squares by ``BLOCK / lanes · 2⁻²⁴`` ≤ 3e-5. In practice it is about 1e-8,
because the rounding errors of different blocks are independent.
"""

# The annotations of Numba are incomplete (carray, intrinsic):
# mypy: disable-error-code="untyped-decorator, no-untyped-call, attr-defined, call-arg, unreachable"

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pythia_dynamics.compiled import kernel

__all__ = [
    "BLOCK",
    "COLUMN_BLOCK",
    "GRAM_BLOCK",
    "TILE",
    "column_gram",
    "count_codes",
    "counted_moments",
    "cumulate",
    "gram",
    "integrate",
    "narrow",
    "power_sums",
    "workspace",
]

BLOCK = 2048
"""Weights per step in a block of `integrate`. The running sums, (4, BLOCK) float32 or 32 kB, stay in the L1 cache, and
143 frames of 16 bits, 590 kB, stay in the L2 cache."""

GRAM_BLOCK = 1024
"""Weights per step in a block of `gram`: (143, GRAM_BLOCK) float32, 590 kB, stays in the L2 cache."""

COLUMN_BLOCK = 1024
"""Rows in a block of `column_gram`: as in `gram`, so that float32 sums have the same bound of their rounding error."""

TILE = 4
"""Steps per register tile. Its 4 × 4 sums and their 5 operands fit into the 32 vector registers of AVX-512. The number
of steps that `integrate` and `gram` get is a multiple of it."""

_CACHE_LINE = 64
"""Bytes of a cache line of x86-64 processors."""

_PANEL_ROWS = 64
"""Rows that `_products` keeps in the L2 cache: 64 · 1,024 float32 are 256 kB."""

_TRANSPOSED_COLUMNS = 32
"""Columns that `column_gram` transposes at a time: the 32 cache lines that it writes, 2 kB, stay in the L1 cache."""

# The compiler may reorder sums, so that it can vectorise them. It must not assume that numbers are finite: NaN and
# infinity mark a step whose weights are not finite.
_FASTMATH = {"reassoc", "nsz", "contract", "arcp"}


def workspace(rows: int, columns: int, kind: Any) -> NDArray[Any]:
    """An uninitialised work array for a kernel.

    Each row begins on a cache line, because a vector across two lines costs two loads. The distance between rows is an
    odd number of lines: rows at a distance of a power of two would use the same sets of the cache and evict one
    another. Without both, `gram` took twice as long.

    Parameters
    ----------
    rows, columns
        Number of rows, and least number of columns.
    kind
        dtype of the array.
    """
    itemsize = np.dtype(kind).itemsize
    stride = (-(-columns * itemsize // _CACHE_LINE) | 1) * _CACHE_LINE
    raw = np.empty(rows * stride + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    work: NDArray[Any] = raw[start : start + rows * stride].view(kind).reshape(rows, -1)
    return work


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to the element type of `like`."""
    pointer = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, like), generate


@intrinsic
def _widen(typing_context: Any, value: Any) -> Any:
    """The weight that an element of `like`'s type stands for, as float32 (float64 stays float64)."""
    if value == types.uint16:

        def from_half(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

        return types.float32(value), from_half
    if value == types.int16:

        def from_bfloat(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            bits = ir.IntType(32)
            return builder.bitcast(builder.shl(builder.zext(arguments[0], bits), ir.Constant(bits, 16)), ir.FloatType())

        return types.float32(value), from_bfloat

    def unchanged(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return value(value), unchanged


@intrinsic
def _half_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 rounded to float16, to the nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _minus(typing_context: Any, left: Any, right: Any) -> Any:
    """left − right, which LLVM must not reorder. Numba adds its own flags only to an instruction without flags.

    Otherwise LLVM turns (x − a) − b into x − (a + b), which loses differences that are small compared with the weights.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fsub(*arguments, flags=("nsz",))

    return left(left, left), generate


@intrinsic
def _plus(typing_context: Any, left: Any, right: Any) -> Any:
    """left + right, which LLVM must not reorder; see `_minus`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("nsz",))

    return left(left, left), generate


@intrinsic
def _widest_vectors(typing_context: Any) -> Any:
    """Let the calling function use 512-bit vectors on processors that have them.

    LLVM prefers 256 bits on the Xeons of 2017 to 2021, which suits programs with few vector instructions. These loops
    have mostly vector instructions and run 1.3 to 2 times faster with 512 bits. Other processors ignore the attribute.
    llvmlite rejects attributes that it does not know, so this adds it to the set directly.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


@kernel
def count_codes(address: Any, size: int, table: Any) -> None:
    """Count each 16-bit code among the `size` codes at `address`, and add the counts to `table`, uint32 (65536,)."""
    words = nb.carray(_pointer(address, np.empty(0, np.uint64)), (size // 4,))
    low = np.uint64(0xFFFF)
    for i in range(words.size):  # four codes per load, because loads limit the speed
        word = words[i]
        table[word & low] += np.uint32(1)
        table[(word >> np.uint64(16)) & low] += np.uint32(1)
        table[(word >> np.uint64(32)) & low] += np.uint32(1)
        table[word >> np.uint64(48)] += np.uint32(1)
    remainder = nb.carray(_pointer(address + np.uint64(8 * words.size), np.empty(0, np.uint16)), (size % 4,))
    for i in range(remainder.size):
        table[remainder[i]] += np.uint32(1)


@kernel
def cumulate(counts: Any, out: Any) -> None:
    """Write the cumulative sums of `counts`, uint32 (n,), to `out`, int64 (n + 1,); the first is 0."""
    total = np.int64(0)
    out[0] = 0
    for i in range(counts.size):
        total += counts[i]
        out[i + 1] = total


@kernel
def narrow(values: Any, codes: Any) -> None:
    """Round `values`, float32 (n,), to float16 and write their bits to `codes`, uint16 (n,)."""
    _widest_vectors()
    for i in range(values.size):
        codes[i] = _half_bits(values[i])


@kernel(fastmath=_FASTMATH)
def power_sums(values: Any, shift: float) -> tuple[float, float, float, float, float, float, int]:
    """Sums of powers of `values`, float32 or float64 (n,), in float64.

    Returns Σy, Σy², Σy³, Σy⁴ with y = value − shift, the least and the greatest value, and how many are not finite.
    """
    _widest_vectors()
    s1 = s2 = s3 = s4 = 0.0
    least, greatest = np.inf, -np.inf
    nonfinite = 0
    for i in range(values.size):
        x = np.float64(values[i])
        y = x - shift
        square = y * y
        s1 += y
        s2 += square
        s3 += square * y
        s4 += square * square
        least = min(least, x)
        greatest = max(greatest, x)
        nonfinite += not np.isfinite(x)
    return s1, s2, s3, s4, least, greatest, nonfinite


@kernel(fastmath=_FASTMATH)
def counted_moments(values: Any, counts: Any) -> tuple[float, float, float, float, float, float]:
    """Moments of `values`, float64 (n,), that occur `counts` times each.

    Returns the mean, the central moments of order 2, 3 and 4, and the least and the greatest value.
    """
    _widest_vectors()
    total = first = 0.0
    least, greatest = np.inf, -np.inf
    for i in range(values.size):
        x, c = values[i], np.float64(counts[i])
        total += c
        first += c * x
        least = min(least, x if c > 0 else np.inf)
        greatest = max(greatest, x if c > 0 else -np.inf)
    mean = first / total
    residual = m2 = m3 = m4 = 0.0
    for i in range(values.size):
        y, c = values[i] - mean, np.float64(counts[i])
        square = y * y
        residual += c * y
        m2 += c * square
        m3 += c * square * y
        m4 += c * square * square
    return mean + residual / total, m2 / total, m3 / total, m4 / total, least, greatest


@kernel(fastmath=_FASTMATH)
def integrate(addresses: Any, like: Any, start: int, stop: int, shift: Any, keep: Any, work: Any, out: Any) -> None:
    """Sums over the weights `start` to `stop` for the running integral over steps (Garden, Eq 4), in one reading.

    `addresses` are those of the frames; their number is a multiple of `TILE`. `keep` is 1 for a step and 0 for an
    address that only fills the last tile. `work` is a `workspace` of (4, BLOCK) of the type to compute in. With weight
    x_t, y_t = x_t − shift_t and μ = mean_t x_t, adds to row t of `out`, float64 (steps, 6), the sums over weights of

    0: y_t;  1: y_t²;  2: (Σ_{s≤t} y_s)²;  3: (x_t − x_0)²;  4: (x_t − x_{t−1})²;  5: (Σ_{s≤t} (x_s − μ))².

    The mean over time is computed from x_t − x_0, so that a history that hardly changes has no cancellation. The loop
    over weights processes four steps per load and store of the running sums; so arithmetic limits it, not the cache.
    """
    _widest_vectors()
    steps = addresses.size
    size = np.uint64(like.itemsize)
    zero = _widen(like[0])
    first, last, run, total = work[0], work[1], work[2], work[3]
    count = keep.sum()
    for begin in range(start, stop, BLOCK):
        n = min(BLOCK, stop - begin)
        offset = np.uint64(begin) * size
        fa = nb.carray(_pointer(addresses[0] + offset, like), (n,))
        for j in range(n):
            x = _widen(fa[j])
            first[j] = x
            last[j] = x
            run[j] = 0
            total[j] = 0
        for t in range(0, steps, TILE):
            fa = nb.carray(_pointer(addresses[t] + offset, like), (n,))
            fb = nb.carray(_pointer(addresses[t + 1] + offset, like), (n,))
            fc = nb.carray(_pointer(addresses[t + 2] + offset, like), (n,))
            fd = nb.carray(_pointer(addresses[t + 3] + offset, like), (n,))
            ca, cb, cc, cd = shift[t], shift[t + 1], shift[t + 2], shift[t + 3]
            ka, kb, kc, kd = keep[t], keep[t + 1], keep[t + 2], keep[t + 3]
            ya = yb = yc = yd = zero
            qa = qb = qc = qd = zero
            sa = sb = sc = sd = zero
            da = db = dc = dd = zero
            ea = eb = ec = ed = zero
            for j in range(n):
                origin, before, s, u = first[j], last[j], run[j], total[j]
                x = _widen(fa[j])
                y, d, e = _minus(x, ca), _minus(x, origin), _minus(x, before)
                s = _plus(s, y)
                u = _plus(u, ka * d)
                ya, qa, sa, da, ea = ya + y, qa + y * y, sa + s * s, da + d * d, ea + e * e
                z = _widen(fb[j])
                y, d, e = _minus(z, cb), _minus(z, origin), _minus(z, x)
                s = _plus(s, y)
                u = _plus(u, kb * d)
                yb, qb, sb, db, eb = yb + y, qb + y * y, sb + s * s, db + d * d, eb + e * e
                x = _widen(fc[j])
                y, d, e = _minus(x, cc), _minus(x, origin), _minus(x, z)
                s = _plus(s, y)
                u = _plus(u, kc * d)
                yc, qc, sc, dc, ec = yc + y, qc + y * y, sc + s * s, dc + d * d, ec + e * e
                z = _widen(fd[j])
                y, d, e = _minus(z, cd), _minus(z, origin), _minus(z, x)
                s = _plus(s, y)
                u = _plus(u, kd * d)
                yd, qd, sd, dd, ed = yd + y, qd + y * y, sd + s * s, dd + d * d, ed + e * e
                last[j], run[j], total[j] = z, s, u
            _add(out[t], ya, qa, sa, da, ea)
            _add(out[t + 1], yb, qb, sb, db, eb)
            _add(out[t + 2], yc, qc, sc, dc, ec)
            _add(out[t + 3], yd, qd, sd, dd, ed)
        for j in range(n):
            total[j] /= count
            run[j] = 0
        for t in range(0, steps, TILE):
            fa = nb.carray(_pointer(addresses[t] + offset, like), (n,))
            fb = nb.carray(_pointer(addresses[t + 1] + offset, like), (n,))
            fc = nb.carray(_pointer(addresses[t + 2] + offset, like), (n,))
            fd = nb.carray(_pointer(addresses[t + 3] + offset, like), (n,))
            sa = sb = sc = sd = zero
            for j in range(n):
                origin, mean, s = first[j], total[j], run[j]
                s = _plus(s, _minus(_minus(_widen(fa[j]), origin), mean))
                sa += s * s
                s = _plus(s, _minus(_minus(_widen(fb[j]), origin), mean))
                sb += s * s
                s = _plus(s, _minus(_minus(_widen(fc[j]), origin), mean))
                sc += s * s
                s = _plus(s, _minus(_minus(_widen(fd[j]), origin), mean))
                sd += s * s
                run[j] = s
            out[t, 5] += sa
            out[t + 1, 5] += sb
            out[t + 2, 5] += sc
            out[t + 3, 5] += sd


@kernel(inline="always")
def _add(row: Any, y: Any, q: Any, s: Any, d: Any, e: Any) -> None:
    row[0] += y
    row[1] += q
    row[2] += s
    row[3] += d
    row[4] += e


@kernel(fastmath=_FASTMATH)
def gram(addresses: Any, like: Any, start: int, stop: int, work: Any, out: Any, sums: Any) -> None:
    """The Gram matrix of the increments over the weights `start` to `stop`.

    With δ_0 = x_0 and δ_t = x_t − x_{t−1}, adds Σ δ_t δ_s for s ≤ t to the lower triangle of `out`, float64 (R, R), and
    Σ x_t and Σ x_t² to row t of `sums`, float64 (steps, 2). `work` is a `workspace` of (R, GRAM_BLOCK) of the type to
    compute in. R is a multiple of `TILE`; rows without a frame are set to zero here. `pythia_dynamics.sweep.gram`
    explains why it sums increments.
    """
    _widest_vectors()
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
            current = nb.carray(_pointer(addresses[t] + offset, like), (n,))
            if t == 0:
                for j in range(n):
                    x = kind(_widen(current[j]))
                    row[j] = x
                    s += x
                    q += x * x
            else:
                previous = nb.carray(_pointer(addresses[t - 1] + offset, like), (n,))
                for j in range(n):
                    x = kind(_widen(current[j]))
                    row[j] = _minus(x, kind(_widen(previous[j])))
                    s += x
                    q += x * x
            sums[t, 0] += s
            sums[t, 1] += q
        _products(work, n, out)


@kernel(fastmath=_FASTMATH)
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
                row = nb.carray(_pointer(address + offset, like), (width,))
                for t in range(width):
                    work[group + t, j] = _widen(row[t])
            for t in range(group, group + width):
                row_sum = 0.0
                for j in range(n):
                    row_sum += work[t, j]
                total[t] += row_sum
        _products(work, n, out)


@kernel(fastmath=_FASTMATH)
def _products(work: Any, n: int, out: Any) -> None:
    """Add the products of the rows of `work`, over its first `n` columns, to the lower triangle of `out`.

    `work` is (R, n or more) and `out` is float64 (R, R). The inner loop computes 16 products in registers: eight loads
    for 16 multiplications. The outer loop keeps `_PANEL_ROWS` rows in the L2 cache while it reads the others.
    """
    _widest_vectors()
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
