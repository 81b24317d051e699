"""Figures of statistics of pairs of steps: ageing, cosines, the principal components of the trajectory."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from pythia_dynamics.figures.style import COLOURS, STEP_LABEL, edges, of_a_result, step_axis

__all__ = ["ageing", "cosine", "displacement_by_lag", "trajectory"]

_WAITING_STEPS = 6
"""Curves in the figure of ageing: as many as the eye and the legend can keep apart."""


@of_a_result
def ageing(ax: Axes, result: xr.Dataset) -> None:
    """Δ(s, s + τ) against the lag τ, for waiting steps s from the whole history (Baity-Jesi et al. 2018).

    Where the motion is stationary the curves coincide; where it ages they fall with s.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.two_time`.
    """
    table = result["ageing"].to_numpy()
    known = np.isfinite(table) & (table > 0)
    rows = np.flatnonzero(known.sum(axis=1) > 1)
    if len(rows):
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _WAITING_STEPS).round().astype(int))]
        shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(chosen)))
        for row, shade in zip(chosen, shades, strict=True):
            lags, label = result["lag"].to_numpy()[known[row]], f"from step s = {int(result['step'][row]):,}"
            ax.plot(lags, table[row][known[row]], color=shade, label=label)
        ax.legend()
    _displacement_axes(ax, "Δ(s, s + τ) per weight (weight²)")


@of_a_result
def displacement_by_lag(ax: Axes, result: xr.Dataset) -> None:
    """The time-averaged displacement against the lag, its exponent, and slopes 1 (a walk) and 2 (ballistic motion).

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.two_time`.
    """
    lags, mean = result["lag"].to_numpy().astype(float), result["displacement_by_lag"].to_numpy()
    good = np.isfinite(mean) & (mean > 0) & (result["pairs"].to_numpy() > 0)
    lags, mean = lags[good], mean[good]
    if len(lags):
        fit = result["displacement_by_lag"].attrs
        label = "measured"
        if "exponent" in fit:
            label += f", exponent {fit['exponent']:.2f}"
        if "exponent_low" in fit:
            label += f" ({fit['exponent_low']:.2f} to {fit['exponent_high']:.2f})"
        ax.plot(lags, mean, ".-", markersize=3, color=COLOURS[0], label=label)
        for slope, style, name in ((1, "--", "a random walk: 1"), (2, ":", "ballistic: 2")):
            ax.plot(lags, mean[0] * (lags / lags[0]) ** slope, style, color="0.5", linewidth=1, label=name)
        ax.set_ylim(mean.min() / 2, mean.max() * 5)
        ax.legend(loc="lower right")
    _displacement_axes(ax, "mean of Δ(s, s + τ) over s (weight²)")


@of_a_result
def cosine(ax: Axes, result: xr.Dataset) -> None:
    """Cosine between the weights at every two steps, as a heat map; missing steps are gaps.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.two_time`.
    """
    borders = edges(result["step"].to_numpy().astype(float))
    values = np.ma.masked_invalid(result["cosine"].to_numpy())
    mesh = ax.pcolormesh(borders, borders, values, cmap="viridis", vmax=1, rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="cosine")
    ax.grid(visible=False)
    ax.set_aspect("equal")
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    step_axis(ax, STEP_LABEL)


@of_a_result
def trajectory(ax: Axes, result: xr.Dataset, *, components: int = 3) -> None:
    """The first principal coordinates against the step; dashed, those of a random walk, which are cosines.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.two_time`.
    components
        Number of coordinates to draw, at most.
    """
    for colour, k in zip(COLOURS, range(min(components, result.sizes["component"])), strict=False):
        measured, null = result["coordinate"][:, k], result["coordinate_null"][:, k]
        share, null_share = float(result["explained"][k]), float(result["explained_null"][k])
        label = f"PC {k + 1}: {share:.0%} of variance (walk {null_share:.0%})"
        ax.plot(result["step"], measured, color=colour, label=label)
        # The sign of a component is arbitrary: that of the null is chosen to agree with the measured one.
        sign = -1 if float((measured * null).sum()) < 0 else 1
        ax.plot(result["step"], sign * null, "--", color=colour, linewidth=1)
    step_axis(ax, "principal coordinate (weight)", legend=True)


def _displacement_axes(ax: Axes, quantity: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel="lag τ (steps)", ylabel=quantity)
