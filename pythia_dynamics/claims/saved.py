"""The saved results of one model as the claims read them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_lambada import published_lambada

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PAPER_STEPS", "Curve", "Saved", "Shape", "paper_step"]

PAPER_STEPS = {"70m": 80_000, "160m": 105_000}
"""Where the paper puts the bifurcation, by size."""

_SIZE = re.compile(r"pythia-(70m|160m)(-deduped)?")


def paper_step(name: str) -> int | None:
    """The step of the paper's bifurcation for one of the two models it gives it for, else None."""
    match = _SIZE.fullmatch(name)
    return PAPER_STEPS[match[1]] if match else None


@dataclass(frozen=True)
class Shape:
    """Size of the matrix: v rows (vocabulary entries) of d weights."""

    rows: int
    width: int


@dataclass(frozen=True)
class Curve:
    """A quantity at the steps at which it is known and finite: int64 and float64, shape (n,) each."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, array: xr.DataArray) -> Curve:
        """The finite values of a variable over `step`."""
        values = array.to_numpy().astype(np.float64)
        finite = np.isfinite(values)
        return cls(array["step"].to_numpy().astype(np.int64)[finite], values[finite])

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def span(self) -> int:
        """Steps from the first known value to the last."""
        return int(self.steps[-1] - self.steps[0]) if len(self) else 0

    def at(self, step: int) -> float:
        """The value at the known step nearest to `step`."""
        return float(self.values[int(np.argmin(np.abs(self.steps - step)))])


class Saved:
    """Tables and arrays of one model by name, None where they have not been made."""

    def __init__(self, results: Results) -> None:
        self.results, self.weights = results.model, results.weights()
        self.name = results.name
        self._tables: dict[str, xr.Dataset | None] = {}

    def table(self, kind: str) -> xr.Dataset | None:
        """``<kind>.csv``."""
        if kind not in self._tables:
            try:
                folder = self.results if kind.startswith("perplexity-") else self.weights
                self._tables[kind] = folder.read_table(kind)
            except PythiaDynError:
                self._tables[kind] = None
        return self._tables[kind]

    def array(self, kind: str) -> xr.Dataset | None:
        """``<kind>.zarr``."""
        key = f"{kind}.zarr"
        if key not in self._tables:
            try:
                self._tables[key] = self.weights.read_zarr(kind)
            except PythiaDynError:
                self._tables[key] = None
        return self._tables[key]

    @cached_property
    def shape(self) -> Shape | None:
        """Of the matrix that was measured, worked out from the columns of ``order.csv``."""
        table = self.table("order")
        if table is None:
            return None
        norm, b, rms = (table[name].to_numpy() for name in ("frobenius_norm", "order_parameter", "rms"))
        known = np.isfinite(norm) & (norm > 0)
        if not known.any():
            return None
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

    @cached_property
    def ternary(self) -> tuple[int, float] | None:
        """The last step, and its forward perplexity with W_U rounded to three values, from ``ternary/``."""
        rounded = Results("ternary", self.results.path)
        try:
            settings = json.loads((rounded.path / "perplexity-forward.json").read_text())["settings"]
            curve = Curve.of(rounded.read_table("perplexity-forward")["ppl_corpus"])
        except (PythiaDynError, OSError, ValueError, KeyError):
            return None
        if settings.get("head") != "ternary" or not len(curve):
            return None
        return int(curve.steps[-1]), float(curve.values[-1])
