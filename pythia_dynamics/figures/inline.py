"""Figures to stand inside a page: SVG that follows the page's colours, and what a pointer needs to read values off.

Text and axes take the colour of the page's text (``currentColor``), so that a figure is legible on light and on dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Drawing", "Panel", "inline"]

_INK = "#010203"  # a colour nothing else has: it becomes the page's
_BLACK = "#000000"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "savefig.dpi": 110,
    "savefig.facecolor": "none",
    "font.family": "sans-serif",
}
_IDS = re.compile(r' id="(?!m[0-9a-f]{8,}|p[0-9a-f]{8,}|C\d|keep-)[^"]*"')
_UNNAMED = re.compile(r"_child\d+")
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_BACKGROUND = re.compile(r'style="fill: #ffffff')
_SIZE = re.compile(r'(<svg[^>]*?) width="[\d.]+pt" height="[\d.]+pt"', re.DOTALL)
_STYLESHEET = re.compile(r"\s*<style[^>]*>.*?</style>", re.DOTALL)
_FONT = re.compile(r"font-family: [^;\"]*sans-serif;? ?")
_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_DIGITS = 5


@dataclass(frozen=True)
class Panel:
    """One `Axes` of a drawing: its box in units of the viewBox, its scales, and the curves in it.

    `box` is (left, top, right, bottom); `series` has for each curve its label, its colour, `y`, and `x`, the number of
    its abscissae in `places`, which curves share.
    """

    box: tuple[float, float, float, float]
    x: Mapping[str, Any]
    y: Mapping[str, Any]
    places: tuple[list[float | None], ...]
    series: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG text without ids of its own but those that begin with ``keep-``, and its panels."""

    svg: str
    panels: tuple[Panel, ...]


def inline(figure: Figure, key: str, *, label: str) -> Drawing:
    """The drawing of a figure, to be called inside `sheet`. `key` is unique on the page, `label` says what it shows.

    The page has to set the font, and ``stroke-linejoin: round`` and ``stroke-linecap: butt`` for what is inside.
    """
    figure.set_facecolor("none")
    for ax in figure.axes:
        ax.set_facecolor("none")
        _ink(ax)
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # the keys are a Literal of all 318 of them
        mpl.rcParams["svg.hashsalt"] = key
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    width, height = figure.get_size_inches() * 72
    panels = tuple(_panel(ax, width, height) for ax in figure.axes if _is_panel(ax))
    text = _METADATA.sub("", _HEAD.sub("", buffer.getvalue().decode()))
    text = _IDS.sub("", text).replace(_INK, "currentColor").replace(_BLACK, "currentColor")
    text = _BACKGROUND.sub('style="fill: none', text)
    text = _FONT.sub("", _STYLESHEET.sub("", re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)))
    text = _NUMBER.sub(r"\1", re.sub(r"\n\s+", "\n", text))
    attributes = f' role="img" aria-label="{_escaped(label)}"'
    text = _SIZE.sub(lambda found: found[1] + attributes, text, count=1)
    return Drawing(text, panels)


def _ink(ax: Axes) -> None:
    """Draw frame, ticks and words in the page's colour; text that has a colour of its own keeps it."""
    for spine in ax.spines.values():
        spine.set_edgecolor(_INK)
    ax.tick_params(which="both", color=_INK, labelcolor=_INK)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_offset_text().set_color(_INK)
    words = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    legend = ax.get_legend()
    words += legend.get_texts() if legend is not None else []
    for word in words:
        if word.get_color() in ("black", "k", _BLACK, "auto"):
            word.set_color(_INK)


def _is_panel(ax: Axes) -> bool:
    return ax.axison and not hasattr(ax, "_colorbar")


def _panel(ax: Axes, width: float, height: float) -> Panel:
    place = ax.get_position()
    box = (place.x0 * width, (1 - place.y1) * height, place.x1 * width, (1 - place.y0) * height)
    series = [
        _series(str(line.get_label()), line.get_color(), line.get_xdata(), line.get_ydata())
        for line in ax.lines
        if len(np.atleast_1d(line.get_xdata())) > 2 and line.get_linestyle() not in ("None", "")
    ]
    for points in ax.collections:
        if isinstance(points, PathCollection):
            at: Any = np.ma.filled(np.ma.asarray(points.get_offsets(), dtype=float), np.nan)
            series.append(_series("", _INK, at[:, 0], at[:, 1]))
    places: list[list[float | None]] = []
    for one in series:
        if one["x"] not in places:
            places.append(one["x"])
        one["x"] = places.index(one["x"])
    return Panel(
        box=tuple(round(float(edge), 2) for edge in box),  # type: ignore[arg-type]
        x={"scale": ax.get_xscale(), "limits": _rounded(ax.get_xlim()), "label": ax.get_xlabel()},
        y={"scale": ax.get_yscale(), "limits": _rounded(ax.get_ylim()), "label": ax.get_ylabel()},
        places=tuple(places),
        series=tuple(series),
    )


def _series(label: str, colour: Any, x: Any, y: Any) -> dict[str, Any]:
    name = "" if _UNNAMED.fullmatch(label) else label.removeprefix("_")
    shown = to_hex(colour)
    shown = "currentColor" if shown in (_INK, _BLACK) else shown
    return {"label": name, "colour": shown, "x": _rounded(x), "y": _rounded(y)}


def _rounded(values: Any) -> list[float | None]:
    """Five digits of each number, whole numbers in full."""
    numbers = np.asarray(values, dtype=np.float64)
    return [
        None if not np.isfinite(value) else int(value) if value.is_integer() else float(f"{value:.{_DIGITS}g}")
        for value in numbers.tolist()
    ]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
