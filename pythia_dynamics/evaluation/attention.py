"""Causal attention and dropout for training on a CPU, forward and backward, in a few passes over the L2 cache.

A plain attention writes matrices of (batch, heads, length, length) numbers to memory and reads them back, several times
forward and backward, and draws one random number for each of their entries. These kernels take one head of one sequence
at a time, so that its matrices stay in the cache, leave out blocks above the diagonal, keep only the logarithm of the
sum of each softmax, and compute the rest again in the backward pass.

The masks of dropout are a hash of a seed and of the position of an entry, and are computed where they are needed. The
seed is drawn from torch's global generator, once a call, so `torch.manual_seed` decides all masks.
"""

# The annotations of autograd.Function are incomplete:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pythia_dynamics.evaluation.attention_kernels import ROWS, attend, attend_backward, drop, fill_keep_mask, padded

__all__ = ["causal_attention", "dropout", "keep_mask"]


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
    rows += transposed * padded(size)
    line = 64 // qkv.itemsize
    stride = padded(length) // line | 1
    raw = np.zeros((rows * stride + 1) * line, qkv.dtype)
    start = -raw.ctypes.data % 64 // qkv.itemsize
    return raw[start : start + rows * stride * line].reshape(rows, -1)


def _attend_all(qkv: NDArray[Any], out: NDArray[Any], logs: NDArray[Any], *numbers: Any) -> None:
    attend(qkv, out, logs, _matrices(qkv, 2, padded(qkv.shape[1]) + 2), *numbers)


def _attend_all_backward(d_qkv: NDArray[Any], qkv: NDArray[Any], *arrays_and_numbers: Any) -> None:
    d_out, out, logs, *numbers = arrays_and_numbers
    attend_backward(d_qkv, qkv, d_out, out, logs, _matrices(qkv, 3, 2 * ROWS + 2), *numbers)


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
    _in_parts(drop, [array, out], seed, _threshold(rate, array.dtype))
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
    fill_keep_mask(mask, np.uint64(seed), _threshold(rate, np.dtype(np.float32))[0])
    return torch.from_numpy(mask)
