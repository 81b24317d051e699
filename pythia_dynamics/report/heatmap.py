"""The heat map tensor × step of all per-step measures of one model or several runs, in a form small enough for a page.

A value is a 16-bit code on the scale of its row, which is one column of one tensor over all runs and steps. Codes are
differences along the steps, compressed with zlib: 10 runs × 40 tensors × 143 steps take at most 0.15 MB a column. The
script of the page expands a column when it is chosen.
"""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.modules import Place, find_place
from pythia_dynamics.checkpoints.roles import ALL
from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.figures.explore import viridis
from pythia_dynamics.figures.layers import SHOWN
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.report.explorer import MISSING, codes_of, values_of
from pythia_dynamics.results.curves import units_of
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.populations import gather

__all__ = ["HeatMap", "decode_column", "heat_map", "read_step_tables"]

_MAX_BYTES = 4_000_000
"""Length of the values of a heat map on a page, which is to stay below 5 MB with its figures and texts. Where all steps
take more, evenly spaced ones are kept."""

_LOGARITHMIC = 10.0
"""Least ratio of the greatest to the least value from which a row of positive values has a logarithmic scale: then its
relative precision is the same at both ends."""


@dataclass(frozen=True)
class HeatMap:
    """A heat map, as the template and the script use it.

    Parameters
    ----------
    key
        Its id on the page.
    title
        Heading.
    caption
        What it shows, in words.
    runs
        Names of the runs.
    notes
        The tables that are not in it, each with the reason.
    content
        What the script draws, as JSON can hold it.
    """

    key: str
    title: str
    caption: str
    runs: tuple[str, ...]
    notes: tuple[str, ...]
    content: Mapping[str, Any]


def read_step_tables(runs: Sequence[Results], progress: Progress = silent) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Every saved table with one row per step, of all tensors of some runs.

    Parameters
    ----------
    runs
        The results of the models.
    progress
        Counts tables.

    Returns
    -------
    dict of str to xarray.Dataset
        By the name of the table, as `pythia_dynamics.gather` gives it for ``tensor="all"``: over `run`, `tensor` and
        `step`. A run without a table is left out of it.
    list of str
        For each table whose results cannot be put side by side, why.

    Raises
    ------
    FormatError
        A result is damaged.
    """
    found: dict[str, xr.Dataset] = {}
    notes = []
    known = list(_step_tables())
    for done, name in enumerate(known):
        progress(done, len(known))
        having = [run for run in runs if any(run.model.path.glob(f"*/{name}.csv"))]
        if not having:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other versions of this package: the provenance lists them
                names = [run.name for run in having]
                found[name] = gather(names, measure=name, tensor=ALL, results=having[0].model.path.parent)
        except FormatError:
            raise
        except PythiaDynError as error:
            notes.append(f"{name}: {error}")
    progress(len(known), len(known))
    return found, notes


def _step_tables() -> Iterator[str]:
    for measure in known_measures().values():
        yield from (name for name, table in measure.tables.items() if table.keys == ("step",))


def heat_map(
    key: str, tables: Mapping[str, xr.Dataset], notes: Sequence[str] = (), *, most: int = _MAX_BYTES
) -> HeatMap | None:
    """The heat map of some tables; None where they have no number.

    Parameters
    ----------
    key
        Its id on the page.
    tables
        As `read_step_tables` returns them.
    notes
        Told below it.
    most
        Greatest length of its values on the page.
    """
    runs = tuple(dict.fromkeys(name for table in tables.values() for name in table["run"].to_numpy().astype(str)))
    tensors = {name for table in tables.values() for name in table["tensor"].to_numpy().astype(str)}
    ordered = sorted(tensors, key=lambda name: (find_place(name).order, name))
    full = {
        name: {str(column): _aligned(values, ordered, runs) for column, values in table.data_vars.items()}
        for name, table in tables.items()
    }
    full = {
        name: known
        for name, columns in full.items()
        if (known := {column: values for column, values in columns.items() if np.isfinite(values).any()})
    }
    if not full:
        return None
    every, longest = 1, max(table.sizes["step"] for table in tables.values())
    while True:
        encoded = {
            name: {column: _encoded(values[..., kept]) for column, values in columns.items()}
            for name, columns in full.items()
            for kept in [_kept(tables[name].sizes["step"], every)]
        }
        size = sum(
            len(one["codes"]) + len(json.dumps(one["scales"]))
            for columns in encoded.values()
            for one in columns.values()
        )
        if size <= most or every >= longest:
            break
        every += max(1, round(every * (size / most - 1)))
    titles = {name: table.title or name for one in known_measures().values() for name, table in one.tables.items()}
    content = {
        "key": key,
        "tensors": [{"name": name, "label": label} for name, label in zip(ordered, _labels(ordered), strict=True)],
        "runs": list(runs),
        "chosen": _chosen(encoded),
        "tables": [
            {
                "name": name,
                "title": titles.get(name, name),
                "steps": tables[name]["step"].to_numpy()[_kept(tables[name].sizes["step"], every)].tolist(),
                "columns": [{"name": column, "units": units_of(column), **one} for column, one in columns.items()],
            }
            for name, columns in encoded.items()
        ],
        "colours": base64.b64encode(viridis()).decode(),
    }
    return HeatMap(key, "Every tensor, every step", _caption(ordered, runs, every), runs, tuple(notes), content)


def _chosen(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The first column that is shown, as places of its table and of the column: that of an overview of all tensors."""
    shown = {
        table: SHOWN[one.name][0] for one in known_measures().values() for table in one.tables if one.name in SHOWN
    }
    for place, (name, columns) in enumerate(tables.items()):
        if shown.get(name) in columns:
            return f"{place} {list(columns).index(shown[name])}"
    return "0 0"


def _caption(tensors: Sequence[str], runs: Sequence[str], every: int) -> str:
    several = len(runs) > 1
    count = "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"
    text = f"{count} in the order of the model, from top to bottom. "
    text += "A cell is the median of the chosen runs at a recorded step. " if several else ""
    text += "Hatched: no finite value. Records are evenly spaced, whatever lies between their steps. "
    text += "Values are exact to 1/131,000 of the range of their row, on a logarithm where it spans a decade."
    if every > 1:
        text += f" Of {every} records one is shown and the last one; the tables have all of them."
    return text


def _kept(count: int, every: int) -> NDArray[np.intp]:
    """Places of every n-th record, and of the last one."""
    return np.unique([*range(0, count, every), count - 1])


def _aligned(column: xr.DataArray, tensors: Sequence[str], runs: Sequence[str]) -> NDArray[np.float64]:
    """A column over all tensors, all runs and its own steps; NaN where it has none."""
    whole = column.reindex(tensor=list(tensors), run=list(runs)).transpose("tensor", "run", "step")
    return whole.to_numpy().astype(np.float64)


def _encoded(values: NDArray[np.float64]) -> dict[str, Any]:
    """A column: for each tensor the scale of its codes, and all codes.

    Parameters
    ----------
    values
        Over tensors, runs and steps; NaN where a value is not known. Infinite values count as not known.

    Returns
    -------
    dict
        `scales`, for each tensor `low`, `high` and 1 for a logarithm or 0; `codes`, the codes of `codes_of`, each less
        the one of the step before, first the high bytes of all of them and then the low bytes, in zlib and base64.
    """
    scales, codes = [], np.full(values.shape, MISSING, np.uint16)
    for row, of_tensor in zip(codes, values, strict=True):
        finite = of_tensor[np.isfinite(of_tensor)]
        log = bool(finite.size and finite.min() > 0 and finite.max() / _LOGARITHMIC >= finite.min())
        low, high, row[:] = codes_of(of_tensor, log=log)
        scales.append([low, high, int(log)])
    steps = codes.copy()
    steps[..., 1:] -= codes[..., :-1]
    packed = (steps >> 8).astype(np.uint8).tobytes() + (steps & 0xFF).astype(np.uint8).tobytes()
    return {"scales": scales, "codes": base64.b64encode(zlib.compress(packed, 9)).decode()}


def decode_column(column: Mapping[str, Any], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """The values of a column of `HeatMap.content`, as the script of the page expands them.

    Parameters
    ----------
    column
        One of the `columns` of a table.
    shape
        Number of tensors, runs and steps.
    """
    high, low = np.frombuffer(zlib.decompress(base64.b64decode(column["codes"])), np.uint8).reshape(2, *shape)
    codes = np.cumsum((high.astype(np.uint16) << 8) | low, axis=-1, dtype=np.uint16)
    rows = zip(codes, column["scales"], strict=True)
    return np.stack([values_of(row, low, high, log=bool(log)) for row, (low, high, log) in rows])


def _labels(tensors: Sequence[str]) -> list[str]:
    """Short names: the layer and the kind, and the module as well where two tensors have the same."""
    places = [find_place(name) for name in tensors]
    short = [_short(place) for place in places]
    return [
        f"{label} ({_module(name)})" if short.count(label) > 1 or place.kind == "other" else label
        for name, label, place in zip(tensors, short, places, strict=True)
    ]


def _short(place: Place) -> str:
    layer = "" if place.layer is None else f"{place.layer} "
    return f"{layer}{place.kind}{' bias' if place.is_bias else ''}"


def _module(name: str) -> str:
    """The module of a tensor without those that it is in: the last part of its name but ``weight`` or ``bias``."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else parts[-1]
