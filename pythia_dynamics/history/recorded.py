"""The source of a store and its suite, as the store records them: directories in a way that survives a copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.suite import GENERIC, Suite
from pythia_dynamics.files import portable
from pythia_dynamics.objects import ObjectPath, Place

__all__ = ["read_source", "recorded_place", "recorded_suite"]

_DIRECTORIES = ("config", "tokenizer")
"""Entries of a suite that may be a directory."""


def recorded_place(store: Place, place: str) -> str:
    """A directory, or another source, as a store records it: relative to the store in the same project.

    Parameters
    ----------
    store
        The store. One that is no directory records the place as it is.
    place
        The absolute path of a directory, or another name.
    """
    if isinstance(store, ObjectPath):
        return place
    return portable(place, store.parent, store.parent.resolve().parent)


def recorded_suite(store: Place, suite: Suite) -> dict[str, Any]:
    """A suite as a store records it, its directories like `recorded_place`. Parameters as there."""
    values = suite.as_json
    directories = [key for key in _DIRECTORIES if key in values and Path(values[key]).is_absolute()]
    values |= {key: recorded_place(store, values[key]) for key in directories}
    return values | ({"directories": directories} if directories else {})


def read_source(store: Place, attributes: Mapping[str, Any]) -> tuple[str, Suite]:
    """The source and the suite that a store has recorded.

    Parameters
    ----------
    store
        The store.
    attributes
        What its group says of them.
    """
    source, suite = str(attributes["source"]), dict(attributes.get("suite", {}))
    directories = suite.pop("directories", ())
    if isinstance(store, Path):
        source = str((store.parent / source).resolve()) if attributes.get("directory") else source
        suite |= {key: str((store.parent / suite[key]).resolve()) for key in directories}
    return source, GENERIC.changed(suite)
