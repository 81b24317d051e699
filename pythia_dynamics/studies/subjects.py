"""What a comparison is of: the notation ``MODEL[@STEP][:TENSOR]``, and the runs that give its noise floor."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import as_history, cached, open_history
from pythia_dynamics.history.history import History

__all__ = ["NO_FLOOR", "Side", "Subject", "floor_names", "open_side", "parse_subject"]

NO_FLOOR = "none"
"""As a pattern of runs: no noise floor."""

_ENDS = ("first", "last")

_STEP = re.compile(r"(?P<model>.+)@(?P<step>\d+|first|last)")

_TENSOR = re.compile(r"(?P<rest>.{2,}|[^A-Za-z]):(?P<tensor>[^:/\\@]+)|(?P<letter>[A-Za-z]):(?P<name>[^:/\\@]+)")
"""What follows the last colon is a tensor, unless it has a separator of a path: ``C:\\runs`` has no tensor. Names of
tensors have none, since they are folders of a store."""

_SEED = re.compile(r"(?P<family>.+?)-(?P<kind>(?:data-|weight-)?)seed-?\d+")
"""The name of a run that is one of several seeds: of PolyPythias, of ``train --seeds``, of a suite with seeds."""


@dataclass(frozen=True)
class Subject:
    """A run, a checkpoint, or one of their tensors, as it is named.

    Parameters
    ----------
    model
        Alias, repository, name in the cache, or directory of checkpoints.
    step
        The step of a checkpoint, ``first`` or ``last``; None for a run.
    tensor
        Name or role of the tensor; None for the unembedding.
    """

    model: str
    step: int | str | None = None
    tensor: str | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two that are compared.

    Parameters
    ----------
    history
        The weights of the run.
    step
        The step of a checkpoint; None for a run.
    """

    history: History
    step: int | None = None

    @property
    def label(self) -> str:
        """``MODEL[@STEP][:TENSOR]`` in full; without the tensor where it is the unembedding."""
        step = "" if self.step is None else f"@{self.step}"
        is_head = UNEMBEDDING in self.history.provenance.get("roles", ())
        return f"{self.history.name}{step}{'' if is_head else f':{self.history.tensor}'}"


def parse_subject(text: str, known: Iterable[str] = ()) -> Subject:
    """Read ``MODEL[@STEP][:TENSOR]``.

    The longest beginning that is a name in the cache or a directory is the model, so that names with ``@`` or ``:`` can
    be used. Without one, ``:TENSOR`` at the end and then ``@STEP`` are taken off. A step is a number, ``first`` or
    ``last``; ``@`` before anything else belongs to the name of the model, and so does a colon that a path follows.

    Parameters
    ----------
    text
        The notation.
    known
        Names in the cache.

    Raises
    ------
    PythiaDynError
        There is no model in it.
    """
    names = set(known)
    candidates = [Subject(text)]
    if found := _TENSOR.fullmatch(text):
        candidates.append(Subject(found["rest"] or found["letter"], None, found["tensor"] or found["name"]))
    for subject in tuple(candidates):
        if found := _STEP.fullmatch(subject.model):
            step = found["step"] if found["step"] in _ENDS else int(found["step"])
            candidates.append(Subject(found["model"], step, subject.tensor))
    candidates.sort(key=lambda subject: -len(subject.model))
    chosen = next((each for each in candidates if each.model in names or Path(each.model).is_dir()), candidates[-1])
    if not chosen.model.strip() or chosen.model[0] in ":@":
        raise PythiaDynError(f"cannot read {text!r}: give MODEL[@STEP][:TENSOR], such as 70m@1000:embedding")
    return chosen


def open_side(subject: Any, cache: Path | str | None = None) -> Side:
    """Open what is to be compared. No weights are read yet.

    Parameters
    ----------
    subject
        The notation of `parse_subject`; a `History`, which is a checkpoint if it has one step; or an array (T, …), as
        for `History.from_array`.
    cache
        Directory of the stores.

    Raises
    ------
    UnknownNameError
        There is no such model, tensor or step.
    PythiaDynError
        As `parse_subject` and `open_history`.
    """
    if not isinstance(subject, (str, Path)):
        history = as_history(subject)
        return Side(history, int(history.steps[0]) if len(history) == 1 else None)
    found = parse_subject(str(subject), cached(cache))
    history = open_history(found.model, found.tensor, cache=cache)
    if found.step is None:
        return Side(history)
    if not isinstance(found.step, int):
        present = history.steps[history.present]
        if not len(present):
            raise PythiaDynError(f"no step of {history.name} has weights")
        return Side(history, int(present[0 if found.step == "first" else -1]))
    history.at(found.step)  # an unknown or missing step is named here
    return Side(history, found.step)


def floor_names(
    first: str, second: str, known: Sequence[str], patterns: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:
    """The stored runs that give the noise floor, and the family of each.

    Parameters
    ----------
    first, second
        Names of the two models, which are left out: an effect in one of them must not become part of the floor.
    known
        Names in the cache.
    patterns
        Globs of names, with or without ``pythia-``; all that match are one family. Without any, the runs whose names
        are those of the first or the second model with another seed of the same kind (``-seed3``, ``-data-seed1``).

    Returns
    -------
    tuple of (str, str)
        Name and family. Only runs of one family are compared with one another.

    Raises
    ------
    UnknownNameError
        A pattern matches nothing.
    """
    if NO_FLOOR in patterns:
        return ()
    chosen: dict[str, str] = {}
    for pattern in patterns:
        short = {name.removeprefix("pythia-"): name for name in known}
        matches = [name for name in (*known, *short) if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise UnknownNameError("run in the cache", pattern, known)
        chosen |= {short.get(name, name): "" for name in matches}
    if not patterns:
        families = set()
        for name in (first, second):
            seed = _SEED.fullmatch(name)
            families.add((seed["family"], seed["kind"]) if seed else (name, ""))
        for name in known:
            seed = _SEED.fullmatch(name)
            if seed and (seed["family"], seed["kind"]) in families:
                chosen[name] = f"{seed['family']}-{seed['kind']}"
    return tuple((name, family) for name, family in chosen.items() if name not in (first, second))
