"""Suites whose weights are random bytes: enough for what compares files by checksum and size, and fast to make."""

from __future__ import annotations

import random
from collections.abc import Iterable

__all__ = ["SAFETENSORS", "TORCH", "run", "weights"]

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"


def weights(content: object, size: int = 256) -> bytes:
    """Bytes that stand for weights, the same for the same content."""
    return random.Random(str(content)).randbytes(size)


def run(steps: Iterable[int], *names: str, seed: object = 0) -> dict[str, dict[str, bytes]]:
    """Branch → files of a run without defects: files of these names, safetensors alone by default."""
    return {f"step{step}": {name: weights((seed, step, name)) for name in names or (SAFETENSORS,)} for step in steps}
