"""The results folder: tables as CSV, larger arrays as Zarr, and the provenance of both.

``results/<model>/`` holds what comes from a whole model, ``results/<model>/<tensor>/`` what comes from the weights of
one tensor. A file appears complete or not at all. Figures, claims and reports read only these files.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import xarray as xr
from filelock import FileLock

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.registry import UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.tables import read_json, write_csv, write_json

__all__ = ["Results", "computed", "results_directory"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "numba", "zarr", "xarray")
"""Packages whose version can change a number in the results."""

_OF_WEIGHTS = ("source", "tensor", "drop_padding", "steps", "commits")
"""Entries of the provenance that identify the weights of a result."""


def results_directory(results: Path | str | None = None) -> Path:
    """The directory of all results.

    Parameters
    ----------
    results
        The directory. By default that of the environment variable ``PYTHIA_DYN_RESULTS``, else ``results``.
    """
    return Path(results or os.environ.get("PYTHIA_DYN_RESULTS") or "results")


def computed(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The value of a function for each item whose results have been computed.

    Parameters
    ----------
    function
        Reads results. It raises `PythiaDynError` where they have not been computed.
    items
        The arguments of the calls.
    """
    for item in items:
        try:
            value = function(item)
        except PythiaDynError:
            continue
        yield value


class Results:
    """The results of one model, or of one tensor of it.

    Parameters
    ----------
    name
        Name of the model: ``results/<name>/``.
    results
        The directory of all results; see `results_directory`.
    tensor
        Name of a tensor: ``results/<name>/<tensor>/``.

    Attributes
    ----------
    path : Path
        The folder. It is created when the first file is written.
    """

    def __init__(self, name: str, results: Path | str | None = None, *, tensor: str | None = None) -> None:
        self.name, self.tensor = name, tensor
        self._root = results_directory(results)
        self.path = self._root / name / (tensor or "")

    @property
    def label(self) -> str:
        """The name in figures and pages: the model, and the tensor unless it is the unembedding."""
        return self.name if self.tensor in (None, UNEMBEDDING) else f"{self.name}, {self.tensor}"

    @property
    def model(self) -> Results:
        """The results of the whole model."""
        return Results(self.name, self._root)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the model whose weights have been measured, sorted."""
        folders = [self.of(path.parent.name) for path in sorted(self.model.path.glob("*/provenance.json"))]
        return tuple(each.path.name for each in folders if any("tensor" in made for made in each.provenance().values()))

    def of(self, tensor: str) -> Results:
        """The results of the weights of one tensor.

        Parameters
        ----------
        tensor
            Its name.
        """
        return Results(self.name, self._root, tensor=tensor)

    def weights(self) -> Results:
        """The results of the weights of `tensor`; where that is None, of the unembedding or of the only tensor.

        Raises
        ------
        UnknownNameError
            Where other tensors have been measured, but not `tensor`.
        PythiaDynError
            Where several tensors have been measured, none is the unembedding, and `tensor` is None.
        """
        measured = self.tensors
        if self.tensor is not None:
            if measured and self.tensor not in measured:
                raise UnknownNameError("measured tensor", self.tensor, measured, where=str(self.model.path))
            return self
        if len(measured) > 1 and UNEMBEDDING not in measured:
            raise PythiaDynError(f"{self.path} has results of {', '.join(measured)}; name one with --tensor")
        return self.of(UNEMBEDDING if UNEMBEDDING in measured or not measured else measured[0])

    # -- tables and arrays ------------------------------------------------------------------------------------

    def write_table(self, name: str, table: Table, dataset: xr.Dataset) -> Path:
        """Write a dataset as ``<name>.csv``, in the order of its coordinates, and return the path.

        Parameters
        ----------
        name
            Name of the file.
        table
            Its columns. Those whose variable the dataset lacks are left out.
        dataset
            The values. NaN is written as an empty field.
        """
        variables = {table.renamed.get(column, column): column for column in table.columns}
        chosen = {variable: column for variable, column in variables.items() if variable in dataset.data_vars}
        frame = dataset[list(chosen)].rename(chosen).to_dataframe().reset_index()
        columns = [column for column in table.columns if column in frame.columns]
        frame = frame.sort_values([column for column in columns if column in table.keys], kind="stable")
        return write_csv(self.path / f"{name}.csv", columns, frame[columns].itertuples(index=False, name=None))

    def read_table(self, name: str, table: Table | None = None) -> xr.Dataset:
        """The table ``<name>.csv`` as a dataset over its coordinates.

        Parameters
        ----------
        name
            Name of the table.
        table
            Its specification. By default that of the known measure which writes it, else its coordinate is the step.

        Raises
        ------
        PythiaDynError
            Where there is no such file.
        """
        if table is None:
            tables = (measure.tables for measure in known_measures().values())
            table = next((found[name] for found in tables if name in found), None)
        keys = table.keys if table else ("step",)
        frame = pd.read_csv(self._existing(name, ".csv"))
        dataset: xr.Dataset = frame.set_index(list(keys)).to_xarray()
        return dataset

    def write_zarr(self, name: str, dataset: xr.Dataset) -> Path:
        """Write a dataset as ``<name>.zarr`` and return the path. An older one is replaced by the complete new one.

        Parameters
        ----------
        name
            Name of the array.
        dataset
            The values.
        """
        path, temporary = self.path / f"{name}.zarr", self.path / f".{name}.zarr.partial"
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        dataset.to_zarr(temporary, mode="w", consolidated=False)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        return path

    def read_zarr(self, name: str) -> xr.Dataset:
        """The dataset ``<name>.zarr``, in memory.

        Parameters
        ----------
        name
            Name of the array.

        Raises
        ------
        PythiaDynError
            Where there is no such array.
        """
        dataset: xr.Dataset = xr.open_zarr(self._existing(name, ".zarr"), consolidated=False).load()
        return dataset

    def _existing(self, name: str, suffix: str) -> Path:
        """The path of a result. Raises `PythiaDynError` with the command that writes it where there is none."""
        path = self.path / f"{name}{suffix}"
        if not path.exists():
            raise PythiaDynError(f"{path} is missing: run {self.command_for(name)}")
        return path

    def command_for(self, name: str) -> str:
        """The command that writes a result.

        Parameters
        ----------
        name
            Name of a table, an array or a figure.
        """
        made_by = {table: measure.name for measure in known_measures().values() for table in measure.tables}
        first, _, mode = name.partition("-")
        command = {"perplexity": f"perplexity --mode {mode}", "first_last": "portrait"}.get(first)
        command = command or made_by.get(name, name).replace("_", "-")
        tensor = "" if self.tensor in (None, UNEMBEDDING) else f" --tensor {shlex.quote(self.tensor)}"
        return f"pythia-dyn {command} --model {shlex.quote(self.name)}{tensor}"

    # -- provenance -------------------------------------------------------------------------------------------

    def provenance(self) -> dict[str, dict[str, Any]]:
        """How each result of this folder was computed, by the name of the result; empty where that is not known."""
        try:
            content = read_json(self.path / "provenance.json")
        except (OSError, ValueError):
            return {}
        entries = content.items() if isinstance(content, dict) else ()
        return {str(name): made for name, made in entries if isinstance(made, dict)}

    def record(self, name: str, details: Mapping[str, Any]) -> Path:
        """Write to ``provenance.json`` how a result was computed, with versions, machine and time.

        Several processes may do so at once.

        Parameters
        ----------
        name
            Name of the result.
        details
            Its source, its settings, and the like.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        made = {
            **details,
            "pythia_dynamics": __version__,
            "python": platform.python_version(),
            "packages": {package: metadata.version(package) for package in _PACKAGES},
            "machine": platform.machine(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with FileLock(self.path / ".provenance.lock"):
            content = {**self.provenance(), name: made}
            return write_json(self.path / "provenance.json", dict(sorted(content.items())))

    def require_same_weights(self, names: Iterable[str] | None = None) -> None:
        """Check that results of this folder are of the same weights: source, tensor, rows, steps and commits.

        Parameters
        ----------
        names
            The results to compare. By default those of every measure. Results without provenance are left out.

        Raises
        ------
        PythiaDynError
            Where they are of different weights.
        """
        made = self.provenance()
        chosen = [name for name in (known_measures() if names is None else names) if name in made]
        for other in chosen[1:]:
            for entry in _OF_WEIGHTS:
                mine, theirs = made[chosen[0]].get(entry), made[other].get(entry)
                if mine != theirs:
                    raise PythiaDynError(
                        f"{self.path} mixes results of different weights: {chosen[0]} is of {_in_words(entry, mine)}, "
                        f"{other} of {_in_words(entry, theirs)}; compute them again with the same --steps and "
                        "--drop-padding"
                    )


def _in_words(entry: str, value: Any) -> str:
    """An entry of the provenance in words."""
    if entry == "steps":
        return f"{len(value)} steps" if value else "unknown steps"
    if entry == "drop_padding":
        return "all rows" if value is None else f"{value} rows"
    return f"other commits ({len(value or ())} steps)" if entry == "commits" else str(value)
