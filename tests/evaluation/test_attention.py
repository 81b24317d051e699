"""The kernels of attention and dropout on a CPU: against plain attention with the same mask, and the masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pythia_dynamics.evaluation import attention
from pythia_dynamics.training.loop import torch_threads

RATE = 0.2


def plain_attention(qkv: torch.Tensor, heads: int, scaling: float, kept: torch.Tensor) -> torch.Tensor:
    """Attention written out; `kept` has the shape (batch, heads, query, key)."""
    batch, length, width = qkv.shape
    query, key, value = (part.view(batch, length, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(future, -math.inf)
    weights = scores.softmax(-1) * kept / (1 - RATE)
    return (weights @ value).transpose(1, 2).reshape(batch, length, width // 3)


def kept_of_next_call(batch: int, heads: int, length: int) -> torch.Tensor:
    """The mask of the next call of `causal_attention`, shape (batch, heads, query, key)."""
    state = torch.get_rng_state()
    seed = int(torch.randint(2**63 - 1, ()))
    torch.set_rng_state(state)
    return attention.keep_mask(batch * heads * length, length, seed, RATE).view(batch, heads, length, -1).mT


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 256, 2, 16), (2, 40, 3, 12), (3, 13, 4, 40), (1, 1, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_is_plain_attention(shape: tuple[int, int, int, int], dtype: torch.dtype, threads: int) -> None:
    batch, length, heads, size = shape
    torch.manual_seed(0)
    values = 2 * torch.randn(batch, length, 3 * heads * size, dtype=torch.float64)
    weights = torch.randn(batch, length, heads * size, dtype=torch.float64)
    kept = kept_of_next_call(batch, heads, length)
    ours, exact = values.to(dtype, copy=True).requires_grad_(), values.clone().requires_grad_()
    with torch_threads(threads):
        made = attention.causal_attention(ours, heads, 0.3, RATE)
        made.backward(weights.to(dtype))
    expected = plain_attention(exact, heads, 0.3, kept)
    expected.backward(weights)
    assert ours.grad is not None
    assert exact.grad is not None
    assert made.dtype == ours.grad.dtype == dtype
    bound = 2e-8 if dtype == torch.float64 else 2e-5  # rates are multiples of 2⁻³²
    torch.testing.assert_close(made.double(), expected, rtol=bound, atol=bound)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=bound, atol=bound * float(exact.grad.abs().max()))


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 9, 18, dtype=torch.float64, requires_grad=True)

    def call(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return attention.dropout(attention.causal_attention(values, 2, 0.3, RATE), RATE)

    assert torch.autograd.gradcheck(call, values)


def test_large_scores_neither_overflow_nor_lose_a_weight() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 20, 3 * 16)
    values[..., :32] *= 100
    expected = plain_attention(values.double(), 2, 1.0, torch.ones(())) * (1 - RATE)
    made = attention.causal_attention(values, 2, 1.0, 0.0)
    torch.testing.assert_close(made.double(), expected, rtol=1e-2, atol=1e-2)


def test_the_global_generator_decides_the_masks() -> None:
    values = torch.randn(2, 20, 24)
    calls = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        calls.append([attention.causal_attention(values, 2, 0.3, RATE), attention.dropout(values, RATE)])
        assert not torch.equal(attention.dropout(values, RATE), calls[-1][1])
    for first, same, other in zip(*calls, strict=True):
        assert torch.equal(first, same)
        assert not torch.equal(first, other)


def test_dropout_scales_what_it_keeps() -> None:
    values = torch.full((50, 40, 32), 3.0, requires_grad=True)
    made = attention.dropout(values, RATE)
    made.sum().backward()
    assert values.grad is not None
    assert set(made.detach().unique().tolist()) == {0.0, 3.75}
    torch.testing.assert_close(values.grad * 3, made.detach())


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2, 0.5, 0.9])
def test_entries_are_kept_independently_with_the_probability(rate: float) -> None:
    """The number of kept entries, in all and by row, column and pair of entries, is binomial within 5 deviations."""
    rows, columns, keep = 4096, 256, 1 - rate
    masks = torch.stack([attention.keep_mask(rows, columns, seed, rate) for seed in (0, 1, 2**62)]).double()
    variance = keep * rate
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
        count = np.prod([masks.shape[axis] for axis in axes])
        deviation = (masks.mean(axes) - keep).abs().max()
        assert float(deviation) <= 5 * (variance / count) ** 0.5
    centred = masks - keep
    for shift in (1, 2, 16, 64):
        for axis in (0, 1, 2):
            product = float((centred * centred.roll(shift, axis)).mean())
            if shift % masks.shape[axis]:
                assert abs(product) <= 5 * variance / masks.numel() ** 0.5
    by_bit = [(masks.view(3, rows, -1, 2, 2**bit)[:, :, :, 0] - keep) for bit in range(8)]
    assert all(float(part.mean().abs()) <= 5 * (variance / part.numel()) ** 0.5 for part in by_bit)
