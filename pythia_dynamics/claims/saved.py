"""The saved results of one model, as the claims read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.claims.verdict import NotTestableError, Numbers
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_lambada import published_lambada
from pythia_dynamics.tables import read_json

if TYPE_CHECKING:
    import xarray as xr

_Found = TypeVar("_Found")

__all__ = ["PAPER_BIFURCATION", "Curve", "SavedResults", "Shape", "paper_bifurcation"]

PAPER_BIFURCATION = {"70m": 80_000, "160m": 105_000}
"""Step of the bifurcation in "The Garden of Forking Paths" (Fig 3), by size."""

_PAPER_MODEL = re.compile(r"pythia-(70m|160m)(-deduped)?")


def paper_bifurcation(name: str) -> int | None:
    """The step of the paper's bifurcation for a model `name` (``pythia-70m-deduped``), None where it gives none."""
    match = _PAPER_MODEL.fullmatch(name)
    return PAPER_BIFURCATION[match[1]] if match else None


@dataclass(frozen=True)
class Shape:
    """Shape of the weight matrix.

    Parameters
    ----------
    rows
        v, the number of vocabulary entries.
    width
        d, the number of weights in a row.
    """

    rows: int
    width: int


@dataclass(frozen=True)
class Curve:
    """A quantity at the steps at which it is finite.

    Parameters
    ----------
    steps
        int64, shape (n,), increasing.
    values
        float64, shape (n,), finite.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, array: xr.DataArray) -> Curve:
        """The finite values of a variable `array` with the one dimension `step`."""
        values = array.to_numpy().astype(np.float64)
        finite = np.isfinite(values)
        return cls(array["step"].to_numpy().astype(np.int64)[finite], values[finite])

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def span(self) -> int:
        """Number of training steps from the first to the last point; 0 without points."""
        return int(self.steps[-1] - self.steps[0]) if len(self) else 0

    def at(self, step: int) -> float:
        """The value at the point nearest to `step`."""
        return float(self.values[int(np.argmin(np.abs(self.steps - step)))])


class SavedResults:
    """Reads the tables and arrays of one model, each once. `in_memory` makes one without a folder.

    Parameters
    ----------
    results
        The folder of the model.
    """

    def __init__(self, results: Results) -> None:
        self.results, self.weights = results.model, results.weights()
        self.name = results.name
        self._loaded: dict[str, xr.Dataset | None] = {}
        self._computed: dict[str, Any] = {}
        self._on_disk = True

    @classmethod
    def in_memory(cls, name: str, tables: Mapping[str, xr.Dataset]) -> SavedResults:
        """The results of a model that are in memory, for the same tests as those of a folder.

        Parameters
        ----------
        name
            Name of the model, such as ``pythia-70m-deduped``.
        tables
            What `read` gives by name of the file: ``msd.csv``, ``two_time.zarr``, ``density.zarr``, ``order.csv``,
            ``rank.csv``, ``perplexity-forward.csv`` … A name that is not there is a missing file; no disk is read.
        """
        saved = cls.__new__(cls)
        saved.results, saved.weights = Results(name), Results(name, tensor=EMBED_OUT)
        saved.name = name
        saved._loaded, saved._computed, saved._on_disk = dict(tables), {}, False
        return saved

    def read(self, *files: str, known: Numbers | None = None) -> list[xr.Dataset]:
        """The content of the tables ``<kind>.csv`` and datasets ``<kind>.zarr`` that a test needs.

        Parameters
        ----------
        *files
            Names of the files.
        known
            Numbers that are known where a file is missing.

        Raises
        ------
        NotTestableError
            Where a file is missing; names each such file and the command that makes it.
        """
        absent = [f"{file} is missing: run {self.command_for(file)}" for file in files if self.find(file) is None]
        if absent:
            raise NotTestableError("; ".join(absent), known)
        return [found for file in files if (found := self.find(file)) is not None]

    def find(self, file: str) -> xr.Dataset | None:
        """The content of a file that `read` reads, None where there is none. Raises `FormatError` for a damaged one."""
        if not self._on_disk:
            return self._loaded.get(file)
        if file not in self._loaded:
            folder, (kind, _, suffix) = self._folder(file), file.rpartition(".")
            read = folder.read_table if suffix == "csv" else folder.read_zarr
            try:
                self._loaded[file] = read(kind)
            except FormatError:
                raise
            except PythiaDynError:
                self._loaded[file] = None
        return self._loaded[file]

    def _folder(self, file: str) -> Results:
        """The folder of a file: of the model, or of the weights."""
        return self.results if file.startswith(("perplexity-", "ternary/")) else self.weights

    def once(self, name: str, compute: Callable[[], _Found]) -> _Found:
        """A result that several claims need, such as simulated walks: computed for the first of them, then kept.

        Parameters
        ----------
        name
            Name of the result.
        compute
            Computes it. What it raises is raised again for the next claim.
        """
        if name not in self._computed:
            self._computed[name] = compute()
        found: _Found = self._computed[name]
        return found

    def command_for(self, file: str) -> str:
        """The command that makes a file."""
        return self._folder(file).command_for(file.rpartition(".")[0])

    @cached_property
    def shape(self) -> Shape:
        """Shape of the measured matrix, computed from the columns of ``order.csv``.

        Raises `NotTestableError` where that is not possible.
        """
        (table,) = self.read("order.csv")
        norm, b, rms = (table[name].to_numpy() for name in ("frobenius_norm", "order_parameter", "rms"))
        known = np.isfinite(norm) & (norm > 0)
        if not known.any():
            raise NotTestableError("order.csv has no step with finite weights")
        width = float(np.median(norm[known] / b[known]))
        size = float(np.median((norm[known] / rms[known]) ** 2))
        return Shape(rows=max(round(size / width), 1), width=max(round(width), 1))

    @cached_property
    def published(self) -> xr.Dataset | None:
        """EleutherAI's last-word perplexities of this model without the suspect ones, None where there are none."""
        try:
            table = published_lambada(self.name)
        except UnknownNameError:
            return None
        return table.isel(step=np.flatnonzero(~table["suspect"].to_numpy()))

    def fewer_steps(self, kind: str, count: int) -> str:
        """The end of a reason: how many steps of ``<kind>.csv`` a test used, where those of the weights are others.

        Parameters
        ----------
        kind
            Name of the table.
        count
            Number of steps that the test used.
        """
        weights = self.find("msd.csv")
        if weights is None or weights.sizes["step"] == count:
            return ""
        return f"; {count} steps of {kind}.csv, {weights.sizes['step']} of the weights"

    def settings(self, kind: str) -> dict[str, Any]:
        """The settings of the evaluation that wrote ``<kind>.csv``; empty where they cannot be read, or in memory."""
        if not self._on_disk:
            return {}
        try:
            return dict(read_json(self.results.path / f"{kind}.json")["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
