"""Compositions of the rooms below: the demo, the reproductions of both works, the pipeline from history to results."""

from __future__ import annotations

__all__: list[str] = []
