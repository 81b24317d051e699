"""From columns of the steps in use to a dataset over all steps, NaN where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.history import History

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Variable", "course", "ends", "step_dataset"]

_OVER_STEPS = ("step", "other_step")


@dataclass(frozen=True)
class Variable:
    """One variable of a result.

    Parameters
    ----------
    values : array_like
        Its values; along ``step`` and ``other_step`` those of the steps in use, or of all steps.
    long_name : str
        What it is, as an axis label says it.
    units : str
        Its units, ``"1"`` for none.
    dims : tuple of str
        Names of its axes.
    attrs : mapping
        More attributes: how it was fitted, where it peaks.
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
    """The dataset over `step` of a history, with units, and provenance in its attributes.

    Parameters
    ----------
    history : History
        Gives the T steps and the provenance.
    variables : mapping of str to Variable
        The variables by name.
    at : array of int, shape (T',), optional
        Places on the step axis of the steps in use. Values along ``step`` or ``other_step`` are of these steps, and
        NaN (False for booleans) elsewhere. By default values are of all T steps.
    coords : mapping, optional
        Coordinates other than ``step``; ``other_step`` is added where a variable has it.
    attrs : mapping, optional
        Attributes besides the provenance.
    """
    import xarray as xr

    length = len(history.steps)
    data = {}
    for name, variable in variables.items():
        values = np.asarray(variable.values)
        for axis, dim in enumerate(variable.dims):
            if dim in _OVER_STEPS and at is not None and values.shape[axis] != length:
                values = _spread(values, axis, at, length)
        data[name] = (
            variable.dims,
            values,
            {"long_name": variable.long_name, "units": variable.units, **variable.attrs},
        )
    both = (
        {"other_step": history.steps} if any("other_step" in variable.dims for variable in variables.values()) else {}
    )
    return xr.Dataset(
        data, coords={"step": history.steps, **both, **(coords or {})}, attrs={**history.provenance, **(attrs or {})}
    )


def _spread(values: NDArray[Any], axis: int, at: NDArray[np.intp], length: int) -> NDArray[Any]:
    """Values of the steps `at` along an axis, at their places among `length` steps."""
    shape = (*values.shape[:axis], length, *values.shape[axis + 1 :])
    full = np.zeros(shape, bool) if values.dtype == bool else np.full(shape, np.nan)
    full[(slice(None),) * axis + (at,)] = values
    return full


def ends(curve: xr.DataArray) -> tuple[float, float]:
    """First and last known value of a curve over steps, NaN where none is known."""
    known = curve.dropna("step").to_numpy()
    return (float(known[0]), float(known[-1])) if len(known) else (np.nan, np.nan)


def course(first_and_last: tuple[float, float], digits: int = 4) -> str:
    """First and last value in words, with so many digits."""
    first, last = first_and_last
    return f"{first:.{digits}g} → {last:.{digits}g}" if np.isfinite(first_and_last).all() else "not known"
