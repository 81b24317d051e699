"""Matrix products of few rows on a CPU, computed transposed: W·xᵀ instead of x·Wᵀ.

MKL packs one operand of every product. For x·Wᵀ with few rows that is W, the large one; for W·xᵀ, which has the same
sums, it is x. `benchmarks/perplexity.py` measures the effect on whole evaluations. Only float32 products of MKL are
computed so; for other devices, dtypes and libraries nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["linear", "transposed_linear_layers"]

_MIN_ROWS, _MAX_ROWS = 6, 56
"""Numbers of rows for which the transposed product is used. Measured on two AVX-512 cores with the W_U of a 70m
(512 → 50304): 1.4 to 2.3 times as fast from 6 to 56 rows, 0.8 to 1.1 times below 6 and 1.0 to 1.2 times from 60 on."""


def linear(layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """``layer(hidden)``, transposed where that is faster.

    Parameters
    ----------
    layer
        The linear layer, with or without a bias.
    hidden
        Rows of shape (n, in), in the dtype of the layer.

    Returns
    -------
    torch.Tensor
        Shape (n, out); not contiguous where it was computed transposed.
    """
    if _is_supported(layer.weight) and _MIN_ROWS <= hidden.shape[0] <= _MAX_ROWS:
        return _transposed(layer, hidden).t()
    output: torch.Tensor = layer(hidden)
    return output


@contextmanager
def transposed_linear_layers(model: nn.Module, *, exclude: nn.Linear) -> Iterator[None]:
    """Inside the context, the linear layers of a model compute products of few rows transposed.

    Parameters
    ----------
    model
        The model; its layers are as before after the context.
    exclude
        A layer to leave as it is: the unembedding, which `linear` is called for.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m is not exclude and _is_supported(m.weight)]
    try:
        for layer in layers:
            layer.__class__ = _TransposedLinear
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class _TransposedLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // self.in_features
        if not _MIN_ROWS <= rows <= _MAX_ROWS:
            return super().forward(input)
        output = _transposed(self, input.reshape(rows, self.in_features)).t().contiguous()
        return output.view(*input.shape[:-1], self.out_features)


def _transposed(layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    if bias is None:
        return torch.mm(layer.weight, hidden.t())
    return torch.addmm(bias[:, None], layer.weight, hidden.t())


def _is_supported(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_mkl()


def _has_mkl() -> bool:
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
