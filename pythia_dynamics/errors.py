"""Every error a user can cause or meet, as one tree.

The message of each is one line that says what is wrong and what to do; the command line prints it after
``pythia-dyn: `` and exits with status 1. Anything that is not a `PythiaDynError` is a defect of ours.
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
    "listed",
    "nearest",
    "optional_import",
]


class PythiaDynError(Exception):
    """Head of the tree: the work could not be done, and the message says why in one line."""


class UnknownNameError(PythiaDynError, LookupError):
    """A model, tensor, step or option value that is not known; names the nearest ones that are."""

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
    """A file that is not what it claims to be, or a layout that is deliberately not read."""


class CheckpointError(PythiaDynError):
    """A checkpoint, or a directory of them, that is missing or lacks what was asked of it."""


class HubError(PythiaDynError):
    """The Hub could not be reached, refused, or answered with something else than what was asked."""


class StoreError(PythiaDynError):
    """A weight store that is missing, foreign, or cannot be written."""


class IntegrityError(StoreError):
    """Bytes in the store that do not match their checksum."""


class NonFiniteError(PythiaDynError):
    """NaN or infinity where a finite number is needed to go on at all."""


class CorpusError(PythiaDynError):
    """An evaluation or training text that cannot be had or is too short."""


def nearest(name: object, known: Iterable[object], count: int = 3) -> list[str]:
    """Up to `count` of the `known` names that look like `name`, best first.

    Numbers are compared by distance, everything else by spelling.
    """
    candidates = [str(item) for item in known]
    text = str(name)
    if text.lstrip("-").isdigit() and candidates and all(c.lstrip("-").isdigit() for c in candidates):
        return sorted(candidates, key=lambda c: (abs(int(c) - int(text)), int(c)))[:count]
    by_lower = {c.lower(): c for c in candidates}
    close = difflib.get_close_matches(text.lower(), list(by_lower), n=count, cutoff=0.5)
    within = [c for c in by_lower if text.lower() in c and c not in close] if len(text) > 2 else []
    return [by_lower[c] for c in (close + within)[:count]]


def listed(steps: Sequence[int]) -> str:
    """Steps as a message names them: all of a few, the first ones and the last of many."""
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
