"""Figures with a step slider: a drawing, and the values behind it in a form small enough for a page.

Values are 16-bit codes in base64. Their relative steps are about 2e-4 for a density over six decades, and their steps
3e-5 for a cosine.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics import figures
from pythia_dynamics.figures.measures import DENSITY_FLOOR
from pythia_dynamics.figures.svg import rounded
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.reading import computed

__all__ = ["MISSING", "Explorer", "codes_of", "decode", "encode", "explorers", "values_of"]

_MAX_STEPS = 200
"""Steps on a page. 200 × 200 cosines take 107 kB in base64, so that four models with both figures stay below 5 MB; the
143 steps of the papers are all shown."""

_MAX_BINS = 192
"""Bins of a density on a page: one for every two points (1/72 inch) of the width of its figure."""

MISSING = 0xFFFF
"""The code of a value that is not known."""

_LARGEST = 0xFFFD
"""Number of intervals between the codes 1 and 65534. The script of the page has the same number."""


@dataclass(frozen=True)
class Explorer:
    """A figure with a slider, as the template and the script use it.

    Parameters
    ----------
    key
        Its id on the page.
    title
        Heading.
    caption
        One or two sentences on what the figure shows.
    drawing
        The drawing with the chosen step.
    steps
        The steps of the slider.
    chosen
        Place of the chosen step among them.
    payload
        The values that the script draws, as JSON can hold them.
    """

    key: str
    title: str
    caption: str
    drawing: figures.Drawing
    steps: tuple[int, ...]
    chosen: int
    payload: dict[str, Any]


def explorers(results: Results, prefix: str) -> list[Explorer]:
    """The explorers of the density and of the cosine map, where these have been computed.

    Parameters
    ----------
    results
        The results of a model, or of a tensor of it.
    prefix
        Begins the keys, to make them unique on the page.
    """
    return list(computed(lambda make: make(results.weights(), prefix), (_density, _cosine)))


def _density(results: Results, prefix: str) -> Explorer:
    result = results.read_zarr("density")[["density"]]
    # The mean of as many equal bins as it takes to have at most `_MAX_BINS`.
    result = result.coarsen(weight=-(-result.sizes["weight"] // _MAX_BINS), boundary="trim").mean()
    result = result.isel(step=_spread(result.sizes["step"]))
    return _explorer(
        results,
        f"{prefix}-density",
        result,
        figures.density_at,
        title="Density at a step",
        label=f"Density of the weights of {results.label}, step by step: map over all steps, and its section at the "
        "chosen step",
        caption="Above: density of the weights over training. Below: its section at the step of the slider. "
        f"{result.sizes['weight']} bins.",
    )


def _cosine(results: Results, prefix: str) -> Explorer:
    result = results.read_zarr("two_time")[["cosine"]].transpose("step", "other_step")
    kept = _spread(result.sizes["step"])
    return _explorer(
        results,
        f"{prefix}-cosine",
        result.isel(step=kept, other_step=kept),
        figures.cosine_at,
        title="Cosine between steps",
        label=f"Cosine between the weights of {results.label} at every two steps, and its section at the chosen step",
        caption="Above: cosine between the weights at every two steps. Below: between the step of the slider and all "
        "others.",
    )


def _explorer(
    results: Results,
    key: str,
    result: xr.Dataset,
    draw: Callable[..., None],
    *,
    title: str,
    label: str,
    caption: str,
) -> Explorer:
    """The explorer of the only variable of a dataset, which has the dimensions step and another one."""
    (quantity,) = result.data_vars.values()
    values, (_, other) = quantity.to_numpy(), map(str, quantity.dims)
    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    chosen = int(known[-1]) if len(known) else len(values) - 1
    with figures.sheet(rows=2, width=5.2, height=2.9) as (figure, axes):
        draw(axes, result, chosen, key=key)
        drawing = figures.inline(figure, key, label=label)
    if len(values) >= _MAX_STEPS:
        caption += f" {_MAX_STEPS} steps are shown; all are in results/{results.name}/{results.tensor}."
    payload = {
        "along": rounded(quantity[other]),
        "alongName": other.replace("_", " "),
        "valueName": quantity.name,
        **encode(values, log=quantity.name == "density"),
    }
    return Explorer(key, title, caption, drawing, tuple(result["step"].to_numpy().tolist()), chosen, payload)


def encode(values: NDArray[np.float64], *, log: bool) -> dict[str, Any]:
    """Values as 16-bit codes: 1 … 65534 on a scale from `low` to `high`, 0 for zero, 65535 for a value not known.

    Parameters
    ----------
    values
        The values, with NaN where they are not known.
    log
        Whether the scale is logarithmic. Values below `DENSITY_FLOOR` times the greatest then count as zero.

    Returns
    -------
    dict
        `low` and `high`, the ends of the scale, `log`, and `codes`, the little-endian codes in base64.
    """
    low, high, codes = codes_of(values, log=log, floor=DENSITY_FLOOR)
    return {"low": low, "high": high, "log": log, "codes": base64.b64encode(codes.astype("<u2").tobytes()).decode()}


def codes_of(values: NDArray[np.float64], *, log: bool, floor: float = 0.0) -> tuple[float, float, NDArray[np.uint16]]:
    """Values as 16-bit codes on a scale from the least to the greatest of them.

    Parameters
    ----------
    values
        The values; those that are not finite have the code `MISSING`.
    log
        Whether the scale is logarithmic. Zero then has the code 0.
    floor
        Share of the greatest value below which values of a logarithmic scale count as zero.

    Returns
    -------
    low, high : float
        The ends of the scale.
    codes : ndarray of uint16
        1 … 65534 from `low` to `high`, in the shape of the values.
    """
    finite = values[np.isfinite(values) & ((values > 0) if log else True)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if log:
            low = max(low, high * floor)
            place = (np.log(values) - np.log(low)) / ((np.log(high) - np.log(low)) or 1.0)  # high/low may be infinite
        else:
            place = (values / 2 - low / 2) / ((high / 2 - low / 2) or 1.0)  # halves: high - low may be infinite
        codes = np.where(place >= 0, 1 + np.rint(np.minimum(place, 1) * _LARGEST), 0)
    return low, high, np.where(np.isfinite(values), codes, MISSING).astype(np.uint16)


def decode(content: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The values that `encode` was given, as the script of the page decodes them.

    Parameters
    ----------
    content
        What `encode` returned.
    shape
        Shape of the values.
    """
    codes = np.frombuffer(base64.b64decode(content["codes"]), "<u2").reshape(shape)
    return values_of(codes, content["low"], content["high"], log=content["log"])


def values_of(codes: NDArray[np.uint16], low: float, high: float, *, log: bool) -> NDArray[np.float64]:
    """The values that `codes_of` was given, as the script of the page decodes them.

    Parameters
    ----------
    codes, low, high
        What `codes_of` returned.
    log
        Whether the scale is logarithmic.
    """
    place = np.minimum((codes.astype(np.float64) - 1) / _LARGEST, 1)  # `MISSING` would be above, and may overflow
    ends = (np.log(low), np.log(high)) if log else (low, high)
    values = ends[0] * (1 - place) + ends[1] * place
    values = np.exp(values) if log else values
    return np.where(codes == MISSING, np.nan, np.where(codes == 0, 0.0, values))


def _spread(count: int) -> NDArray[np.intp]:
    """Places of all steps, or of `_MAX_STEPS` of them, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_STEPS)).round().astype(np.intp))
