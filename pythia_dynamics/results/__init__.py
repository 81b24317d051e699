"""The results folder of a model: tables, arrays, provenance; and what others have published."""

from __future__ import annotations

__all__: list[str] = []
