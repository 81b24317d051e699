"""Linear layers on a CPU with weights in the blocked layout of oneDNN.

MKL copies the weight matrix into its own layout in every product, which costs more than the product where there are few
rows, as in generation. oneDNN takes weights that have been laid out once; inference compilers of torch use it in the
same way. Whether this is faster is measured, since it depends on the processor and on the libraries: on two AVX-512
cores of an Intel Xeon the product of 16 rows with the W_U of a 70m (512 → 50304) takes 10 ms instead of 31, with both
libraries held to AVX2 17 ms instead of 19. `benchmarks/products.py` measures it for all shapes of a model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from statistics import median

import torch
from torch import nn

from pythia_dynamics.evaluation.settings import Products

__all__ = [
    "bfloat16_gain",
    "choose_products",
    "fastest",
    "pack_weight",
    "packed_is_faster",
    "packed_layers",
    "packed_linear_layers",
    "packed_product",
    "product_rate",
]

_ROWS = 8
"""Rows of the products that are compared: few, as where a sentence alone is completed, and enough for arithmetic to
count."""

_SAMPLE = (8192, 512)
"""Shape of the weights of the products that are compared: in float32 16 MiB, more than the caches of a core. It is the
same for all models, so that one machine always gives the same answer."""

_SQUARE = 512
"""Side of the matrices whose products are timed in two precisions: a few milliseconds each."""

_REPEATS = 15
"""Products that are timed in each way, in turn. The median of their ratios counts, because other work on the machine
slows down both: on two AVX-512 cores it was between 1.4 and 2.5, idle or loaded threefold, with one thread or two; with
both libraries held to AVX2 it was between 1.0 and 1.1."""

_RATE_ROWS, _RATE_SECONDS = 256, 0.3
"""Rows of the products whose rate is measured, about those of a batch of passages; and for how long."""

_LEAST_GAIN = 1.2
"""Packing is used where it is this much faster. Near this the measurement of one process may come out otherwise than
that of another, and the two ways round differently: a run measures once (`choose_products`), for all its processes."""


def choose_products(device: torch.device, dtype: torch.dtype) -> Products:
    """The faster way for weights of a dtype on a device: measured once in a process, where there are two."""
    possible = _can_pack(torch.empty(0, device=device, dtype=dtype))
    return "packed" if possible and packed_is_faster(dtype) else "plain"


def packed_layers(model: nn.Module, products: Products = "auto") -> list[nn.Linear]:
    """The linear layers of a model that compute with packed weights; it decides the rounding.

    Parameters
    ----------
    model
        The model.
    products
        Which layers: ``packed`` all that can, ``plain`` none, ``auto`` those for which it is faster on this machine.
    """
    if products == "plain":
        return []
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _can_pack(layer.weight)]
    return [layer for layer in layers if products == "packed" or packed_is_faster(layer.weight.dtype)]


@contextmanager
def packed_linear_layers(model: nn.Module, products: Products = "auto") -> Iterator[None]:
    """Inside the context, the linear layers of a model on a CPU compute with packed weights.

    The packed weights take the place of the others, so that the memory in use grows by one layer at most. A weight
    that is not only that of linear layers (a tied embedding) is kept beside its packed copy.

    Parameters
    ----------
    model
        The model. Its packed weights have no values inside the context, and their old values after it.
    products
        Which layers, as for `packed_layers`.
    """
    layers = packed_layers(model, products)
    of_layers = {id(layer.weight) for layer in layers}
    shared = {
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if type(module) is not nn.Linear and id(parameter) in of_layers
    }
    packed: dict[int, torch.Tensor] = {}
    try:
        with torch.inference_mode(False), torch.no_grad():
            for layer in layers:
                weight = layer.weight
                if id(weight) not in packed:
                    packed[id(weight)] = pack_weight(weight)
                layer.packed_weight = packed[id(weight)]
                layer.__class__ = _PackedLinear
                if id(weight) not in shared:
                    weight.data = weight.new_empty(0)
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for layer in layers:
                if type(layer) is not _PackedLinear:
                    continue
                if not layer.weight.numel():
                    layer.weight.data = layer.packed_weight.to_dense()
                del layer.packed_weight
                layer.__class__ = nn.Linear  # type: ignore[assignment]
                packed.pop(id(layer.weight), None)  # one after the other, so that no two layers are held twice


class _PackedLinear(nn.Linear):
    packed_weight: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return packed_product(input, self.packed_weight, self.bias)


@cache
def packed_is_faster(dtype: torch.dtype) -> bool:
    """Whether products of few rows are faster with packed weights on this machine, measured once in a process.

    Parameters
    ----------
    dtype
        Of the weights.
    """
    with torch.inference_mode():
        weight, states = torch.ones(_SAMPLE, dtype=dtype), torch.ones((_ROWS, _SAMPLE[1]), dtype=dtype)
        packed = pack_weight(weight)
        gains = []
        for _ in range(_REPEATS + 1):
            plain = _seconds(lambda: nn.functional.linear(states, weight))
            gains.append(plain / _seconds(lambda: packed_product(states, packed, None)))
    return median(gains[1:]) > _LEAST_GAIN  # the first ones also load the code


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fastest(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    work()
    return min(_seconds(work) for _ in range(repeats))


@cache
def bfloat16_gain() -> float:
    """How many times as fast matrix products are in bfloat16 as in float32 on this processor, measured once."""
    with torch.inference_mode():
        sides = [torch.ones(_SQUARE, _SQUARE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
        single, half = (fastest(lambda side=side: side @ side) for side in sides)  # type: ignore[misc]
    return single / half


@cache
def product_rate(width: int, device: torch.device | str) -> float:
    """Floating-point operations per second of float32 matrix products in a model, measured for a third of a second.

    Parameters
    ----------
    width
        d_model. The products are those of the first layer of its MLP, (256, d) · (d, 4d).
    device
        Where they are computed.
    """
    device = torch.device(device)
    count, seconds = 0, 0.0
    with torch.inference_mode():
        states, weight = torch.ones(_RATE_ROWS, width, device=device), torch.ones(width, 4 * width, device=device)
        _repeat(states, weight, 1)  # loads and chooses kernels
        while seconds < _RATE_SECONDS:
            repeats = 1 + 2 * count
            seconds = _seconds(lambda repeats=repeats: _repeat(states, weight, repeats))  # type: ignore[misc]
            count = repeats
    return 2.0 * _RATE_ROWS * width * 4 * width * count / seconds


def _repeat(states: torch.Tensor, weight: torch.Tensor, count: int) -> None:
    """The same product so many times, finished on its device."""
    for _ in range(count):
        product = states @ weight
    float(product[0, 0])


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):  # builds for x86 have it
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight of shape (out, in), float32 or bfloat16 on a CPU, in the layout of oneDNN; `to_dense` gives it back."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def packed_product(states: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``states @ weight.T + bias`` of states (..., in) and a weight from `pack_weight`; shape (..., out)."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return product
