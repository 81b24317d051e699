"""Figures of the rows of W_U: norm and drift by the frequency of their tokens, and the unigram direction."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis

__all__ = ["row_correlations", "row_drift", "row_norm", "unigram"]

_QUANTILES = (0.1, 0.5, 0.9)
_DECILES = (10, 5, 1, 0)
"""Deciles that are drawn: as many as the eye can keep apart."""


@of_a_result
def row_norm(ax: Axes, result: xr.Dataset) -> None:
    """The norm of the rows: by decile of the frequency, else the median and the central 80 % of all rows.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.rows`.
    """
    _by_frequency(ax, result, "norm")
    step_axis(ax, "norm of a row (weight)", legend=True)


@of_a_result
def row_drift(ax: Axes, result: xr.Dataset) -> None:
    """The distance of the rows from those of the first step, as `row_norm`.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `row_norm`.
    """
    _by_frequency(ax, result, "drift")
    step_axis(ax, "distance from the first step (weight)", legend=True)


@of_a_result
def row_correlations(ax: Axes, result: xr.Dataset) -> None:
    """Rank correlation of norm, drift and update of a row with the frequency of its token.

    Parameters
    ----------
    ax
        The panel.
    result
        A result as for `row_norm`, with frequencies.
    """
    for colour, kind in zip(COLOURS, ("norm", "drift", "update"), strict=False):
        ax.plot(result["step"], result[f"spearman_{kind}"], color=colour, label=kind)
    ax.axhline(0, color="0.5", linestyle=":", linewidth=1)
    step_axis(ax, "rank correlation with frequency", legend=True)


@of_a_result
def unigram(ax: Axes, result: xr.Dataset) -> None:
    """The share of the variance of log frequency along the unigram direction; dashed, for random frequencies.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `row_correlations`.
    """
    ax.plot(result["step"], result["unigram_r2"], color=COLOURS[0], label="R² of the unigram direction")
    ax.plot(result["step"], result["unigram_r2_null"], "--", color=COLOURS[0], linewidth=1, label="in random order")
    ax.plot(result["step"], result["unigram_mean_cosine"], color=COLOURS[1], label="cosine with the mean row")
    step_axis(ax, "share, cosine", legend=True)


def _by_frequency(ax: Axes, result: xr.Dataset, kind: str) -> None:
    """Draw means by decile where frequencies are known, else quantiles of all rows."""
    if f"decile_{kind}" in result:
        shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(_DECILES)))
        for shade, decile in zip(shades, _DECILES, strict=True):
            curve = result[f"decile_{kind}"].sel(decile=decile)
            if np.isfinite(curve).any():
                label = {10: "decile 10: most frequent", 0: "tokens not in the text"}.get(decile, f"decile {decile}")
                ax.plot(curve["step"], curve, color=shade, label=label)
        return
    values = result[f"row_{kind}"].to_numpy()
    low, middle, high = np.full((3, len(values)), np.nan)
    known = np.isfinite(values).all(axis=1)
    if known.any():
        low[known], middle[known], high[known] = np.quantile(values[known], _QUANTILES, axis=1)
    ax.plot(result["row_step"], middle, color=COLOURS[0], label="median row")
    ax.fill_between(result["row_step"], low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="80 % of rows")
