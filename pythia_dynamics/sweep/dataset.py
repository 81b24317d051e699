"""Datasets over all steps of a history, from values of the steps in use. Other steps are NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.history import History

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Variable", "ends", "format_ends", "step_dataset"]

_STEP_DIMS = ("step", "other_step")


@dataclass(frozen=True)
class Variable:
    """One variable of a result.

    Parameters
    ----------
    values : array_like
        Its values. The axes ``step`` and ``other_step`` have the steps in use, or all steps.
    long_name : str
        Description, as the label of an axis.
    units : str
        Its units; ``"1"`` for a pure number.
    dims : tuple of str
        Names of its axes.
    attrs : mapping
        More attributes, for instance the parameters of a fit.
    """

    values: Any
    long_name: str
    units: str = "1"
    dims: tuple[str, ...] = ("step",)
    attrs: Mapping[str, Any] = field(default_factory=dict)


def step_dataset(
    history: History,
    variables: Mapping[str, Variable],
    *,
    at: NDArray[np.intp] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make the dataset over `step` of a history. Variables have units; the attributes have the provenance.

    Parameters
    ----------
    history : History
        Gives the T steps and the provenance.
    variables : mapping of str to Variable
        The variables by name.
    at : array of int, shape (T',), optional
        Indices of the steps in use. Values along ``step`` or ``other_step`` are of these steps; all other steps become
        NaN (False for booleans). Default: values are of all T steps.
    coords : mapping, optional
        Coordinates besides ``step``, ``tokens`` and ``learning_rate``. ``other_step`` is added if a variable has that
        axis.
    attrs : mapping, optional
        Attributes besides the provenance.
    """
    import xarray as xr

    length = len(history.steps)
    data = {}
    for name, variable in variables.items():
        values = np.asarray(variable.values)
        for axis, dim in enumerate(variable.dims):
            if dim in _STEP_DIMS and at is not None and values.shape[axis] != length:
                values = _scatter(values, axis, at, length)
        data[name] = (
            variable.dims,
            values,
            {"long_name": variable.long_name, "units": variable.units, **variable.attrs},
        )
    extra = (
        {"other_step": history.steps} if any("other_step" in variable.dims for variable in variables.values()) else {}
    )
    known = {name: ("step", values, {"units": "1"}) for name, values in history.coordinates.items()}
    return xr.Dataset(
        data,
        coords={"step": history.steps, **known, **extra, **(coords or {})},
        attrs={**history.provenance, **(attrs or {})},
    )


def _scatter(values: NDArray[Any], axis: int, at: NDArray[np.intp], length: int) -> NDArray[Any]:
    """Move values of the steps `at` to their indices on an axis of `length` steps; the others are NaN, or False."""
    shape = (*values.shape[:axis], length, *values.shape[axis + 1 :])
    full = np.zeros(shape, bool) if values.dtype == bool else np.full(shape, np.nan)
    full[(slice(None),) * axis + (at,)] = values
    return full


def ends(curve: xr.DataArray) -> tuple[float, float]:
    """The first and the last value of a curve over steps that are not NaN; two NaN if there is none."""
    known = curve.dropna("step").to_numpy()
    return (float(known[0]), float(known[-1])) if len(known) else (np.nan, np.nan)


def format_ends(first_and_last: tuple[float, float], digits: int = 4) -> str:
    """First and last value as text, ``0.1 → 0.2``, with so many significant digits; ``not known`` for NaN."""
    first, last = first_and_last
    return f"{first:.{digits}g} → {last:.{digits}g}" if np.isfinite(first_and_last).all() else "not known"
