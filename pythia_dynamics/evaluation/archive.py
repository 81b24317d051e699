"""The scores of every passage at every step: ``perplexity-<mode>.zarr`` or ``representation.zarr``, for xarray.

The table (`pythia_dynamics.evaluation.records`) says which index the row of a step has. Rows are only written where
nothing is in use: a step that is evaluated again gets a new index. So a process that is killed while it writes leaves
nothing behind that is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from pythia_dynamics.history.coordinates import NO_STEP, read_coordinate, write_coordinate
from pythia_dynamics.history.nodes import open_node

__all__ = ["Archive", "Field"]

_PREFIX_CHUNK = 256
"""Prefix lengths in one file: more than the passages of LAMBADA have, so that a step is one file of 2 KB."""


@dataclass(frozen=True, slots=True)
class Field:
    """One array of an archive.

    Parameters
    ----------
    dtype
        Its dtype.
    axis
        ``sentence`` or ``component``, of which there is the same number at every step, or ``prefix``.
    units, long_name
        Its attributes.
    """

    dtype: str
    axis: Literal["sentence", "prefix", "component"]
    units: str
    long_name: str

    @property
    def fill_value(self) -> float:
        """Stands for what is not there: NaN, or −1 for integers."""
        return math.nan if np.dtype(self.dtype).kind == "f" else -1


class Archive:
    """A Zarr group with the arrays of one mode. Writers hold the lock of the table.

    Parameters
    ----------
    path
        The directory, existing or not.
    fields
        Its arrays by name.
    """

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        self.path = path
        self._fields = fields

    def write(self, rows: Mapping[int, Mapping[str, NDArray[Any]]], start: int) -> dict[int, int]:
        """Write rows, and return the index of each.

        Parameters
        ----------
        rows
            By step the values of each field, shape (S,) for passages, (K,) for prefix lengths, (d,) for components.
        start
            The first index that is not in use.

        Raises
        ------
        StoreError
            The archive is damaged.
        """
        indices = {step: start + i for i, step in enumerate(rows)}
        if not rows:
            return indices
        if not (self.path / "zarr.json").is_file():
            zarr.create_group(self.path)
        for name, field in self._fields.items():
            width = max(1, *(len(values[name]) for values in rows.values()))
            array = self._array(name, field, start + len(rows), width)
            for step, index in indices.items():
                line = np.full(array.shape[1], field.fill_value, field.dtype)  # a killed process may have left more
                line[: len(rows[step][name])] = rows[step][name]
                array[index] = line
        known = read_coordinate(self.path, "step")[:start]
        write_coordinate(self.path, "step", [*known, *rows], NO_STEP)
        return indices

    def _array(self, name: str, field: Field, length: int, width: int) -> Any:
        """An array with room for some rows; it is made where there is none."""
        path = self.path / name
        if (path / "zarr.json").is_file():
            array = open_node(path, zarr.open_array, "r+")
            array.resize((length, max(array.shape[1], width)))
            return array
        return zarr.create_array(
            path,
            shape=(length, width),
            chunks=(1, _PREFIX_CHUNK if field.axis == "prefix" else width),
            dtype=field.dtype,
            dimension_names=["step", field.axis],
            fill_value=field.fill_value,
            attributes={"units": field.units, "long_name": field.long_name},
        )

    def read(self, indices: Iterable[int]) -> list[dict[str, NDArray[Any]]]:
        """The values of each field at some indices, with fill values up to the width of the array.

        Parameters
        ----------
        indices
            As `write` has returned them.

        Raises
        ------
        StoreError
            The archive is damaged.
        """
        wanted = np.array(list(indices), dtype=np.intp)
        if not wanted.size:
            return []
        first, last = wanted.min(), wanted.max() + 1
        read = {
            name: np.asarray(open_node(self.path / name, zarr.open_array)[first:last])[wanted - first]
            for name in self._fields
        }
        return [{name: values[i] for name, values in read.items()} for i in range(len(wanted))]
