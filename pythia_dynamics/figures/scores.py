"""Figures of the three perplexities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_dynamics.figures.style import COLOURS, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["perplexity"]

_LABELS = {"forward": "forward", "unmask": "causal unmasking", "last-word": "last word"}


def perplexity(ax: Axes, results: dict[str, xr.Dataset], *, log: bool = True) -> None:
    """Garden Fig 4 and 6: perplexity against the step, one line per mode in `results`."""
    for mode, result in results.items():
        for variable, style in (("ppl", "-"), ("ppl_median", "-"), ("ppl_mean", ":")):
            if variable in result:
                suffix = {"ppl_median": ", median", "ppl_mean": ", mean"}.get(variable, "")
                colour = COLOURS[list(_LABELS).index(mode)]
                ax.plot(result["step"], result[variable], style, color=colour, label=f"{_LABELS[mode]}{suffix}")
    ax.set_ylabel("perplexity")
    if log:
        ax.set_yscale("log")
    ax.legend()
    step_axis(ax)
