"""The claims of both works, each with its test."""

from __future__ import annotations

__all__: list[str] = []
