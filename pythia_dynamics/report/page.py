"""One HTML page from saved results: the scorecard of claims, figures, tables, missing steps, findings, provenance.

The page is one file. It loads nothing, and its content security policy forbids it to. Figures are SVG in the colours
of the page, drawn by matplotlib. A small script shows the values at the pointer and moves the slider's step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from pythia_dynamics import __version__, figures
from pythia_dynamics.claims.populations import SeedCounts
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.figures.gallery import comparison_figures
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report import facts
from pythia_dynamics.report.colours import style_of, variable, with_variables
from pythia_dynamics.report.commands import report_command, verify_command
from pythia_dynamics.report.explorer import Explorer, explorers
from pythia_dynamics.report.summary import paragraph
from pythia_dynamics.report.verdicts import MARKS, counted, evidence_facts, heading, records_of
from pythia_dynamics.results.folder import Results

__all__ = ["OverModels", "Section", "report"]

_MAX_NARROW_WIDTH = 420
"""Width in points up to which a figure shrinks on a small screen. A wider one is scrolled: its text of 9 points would
become illegible."""


@dataclass(frozen=True)
class Section:
    """The part of the page on one folder of results.

    Parameters
    ----------
    results
        The results.
    verdicts
        The verdicts on its claims.
    specs
        Its figures.
    tables
        Its tables.
    """

    results: Results
    verdicts: tuple[Verdict, ...]
    specs: Sequence[FigureSpec]
    tables: Sequence[facts.Table]


@dataclass(frozen=True)
class OverModels:
    """What is said of several models together.

    Parameters
    ----------
    verdicts
        The verdicts on the claims about all of them.
    seeds
        The verdicts on each model, counted over its runs with other seeds.
    """

    verdicts: tuple[Verdict, ...]
    seeds: tuple[SeedCounts, ...]


def report(sections: Sequence[Section], *, over: OverModels | None = None, progress: Progress = silent) -> str:
    """The HTML page of some models.

    Parameters
    ----------
    sections
        One for each model.
    over
        What is said of several models together.
    progress
        Counts models, and the figures of all models as one more.

    Raises
    ------
    PythiaDynError
        Without sections, or without the extra ``report``.
    """
    with optional_import("pythia-dyn report", "report"):
        from jinja2 import Environment, StrictUndefined

    if not sections:
        raise PythiaDynError("no model to report on; name one with --model")
    folders, total = [section.results for section in sections], len(sections) + 1
    names = [results.label for results in folders]
    progress(0, total)
    comparisons = comparison_figures(folders, Path()) if len(sections) > 1 else []
    together = [_picture(spec, f"all-{spec.key}") for spec in comparisons]
    progress(1, total)
    parts = []
    for number, section in enumerate(sections, 1):
        parts.append(_part(section, f"m{number}"))
        progress(number + 1, total)
    rows: dict[str, dict[str, Any]] = {}
    for name, section in zip(names, sections, strict=True):
        records = records_of(section.results)
        for verdict in section.verdicts:
            row = rows.setdefault(verdict.claim, {"claim": verdict, "key": f"claim-{verdict.claim}", "of": {}})
            row["of"][name] = {"verdict": verdict, "evidence": evidence_facts(verdict, records)}
    works: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        works.setdefault(row["claim"].work, []).append(row)
    records = max(records_of(results) for results in folders)
    together_judged = [
        {"verdict": verdict, "key": f"claim-{verdict.claim}", "evidence": evidence_facts(verdict, records)}
        for verdict in (over.verdicts if over else ())
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = facts.format_number
    return environment.from_string(_file("page.html.j2")).render(
        title=f"Training dynamics of {', '.join(names)}",
        names=names,
        rows=list(rows.values()),
        works=works,
        marks=MARKS,
        over=together_judged,
        seeds=over.seeds if over else (),
        together=together,
        sections=parts,
        command=report_command(folders),
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        colours=style_of(_drawn(together, *parts)),
        style=_file("style.css"),
        script=_file("script.js"),
    )


def _part(section: Section, key: str) -> dict[str, Any]:
    """What the template needs of a section. A figure that is an explorer is not drawn a second time."""
    results, with_slider = section.results, explorers(section.results, key)
    shown = {explorer.key for explorer in with_slider}
    return {
        "key": key,
        "name": results.label,
        "plates": [_picture(spec, f"{key}-{spec.key}") for spec in section.specs if f"{key}-{spec.key}" not in shown],
        "explorers": [_explorer(explorer) for explorer in with_slider],
        "tables": section.tables,
        "gaps": facts.gaps(results),
        "findings": facts.findings(results),
        "verify": verify_command(results),
        "provenance": facts.provenance(results),
        "found": paragraph(results, section.verdicts),
        "counts": counted(section.verdicts),
        "heading": heading(section.verdicts),
    }


def _drawn(together: Sequence[dict[str, Any]], *parts: dict[str, Any]) -> Iterator[str]:
    """Every part of the page that has colours of figures."""
    yield from (picture[what] for picture in together for what in ("svg", "panels"))
    for part in parts:
        yield from (picture[what] for picture in part["plates"] for what in ("svg", "panels"))
        yield from (explorer[what] for explorer in part["explorers"] for what in ("svg", "content"))


def _picture(spec: FigureSpec, key: str) -> dict[str, Any]:
    """What the template needs of a figure."""
    with spec.sheet() as (figure, axes):
        spec.draw(axes)
        drawing = figures.inline(figure, key, label=f"{spec.title}. {spec.caption}")
    wide = spec.columns * spec.width * 72 > _MAX_NARROW_WIDTH
    text = {"key": key, "title": spec.title, "caption": spec.caption}
    return {**text, "svg": with_variables(drawing.svg), "panels": _json(_panels(drawing)), "wide": wide}


def _explorer(explorer: Explorer) -> dict[str, Any]:
    """What the template needs of an explorer."""
    content = {**explorer.payload, "key": explorer.key, "steps": explorer.steps, "panels": _panels(explorer.drawing)}
    return {**vars(explorer), "svg": with_variables(explorer.drawing.svg), "content": _json(content)}


def _panels(drawing: figures.Drawing) -> list[dict[str, Any]]:
    """The panels of a drawing, as the script of the page uses them."""
    panels = [asdict(panel) for panel in drawing.panels]
    for panel in panels:
        panel["series"] = [{**series, "colour": variable(series["colour"])} for series in panel["series"]]
    return panels


def _json(content: Any) -> str:
    """JSON for a script element, with escapes for the characters that could end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    """The text of a file of this package."""
    return (resources.files("pythia_dynamics.report") / name).read_text(encoding="utf-8")
