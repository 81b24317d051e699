"""Open the source of a model: the Hub, or a directory of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import Source

__all__ = ["HUB", "REGISTRY", "SourceName", "open_source"]

SourceName = Literal["hub", "registry"]
"""The sources that have a name; every other source is a directory of checkpoints."""

HUB: SourceName = "hub"
"""The Hugging Face Hub."""

REGISTRY: SourceName = "registry"
"""The shapes in `pythia_dynamics.checkpoints.registry`, without network: for `preview` only."""


def open_source(model: Model, source: SourceName | str = HUB) -> Source:
    """The source of a model: the Hub, or the directory that `model` or `source` names.

    Parameters
    ----------
    model
        The model; where it is a directory, `source` is not used.
    source
        ``"hub"``, or the path of a directory that holds the model's checkpoints.

    Raises
    ------
    AccessError
        When the model is not a directory and no repository id.
    CheckpointError
        When there is no such directory.
    """
    if source == HUB and not model.is_local:
        return HubSource(model.location, name=model.name, suite=model.suite)
    place = model.location if model.is_local else source
    # In a directory, branches and tags have become folders.
    references = tuple(kind for kind in model.suite.references if kind in ("folder", "file")) or ("folder", "file")
    return LocalSource(place, name=model.name, suite=replace(model.suite, references=references))
