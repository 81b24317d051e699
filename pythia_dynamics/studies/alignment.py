"""The result files of the alignment of embedding and unembedding."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pythia_dynamics.figures.alignment import alignment_figure
from pythia_dynamics.figures.specs import save_figures
from pythia_dynamics.measures.alignment import TABLE, summarise
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import Outcome
from pythia_dynamics.tables import plain

__all__ = ["write_alignment"]


def write_alignment(results: Results, dataset: xr.Dataset, rows: int | None = None) -> Outcome:
    """Write table, figure and provenance of an alignment into the folder of the model.

    Parameters
    ----------
    results
        The results of the model.
    dataset
        The result of `pythia_dynamics.alignment`.
    rows
        The rows that were used; None for all.
    """
    results = results.model
    path = results.write_table("alignment", TABLE, dataset)
    summary, found = summarise(dataset)
    facts = plain(found)
    attrs = {key: value for key, value in dataset.attrs.items() if key not in ("tensor", "roles")}
    attrs["unembedding"] = dataset.attrs["tensor"]  # neither of the two is *the* tensor of the folder
    steps = dataset["step"].to_numpy().astype(np.int64)
    results.record("alignment", {**attrs, "drop_padding": rows, "steps": steps, "summary": summary, "facts": facts})
    return Outcome("alignment", (path, *save_figures([alignment_figure(results)])), summary, facts)
