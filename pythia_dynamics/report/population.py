"""One HTML page on a population of runs: what was gathered of them, and the heat map of all their tensors."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from pythia_dynamics.errors import PythiaDynError, optional_import
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report import facts
from pythia_dynamics.report.commands import commands, subcommand
from pythia_dynamics.report.heatmap import heat_map
from pythia_dynamics.report.parts import Comparison, comparison_parts, heat_map_part, picture, render
from pythia_dynamics.results.commands import typed_command
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.runs import Seed, seed_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Gathered", "PopulationPage", "population_page"]

_PAGE_BYTES = 4_800_000
"""Length of a page without the script of the heat map and what it says of each run and tensor: below 5 MB with them."""

_LEAST_MAP_BYTES = 1_000_000
"""Length that the values of the heat map may have, however long the rest of the page is: of 10 runs × 40 tensors × 40
columns every sixth of 143 records."""

_STAGES = ("demo", "reproduce", "fetch", "verify")
"""Commands that are run before those that measure, in this order: a measure of a glob takes every run that is fetched
by then."""


@dataclass(frozen=True)
class Gathered:
    """What ``pythia-dyn gather`` said of one measure.

    Parameters
    ----------
    title
        Heading.
    found
        What was found, in sentences.
    spec
        The figure.
    table
        The end, the spread and the departures, by family or by tensor.
    tensor
        The tensor or the glob; empty for results of whole models.
    folder
        The folder of the files.
    command
        The command that gathers.
    """

    title: str
    found: str
    spec: FigureSpec
    table: facts.Table
    tensor: str
    folder: str
    command: str


@dataclass(frozen=True)
class PopulationPage:
    """What a page on a population is made of.

    Parameters
    ----------
    patterns
        The names and globs that were gathered.
    runs
        The results of the runs, in their order.
    gathered
        What was gathered.
    tables
        All tables with one row per step, for the heat map, as `pythia_dynamics.report.heatmap.read_step_tables` returns
        them.
    notes
        The tables that are not among them, each with the reason.
    comparisons
        The saved comparisons of these runs.
    problems
        Runs and results that are left out, each with the reason.
    """

    patterns: tuple[str, ...]
    runs: tuple[Results, ...]
    gathered: tuple[Gathered, ...]
    tables: Mapping[str, xr.Dataset]
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]


def population_page(page: PopulationPage, *, progress: Progress = silent) -> str:
    """The HTML page of a population.

    Parameters
    ----------
    page
        What it is made of.
    progress
        Counts figures.

    Raises
    ------
    PythiaDynError
        Where nothing was gathered, or without the extra ``report``.
    """
    with optional_import("pythia-dyn report", "report"):
        import jinja2  # noqa: F401  # before the figures are drawn

    if not page.gathered:
        raise PythiaDynError("no gathered results to report on; run pythia-dyn gather")
    name, total = ", ".join(page.patterns), len(page.gathered) + 1
    progress(0, total)
    parts = []
    for number, one in enumerate(page.gathered, 1):
        drawn = picture(one.spec, f"g{number}-figure")
        parts.append({**vars(one), "key": f"g{number}", "plate": drawn})
        progress(number, total)
    compared = comparison_parts(page.comparisons)
    plates = [part["plate"] for part in parts] + [plate for one in compared for plate in one["plates"]]
    with_heat_map = partial(
        render,
        "population.html.j2",
        command=typed_command() or shlex.join(["pythia-dyn", "report", *_options(page.patterns)]),
        coloured=[plate[what] for plate in plates for what in ("svg", "panels")],
        title=f"Training dynamics of {len(page.runs)} {'run' if len(page.runs) == 1 else 'runs'}: {name}",
        name=name,
        opening=_opening([one.name for one in page.runs]),
        parts=parts,
        comparisons=compared,
        runs=_table(page.runs),
        problems=page.problems,
        commands=_commands(page),
    )
    without = with_heat_map(heat=None, has_heat_map=False)
    room = max(_PAGE_BYTES - len(without.encode()), _LEAST_MAP_BYTES)
    heat = heat_map("tensors-map", page.tables, page.notes, most=room)
    progress(total, total)
    return without if heat is None else with_heat_map(heat=heat_map_part(heat), has_heat_map=True)


def _options(patterns: Sequence[str]) -> list[str]:
    return [word for pattern in patterns for word in ("--runs", pattern)]


def _opening(names: Sequence[str]) -> str:
    """Which runs these are, by family and by what is random in them."""

    def kind(seed: Seed) -> tuple[str, str]:
        return seed.family, seed.kind

    told = []
    for (family, random), seeds in groupby(sorted(map(seed_of, names), key=kind), key=kind):
        numbers = [f"{seed.number:.0f}" for seed in seeds]
        if not random:
            told.append(f"{family} (one run without a seed in its name)")
            continue
        what = {"data": "data seed", "weight": "weight seed"}.get(random, "seed")
        runs = "1 run" if len(numbers) == 1 else f"{len(numbers)} runs"
        told.append(f"{runs} of {family} ({what}{'' if len(numbers) == 1 else 's'} {', '.join(numbers)})")
    return f"Side by side: {'; '.join(told)}."


def _shown(run: Results) -> Results:
    """The results of a run whose provenance stands for it: of the unembedding, else of the first measured tensor."""
    try:
        return run.weights()
    except PythiaDynError:
        return run.of(run.tensors[0])


def _table(runs: Sequence[Results]) -> facts.Table:
    """The runs: their seeds, where they are from, and when they were measured."""
    rows = []
    for run in runs:
        seed, made = seed_of(run.name), facts.provenance(_shown(run))
        number = f"{seed.number:.0f}" if seed.kind else "–"
        sources = ", ".join(dict.fromkeys(source.partition(", ")[0] for source in made.sources))
        rows.append((run.name, seed.family, seed.kind or "–", number, sources or "not recorded", made.computed or "–"))
    columns = ("run", "family", "kind of seed", "seed", "weights", "computed")
    return facts.Table("Runs", columns, tuple(rows), f"{len(rows)} runs.")


def _commands(page: PopulationPage) -> tuple[str, ...]:
    """The commands that make the results again: those of the runs, those that gather, those that compare."""
    single = [one.tensor for one in page.gathered]
    found: list[str] = []
    for run in page.runs:
        folders = [_shown(run), *(run.of(tensor) for tensor in single if tensor in run.tensors)]
        for folder in {each.path: each for each in folders}.values():
            found += commands(folder)
    found.sort(key=lambda line: _stage(subcommand(line)))
    found += [one.command for one in page.gathered] + [one.command for one in page.comparisons]
    return tuple(dict.fromkeys(found))


def _stage(name: str) -> int:
    return _STAGES.index(name) if name in _STAGES else len(_STAGES)
