"""Figures of the fits to the tail of the eigenvalues of WᵀW."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis

__all__ = ["tail_exponent", "tail_ratio", "tail_size"]

_ALTERNATIVES = {"lognormal": "lognormal", "truncated": "truncated power law"}


@of_a_result
def tail_exponent(ax: Axes, result: xr.Dataset) -> None:
    """The exponent of the power law, and that of the truncated power law.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.tails`, or the table ``tails.csv``.
    """
    ax.plot(result["step"], result["alpha"], color=COLOURS[0], label="power law")
    ax.plot(result["step"], result["truncated_alpha"], color=COLOURS[2], linewidth=1, label="truncated power law")
    step_axis(ax, "exponent of the eigenvalue density", legend=True)


@of_a_result
def tail_ratio(ax: Axes, result: xr.Dataset) -> None:
    """The normalised log-likelihood ratio of the power law to each alternative; dotted, −1.96.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `tail_exponent`.
    """
    for colour, (name, label) in zip(COLOURS[1:], _ALTERNATIVES.items(), strict=False):
        ax.plot(result["step"], result[f"{name}_ratio"], color=colour, label=label)
    ax.axhline(-1.96, color="0.5", linestyle=":", linewidth=1)
    step_axis(ax, "likelihood ratio (standard deviations)", legend=True)


@of_a_result
def tail_size(ax: Axes, result: xr.Dataset) -> None:
    """The number of eigenvalues above the cut-off.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `tail_exponent`.
    """
    ax.plot(result["step"], result["tail"], color=COLOURS[0])
    ax.set_ylim(bottom=0)
    step_axis(ax, "eigenvalues in the tail")
