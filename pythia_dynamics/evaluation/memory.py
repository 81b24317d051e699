"""Memory of the device that a model is evaluated on: what fits, when it does not, and how to free it."""

from __future__ import annotations

import torch

__all__ = ["cached_positions_budget", "free_cached_memory", "is_out_of_memory"]

_HOST_CACHE_BYTES = 1 << 30
"""Memory of the key-value cache on a host, where free memory is not known to torch: small beside the memory of any
machine that holds the model, and room for 6 passages of 80 tokens, with all their prefixes, of a 70m in float32."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a smaller batch may fit.

    CUDA raises `torch.OutOfMemoryError`; the allocators of the CPU and of MPS raise a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "out of memory" in text)


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
        On CUDA half of the free memory is used: the other half is left to activations and logits. Elsewhere 1 GiB.
    bytes_per_position
        Size of the keys and values of one position in all layers.
    """
    capacity = _HOST_CACHE_BYTES
    if device.type == "cuda":
        capacity = torch.cuda.mem_get_info(device)[0] // 2
    return max(1, capacity // max(1, bytes_per_position))
