"""Figures of a comparison of two tensors: profiles over each other, curves beside the floor of seeds, the loss line."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis
from pythia_dynamics.measures.comparison import BETWEEN, STATISTICS

__all__ = [
    "compared_curve",
    "compared_densities",
    "compared_floor",
    "compared_rows",
    "compared_spectra",
    "interpolated_loss",
]

_SIDES = (("a", "-"), ("b", "--"))
"""Line style of each side: two equal curves are both seen."""


@of_a_result
def compared_densities(ax: Axes, result: xr.Dataset) -> None:
    """The densities of both sides over each other, logarithmic.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.compare`.
    """
    if "density" in result:
        for (side, line), values, colour in zip(_SIDES, result["density"].to_numpy(), COLOURS, strict=False):
            shown = np.where(values > 0, values, np.nan)
            ax.plot(result["weight"], shown, line, color=colour, label=result.attrs[side])
        ax.set_yscale("log")
        ax.legend()
    ax.set(xlabel="weight", ylabel="density (1/weight)", title=_at(result))


@of_a_result
def compared_spectra(ax: Axes, result: xr.Dataset) -> None:
    """The singular values of both sides over each other, logarithmic.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.compare`.
    """
    if "singular_value" in result:
        for (side, line), values, colour in zip(_SIDES, result["singular_value"].to_numpy(), COLOURS, strict=False):
            known = values[np.isfinite(values) & (values > 0)]
            ax.plot(np.arange(1, len(known) + 1), known, line, color=colour, label=result.attrs[side])
        ax.set(xscale="log", yscale="log")
        ax.legend()
    ax.set(xlabel="index", ylabel="singular value")


@of_a_result
def compared_rows(ax: Axes, result: xr.Dataset) -> None:
    """How the angles of corresponding rows are distributed; dashed, 90° ± one standard deviation of independent rows.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.compare`, of two tensors of one shape.
    """
    ax.bar(result["degree"], result["row_angle_count"], width=1, color=COLOURS[0])
    spread = result["row_angle_sd_independent"].to_numpy()
    known = spread[np.isfinite(spread)]
    ax.axvline(90, color="0.3", linestyle="--", linewidth=1, label="independent rows")
    if len(known):
        ax.axvspan(90 - known[-1], 90 + known[-1], color="0.3", alpha=0.15, linewidth=0)
    ax.legend()
    ax.set(xlabel="angle of corresponding rows (degree)", ylabel="rows")


@of_a_result
def compared_curve(ax: Axes, result: xr.Dataset, statistic: str = "angle") -> None:
    """One statistic of two runs over the steps, with the range of the pairs of seeds as a band.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.compare`, of two runs.
    statistic
        Its name in `pythia_dynamics.measures.comparison.STATISTICS`.
    """
    steps = result["step"].to_numpy()
    if f"{statistic}_floor" in result:
        pairs = _between(result, statistic)
        known = np.isfinite(pairs).any(axis=0)
        low, middle, high = (np.full(len(steps), np.nan) for _ in range(3))
        if known.any():
            low[known], high[known] = np.nanmin(pairs[:, known], axis=0), np.nanmax(pairs[:, known], axis=0)
            middle[known] = np.nanmedian(pairs[:, known], axis=0)
        ax.fill_between(steps, low, high, color=COLOURS[1], alpha=0.25, linewidth=0, label="between seeds")
        ax.plot(steps, middle, color=COLOURS[1], linewidth=0.8)
    if f"{statistic}_independent" in result:
        ax.plot(steps, result[f"{statistic}_independent"], "--", color="0.3", linewidth=1, label="independent")
    ax.plot(steps, result[statistic], ".-", color=COLOURS[0], markersize=3, label="A and B")
    units = STATISTICS[statistic].units
    step_axis(ax, STATISTICS[statistic].title + ("" if units == "1" else f" ({units})"), legend=True)


@of_a_result
def compared_floor(ax: Axes, result: xr.Dataset) -> None:
    """Where each statistic of two checkpoints lies in the range of the pairs of seeds, from 0 (least) to 1 (greatest).

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.compare`, with a floor.
    """
    labels: list[str] = []
    for name, statistic in STATISTICS.items():
        pairs, value = _between(result, name)[:, -1], float(result[name].to_numpy()[-1])
        pairs = pairs[np.isfinite(pairs)]
        if len(pairs) < 2 or not np.isfinite(value) or not np.ptp(pairs) > 0:
            continue
        places = (np.append(pairs, value) - pairs.min()) / np.ptp(pairs)
        at = np.full(len(pairs), -len(labels))
        ax.plot(places[:-1], at, "|", color=COLOURS[1], markersize=8)
        ax.plot(places[-1], at[0], "o", color=COLOURS[0], markersize=5)
        labels.append(statistic.title)
    ax.axvspan(0, 1, color=COLOURS[1], alpha=0.15, linewidth=0)
    ax.set_xscale("symlog", linthresh=2)
    ax.set_yticks([-at for at in range(len(labels))], labels)
    ax.set(xlabel="place in the range between seeds")


@of_a_result
def interpolated_loss(ax: Axes, result: xr.Dataset) -> None:
    """Mean NLL along the line between two checkpoints, with its standard error above the dashed chord of the ends.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.interpolation`.
    """
    alpha, loss, error = (result[name].to_numpy() for name in ("alpha", "nll", "excess_se"))
    ax.fill_between(alpha, loss - error, loss + error, color=COLOURS[0], alpha=0.25, linewidth=0)
    ax.plot(alpha, loss, ".-", color=COLOURS[0], label="model between A and B")
    ax.plot(alpha, result["chord"], "--", color="0.3", linewidth=1, label="between the losses of A and B")
    at = float(result.attrs["barrier_alpha"])
    low = float(result["chord"].to_numpy()[alpha == at][0])
    text = f"barrier {result.attrs['barrier']:.3g} nats"
    if result.attrs["barrier"] > 0:
        ax.plot([at, at], [low, low + result.attrs["barrier"]], color=COLOURS[1], linewidth=2, label=text)
    ax.legend()
    ax.set(xlabel=f"α: 0 is {result.attrs['a']}, 1 is {result.attrs['b']}", ylabel="mean NLL per token (nats)")


def _between(result: xr.Dataset, statistic: str) -> NDArray[np.float64]:
    """A statistic of the pairs of two seeds, shape (pairs, steps)."""
    found: NDArray[np.float64] = result[f"{statistic}_floor"].to_numpy()[result["kind"].to_numpy() == BETWEEN]
    return found


def _at(result: xr.Dataset) -> str:
    """The steps that the profiles are of, where the names of the sides do not say them."""
    step = result.attrs.get("profile_step")
    return f"at step {step:,}" if step is not None and result.attrs["compared"] == "runs" else ""
