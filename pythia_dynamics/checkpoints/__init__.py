"""Which suites of checkpoints there are, and where the bytes of a tensor lie, on the Hub or in a directory."""

from __future__ import annotations

__all__: list[str] = []
