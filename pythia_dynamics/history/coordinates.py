"""The coordinates of the steps of a store, and how arrays and groups of it are opened."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pythia_dynamics.errors import StoreError

__all__ = ["COORDINATES", "NO_STEP", "open_node", "read_coordinate", "write_coordinate"]

NO_STEP = -1
"""Fill value of the coordinate ``step``."""

COORDINATES: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("int64", {"long_name": "training step", "units": "1"}),
    "tokens": ("float64", {"long_name": "tokens seen", "units": "1"}),
    "learning_rate": ("float64", {"long_name": "learning rate", "units": "1"}),
}
"""dtype and attributes of the coordinates of the steps. Tokens are floats, so that an unknown number is NaN; they are
exact below 2^53."""


def read_coordinate(path: Path, name: str) -> list[Any]:
    """The values of a coordinate, in the order of arrival of the steps; empty where the store does not have it.

    Parameters
    ----------
    path
        The store.
    name
        A key of `COORDINATES`.

    Raises
    ------
    StoreError
        The coordinate is damaged.
    """
    if not (path / name / "zarr.json").is_file():
        return []
    values: list[Any] = np.asarray(open_node(path / name, zarr.open_array)[:]).tolist()
    return values


def write_coordinate(path: Path, name: str, values: Sequence[float], fill_value: float = math.nan) -> None:
    """Write a coordinate of all steps.

    Parameters
    ----------
    path
        The store, whose lock the caller holds.
    name
        A key of `COORDINATES`.
    values
        Its value at every step, in their order of arrival.
    fill_value
        Stands for values that are not there.

    Raises
    ------
    StoreError
        The coordinate that is there is damaged.
    """
    dtype, attributes = COORDINATES[name]
    if (path / name / "zarr.json").is_file():
        array = open_node(path / name, zarr.open_array, "r+")
        array.resize((len(values),))
    else:
        array = zarr.create_array(
            path / name,
            shape=(len(values),),
            chunks=(4096,),  # 32 KB: more steps than any suite has published, in one file
            dtype=dtype,
            dimension_names=["step"],
            fill_value=fill_value,
            compressors=None,
            attributes=attributes,
        )
    array[:] = np.array(values, dtype=dtype)


def open_node(path: Path, opener: Any, mode: str = "r") -> Any:
    """Open an array or a group of a store.

    Parameters
    ----------
    path
        Its folder.
    opener
        `zarr.open_array` or `zarr.open_group`.
    mode
        ``r``, or ``r+`` to write to it.

    Raises
    ------
    StoreError
        It is damaged.
    """
    try:
        return opener(path, mode=mode, zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"{path} is not a readable Zarr v3 node ({reason}); move it away and fetch again") from None
