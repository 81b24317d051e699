"""How long work tells its caller how far it is. Computing code never prints; the command line draws the bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["Progress", "Stage", "silent"]

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)``, from the calling thread, in units the function's docstring names."""


def silent(done: int, total: int) -> None:
    """Report nothing."""


Stage = Callable[[str, str], AbstractContextManager[Progress]]
"""Called with a label and a unit when a stage begins; gives the progress of that stage."""
