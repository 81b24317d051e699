"""The exceptions of the package, and functions for the text of their messages.

A message is one line that says what is wrong and what to do. The command line prints it after ``pythia-dyn: `` and
exits with status 1. Any other exception is a defect of this package, except an `OSError` of a file that is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = [
    "CheckpointError",
    "CorpusError",
    "FormatError",
    "HubError",
    "IntegrityError",
    "NonFiniteError",
    "PythiaDynError",
    "StoreError",
    "UnknownNameError",
    "first_line",
    "listed",
    "nearest",
    "optional_import",
    "size",
]


class PythiaDynError(Exception):
    """Base class of all errors of this package. The message gives the reason in one line.

    Names in a message may come from a damaged file: `str` shows characters that do not print, a line feed among them,
    as their escapes. An error is pickled with its attributes, for the processes of an executor.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # Without `__init__`, whose parameters are not `args` in every class.
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[PythiaDynError], args: tuple[Any, ...]) -> PythiaDynError:
    """An error of this class with these arguments, made without its `__init__`."""
    return kind.__new__(kind, *args)


class UnknownNameError(PythiaDynError, LookupError):
    """A model, tensor, step or option that is not known. The message lists similar names that are known.

    Parameters
    ----------
    kind
        What the name is of, as a word of the message: ``model``, ``tensor``, ``step``.
    name
        The name that is not known.
    known
        The known names. The message suggests those similar to `name`, or lists the first six.
    where
        Where the name was searched (a store, a revision); empty if that is clear.
    """

    def __init__(self, kind: str, name: object, known: Iterable[object], *, where: str = "") -> None:
        self.kind, self.name = kind, name
        candidates = [str(item) for item in known]
        similar = nearest(name, candidates)
        place = f" in {where}" if where else ""
        if similar:
            hint = f"did you mean {' or '.join(similar)}?"
        elif candidates:
            shown = ", ".join(candidates[:6]) + (", …" if len(candidates) > 6 else "")
            hint = f"known: {shown}"
        else:
            hint = "none is known"
        super().__init__(f"no {kind} {name!r}{place}; {hint}")


class FormatError(PythiaDynError):
    """A file that is damaged, does not have the format of its name, or has a layout that is not supported."""


class CheckpointError(PythiaDynError):
    """A checkpoint, or a directory of them, that is missing or lacks the requested tensor or file."""


class HubError(PythiaDynError):
    """The Hub could not be reached, refused the request, or returned a wrong answer."""


class StoreError(PythiaDynError):
    """A weight store that is missing or was not written by this package, or any file that cannot be written."""


class IntegrityError(StoreError):
    """Bytes in the store that do not match their checksum or length."""


class NonFiniteError(PythiaDynError):
    """NaN or infinity where a finite number is necessary."""


class CorpusError(PythiaDynError):
    """An evaluation or training text that is not available or is too short."""


def nearest(name: object, known: Iterable[object], count: int = 3) -> list[str]:
    """The known names that are similar to `name`, best first.

    Parameters
    ----------
    name
        The name, or number, that was not found.
    known
        The candidates. If `name` and all candidates are integers, they are compared by difference, else by spelling.
    count
        Largest number of names to return. Three fit into a message of one line.

    Returns
    -------
    list of str
        Names from `known`; empty if none is similar.
    """
    candidates = [str(item) for item in known]
    text = str(name)
    if text.lstrip("-").isdigit() and candidates and all(c.lstrip("-").isdigit() for c in candidates):
        return sorted(candidates, key=lambda c: (abs(int(c) - int(text)), int(c)))[:count]
    by_lower = {c.lower(): c for c in candidates}
    close = difflib.get_close_matches(text.lower(), list(by_lower), n=count, cutoff=0.5)
    containing = [c for c in by_lower if text.lower() in c and c not in close] if len(text) > 2 else []
    return [by_lower[c] for c in (close + containing)[:count]]


def first_line(error: BaseException) -> str:
    """The first line of the message of an exception of another library, or the name of its class without a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(steps: Sequence[int]) -> str:
    """Steps as text for a message: ``steps 1, 2, 4``, or ``143 steps (1000, 2000, 3000, 4000 … 143000)``.

    Parameters
    ----------
    steps
        Step numbers, in the order of the text. Up to six are written out, which fit into a line.
    """
    noun = "step" if len(steps) == 1 else "steps"
    if len(steps) <= 6:
        return f"{noun} {', '.join(map(str, steps))}"
    return f"{len(steps)} steps ({', '.join(map(str, steps[:4]))} … {steps[-1]})"


@contextmanager
def optional_import(purpose: str, extra: str) -> Iterator[None]:
    """Convert the error for a missing optional dependency into one line with the extra to install.

    Imports of libraries that only an extra installs are made inside this context.

    Parameters
    ----------
    purpose : str
        What needs the library; the message begins with it. For instance ``"pythia-dyn report"``.
    extra : str
        The extra of pyproject.toml that installs it.

    Raises
    ------
    PythiaDynError
        A module that the ``with`` block imports is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{purpose} needs {error.name}: pip install 'pythia-dynamics[{extra}]'"
        raise PythiaDynError(message) from error


def size(count: float) -> str:
    """A number of bytes as text, in decimal units: ``512 B``, ``19.3 MB``.

    Parameters
    ----------
    count
        Number of bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
