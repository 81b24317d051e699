"""Suites of checkpoints, and the bytes of their tensors, on the Hub or in a directory."""

from __future__ import annotations

__all__: list[str] = []
