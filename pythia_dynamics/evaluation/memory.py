"""Memory of the device that a model is evaluated on: what fits, when it does not, and how to free it."""

from __future__ import annotations

import torch

__all__ = ["cached_positions_budget", "free_cached_memory", "is_out_of_memory"]

_CACHE_BYTES = {"cuda": 8 << 30, "mps": 2 << 30, "cpu": 1 << 30}
"""Memory of the key-value cache by device. It does not depend on what happens to be free, so that a run can be repeated
to the bit. On a host: small beside the memory of any machine that holds the model, and room for 6 passages of 80
tokens, with all their prefixes, of a 70m in float32. On a GPU: room for 52 of these, so that a step has
some 3,000 rows; it is half of the memory of small GPUs."""

_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
"""Words of the allocators: of torch on Windows, of MPS and CUDA, and of torch on Linux."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a smaller batch may fit.

    CUDA raises `torch.OutOfMemoryError`; the allocators of the CPU and of MPS raise a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def free_cached_memory(device: torch.device) -> None:
    """Return the memory that torch's allocator keeps for reuse to the device; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def cached_positions_budget(device: torch.device, bytes_per_position: int) -> int:
    """Number of key-value positions to hold at once, at least 1.

    Parameters
    ----------
    device
        8 GiB on CUDA, 2 GiB on MPS, 1 GiB on a host.
    bytes_per_position
        Size of the keys and values of one position in all layers.
    """
    capacity = _CACHE_BYTES.get(device.type, _CACHE_BYTES["cpu"])
    return max(1, capacity // max(1, bytes_per_position))
