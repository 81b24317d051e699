"""What all figures share: style, colours, grids of panels, image files, the step axis."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib as mpl
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.paper import PAPER_STYLE, WIDTHS, PaperWidth, arrange, drawn_at, fit, paper
from pythia_dynamics.files import atomic_file

__all__ = ["COLOURS", "STEP_LABEL", "edges", "of_a_result", "printable", "save", "sheet", "step_axis"]

F = TypeVar("F", bound=Callable[..., None])

STEP_LABEL = "training step"
"""Label of an axis over steps; `pythia_dynamics.figures.axis` replaces such axes."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito (2008), which readers with any common colour blindness can tell apart."""

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": True,  # keeps the text legible where a curve passes under the legend
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fancybox": False,
    "legend.fontsize": 8,
    "savefig.dpi": 300,
    "svg.fonttype": "none",  # text that can be searched and edited, in the fonts of the reader
    "pdf.fonttype": 42,  # TrueType: journals refuse the outlines of type 3
    "svg.hashsalt": "pythia-dynamics",  # fixed ids: the same result gives the same file
}
"""Settings of matplotlib. Font sizes are those of a printed column: a panel is about 11 cm wide."""

_HEADING_HEIGHT = 0.22
"""Inches that a figure is higher for the name above its panels."""


def of_a_result(draw: F) -> F:
    """Make a figure of one dataset say what it takes where it is given another one.

    Parameters
    ----------
    draw
        The function of the figure: of the axes, the result and options. Its docstring says what the result is.

    Returns
    -------
    callable
        The same. Raises `PythiaDynError` for a dataset without one of the variables.
    """
    found = re.search(r"^result\n +(.+?)\.?$", inspect.cleandoc(draw.__doc__ or ""), re.M)  # 3.13 dedents docstrings
    takes = found[1].replace("`", "") if found else "Another result"

    @wraps(draw)
    def checked(*arguments: Any, **options: Any) -> None:
        try:
            draw(*arguments, **options)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            result = options.get("result", arguments[1] if len(arguments) > 1 else None)
            is_result = isinstance(result, xr.Dataset)
            if result is None or (is_result and not isinstance(error, KeyError)):
                raise
            given = ", ".join(map(str, result.data_vars)) if is_result else f"{type(result).__name__}, no Dataset"
            message = f"figures.{draw.__name__} draws: {takes[0].lower()}{takes[1:]}; it was given {given}"
            raise PythiaDynError(message) from error

    return cast("F", checked)


@contextmanager
def _style() -> Iterator[None]:
    """The settings of matplotlib for the figures of the block around."""
    settings: dict[str, Any] = _STYLE | (dict(PAPER_STYLE) if paper() else {})
    with mpl.rc_context(settings):  # type: ignore[arg-type]  # the keys are a Literal of all 318 of them
        yield


@contextmanager
def sheet(
    columns: int = 1,
    rows: int = 1,
    *,
    width: float | PaperWidth = 4.4,
    height: float = 3.2,
    name: str = "",
    of_text: bool = False,
) -> Iterator[tuple[Figure, Any]]:
    """An empty figure in the style of the project.

    Parameters
    ----------
    columns, rows
        Number of panels side by side, and above one another.
    width
        Width of one panel in inches; or that of the whole figure as a word: ``column`` (3.25 inches) or ``page`` (6.75
        inches), for a paper. The panels are then stacked in as many rows as that takes, and no text is smaller than 6
        points. Inside `drawn_at` every figure has that width.
    height
        Height of one panel in inches.
    name
        What the figure shows, above the panels: the model and the tensor.
    of_text
        Whether the panel holds lines of text, whose height does not depend on the width.

    Yields
    ------
    tuple of Figure and Axes
        The figure, and its `Axes`: one, or an array of them of shape (rows, columns) without axes of length 1. The
        style holds inside the ``with`` block.

    Raises
    ------
    UnknownNameError
        The width is another word.
    """
    wide, given = (4.4, width) if isinstance(width, str) else (width, None)
    with drawn_at(given), _style():
        heading = _HEADING_HEIGHT if name else 0.0
        if (chosen := paper()) is None:
            figure = Figure(figsize=(wide * columns, height * rows + heading), layout="constrained")
            axes = figure.subplots(rows, columns)
        else:
            plan = arrange(columns, rows, chosen, aspect=height / wide)
            tall = height if of_text else plan.height
            figure = Figure(figsize=(WIDTHS[chosen], tall * plan.rows + heading), layout="constrained")
            panels = figure.subplots(plan.rows, plan.columns, squeeze=False)
            axes = panels.reshape(rows, columns).squeeze() if panels.size > 1 else panels.item()
        if name:
            figure.suptitle(name, x=0.01, ha="left", fontsize=mpl.rcParams["legend.fontsize"], parse_math=False)
        yield figure, axes


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG (300 dpi) and SVG; one for a paper as PDF as well. Each file appears complete or not at
    all. Text is text in SVG and PDF, not outlines.

    Parameters
    ----------
    figure
        The figure, inside the ``with`` block of `sheet`.
    path
        The file without its suffix.

    Returns
    -------
    list of Path
        The files. They hold no date and no version, so that the same result gives the same bytes.
    """
    kinds: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None}}
    if paper() is not None:
        fit(figure)
        kinds[".pdf"] = {"Creator": None, "Producer": None, "CreationDate": None}
    written = []
    for suffix, metadata in kinds.items():
        target = path.with_suffix(suffix)
        with atomic_file(target) as file:
            figure.savefig(file, format=suffix[1:], metadata=metadata)
        written.append(target)
    return written


def step_axis(ax: Axes, quantity: str, *, title: str = "", legend: bool = False) -> None:
    """Label a panel whose x axis is the training step, in thousands.

    Parameters
    ----------
    ax
        The panel.
    quantity
        Label of the y axis.
    title
        Title of the panel.
    legend
        Whether to draw the legend.
    """
    ax.set(xlabel=STEP_LABEL, ylabel=quantity, title=title)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if legend:
        ax.legend()


def edges(centres: NDArray[Any]) -> NDArray[Any]:
    """Borders of the cells of a heat map.

    Parameters
    ----------
    centres
        Centres of the n cells in ascending order, evenly spaced or not.

    Returns
    -------
    array of shape (n + 1,)
        Borders half-way between the centres. A single cell has width 1.
    """
    if len(centres) < 2:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def printable(text: str, *, monospace: bool = False) -> str:
    """Text of a model with characters that a figure can show: line breaks as ⏎, characters without a glyph as □.

    Draw it with ``parse_math=False``: dollar signs in the output of a model do not mark mathematics.

    Parameters
    ----------
    text
        The text.
    monospace
        Whether it is drawn in the monospace font rather than the proportional one.
    """
    family = ["monospace" if monospace else "sans-serif"]  # matplotlib parses a plain string as a fontconfig pattern
    known = get_font(findfont(FontProperties(family=family))).get_charmap()
    return "".join("⏎" if letter == "\n" else letter if ord(letter) in known else "□" for letter in text)
