"""Saved comparisons: the dataset read back from ``results/compare/<A>/<B>/``, and its section of a page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.measures.comparison import STATISTICS
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.report.facts import Table as ShownTable
from pythia_dynamics.report.parts import Comparison
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.studies.comparison_files import FOLDER, comparison_figures
from pythia_dynamics.studies.comparison_table import (
    barrier_sentence,
    comparison_cells,
    comparison_remarks,
    comparison_rows,
    summarise_comparison,
)
from pythia_dynamics.tables import read_csv

__all__ = ["comparisons_of", "read_comparison", "read_line"]

_BARRIER = ("barrier", "barrier_alpha", "barrier_se", "barrier_low", "barrier_high")
"""Attributes of a line that are numbers; JSON has null for NaN."""


def comparisons_of(models: Collection[str], results: Path | str | None = None) -> list[Comparison]:
    """The saved comparisons of which a side is one of some models.

    Parameters
    ----------
    models
        Names of models.
    results
        The directory of all results.

    Raises
    ------
    FormatError
        A file of one of them is damaged.
    """
    found = []
    root = results_directory(results)
    for path in sorted((root / FOLDER).glob("*/*/provenance.json")):
        folder = Results(path.parent.relative_to(root).as_posix(), root)
        made = folder.provenance().get("compare", {})
        if any(_is_of(str(made.get(side, "")), model) for side in "ab" for model in models):
            found.append(_comparison(folder))
    return found


def _is_of(side: str, model: str) -> bool:
    """Whether ``MODEL[@STEP][:TENSOR]`` is of a model."""
    return side == model or side.startswith((f"{model}@", f"{model}:"))


def _comparison(folder: Results) -> Comparison:
    """The section of one comparison."""
    result, line = read_comparison(folder), read_line(folder)
    a, b = (str(result.attrs[side]) for side in "ab")
    rows = [row for row in comparison_rows(result) if np.isfinite(row.value)]
    columns = ("statistic", "value", "independent", "between seeds", "beside the seeds")
    cells = tuple(tuple(cell or "–" for cell in cells) for cells in comparison_cells(rows))
    summary = summarise_comparison(result) + ("" if line is None else f"; {barrier_sentence(line)}")
    step = result.attrs.get("profile_step")
    note = "" if step is None or result.sizes["step"] == 1 else f"At step {step:,}. "
    table = ShownTable("Statistics", columns, cells, f"{note}All numbers: {folder.path / 'compare.csv'}.")
    made = folder.provenance()["compare"]
    command = made.get("command") or shlex.join(["pythia-dyn", "compare", a, b])
    specs = tuple(comparison_figures(result, line, folder.path))
    return Comparison(a, b, summary, tuple(comparison_remarks(result, rows)), table, specs, str(command))


def read_comparison(folder: Results) -> xr.Dataset:
    """A saved comparison, as `pythia_dynamics.compare` returned it, but for the units of its variables.

    Parameters
    ----------
    folder
        Its folder.

    Raises
    ------
    FormatError
        A file is damaged.
    PythiaDynError
        There is no comparison.
    """
    made = folder.provenance().get("compare")
    if made is None:
        raise PythiaDynError(f"{folder.path} has no comparison: run pythia-dyn compare A B")
    table = folder.read_table("compare")
    missing = [name for name in ("step_b", "norm_a", "norm_b", *STATISTICS) if name not in table]
    if missing:
        raise FormatError(f"{folder.path / 'compare.csv'} is damaged (no column {missing[0]}): run pythia-dyn compare")
    quantiles = [str(name) for name in table.data_vars if str(name).startswith("row_angle_q")]
    told_apart = {"step_b", "norm_a", "norm_b", *quantiles}
    kept = [name for name in table.data_vars if name not in told_apart and "_floor_" not in str(name)]
    result = table[kept].astype(np.float64)
    result = result.assign_coords(step_b=table["step_b"].astype(np.int64), side=["a", "b"]).assign(
        norm=(("step", "side"), np.stack([table["norm_a"], table["norm_b"]], axis=1)),
        row_angle_quantile=(("step", "quantile"), np.stack([table[name] for name in quantiles], axis=1)),
    )
    result = result.assign_coords(quantile=[int(name[-2:]) / 100 for name in quantiles])
    for part in (*_floor(folder, table["step"].to_numpy().tolist()), *_profiles(folder)):
        result = result.merge(part)
    return result.assign_attrs(made)


def read_line(folder: Results) -> xr.Dataset | None:
    """The saved loss along the line between the two checkpoints; None where there is none.

    Parameters
    ----------
    folder
        The folder of the comparison.
    """
    made = folder.provenance().get("interpolation")
    if made is None or not (folder.path / "interpolation.csv").exists():
        return None
    table = folder.read_table("interpolation", Table(("alpha", "nll"), keys=("alpha",)))
    numbers = {name: math.nan if made.get(name) is None else float(made[name]) for name in _BARRIER}
    return table.assign_attrs({**made, **numbers})


def _floor(folder: Results, steps: Sequence[int]) -> Iterator[xr.Dataset]:
    """Each statistic of the pairs of seeds."""
    path = folder.path / "floor.csv"
    if not path.exists():
        return
    rows = read_csv(path)
    try:
        pairs = list(dict.fromkeys((row["kind"], row["pair"]) for row in rows))
        values = {name: np.full((len(pairs), len(steps)), np.nan) for name in STATISTICS}
        for row in rows:
            place = pairs.index((row["kind"], row["pair"])), list(steps).index(int(row["step"]))
            for name, column in values.items():
                column[place] = float(row[name] or "nan")
    except (KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{path} is damaged ({error}): run pythia-dyn compare") from None
    kinds, labels = zip(*pairs, strict=True)
    yield xr.Dataset(
        {f"{name}_floor": (("pair", "step"), column) for name, column in values.items()},
        {"step": list(steps), "pair": list(labels), "kind": ("pair", list(kinds))},
    )


def _profiles(folder: Results) -> Iterator[xr.Dataset]:
    """Densities, singular values and angles of rows of the last step."""
    for name, key, variable in (("density", "weight", "density"), ("spectrum", "index", "singular_value")):
        if (folder.path / f"{name}.csv").exists():
            table = folder.read_table(name, Table((key, "a", "b"), keys=(key,)))
            sides = np.stack([table[side].to_numpy().astype(np.float64) for side in "ab"])
            yield xr.Dataset({variable: (("side", key), sides)}, {"side": ["a", "b"], key: table[key]})
    if (folder.path / "rows.csv").exists():
        table = folder.read_table("rows", Table(("degree", "rows"), keys=("degree",)))
        yield xr.Dataset({"row_angle_count": table["rows"]})
