"""Device and precision of a computation.

The module imports torch only inside its functions, so that the command line can list the choices at start-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

from pythia_dynamics.errors import PythiaDynError, UnknownNameError

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEVICE_KINDS",
    "DTYPES",
    "DeviceKind",
    "Dtype",
    "describe_device",
    "matmul_precision",
    "resolve_device",
    "resolve_dtype",
    "resolve_exact_device",
]

DeviceKind = Literal["auto", "cuda", "mps", "cpu"]
"""Kinds of device. ``auto`` selects the first of the others that the machine has. CUDA also has indices: ``cuda:1``."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""Precisions in which a model can be evaluated. The attention scores of Pythia exceed the range of float16."""

DEVICE_KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device for a name.

    Parameters
    ----------
    name
        A `DeviceKind`, or a kind with an index (``cuda:1``). A `torch.device` is returned unchanged.

    Raises
    ------
    UnknownNameError
        The name is not that of a device.
    PythiaDynError
        This machine does not have the device, or several are named.
    """
    import torch

    if isinstance(name, torch.device):
        return name
    if "," in name:
        raise PythiaDynError(f"--device {name} names several devices; only evaluations are computed on several")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    kind, _, index = name.partition(":")
    if kind not in available or (index and not index.isdigit()):
        raise UnknownNameError("device", name, DEVICE_KINDS)
    if not available[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise PythiaDynError(f"no device {name} on this machine; --device auto selects an available one")
    return torch.device(name)


def resolve_exact_device(name: str) -> str:
    """The name of a device that computes in float64, which Gram matrices need.

    Parameters
    ----------
    name
        As for `resolve_device`. ``auto`` is CUDA or the CPU, because MPS has no float64.

    Raises
    ------
    UnknownNameError
        The name is not that of a device.
    PythiaDynError
        The device is MPS, or this machine does not have it.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = resolve_device(name)
    if device.type == "mps":
        raise PythiaDynError("MPS has no float64, which Gram matrices need; use --device cpu")
    return str(device)


def resolve_dtype(name: Dtype) -> torch.dtype:
    """The torch dtype for one of `DTYPES`. Raises `UnknownNameError` for other names."""
    import torch

    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def describe_device(device: torch.device) -> str:
    """The name of a device for the record of a result: the model of the GPU, or the kind of device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def matmul_precision(*, tf32: bool) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the context, and restore the previous setting after it.

    Parameters
    ----------
    tf32
        Allow TF32 (10 bits of mantissa) on CUDA devices. Otherwise products are computed in float32.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
