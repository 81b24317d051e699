"""Causal attention and dropout for training on a CPU, forward and backward, in a few passes over the L2 cache.

A plain attention writes matrices of (batch, heads, length, length) numbers to memory and reads them back, several times
forward and backward, and draws one random number for each of their entries. These kernels take one head of one sequence
at a time, so that its matrices stay in the cache, leave out blocks above the diagonal, keep only the logarithm of the
sum of each softmax, and compute the rest again in the backward pass.

The masks of dropout are a hash of a seed and of the position of an entry, and are computed where they are needed. The
seed is drawn from torch's global generator, once a call, so `torch.manual_seed` decides all masks.
"""

# The annotations of Numba and of autograd.Function are incomplete:
# mypy: disable-error-code="untyped-decorator, no-untyped-call"

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

__all__ = ["causal_attention", "dropout", "keep_mask"]

_LANES = 16
"""Columns of the matrices are padded to a multiple of it: the float32 numbers of a vector of AVX-512."""

_ROWS = 8
"""Rows of a block of the matrices. The sum of 8 rows in one pass needs 9 vector loads for 8 multiplications; more rows
would make LLVM check too many pairs of arrays for an overlap, and it would not vectorise the loop."""

# Sums may be reordered, so that they are vectorised; numbers need not be finite.
_FASTMATH = {"reassoc", "nsz", "contract", "arcp"}


@intrinsic
def _widest_vectors(typing_context: Any) -> Any:
    """Let the calling function use 512-bit vectors on processors that have them, as in the kernels of the sweep."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


# -- elements -------------------------------------------------------------------------------------------------


@intrinsic
def _bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 as int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_MAGIC = np.float32(1.5 * 2**23)
"""A float32 added to it is rounded to an integer, which is then in the low bits of the sum."""

_C = tuple(np.float32(math.log(2) ** n / math.factorial(n)) for n in range(8))
"""Coefficients of the Taylor series of 2ˣ, whose relative error is below 1e-8 for |x| ≤ 1/2."""


@njit(cache=True, nogil=True, fastmath={"contract"})  # reordered sums would cancel the rounding
def _exp2_single(x: Any) -> Any:
    """2ˣ of a float32 with a relative error of about 1e-7, in instructions that have a vector form."""
    x = max(x, np.float32(-80))  # smaller ones would be lost in every sum, and subnormal products are slow
    shifted = x + _MAGIC
    f = x - (shifted - _MAGIC)
    value = _C[6] + f * _C[7]
    value = _C[5] + f * value
    value = _C[4] + f * value
    value = _C[3] + f * value
    value = _C[2] + f * value
    value = _C[1] + f * value
    value = _C[0] + f * value
    return value * _from_bits(np.int32((_bits(shifted) << np.int32(23)) + np.int32(0x3F800000)))


def _exp2(x: Any) -> Any:
    """2ˣ of a float32 or float64, in kernels."""
    raise NotImplementedError


@overload(_exp2)
def _exp2_of_type(x: Any) -> Any:
    def single(x: Any) -> Any:
        return _exp2_single(x)

    def double(x: Any) -> Any:
        return 2.0**x

    return single if x == types.float32 else double


@njit(cache=True, nogil=True)
def _row_keys(seed: Any, row: Any) -> tuple[Any, Any]:
    """Two random 32-bit keys of a row: the halves of an output of the generator splitmix64."""
    word = np.uint64(seed) + (np.uint64(row) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return np.uint32(word), np.uint32(word >> np.uint64(32))


@intrinsic
def _is_kept(typing_context: Any, first: Any, second: Any, column: Any, threshold: Any) -> Any:
    """Whether dropout keeps the entry in a column of the row of two keys: whether a hash is at least `threshold`.

    Numba would compute it with 64 bits, which have no fast multiplication of vectors.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, column, threshold = arguments
        word_type = ir.IntType(32)

        def mixed(word: Any, shift: int, factor: int) -> Any:
            word = builder.xor(word, builder.lshr(word, ir.Constant(word_type, shift)))
            return builder.mul(word, ir.Constant(word_type, factor))

        word = builder.mul(builder.trunc(column, word_type), ir.Constant(word_type, 0x9E3779B9))
        word = builder.add(mixed(builder.xor(word, first), 16, 0x7FEB352D), second)
        word = mixed(word, 15, 0x846CA68B)
        word = builder.xor(word, builder.lshr(word, ir.Constant(word_type, 16)))
        return builder.icmp_unsigned(">=", word, threshold)

    return types.boolean(types.uint32, types.uint32, types.int64, types.uint32), generate


@njit(cache=True, nogil=True)
def _fill_keep_mask(out: Any, seed: Any, threshold: Any) -> None:
    for row in range(out.shape[0]):
        first, second = _row_keys(seed, row)
        for column in range(out.shape[1]):
            out[row, column] = _is_kept(first, second, column, threshold)


# -- products of matrices -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _add_product(out: Any, a: Any, column: Any, b: Any, start: Any) -> None:
    """out[:, start:] += a[:, column : column + 8 k] @ b[:, start:], for the shapes (m, n), (m, ·) and (8 k, n)."""
    _widest_vectors()
    stop = out.shape[1] - _LANES
    for row in range(out.shape[0]):
        o = out[row, start:stop]
        for r in range(0, b.shape[0], _ROWS):
            f = a[row, column + r : column + r + _ROWS]
            f0, f1, f2, f3, f4, f5, f6, f7 = f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]
            b0, b1, b2, b3 = b[r, start:stop], b[r + 1, start:stop], b[r + 2, start:stop], b[r + 3, start:stop]
            b4, b5, b6, b7 = b[r + 4, start:stop], b[r + 5, start:stop], b[r + 6, start:stop], b[r + 7, start:stop]
            for i in range(o.size):
                low = f0 * b0[i] + f1 * b1[i] + f2 * b2[i] + f3 * b3[i]
                o[i] += low + (f4 * b4[i] + f5 * b5[i] + f6 * b6[i] + f7 * b7[i])


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _multiply_transposed(out: Any, a: Any, b: Any, start: Any) -> None:
    """out = a[:, start:] @ b[:, start:].T, for the shapes (4 m, 4 k), (4 m, n) and (4 k, n)."""
    _widest_vectors()
    stop = a.shape[1] - _LANES
    zero = a.dtype.type(0)
    for r in range(0, a.shape[0], 4):
        a0, a1, a2, a3 = a[r, start:stop], a[r + 1, start:stop], a[r + 2, start:stop], a[r + 3, start:stop]
        for c in range(0, b.shape[0], 4):
            b0, b1, b2, b3 = b[c, start:stop], b[c + 1, start:stop], b[c + 2, start:stop], b[c + 3, start:stop]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
            for i in range(a0.size):
                x0, x1, x2, x3 = a0[i], a1[i], a2[i], a3[i]
                y = b0[i]
                s00 += x0 * y
                s10 += x1 * y
                s20 += x2 * y
                s30 += x3 * y
                y = b1[i]
                s01 += x0 * y
                s11 += x1 * y
                s21 += x2 * y
                s31 += x3 * y
                y = b2[i]
                s02 += x0 * y
                s12 += x1 * y
                s22 += x2 * y
                s32 += x3 * y
                y = b3[i]
                s03 += x0 * y
                s13 += x1 * y
                s23 += x2 * y
                s33 += x3 * y
            out[r, c], out[r, c + 1], out[r, c + 2], out[r, c + 3] = s00, s01, s02, s03
            out[r + 1, c], out[r + 1, c + 1], out[r + 1, c + 2], out[r + 1, c + 3] = s10, s11, s12, s13
            out[r + 2, c], out[r + 2, c + 1], out[r + 2, c + 2], out[r + 2, c + 3] = s20, s21, s22, s23
            out[r + 3, c], out[r + 3, c + 1], out[r + 3, c + 2], out[r + 3, c + 3] = s30, s31, s32, s33


# -- attention ------------------------------------------------------------------------------------------------
# All matrices are transposed: a row is a key, a column a query. The sum over keys of a softmax is then a sum of rows,
# and so is the product with the values. The queries from j on see the key j. Its row is computed from `start`, the
# multiple of `_LANES` up to j, and the queries before j get the weight 0. Scores have the base 2: they are times log₂e.


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _raise_to(top: Any, row: Any, start: Any, key: Any) -> None:
    """top[key:] = the elementwise maximum of it and `row`; hide the key from the queries before it."""
    _widest_vectors()
    stop = row.size - _LANES
    row[start:key] = -np.inf
    top, row = top[start:stop], row[start:stop]
    for i in range(row.size):
        top[i] = max(top[i], row[i])


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _weigh(row: Any, top: Any, total: Any, keys: Any, start: Any, threshold: Any) -> None:
    """Turn the scores of a key into weights after dropout, without the factor 1 / total; add all weights to `total`."""
    _widest_vectors()
    stop = row.size - _LANES
    first, second = keys
    row, top, total = row[start:stop], top[start:stop], total[start:stop]
    zero = row.dtype.type(0)
    for i in range(row.size):
        weight = _exp2(row[i] - top[i])
        total[i] += weight
        row[i] = weight if _is_kept(first, second, start + i, threshold) else zero


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _derive(row: Any, slope: Any, log: Any, mean: Any, keys: Any, start: Any, drop: Any) -> None:
    """Turn the scores of a key into weights after dropout, and their gradients `slope` into those of the scores."""
    _widest_vectors()
    stop = row.size - _LANES
    first, second = keys
    threshold, scale = drop
    row, slope, log, mean = row[start:stop], slope[start:stop], log[start:stop], mean[start:stop]
    zero = row.dtype.type(0)
    for i in range(row.size):
        weight = _exp2(row[i] - log[i])
        factor = scale if _is_kept(first, second, start + i, threshold) else zero
        row[i] = weight * factor
        slope[i] = weight * (factor * slope[i] - mean[i])


@njit(cache=True, nogil=True)
def _attend(qkv: Any, out: Any, logs: Any, work: Any, scaling: Any, seed: Any, drop: Any, sequence: Any) -> None:
    """Attention of some sequences, the first of which has the number `sequence`.

    `qkv` has the shape (batch, length, 3, heads, size), `out` (batch, length, heads, size), `logs`, for the base-2
    logarithms of the sums of the softmaxes, (batch, heads, length).
    """
    batch, length, _, heads, size = qkv.shape
    threshold, scale = drop
    wide, deep = -(-length // _LANES) * _LANES, -(-size // _ROWS) * _ROWS
    q, o, weights = work[:deep], work[deep : 2 * deep], work[2 * deep : 2 * deep + wide]
    top, total = work[2 * deep + wide], work[2 * deep + wide + 1]
    k, v = np.zeros((wide, deep), qkv.dtype), np.zeros((deep, wide), qkv.dtype)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                for c in range(size):
                    q[c, t] = qkv[b, t, 0, h, c] * scaling
                    k[t, c] = qkv[b, t, 1, h, c]
                    v[c, t] = qkv[b, t, 2, h, c]
            weights[:] = 0
            o[:] = 0
            total[:] = 0
            top[:] = -np.inf
            for j in range(0, wide, _ROWS):
                start = j // _LANES * _LANES
                _add_product(weights[j : j + _ROWS], k[j : j + _ROWS], 0, q, start)
                for r in range(j, j + _ROWS):
                    _raise_to(top, weights[r], start, r)
            for j in range(0, wide, _ROWS):
                start = j // _LANES * _LANES
                for r in range(j, j + _ROWS):
                    keys = _row_keys(seed, ((sequence + b) * heads + h) * length + r)
                    _weigh(weights[r], top, total, keys, start, threshold)
                    weights[r, start:r] = 0
                _add_product(o, v, j, weights[j : j + _ROWS], start)
            for t in range(length):
                factor = scale / total[t]
                logs[b, h, t] = top[t] + np.log2(total[t])
                for c in range(size):
                    out[b, t, h, c] = o[c, t] * factor


@njit(cache=True, nogil=True)
def _attend_backward(
    d_qkv: Any,
    qkv: Any,
    d_out: Any,
    out: Any,
    logs: Any,
    work: Any,
    scaling: Any,
    back: Any,
    seed: Any,
    drop: Any,
    sequence: Any,
) -> None:
    """Gradient with respect to `qkv` of some sequences, from that with respect to `out`; arrays as in `_attend`.

    With p the softmax, m the mask divided by 1 - rate and g the gradient of a weight after dropout, the gradient of a
    score is p (m g - Σ p m g), where the sum over the keys is the product of `out` and its gradient. `back` is the
    factor of the gradients of queries and keys.
    """
    batch, length, _, heads, size = qkv.shape
    wide, deep = -(-length // _LANES) * _LANES, -(-size // _ROWS) * _ROWS
    q, dq, g = work[:deep], work[deep : 2 * deep], work[2 * deep : 3 * deep]
    weights, slopes = work[3 * deep : 3 * deep + _ROWS], work[3 * deep + _ROWS : 3 * deep + 2 * _ROWS]
    log, mean = work[3 * deep + 2 * _ROWS], work[3 * deep + 2 * _ROWS + 1]
    k, kt, v = np.zeros((wide, deep), qkv.dtype), np.zeros((deep, wide), qkv.dtype), np.zeros((wide, deep), qkv.dtype)
    dk, dv = np.zeros((_ROWS, deep), qkv.dtype), np.zeros((_ROWS, deep), qkv.dtype)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                log[t], mean[t] = logs[b, h, t], 0
                for c in range(size):
                    q[c, t] = qkv[b, t, 0, h, c] * scaling
                    k[t, c] = kt[c, t] = qkv[b, t, 1, h, c]
                    v[t, c] = qkv[b, t, 2, h, c]
                    g[c, t] = d_out[b, t, h, c]
                    mean[t] += g[c, t] * out[b, t, h, c]
            dq[:] = 0
            for j in range(0, wide, _ROWS):
                start = j // _LANES * _LANES
                weights[:] = 0
                slopes[:] = 0
                _add_product(weights, k[j : j + _ROWS], 0, q, start)
                _add_product(slopes, v[j : j + _ROWS], 0, g, start)
                for r in range(_ROWS):
                    keys = _row_keys(seed, ((sequence + b) * heads + h) * length + j + r)
                    weights[r, start : j + r] = -np.inf
                    _derive(weights[r], slopes[r], log, mean, keys, start, drop)
                    weights[r, start : j + r] = 0
                    slopes[r, start : j + r] = 0
                _multiply_transposed(dv, weights, g, start)
                _multiply_transposed(dk, slopes, q, start)
                _add_product(dq, kt, j, slopes, start)
                for t in range(j, min(j + _ROWS, length)):
                    for c in range(size):
                        d_qkv[b, t, 1, h, c] = dk[t - j, c] * (back / scaling)
                        d_qkv[b, t, 2, h, c] = dv[t - j, c]
            for t in range(length):
                for c in range(size):
                    d_qkv[b, t, 0, h, c] = dq[c, t] * back


@njit(cache=True, nogil=True)
def _drop(values: Any, out: Any, seed: Any, drop: Any, first_row: Any) -> None:
    """out = values after dropout, both of shape (rows, columns); the first row has the number `first_row`."""
    _widest_vectors()
    threshold, scale = drop
    zero = values.dtype.type(0)
    for row in range(values.shape[0]):
        first, second = _row_keys(seed, first_row + row)
        source, target = values[row], out[row]
        for i in range(source.size):
            target[i] = source[i] * (scale if _is_kept(first, second, i, threshold) else zero)


# -- functions of torch ---------------------------------------------------------------------------------------


def _new_seed() -> np.uint64:
    """A seed of masks, drawn from torch's global generator."""
    return np.uint64(int(torch.randint(2**63 - 1, ())))


def _threshold(rate: float, dtype: Any) -> tuple[Any, Any]:
    """The least 32-bit hash that is kept, and the factor that keeps the mean, in a dtype."""
    threshold = round(rate * 2**32)
    return np.uint32(threshold), dtype.type(2**32 / (2**32 - threshold))


def _matrices(qkv: NDArray[Any], transposed: int, rows: int) -> NDArray[Any]:
    """Zeros for `transposed` queries, keys or values and for `rows` other rows, with a column for each token.

    There are at least `_LANES` columns more than needed. Rows begin on a cache line, because a vector across two lines
    costs two loads. Their distance is an odd number of lines: at a power of two they would evict one another.
    """
    _, length, _, _, size = qkv.shape
    rows += transposed * (-(-size // _ROWS) * _ROWS)
    line = 64 // qkv.itemsize
    stride = (-(-length // _LANES) + 1) * _LANES // line | 1
    raw = np.zeros((rows * stride + 1) * line, qkv.dtype)
    start = -raw.ctypes.data % 64 // qkv.itemsize
    return raw[start : start + rows * stride * line].reshape(rows, -1)


def _attend_all(qkv: NDArray[Any], out: NDArray[Any], logs: NDArray[Any], *numbers: Any) -> None:
    wide = -(-qkv.shape[1] // _LANES) * _LANES
    _attend(qkv, out, logs, _matrices(qkv, 2, wide + 2), *numbers)


def _attend_all_backward(d_qkv: NDArray[Any], qkv: NDArray[Any], *arrays_and_numbers: Any) -> None:
    d_out, out, logs, *numbers = arrays_and_numbers
    _attend_backward(d_qkv, qkv, d_out, out, logs, _matrices(qkv, 3, 2 * _ROWS + 2), *numbers)


def _in_parts(kernel: Any, arrays: list[Any], *numbers: Any) -> None:
    """Call a kernel with parts of arrays, one per thread of torch, with numbers, and with the index of the part."""
    count = len(arrays[0])
    size = -(-count // torch.get_num_threads())
    starts = range(0, count, size)
    if len(starts) == 1:
        kernel(*arrays, *numbers, 0)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        list(pool.map(lambda start: kernel(*(a[start : start + size] for a in arrays), *numbers, start), starts))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, heads: int, scaling: float, rate: float, seed: Any) -> torch.Tensor:
        batch, length, width = qkv.shape
        array = qkv.detach().contiguous().numpy().reshape(batch, length, 3, heads, -1)
        kind = array.dtype
        out, logs = np.empty((batch, length, heads, array.shape[-1]), kind), np.empty((batch, heads, length), kind)
        ctx.numbers = kind.type(scaling / math.log(2)), kind.type(scaling), seed, _threshold(rate, kind)
        ctx.arrays = array, out, logs
        _in_parts(_attend_all, [array, out, logs], ctx.numbers[0], *ctx.numbers[2:])
        return torch.from_numpy(out.reshape(batch, length, width // 3))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        array, out, logs = ctx.arrays
        d_out = gradients[0].contiguous().numpy().reshape(out.shape)
        d_array = np.empty_like(array)
        _in_parts(_attend_all_backward, [d_array, array, d_out, out, logs], *ctx.numbers)
        return torch.from_numpy(d_array.reshape(*array.shape[:2], -1)), None, None, None, None


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rate: float, seed: Any) -> torch.Tensor:
        ctx.rate, ctx.seed = rate, seed
        return _dropped(values, rate, seed)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _dropped(gradients[0], ctx.rate, ctx.seed), None, None


def _dropped(values: torch.Tensor, rate: float, seed: Any) -> torch.Tensor:
    array = values.detach().contiguous().numpy().reshape(-1, values.shape[-1])
    out = np.empty_like(array)
    _in_parts(_drop, [array, out], seed, _threshold(rate, array.dtype))
    return torch.from_numpy(out.reshape(values.shape))


def causal_attention(qkv: torch.Tensor, heads: int, scaling: float, rate: float) -> torch.Tensor:
    """Causal attention with dropout of its matrix, on the CPU.

    Parameters
    ----------
    qkv
        Queries, keys and values side by side, float32 or float64 (batch, length, 3 · d_model).
    heads
        Number of heads; head h has the h-th part of each.
    scaling
        Factor of the scores.
    rate
        Probability that dropout removes an entry of the matrix, below 1. It is rounded to a multiple of 2⁻³².

    Returns
    -------
    torch.Tensor
        The outputs of the heads side by side, shape (batch, length, d_model).
    """
    result: torch.Tensor = _CausalAttention.apply(qkv, heads, scaling, rate, _new_seed())
    return result


def dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    """`values`, float32 or float64 on the CPU, after dropout with a probability `rate` below 1."""
    result: torch.Tensor = _Dropout.apply(values, rate, _new_seed())
    return result


def keep_mask(rows: int, columns: int, seed: int, rate: float) -> torch.Tensor:
    """What dropout keeps with a seed, bool (rows, columns).

    In the mask of an attention a row is a key of a head of a sequence, of shape (batch, heads, length), and a column a
    query.
    """
    mask = np.empty((rows, columns), np.bool_)
    _fill_keep_mask(mask, np.uint64(seed), _threshold(rate, np.dtype(np.float32))[0])
    return torch.from_numpy(mask)
