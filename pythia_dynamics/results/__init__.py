"""The results folder of a model: tables, arrays, provenance. Published values of other authors, for comparison."""

from __future__ import annotations

__all__: list[str] = []
