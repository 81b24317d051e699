"""One self-contained HTML page from saved results."""

from __future__ import annotations

__all__: list[str] = []
