"""Reading of result tables and arrays, with checks that find a damaged file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from pythia_dynamics.errors import FormatError, PythiaDynError, first_line
from pythia_dynamics.measures.measure import Table

__all__ = ["VARIABLES", "array_from", "computed", "table_from"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

VARIABLES = "pythia_dynamics_variables"
"""Attribute of a saved array with the names of its variables. With it, a variable or a chunk that was lost is seen."""

_WHOLE = ("step", "batch_size")
"""Keys that are whole numbers."""


def table_from(path: Path, table: Table, *, required: tuple[str, ...] = (), closed: bool = False) -> xr.Dataset:
    """A CSV table as a dataset over its keys.

    Parameters
    ----------
    path
        The file.
    table
        Its specification.
    required
        Columns besides the keys that it must have.
    closed
        Whether it must have numbers only, and no column that the specification does not have.

    Raises
    ------
    FormatError
        For a damaged table. The message has the reason only.
    """
    keys = list(table.keys)
    frame = _frame(path)
    for column in (*keys, *required):
        if column not in frame.columns:
            raise FormatError(f"no column {column}")
    if closed and (unknown := [str(column) for column in frame.columns if column not in table.columns]):
        raise FormatError(f"unknown column {unknown[0]}")
    for column in frame.columns:
        _check(frame[column], numbers=column in _WHOLE or (closed and column != "convention"), key=column in keys)
    if frame.empty:
        raise FormatError("it has no rows")
    if frame.duplicated(keys).any() or len(frame) != np.prod([frame[key].nunique() for key in keys]):
        raise FormatError(f"rows are missing or occur twice ({', '.join(keys)})")
    if "step" in keys and not frame["step"].is_monotonic_increasing:
        raise FormatError("its steps are not in increasing order")
    dataset: xr.Dataset = frame.set_index(keys).to_xarray()
    return dataset


def _frame(path: Path) -> pd.DataFrame:
    """The rows of a CSV file. The last line must be complete: a file that was cut off ends in the middle of one."""
    try:
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            raise FormatError("its last line is cut off" if path.stat().st_size else "it is empty")
        return pd.read_csv(path)
    except UnicodeDecodeError:
        raise FormatError("it is not text") from None
    except ValueError as error:
        raise FormatError(first_line(error)) from None


def _check(column: pd.Series, *, numbers: bool, key: bool) -> None:
    """Check that a column has numbers, and a key a value in every row; steps and sizes are whole numbers."""
    values = pd.to_numeric(column, errors="coerce") if numbers else column
    wrong = values.isna() & (column.notna() | key)
    if column.name in _WHOLE:
        wrong |= values.notna() & (values % 1 != 0)
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        found = "no value" if pd.isna(column.iloc[row]) else repr(str(column.iloc[row]))
        raise FormatError(f"{column.name} is {found} in line {row + 2}")


def array_from(path: Path) -> xr.Dataset:
    """A Zarr array that `Results.write_zarr` wrote, in memory.

    Parameters
    ----------
    path
        Its folder.

    Raises
    ------
    FormatError
        For a damaged array. The message has the reason only.
    """
    if not (path / "zarr.json").is_file():
        raise FormatError("it has no zarr.json")
    try:
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=False, zarr_format=3).load()
        names = dataset.attrs.pop(VARIABLES, ())
        for name in names:
            if name not in dataset.variables:
                raise FormatError(f"no array {name}")
            stored = zarr.open_array(path / name, mode="r", zarr_format=3)
            if stored.nchunks_initialized != stored.nchunks:
                raise FormatError(f"chunks of {name} are missing")
    except (FormatError, PermissionError, MemoryError):
        raise
    except json.JSONDecodeError:
        raise FormatError("a zarr.json in it is no JSON") from None
    except Exception as error:  # zarr and its codecs raise errors of many classes
        raise FormatError(first_line(error)) from None
    return dataset


def computed(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The value of a function for each item whose results have been computed.

    Parameters
    ----------
    function
        Reads results. It raises `PythiaDynError` where they have not been computed.
    items
        The arguments of the calls.

    Raises
    ------
    FormatError
        A result is damaged: it was computed, so it is not left out.
    """
    for item in items:
        try:
            value = function(item)
        except FormatError:
            raise
        except PythiaDynError:
            continue
        yield value
