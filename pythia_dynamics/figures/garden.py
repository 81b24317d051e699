"""The figures of "The Garden of Forking Paths" that hold several models against one another on the same axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from pythia_dynamics.figures.style import COLOURS, printable, step_axis
from pythia_dynamics.measures.displacement import interior_peak

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["displacements", "last_words", "perplexities", "published_points", "rank_differences", "ranks", "unmasking"]

Models = Mapping[str, "xr.Dataset"]
_STYLES = ("-", "-.", ":")
_WRAP = 84


def displacements(ax: Axes, models: Models, *, kind: str = "msd") -> None:
    """Garden Fig 3: MSD(τ) of several models, `kind` ``msd`` (Eq 4) or ``msd_time``.

    Dashed: the null, a random walk with each model's step sizes. Dashed verticals: peaks that are not at an end.
    """
    shown = [np.nan]
    for name, result, look in _looks(models):
        ax.plot(result["step"], result[kind], label=name, **look)
        ax.plot(
            result["step"],
            result[f"{kind}_null"],
            color=look["color"],
            linestyle="--",
            linewidth=0.9,
            label=f"_{name}, random walk",
        )
        peak = interior_peak(result["step"].to_numpy(), result[kind].to_numpy())
        if peak is not None:
            ax.axvline(peak, color=look["color"], linestyle="--", linewidth=0.7)
        # Demeaned over time, the last value is zero by construction: rounding would set the scale.
        values = result[[kind, f"{kind}_null"]].isel(step=slice(None, -1)).to_array().to_numpy()
        shown.append(np.nanmin(values, where=values > 0, initial=np.inf))
    ax.set_yscale("log")
    least = np.nanmin(shown)
    if np.isfinite(least):
        ax.set_ylim(bottom=least / 2)
    ax.set_ylabel("MSD(τ) (squared weight)")
    _legend(ax, Line2D([], [], color="0.5", linestyle="--", linewidth=0.9, label="random walk"))
    step_axis(ax)


def perplexities(ax: Axes, models: Models, *, column: str = "ppl_corpus", log: bool = True) -> None:
    """Garden Fig 4 and 6: one perplexity of several models. A perplexity is at least 1: the axis says so."""
    for name, result, look in _looks(models):
        ax.plot(result["step"], result[column], label=name, **look)
    _perplexity_axis(ax, log=log)
    _legend(ax)


def last_words(ax: Axes, models: Models, published: Models, *, log: bool = True) -> None:
    """Last-word perplexity of several models over the `published` points of each (see `published_points`)."""
    for name, result, look in _looks(models):
        ax.plot(result["step"], result["ppl"], label=name, **look)
        if name in published:
            published_points(ax, published[name], color=look["color"])
    _perplexity_axis(ax, log=log)
    _legend(ax, *_published_handles(list(published.values())))


def published_points(ax: Axes, result: xr.Dataset, *, color: str = COLOURS[1]) -> None:
    """EleutherAI's points with their standard errors; those that are not to be believed as crosses."""
    suspect = result["suspect"].to_numpy().astype(bool)
    good = result.isel(step=~suspect)
    ax.errorbar(
        good["step"],
        good["ppl"],
        yerr=good["ppl_stderr"],
        fmt="o",
        markersize=3.5,
        markerfacecolor="none",
        color=color,
        linewidth=0.8,
        label="_published",
    )
    if suspect.any():
        doubted = result.isel(step=suspect)
        ax.plot(doubted["step"], doubted["ppl"], "x", color=color, markersize=4, alpha=0.6, label="_suspect")


def ranks(ax: Axes, models: Models, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7: covariance rank of several models at one tolerance and the largest batch, ± its standard error."""
    for name, result, look in _looks(models):
        size, curve = _largest_batch(result, tolerance, convention)
        ax.plot(curve["step"], curve["rank"], label=f"{name}, B = {size}", **look)
        low, high = curve["rank"] - curve["rank_se"], curve["rank"] + curve["rank_se"]
        ax.fill_between(curve["step"], low, high, color=look["color"], alpha=0.25, linewidth=0)
    ax.set_ylabel("covariance rank")
    ax.set_title(f"{convention} tolerance {tolerance:g}")
    _legend(ax)
    step_axis(ax)


def rank_differences(ax: Axes, models: Models, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7, second panel: change of the rank since the step before."""
    for name, result, look in _looks(models):
        _, curve = _largest_batch(result, tolerance, convention)
        ax.plot(curve["step"], curve["rank_difference"], label=name, **{**look, "linewidth": 0.9})
    ax.set_ylabel("change of rank since the step before")
    _legend(ax)
    step_axis(ax)


def unmasking(ax: Axes, completions: Sequence[Mapping[str, Any]], *, name: str = "") -> None:
    """Garden Fig 5: a phrase completed from each of its prefixes: given tokens bold, generated ones coloured.

    `completions` have `given`, `generated`, `perplexity`, and `prefix`, the number of tokens given.
    """
    count = max(len(completions), 1)
    small: dict[str, Any] = {"va": "center", "family": "monospace", "fontsize": 7, "parse_math": False}
    for row, line in enumerate(completions):
        y = 1 - (row + 0.5) / count
        given, generated = (printable(line[part], monospace=True) for part in ("given", "generated"))
        room = max(_WRAP - len(given), 8)
        generated = generated if len(generated) <= room else f"{generated[: room - 1]}…"
        ax.text(-0.01, y, f"{line['prefix']}", transform=ax.transAxes, ha="right", color="0.45", **small)
        start = ax.text(0, y, given, transform=ax.transAxes, fontweight="bold", **small)
        if generated:
            ax.annotate(generated, (1, 0.5), xycoords=start, color=COLOURS[1], annotation_clip=False, **small)
        ax.text(1, y, f"{line['perplexity']:.3g}", transform=ax.transAxes, ha="right", **small)
    heading: dict[str, Any] = {"transform": ax.transAxes, "va": "bottom", "fontsize": 7}
    ax.text(-0.01, 1, "k", ha="right", style="italic", **heading)
    ax.text(1, 1, "perplexity", ha="right", **heading)
    start = ax.text(0, 1, "given ", fontweight="bold", **heading)
    ax.annotate("generated", (1, 0), xycoords=start, va="bottom", fontsize=7, color=COLOURS[1])
    ax.set_title(name, pad=14)
    ax.set_axis_off()


def _looks(models: Models) -> Iterator[tuple[str, xr.Dataset, dict[str, Any]]]:
    """Each model with a colour of its own, and a line style of its own once the colours are used up."""
    for number, (name, result) in enumerate(models.items()):
        turn, colour = divmod(number, len(COLOURS))
        yield name, result, {"color": COLOURS[colour], "linestyle": _STYLES[turn % len(_STYLES)], "linewidth": 1.4}


def _largest_batch(result: xr.Dataset, tolerance: float, convention: str) -> tuple[int, xr.Dataset]:
    size = int(result["batch_size"].max())
    return size, result.sel({"tolerance": tolerance, "convention": convention, "batch_size": size})


def _perplexity_axis(ax: Axes, *, log: bool) -> None:
    ax.set_ylabel("perplexity")
    if log:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low < 10:
            ax.yaxis.set_minor_locator(NullLocator())
            ticks = np.unique(np.array([f"{tick:.2g}" for tick in np.geomspace(low, high, 6)], dtype=float))
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.set_ylim(low, high)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], 1) if log else max(ax.get_ylim()[0], 0))
    step_axis(ax)


def _published_handles(published: Sequence[xr.Dataset]) -> list[Line2D]:
    grey: dict[str, Any] = {"color": "0.5", "linestyle": "", "markersize": 4}
    handles = []
    if published:
        handles.append(Line2D([], [], marker="o", markerfacecolor="none", label="published", **grey))
    if any(bool(points["suspect"].any()) for points in published):
        handles.append(Line2D([], [], marker="x", label="published, suspect", **grey))
    return handles


def _legend(ax: Axes, *more: Line2D) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if handles or more:
        ax.legend(handles=[*handles, *more])
