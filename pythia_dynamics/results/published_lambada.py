"""Last-word perplexities of Pythia on LAMBADA, as EleutherAI published them, to compare ours with."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.tables import read_csv

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LAST_SUSPECT_STEP", "SOURCE", "published_lambada", "published_models"]

SOURCE = "EleutherAI/pythia, evals/pythia-v1: lambada_openai, zero-shot, whole test set (5,153 passages)"

LAST_SUSPECT_STEP = {"pythia-2.8b-deduped": 43_000}
"""Last step of each model whose values cannot be right: up to it they repeat those of pythia-2.8b."""

_VARIABLES = {"ppl": "ppl", "ppl_stderr": "ppl_stderr", "accuracy": "acc", "accuracy_stderr": "acc_stderr"}
"""Variable of the dataset → column of the table."""


def published_models() -> tuple[str, ...]:
    """The models of the table, by the last part of their repository id."""
    return tuple(dict.fromkeys(row["model"] for row in _table()))


def published_lambada(name: str) -> xr.Dataset:
    """The published values of a model.

    Parameters
    ----------
    name
        ``pythia-70m-deduped``, or its repository id.

    Returns
    -------
    xarray.Dataset
        Over `step`: ``ppl`` and ``accuracy`` as in ``perplexity-last-word.csv``, their standard errors ``ppl_stderr``
        and ``accuracy_stderr``, and the flag ``suspect`` of values that are no evidence (see `LAST_SUSPECT_STEP`).

    Raises
    ------
    UnknownNameError
        For a model that is not in the table.
    """
    import xarray as xr

    model = name.rpartition("/")[2]
    rows = sorted((row for row in _table() if row["model"] == model), key=lambda row: int(row["step"]))
    if not rows:
        raise UnknownNameError("published model", name, published_models())
    steps = np.array([int(row["step"]) for row in rows], np.int64)
    variables = {
        name: ("step", np.array([float(row[column]) for row in rows]), {"units": "1"})
        for name, column in _VARIABLES.items()
    }
    suspect = {"suspect": ("step", steps <= LAST_SUSPECT_STEP.get(model, -1))}
    return xr.Dataset({**variables, **suspect}, {"step": steps}, {"model": model, "source": SOURCE})


def _table() -> list[dict[str, str]]:
    with resources.as_file(resources.files("pythia_dynamics") / "data" / "published_lambada.csv") as path:
        return read_csv(path)
