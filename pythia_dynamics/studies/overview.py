"""The overview of all tensors of a model: the table, the figure, and what is told of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pythia_dynamics.figures.axis import AxisKind, along, saved_axis
from pythia_dynamics.figures.layers import SHOWN, overview_figure
from pythia_dynamics.figures.specs import save_figures
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.overview import PREFIX, overview_table, write_overview
from pythia_dynamics.studies.pipeline import Outcome
from pythia_dynamics.sweep.dataset import ends

__all__ = ["save_overview"]


def save_overview(results: Results, measure: str, *, axis: AxisKind = "step") -> Outcome:
    """Write ``overview-<measure>.csv`` and its figure, of all tensors of a model that have results of the measure.

    Parameters
    ----------
    results
        The results of the model.
    measure
        The measure.
    axis
        The x axis of the figure.

    Returns
    -------
    Outcome
        The number of tensors, and between which values the shown column is at the last step.

    Raises
    ------
    PythiaDynError
        As `pythia_dynamics.results.overview.overview` and `saved_axis` do.
    """
    path, dataset = write_overview(results, measure)
    results.model.record(f"{PREFIX}{measure}", {"measure": measure, "tensors": dataset.sizes["tensor"]})
    spec = overview_figure(results, measure, dataset)
    drawn = save_figures(along([spec], saved_axis(results.model, axis)))
    _, table = overview_table(measure)
    variable = SHOWN[measure][0] if measure in SHOWN else next(name for name in table.columns if name != "step")
    last = {str(curve["tensor"].item()): ends(curve)[1] for curve in dataset[variable]}
    known = {tensor: value for tensor, value in last.items() if np.isfinite(value)}
    facts: dict[str, Any] = {"tensors": dataset.sizes["tensor"], "variable": variable}
    summary = f"{dataset.sizes['tensor']} tensors side by side"
    if known:
        extremes = {"least": min(known, key=known.__getitem__), "most": max(known, key=known.__getitem__)}
        facts |= {name: {"tensor": tensor, "value": known[tensor]} for name, tensor in extremes.items()}
        summary += f"; {variable.replace('_', ' ')} at the end from " + " to ".join(
            f"{known[tensor]:.3g} ({tensor})" for tensor in extremes.values()
        )
    return Outcome(f"{PREFIX}{measure}", (path, *drawn), summary, facts)
