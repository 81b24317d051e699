"""Matrix products of a few rows on a CPU, asked for the other way round.

MKL packs one operand of every product. For x·Wᵀ with few rows that is W, the large one; for W·xᵀ, which has the same
sums, it is x. On two AVX-512 cores that is two to four times as fast between 6 and 56 rows (`benchmarks/perplexity.py`
shows what comes of it). Other devices, dtypes and libraries are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["linear", "quick_linear_layers"]

_FEWEST, _MOST = 6, 56


def linear(layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """``layer(hidden)`` for rows (n, in); shape (n, out), in whichever layout was quickest to compute."""
    if _applies(layer.weight) and _FEWEST <= hidden.shape[0] <= _MOST:
        return _transposed(layer, hidden).t()
    output: torch.Tensor = layer(hidden)
    return output


@contextmanager
def quick_linear_layers(model: nn.Module, *, but: nn.Linear) -> Iterator[None]:
    """Let the linear layers of a model, all `but` one, compute few rows the quick way for a while."""
    layers = [m for m in model.modules() if type(m) is nn.Linear and m is not but and _applies(m.weight)]
    try:
        for layer in layers:
            layer.__class__ = _QuickLinear
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class _QuickLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // self.in_features
        if not _FEWEST <= rows <= _MOST:
            return super().forward(input)
        output = _transposed(self, input.reshape(rows, self.in_features)).t().contiguous()
        return output.view(*input.shape[:-1], self.out_features)


def _transposed(layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    if bias is None:
        return torch.mm(layer.weight, hidden.t())
    return torch.addmm(bias[:, None], layer.weight, hidden.t())


def _applies(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_mkl()


def _has_mkl() -> bool:
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
