"""Last-word perplexities of Pythia on LAMBADA as EleutherAI published them, for comparison with ours."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.tables import read_csv

__all__ = ["LAST_SUSPECT_STEP", "SOURCE", "SUSPECT_REASON", "published_lambada", "published_models"]

SOURCE = "EleutherAI/pythia, evals/pythia-v1: lambada_openai, zero-shot, whole test set (5,153 passages)"

LAST_SUSPECT_STEP = {"pythia-2.8b-deduped": 43_000}
"""Last step of each model up to which its values are wrong: they repeat those of pythia-2.8b to within 0.1 %."""

SUSPECT_REASON = (
    "they repeat those of pythia-2.8b to within 0.1 %; after step 43,000 the two still differ by 1.1 % at most, where "
    "the two models of any other size differ by up to 6 to 48 %"
)
"""Why the suspect values are no evidence, and what remains odd beside them."""

_OF_THE_HUB = {"pythia-1b": "pythia-1b-bf16"}
"""Names in the table by names of repositories, where they differ. The 1B model was trained in bfloat16."""

_VARIABLES = {"ppl": "ppl", "ppl_stderr": "ppl_stderr", "accuracy": "acc", "accuracy_stderr": "acc_stderr"}
"""Column of the table by variable of the dataset."""


def published_models() -> tuple[str, ...]:
    """The models of the table, by the last part of their repository id."""
    return tuple(dict.fromkeys(row["model"] for row in _table()))


def published_lambada(name: str) -> xr.Dataset:
    """The published values of a model.

    Parameters
    ----------
    name
        ``pythia-70m-deduped``, or its repository id. ``pythia-1b`` is ``pythia-1b-bf16`` in the table.

    Returns
    -------
    xarray.Dataset
        Over `step`: ``ppl`` and ``accuracy`` as in ``perplexity-last-word.csv``, their standard errors ``ppl_stderr``
        and ``accuracy_stderr``, and ``suspect``, true for values that are wrong (see `LAST_SUSPECT_STEP`).

    Raises
    ------
    UnknownNameError
        For a model that is not in the table.
    """
    model = name.rpartition("/")[2]
    model = _OF_THE_HUB.get(model, model)
    rows = sorted((row for row in _table() if row["model"] == model), key=lambda row: int(row["step"]))
    if not rows:
        raise UnknownNameError("published model", name, published_models())
    steps = np.array([int(row["step"]) for row in rows], np.int64)
    variables: dict[str, Any] = {
        name: ("step", np.array([float(row[column]) for row in rows]), {"units": "1"})
        for name, column in _VARIABLES.items()
    }
    variables["suspect"] = ("step", steps <= LAST_SUSPECT_STEP.get(model, -1))
    return xr.Dataset(variables, {"step": steps}, {"model": model, "source": SOURCE})


def _table() -> list[dict[str, str]]:
    """The rows of the published table."""
    with resources.as_file(resources.files("pythia_dynamics") / "data" / "published_lambada.csv") as path:
        return read_csv(path)
