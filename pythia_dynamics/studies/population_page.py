"""The page of a population: what ``gather`` saved in ``results/runs/``, told and drawn from the tables of the runs."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.files import atomic_file
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report.facts import Table, format_number
from pythia_dynamics.report.heatmap import read_step_tables
from pythia_dynamics.report.population import Gathered, PopulationPage, population_page
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.results.populations import gather
from pythia_dynamics.results.spread import Variances
from pythia_dynamics.studies.population_tensors import (
    TensorPopulation,
    study_tensors,
    tensor_lines,
    tensors_figure,
)
from pythia_dynamics.studies.populations import (
    FOLDER,
    Group,
    Population,
    population_figure,
    population_name,
    population_sentences,
    study_population,
)
from pythia_dynamics.studies.saved_comparisons import comparisons_of

__all__ = ["page_of_population", "write_population_page"]

_COLUMNS = ("runs", "last step", "median", "central 80 % from", "to", "between runs", "within a run", "ICC", "leaving")


def write_population_page(
    page: PopulationPage, results: Path | str | None = None, path: Path | None = None, *, progress: Progress = silent
) -> Path:
    """Write the HTML page of a population and return the path. The file appears complete or not at all.

    Parameters
    ----------
    page
        The result of `page_of_population`.
    results
        The directory of all results.
    path
        The file. Default: ``report.html`` in the folder of the population.
    progress
        Counts figures.
    """
    path = path or results_directory(results) / FOLDER / population_name(page.patterns) / "report.html"
    text = population_page(page, progress=progress)
    with atomic_file(path) as file:
        file.write(text.encode())
    return path


def page_of_population(
    patterns: Sequence[str], results: Path | str | None = None, *, progress: Progress = silent
) -> PopulationPage:
    """What the page of a population is made of.

    The measures are those that have been gathered. Their statistics and figures are made anew from the tables of the
    runs, so that all of the page is of the same results.

    Parameters
    ----------
    patterns
        The names and globs, as they were given to ``gather``.
    results
        The directory of all results.
    progress
        Counts the tables that are read for the heat map.

    Raises
    ------
    PythiaDynError
        Nothing of this population has been gathered; the message names those that have.
    FormatError
        A result is damaged.
    """
    root = results_directory(results)
    name = population_name(patterns)
    gathered: list[Gathered] = []
    problems: dict[str, None] = {}
    runs: dict[str, None] = {}
    for path in sorted((root / FOLDER / name).glob("*/provenance.json")):
        folder = Results(f"{FOLDER}/{name}/{path.parent.name}", root)
        for made in folder.provenance().values():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what they say is told below
                    dataset, part = _gathered(patterns, folder, made, root)
            except FormatError:
                raise
            except PythiaDynError as error:
                problems[f"{path.parent.name}: {error}"] = None
                continue
            gathered.append(part)
            runs |= dict.fromkeys(dataset["run"].to_numpy().astype(str).tolist())
            left_out = dataset.attrs["left_out"]
            problems |= {f"{run} is not in {made['measure']}: {reason}": None for run, reason in left_out.items()}
    if not gathered:
        raise PythiaDynError(_nothing(patterns, root, list(problems)))
    folders = tuple(Results(run, root) for run in runs)
    tables, notes = read_step_tables(folders, progress)
    return PopulationPage(
        tuple(patterns),
        folders,
        tuple(gathered),
        tables,
        tuple(notes),
        tuple(comparisons_of(tuple(runs), root)),
        tuple(problems),
    )


def _nothing(patterns: Sequence[str], root: Path, problems: Sequence[str]) -> str:
    """Why there is no page, and what to do."""
    if problems:
        return problems[0]
    models = " ".join(f"--model {shlex.quote(pattern)}" for pattern in patterns)
    saved = sorted({path.parent.parent.name for path in (root / FOLDER).glob("*/*/provenance.json")})
    there = f"; there: {', '.join(saved)}" if saved else ""
    return (
        f"nothing is gathered of {', '.join(patterns)} in {root}{there}; run pythia-dyn gather {models} --measure order"
    )


def _gathered(
    patterns: Sequence[str], folder: Results, made: Mapping[str, Any], root: Path
) -> tuple[xr.Dataset, Gathered]:
    """The runs of a gathered measure, and its section."""
    measure, tensor, variable = str(made["measure"]), str(made["tensor"]), str(made["variable"])
    own_folder = folder.path.name != measure  # the tensor is in the name unless it is the unembedding
    dataset = gather(list(patterns), measure=measure, tensor=tensor if own_folder and tensor else None, results=root)
    words = variable.replace("_", " ")
    title = measure if words == measure else f"{measure}: {words}"
    command = str(made.get("command") or _composed(patterns, measure, variable, tensor if own_folder else ""))
    if "tensor" in dataset.dims:
        found = study_tensors(dataset, variable)
        sentences = " ".join(f"{_capitalised(line.strip(), found)}." for line in tensor_lines(found))
        spec = tensors_figure(found, patterns, folder.path)
        title += ", all tensors" if tensor == "all" else f", {tensor}"
        return dataset, Gathered(title, sentences, spec, _of_tensors(found), tensor, str(folder.path), command)
    divide = bool(made.get("per_parameter"))
    one = study_population(dataset, variable, divide=divide)
    spec = population_figure(dataset, one, patterns, folder.path, axis=made.get("axis", "step"), divide=divide)
    title += " per parameter" if divide else ""
    title += f", {tensor}" if own_folder and tensor else ""
    sentences = population_sentences(one)
    return dataset, Gathered(title, sentences, spec, _of_groups(one), tensor, str(folder.path), command)


def _capitalised(line: str, found: TensorPopulation) -> str:
    """A line with a capital, unless it begins with the name of a run or of a family."""
    first = line.split(maxsplit=1)[0].rstrip(":")
    is_name = any(str(run).startswith(first) for run in found.curves["run"].to_numpy())
    return line if is_name else line[:1].upper() + line[1:]


def _composed(patterns: Sequence[str], measure: str, variable: str, tensor: str) -> str:
    words = [word for pattern in patterns for word in ("--model", pattern)]
    words += ["--measure", measure, "--variable", variable, *(("--tensor", tensor) if tensor else ())]
    return shlex.join(["pythia-dyn", "gather", *words])


def _of_groups(found: Population) -> Table:
    """The end of each family, and its spread."""
    rows = []
    for group in found.groups:
        leaving = [f"{one.run} from {one.step:,}" for one in group.departures.found]
        rows.append(
            (group.name, *_end(group), ", ".join(leaving) or ("undecided" if group.departures.reason else "none"))
        )
    return Table("Families of runs", ("family", *_COLUMNS), tuple(rows), _NOTE)


def _of_tensors(found: TensorPopulation) -> Table:
    """The end of each tensor, and its spread."""
    rows = []
    for tensor, group in found.groups.items():
        leaving = [f"{one.run} from {one.step:,}" for name, one in found.departures if name == tensor]
        rows.append((tensor, *_end(group), ", ".join(leaving) or ("undecided" if group.departures.reason else "none")))
    return Table(f"All {len(rows)} tensors", ("tensor", *_COLUMNS), tuple(rows), _NOTE)


_NOTE = "Standard deviations between runs and within one; relative to the value (%) where all values are positive."


def _end(group: Group) -> tuple[str, ...]:
    """Runs, last step, median, central 80 %, deviations and intraclass correlation, as text."""
    end = dict.fromkeys(("median", "low", "high"), np.nan)
    if group.steps:
        end = {name: float(group.spread[name].sel(step=group.last)) for name in end}
    shown = [format_number(end[name]) for name in ("median", "low", "high")]
    return (str(len(group.runs)), f"{group.last:,}" if group.steps else "–", *shown, *_deviations(group.variances))


def _deviations(found: Variances) -> tuple[str, str, str]:
    if np.isnan(found.icc):
        return "undecided", "undecided", "–"
    between, within = (float(np.sqrt(each)) for each in (found.between, found.within))
    icc = f"{found.icc:.2f}"
    if found.logarithmic:
        return f"{between:.2%}", f"{within:.2%}", icc
    return format_number(between), format_number(within), icc
