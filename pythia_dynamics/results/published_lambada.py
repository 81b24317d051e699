"""EleutherAI's own last-word perplexities of Pythia on LAMBADA, to draw ours over."""

from __future__ import annotations

import csv
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.errors import UnknownNameError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SOURCE", "SUSPECT", "published_lambada", "published_models"]

SOURCE = "EleutherAI/pythia, evals/pythia-v1: lambada_openai, zero-shot, whole test set (5,153 passages)"

SUSPECT = {"pythia-2.8b-deduped": 43_000}
"""Model → last step whose values are not believed: up to there they repeat those of pythia-2.8b."""

_COLUMNS = ("ppl", "ppl_stderr", "accuracy", "accuracy_stderr")
_HEADINGS = ("ppl", "ppl_stderr", "acc", "acc_stderr")


def published_models() -> tuple[str, ...]:
    """The models of the table, by the last part of their repository id."""
    return tuple(dict.fromkeys(row["model"] for row in _table()))


def published_lambada(name: str) -> xr.Dataset:
    """The published points of a model (``pythia-70m-deduped``; its repository id will do) over `step`.

    Variables ``ppl`` and ``accuracy`` as in ``perplexity-last-word.csv``, their standard errors, and ``suspect``: do
    not draw such points as evidence. Raises `UnknownNameError` for a model that is not in the table.
    """
    import xarray as xr

    model = name.rpartition("/")[2]
    rows = sorted((row for row in _table() if row["model"] == model), key=lambda row: int(row["step"]))
    if not rows:
        raise UnknownNameError("published model", name, published_models())
    steps = np.array([int(row["step"]) for row in rows], np.int64)
    variables = {
        column: ("step", np.array([float(row[heading]) for row in rows]), {"units": "1"})
        for column, heading in zip(_COLUMNS, _HEADINGS, strict=True)
    }
    suspect = {"suspect": ("step", steps <= SUSPECT.get(model, -1))}
    return xr.Dataset({**variables, **suspect}, {"step": steps}, {"model": model, "source": SOURCE})


def _table() -> list[dict[str, str]]:
    file = resources.files("pythia_dynamics") / "data" / "published_lambada.csv"
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))
