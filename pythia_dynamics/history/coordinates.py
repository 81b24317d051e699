"""The coordinates of the steps of a store, and how its arrays are created."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from pythia_dynamics.history.nodes import bucket, is_node, open_node
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.objects import Place

__all__ = [
    "COORDINATES",
    "NO_STEP",
    "coordinate_source",
    "create_tensor",
    "known_values",
    "read_coordinate",
    "update_coordinate",
    "write_coordinate",
]

_SOURCE = "source"
"""Attribute of a coordinate that says where its values are from."""

NO_STEP = -1
"""Fill value of the coordinate ``step``."""

COORDINATES: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("int64", {"long_name": "training step", "units": "1"}),
    "tokens": ("float64", {"long_name": "tokens seen", "units": "1"}),
    "learning_rate": ("float64", {"long_name": "learning rate", "units": "1"}),
}
"""dtype and attributes of the coordinates of the steps. Tokens are floats, so that an unknown number is NaN; they are
exact below 2^53."""


def read_coordinate(path: Place, name: str) -> list[Any]:
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
    if not is_node(path / name):
        return []
    values: list[Any] = np.asarray(open_node(path / name, zarr.open_array)[:]).tolist()
    return values


def known_values(path: Place, name: str, steps: Sequence[int]) -> dict[int, float] | None:
    """The values of a coordinate by step, where they are known; None where the store does not have the coordinate.

    Parameters
    ----------
    path
        The store.
    name
        A key of `COORDINATES`.
    steps
        The steps of the store, in order of arrival.

    Raises
    ------
    StoreError
        The coordinate is damaged.
    """
    values = dict(zip(steps, read_coordinate(path, name), strict=False))
    return {step: value for step, value in values.items() if value == value} if values else None


def coordinate_source(path: Place, name: str) -> str:
    """Where the values of a coordinate are from, in words; empty where the store does not say.

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
    if not is_node(path / name):
        return ""
    return str(open_node(path / name, zarr.open_array).attrs.get(_SOURCE, ""))


def write_coordinate(
    path: Place, name: str, values: Sequence[float], fill_value: float = math.nan, *, source: str = ""
) -> None:
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
    source
        Where the values are from, in words; empty to keep what is recorded.

    Raises
    ------
    StoreError
        The coordinate that is there is damaged.
    """
    dtype, attributes = COORDINATES[name]
    if is_node(path / name):
        array = open_node(path / name, zarr.open_array, "r+")
        array.resize((len(values),))
    else:
        array = zarr.create_array(
            **_new_array(path / name),
            shape=(len(values),),
            chunks=(4096,),  # 32 KB: more steps than any suite has published, in one file
            dtype=dtype,
            dimension_names=["step"],
            fill_value=fill_value,
            compressors=None,
            attributes=attributes,
        )
    array[:] = np.array(values, dtype=dtype)
    if source and array.attrs.get(_SOURCE) != source:
        array.attrs[_SOURCE] = source


def update_coordinate(
    path: Place,
    name: str,
    steps: Sequence[int],
    values: Mapping[int, float],
    *,
    source: str = "",
    replaces: bool = False,
) -> None:
    """Write values of a coordinate, where they differ from what is there. Nothing is written where none is known.

    Parameters
    ----------
    path
        The store, whose lock the caller holds.
    name
        A key of `COORDINATES`.
    steps
        All steps of the store, in order of arrival.
    values
        The value of some steps; NaN where it is not known.
    source
        Where the values are from, in words.
    replaces
        Whether the values of the other steps become unknown. By default they are kept.

    Raises
    ------
    StoreError
        The coordinate that is there is damaged.
    """
    present = known_values(path, name, steps)
    new = {step: value for step, value in values.items() if value == value}
    known = new if replaces or present is None else present | new
    if present is None and not known:
        return
    is_complete = len(read_coordinate(path, name)) == len(steps)
    is_named = not new or source in ("", coordinate_source(path, name))
    if known != present or not is_complete or not is_named:
        write_coordinate(path, name, [known.get(step, math.nan) for step in steps], source=source if new else "")


def create_tensor(path: Place, spec: TensorSpec, length: int, *, is_head: bool) -> None:
    """Create the array of a tensor, without weights.

    Parameters
    ----------
    path
        The store, whose lock the caller holds.
    spec
        Name, dtype and shape.
    length
        Number of steps of the store.
    is_head
        Whether it may have the axes vocab and d_model, which one tensor has.
    """
    zarr.create_array(
        **_new_array(path / spec.name),
        shape=(length, *spec.shape),
        chunks=(1, *spec.shape),
        dtype=spec.numpy_dtype,
        dimension_names=spec.dimensions if is_head else spec.own_dimensions,
        fill_value=float("nan"),
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        attributes={"provenance": {}, "missing": {}, "source_dtype": spec.dtype, "roles": spec.roles},
    )


def _new_array(place: Place) -> dict[str, Any]:
    """The arguments of `zarr.create_array` for a place."""
    found = bucket(place)
    return {"store": found["store"], "name": found["path"]}
