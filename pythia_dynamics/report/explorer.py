"""The figures with a step slider: a drawing, and the values behind it small enough to travel with the page.

Values go as 16-bit codes in base64: relative steps of 1e-4 or so for a density over six decades, 3e-5 for a cosine.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Explorer", "decode", "encode", "explorers"]

_STEPS, _BINS = 200, 192
_MISSING = 0xFFFF
_LARGEST = 0xFFFD
_DECADES = 6.0


@dataclass(frozen=True)
class Explorer:
    """One figure with a slider: what the template and the script need of it."""

    key: str
    title: str
    caption: str
    drawing: figures.Drawing
    steps: tuple[int, ...]
    chosen: int
    payload: dict[str, Any]


def explorers(results: Results, prefix: str) -> list[Explorer]:
    """Density and cosine map of one model, where they have been computed. `prefix` makes the keys unique."""
    found = []
    for make in (_density, _cosine):
        try:
            found.append(make(results.weights(), prefix))
        except PythiaDynError:  # it has not been computed
            continue
    return found


def _density(results: Results, prefix: str) -> Explorer:
    result = _coarse(results.read_zarr("density"))
    result = result.isel(step=_spread(result.sizes["step"]))
    values = result["density"].to_numpy()
    chosen, key = _last_known(values), f"{prefix}-density"
    title = f"Density of the weights of {results.label}, step by step"
    with figures.sheet(rows=2, width=5.2, height=2.9) as (figure, axes):
        figures.density_at(axes, result, chosen, key=key)
        drawing = figures.inline(figure, key, label=f"{title}: map over all steps, and its section at the chosen step")
    weights = result["weight"].to_numpy()
    return Explorer(
        key=key,
        title="Density at a step",
        caption=f"Above: density of the weights over training. Below: its section at the step of the slider. "
        f"{len(weights)} bins.{_thinned(result, results)}",
        drawing=drawing,
        steps=tuple(int(step) for step in result["step"]),
        chosen=chosen,
        payload={
            "along": [float(f"{weight:.5g}") for weight in weights],
            "alongName": "weight",
            "valueName": "density",
            **encode(values, log=True),
        },
    )


def _cosine(results: Results, prefix: str) -> Explorer:
    result = results.read_zarr("two_time")[["cosine"]]
    kept = _spread(result.sizes["step"])
    result = result.isel(step=kept, other_step=kept)
    values = result["cosine"].transpose("step", "other_step").to_numpy()
    chosen, key = _last_known(values), f"{prefix}-cosine"
    title = f"Cosine between the weights of {results.label} at every two steps"
    with figures.sheet(rows=2, width=5.2, height=2.9) as (figure, axes):
        figures.cosine_at(axes, result, chosen, key=key)
        drawing = figures.inline(figure, key, label=f"{title}, and its section at the chosen step")
    return Explorer(
        key=key,
        title="Cosine between steps",
        caption="Above: cosine between the weights at every two steps. Below: between the step of the slider and all "
        f"others.{_thinned(result, results)}",
        drawing=drawing,
        steps=tuple(int(step) for step in result["step"]),
        chosen=chosen,
        payload={
            "along": [int(step) for step in result["step"]],
            "alongName": "other step",
            "valueName": "cosine",
            **encode(values, log=False),
        },
    )


def encode(values: NDArray[np.float64], *, log: bool) -> dict[str, Any]:
    """Values as codes 1 … 65534 on a linear or logarithmic scale from `low` to `high`; 0 is zero, 65535 not known.

    On a logarithmic scale what is more than six decades below the greatest value counts as zero.
    """
    finite = values[np.isfinite(values) & ((values > 0) if log else True)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    if log:
        low = max(low, high * 10**-_DECADES)
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.log(values / low) / (np.log(high / low) or 1.0)
    else:
        place = (values - low) / ((high - low) or 1.0)
    with np.errstate(invalid="ignore"):
        codes = np.where(place >= 0, 1 + np.rint(np.minimum(place, 1) * (_LARGEST)), 0)
    codes = np.where(np.isfinite(values), codes, _MISSING).astype("<u2")
    return {"low": low, "high": high, "log": log, "codes": base64.b64encode(codes.tobytes()).decode()}


def decode(content: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The values that `encode` was given, as the page reads them."""
    codes = np.frombuffer(base64.b64decode(content["codes"]), "<u2").reshape(shape).astype(np.float64)
    place = (codes - 1) / _LARGEST
    low, high = content["low"], content["high"]
    values = low * (high / low) ** place if content["log"] else low + place * (high - low)
    return np.where(codes == _MISSING, np.nan, np.where(codes == 0, 0.0, values))


def _coarse(result: xr.Dataset) -> xr.Dataset:
    """The density over at most 192 bins, each the mean of as many equal ones."""
    factor = -(-result.sizes["weight"] // _BINS)
    coarse: xr.Dataset = result[["density"]].coarsen(weight=factor, boundary="trim").mean()
    return coarse


def _spread(count: int) -> NDArray[np.intp]:
    """All steps, or 200 of them, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, _STEPS)).round().astype(np.intp))


def _thinned(shown: xr.Dataset, results: Results) -> str:
    """What to say where not all steps are shown."""
    return (
        ""
        if shown.sizes["step"] < _STEPS
        else f" {_STEPS} steps are shown; all are in results/{results.name}/{results.tensor}."
    )


def _last_known(values: NDArray[np.float64]) -> int:
    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    return int(known[-1]) if len(known) else len(values) - 1
