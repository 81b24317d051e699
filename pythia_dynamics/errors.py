"""Every error a user can cause, as one tree, and the wording that messages share.

A message is one line that says what is wrong and what to do. The command line prints it after ``pythia-dyn: `` and
exits with status 1. Any other exception is a defect of this package, except an `OSError` of the user's disk.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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
    """Base class: the work could not be done, and the message says why in one line."""


class UnknownNameError(PythiaDynError, LookupError):
    """A model, tensor, step or option that is not known; the message names the nearest ones that are.

    Parameters
    ----------
    kind
        What the name stands for, as the message says it: ``model``, ``tensor``, ``step``.
    name
        The name that is not known.
    known
        The names that are. The message suggests those that look like `name`, or lists the first six.
    where
        Where the name was looked up (a store, a revision); empty where that is clear.
    """

    def __init__(self, kind: str, name: object, known: Iterable[object], *, where: str = "") -> None:
        self.kind, self.name = kind, name
        candidates = [str(item) for item in known]
        near = nearest(name, candidates)
        place = f" in {where}" if where else ""
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif candidates:
            shown = ", ".join(candidates[:6]) + (", …" if len(candidates) > 6 else "")
            hint = f"known: {shown}"
        else:
            hint = "none is known"
        super().__init__(f"no {kind} {name!r}{place}; {hint}")


class FormatError(PythiaDynError):
    """A file that is damaged, is not of its stated format, or has a layout that is not supported."""


class CheckpointError(PythiaDynError):
    """A checkpoint, or a directory of them, that is missing or lacks the requested tensor or file."""


class HubError(PythiaDynError):
    """The Hub could not be reached, refused the request, or returned a wrong answer."""


class StoreError(PythiaDynError):
    """A weight store that is missing, was not written by this package, or cannot be written."""


class IntegrityError(StoreError):
    """Bytes in the store that do not match their checksum."""


class NonFiniteError(PythiaDynError):
    """NaN or infinity where only a finite number can be used."""


class CorpusError(PythiaDynError):
    """An evaluation or training text that is not available or is too short."""


def nearest(name: object, known: Iterable[object], count: int = 3) -> list[str]:
    """The known names that look like `name`, best first.

    Parameters
    ----------
    name
        The name, or number, that was not found.
    known
        The candidates. If all of them and `name` are integers, they are compared by distance, else by spelling.
    count
        How many to return at most.

    Returns
    -------
    list of str
        Names from `known`; empty when none is similar.
    """
    candidates = [str(item) for item in known]
    text = str(name)
    if text.lstrip("-").isdigit() and candidates and all(c.lstrip("-").isdigit() for c in candidates):
        return sorted(candidates, key=lambda c: (abs(int(c) - int(text)), int(c)))[:count]
    by_lower = {c.lower(): c for c in candidates}
    close = difflib.get_close_matches(text.lower(), list(by_lower), n=count, cutoff=0.5)
    within = [c for c in by_lower if text.lower() in c and c not in close] if len(text) > 2 else []
    return [by_lower[c] for c in (close + within)[:count]]


def first_line(error: BaseException) -> str:
    """The first line of the message of an `error` of another library, or the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def listed(steps: Sequence[int]) -> str:
    """Steps as a message names them: ``steps 1, 2, 4``, or ``143 steps (1000, 2000, 3000, 4000 … 143000)``.

    Parameters
    ----------
    steps
        Step numbers, in the order in which they are named. Up to six are written out.
    """
    noun = "step" if len(steps) == 1 else "steps"
    if len(steps) <= 6:
        return f"{noun} {', '.join(map(str, steps))}"
    return f"{len(steps)} steps ({', '.join(map(str, steps[:4]))} … {steps[-1]})"


@contextmanager
def optional_import(purpose: str, extra: str) -> Iterator[None]:
    """Turn the absence of an optional dependency into one line that names the extra to install.

    Import statements of libraries that only an extra installs stand inside this context.

    Parameters
    ----------
    purpose : str
        What needs the library, as the message begins: a command (``"pythia-dyn report"``) or a subject.
    extra : str
        The extra of pyproject.toml that installs it.

    Raises
    ------
    PythiaDynError
        A module that the block imports is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f"{purpose} needs {error.name}: pip install 'pythia-dynamics[{extra}]'"
        raise PythiaDynError(message) from error


def size(count: float) -> str:
    """A number of bytes as a message states it, in decimal units: ``512 B``, ``19.3 MB``.

    Parameters
    ----------
    count
        Bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
