"""All tensors of a model side by side: a dataset over (tensor, step) from their saved results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.checkpoints.modules import find_place
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.catalogue import find_measure
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.reading import computed

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PREFIX", "has_overview", "overview", "overview_table", "place_coordinates", "write_overview"]

PREFIX = "overview-"
"""Begin of the names of the files: ``overview-msd.csv`` in the folder of the model."""


def overview(
    model: str | Results, measure: str, *, tensors: Sequence[str] = ("all",), results: Path | str | None = None
) -> xr.Dataset:
    """One measure of all tensors of a model, from their saved results.

    Parameters
    ----------
    model : str or Results
        The name of a model in the folder of results, or its results.
    measure : str
        A measure with a table that has one row per step; see `overview_table`.
    tensors : sequence of str
        Names, roles, globs, or ``all``. Tensors without results of the measure are left out.
    results : str or Path, optional
        The directory of all results; see `results_directory`.

    Returns
    -------
    xarray.Dataset
        The columns of the table over `tensor` and `step`. Tensors are in the order of the model; a step that one of
        them lacks is NaN. The coordinates `layer` (int64, −1 outside of the blocks), `kind` (see
        `pythia_dynamics.checkpoints.modules.Kind`), `is_bias` and `head` (int64, −1 for all heads) are over `tensor`.

    Raises
    ------
    UnknownNameError
        There is no such measure, or a pattern matches no measured tensor.
    PythiaDynError
        The measure has no table with one row per step, or no tensor has results of it.
    FormatError
        A result is damaged.
    """
    import xarray as xr

    folder = model if isinstance(model, Results) else Results(model, results)
    name, _ = overview_table(measure)
    tables = dict(computed(lambda each: (each.path.name, each.read_table(name)), folder.model.select(list(tensors))))
    if not tables:
        raise PythiaDynError(
            f"no tensor of {folder.name} has results of {measure}: run pythia-dyn {measure.replace('_', '-')} "
            f"--model {folder.name} --tensor all"
        )
    names = sorted(tables, key=lambda tensor: (find_place(tensor).order, tensor))
    joined = xr.concat([tables[tensor].drop_attrs() for tensor in names], dim="tensor", join="outer", data_vars="all")
    return joined.assign_coords(place_coordinates(names)).assign_attrs(model=folder.name, measure=measure)


def place_coordinates(tensors: Sequence[str]) -> dict[str, Any]:
    """The coordinates over `tensor` that say where in a model tensors are.

    Parameters
    ----------
    tensors
        Their names.

    Returns
    -------
    dict
        ``tensor``, and ``layer``, ``kind``, ``is_bias`` and ``head`` as in `overview`.
    """
    places = [find_place(tensor) for tensor in tensors]
    return {
        "tensor": list(tensors),
        "layer": ("tensor", np.array([-1 if one.layer is None else one.layer for one in places], dtype=np.int64)),
        "kind": ("tensor", [one.kind for one in places]),
        "is_bias": ("tensor", [one.is_bias for one in places]),
        "head": ("tensor", np.array([-1 if one.head is None else one.head for one in places], dtype=np.int64)),
    }


def overview_table(measure: str) -> tuple[str, Table]:
    """The table of a measure that an overview shows: its first with one row per step.

    Parameters
    ----------
    measure
        Name of the measure.

    Raises
    ------
    UnknownNameError
        There is no such measure.
    PythiaDynError
        It has no such table.
    """
    tables = find_measure(measure).tables
    for name, table in tables.items():
        if table.keys == ("step",):
            return name, table
    raise PythiaDynError(f"the measure {measure} has no table with one row per step, which an overview needs")


def has_overview(measure: str) -> bool:
    """Whether an overview can show a measure.

    Parameters
    ----------
    measure
        Name of the measure.
    """
    return any(table.keys == ("step",) for table in find_measure(measure).tables.values())


def write_overview(results: Results, measure: str) -> tuple[Path, xr.Dataset]:
    """Write ``overview-<measure>.csv`` of all measured tensors of a model. Return the path and the dataset.

    Parameters
    ----------
    results
        The results of the model.
    measure
        The measure.

    Raises
    ------
    PythiaDynError
        As `overview` does.
    """
    dataset = overview(results, measure)
    columns = [str(name) for name in dataset.data_vars]
    # The place in the model orders the rows; names of tensors would put layer 10 before layer 2.
    table = Table(("place", "tensor", "layer", "kind", "head", "step", *columns), keys=("place", "step"))
    by_place = dataset.assign_coords(place=("tensor", np.arange(dataset.sizes["tensor"]))).swap_dims(tensor="place")
    return results.model.write_table(f"{PREFIX}{measure}", table, by_place), dataset
