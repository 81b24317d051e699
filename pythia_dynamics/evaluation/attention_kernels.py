"""Kernels of `pythia_dynamics.evaluation.attention`: masks, softmax and matrix products of one head in the cache.

Matrices of a head have a column for each token, so that vectors hold neighbouring tokens.
"""

# The annotations of Numba are incomplete:
# mypy: disable-error-code="untyped-decorator, no-untyped-call, call-arg, unreachable"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from pythia_dynamics.compiled import kernel

__all__ = ["ROWS", "attend", "attend_backward", "drop", "fill_keep_mask", "padded"]

_LANES = 16
"""Columns of the matrices are padded to a multiple of it: the float32 numbers of a vector of AVX-512."""

ROWS = 8
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


@kernel(fastmath={"contract"})  # reordered sums would cancel the rounding
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
    """2ˣ of a float32 or float64. In kernels a float32 takes the vectorised form."""
    return 2.0**x


@overload(_exp2)
def _exp2_of_type(x: Any) -> Any:
    def single(x: Any) -> Any:
        return _exp2_single(x)

    def double(x: Any) -> Any:
        return 2.0**x

    return single if x == types.float32 else double


@kernel
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


@kernel
def fill_keep_mask(out: Any, seed: Any, threshold: Any) -> None:
    for row in range(out.shape[0]):
        first, second = _row_keys(seed, row)
        for column in range(out.shape[1]):
            out[row, column] = _is_kept(first, second, column, threshold)


# -- products of matrices -------------------------------------------------------------------------------------


def _tile(vectors: int) -> Any:
    """A function that adds a part of a @ b to the same part of `out`: `ROWS` rows and `_LANES` · `vectors` columns.

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

            parts = [(r, c) for r in range(ROWS) for c in range(vectors)]
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
                for r in range(ROWS):
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


@kernel
def _add_product(out: Any, a: Any, b: Any) -> None:
    """out += a @ b, for the shapes (8 m, 16 n), (8 m, k) and (k, 16 n). The last axes are contiguous."""
    _widest_vectors()
    for row in range(0, out.shape[0], ROWS):
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


@kernel(fastmath=_FASTMATH)
def _raise_to(top: Any, row: Any, start: Any, stop: Any, key: Any) -> None:
    """top[key:] = the elementwise maximum of it and `row`; hide the key from the queries before it."""
    _widest_vectors()
    row[start:key] = -np.inf
    top, row = top[start:stop], row[start:stop]
    for i in range(row.size):
        top[i] = max(top[i], row[i])


@kernel(fastmath=_FASTMATH)
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


@kernel(fastmath=_FASTMATH)
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


@kernel
def padded(count: Any) -> Any:
    """The least multiple of `_LANES` that is at least `count`."""
    return -(-count // _LANES) * _LANES


@kernel
def attend(qkv: Any, out: Any, logs: Any, work: Any, scaling: Any, seed: Any, drop: Any, sequence: Any) -> None:
    """Attention of some sequences, the first of which has the number `sequence`.

    `qkv` has the shape (batch, length, 3, heads, size), `out` (batch, length, heads, size), `logs`, for the base-2
    logarithms of the sums of the softmaxes, (batch, heads, length).
    """
    batch, length, _, heads, size = qkv.shape
    threshold, scale = drop
    wide, deep = padded(length), padded(size)
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
            for j in range(0, wide, ROWS):
                start = j // _LANES * _LANES
                _add_product(weights[j : j + ROWS, start:wide], k[j : j + ROWS], q[:, start:wide])
                for r in range(j, j + ROWS):
                    _raise_to(top, weights[r], start, wide, r)
            for j in range(0, wide, ROWS):
                start = j // _LANES * _LANES
                for r in range(j, j + ROWS):
                    keys = _row_keys(seed, ((sequence + b) * heads + h) * length + r)
                    _weigh(weights[r], top, total, keys, start, wide, threshold)
                    weights[r, start:r] = 0
                _add_product(o[:, start:wide], v[:, j : j + ROWS], weights[j : j + ROWS, start:wide])
            for t in range(length):
                factor = scale / total[t]
                logs[b, h, t] = top[t] + np.log2(total[t])
                for c in range(size):
                    out[b, t, h, c] = o[c, t] * factor


@kernel
def attend_backward(
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
    """Gradient with respect to `qkv` of some sequences, from that with respect to `out`; arrays as in `attend`.

    With p the softmax, m the mask divided by 1 - rate and g the gradient of a weight after dropout, the gradient of a
    score is p (m g - Σ p m g), where the sum over the keys is the product of `out` and its gradient. `back` is the
    factor of the gradients of queries and keys.
    """
    batch, length, _, heads, size = qkv.shape
    wide, deep = padded(length), padded(size)
    qt, gt, dqt = work[:deep], work[deep : 2 * deep], work[2 * deep : 3 * deep]
    weights, slopes = work[3 * deep : 3 * deep + ROWS], work[3 * deep + ROWS : 3 * deep + 2 * ROWS]
    log, mean = work[3 * deep + 2 * ROWS], work[3 * deep + 2 * ROWS + 1]
    q, k, v, g = np.zeros((4, wide, deep), qkv.dtype)
    kt = np.zeros((deep, wide), qkv.dtype)
    dk, dv = np.zeros((2, ROWS, deep), qkv.dtype)
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
            for j in range(0, wide, ROWS):
                start = j // _LANES * _LANES
                weights[:] = 0
                slopes[:] = 0
                _add_product(weights[:, start:wide], k[j : j + ROWS], qt[:, start:wide])
                _add_product(slopes[:, start:wide], v[j : j + ROWS], gt[:, start:wide])
                for r in range(ROWS):
                    keys = _row_keys(seed, ((sequence + b) * heads + h) * length + j + r)
                    weights[r, start : j + r] = -np.inf
                    _derive(weights[r], slopes[r], log, mean, keys, start, wide, drop)
                    weights[r, start : j + r] = 0
                    slopes[r, start : j + r] = 0
                dk[:] = 0
                dv[:] = 0
                _add_product(dv, weights[:, start:wide], g[start:])
                _add_product(dk, slopes[:, start:wide], q[start:])
                _add_product(dqt[:, start:wide], kt[:, j : j + ROWS], slopes[:, start:wide])
                for t in range(j, min(j + ROWS, length)):
                    for c in range(size):
                        d_qkv[b, t, 1, h, c] = dk[t - j, c] * (back / scaling)
                        d_qkv[b, t, 2, h, c] = dv[t - j, c]
            for t in range(length):
                for c in range(size):
                    d_qkv[b, t, 0, h, c] = dqt[c, t] * back


@kernel
def drop(values: Any, out: Any, seed: Any, drop: Any, first_row: Any) -> None:
    """out = values after dropout, both of shape (rows, columns); the first row has the number `first_row`."""
    _widest_vectors()
    threshold, scale = drop
    zero = values.dtype.type(0)
    for row in range(values.shape[0]):
        first, second = _row_keys(seed, first_row + row)
        source, target = values[row], out[row]
        for i in range(source.size):
            target[i] = source[i] * (scale if _is_kept(first, second, i, threshold) else zero)
