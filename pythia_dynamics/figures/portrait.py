"""Garden Fig 1: weights, attention and logits of a model at its first step and at its last."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from pythia_dynamics.figures.style import COLOURS, of_a_result, printable

__all__ = ["first_last"]

_LABELLED_TOKENS = 32
"""Longest phrase whose tokens label the axes: more labels of 6 points overlap in a panel 3 inches high."""

_LOGIT_POINTS = 400
"""Points of a curve of logits, evenly spaced on its logarithmic axis: more than one per 1/72 inch of the panel."""

_COLOUR_QUANTILE = 0.995
"""Quantile of |W_U| at which the colours of the weights end, so that a few large weights do not make the rest pale."""


@of_a_result
def first_last(axes: Any, result: xr.Dataset, *, name: str = "") -> None:
    """Six panels: W_U for the first 512 tokens, the attention of the first layer, and the mean logits, at two steps.

    The attention is the mean over the heads. The logits of all tokens are in descending order. Both maps of W_U have
    the same colours.

    Parameters
    ----------
    axes
        The panels, an array of `Axes` of shape (2, 3): a row for each step.
    result
        The result of `pythia_dynamics.portrait`.
    name
        Name of the model, for the titles, where the figure shows several.
    """
    spread = float(np.nanquantile(np.abs(result["unembedding"]), _COLOUR_QUANTILE)) or 1.0
    for row, step in zip(axes, result["step"].to_numpy(), strict=True):
        chosen = result.sel(step=step)
        _weights(row[0], chosen, spread)
        _attention(row[1], chosen)
        _logits(row[2], result, int(step))
        for ax, shown in zip(row, ("W_U", "attention, first layer", "mean logits"), strict=True):
            ax.set_title(f"{name}\nstep {step:,}: {shown}".strip())


def _weights(ax: Axes, result: xr.Dataset, spread: float) -> None:
    values = result["unembedding"].transpose("dimension", "token")
    _image(ax, values, "weight", aspect="auto", cmap="RdBu_r", norm=TwoSlopeNorm(0, -spread, spread))
    ax.set(xlabel="token (column of W_U)", ylabel="dimension of the model")


def _attention(ax: Axes, result: xr.Dataset) -> None:
    pattern = result["attention"].mean("head").transpose("query", "key").to_numpy()
    # A token cannot attend to later ones: that part of the map stays blank.
    allowed = np.tril(np.ones(pattern.shape, bool))
    _image(ax, np.ma.masked_where(~allowed, pattern), "attention", cmap="viridis", vmin=0, vmax=1)
    words = [printable(str(word).strip(" ") or "␣") for word in result.attrs.get("words", ())]
    if 0 < len(words) <= _LABELLED_TOKENS:
        ax.set_xticks(range(len(words)), words, rotation=90, fontsize=6, parse_math=False)
        ax.set_yticks(range(len(words)), words, fontsize=6, parse_math=False)
    ax.set(xlabel="attends to", ylabel="token")


def _image(ax: Axes, values: Any, label: str, **options: Any) -> None:
    """Draw a map with its colour bar."""
    image = ax.imshow(values, interpolation="nearest", rasterized=True, **options)
    ax.figure.colorbar(image, ax=ax, label=label)
    ax.grid(visible=False)


def _logits(ax: Axes, result: xr.Dataset, step: int) -> None:
    """Draw the logits of both steps, those of `step` in colour."""
    for number, other in enumerate(result["step"].to_numpy()):
        values = np.sort(result["logits"].sel(step=other).to_numpy())[::-1]
        colour, width = (COLOURS[number], 1.4) if other == step else ("0.7", 0.8)
        ranks = np.unique(np.geomspace(1, len(values), _LOGIT_POINTS).round().astype(int))
        ax.plot(ranks, values[ranks - 1], label=f"step {other:,}", color=colour, linewidth=width)
    ax.set(xscale="log", xlabel="rank of the token", ylabel="mean logit (nats)")
    ax.legend()
