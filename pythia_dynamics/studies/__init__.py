"""Studies that combine the other rooms: the demo, the reproductions of both works, the pipeline to result files."""

from __future__ import annotations

__all__: list[str] = []
