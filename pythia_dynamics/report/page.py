"""One HTML page from saved results: the scorecard of claims, figures, tables, missing steps, findings, provenance.

The page is one file. It loads nothing, and its content security policy forbids it to. Figures are SVG in the colours
of the page, drawn by matplotlib. A small script shows the values at the pointer and moves the slider's step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_dynamics.claims.populations import SeedCounts
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.figures.gallery import comparison_figures
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report import facts
from pythia_dynamics.report.colours import with_variables
from pythia_dynamics.report.commands import report_command, verify_command
from pythia_dynamics.report.explorer import Explorer, explorers
from pythia_dynamics.report.heatmap import heat_map, read_step_tables
from pythia_dynamics.report.parts import (
    Comparison,
    comparison_parts,
    heat_map_part,
    panels_of,
    picture,
    render,
    to_json,
)
from pythia_dynamics.report.summary import paragraph
from pythia_dynamics.report.verdicts import MARKS, counted, evidence_facts, heading, records_of
from pythia_dynamics.results.folder import Results

__all__ = ["OverModels", "Section", "report"]


_HEAT_BYTES = 600_000
"""Length of the values of all heat maps on a page: 40 tensors × 143 steps × 38 columns of one model. The page of four
models, whose figures take 4.3 MB, so stays below 5 MB; the heat maps of several models show fewer steps."""


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


def report(
    sections: Sequence[Section],
    *,
    over: OverModels | None = None,
    comparisons: Sequence[Comparison] = (),
    progress: Progress = silent,
) -> str:
    """The HTML page of some models.

    Parameters
    ----------
    sections
        One for each model.
    over
        What is said of several models together.
    comparisons
        Saved comparisons of these models.
    progress
        Counts models, and the figures of all models as one more.

    Raises
    ------
    PythiaDynError
        Without sections, or without the extra ``report``.
    """
    with optional_import("pythia-dyn report", "report"):
        import jinja2  # noqa: F401  # before the figures are drawn

    if not sections:
        raise PythiaDynError("no model to report on; name one with --model")
    folders, total = [section.results for section in sections], len(sections) + 1
    names = [results.label for results in folders]
    progress(0, total)
    over_models = comparison_figures(folders, Path()) if len(sections) > 1 else []
    together = [picture(spec, f"all-{spec.key}") for spec in over_models]
    progress(1, total)
    parts = []
    for number, section in enumerate(sections, 1):
        is_first = folders[number - 1].name not in {one.name for one in folders[: number - 1]}
        most = _HEAT_BYTES // len({folder.name for folder in folders})
        heat = _heat_map(section.results, number, most) if is_first else None
        parts.append({**_part(section, f"m{number}"), "heat": heat})
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
    compared = comparison_parts(comparisons)
    return render(
        "page.html.j2",
        command=report_command(folders),
        coloured=list(_drawn([*together, *(plate for one in compared for plate in one["plates"])], *parts)),
        has_heat_map=any(part["heat"] for part in parts),
        title=f"Training dynamics of {', '.join(names)}",
        names=names,
        rows=list(rows.values()),
        works=works,
        marks=MARKS,
        over=together_judged,
        seeds=over.seeds if over else (),
        together=together,
        comparisons=compared,
        sections=parts,
    )


def _part(section: Section, key: str) -> dict[str, Any]:
    """What the template needs of a section. A figure that is an explorer is not drawn a second time."""
    results, with_slider = section.results, explorers(section.results, key)
    shown = {explorer.key for explorer in with_slider}
    return {
        "key": key,
        "name": results.label,
        "plates": [picture(spec, f"{key}-{spec.key}") for spec in section.specs if f"{key}-{spec.key}" not in shown],
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


def _heat_map(results: Results, number: int, most: int) -> dict[str, Any] | None:
    """The heat map of all tensors of a model; None where one tensor alone has been measured."""
    if len(results.model.tensors) < 2:
        return None
    shown = heat_map(f"m{number}-heat", *read_step_tables([results.model]), most=most)
    return None if shown is None else heat_map_part(shown)


def _drawn(together: Sequence[dict[str, Any]], *parts: dict[str, Any]) -> Iterator[str]:
    """Every part of the page that has colours of figures."""
    yield from (picture[what] for picture in together for what in ("svg", "panels"))
    for part in parts:
        yield from (picture[what] for picture in part["plates"] for what in ("svg", "panels"))
        yield from (explorer[what] for explorer in part["explorers"] for what in ("svg", "content"))


def _explorer(explorer: Explorer) -> dict[str, Any]:
    """What the template needs of an explorer."""
    content = {**explorer.payload, "key": explorer.key, "steps": explorer.steps, "panels": panels_of(explorer.drawing)}
    return {**vars(explorer), "svg": with_variables(explorer.drawing.svg), "content": to_json(content)}
