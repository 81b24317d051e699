"""The runs that have results: their names, the globs that mean them, and the seeds in their names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pythia_dynamics.checkpoints.registry import aliases, names_of_aliases, resolve
from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.results.folder import results_directory

__all__ = ["RunName", "Seed", "find_runs", "measured_models", "seed_of"]

_SEED = re.compile(r"(?P<family>.+?)-(?:(?P<kind>data|weight)-)?seed[-_]?(?P<number>\d+)(?P<rest>(?:-.+)?)")
"""The name of a run that is one of several seeds: PolyPythias, ``train --seeds``, MultiBERTs."""


@dataclass(frozen=True)
class Seed:
    """What the name of a run says of its seed.

    Parameters
    ----------
    family
        The name without the seed: runs of one family differ in the seed only.
    kind
        What is random: ``seed`` (the initial weights and the order of the data), ``data``, ``weight``; empty where the
        name has no seed.
    number
        The seed; NaN where the name has none.
    """

    family: str
    kind: str
    number: float


def seed_of(name: str) -> Seed:
    """The seed in the name of a run.

    Parameters
    ----------
    name
        Name of a store or of a folder of results: ``pythia-160m-data-seed1``, ``tiny-seed0``.
    """
    found = _SEED.fullmatch(name)
    if found is None:
        return Seed(name, "", np.nan)
    return Seed(found["family"] + found["rest"], found["kind"] or "seed", float(found["number"]))


def measured_models(results: Path | str | None = None) -> tuple[str, ...]:
    """The names of the models that have results, sorted.

    Parameters
    ----------
    results
        The directory of all results; see `results_directory`.
    """
    root = results_directory(results)
    found = [*root.glob("*/provenance.json"), *(path.parent for path in root.glob("*/*/provenance.json"))]
    return tuple(sorted({path.parent.name for path in found}))


@dataclass(frozen=True)
class RunName:
    """A run that a name or a glob means.

    Parameters
    ----------
    name
        Name of its folder of results, which need not be there.
    typed
        How a command names it.
    is_named
        Whether it was named, rather than matched by a glob.
    """

    name: str
    typed: str
    is_named: bool


def find_runs(patterns: Sequence[str | Path], results: Path | str | None = None) -> tuple[RunName, ...]:
    """The runs that names and globs mean, each once; those of a glob in the order of their numbers.

    Parameters
    ----------
    patterns
        Names of folders of results, whatever `resolve` takes, and globs. A glob means the folders that it matches;
        where it matches none, the models whose aliases it matches.
    results
        The directory of all results; see `results_directory`.

    Raises
    ------
    UnknownNameError
        A name or a glob means nothing; the message names the nearest runs.
    CheckpointError
        As `resolve`.
    """
    root = results_directory(results)
    known = measured_models(root)
    found: dict[str, RunName] = {}
    for given in patterns:
        text = str(given)
        if not any(character in text for character in "*?[") or Path(text).exists():
            name = _name_of(text, known, root)
            found[name] = RunName(name, text, is_named=True)
            continue
        matched = {name: name for name in fnmatch.filter(known, text)}
        matched = matched or names_of_aliases(text)
        if not matched:
            raise UnknownNameError("run", text, (*known, *aliases()), where=str(root))
        for name in sorted(matched, key=_by_number):
            found.setdefault(name, RunName(name, matched[name], is_named=False))
    return tuple(found.values())


def _by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts seed 10 after seed 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _name_of(text: str, known: Sequence[str], root: Path) -> str:
    """The name of the folder that one name means; it need not have results."""
    if text in known:
        return text
    try:
        return resolve(text, known=known).name
    except UnknownNameError:
        raise UnknownNameError("run", text, (*known, *aliases()), where=str(root)) from None
