"""The results folder: tables as CSV, larger arrays as Zarr, and the provenance of both.

``results/<model>/`` holds what comes from a whole model, ``results/<model>/<tensor>/`` what comes from the weights of
one tensor. A file appears complete or not at all. Figures, claims and reports read only these files.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.formats.slices import select
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.checkpoints.roles import ROLES, UNEMBEDDING, find_roles
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.files import portable, store_errors
from pythia_dynamics.measures.catalogue import BUILT_IN, known_measures
from pythia_dynamics.measures.displacement import PER_LEARNING_RATE
from pythia_dynamics.measures.measure import Measure, Table
from pythia_dynamics.mirror import local, locked
from pythia_dynamics.results.commands import steps_option, typed_command
from pythia_dynamics.results.reading import VARIABLES, array_from, table_from
from pythia_dynamics.tables import read_json, write_csv, write_json

__all__ = ["Results", "results_directory"]

_PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "numba", "zarr", "xarray")
"""Packages whose version can change a number in the results."""

_version = cache(metadata.version)  # parses a file at each call, 20 ms for these packages

_OPTIONAL = ("loss", "dloss_db", "dloss_db_backward", *PER_LEARNING_RATE)
"""Columns that a table of this package has only where the loss, or the learning rate, is known."""

_OF_SENTENCES = ("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "sentences", "nonfinite", "overflow")
_EVALUATION_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "perplexity-forward": _OF_SENTENCES,
    "perplexity-unmask": _OF_SENTENCES,
    "perplexity-last-word": ("ppl", "accuracy", "sentences", "nonfinite", "overflow"),
    "representation": ("anisotropy", "rankme", "effective_rank", "alpha", "kl_unigram", "kl_bigram", "nonfinite"),
}
"""Columns that a table of an evaluation always has."""

_PREFIX = "-prefix"
_OF_PREFIXES = Table(("step", "prefix", "nll_mean", "entropy", "sentences"), keys=("step", "prefix"))
"""The table of unmasking by prefix length, ``perplexity-unmask-prefix.csv``, which stands beside that of the mode."""

_PLACES = ("source", "location", "config", "tokenizer")
"""Entries of the provenance that may be the path of a directory, which is recorded relative to the folder."""

_OF_WEIGHTS = ("source", "tensor", "drop_padding", "steps", "commits")
"""Entries of the provenance that identify the weights of a result."""


_MAX_LISTED_STEPS = 20
"""Uneven steps that a command in a message lists. More are most likely all steps of the store, which is the default."""


def results_directory(results: Path | str | None = None) -> Path:
    """The directory of all results.

    Parameters
    ----------
    results
        The directory. By default that of the environment variable ``PYTHIA_DYN_RESULTS``, else ``results``.
    """
    return local(results or os.environ.get("PYTHIA_DYN_RESULTS") or "results")


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

    def __repr__(self) -> str:
        return f"<Results {self.path}: {', '.join(self._names()) or 'no files yet'}>"

    def _repr_html_(self) -> str:
        """A table for notebooks: each file, and when and from what it was computed, where that is recorded."""
        made = self.provenance()
        rows = ""
        for name in self._names():
            details = made.get(name, made.get(name.partition(".")[0], {}))
            cells = (name, str(details.get("time", "")), str(details.get("source", "")))
            rows += f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        return f"<table><caption>{escape(str(self.path))}</caption>{rows}</table>"

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("[!.]*"))

    @property
    def label(self) -> str:
        """The name in figures and pages: the model, and the tensor unless it is the unembedding."""
        return self.name if self.tensor is None or self.is_unembedding else f"{self.name}, {self.tensor}"

    @property
    def is_unembedding(self) -> bool:
        """Whether these are the results of the unembedding: by their provenance, else by the name of the tensor."""
        return UNEMBEDDING in self._roles

    @property
    def _roles(self) -> Collection[str]:
        made = [made for made in self.provenance().values() if isinstance(made.get("roles"), list)]
        newest = max(made, key=lambda details: str(details.get("time")), default=None)
        return newest["roles"] if newest else find_roles([self.tensor or ""])

    @property
    def model(self) -> Results:
        """The results of the whole model."""
        return Results(self.name, self._root)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the model whose weights have been measured, sorted."""
        folders = [self.of(path.name) for path in sorted(self.model.path.glob("*/"))]
        return tuple(
            each.path.name
            for each in folders
            if any("tensor" in made for made in each.provenance().values()) or any(map(each._files, known_measures()))
        )

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
        chosen = [name for name in measured if self.of(name).is_unembedding] if len(measured) > 1 else list(measured)
        if len(measured) > 1 and len(chosen) != 1:
            raise PythiaDynError(f"{self.path} has results of {', '.join(measured)}; name one with --tensor")
        return self.of(chosen[0] if chosen else EMBED_OUT)

    def select(self, patterns: Sequence[str]) -> list[Results]:
        """The results of the measured tensors that patterns mean; those of the model without any pattern.

        Parameters
        ----------
        patterns
            Names, roles, ``all`` and globs.

        Raises
        ------
        UnknownNameError
            A pattern matches no measured tensor.
        CheckpointError
            No measured tensor has the role.
        """
        if not patterns:
            return [self]
        measured = self.tensors
        of_role = {role: [name for name in measured if role in self.of(name)._roles] for role in ROLES}
        roles = {role: names[0] for role, names in of_role.items() if len(names) == 1}
        return [self.of(name) for name in select(measured, patterns, where=str(self.model.path), roles=roles)]

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
        FormatError
            The file is damaged.
        PythiaDynError
            Where there is no such file.
        """
        measure = _measure_of(name)
        closed = table is None and measure is not None and measure.name in BUILT_IN
        table = table or (
            measure.tables[name] if measure else _OF_PREFIXES if name.endswith(_PREFIX) else Table(("step",))
        )
        required = _EVALUATION_COLUMNS.get(Path(name).name, ())
        if closed:
            required = tuple(column for column in table.columns if column not in (*_OPTIONAL, *table.optional))
        path = self._existing(name, ".csv")
        try:
            dataset = table_from(path, table, required=required, closed=closed)
            self._check_steps(dataset, measure)
        except FormatError as error:
            raise self._damaged(path, name, error) from None
        return dataset

    def write_zarr(self, name: str, dataset: xr.Dataset) -> Path:
        """Write a dataset as ``<name>.zarr`` and return the path. An older one is replaced by the complete new one.

        Parameters
        ----------
        name
            Name of the array.
        dataset
            The values.

        Raises
        ------
        StoreError
            It cannot be written, for instance because the disk is full. An older one is then kept.
        """
        path, temporary = self.path / f"{name}.zarr", self.path / f".{name}.zarr.partial"
        # In memory first: after an error of the disk, tasks of zarr would go on and print messages of their own.
        written: dict[str, Any] = {}
        dataset = dataset.assign_attrs(self._portable(dataset.attrs))
        dataset.attrs[VARIABLES] = sorted(map(str, dataset.variables))
        dataset.to_zarr(MemoryStore(written), mode="w", consolidated=False, write_empty_chunks=True)
        try:
            with store_errors(path):
                shutil.rmtree(temporary, ignore_errors=True)
                for key, content in written.items():
                    file = temporary / key
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content.to_bytes())
                shutil.rmtree(path, ignore_errors=True)
                temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return path

    def read_zarr(self, name: str) -> xr.Dataset:
        """The dataset ``<name>.zarr``, in memory.

        Parameters
        ----------
        name
            Name of the array.

        Raises
        ------
        FormatError
            The array is damaged.
        PythiaDynError
            Where there is no such array.
        """
        path = self._existing(name, ".zarr")
        try:
            dataset = array_from(path)
            self._check_steps(dataset, known_measures().get(name))
        except FormatError as error:
            raise self._damaged(path, name, error) from None
        return dataset.assign_attrs({key: self._located(dataset.attrs[key]) for key in _PLACES if key in dataset.attrs})

    def _located(self, place: Any) -> Any:
        """A place as it is recorded in this folder: the absolute path, if it is a directory near it."""
        near = isinstance(place, str) and place.startswith("../") and (self.path / place).is_dir()
        return str((self.path / place).resolve()) if near else place

    def _check_steps(self, dataset: xr.Dataset, measure: Measure | None) -> None:
        """Check that a result has the steps that the provenance of its measure records."""
        recorded = self.provenance().get(measure.name, {}).get("steps") if measure else None
        if isinstance(recorded, list) and "step" in dataset.coords:
            steps = np.atleast_1d(dataset["step"].to_numpy()).tolist()
            if steps != sorted(recorded):
                which = f"{len(steps)} steps" if len(steps) != len(recorded) else "other steps"
                raise FormatError(f"{which}; provenance.json records {len(recorded)}")

    def _damaged(self, path: Path, name: str, reason: FormatError) -> FormatError:
        """The error for a damaged result, with the command that computes it again."""
        return FormatError(f"{path} is damaged ({reason}): run {self.command_for(name)}")

    def _existing(self, name: str, suffix: str) -> Path:
        """The path of a result. Raises `PythiaDynError` with the command that writes it where there is none."""
        path = self.path / f"{name}{suffix}"
        if not path.exists():
            raise PythiaDynError(f"{path} is missing: run {self.command_for(name)}")
        return path

    def command_for(self, name: str, model: str | None = None) -> str:
        """The command that writes a result.

        Parameters
        ----------
        name
            Name of a table, an array or a figure. That of a perplexity with another head begins with the name of that
            head: ``ternary/perplexity-forward``.
        model
            The model as it is given to the command. Default: its name.
        """
        head, _, name = name.rpartition("/")
        first, _, mode = name.partition("-")
        command = {"perplexity": f"perplexity --mode {mode.removesuffix(_PREFIX)}", "first_last": "portrait"}.get(first)
        measure = _measure_of(name)
        command = command or (measure.name if measure else name).replace("_", "-")
        command += f" --head {head}" if head else ""
        tensor = "" if self.tensor is None or self.is_unembedding else f" --tensor {shlex.quote(self.tensor)}"
        return f"pythia-dyn {command} --model {shlex.quote(model or self.name)}{tensor}"

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
        """Write to ``provenance.json`` how a result was computed, with the command, versions, machine and time.

        Several processes may do so at once.

        Parameters
        ----------
        name
            Name of the result.
        details
            Its source, its settings, and the like.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        command = typed_command(str(details.get("model", self.name)))
        made = {
            **self._portable(details),
            **({} if command is None else {"command": command}),
            "pythia_dynamics": __version__,
            "python": platform.python_version(),
            "packages": {package: _version(package) for package in _PACKAGES},
            "machine": platform.machine(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with locked(self.path, "provenance"):
            content = {**self.provenance(), name: made}
            return write_json(self.path / "provenance.json", dict(sorted(content.items())))

    def _portable(self, details: Mapping[str, Any]) -> dict[str, Any]:
        """Details in which a directory that the weights are from is relative to this folder, if it is near."""
        project, suite = self._root.resolve().parent, details.get("suite")
        found = {**details, **({"suite": self._portable(suite)} if isinstance(suite, Mapping) else {})}
        places = {key: found[key] for key in _PLACES if isinstance(found.get(key), str)}
        return found | {key: portable(place, self.path, project) for key, place in places.items()}

    def require_same_weights(self, names: Iterable[str] | None = None) -> None:
        """Check that results of this folder are of the same weights: source, tensor, rows, steps and commits.

        What ``provenance.json`` does not record of a result is not compared, except the steps: these are then read
        from its files.

        Parameters
        ----------
        names
            The results to compare. By default those of every measure, of `stop` and of `phases`.

        Raises
        ------
        FormatError
            Where ``provenance.json`` or a file without provenance is damaged.
        PythiaDynError
            Where they are of different weights. The message has the commands that make them the same.
        """
        chosen = (*known_measures(), "stop", "phases") if names is None else tuple(names)
        path, recorded = self.path / "provenance.json", self.provenance()
        if path.is_file() and not recorded:
            commands = self._commands(name for name in chosen if self._files(name))
            raise FormatError(f"{path} is damaged" + (f": run {commands}" if commands else ""))
        made = {name: recorded.get(name) or self._steps_of(name) for name in chosen}
        for entry in _OF_WEIGHTS:
            found = {name: details[entry] for name, details in made.items() if entry in details}
            if all(value == next(iter(found.values())) for value in found.values()):
                continue
            good = next((name for name, value in found.items() if entry == "tensor" and value == self.path.name), None)
            good = good or _reference(entry, found, made)
            odd = [name for name, value in found.items() if value != found[good]]
            one, other = sorted((good, odd[0]), key=chosen.index)
            raise PythiaDynError(
                f"{self.path} mixes results of different weights: {one} is of {_in_words(entry, found[one])}, "
                f"{other} of {_in_words(entry, found[other])}; run {self._commands(odd, _flags(entry, made[good]))}"
            )

    def _commands(self, names: Iterable[str], flags: str = "") -> str:
        """The commands that compute some results, as one line for a shell."""
        return " && ".join(self.command_for(name) + flags for name in names)

    def _files(self, name: str) -> list[str]:
        """The names of the tables of a measure that exist, else that of its array if it exists."""
        measure = known_measures().get(name)
        tables = [table for table in measure.tables if (self.path / f"{table}.csv").is_file()] if measure else []
        return tables or ([name] if measure and (self.path / f"{name}.zarr").is_dir() else [])

    def _steps_of(self, name: str) -> dict[str, Any]:
        """The steps in the files of a measure, as its provenance would record them; empty without files."""
        files = self._files(name)
        if not files:
            return {}
        is_table = (self.path / f"{files[0]}.csv").is_file()
        dataset = self.read_table(files[0]) if is_table else self.read_zarr(files[0])
        return {"steps": dataset["step"].to_numpy().tolist()} if "step" in dataset.coords else {}


def _reference(entry: str, found: Mapping[str, Any], made: Mapping[str, Mapping[str, Any]]) -> str:
    """The result whose weights the others should be of: those of most results, else the most or the newest ones."""

    def rank(name: str) -> tuple[int, int, str]:
        value = found[name]
        amount = len(value) if entry == "steps" and value else int(entry == "drop_padding" and value is None)
        return sum(other == value for other in found.values()), amount, str(made[name].get("time", ""))

    return max(found, key=rank)


def _flags(entry: str, details: Mapping[str, Any]) -> str:
    """The flags with which a command uses the rows, and where these differ the steps, of another result."""
    rows, steps = details.get("drop_padding"), details.get("steps") or [0]
    flags = "" if rows is None else f" --drop-padding {rows}"
    if entry != "steps":
        return flags
    option = steps_option(steps)
    return f"{option}{flags}" if option.count(",") < _MAX_LISTED_STEPS else flags


def _in_words(entry: str, value: Any) -> str:
    """An entry of the provenance in words."""
    if entry == "steps":
        return f"{len(value)} steps" if value else "unknown steps"
    if entry == "drop_padding":
        return "all rows" if value is None else f"{value} rows"
    return f"other commits ({len(value or ())} steps)" if entry == "commits" else str(value)


def _measure_of(table: str) -> Measure | None:
    """The known measure that writes a table, None where there is none."""
    return next((measure for measure in known_measures().values() if table in measure.tables), None)
