"""Figures of the three perplexities of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_dynamics.figures.garden import published_points
from pythia_dynamics.figures.style import COLOURS, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["perplexity"]

_LABELS = {"forward": "forward", "unmask": "causal unmasking", "last-word": "last word"}


def perplexity(
    ax: Axes, results: dict[str, xr.Dataset], *, log: bool = True, published: xr.Dataset | None = None
) -> None:
    """Garden Fig 4 and 6: perplexity against the step, one line per mode in `results`.

    `published` are EleutherAI's last-word points of this model, to be drawn beside it.
    """
    for mode, result in results.items():
        for variable, style in (("ppl", "-"), ("ppl_median", "-"), ("ppl_mean", ":")):
            if variable in result:
                suffix = {"ppl_median": ", median", "ppl_mean": ", mean"}.get(variable, "")
                colour = COLOURS[list(_LABELS).index(mode)]
                ax.plot(result["step"], result[variable], style, color=colour, label=f"{_LABELS[mode]}{suffix}")
    if published is not None:
        published_points(ax, published, color="0.4")
        ax.plot([], [], "o", color="0.4", markersize=3.5, markerfacecolor="none", label="published (EleutherAI)")
        if bool(published["suspect"].any()):
            ax.plot([], [], "x", color="0.4", markersize=4, label="published, suspect")
    ax.set_ylabel("perplexity")
    if log:
        ax.set_yscale("log")
    ax.legend()
    step_axis(ax)
