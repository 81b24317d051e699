"""Figures of the alignment of embedding and unembedding."""

from __future__ import annotations

from functools import partial

import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.figures.specs import FigureSpec, each_panel, from_to
from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis
from pythia_dynamics.measures.alignment import TABLE
from pythia_dynamics.results.folder import Results

__all__ = ["alignment_figure", "row_cosine", "row_similarity"]


@of_a_result
def row_cosine(ax: Axes, result: xr.Dataset) -> None:
    """The mean cosine of the two rows of a token; dashed, of different tokens, with ± 2 standard deviations.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.alignment`, or the table ``alignment.csv``.
    """
    null, band = result["cosine_null"], 2 * result["cosine_null_sd"]
    ax.plot(result["step"], result["cosine"], color=COLOURS[0], label="same token")
    ax.plot(result["step"], null, "--", color=COLOURS[0], linewidth=1, label="permuted tokens")
    ax.fill_between(result["step"], null - band, null + band, color=COLOURS[0], alpha=0.25, linewidth=0)
    step_axis(ax, "mean cosine of embedding and unembedding", legend=True)


@of_a_result
def row_similarity(ax: Axes, result: xr.Dataset) -> None:
    """Linear CKA of embedding and unembedding (Kornblith et al. 2019); dashed, its mean for permuted tokens.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `row_cosine`.
    """
    ax.plot(result["step"], result["cka"], color=COLOURS[0], label="measured")
    ax.plot(result["step"], result["cka_null"], "--", color=COLOURS[0], linewidth=1, label="permuted tokens")
    ax.set_ylim(bottom=0)
    step_axis(ax, "linear CKA", legend=True)


def alignment_figure(results: Results) -> FigureSpec:
    """The figure of ``alignment.csv``.

    Parameters
    ----------
    results
        The results of the model.

    Raises
    ------
    PythiaDynError
        Where there is no such table.
    """
    table = results.model.read_table("alignment", TABLE)
    caption = (
        f"Cosine of the rows that embedding and unembedding have for a token, {from_to(table['cosine'], '.2g')}, and "
        f"linear CKA of the two, {from_to(table['cka'], '.2g')}. Dashed, for permuted tokens."
    )
    draw = each_panel([partial(each, result=table) for each in (row_cosine, row_similarity)], choose_scale=True)
    title = "Alignment of embedding and unembedding"
    return FigureSpec(results.model.path / "alignment", title, caption, draw, columns=2, name=results.name)
