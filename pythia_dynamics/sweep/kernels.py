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

from pythia_dynamics.compiled import kernel
from pythia_dynamics.sweep.intrinsics import (
    CACHE_LINE,
    FASTMATH,
    half_bits,
    minus,
    multiply_add,
    plus,
    pointer,
    prefetch,
    widen,
    widest_vectors,
)

__all__ = [
    "BLOCK",
    "TILE",
    "count_codes",
    "counted_moments",
    "cumulate",
    "integrate",
    "narrow",
    "power_sums",
]

BLOCK = 2048
"""Weights per step in a block of `integrate`. The running sums, (4, BLOCK) float32 or 32 kB, stay in the L1 cache, and
143 frames of 16 bits, 590 kB, stay in the L2 cache."""

TILE = 4
"""Steps per register tile. Its 4 × 4 sums and their 5 operands fit into the 32 vector registers of AVX-512. The number
of steps that `integrate` and `gram` get is a multiple of it."""

_PART = 512
"""Weights in a part of a block in the second loop of `integrate`, between which the next block is asked for: 16 to 128
lines at a time, about as many as a core can wait for. Smaller parts cost more for their sums than they hide."""

_AHEAD = 2048
"""Bytes by which `count_codes` asks for weights before it counts them: what it reads in 0.4 µs, the time of about four
reads from memory. With 256 it is 11 % slower, more than 1,024 changes little."""


@kernel
def count_codes(address: Any, size: int, table: Any) -> None:
    """Count each 16-bit code among the `size` codes at `address`, and add the counts to `table`, uint32 (65536,)."""
    words = nb.carray(pointer(address, np.empty(0, np.uint64)), (size // 4,))
    per_line = CACHE_LINE // 8
    whole = words.size - words.size % per_line
    for begin in range(0, whole, per_line):
        prefetch(address + np.uint64(8 * begin + _AHEAD))
        for i in range(begin, begin + per_line):  # four codes per load, because loads limit the speed
            _count_word(words[i], table)
    for i in range(whole, words.size):
        _count_word(words[i], table)
    remainder = nb.carray(pointer(address + np.uint64(8 * words.size), np.empty(0, np.uint16)), (size % 4,))
    for i in range(remainder.size):
        table[remainder[i]] += np.uint32(1)


@kernel(inline="always")
def _count_word(word: Any, table: Any) -> None:
    low = np.uint64(0xFFFF)
    table[word & low] += np.uint32(1)
    table[(word >> np.uint64(16)) & low] += np.uint32(1)
    table[(word >> np.uint64(32)) & low] += np.uint32(1)
    table[word >> np.uint64(48)] += np.uint32(1)


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
    widest_vectors()
    for i in range(values.size):
        codes[i] = half_bits(values[i])


@kernel(fastmath=FASTMATH)
def power_sums(values: Any, shift: float) -> tuple[float, float, float, float, float, float, int]:
    """Sums of powers of `values`, float32 or float64 (n,), in float64.

    Returns Σy, Σy², Σy³, Σy⁴ with y = value − shift, the least and the greatest value, and how many are not finite.
    """
    widest_vectors()
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


@kernel(fastmath=FASTMATH)
def counted_moments(values: Any, counts: Any) -> tuple[float, float, float, float, float, float]:
    """Moments of `values`, float64 (n,), that occur `counts` times each.

    Returns the mean, the central moments of order 2, 3 and 4, and the least and the greatest value.
    """
    widest_vectors()
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


@kernel(fastmath=FASTMATH)
def integrate(addresses: Any, like: Any, start: int, stop: int, shift: Any, keep: Any, work: Any, out: Any) -> None:
    """Sums over the weights `start` to `stop` for the running integral over steps (Garden, Eq 4), in one reading.

    `addresses` are those of the frames; their number is a multiple of `TILE`. `keep` is 1 for a step and 0 for an
    address that only fills the last tile. `work` is a `workspace` of (4, BLOCK) of the type to compute in. With weight
    x_t, y_t = x_t − shift_t and μ = mean_t x_t, adds to row t of `out`, float64 (steps, 6), the sums over weights of

    0: y_t;  1: y_t²;  2: (Σ_{s≤t} y_s)²;  3: (x_t − x_0)²;  4: (x_t − x_{t−1})²;  5: (Σ_{s≤t} (x_s − μ))².

    The mean over time is computed from x_t − x_0, so that a history that hardly changes has no cancellation. The loop
    over weights processes four steps per load and store of the running sums; so arithmetic limits it, not the cache.

    A frame begins a new page in each block, where the processor does not read ahead. So the first loop asks for a
    quarter of the next four steps, whose reading then runs by itself. The second loop reads from the cache alone and
    would leave the memory idle: it asks for half of the next block.
    """
    widest_vectors()
    steps = addresses.size
    size = np.uint64(like.itemsize)
    zero = widen(like[0])
    first, last, run, total = work[0], work[1], work[2], work[3]
    count = keep.sum()
    quarter, half = BLOCK // 4 * like.itemsize, _PART // 2 * like.itemsize
    for begin in range(start, stop, BLOCK):
        n = min(BLOCK, stop - begin)
        offset = np.uint64(begin) * size
        fa = nb.carray(pointer(addresses[0] + offset, like), (n,))
        for j in range(n):
            x = widen(fa[j])
            first[j] = x
            last[j] = x
            run[j] = 0
            total[j] = 0
        for t in range(0, steps, TILE):
            if t + TILE < steps:
                _ask(addresses, t + TILE, offset, quarter)
            fa = nb.carray(pointer(addresses[t] + offset, like), (n,))
            fb = nb.carray(pointer(addresses[t + 1] + offset, like), (n,))
            fc = nb.carray(pointer(addresses[t + 2] + offset, like), (n,))
            fd = nb.carray(pointer(addresses[t + 3] + offset, like), (n,))
            ca, cb, cc, cd = shift[t], shift[t + 1], shift[t + 2], shift[t + 3]
            ka, kb, kc, kd = keep[t], keep[t + 1], keep[t + 2], keep[t + 3]
            ya = yb = yc = yd = zero
            qa = qb = qc = qd = zero
            sa = sb = sc = sd = zero
            da = db = dc = dd = zero
            ea = eb = ec = ed = zero
            for j in range(n):
                origin, before, s, u = first[j], last[j], run[j], total[j]
                x = widen(fa[j])
                y, d, e = minus(x, ca), minus(x, origin), minus(x, before)
                s = plus(s, y)
                u = multiply_add(ka, d, u)
                ya, qa, sa, da, ea = ya + y, qa + y * y, sa + s * s, da + d * d, ea + e * e
                z = widen(fb[j])
                y, d, e = minus(z, cb), minus(z, origin), minus(z, x)
                s = plus(s, y)
                u = multiply_add(kb, d, u)
                yb, qb, sb, db, eb = yb + y, qb + y * y, sb + s * s, db + d * d, eb + e * e
                x = widen(fc[j])
                y, d, e = minus(x, cc), minus(x, origin), minus(x, z)
                s = plus(s, y)
                u = multiply_add(kc, d, u)
                yc, qc, sc, dc, ec = yc + y, qc + y * y, sc + s * s, dc + d * d, ec + e * e
                z = widen(fd[j])
                y, d, e = minus(z, cd), minus(z, origin), minus(z, x)
                s = plus(s, y)
                u = multiply_add(kd, d, u)
                yd, qd, sd, dd, ed = yd + y, qd + y * y, sd + s * s, dd + d * d, ed + e * e
                last[j], run[j], total[j] = z, s, u
            _add(out[t], ya, qa, sa, da, ea)
            _add(out[t + 1], yb, qb, sb, db, eb)
            _add(out[t + 2], yc, qc, sc, dc, ec)
            _add(out[t + 3], yd, qd, sd, dd, ed)
        for j in range(n):
            total[j] /= count
            run[j] = 0
        following = offset + np.uint64(BLOCK) * size
        for t in range(0, steps, TILE):
            for low in range(0, n, _PART):
                m = min(_PART, n - low)
                if begin + BLOCK < stop:
                    _ask(addresses, t, following + np.uint64(low // _PART * half), half)
                place = offset + np.uint64(low) * size
                fa = nb.carray(pointer(addresses[t] + place, like), (m,))
                fb = nb.carray(pointer(addresses[t + 1] + place, like), (m,))
                fc = nb.carray(pointer(addresses[t + 2] + place, like), (m,))
                fd = nb.carray(pointer(addresses[t + 3] + place, like), (m,))
                origins, means, runs = first[low : low + m], total[low : low + m], run[low : low + m]
                sa = sb = sc = sd = zero
                for j in range(m):
                    origin, mean, s = origins[j], means[j], runs[j]
                    s = plus(s, minus(minus(widen(fa[j]), origin), mean))
                    sa += s * s
                    s = plus(s, minus(minus(widen(fb[j]), origin), mean))
                    sb += s * s
                    s = plus(s, minus(minus(widen(fc[j]), origin), mean))
                    sc += s * s
                    s = plus(s, minus(minus(widen(fd[j]), origin), mean))
                    sd += s * s
                    runs[j] = s
                out[t, 5] += sa
                out[t + 1, 5] += sb
                out[t + 2, 5] += sc
                out[t + 3, 5] += sd


@kernel(inline="always")
def _ask(addresses: Any, t: int, offset: Any, size: int) -> None:
    """Ask for `size` bytes from an offset on, of the four frames from t on."""
    for k in range(TILE):
        for line in range(0, size, CACHE_LINE):
            prefetch(addresses[t + k] + offset + np.uint64(line))


@kernel(inline="always")
def _add(row: Any, y: Any, q: Any, s: Any, d: Any, e: Any) -> None:
    row[0] += y
    row[1] += q
    row[2] += s
    row[3] += d
    row[4] += e
