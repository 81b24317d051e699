"""Figures of what pairs of steps say: ageing, cosines, the trajectory's principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import EngFormatter

from pythia_dynamics.figures.style import COLOURS, edges, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["ageing", "cosine", "displacement_by_lag", "trajectory"]

_WAITING = 6
"""Waiting steps that are drawn."""


def ageing(ax: Axes, result: xr.Dataset) -> None:
    """Δ(t_w, t_w + τ) against the lag τ for waiting steps t_w spread over the history (Baity-Jesi et al. 2018).

    Curves on top of one another are a stationary motion; curves that sink with t_w are ageing.
    """
    import matplotlib as mpl

    table = result["ageing"].to_numpy()
    rows = np.flatnonzero((np.isfinite(table) & (table > 0)).sum(axis=1) > 1)
    if len(rows):
        picked = rows[np.unique(np.linspace(0, len(rows) - 1, _WAITING).round().astype(int))]
        shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(picked)))
        for row, shade in zip(picked, shades, strict=True):
            good = np.isfinite(table[row]) & (table[row] > 0)
            label = f"from step {int(result['step'][row])}"
            ax.plot(result["lag"].to_numpy()[good], table[row][good], color=shade, label=label)
        ax.legend()
    _displacement_axes(ax)


def displacement_by_lag(ax: Axes, result: xr.Dataset) -> None:
    """The time-averaged displacement against the lag, its exponent, and slopes 1 (a walk) and 2 (ballistic motion)."""
    lags, mean = result["lag"].to_numpy().astype(float), result["displacement_by_lag"].to_numpy()
    good = np.isfinite(mean) & (mean > 0) & (result["pairs"].to_numpy() > 0)
    lags, mean = lags[good], mean[good]
    if len(lags):
        found = result["displacement_by_lag"].attrs
        label = "measured"
        if "exponent" in found:
            label += f", exponent {found['exponent']:.2f}"
        if "exponent_low" in found:
            label += f" ({found['exponent_low']:.2f} to {found['exponent_high']:.2f})"
        ax.plot(lags, mean, ".-", markersize=3, color=COLOURS[0], label=label)
        for slope, style, name in ((1, "--", "a random walk: 1"), (2, ":", "ballistic: 2")):
            ax.plot(lags, mean[0] * (lags / lags[0]) ** slope, style, color="0.5", linewidth=1, label=name)
        ax.set_ylim(mean.min() / 2, mean.max() * 5)
        ax.legend(loc="lower right")
    _displacement_axes(ax)


def cosine(ax: Axes, result: xr.Dataset) -> None:
    """Cosine between the weights at every two steps; missing steps are gaps."""
    borders = edges(result["step"].to_numpy().astype(float))
    values = result["cosine"].to_numpy()
    mesh = ax.pcolormesh(borders, borders, np.ma.masked_invalid(values), cmap="viridis", vmax=1, rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="cosine")
    ax.grid(visible=False)
    ax.set_aspect("equal")
    ax.set_ylabel("training step")
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    step_axis(ax)


def trajectory(ax: Axes, result: xr.Dataset, *, components: int = 3) -> None:
    """The first principal coordinates against the step, dashed those of a random walk, which are cosines."""
    steps = result["step"]
    for colour, k in zip(COLOURS, range(min(components, result.sizes["component"])), strict=False):
        share, null = float(result["explained"][k]), float(result["explained_null"][k])
        label = f"PC {k + 1}: {share:.0%} of variance (walk {null:.0%})"
        ax.plot(steps, result["coordinate"][:, k], color=colour, label=label)
        ax.plot(steps, _turned(result, k), "--", color=colour, linewidth=1)
    ax.set_ylabel("principal coordinate (weight)")
    ax.legend()
    step_axis(ax)


def _turned(result: xr.Dataset, k: int) -> xr.DataArray:
    """A coordinate of the null with the sign that lies nearer to the measured one: a component has none of its own."""
    measured, null = result["coordinate"][:, k], result["coordinate_null"][:, k]
    return -null if float((measured * null).sum()) < 0 else null


def _displacement_axes(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("lag τ (steps)")
    ax.set_ylabel("Δ(t_w, t_w + τ) per weight")
