"""Result files: ``results/<name>/`` with tables as CSV, larger arrays as Zarr, and where all of it came from.

A file appears whole or not at all. What is written here is all that figures, claims and reports read.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_dynamics import __version__
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.files import atomic_file

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TABLES", "Results", "results_directory"]

TABLES: dict[str, tuple[str, ...]] = {
    "msd": ("step", "msd", "msd_null", "msd_time", "msd_time_null", "displacement"),
    "moments": (
        *("step", "mean", "std", "skewness", "kurtosis", "bimodality", "min", "max", "nonfinite"),
        *("modes", "dip", "dip_p"),
    ),
    "order": ("step", "frobenius_norm", "order_parameter", "rms", "loss", "dloss_db"),
    "rank": ("step", "batch_size", "tolerance", "convention", "rank", "rank_se", "rank_difference"),
    "rank-infinite": ("step", "tolerance", "convention", "rank"),
    "spectrum": (
        "step",
        "entropy",
        "effective_rank",
        "stable_rank",
        "condition_number",
        "alpha",
        "mean_row_fraction",
    ),
}
"""Columns of the tables that come from weights, in order; the first ones are the rows' coordinates."""

_COMMANDS = {"moments": "density", "rank-infinite": "rank", "two_time": "msd", "first_last": "portrait"}
_PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "numba", "zarr", "xarray")


def results_directory(results: Path | str | None = None) -> Path:
    """Where results are kept: the argument, else the environment's ``PYTHIA_DYN_RESULTS``, else ``results``."""
    return Path(results or os.environ.get("PYTHIA_DYN_RESULTS") or "results")


class Results:
    """The results of one model: the folder ``results/<name>/``."""

    def __init__(self, name: str, results: Path | str | None = None) -> None:
        self.name = name
        self.path = results_directory(results) / name

    def write_table(self, kind: str, dataset: xr.Dataset) -> Path:
        """Write the columns of `TABLES` that `dataset` has as ``<kind>.csv``; missing values are empty fields."""
        columns = TABLES[kind]
        flat = dataset[[name for name in columns if name in dataset.data_vars]].to_dataframe().reset_index()
        order = [name for name in columns if name in flat.columns]
        flat = flat.sort_values([name for name in order if name in dataset.dims], kind="stable")
        path = self.path / f"{kind}.csv"
        with atomic_file(path) as file:
            file.write(flat[order].to_csv(index=False).encode())
        return path

    def read_table(self, kind: str) -> xr.Dataset:
        """The table ``<kind>.csv`` as a dataset over its coordinates. Raises `PythiaDynError` where there is none."""
        import pandas as pd

        path = self.path / f"{kind}.csv"
        try:
            frame = pd.read_csv(path)
        except FileNotFoundError:
            raise PythiaDynError(f"no {path}; {self._remedy(kind)}") from None
        keys = [name for name in ("step", "batch_size", "tolerance", "convention") if name in frame.columns]
        dataset: xr.Dataset = frame.set_index(keys).to_xarray()
        return dataset

    def write_zarr(self, kind: str, dataset: xr.Dataset) -> Path:
        """Write a dataset whole as ``<kind>.zarr``, replacing what was there only when the new one is complete."""
        path, temporary = self.path / f"{kind}.zarr", self.path / f".{kind}.zarr.partial"
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        dataset.to_zarr(temporary, mode="w", consolidated=False)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        return path

    def read_zarr(self, kind: str) -> xr.Dataset:
        """The dataset ``<kind>.zarr``. Raises `PythiaDynError` where there is none."""
        import xarray as xr

        path = self.path / f"{kind}.zarr"
        if not path.is_dir():
            raise PythiaDynError(f"no {path}; {self._remedy(kind)}")
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=False).load()
        return dataset

    def _remedy(self, kind: str) -> str:
        command, _, mode = kind.partition("-")
        command = _COMMANDS.get(kind, f"{command} --mode {mode}" if command == "perplexity" else command)
        return f"run pythia-dyn {command} --model {self.name}"

    def record(self, kind: str, details: Mapping[str, Any]) -> Path:
        """Write in ``provenance.json`` how the result `kind` was made: `details`, versions, machine and time."""
        path = self.path / "provenance.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            content = {}
        content[kind] = {
            **details,
            "pythia_dynamics": __version__,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "machine": platform.machine(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with atomic_file(path) as file:
            file.write(json.dumps(content, indent=1, sort_keys=True, default=str).encode() + b"\n")
        return path
