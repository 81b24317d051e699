"""Populations of runs of known truth: curves in memory, and tables as `order` saves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.results.folder import Results

TENSOR = "embed_out.weight"
STEPS = np.arange(1000, 41_000, 1000)

Course = Literal["walk", "white", "offset", "persistent"]
COURSES: tuple[Course, ...] = ("walk", "white", "offset", "persistent")


def exchangeable(rng: np.random.Generator, runs: int, course: Course, *, tails: int = 0) -> np.ndarray:
    """Exchangeable curves of shape (runs, 40) with standard deviation 1 at the end; normal, or Student's with `tails`
    degrees of freedom."""

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_t(tails, size=shape) / np.sqrt(tails / (tails - 2)) if tails else rng.normal(size=shape)

    count = len(STEPS)
    if course == "walk":
        return np.cumsum(draw(runs, count), axis=1) / np.sqrt(count)
    if course == "white":
        return draw(runs, count)
    if course == "offset":
        return draw(runs, 1) + 0.2 * draw(runs, count)
    values = draw(runs, count)
    for at in range(1, count):
        values[:, at] = 0.9 * values[:, at - 1] + np.sqrt(1 - 0.9**2) * values[:, at]
    return values


def curves(values: np.ndarray, steps: Sequence[int] | np.ndarray = STEPS) -> xr.DataArray:
    """Values of shape (run, step) as a curve of runs r0, r1 …"""
    names = [f"r{number}" for number in range(len(values))]
    return xr.DataArray(values, dims=("run", "step"), coords={"run": names, "step": list(steps)}, name="x")


def positive(values: np.ndarray) -> xr.DataArray:
    """The same as positive curves: what has standard deviation 1 becomes a spread of 10 %."""
    return curves(np.exp(1 + 0.1 * values))


def save_order(
    directory: Path,
    name: str,
    values: np.ndarray,
    steps: np.ndarray = STEPS,
    *,
    tensor: str = TENSOR,
    coordinates: Mapping[str, Any] | None = None,
    **provenance: Any,
) -> Results:
    """The table ``order.csv`` of a run with these values of the order parameter, and its provenance."""
    results = Results(name, directory, tensor=tensor)
    columns = {"frobenius_norm": 2 * values, "order_parameter": values, "rms": values / 3}
    dataset = xr.Dataset({key: ("step", column) for key, column in columns.items()}, {"step": steps})
    results.write_table("order", known_measures()["order"].tables["order"], dataset)
    made = {"source": name, "tensor": tensor, "steps": steps.tolist(), "drop_padding": None, **provenance}
    made["roles"] = ["unembedding"] if tensor == TENSOR else []
    results.record("order", made | ({"coordinates": coordinates} if coordinates else {}))
    return results
