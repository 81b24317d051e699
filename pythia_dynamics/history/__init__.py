"""The weight store, and the history of a tensor that is read from it."""

from __future__ import annotations

__all__: list[str] = []
