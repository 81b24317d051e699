"""The learning rate that a directory of checkpoints states: in ``suite.json``, or in a ``trainer_state.json``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.learning_rate import (
    LearningRate,
    LoggedLearningRate,
    read_learning_rate,
    schedule_from_values,
)
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.tables import read_json

__all__ = ["SUITE_FILE", "TRAINER_STATE", "stated_learning_rate"]

SUITE_FILE = "suite.json"
"""File in which ``pythia-dyn train`` describes a suite; its key ``learning_rate`` has the schedule."""

TRAINER_STATE = "trainer_state.json"
"""File of a checkpoint in which the Trainer of transformers keeps its log, with all earlier steps."""


def stated_learning_rate(
    directory: Path | str, revisions: Mapping[int, Revision]
) -> LearningRate | LoggedLearningRate | None:
    """The learning rate that a directory of checkpoints states; None where it states none.

    Parameters
    ----------
    directory
        The directory. Its ``suite.json`` goes before the ``trainer_state.json`` of the last checkpoint that has one.
    revisions
        Its checkpoints by step.

    Warns
    -----
    UserWarning
        A ``trainer_state.json`` is damaged; the learning rate is then not known.
    """
    directory = Path(directory)
    if (schedule := _of_suite(directory / SUITE_FILE)) is not None:
        return schedule
    for step in sorted(revisions, reverse=True):
        revision = revisions[step]
        path = directory / revision.folder / TRAINER_STATE
        if revision.file or not path.is_file():
            continue
        try:
            return read_learning_rate(path, f"{TRAINER_STATE} of {Path(revision.folder).name}")
        except PythiaDynError as error:
            if _has_log(path):  # else no learning rate was logged before this checkpoint
                warnings.warn(f"the learning rate is not known: {error}", stacklevel=2)
            return None
    return None


def _of_suite(path: Path) -> LearningRate | LoggedLearningRate | None:
    """The schedule in a ``suite.json``; None where there is none. Other programs may write files of this name."""
    values = _content(path).get("learning_rate")
    if not isinstance(values, dict):
        return None
    try:
        return schedule_from_values({**values, "origin": f"{SUITE_FILE} of {path.parent.name}"})
    except PythiaDynError:
        return None


def _has_log(path: Path) -> bool:
    """Whether a ``trainer_state.json`` is damaged, or has a learning rate in its log. One without a log states none."""
    content = _content(path)
    log = content.get("log_history", [] if content else None)
    return not isinstance(log, list) or any("learning_rate" in row for row in log if isinstance(row, dict))


def _content(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        content = read_json(path) if path.is_file() else {}  # reading a pipe would wait for its writer
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
