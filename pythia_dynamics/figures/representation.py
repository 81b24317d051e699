"""Figures of the last hidden states."""

from __future__ import annotations

from functools import partial

import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.figures.specs import FigureSpec, each_panel, from_to
from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis
from pythia_dynamics.results.folder import Results

__all__ = ["anisotropy", "decay_exponent", "ngram_divergence", "representation_figure", "representation_rank"]

_NULL = "isotropic Gaussian"


@of_a_result
def anisotropy(ax: Axes, result: xr.Dataset) -> None:
    """The mean cosine of two hidden states; dashed, that of isotropic states, which is 0.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.representation`, or the table ``representation.csv``.
    """
    ax.plot(result["step"], result["anisotropy"], color=COLOURS[0], label="measured")
    ax.axhline(0, linestyle="--", color=COLOURS[0], linewidth=1, label=_NULL)
    step_axis(ax, "mean cosine of two states", legend=True)


@of_a_result
def representation_rank(ax: Axes, result: xr.Dataset) -> None:
    """RankMe and the effective rank of the covariance; dashed, those of isotropic Gaussian states.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `anisotropy`.
    """
    for name, label, colour in (("rankme", "RankMe", 0), ("effective_rank", "effective rank", 1)):
        ax.plot(result["step"], result[name], color=COLOURS[colour], label=label)
        ax.plot(result["step"], result[f"{name}_null"], "--", color=COLOURS[colour], linewidth=1)
    ax.plot([], [], "--", color="0.5", linewidth=1, label=_NULL)
    ax.set_ylim(bottom=0)
    step_axis(ax, "rank of the hidden states", legend=True)


@of_a_result
def decay_exponent(ax: Axes, result: xr.Dataset) -> None:
    """The exponent α of the decay of the eigenvalues, ± its standard error; dashed, of isotropic Gaussian states.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `anisotropy`.
    """
    alpha, error = result["alpha"], result["alpha_se"]
    ax.plot(result["step"], alpha, color=COLOURS[0], label="measured")
    ax.fill_between(result["step"], alpha - error, alpha + error, color=COLOURS[0], alpha=0.25, linewidth=0)
    ax.plot(result["step"], result["alpha_null"], "--", color=COLOURS[0], linewidth=1, label=_NULL)
    ax.set_ylim(bottom=0)
    step_axis(ax, "decay exponent α", legend=True)


@of_a_result
def ngram_divergence(ax: Axes, result: xr.Dataset) -> None:
    """KL(unigram ‖ model) and KL(bigram ‖ model), ± 2 standard errors over passages.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `anisotropy`.
    """
    for name, label, colour in (("kl_unigram", "unigram", 0), ("kl_bigram", "bigram", 1)):
        curve, error = result[name], 2 * result[f"{name}_se"]
        ax.plot(result["step"], curve, color=COLOURS[colour], label=label)
        ax.fill_between(result["step"], curve - error, curve + error, color=COLOURS[colour], alpha=0.25, linewidth=0)
    step_axis(ax, "KL(n-gram ‖ model) (nats)", legend=True)


def representation_figure(results: Results) -> FigureSpec:
    """The figure of ``representation.csv``.

    Parameters
    ----------
    results
        The results of the model.

    Raises
    ------
    PythiaDynError
        Where there is no such table.
    """
    table = results.read_table("representation")
    caption = (
        f"Last hidden states: mean cosine {from_to(table['anisotropy'], '.2g')}, RankMe "
        f"{from_to(table['rankme'], '.3g')}, effective rank {from_to(table['effective_rank'], '.3g')}, decay of the "
        f"eigenvalues {from_to(table['alpha'], '.2g')}. Dashed, isotropic Gaussian states of the same number. KL from "
        "the unigram and the bigram distribution of the text to the model."
    )
    panels = [
        partial(each, result=table) for each in (anisotropy, representation_rank, decay_exponent, ngram_divergence)
    ]
    title, draw = "Representation: the last hidden states", each_panel(panels, choose_scale=True)
    return FigureSpec(results.path / "representation", title, caption, draw, columns=2, rows=2, name=results.name)
