"""Figures for a paper: as wide as a column or a page, with panels in as many rows as that takes, and text that fits.

The width is that of a block, like a style of matplotlib: a study that draws figures at its end passes no width through
its stages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, LogFormatter, NullLocator
from matplotlib.transforms import Bbox

from pythia_dynamics.errors import UnknownNameError

__all__ = ["LEAST_POINTS", "PAPER_STYLE", "WIDTHS", "Arrangement", "PaperWidth", "arrange", "drawn_at", "fit", "paper"]

PaperWidth = Literal["column", "page"]
"""How wide a figure for a paper is."""

WIDTHS: Mapping[PaperWidth, float] = {"column": 3.25, "page": 6.75}
"""Inches: the column and the text width of the two-column styles of NeurIPS, ICML and ACL, to 1/8 inch."""

LEAST_POINTS = 6.0
"""Least size of text in points. Journals ask for 5 to 7."""

PAPER_STYLE: Mapping[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.handlelength": 1.6,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
}
"""Settings of matplotlib in which a figure for a paper differs from the others."""

_PAGE_HEIGHT = 9.0
"""Inches: the height of the text on a page. A figure is higher only where its panels would be lower than below."""

_LEAST_WIDTH, _LEAST_HEIGHT = 2.1, 1.5
"""Inches of a panel: the axis label, five tick labels and a colour bar leave half of it to the data."""

_LEGEND_SHARE = 0.3
"""Share of a panel that a legend may cover. A greater one is placed above the panel."""

_GAP = 2.0
"""Least distance between two tick labels, in points: about a space at 6 points."""

_BREAK = re.compile(r" |(?<=[a-z_])\.(?=\w)|\.(?=[a-z_])")
"""Where a line can be broken: a space, or a dot in the name of a tensor, not that of a number."""

_MOST_BREAKS = 4
"""Five lines of a label at 7 points are half an inch, a third of the lowest panel."""

_current: ContextVar[PaperWidth | None] = ContextVar("paper", default=None)


@contextmanager
def drawn_at(width: PaperWidth | None) -> Iterator[None]:
    """Draw every figure of a block at the width of a paper.

    Parameters
    ----------
    width
        ``column`` (3.25 inches) or ``page`` (6.75 inches). None: as outside the block.

    Raises
    ------
    UnknownNameError
        There is no such width.
    """
    if width is None:
        yield
        return
    if width not in WIDTHS:
        raise UnknownNameError("width", width, get_args(PaperWidth))
    token = _current.set(width)
    try:
        yield
    finally:
        _current.reset(token)


def paper() -> PaperWidth | None:
    """The width of the block around, None where figures have their own size."""
    return _current.get()


@dataclass(frozen=True)
class Arrangement:
    """How the panels of a figure are arranged for a paper.

    Parameters
    ----------
    columns, rows
        Number of panels side by side, and above one another.
    height
        Height of a panel in inches.
    """

    columns: int
    rows: int
    height: float


def arrange(columns: int, rows: int, width: PaperWidth, *, aspect: float) -> Arrangement:
    """Arrange panels so that each is large enough to be read, on one page if possible; their order stays.

    Parameters
    ----------
    columns, rows
        Number of panels side by side, and above one another, where there is no limit.
    width
        Width of the figure.
    aspect
        Height of a panel over its width. Panels are lower where the page asks for it.
    """
    inches = WIDTHS[width]
    side_by_side = max(n for n in range(1, columns + 1) if columns % n == 0 and (n == 1 or inches / n >= _LEAST_WIDTH))
    over = rows * columns // side_by_side
    height = min(aspect * inches / side_by_side, _PAGE_HEIGHT / over)
    return Arrangement(side_by_side, over, max(height, _LEAST_HEIGHT))


def fit(figure: Figure) -> None:
    """Make all text of a drawn figure fit: break long lines, move great legends, leave out tick labels that overlap.

    Powers of ten become plain numbers, because their exponents would be smaller than `LEAST_POINTS`.

    Parameters
    ----------
    figure
        The figure, with all its panels drawn.
    """
    canvas = FigureCanvasAgg(figure)
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(_PlainLog())
                axis.set_minor_formatter(_PlainLog())
    figure.draw_without_rendering()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    for text in figure.texts:
        _break(text, lambda text: _width(text, renderer), 0.96 * figure.bbox.width)
    above = _legends_above(figure, renderer)
    if above:
        figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + sum(above.values()) / figure.dpi)
        figure.draw_without_rendering()
    for ax in figure.axes:
        room = _slot(ax, figure)
        _break(ax.yaxis.label, lambda text: text.get_window_extent(renderer).height, 0.95 * ax.bbox.height)
        for text in (ax.xaxis.label, ax.title):
            _break(text, lambda text: _width(text, renderer), min(room, 1.25 * ax.bbox.width))
    for _ in range(2):  # a label that is left out gives its room to the panel
        figure.draw_without_rendering()
        for ax in figure.axes:
            for axis in (ax.xaxis, ax.yaxis):
                _thin(axis, renderer)


class _PlainLog(LogFormatter):
    """Labels of a logarithmic axis without exponents in small type: 0.01, 1, 1000, 1e6."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not super().__call__(x, pos):
            return ""
        if x == 0 or 1e-3 <= abs(x) < 1e5:
            return f"{x:g}".replace("-", "−")
        exponent = int(np.floor(np.log10(abs(x)) + 1e-9))
        return f"{x / 10.0**exponent:.3g}e{exponent}".replace("-", "−")


def _width(text: Text, renderer: Any) -> float:
    return float(text.get_window_extent(renderer).width)


def _break(text: Text, size: Callable[[Text], float], room: float) -> None:
    """Break the longest line of a text in two until it fits, `_MOST_BREAKS` times at most."""
    lines = text.get_text().split("\n")
    for _ in range(_MOST_BREAKS):
        if not text.get_visible() or size(text) <= room:
            return
        longest = max(range(len(lines)), key=lambda number: len(lines[number]))
        lines[longest : longest + 1] = _halves(lines[longest])
        text.set_text("\n".join(lines))


def _halves(line: str) -> list[str]:
    """A line broken at the space, or in the name of a tensor behind the dot, that is nearest to its middle."""
    places = [found.end() for found in _BREAK.finditer(line.rstrip())]
    if not places:
        return [line]
    middle = min(places, key=lambda place: abs(place - len(line) / 2))
    return [line[:middle].rstrip(), line[middle:]]


def _slot(ax: Axes, figure: Figure) -> float:
    """Width of the part of the figure that belongs to a panel, in pixels."""
    spec = ax.get_subplotspec()
    columns = spec.get_gridspec().ncols if spec is not None else 1
    return float(figure.bbox.width) / columns


def _legends_above(figure: Figure, renderer: Any) -> dict[int, float]:
    """Place legends that would cover too much above their panels; return the height that each row of panels needs."""
    needed: dict[int, float] = {}
    for ax in figure.axes:
        legend, spec = ax.get_legend(), ax.get_subplotspec()
        if legend is None or spec is None:
            continue
        texts = legend.get_texts()
        besides = legend.get_window_extent(renderer).width - max(_width(text, renderer) for text in texts)
        for text in texts:
            _break(text, lambda text: _width(text, renderer), ax.bbox.width - besides)
        box = legend.get_window_extent(renderer)
        if box.width * box.height <= _LEGEND_SHARE * ax.bbox.width * ax.bbox.height and box.width <= ax.bbox.width:
            continue
        legend.set_loc("lower left")
        legend.set_bbox_to_anchor((0, 1), ax.transAxes)
        pad = box.height * 72 / figure.dpi
        ax.set_title(ax.get_title(), pad=pad + 4 if ax.get_title() else None)
        row = spec.rowspan.start
        needed[row] = max(needed.get(row, 0.0), box.height)
    return needed


def _thin(axis: Axis, renderer: Any) -> None:
    """Leave out the labels of minor ticks, then every second label and so on, until none overlaps another."""
    if not _overlap(_shown(axis, renderer)):
        return
    axis.set_minor_locator(NullLocator())
    low, high = sorted(axis.get_view_interval())
    ticks = [
        (float(at), label.get_text(), label.get_window_extent(renderer))
        for at, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        if low <= at <= high and label.get_text()
    ]
    every = next((n for n in range(1, len(ticks)) if not _overlap([box for *_, box in ticks[::n]])), len(ticks))
    kept = ticks[::every]
    axis.set_major_locator(FixedLocator([at for at, *_ in kept]))
    axis.set_major_formatter(FixedFormatter([text for _, text, _ in kept]))


def _shown(axis: Axis, renderer: Any) -> list[Bbox]:
    """The boxes of the tick labels that are drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    inside = [tick for tick in ticks if low <= tick.get_loc() <= high]
    labels = [label for tick in inside for label in (tick.label1, tick.label2)]  # those of a colour bar are the second
    return [label.get_window_extent(renderer) for label in labels if label.get_visible() and label.get_text()]


def _overlap(boxes: list[Bbox]) -> bool:
    """Whether two boxes are nearer to each other than `_GAP`."""
    gap = _GAP * mpl.rcParams["figure.dpi"] / 72 / 2
    grown = [Bbox.from_extents(box.x0 - gap, box.y0, box.x1 + gap, box.y1) for box in boxes]
    return any(one.overlaps(other) for number, one in enumerate(grown) for other in grown[:number])
