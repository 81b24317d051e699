"""All tensors of a population of runs: which differ most between runs, which runs leave the others in which tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.layers import SHOWN, layers_figure
from pythia_dynamics.figures.specs import FigureSpec, save_figures
from pythia_dynamics.results.departures import ALARMS, Departure
from pythia_dynamics.results.overview import overview_table
from pythia_dynamics.studies.pipeline import Outcome
from pythia_dynamics.studies.populations import Group, population_folder, study_population
from pythia_dynamics.tables import plain, write_csv

__all__ = ["TensorPopulation", "study_tensors", "tensor_lines", "tensors_figure", "write_tensors"]

_ICC_HIGH = 0.5
"""Intraclass correlation from which a curve tells its run: more of its variance is between runs than within one."""

_NAMED = 6
"""Departures that are told in words; all of them are in the facts."""


@dataclass(frozen=True, eq=False)
class TensorPopulation:
    """One curve of every tensor of several runs.

    Parameters
    ----------
    variable
        Its name.
    units
        Its units; empty where they are not known.
    curves
        Over `tensor`, `run` and `step`.
    groups
        The statistics of the runs by tensor.
    departures
        The runs that leave the others: the tensor and the departure. Their p-values are corrected for the number of
        tensors.
    """

    variable: str
    units: str
    curves: xr.DataArray
    groups: Mapping[str, Group]
    departures: tuple[tuple[str, Departure], ...]


def study_tensors(dataset: xr.Dataset, variable: str | None = None) -> TensorPopulation:
    """The statistics of one curve of every tensor.

    The test of departures is made for every tensor, and its p-values are multiplied by the number of tensors in which
    runs were compared (Bonferroni).

    Parameters
    ----------
    dataset
        The result of `pythia_dynamics.gather` for several tensors.
    variable
        Its variable. Default: that of the overview of one model, such as rms.

    Raises
    ------
    PythiaDynError
        As `curve_of`; or the runs are of several families: their tensors are not those of one model.
    """
    shown = {overview_table(measure)[0]: column for measure, (column, _) in SHOWN.items()}
    variable = variable or shown.get(str(dataset.attrs.get("measure", "")))
    found = {}
    for index, tensor in enumerate(dataset["tensor"].to_numpy().astype(str).tolist()):
        found[tensor] = study_population(dataset.isel(tensor=index, drop=True), variable)
        if len(found[tensor].groups) > 1:
            names = ", ".join(group.name for group in found[tensor].groups)
            raise PythiaDynError(f"these are runs of {names}: gather all tensors of one family at a time")
    first = next(iter(found.values()))
    groups = {tensor: one.groups[0] for tensor, one in found.items()}
    tests = sum(group.departures.tested > 0 for group in groups.values())
    leaving = [
        (tensor, replace(one, p=min(one.p * tests, 1.0)))
        for tensor, group in groups.items()
        for one in group.departures.found
        if one.p * tests <= ALARMS
    ]
    curves = xr.concat([one.curve for one in found.values()], dim="tensor", coords="minimal")
    places = {name: dataset[name] for name in ("tensor", "layer", "kind", "is_bias", "head")}
    ordered = tuple(sorted(leaving, key=lambda each: (each[1].step, each[1].run)))
    return TensorPopulation(
        first.variable, str(first.curve.attrs.get("units", "")), curves.assign_coords(places), groups, ordered
    )


def tensor_lines(found: TensorPopulation) -> list[str]:
    """What the tensors of a population say, one line for each finding; all but the first are indented.

    Parameters
    ----------
    found
        The statistics.
    """
    groups = found.groups
    group = max(groups.values(), key=lambda one: one.steps)
    runs = "1 run" if found.curves.sizes["run"] == 1 else f"{found.curves.sizes['run']} runs"
    steps = f"{group.steps} steps ({group.first} … {group.last})" if group.steps else "no values"
    lines = [f"{group.name}: {found.variable.replace('_', ' ')} of {len(groups)} tensors, {runs}, {steps}"]
    relative = {
        tensor: float(np.sqrt(one.variances.between))
        for tensor, one in groups.items()
        if one.variances.logarithmic and np.isfinite(one.variances.icc)
    }
    known = [one.variances.icc for one in groups.values() if np.isfinite(one.variances.icc)]
    if relative:
        most, least = (pick(relative, key=relative.__getitem__) for pick in (max, min))
        median = float(np.median(list(relative.values())))
        lines.append(
            f"  standard deviation between runs: {relative[least]:.2%} ({least}) to {relative[most]:.2%} ({most}), "
            f"median {median:.2%}"
        )
    if known:
        high = sum(icc > _ICC_HIGH for icc in known)
        lines.append(f"  more variance between runs than within one in {high} of {len(known)} tensors")
    tested = sum(one.departures.tested > 0 for one in groups.values())
    if not tested:
        lines.append(f"  leaving runs: undecided ({group.departures.reason})")
    elif not found.departures:
        lines.append(f"  no run leaves the others in any tensor (p corrected for {tested} tensors)")
    for tensor, one in found.departures[:_NAMED]:
        sizes = f"{abs(one.deviations):.3g} standard deviations, p = {one.p:.2g}"
        lines.append(f"  {one.run} leaves the others at step {one.step} in {tensor} ({sizes})")
    if len(found.departures) > _NAMED:
        lines.append(f"  and {len(found.departures) - _NAMED} more departures")
    return lines


def write_tensors(
    dataset: xr.Dataset, found: TensorPopulation, patterns: Sequence[str], results: Path | str | None = None
) -> Outcome:
    """Write the runs, the bands, the table of tensors, the figure and the provenance.

    The folder is ``results/runs/<population>/<measure>,all/`` (or the glob in place of ``all``). ``<variable>.csv`` has
    a row for each tensor, run and step, ``<variable>-band.csv`` one for each tensor and step, and
    ``<variable>-tensors.csv`` one for each tensor.

    Parameters
    ----------
    dataset
        The result of `pythia_dynamics.gather` for several tensors.
    found
        The statistics.
    patterns
        The names and globs that were gathered. They give the name of the population.
    results
        The directory of all results.
    """
    folder = population_folder(dataset, patterns, results)
    stem, runs = found.variable, found.curves["run"].to_numpy().astype(str).tolist()
    places = list(
        zip(
            found.groups,
            found.curves["layer"].to_numpy().tolist(),
            found.curves["kind"].to_numpy().astype(str).tolist(),
            found.curves["head"].to_numpy().tolist(),
            strict=True,
        )
    )
    curves = found.curves.transpose("tensor", "run", "step").to_numpy()
    steps = found.curves["step"].to_numpy().tolist()
    rows = (
        (*place, run, step, value)
        for place, of_runs in zip(places, curves, strict=True)
        for run, values in zip(runs, of_runs, strict=True)
        for step, value in zip(steps, values.tolist(), strict=True)
    )
    bands = (
        (*place, *row)
        for place, group in zip(places, found.groups.values(), strict=True)
        for row in zip(*(group.spread[name].to_numpy().tolist() for name in _BAND), strict=True)
    )
    ends = [(*place, *_end(group)) for place, group in zip(places, found.groups.values(), strict=True)]
    files = [
        write_csv(folder.path / f"{stem}.csv", (*_PLACE, "run", "step", stem), rows),
        write_csv(folder.path / f"{stem}-band.csv", (*_PLACE, *_BAND), bands),
        write_csv(folder.path / f"{stem}-tensors.csv", (*_PLACE, *_END), ends),
    ]
    words = found.variable.replace("_", " ")
    spec = tensors_figure(found, patterns, folder.path)
    facts = _facts(found)
    made = {
        "patterns": list(patterns),
        "runs": dataset.attrs["sources"],
        "left_out": dataset.attrs["left_out"],
        "measure": str(dataset.attrs["measure"]),
        "tensor": str(dataset.attrs["tensor"]),
        "variable": stem,
        "facts": facts,
    }
    folder.record(stem, made)
    files += save_figures([spec])
    return Outcome("gather", tuple(files), f"{words} of {len(places)} tensors, {len(runs)} runs", facts)


def tensors_figure(found: TensorPopulation, patterns: Sequence[str], folder: Path) -> FigureSpec:
    """The figure of the tensors of a population by layer and kind.

    Parameters
    ----------
    found
        The statistics.
    patterns
        The names and globs that were gathered.
    folder
        The folder of its files.
    """
    lines, words = tensor_lines(found), found.variable.replace("_", " ")
    units = f" ({found.units})" if found.units not in ("", "1") else ""
    return layers_figure(
        folder / found.variable,
        found.curves.rename(found.variable).to_dataset(),
        found.variable,
        f"{words} of {len(found.groups)} tensors, {found.curves.sizes['run']} runs",
        " ".join(f"{line.strip()}." for line in lines) + " The median of the runs, with their central 80 % shaded.",
        words + units,
        ", ".join(patterns),
    )


_PLACE = ("tensor", "layer", "kind", "head")
_BAND = ("step", "runs", "median", "low", "high")
_END = ("runs", "last_step", "median", "low", "high", "between", "within", "icc", "is_logarithmic")


def _end(group: Group) -> tuple[Any, ...]:
    """The end of a curve, and its variances between runs and within them."""
    one = group.variances
    if not group.steps:
        return len(group.runs), None, None, None, None, one.between, one.within, one.icc, one.logarithmic
    end = group.spread.sel(step=group.last)
    values = (float(end[name]) for name in ("median", "low", "high"))
    return int(end["runs"]), group.last, *values, one.between, one.within, one.icc, one.logarithmic


def _facts(found: TensorPopulation) -> dict[str, Any]:
    """The statistics for programs."""
    tensors = {
        tensor: {**dict(zip(_END, _end(group), strict=True)), "reason": group.variances.reason}
        for tensor, group in found.groups.items()
    }
    leaving = [{"tensor": tensor, **asdict(one)} for tensor, one in found.departures]
    return dict(plain({"variable": found.variable, "tensors": tensors, "departures": leaving}))
