"""Instructions for the inner loops of the sweep that Numba does not offer, and the arrays that these loops work on."""

# The annotations of Numba are incomplete (carray, intrinsic):
# mypy: disable-error-code="untyped-decorator, no-untyped-call, attr-defined, call-arg, unreachable"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "CACHE_LINE",
    "FASTMATH",
    "half_bits",
    "minus",
    "multiply_add",
    "plus",
    "pointer",
    "prefetch",
    "widen",
    "widest_vectors",
    "workspace",
]

CACHE_LINE = 64
"""Bytes of a cache line of x86-64 processors."""

# The compiler may reorder sums, so that it can vectorise them. It must not assume that numbers are finite: NaN and
# infinity mark a step whose weights are not finite.
FASTMATH = {"reassoc", "nsz", "contract", "arcp"}


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
    stride = (-(-columns * itemsize // CACHE_LINE) | 1) * CACHE_LINE
    raw = np.empty(rows * stride + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    work: NDArray[Any] = raw[start : start + rows * stride].view(kind).reshape(rows, -1)
    return work


@intrinsic
def pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """An address as a pointer to the element type of `like`."""
    kind = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, like), generate


@intrinsic
def widen(typing_context: Any, value: Any) -> Any:
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
def half_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 rounded to float16, to the nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def minus(typing_context: Any, left: Any, right: Any) -> Any:
    """left − right, which LLVM must not reorder. Numba adds its own flags only to an instruction without flags.

    Otherwise LLVM turns (x − a) − b into x − (a + b), which loses differences that are small compared with the weights.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fsub(*arguments, flags=("nsz",))

    return left(left, left), generate


@intrinsic
def plus(typing_context: Any, left: Any, right: Any) -> Any:
    """left + right, which LLVM must not reorder; see `minus`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("nsz",))

    return left(left, left), generate


@intrinsic
def multiply_add(typing_context: Any, left: Any, right: Any, addend: Any) -> Any:
    """left · right + addend, rounded once and in this order: one instruction, where `plus` of a product is two."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return left(left, left, left), generate


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, uint64, in the L2 cache. An address that is not mapped does no harm."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        line = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), (line.type, word, word, word))
        function = builder.module.declare_intrinsic("llvm.prefetch", (line.type,), kind)
        builder.call(function, (line, word(0), word(2), word(1)))  # for reading, into L2, data and not instructions
        return context.get_dummy_value()

    return types.none(types.uint64), generate


@intrinsic
def widest_vectors(typing_context: Any) -> Any:
    """Let the calling function use 512-bit vectors on processors that have them.

    LLVM prefers 256 bits on the Xeons of 2017 to 2021, which suits programs with few vector instructions. These loops
    have mostly vector instructions and run 1.3 to 2 times faster with 512 bits. Other processors ignore the attribute.
    llvmlite rejects attributes that it does not know, so this adds it to the set directly.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate
