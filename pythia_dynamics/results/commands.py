"""Commands as they were typed, for the provenance of what they write.

While the command line runs a command, `running` holds its words, and `Results.record` writes them into the provenance
(``command``). They have every option and every path, and work again in the same directory, and in a copy of it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

__all__ = ["running", "steps_option", "typed_command"]


@dataclass(frozen=True)
class _Typed:
    """The words of a command after the name of the program, and whether it takes models and was given none."""

    words: tuple[str, ...]
    lacks_model: bool


_running: ContextVar[_Typed | None] = ContextVar("running", default=None)


@contextmanager
def running(words: Iterable[str], *, lacks_model: bool) -> Iterator[None]:
    """Record a command with each result that is written in this block.

    Parameters
    ----------
    words
        The command and its arguments, without the name of the program.
    lacks_model
        Whether it takes models and was given none, so that it works on all of them. The command of one result then
        names its model.
    """
    before = _running.set(_Typed(tuple(map(_portable, words)), lacks_model))
    try:
        yield
    finally:
        _running.reset(before)


def typed_command(model: str | None = None) -> str | None:
    """The command that runs, as a line for a shell; None outside the command line.

    Parameters
    ----------
    model
        The model of a result. It is added to a command that was given no model. Default: the command as it was given.
    """
    typed = _running.get()
    if typed is None:
        return None
    named = ("--model", model) if model is not None and typed.lacks_model else ()
    return shlex.join(["pythia-dyn", *typed.words, *named])


def _portable(word: str) -> str:
    """A word of a command, in which a path inside the working directory is relative, also after ``--option=``."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_inside = Path(value).is_absolute() and Path(value).is_relative_to(Path.cwd())
    return f"{option}{equals}{os.path.relpath(value)}" if is_inside else word


def steps_option(steps: Sequence[int]) -> str:
    """The option ``--steps`` for some steps, with a space before it: `` --steps 0,1,2,4,1000:143000:1000``.

    Parameters
    ----------
    steps
        The steps in increasing order, at least one.
    """
    parts: list[str] = []
    at = 0
    while at < len(steps):
        end = at + 1  # the last step of the longest even range that begins here
        while end + 1 < len(steps) and steps[end + 1] - steps[end] == steps[at + 1] - steps[at]:
            end += 1
        if end - at >= 2 and end < len(steps):
            parts.append(f"{steps[at]}:{steps[end]}:{steps[at + 1] - steps[at]}")
            at = end + 1
        else:
            parts.append(str(steps[at]))
            at += 1
    return f" --steps {','.join(parts)}"
