"""One HTML page from saved results: the scorecard of claims, the figures, tables, gaps, oddities, provenance.

The page is whole in itself: nothing is loaded from anywhere, and its own policy forbids it. Figures are drawn by
matplotlib as SVG in the page's colours; a small script reads values off them and moves the step.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from pythia_dynamics import __version__, figures
from pythia_dynamics.claims.verdict import VERDICTS, Verdict
from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.figures.gallery import of_models
from pythia_dynamics.figures.plates import Plate
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report import facts
from pythia_dynamics.report.explorer import Explorer, explorers
from pythia_dynamics.results.folder import Results

__all__ = ["Section", "report"]

_MARKS = {"supported": "✓", "not supported": "✗", "not testable here": "–"}
_NARROW = 420  # points: what is wider is scrolled on a small screen, not shrunk


@dataclass(frozen=True)
class _Picture:
    """A drawn plate on its way into the template."""

    key: str
    title: str
    caption: str
    svg: str
    panels: str
    wide: bool


@dataclass(frozen=True)
class Section:
    """What the page shows of one folder of results: the verdicts on its claims, and its figures."""

    results: Results
    verdicts: tuple[Verdict, ...]
    plates: Sequence[Plate]


def report(sections: Sequence[Section], *, progress: Progress = silent) -> str:
    """The page for these models. Raises `PythiaDynError` for a model without results. `progress` counts models."""
    with optional_import("pythia-dyn report", "report"):
        from jinja2 import Environment, StrictUndefined

    if not sections:
        raise PythiaDynError("no model to report on; name one with --model")
    folders = [section.results for section in sections]
    names = [results.label for results in folders]
    progress(0, len(sections) + 1)
    together = (
        [_picture(plate, f"all-{plate.key}") for plate in of_models(folders, Path())] if len(sections) > 1 else []
    )
    progress(1, len(sections) + 1)
    parts = []
    for number, section in enumerate(sections, 1):
        results, key = section.results, f"m{number}"
        looked = explorers(results, key)
        shown = {explorer.key.removeprefix(f"{key}-") for explorer in looked}
        parts.append(
            {
                "key": key,
                "name": results.label,
                "plates": [_picture(plate, f"{key}-{plate.key}") for plate in section.plates if plate.key not in shown],
                "explorers": [_explorer(explorer) for explorer in looked],
                "tables": facts.tables(results),
                "gaps": facts.gaps(results),
                "oddities": facts.oddities(results),
                "provenance": facts.provenance(results),
                "counts": _counts(section.verdicts),
            }
        )
        progress(number + 1, len(sections) + 1)
    rows: dict[str, dict[str, Any]] = {}
    for name, section in zip(names, sections, strict=True):
        for verdict in section.verdicts:
            row = rows.setdefault(verdict.claim, {"claim": verdict, "key": f"claim-{verdict.claim}", "of": {}})
            row["of"][name] = verdict
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = facts.number
    return environment.from_string(_part("page.html.j2")).render(
        title=f"Training dynamics of {', '.join(names)}",
        names=names,
        rows=list(rows.values()),
        marks=_MARKS,
        together=together,
        sections=parts,
        command="pythia-dyn report " + " ".join(f"--model {name}" for name in names),
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        style=_part("style.css"),
        script=_part("script.js"),
    )


def _counts(found: Sequence[Verdict]) -> str:
    counted = Counter(verdict.verdict for verdict in found)
    return ", ".join(f"{counted[word]} {word}" for word in VERDICTS)


def _picture(plate: Plate, key: str) -> _Picture:
    with plate.sheet() as (figure, axes):
        plate.paint(axes)
        drawing = figures.inline(figure, key, label=f"{plate.title}. {plate.caption}")
    return _Picture(
        key=key,
        title=plate.title,
        caption=plate.caption,
        svg=drawing.svg,
        panels=_json([asdict(panel) for panel in drawing.panels]),
        wide=plate.columns * plate.width * 72 > _NARROW,
    )


def _explorer(explorer: Explorer) -> dict[str, Any]:
    content = {
        **explorer.payload,
        "key": explorer.key,
        "steps": explorer.steps,
        "panels": [asdict(panel) for panel in explorer.drawing.panels],
    }
    return {
        "key": explorer.key,
        "title": explorer.title,
        "caption": explorer.caption,
        "svg": explorer.drawing.svg,
        "steps": explorer.steps,
        "chosen": explorer.chosen,
        "content": _json(content),
    }


def _json(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return (resources.files("pythia_dynamics.report") / name).read_text(encoding="utf-8")
