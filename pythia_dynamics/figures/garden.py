"""Figures of "The Garden of Forking Paths": several models on the same axes, perplexities, a completed phrase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from pythia_dynamics.evaluation.settings import Mode
from pythia_dynamics.figures.measures import msd_scale, rank_band
from pythia_dynamics.figures.paper import LEAST_POINTS
from pythia_dynamics.figures.style import COLOURS, of_a_result, printable, step_axis
from pythia_dynamics.measures.displacement import interior_peak

__all__ = [
    "displacements",
    "last_words",
    "perplexities",
    "perplexity",
    "published_points",
    "rank_differences",
    "ranks",
    "unmasking",
]

Models = Mapping[str, xr.Dataset]
"""A saved result of each model, by the name that the legend shows."""

_LINE_STYLES = ("-", "-.", ":")
"""Line styles for the first, second and third model of a colour. The dashed line belongs to the null."""

_MODES: Mapping[Mode, str] = {"forward": "forward", "unmask": "causal unmasking", "last-word": "last word"}
"""Name of each kind of perplexity in the legend. Its place is that of its colour."""

_BESIDE_LINE = 1.0
"""Inches beside a completed phrase, for the number of its tokens, its perplexity and the margins."""

_CHARACTER = 0.602
"""Width of a character of the monospace font (DejaVu Sans Mono) over the size of the font."""


def displacements(ax: Axes, models: Models, *, kind: str = "msd") -> None:
    """Garden Fig 3: MSD(τ) of several models.

    Dashed curves are the null, a random walk with each model's step sizes. Dashed verticals mark interior peaks.

    Parameters
    ----------
    ax
        The panel.
    models
        The table ``msd.csv`` of each model.
    kind
        ``msd`` (Eq 4) or ``msd_time`` (demeaned over time).
    """
    for name, result, line in _with_lines(models):
        colour, null = line["color"], result[f"{kind}_null"]
        ax.plot(result["step"], result[kind], label=name, **line)
        ax.plot(result["step"], null, color=colour, linestyle="--", linewidth=0.9, label=f"_{name}, random walk")
        peak = interior_peak(result["step"].to_numpy(), result[kind].to_numpy())
        if peak is not None:
            ax.axvline(peak, color=colour, linestyle="--", linewidth=0.7)
    msd_scale(ax, [result[name] for result in models.values() for name in (kind, f"{kind}_null")])
    _legend(ax, Line2D([], [], color="0.5", linestyle="--", linewidth=0.9, label="random walk"))
    step_axis(ax, "MSD(τ) (weight²)")


def perplexity(ax: Axes, results: Mapping[Mode, xr.Dataset], *, log: bool = True, published: Any = None) -> None:
    """Garden Fig 4 and 6: perplexity of one model against the step.

    Parameters
    ----------
    ax
        The panel.
    results
        The table of each kind of perplexity to draw: its `ppl`, or its `ppl_median` (solid) and `ppl_mean` (dotted).
    log
        Whether the y axis is logarithmic.
    published
        EleutherAI's last-word perplexities of this model, to be drawn beside them (see `published_points`).
    """
    for mode, result in results.items():
        colour = COLOURS[list(_MODES).index(mode)]
        for variable, style, suffix in (("ppl", "-", ""), ("ppl_median", "-", ", median"), ("ppl_mean", ":", ", mean")):
            if variable in result:
                ax.plot(result["step"], result[variable], style, color=colour, label=f"{_MODES[mode]}{suffix}")
    if published is not None:
        published_points(ax, published, color="0.4")
    if log:
        ax.set_yscale("log")
    _legend(ax, *_published_handles([] if published is None else [published], "published (EleutherAI)", "0.4"))
    step_axis(ax, "perplexity")


def perplexities(ax: Axes, models: Models, *, column: str = "ppl_corpus", log: bool = True) -> None:
    """Garden Fig 4 and 6: one kind of perplexity of several models. The logarithmic axis begins at 1 or above.

    Parameters
    ----------
    ax
        The panel.
    models
        The table of the perplexity of each model.
    column
        The column to draw.
    log
        Whether the y axis is logarithmic.
    """
    for name, result, line in _with_lines(models):
        ax.plot(result["step"], result[column], label=name, **line)
    _perplexity_axis(ax, log=log)
    _legend(ax)


def last_words(ax: Axes, models: Models, published: Models, *, log: bool = True) -> None:
    """Last-word perplexity of several models, with the published points of each.

    Parameters
    ----------
    ax
        The panel.
    models
        The table ``perplexity-last-word.csv`` of each model.
    published
        The published values of those models that have some (see `published_points`).
    log
        Whether the y axis is logarithmic.
    """
    for name, result, line in _with_lines(models):
        ax.plot(result["step"], result["ppl"], label=name, **line)
        if name in published:
            published_points(ax, published[name], color=line["color"])
    _perplexity_axis(ax, log=log)
    _legend(ax, *_published_handles(list(published.values())))


@of_a_result
def published_points(ax: Axes, result: xr.Dataset, *, color: str = COLOURS[1]) -> None:
    """EleutherAI's values as circles with their standard errors; values that are not reliable as crosses.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.results.published_lambada.published_lambada`.
    color
        Colour of the points.
    """
    suspect = result["suspect"].to_numpy().astype(bool)
    good = result.isel(step=~suspect)
    look: dict[str, Any] = {"fmt": "o", "markersize": 3.5, "markerfacecolor": "none", "linewidth": 0.8}
    ax.errorbar(good["step"], good["ppl"], yerr=good["ppl_stderr"], color=color, label="_published", **look)
    if suspect.any():
        unreliable = result.isel(step=suspect)
        ax.plot(unreliable["step"], unreliable["ppl"], "x", color=color, markersize=4, alpha=0.6, label="_suspect")


def ranks(ax: Axes, models: Models, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7: covariance rank of several models for the largest batch, ± its standard error.

    Parameters
    ----------
    ax
        The panel.
    models
        The table ``rank.csv`` of each model.
    tolerance
        One of the tolerances of the tables.
    convention
        Whether the tolerance is ``absolute`` or ``relative`` to the largest singular value.
    """
    for name, curve, line in _with_lines(_largest_batch(models, tolerance, convention)):
        rank_band(ax, curve, label=f"{name}, B = {int(curve['batch_size'])}", **line)
    _legend(ax)
    step_axis(ax, "covariance rank", title=f"{convention} tolerance {tolerance:g}")


def rank_differences(ax: Axes, models: Models, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7, second panel: change of the rank since the step before.

    Parameters
    ----------
    ax
        The panel.
    models
        As for `ranks`.
    tolerance
        As for `ranks`.
    convention
        As for `ranks`.
    """
    for name, curve, line in _with_lines(_largest_batch(models, tolerance, convention)):
        ax.plot(curve["step"], curve["rank_difference"], label=name, **{**line, "linewidth": 0.9})
    _legend(ax)
    step_axis(ax, "change of rank since the step before", title=f"{convention} tolerance {tolerance:g}")


def unmasking(ax: Axes, completions: Sequence[Mapping[str, Any]], *, name: str = "") -> None:
    """Garden Fig 5: a phrase completed from each of its prefixes. Given tokens are bold, generated ones coloured.

    Parameters
    ----------
    ax
        The panel.
    completions
        One mapping per prefix: `prefix`, the number of tokens given, the texts `given` and `generated`, and the
        `perplexity` of the generated tokens.
    name
        The title.
    """
    points = max(mpl.rcParams["font.size"] - 2, LEAST_POINTS)
    fitting = int((ax.figure.bbox.width / ax.figure.dpi - _BESIDE_LINE) / (_CHARACTER * points / 72))
    small: dict[str, Any] = {"va": "center", "family": "monospace", "fontsize": points, "parse_math": False}
    for row, line in enumerate(completions):
        y = 1 - (row + 0.5) / len(completions)
        given, generated = (printable(line[part], monospace=True) for part in ("given", "generated"))
        room = max(fitting - len(given), 8)
        generated = generated if len(generated) <= room else f"{generated[: room - 1]}…"
        ax.text(-0.01, y, f"{line['prefix']}", transform=ax.transAxes, ha="right", color="0.45", **small)
        start = ax.text(0, y, given, transform=ax.transAxes, fontweight="bold", **small)
        if generated:
            ax.annotate(generated, (1, 0.5), xycoords=start, color=COLOURS[1], annotation_clip=False, **small)
        ax.text(1, y, f"{line['perplexity']:.3g}", transform=ax.transAxes, ha="right", **small)
    heading: dict[str, Any] = {"transform": ax.transAxes, "va": "bottom", "fontsize": points}
    ax.text(-0.01, 1, "k", ha="right", style="italic", **heading)
    ax.text(1, 1, "perplexity", ha="right", **heading)
    start = ax.text(0, 1, "given ", fontweight="bold", **heading)
    ax.annotate("generated", (1, 0), xycoords=start, va="bottom", fontsize=points, color=COLOURS[1])
    ax.set_title(name, pad=14)
    ax.set_axis_off()


def _with_lines(models: Models) -> Iterator[tuple[str, xr.Dataset, dict[str, Any]]]:
    """Each model with the properties of its line: its colour, and another line style once all colours are in use."""
    for number, (name, result) in enumerate(models.items()):
        repeat, colour = divmod(number, len(COLOURS))
        style = _LINE_STYLES[repeat % len(_LINE_STYLES)]
        yield name, result, {"color": COLOURS[colour], "linestyle": style, "linewidth": 1.4}


def _largest_batch(models: Models, tolerance: float, convention: str) -> Models:
    """The ranks of each model at one tolerance, for its largest batch."""
    chosen = {"tolerance": tolerance, "convention": convention}
    return {name: table.sel({**chosen, "batch_size": int(table["batch_size"].max())}) for name, table in models.items()}


def _perplexity_axis(ax: Axes, *, log: bool) -> None:
    """Label the axes; begin a logarithmic y axis at 1 or above, with six ticks where it spans less than a decade."""
    if log:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        if high / low < 10:
            ax.yaxis.set_minor_locator(NullLocator())
            ticks = np.unique(np.array([f"{tick:.2g}" for tick in np.geomspace(low, high, 6)], dtype=float))
            ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.set_ylim(low, high)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], 1 if log else 0))
    step_axis(ax, "perplexity")


def _published_handles(published: Sequence[xr.Dataset], label: str = "published", colour: str = "0.5") -> list[Line2D]:
    """Entries of the legend for published points."""
    look: dict[str, Any] = {"color": colour, "linestyle": "", "markersize": 4}
    handles = [Line2D([], [], marker="o", markerfacecolor="none", label=label, **look)] if published else []
    if any(bool(points["suspect"].any()) for points in published):
        handles.append(Line2D([], [], marker="x", label="published, suspect", **look))
    return handles


def _legend(ax: Axes, *more: Line2D) -> None:
    """Draw the legend with more entries; none where it would be empty."""
    handles, _ = ax.get_legend_handles_labels()
    if handles or more:
        ax.legend(handles=[*handles, *more])
