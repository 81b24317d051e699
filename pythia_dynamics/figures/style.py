"""What all figures share: one style, sheets of panels, files, the step axis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import EngFormatter

from pythia_dynamics.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "edges", "printable", "save", "sheet", "step_axis"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with every common colour blindness."""

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
    "legend.frameon": True,  # a curve may pass under a legend, not through its words
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fancybox": False,
    "legend.fontsize": 8,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "pythia-dynamics",  # the same result gives the same file
}


@contextmanager
def sheet(columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.2) -> Iterator[tuple[Figure, Any]]:
    """A figure in the project's style and its axes (one, or an array of them); sizes are per panel, in inches."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # the keys are a Literal of all 318 of them
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        yield figure, figure.subplots(rows, columns)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` as PNG (300 dpi) and SVG, each whole or not at all. Call inside `sheet`."""
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        target = path.with_suffix(suffix)
        with atomic_file(target) as file:
            figure.savefig(file, format=suffix[1:], metadata=metadata)
        written.append(target)
    return written


def step_axis(ax: Axes) -> None:
    """The training step as the x axis, in thousands."""
    ax.set_xlabel("training step")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def edges(centres: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cell borders half-way between the centres, for uneven steps too."""
    if len(centres) < 2:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def printable(text: str, *, monospace: bool = False) -> str:
    """Text of a model as a figure can show it: line breaks as ⏎, what the font lacks as □.

    Draw it with ``parse_math=False``: a model writes dollar signs without meaning mathematics.
    """
    family = ["monospace" if monospace else "sans-serif"]  # as a string, a pattern of fontconfig's
    known = get_font(findfont(FontProperties(family=family))).get_charmap()
    return "".join("⏎" if letter == "\n" else letter if ord(letter) in known else "□" for letter in text)
