"""Types of the callbacks that report progress. Code that computes never prints; the command line draws the bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["Progress", "Stage", "silent"]

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` from the calling thread. The unit is in the docstring of the function that
reports."""


def silent(done: int, total: int) -> None:
    """Report nothing: the default of every `progress` parameter."""


Stage = Callable[[str, str], AbstractContextManager[Progress]]
"""Called as ``stage(label, unit)`` at the start of a stage; the context gives the progress callback of that stage."""
