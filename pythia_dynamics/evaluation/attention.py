"""Causal attention and dropout for training on a CPU, forward and backward, in a few passes over the L2 cache.

A plain attention writes matrices of (batch, heads, length, length) numbers to memory and reads them back, several times
forward and backward, and draws one random number for each of their entries. These kernels take one head of one sequence
at a time, so that its matrices stay in the cache, leave out blocks above the diagonal, keep only the logarithm of the
sum of each softmax, and compute the rest again in the backward pass.

The masks of dropout are a hash of a seed and of the position of an entry, and are computed where they are needed. The
seed is drawn from torch's global generator, once a call, so `torch.manual_seed` decides all masks.
"""

# The annotations of Numba and of autograd.Function are incomplete:
# mypy: disable-error-code="untyped-decorator, no-untyped-call, call-arg, unreachable"

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

__all__ = ["causal_attention", "dropout", "keep_mask"]

_LANES = 16
"""Columns of the matrices are padded to a multiple of it: the float32 numbers of a vector of AVX-512."""

_ROWS = 8
"""Rows of a block of the matrices. The sums of 8 rows and 2 vectors take 16 of the 32 registers of AVX-512."""

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


def _tile(vectors: int) -> Any:
    """A function that adds a part of a @ b to the same part of `out`: `_ROWS` rows and `_LANES` · `vectors` columns.

    It gets `out`, a, b and the first row and column of the part. The sums stay in registers. The loops that LLVM
    vectorises by itself load and store them for each term, and check at each call whether the arrays overlap.
    """

    @intrinsic
    def add_tile(typing_context: Any, out: Any, a: Any, b: Any, row: Any, column: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kinds = signature.args
            o, f, g = (context.make_array(kinds[i])(context, builder, arguments[i]) for i in range(3))
            row, column = arguments[3:]
            element = context.get_value_type(kinds[0].dtype)
            vector, size = ir.VectorType(element, _LANES), context.get_abi_sizeof(element)
            undefined = ir.Constant(vector, ir.Undefined)

            def at(array: Any, i: Any, j: Any, kind: Any) -> Any:
                """The address of an element as a pointer to `kind`."""
                stride = cgutils.unpack_tuple(builder, array.strides)[0]
                offset = builder.add(builder.mul(i, stride), builder.mul(j, ir.Constant(j.type, size)))
                address = builder.add(builder.ptrtoint(array.data, offset.type), offset)
                return builder.inttoptr(address, kind.as_pointer())

            def plus(i: Any, offset: int) -> Any:
                return builder.add(i, ir.Constant(i.type, offset))

            parts = [(r, c) for r in range(_ROWS) for c in range(vectors)]
            where = {(r, c): at(o, plus(row, r), plus(column, c * _LANES), vector) for r, c in parts}
            sums = {part: cgutils.alloca_once(builder, vector) for part in parts}
            for part in parts:
                builder.store(builder.load(where[part], align=size), sums[part])
            depth = cgutils.unpack_tuple(builder, g.shape)[0]
            with cgutils.for_range(builder, depth) as loop:
                terms = [
                    builder.load(at(g, loop.index, plus(column, c * _LANES), vector), align=size)
                    for c in range(vectors)
                ]
                for r in range(_ROWS):
                    factor = builder.load(at(f, plus(row, r), loop.index, element), align=size)
                    factor = builder.insert_element(undefined, factor, ir.Constant(ir.IntType(32), 0))
                    zeros = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
                    factor = builder.shuffle_vector(factor, undefined, zeros)
                    for c in range(vectors):
                        product = builder.fmul(factor, terms[c], flags=("contract",))
                        total = builder.fadd(builder.load(sums[r, c]), product, flags=("contract",))
                        builder.store(total, sums[r, c])
            for part in parts:
                builder.store(builder.load(sums[part]), where[part], align=size)
            return context.get_dummy_value()

        return types.none(out, a, b, types.intp, types.intp), generate

    return add_tile


_add_tile, _add_double_tile = _tile(1), _tile(2)


@njit(cache=True, nogil=True)
def _add_product(out: Any, a: Any, b: Any) -> None:
    """out += a @ b, for the shapes (8 m, 16 n), (8 m, k) and (k, 16 n). The last axes are contiguous."""
    _widest_vectors()
    for row in range(0, out.shape[0], _ROWS):
        column = 0
        while column + _LANES < out.shape[1]:
            _add_double_tile(out, a, b, row, column)
            column += 2 * _LANES
        if column < out.shape[1]:
            _add_tile(out, a, b, row, column)


# -- attention ------------------------------------------------------------------------------------------------
# All matrices are transposed: a row is a key, a column a query. The sum over keys of a softmax is then a sum of rows,
# and so is the product with the values. The queries from j on see the key j. Its row is computed from `start`, the
# multiple of `_LANES` up to j, and the queries before j get the weight 0. Scores have the base 2: they are times log₂e.


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _raise_to(top: Any, row: Any, start: Any, stop: Any, key: Any) -> None:
    """top[key:] = the elementwise maximum of it and `row`; hide the key from the queries before it."""
    _widest_vectors()
    row[start:key] = -np.inf
    top, row = top[start:stop], row[start:stop]
    for i in range(row.size):
        top[i] = max(top[i], row[i])


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _weigh(row: Any, top: Any, total: Any, keys: Any, start: Any, stop: Any, threshold: Any) -> None:
    """Turn the scores of a key into weights after dropout, without the factor 1 / total; add all weights to `total`."""
    _widest_vectors()
    first, second = keys
    row, top, total = row[start:stop], top[start:stop], total[start:stop]
    zero = row.dtype.type(0)
    for i in range(row.size):
        weight = _exp2(row[i] - top[i])
        total[i] += weight
        row[i] = weight if _is_kept(first, second, start + i, threshold) else zero


@njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _derive(row: Any, slope: Any, log: Any, mean: Any, keys: Any, start: Any, stop: Any, drop: Any) -> None:
    """Turn the scores of a key into weights after dropout, and their gradients `slope` into those of the scores."""
    _widest_vectors()
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
def _padded(count: Any) -> Any:
    """The least multiple of `_LANES` that is at least `count`."""
    return -(-count // _LANES) * _LANES


@njit(cache=True, nogil=True)
def _attend(qkv: Any, out: Any, logs: Any, work: Any, scaling: Any, seed: Any, drop: Any, sequence: Any) -> None:
    """Attention of some sequences, the first of which has the number `sequence`.

    `qkv` has the shape (batch, length, 3, heads, size), `out` (batch, length, heads, size), `logs`, for the base-2
    logarithms of the sums of the softmaxes, (batch, heads, length).
    """
    batch, length, _, heads, size = qkv.shape
    threshold, scale = drop
    wide, deep = _padded(length), _padded(size)
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
            work[deep:] = 0
            top[:] = -np.inf
            for j in range(0, wide, _ROWS):
                start = j // _LANES * _LANES
                _add_product(weights[j : j + _ROWS, start:wide], k[j : j + _ROWS], q[:, start:wide])
                for r in range(j, j + _ROWS):
                    _raise_to(top, weights[r], start, wide, r)
            for j in range(0, wide, _ROWS):
                start = j // _LANES * _LANES
                for r in range(j, j + _ROWS):
                    keys = _row_keys(seed, ((sequence + b) * heads + h) * length + r)
                    _weigh(weights[r], top, total, keys, start, wide, threshold)
                    weights[r, start:r] = 0
                _add_product(o[:, start:wide], v[:, j : j + _ROWS], weights[j : j + _ROWS, start:wide])
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
    wide, deep = _padded(length), _padded(size)
    qt, gt, dqt = work[:deep], work[deep : 2 * deep], work[2 * deep : 3 * deep]
    weights, slopes = work[3 * deep : 3 * deep + _ROWS], work[3 * deep + _ROWS : 3 * deep + 2 * _ROWS]
    log, mean = work[3 * deep + 2 * _ROWS], work[3 * deep + 2 * _ROWS + 1]
    q, k, v, g = np.zeros((4, wide, deep), qkv.dtype)
    kt = np.zeros((deep, wide), qkv.dtype)
    dk, dv = np.zeros((2, _ROWS, deep), qkv.dtype)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                log[t], mean[t] = logs[b, h, t], 0
                for c in range(size):
                    q[t, c] = qt[c, t] = qkv[b, t, 0, h, c] * scaling
                    k[t, c] = kt[c, t] = qkv[b, t, 1, h, c]
                    v[t, c] = qkv[b, t, 2, h, c]
                    g[t, c] = gt[c, t] = d_out[b, t, h, c]
                    mean[t] += g[t, c] * out[b, t, h, c]
            dqt[:] = 0
            for j in range(0, wide, _ROWS):
                start = j // _LANES * _LANES
                weights[:] = 0
                slopes[:] = 0
                _add_product(weights[:, start:wide], k[j : j + _ROWS], qt[:, start:wide])
                _add_product(slopes[:, start:wide], v[j : j + _ROWS], gt[:, start:wide])
                for r in range(_ROWS):
                    keys = _row_keys(seed, ((sequence + b) * heads + h) * length + j + r)
                    weights[r, start : j + r] = -np.inf
                    _derive(weights[r], slopes[r], log, mean, keys, start, wide, drop)
                    weights[r, start : j + r] = 0
                    slopes[r, start : j + r] = 0
                dk[:] = 0
                dv[:] = 0
                _add_product(dv, weights[:, start:wide], g[start:])
                _add_product(dk, slopes[:, start:wide], q[start:])
                _add_product(dqt[:, start:wide], kt[:, j : j + _ROWS], slopes[:, start:wide])
                for t in range(j, min(j + _ROWS, length)):
                    for c in range(size):
                        d_qkv[b, t, 1, h, c] = dk[t - j, c] * (back / scaling)
                        d_qkv[b, t, 2, h, c] = dv[t - j, c]
            for t in range(length):
                for c in range(size):
                    d_qkv[b, t, 0, h, c] = dqt[c, t] * back


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

    Rows begin on a cache line, because a vector across two lines costs two loads. Their distance is an odd number of
    lines: at a power of two they would evict one another.
    """
    _, length, _, _, size = qkv.shape
    rows += transposed * _padded(size)
    line = 64 // qkv.itemsize
    stride = _padded(length) // line | 1
    raw = np.zeros((rows * stride + 1) * line, qkv.dtype)
    start = -raw.ctypes.data % 64 // qkv.itemsize
    return raw[start : start + rows * stride * line].reshape(rows, -1)


def _attend_all(qkv: NDArray[Any], out: NDArray[Any], logs: NDArray[Any], *numbers: Any) -> None:
    _attend(qkv, out, logs, _matrices(qkv, 2, _padded(qkv.shape[1]) + 2), *numbers)


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
