"""What every page has: figures with the values behind them, JSON for the script, and the template with its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from pythia_dynamics import __version__, figures
from pythia_dynamics.errors import optional_import
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.report import facts
from pythia_dynamics.report.colours import style_of, variable, with_variables
from pythia_dynamics.report.heatmap import HeatMap

__all__ = ["Comparison", "comparison_parts", "heat_map_part", "panels_of", "picture", "render", "to_json"]

_MAX_NARROW_WIDTH = 420
"""Width in points up to which a figure shrinks on a small screen. A wider one is scrolled: its text of 9 points would
become illegible."""


@dataclass(frozen=True)
class Comparison:
    """What ``pythia-dyn compare`` saved of two sides.

    Parameters
    ----------
    a, b
        The sides, as ``MODEL[@STEP][:TENSOR]``.
    summary
        The comparison in one sentence.
    lines
        What is told beside the table: the floor, what cannot be compared.
    table
        Every statistic beside its references.
    specs
        The figures.
    command
        The command that makes the comparison.
    """

    a: str
    b: str
    summary: str
    lines: tuple[str, ...]
    table: facts.Table
    specs: tuple[FigureSpec, ...]
    command: str


def comparison_parts(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """What the template needs of comparisons.

    Parameters
    ----------
    comparisons
        The comparisons.
    """
    return [
        {
            **{name: getattr(one, name) for name in ("a", "b", "summary", "lines", "table", "command")},
            "key": f"compared{number}",
            "plates": [picture(spec, f"compared{number}-{spec.key}") for spec in one.specs],
        }
        for number, one in enumerate(comparisons, 1)
    ]


def heat_map_part(shown: HeatMap) -> dict[str, Any]:
    """What the template needs of a heat map.

    Parameters
    ----------
    shown
        The heat map.
    """
    return {
        **vars(shown),
        "content": to_json(shown.content),
        "tables": shown.content["tables"],
        "chosen": shown.content["chosen"],
    }


def picture(spec: FigureSpec, key: str) -> dict[str, Any]:
    """What the template needs of a figure.

    Parameters
    ----------
    spec
        The figure.
    key
        Its id on the page.
    """
    with spec.sheet() as (figure, axes):
        spec.draw(axes)
        drawing = figures.inline(figure, key, label=f"{spec.title}. {spec.caption}")
    wide = spec.columns * spec.width * 72 > _MAX_NARROW_WIDTH
    text = {"key": key, "title": spec.title, "caption": spec.caption}
    return {**text, "svg": with_variables(drawing.svg), "panels": to_json(panels_of(drawing)), "wide": wide}


def panels_of(drawing: figures.Drawing) -> list[dict[str, Any]]:
    """The panels of a drawing, as the script of the page uses them.

    Parameters
    ----------
    drawing
        The drawing.
    """
    panels = [asdict(panel) for panel in drawing.panels]
    for panel in panels:
        panel["series"] = [{**series, "colour": variable(series["colour"])} for series in panel["series"]]
    return panels


def to_json(content: Any) -> str:
    """JSON for a script element, with escapes for the characters that could end the element.

    Parameters
    ----------
    content
        What JSON can hold; NaN is an error.
    """
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(template: str, *, command: str, coloured: Sequence[str], has_heat_map: bool, **values: Any) -> str:
    """A page from one of the templates of this package.

    Parameters
    ----------
    template
        Name of the file.
    command
        The command that writes the page.
    coloured
        Every part of the page that has colours of figures.
    has_heat_map
        Whether the page needs the script of heat maps.
    **values
        What the template uses.

    Raises
    ------
    PythiaDynError
        Without the extra ``report``.
    """
    with optional_import("pythia-dyn report", "report"):
        from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = facts.format_number
    return environment.get_template(template).render(
        command=command,
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        colours=style_of(coloured),
        style=_file("style.css"),
        scripts=[_file(name) for name in ("common.js", "script.js", *(["heatmap.js"] if has_heat_map else []))],
        **values,
    )


def _file(name: str) -> str:
    """The text of a file of this package."""
    return (resources.files("pythia_dynamics.report") / name).read_text(encoding="utf-8")
