"""Types of the callbacks that report progress. The library does not print; the command line shows a bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["Progress", "Stage", "silent"]

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` from the calling thread. The docstring of the caller gives the unit."""


def silent(done: int, total: int) -> None:
    """Do not report: the default of every `progress` parameter."""


Stage = Callable[[str, str], AbstractContextManager[Progress]]
"""Called as ``stage(label, unit)`` at the start of a stage. The context yields the progress callback of that stage."""
