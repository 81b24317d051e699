"""The result files of the representation beside its table, which the evaluation writes."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pythia_dynamics.figures.representation import representation_figure
from pythia_dynamics.figures.specs import save_figures
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import Outcome
from pythia_dynamics.sweep.dataset import ends, format_ends

__all__ = ["draw_representation"]

_TOLD = {
    "anisotropy": "anisotropy",
    "rankme": "RankMe",
    "effective_rank": "effective rank",
    "alpha": "α",
    "kl_unigram": "KL(unigram ‖ model)",
    "kl_bigram": "KL(bigram ‖ model)",
}


def draw_representation(results: Results, dataset: xr.Dataset) -> Outcome:
    """Draw the figure of the representation and record its provenance.

    Parameters
    ----------
    results
        The results of the model, with the table.
    dataset
        The result of `pythia_dynamics.representation`.
    """
    files = [results.path / "representation.csv", *save_figures([representation_figure(results)])]
    results.record("representation", dataset.attrs)
    facts = {name: ends(dataset[name]) for name in _TOLD}
    summary = ", ".join(f"{words} {format_ends(facts[name])}" for name, words in _TOLD.items())
    nonfinite = int(np.nansum(dataset["nonfinite"].to_numpy()))
    summary += f"; {nonfinite} states over all steps are not finite" if nonfinite else ""
    width, positions = dataset.sizes["component"], int(np.nanmin(dataset["positions"]))
    if positions <= width:
        summary += f"; {positions} positions in {width} dimensions: no rank can be more than {positions}"
    sizes = {"positions": positions, "dimensions": width, "nonfinite": nonfinite}
    return Outcome("representation", tuple(files), summary, {**facts, **sizes, "missing": dataset.attrs["missing"]})
