"""Garden Fig 1: what a model looks like at its first step and at its last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm

from pythia_dynamics.figures.style import COLOURS, printable

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["first_last"]

_LONGEST_LABELS = 32
_POINTS = 400


def first_last(axes: Any, result: xr.Dataset, *, name: str = "") -> None:
    """Six panels, a (2, 3) array of `Axes`: a row for each of the two steps of `result`.

    Columns: W_U for the first 512 tokens, the first layer's attention averaged over its heads, and the mean logits of
    all tokens, in descending order. The two maps of a column share their colours.
    """
    spread = float(np.nanquantile(np.abs(result["unembedding"]), 0.995)) or 1.0
    for row, step in zip(axes, result["step"].to_numpy(), strict=True):
        chosen = result.sel(step=step)
        _weights(row[0], chosen, spread)
        _attention(row[1], chosen)
        _logits(row[2], result, int(step))
        row[0].set_title(f"{name} step {step:,}: W_U".strip())
        row[1].set_title("attention, first layer")
        row[2].set_title("mean logits")


def _weights(ax: Axes, result: xr.Dataset, spread: float) -> None:
    image = ax.imshow(
        result["unembedding"].transpose("dimension", "token"),
        aspect="auto",
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0, -spread, spread),
        interpolation="nearest",
        rasterized=True,
    )
    ax.figure.colorbar(image, ax=ax, label="weight")
    ax.grid(visible=False)
    ax.set_xlabel("token (column of W_U)")
    ax.set_ylabel("dimension of the model")


def _attention(ax: Axes, result: xr.Dataset) -> None:
    pattern = result["attention"].mean("head")
    # What lies ahead of a token is masked: empty, not zero.
    allowed = np.tril(np.ones(pattern.shape, bool))
    image = ax.imshow(
        np.ma.masked_where(~allowed, pattern.transpose("query", "key").to_numpy()),
        cmap="viridis",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        rasterized=True,
    )
    ax.figure.colorbar(image, ax=ax, label="attention")
    ax.grid(visible=False)
    words = [printable(str(word).strip(" ") or "␣") for word in result.attrs.get("words", ())]
    if 0 < len(words) <= _LONGEST_LABELS:
        ax.set_xticks(range(len(words)), words, rotation=90, fontsize=6, parse_math=False)
        ax.set_yticks(range(len(words)), words, fontsize=6, parse_math=False)
    ax.set_xlabel("attends to")
    ax.set_ylabel("token")


def _logits(ax: Axes, result: xr.Dataset, step: int) -> None:
    for number, other in enumerate(result["step"].to_numpy()):
        values = np.sort(result["logits"].sel(step=other).to_numpy())[::-1]
        colour, width = (COLOURS[number], 1.4) if other == step else ("0.7", 0.8)
        ranks = np.unique(np.geomspace(1, len(values), _POINTS).round().astype(int))  # as the axis spaces them
        ax.plot(ranks, values[ranks - 1], label=f"step {other:,}", color=colour, linewidth=width)
    ax.set_xscale("log")
    ax.set_xlabel("rank of the token")
    ax.set_ylabel("mean logit")
    ax.legend()
