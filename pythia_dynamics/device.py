"""Where the arithmetic runs and in what precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pythia_dynamics.errors import PythiaDynError, UnknownNameError

__all__ = [
    "DTYPES",
    "cached_positions_budget",
    "describe_device",
    "free_cached_memory",
    "is_out_of_memory",
    "matmul_precision",
    "resolve_device",
    "resolve_dtype",
    "resolve_exact_device",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions a model can be evaluated in. Pythia's attention scores exceed the range of float16."""

_KINDS = ("auto", "cuda", "mps", "cpu")
_HOST_CACHE_BYTES = 1 << 30


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else MPS, else the CPU; ``cuda:1`` and the like are taken literally.

    Raises `UnknownNameError` for other names, `PythiaDynError` for a device this machine does not have.
    """
    if isinstance(name, torch.device):
        return name
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    kind, _, index = name.partition(":")
    if kind not in available or (index and not index.isdigit()):
        raise UnknownNameError("device", name, _KINDS)
    if not available[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise PythiaDynError(f"no device {name} on this machine; --device auto takes what there is")
    return torch.device(name)


def resolve_exact_device(name: str) -> str:
    """As `resolve_device`, but a device that computes in float64: MPS is passed over, or refused by name."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = resolve_device(name)
    if device.type == "mps":
        raise PythiaDynError("MPS has no float64, which Gram matrices need; use --device cpu")
    return str(device)


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype of a name in `DTYPES`; raises `UnknownNameError` for others."""
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return DTYPES[name]


def describe_device(device: torch.device) -> str:
    """What to write beside a result: the name of the GPU, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator and MPS raise plain RuntimeErrors.
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)


def free_cached_memory(device: torch.device) -> None:
    """Give memory that the allocator keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def cached_positions_budget(device: torch.device, bytes_per_position: int) -> int:
    """How many key-value positions may be held at once: 1 GiB on a host, half of what a GPU has free."""
    capacity = _HOST_CACHE_BYTES
    if device.type == "cuda":
        capacity = torch.cuda.mem_get_info(device)[0] // 2
    return max(1, capacity // max(1, bytes_per_position))


@contextmanager
def matmul_precision(*, tf32: bool) -> Iterator[None]:
    """Float32 matrix products in full precision, or with TF32 where asked; what was set before comes back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
