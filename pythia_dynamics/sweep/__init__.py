"""Sums over all weights of a history in one pass, and one Gram matrix per step."""

from __future__ import annotations

__all__: list[str] = []
