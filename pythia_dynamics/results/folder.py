"""The results folder: tables as CSV, larger arrays as Zarr, and where all of it came from.

``results/<model>/`` holds what comes from a whole model, ``results/<model>/<tensor>/`` what comes from the weights of
one tensor. A file appears whole or not at all. Figures, claims and reports read nothing else.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.registry import UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.tables import read_json, write_csv, write_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Results", "results_directory"]

_PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "numba", "zarr", "xarray")

_OF_WEIGHTS = ("source", "tensor", "drop_padding", "steps", "commits")
"""Entries of the provenance that say which weights a result is of."""


def results_directory(results: Path | str | None = None) -> Path:
    """Where results are kept: the argument, else the environment's ``PYTHIA_DYN_RESULTS``, else ``results``."""
    return Path(results or os.environ.get("PYTHIA_DYN_RESULTS") or "results")


class Results:
    """The results of one model, or of one tensor of it.

    Parameters
    ----------
    name : str
        Name of the model: ``results/<name>/``.
    results : Path or str, optional
        The directory of all results; see `results_directory`.
    tensor : str, optional
        Name of a tensor: ``results/<name>/<tensor>/``.

    Attributes
    ----------
    path : Path
        The folder. It is made when something is written.
    """

    def __init__(self, name: str, results: Path | str | None = None, *, tensor: str | None = None) -> None:
        self.name, self.tensor = name, tensor
        self._root = results_directory(results)
        self.path = self._root / name if tensor is None else self._root / name / tensor

    @property
    def label(self) -> str:
        """What a figure or a page calls it: the model, and the tensor where that is not the unembedding."""
        return self.name if self.tensor in (None, UNEMBEDDING) else f"{self.name}, {self.tensor}"

    @property
    def model(self) -> Results:
        """The results of the whole model."""
        return Results(self.name, self._root)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the model whose weights have been measured, sorted."""
        folders = sorted(path.parent for path in self.model.path.glob("*/provenance.json"))
        found = (Results(self.name, self._root, tensor=folder.name) for folder in folders)
        return tuple(each.path.name for each in found if any("tensor" in made for made in each.provenance().values()))

    def of(self, tensor: str) -> Results:
        """The results of the weights of one tensor."""
        return Results(self.name, self._root, tensor=tensor)

    def weights(self) -> Results:
        """The results of weights that are meant where no tensor is named: of the unembedding, or of the only tensor.

        Raises `PythiaDynError` where several tensors have been measured and none is the unembedding.
        """
        there = self.tensors
        if self.tensor is not None:
            if there and self.tensor not in there:
                raise UnknownNameError("measured tensor", self.tensor, there, where=str(self.model.path))
            return self
        if len(there) > 1 and UNEMBEDDING not in there:
            raise PythiaDynError(f"{self.path} has results of {', '.join(there)}; name one with --tensor")
        return self.of(UNEMBEDDING if UNEMBEDDING in there or not there else there[0])

    # -- tables and arrays ------------------------------------------------------------------------------------

    def write_table(self, name: str, table: Table, dataset: xr.Dataset) -> Path:
        """Write the columns of a `Table` that a dataset has as ``<name>.csv``, in order of its coordinates."""
        variables = {column: table.renamed.get(column, column) for column in table.columns}
        chosen = {column: variable for column, variable in variables.items() if variable in dataset.data_vars}
        frame = dataset[list(chosen.values())].rename({variable: column for column, variable in chosen.items()})
        flat = frame.to_dataframe().reset_index()
        columns = [column for column in table.columns if column in flat.columns]
        flat = flat.sort_values([column for column in columns if column in table.keys], kind="stable")
        return write_csv(self.path / f"{name}.csv", columns, flat[columns].itertuples(index=False, name=None))

    def read_table(self, name: str) -> xr.Dataset:
        """The table ``<name>.csv`` as a dataset over its coordinates. Raises `PythiaDynError` where there is none."""
        import pandas as pd

        path = self.path / f"{name}.csv"
        try:
            frame = pd.read_csv(path)
        except FileNotFoundError:
            raise PythiaDynError(f"{path} is missing: run {self.command_for(name)}") from None
        tables = {table: spec for measure in known_measures().values() for table, spec in measure.tables.items()}
        keys = tables[name].keys if name in tables else ("step",)
        dataset: xr.Dataset = frame.set_index(list(keys)).to_xarray()
        return dataset

    def write_zarr(self, name: str, dataset: xr.Dataset) -> Path:
        """Write a dataset whole as ``<name>.zarr``; what was there is replaced when the new one is complete."""
        path, temporary = self.path / f"{name}.zarr", self.path / f".{name}.zarr.partial"
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        dataset.to_zarr(temporary, mode="w", consolidated=False)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        return path

    def read_zarr(self, name: str) -> xr.Dataset:
        """The dataset ``<name>.zarr``. Raises `PythiaDynError` where there is none."""
        import xarray as xr

        path = self.path / f"{name}.zarr"
        if not path.is_dir():
            raise PythiaDynError(f"{path} is missing: run {self.command_for(name)}")
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=False).load()
        return dataset

    def command_for(self, name: str) -> str:
        """The command that writes a table, an array or a figure of that name."""
        measures = known_measures()
        made_by = {table: measure.name for measure in measures.values() for table in measure.tables}
        first, _, mode = name.partition("-")
        if first == "perplexity":
            command = f"perplexity --mode {mode}"
        elif name == "first_last":
            command = "portrait"
        else:
            command = made_by.get(name, name).replace("_", "-")
        tensor = "" if self.tensor in (None, UNEMBEDDING) else f" --tensor {self.tensor}"
        return f"pythia-dyn {command} --model {self.name}{tensor}"

    # -- provenance -------------------------------------------------------------------------------------------

    def provenance(self) -> dict[str, dict[str, Any]]:
        """How each result of this folder was made, by kind; empty where nothing is known."""
        try:
            content = read_json(self.path / "provenance.json")
        except (OSError, ValueError):
            return {}
        entries = content.items() if isinstance(content, dict) else ()
        return {str(kind): made for kind, made in entries if isinstance(made, dict)}

    def record(self, kind: str, details: Mapping[str, Any]) -> Path:
        """Write in ``provenance.json`` how the result `kind` was made: `details`, versions, machine and time.

        Several processes may record at once.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        made = {
            **details,
            "pythia_dynamics": __version__,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "machine": platform.machine(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with FileLock(self.path / ".provenance.lock"):
            content = {**self.provenance(), kind: made}
            return write_json(self.path / "provenance.json", dict(sorted(content.items())))

    def mixture(self, kinds: Collection[str] | None = None) -> str | None:
        """Why results of this folder are not of the same weights, in a sentence; None where they are.

        `kinds` are the results that are compared, by default those of every measure. Compared are the source, the
        tensor, the rows, the steps and the commits.
        """
        made = self.provenance()
        chosen = [kind for kind in (known_measures() if kinds is None else kinds) if kind in made]
        for first, second in ((chosen[0], other) for other in chosen[1:]):
            for entry in _OF_WEIGHTS:
                mine, theirs = made[first].get(entry), made[second].get(entry)
                if mine != theirs:
                    return f"{first} is of {_said(entry, mine)}, {second} of {_said(entry, theirs)}"
        return None

    def require_same_weights(self) -> None:
        """Raise `PythiaDynError` where the results of this folder are of different weights."""
        difference = self.mixture()
        if difference is not None:
            raise PythiaDynError(
                f"{self.path} mixes results of different weights: {difference}; compute them again with the same "
                "--steps and --drop-padding"
            )


def _said(entry: str, value: Any) -> str:
    """An entry of the provenance in words."""
    if entry == "steps":
        steps: Iterable[Any] = value or ()
        return f"{len(list(steps))} steps" if value else "unknown steps"
    if entry == "drop_padding":
        return "all rows" if value is None else f"{value} rows"
    if entry == "commits":
        return f"other commits ({len(value or ())} steps)"
    return str(value)
