"""A population of runs: what its curves say, in words and as files in ``results/runs/``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.figures.axis import AxisKind
from pythia_dynamics.figures.populations import population as draw_population
from pythia_dynamics.figures.specs import FigureSpec, save_figures
from pythia_dynamics.results.curves import curve_of, per_parameter, replicates
from pythia_dynamics.results.departures import Departures, departures
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.spread import Origin, Variances, band, data_or_weights, variances
from pythia_dynamics.studies.pipeline import Outcome
from pythia_dynamics.tables import plain, write_csv

__all__ = [
    "FOLDER",
    "Group",
    "Population",
    "population_figure",
    "population_folder",
    "population_lines",
    "population_name",
    "population_sentences",
    "study_population",
    "write_population",
]

FOLDER = "runs"
"""Folder of populations in the directory of all results. Each has a folder in it, and each result a folder in that: one
level deeper than the results of a model and its tensors, so that no command takes a population for a model, and a model
that is called ``runs`` keeps its results."""

_LONGEST = 80
"""Characters of the name of a population. File systems allow 255 bytes, and names are part of longer paths."""

_SHOWN = {"*": "+", "?": "=", "/": "--", "[": "(", "]": ")"}
"""Characters of a glob or a repository that some file system does not allow, and what stands for them."""


@dataclass(frozen=True, eq=False)
class Group:
    """The replicates of one family.

    Parameters
    ----------
    name
        The family, with the kind of seed where only a part is random.
    runs
        Names of the runs.
    steps
        Number of steps at which a run has a record; the first and the last of them, 0 without any.
    first, last
        These two steps.
    gaps
        Number of records that runs have not, at these steps.
    spread
        The median and the central 80 % at each step.
    variances
        Between-run and within-run variance.
    departures
        The runs that leave the others.
    """

    name: str
    runs: tuple[str, ...]
    steps: int
    first: int
    last: int
    gaps: int
    spread: xr.Dataset
    variances: Variances
    departures: Departures


@dataclass(frozen=True, eq=False)
class Population:
    """What one curve of several runs says.

    Parameters
    ----------
    variable
        Its name.
    curve
        Over `run` and `step`.
    groups
        The replicates of each family.
    origins
        By family with data seeds and weight seeds: which of the two makes runs differ.
    """

    variable: str
    curve: xr.DataArray
    groups: tuple[Group, ...]
    origins: Mapping[str, Origin]


def study_population(dataset: xr.Dataset, variable: str | None = None, *, divide: bool = False) -> Population:
    """The statistics of one curve of several runs.

    Parameters
    ----------
    dataset
        The result of `pythia_dynamics.gather`.
    variable
        Its variable. Default: the main one of the measure.
    divide
        Whether to divide by the number of parameters of each model.

    Raises
    ------
    PythiaDynError
        As `curve_of` and `per_parameter`.
    """
    curve = curve_of(dataset, variable)
    curve = per_parameter(curve) if divide else curve
    groups = tuple(_group(name, runs) for name, runs in replicates(curve).items())
    families, kinds = (curve[name].to_numpy().astype(str) for name in ("family", "seed_kind"))
    origins = {}
    for family in dict.fromkeys(families.tolist()):
        own = np.flatnonzero(families == family)
        if {"data", "weight"} <= set(kinds[own]):
            origins[family] = data_or_weights(curve.isel(run=own), kinds[own].tolist())
    return Population(str(curve.name), curve, groups, origins)


def _group(name: str, runs: xr.DataArray) -> Group:
    known = np.isfinite(runs.to_numpy())
    at = runs["step"].to_numpy()[known.any(axis=0)].tolist()
    gaps = len(at) * len(known) - int(known.sum())
    names = tuple(runs["run"].to_numpy().astype(str).tolist())
    first, last = (int(at[0]), int(at[-1])) if at else (0, 0)
    return Group(name, names, len(at), first, last, gaps, band(runs), variances(runs), departures(runs))


def population_lines(found: Population) -> list[str]:
    """What a population says, one line for each finding; lines on a group are indented.

    Parameters
    ----------
    found
        The statistics.
    """
    lines = []
    for group in found.groups:
        runs = "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
        gaps = f", {group.gaps} {'gap' if group.gaps == 1 else 'gaps'}" if group.gaps else ""
        steps = f"{group.steps} steps ({group.first} … {group.last})" if group.steps else "no values"
        lines.append(f"{group.name}: {runs}, {steps}{gaps}")
        if group.steps:
            lines.append(f"  at the end: {_end_in_words(group)}")
        if len(group.runs) > 1:
            lines += [f"  {_variances_in_words(group.variances)}", *(f"  {line}" for line in _leaving_in_words(group))]
    lines += [f"{family}, data or weights: {_origin_in_words(origin)}" for family, origin in found.origins.items()]
    return lines


def population_sentences(found: Population) -> str:
    """What a population says, in sentences for the page.

    Parameters
    ----------
    found
        The statistics.
    """
    told = []
    for group in found.groups:
        if not group.steps:
            told.append(f"{group.name} has no values.")
            continue
        runs = "1 run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
        told.append(f"{runs} of {group.name} at step {group.last:,}: {_end_in_words(group)}.")
        if len(group.runs) > 1:
            told += [f"{line[:1].upper()}{line[1:]}." for line in (_variances_in_words(group.variances),)]
            leaving = [_leaving_in_words(group)] if not group.departures.found else []
            told += [f"{line[:1].upper()}{line[1:]}." for lines in leaving for line in lines]
            told += [f"{one.run} leaves the others at step {one.step:,}." for one in group.departures.found]
    told += [f"Data or weights, {family}: {_origin_in_words(origin)}." for family, origin in found.origins.items()]
    return " ".join(told)


def _end_in_words(group: Group) -> str:
    end = group.spread.sel(step=group.last)
    count = int(end["runs"])
    if count == 1:
        return f"{float(end['median']):.4g} (1 run)"
    low, median, high = (float(end[name]) for name in ("low", "median", "high"))
    return f"median {median:.4g}, central 80 % {low:.4g} to {high:.4g} ({count} runs)"


def _variances_in_words(found: Variances) -> str:
    if np.isnan(found.icc):
        return f"between and within runs: undecided ({found.reason})"
    between, within = np.sqrt(found.between), np.sqrt(found.within)
    sizes = (
        f"{between:.2%} between runs, {within:.2%} within"
        if found.logarithmic
        else f"{between:.3g} between runs, {within:.3g} within"
    )
    return f"standard deviation {sizes}; intraclass correlation {found.icc:.2f}"


def _leaving_in_words(group: Group) -> list[str]:
    if group.departures.reason:
        return [f"leaving runs: undecided ({group.departures.reason})"]
    if not group.departures.found:
        return [f"no run leaves the others ({group.departures.tested} compared)"]
    lines = []
    for one in group.departures.found:
        ratio = "" if np.isnan(one.ratio) else f"{one.ratio:.3g} times the others, "
        sizes = f"{ratio}{abs(one.deviations):.3g} standard deviations, p = {one.p:.2g}"
        lines.append(f"{one.run} leaves the others at step {one.step} ({sizes})")
    return lines


def _origin_in_words(found: Origin) -> str:
    counts = f"{found.data} data seeds, {found.weights} weight seeds"
    if np.isnan(found.ratio):
        return f"undecided ({found.reason})"
    interval = f"ratio of variances {found.ratio:.3g}, 95 % interval {found.low:.2g} to {found.high:.3g}"
    return f"{found.answer} ({interval}; p = {found.p:.2g}; {counts})"


def _facts(found: Population) -> dict[str, Any]:
    """The statistics for programs."""
    groups = [
        {
            "name": group.name,
            "runs": group.runs,
            "steps": group.steps,
            "first_step": group.first,
            "last_step": group.last,
            "gaps": group.gaps,
            "end": {name: float(group.spread[name].sel(step=group.last)) for name in ("low", "median", "high", "runs")}
            if group.steps
            else None,
            "variances": asdict(group.variances),
            "departures": asdict(group.departures),
        }
        for group in found.groups
    ]
    origins = {family: asdict(origin) for family, origin in found.origins.items()}
    return dict(plain({"variable": found.variable, "groups": groups, "data_or_weights": origins}))


def write_population(
    dataset: xr.Dataset,
    found: Population,
    patterns: Sequence[str],
    results: Path | str | None = None,
    *,
    axis: AxisKind = "step",
    divide: bool = False,
) -> Outcome:
    """Write the runs, the band, the figure and the provenance of a population.

    The folder is ``results/runs/<population>/<measure>/``, with the tensor in the name unless it is the unembedding.
    ``<variable>.csv`` has a row for each run and step, ``<variable>-band.csv`` one for each group and step; names of
    values that are divided end with ``-per-parameter``.

    Parameters
    ----------
    dataset
        The result of `pythia_dynamics.gather`.
    found
        The statistics of one of its curves.
    patterns
        The names and globs that were gathered. They give the name of the population.
    results
        The directory of all results.
    axis
        The x axis of the figure.
    divide
        Whether the values are divided by the number of parameters.
    """
    measure, tensor = str(dataset.attrs["measure"]), str(dataset.attrs["tensor"])
    folder = population_folder(dataset, patterns, results)
    spec = population_figure(dataset, found, patterns, folder.path, axis=axis, divide=divide)
    stem = spec.key
    with spec.sheet() as (_, ax):
        spec.draw(ax)  # an axis that is not known is an error before the first file
    columns = ("run", "seed", "seed_kind", "family", "parameters")
    frame = found.curve.to_dataframe().reset_index().sort_values(["run", "step"], kind="stable")
    frame["run"] = frame["run"].astype(str)
    rows = frame[["step", *columns, found.variable]]
    files = [
        write_csv(
            folder.path / f"{stem}.csv", ["step", *columns, found.variable], rows.itertuples(index=False, name=None)
        ),
        write_csv(
            folder.path / f"{stem}-band.csv", _BAND, (row for group in found.groups for row in _band_rows(group))
        ),
    ]
    facts = _facts(found)
    made = {
        "patterns": list(patterns),
        "runs": dataset.attrs["sources"],
        "left_out": dataset.attrs["left_out"],
        "measure": measure,
        "tensor": tensor,
        "variable": found.variable,
        "per_parameter": divide,
        "axis": axis,
        "facts": facts,
    }
    folder.record(stem, made)
    files += save_figures([spec])
    count = len(found.curve["run"])
    return Outcome("gather", tuple(files), f"{found.variable} of {count} {'run' if count == 1 else 'runs'}", facts)


def population_figure(
    dataset: xr.Dataset,
    found: Population,
    patterns: Sequence[str],
    folder: Path,
    *,
    axis: AxisKind = "step",
    divide: bool = False,
) -> FigureSpec:
    """The figure of a population: every run, the median and the central 80 %.

    Parameters
    ----------
    dataset, found, patterns, axis, divide
        As for `write_population`.
    folder
        The folder of its files.
    """
    return FigureSpec(
        folder / (found.variable + ("-per-parameter" if divide else "")),
        f"{found.variable.replace('_', ' ')} of {len(found.curve['run'])} runs",
        " ".join(f"{line.strip()}." for line in population_lines(found)),
        lambda ax: draw_population(ax, dataset, variable=found.variable, axis=axis, divide=divide),
        width=6.0,
        height=3.8,
        name=", ".join(filter(None, [*patterns, str(dataset.attrs["tensor"])])),
    )


def population_folder(dataset: xr.Dataset, patterns: Sequence[str], results: Path | str | None = None) -> Results:
    """The folder of a population: ``runs/<population>/<measure>``, with the tensor unless it is the unembedding.

    Parameters
    ----------
    dataset
        The result of `pythia_dynamics.gather`.
    patterns
        The names and globs that were gathered.
    results
        The directory of all results.
    """
    measure, tensor = str(dataset.attrs["measure"]), str(dataset.attrs["tensor"])
    tail = f",{population_name([tensor])}" if tensor and not dataset.attrs["is_unembedding"] else ""
    return Results(f"{FOLDER}/{population_name(patterns)}/{measure}{tail}", results)


_BAND = ("group", "step", "runs", "median", "low", "high")


def _band_rows(group: Group) -> list[tuple[Any, ...]]:
    columns = [group.spread[name].to_numpy().tolist() for name in _BAND[1:]]
    return [(group.name, *row) for row in zip(*columns, strict=True)]


def population_name(patterns: Sequence[str]) -> str:
    """The name of a population: its globs and names, with characters that every file system has.

    Parameters
    ----------
    patterns
        The names and globs that were gathered.
    """
    text = ",".join(patterns)
    shown = "".join(_SHOWN.get(character, character) for character in text)
    safe = re.sub(r"[^\w.,+=()!-]", "_", shown).strip(".")
    if safe == shown and 0 < len(safe) <= _LONGEST:
        return safe
    return f"{safe[:_LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
