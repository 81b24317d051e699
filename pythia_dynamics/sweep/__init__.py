"""The engine: one pass over all weights of a history, and one Gram matrix per step."""

from __future__ import annotations

__all__: list[str] = []
