"""Figures inside an HTML page: SVG in the colours of the page, and the values that a script reads off the curves.

Text and axes have the colour of the page's text (``currentColor``), so that a figure is legible on a light and on a
dark background.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

__all__ = ["Drawing", "Panel", "inline", "rounded"]

_PAGE_COLOUR = "#010203"
"""Stands for the colour of the page's text until the SVG is written. No figure uses this colour."""

_BLACK = "#000000"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "savefig.dpi": 110,
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
}
"""Settings of matplotlib while the SVG is written. Heat maps are images in it: 110 dpi, the resolution of a common
screen, keep a page of four models below 5 MB."""

_EDITS = (
    (re.compile(r"^.*?(?=<svg)", re.DOTALL), ""),  # the XML declaration
    (re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL), ""),
    # Ids are unique on the page only if they are hashes that `key` salts, or begin with keep-.
    (re.compile(r' id="(?!m[0-9a-f]{8,}|p[0-9a-f]{8,}|C\d|keep-)[^"]*"'), ""),
    (re.compile(f"{_PAGE_COLOUR}|{_BLACK}"), "currentColor"),
    (re.compile(r'style="fill: #ffffff'), 'style="fill: none'),  # the background
    (re.compile(r"<!--.*?-->\s*", re.DOTALL), ""),
    (re.compile(r"\s*<style[^>]*>.*?</style>", re.DOTALL), ""),
    (re.compile(r"font-family: [^;\"]*sans-serif;? ?"), ""),  # the page sets the font
    (re.compile(r"\n\s+"), "\n"),
)
"""What is replaced in the SVG that matplotlib writes, in this order."""

_TAG = re.compile(r"<[^>]*>")
_DIGITS_OF_TAGS = re.compile(r"(\d+\.\d{2})\d+")
"""Numbers in tags are cut to 0.01 pt, which is finer than any screen. Those between tags are labels of ticks."""

_SIZE = re.compile(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', re.DOTALL)
_UNNAMED = re.compile(r"_child\d+")

_DIGITS = 5
"""Significant digits of the values on the page: the script shows four."""


@dataclass(frozen=True)
class Panel:
    """One `Axes` of a drawing, as the script of the page uses it.

    Parameters
    ----------
    box
        Left, top, right and bottom edge in units of the viewBox.
    x, y
        The `scale` (``linear``, ``log``), the `limits` and the `label` of each axis.
    places
        Lists of abscissae. Curves with the same abscissae share one.
    series
        The curves: the `label`, the `colour`, the values `y`, and `x`, the index of their abscissae in `places`.
    """

    box: tuple[float, float, float, float]
    x: Mapping[str, Any]
    y: Mapping[str, Any]
    places: tuple[list[float | None], ...]
    series: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Drawing:
    """A figure for a page.

    Parameters
    ----------
    svg
        The SVG element. Its ids are unique among the figures of a page, or begin with ``keep-``.
    panels
        Its panels without those of colour bars.
    """

    svg: str
    panels: tuple[Panel, ...]


def inline(figure: Figure, key: str, *, label: str) -> Drawing:
    """Draw a figure for a page. Call it inside the ``with`` block of `sheet`.

    The page has to set the font, and ``stroke-linejoin: round`` and ``stroke-linecap: butt`` for the elements inside.

    Parameters
    ----------
    figure
        The figure.
    key
        A name that is unique on the page. The ids of the SVG depend on it.
    label
        Text for readers who do not see the figure.

    Returns
    -------
    Drawing
        The SVG and the values in it.
    """
    figure.set_facecolor("none")
    for name in figure.texts:
        name.set_color(_PAGE_COLOUR)
    for ax in figure.axes:
        ax.set_facecolor("none")
        _use_page_colour(ax)
        if ax.get_xscale() == "symlog":  # the script of the page knows linear and logarithmic axes only
            ax.set_xscale("linear")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": key}):  # type: ignore[arg-type]  # the keys are a Literal
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    width, height = figure.get_size_inches() * 72
    shown = [ax for ax in figure.axes if ax.axison and not hasattr(ax, "_colorbar")]
    text = buffer.getvalue().decode()
    for pattern, replacement in _EDITS:
        text = pattern.sub(replacement, text)
    text = _TAG.sub(lambda tag: _DIGITS_OF_TAGS.sub(r"\1", tag[0]), text)
    text = _SIZE.sub(lambda found: f'{found[1]} role="img" aria-label="{escape(label)}"', text, count=1)
    return Drawing(text, tuple(_panel(ax, width, height) for ax in shown))


def _use_page_colour(ax: Axes) -> None:
    """Draw frame, ticks and text in the colour of the page; text with a colour of its own keeps it."""
    for spine in ax.spines.values():
        spine.set_edgecolor(_PAGE_COLOUR)
    ax.tick_params(which="both", color=_PAGE_COLOUR, labelcolor=_PAGE_COLOUR)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set_color(_PAGE_COLOUR)
    legend = ax.get_legend()
    legend_texts = legend.get_texts() if legend is not None else []
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *legend_texts):
        if text.get_color() in ("black", "k", _BLACK, "auto"):
            text.set_color(_PAGE_COLOUR)


def _panel(ax: Axes, width: float, height: float) -> Panel:
    """The panel of an `Axes` in a figure of this size in points: its curves of more than two points, its clouds."""
    place = ax.get_position()
    # Of an axis in units other than those of the data, the page has the values that the axis shows.
    is_replaced = ax.get_xscale() == "function"
    scale = "linear" if is_replaced else ax.get_xscale()

    def shown(values: Any) -> Any:
        return ax.xaxis.get_transform().transform(np.asarray(values, dtype=float)) if is_replaced else values

    box = (place.x0 * width, (1 - place.y1) * height, place.x1 * width, (1 - place.y0) * height)
    series = [
        _series(str(line.get_label()), line.get_color(), shown(line.get_xdata()), line.get_ydata())
        for line in ax.lines
        if len(np.atleast_1d(line.get_xdata())) > 2 and line.get_linestyle() not in ("None", "")
    ]
    for points in ax.collections:
        if isinstance(points, PathCollection):
            at: Any = np.ma.filled(np.ma.asarray(points.get_offsets(), dtype=float), np.nan)
            series.append(_series("", _PAGE_COLOUR, shown(at[:, 0]), at[:, 1]))
    places: list[list[float | None]] = []
    for curve in series:
        if curve["x"] not in places:
            places.append(curve["x"])
        curve["x"] = places.index(curve["x"])
    return Panel(
        box=tuple(round(float(edge), 2) for edge in box),  # type: ignore[arg-type]
        x={"scale": scale, "limits": rounded(shown(ax.get_xlim())), "label": ax.get_xlabel()},
        y={"scale": ax.get_yscale(), "limits": rounded(ax.get_ylim()), "label": ax.get_ylabel()},
        places=tuple(places),
        series=tuple(series),
    )


def _series(label: str, colour: Any, x: Any, y: Any) -> dict[str, Any]:
    """One curve; labels that matplotlib made up are left out."""
    name = "" if _UNNAMED.fullmatch(label) else label.removeprefix("_")
    shown = to_hex(colour)
    shown = "currentColor" if shown in (_PAGE_COLOUR, _BLACK) else shown
    return {"label": name, "colour": shown, "x": rounded(x), "y": rounded(y)}


def rounded(values: Any) -> list[float | None]:
    """Numbers for the page.

    Parameters
    ----------
    values
        An array of numbers with one dimension.

    Returns
    -------
    list of float or int or None
        Each number with five significant digits, a whole number with all its digits; None for one that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return [
        None if not np.isfinite(value) else int(value) if value.is_integer() else float(f"{value:.{_DIGITS}g}")
        for value in numbers.tolist()
    ]
