"""The rows of one mode: kept in memory, written to ``perplexity-<mode>.csv`` as they come, taken up again later.

Beside the table, ``perplexity-<mode>.json`` says under which settings the rows were computed and from which commit
each; rows computed under others are not mixed with new ones.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.files import atomic_file

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["COLUMNS", "CURVES", "MODES", "Records", "Row"]

_SENTENCES = ("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "sentences", "nonfinite", "tokens", "entropy")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "forward": _SENTENCES,
    "unmask": _SENTENCES,
    "last-word": ("ppl", "accuracy", "sentences", "nonfinite"),
}
"""Columns of ``perplexity-<mode>.csv`` after `step`, and variables of the mode's dataset."""

MODES = tuple(COLUMNS)

CURVES = {"nll_mean": "prefix_nll", "entropy": "prefix_entropy", "sentences": "prefix_sentences"}
"""Columns of ``perplexity-unmask-prefix.csv`` after `step` and `prefix`, and their names in the dataset."""

_COUNTS = ("sentences", "nonfinite", "tokens")
_MEANING: Mapping[str, tuple[str, str]] = {
    "ppl": ("1", "perplexity of the last word"),
    "ppl_mean": ("1", "mean perplexity of a sentence"),
    "ppl_median": ("1", "median perplexity of a sentence"),
    "ppl_corpus": ("1", "perplexity over all tokens"),
    "nll_mean": ("nat", "mean over sentences of the NLL per token"),
    "accuracy": ("1", "share of last words that greedy decoding gives"),
    "sentences": ("1", "sentences with a valid perplexity"),
    "nonfinite": ("1", "sentences whose perplexity is not finite, or below 1"),
    "tokens": ("1", "tokens scored"),
    "entropy": ("nat", "mean over sentences of the entropy per predicted token"),
    "prefix_nll": ("nat", "mean NLL per generated token"),
    "prefix_entropy": ("nat", "mean entropy per generated token"),
    "prefix_sentences": ("1", "sentences longer than the prefix"),
}
_FLUSH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one revision gave: a value by column, and for unmasking arrays by prefix length 1 … K."""

    values: Mapping[str, float]
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Records:
    """Rows by step. With a `directory`, rows found there that were computed under the same `settings` are taken up."""

    def __init__(self, mode: str, directory: Path | None, settings: Mapping[str, Any]) -> None:
        self.mode = mode
        self.settings = dict(settings)
        self.missing: dict[int, str] = {}
        self.notes: dict[str, Any] = {}
        self._identities: dict[int, str | None] = {}
        self._rows: dict[int, Row] = {}
        self._lines: dict[int, tuple[str, str]] = {}
        self._directory = directory
        self._changed = False
        self._flushed = time.monotonic()
        if directory is not None:
            self._take_up(directory)

    def has(self, step: int, identity: str | None) -> bool:
        """Whether there is a row for a step, from the checkpoint of that identity."""
        return step in self._rows and self._identities.get(step) == identity

    def add(self, step: int, identity: str | None, row: Row) -> None:
        """Add or replace the row of a step."""
        self.missing.pop(step, None)
        self._lines.pop(step, None)
        self._identities[step] = identity
        self._rows[step] = row
        self._changed = True

    def add_missing(self, step: int, reason: str) -> None:
        """Record that a step could not be evaluated; its row is empty and it is tried again next time."""
        for known in (self._rows, self._lines, self._identities):
            known.pop(step, None)
        self.missing[step] = reason
        self._changed = True

    def flush(self, *, force: bool = False) -> None:
        """Write what has changed, unless that was done less than a second ago. Files appear whole or not at all."""
        if self._directory is None or not self._changed:
            return
        if not force and time.monotonic() - self._flushed < _FLUSH_SECONDS:
            return
        table, curves = self._tables()
        if self.mode == "unmask":
            self._write(f"{self._stem}-prefix.csv", curves)
        self._write(f"{self._stem}.csv", table)
        # Last, so that a run that ends in between leaves rows to be computed again, never rows taken for others.
        self._write(f"{self._stem}.json", self._sidecar())
        self._changed = False
        self._flushed = time.monotonic()

    def dataset(self, steps: Sequence[int], attributes: Mapping[str, Any]) -> xr.Dataset:
        """The rows of these steps over a `step` coordinate, NaN where missing; unmasking adds a `prefix` axis."""
        import xarray as xr

        empty = Row({})
        rows = [self._rows.get(step, empty) for step in steps]
        variables: dict[str, Any] = {
            name: ("step", np.array([row.values.get(name, np.nan) for row in rows], np.float64), _attributes(name))
            for name in COLUMNS[self.mode]
        }
        coordinates: dict[str, Any] = {"step": np.asarray(steps, np.int64)}
        if self.mode == "unmask":
            longest = max((len(curve) for row in rows for curve in row.curves.values()), default=0)
            coordinates["prefix"] = ("prefix", np.arange(1, longest + 1), {"long_name": "tokens given"})
            for column, name in CURVES.items():
                padded = np.full((len(rows), longest), np.nan)
                for line, row in zip(padded, rows, strict=True):
                    curve = row.curves.get(column, padded[0, :0])
                    line[: len(curve)] = curve
                variables[name] = (("step", "prefix"), padded, _attributes(name))
        wanted = set(steps)
        absent = {str(step): reason for step, reason in sorted(self.missing.items()) if step in wanted}
        return xr.Dataset(
            variables,
            coordinates,
            {**attributes, **self.settings, **self.notes, "mode": self.mode, "missing": absent},
        )

    @property
    def _stem(self) -> str:
        return f"perplexity-{self.mode}"

    def _write(self, name: str, content: str) -> None:
        assert self._directory is not None
        with atomic_file(self._directory / name) as file:
            file.write(content.encode())

    def _sidecar(self) -> str:
        content = {
            "settings": self.settings,
            "notes": self.notes,
            "missing": {str(step): reason for step, reason in sorted(self.missing.items())},
            "revisions": {str(step): identity for step, identity in sorted(self._identities.items())},
        }
        return json.dumps(content, indent=1) + "\n"

    def _tables(self) -> tuple[str, str]:
        columns = COLUMNS[self.mode]
        for step, row in self._rows.items():
            if step not in self._lines:
                main = _line([step, *(_field(name, row.values.get(name, math.nan)) for name in columns)])
                self._lines[step] = (main, _curve_lines(step, row))
        blank = "," * len(columns) + "\n"
        lines = {**{step: (f"{step}{blank}", "") for step in self.missing}, **self._lines}
        ordered = [lines[step] for step in sorted(lines)]
        table = _line(["step", *columns]) + "".join(main for main, _ in ordered)
        return table, _line(["step", "prefix", *CURVES]) + "".join(curves for _, curves in ordered)

    def _take_up(self, directory: Path) -> None:
        table, sidecar = directory / f"{self._stem}.csv", directory / f"{self._stem}.json"
        if not table.is_file():
            return
        try:
            before = json.loads(sidecar.read_text())
            changed = _differences(before["settings"], self.settings)
            rows = {} if changed else self._read(directory)
            identities = {int(step): identity for step, identity in before["revisions"].items()}
            missing = {int(step): str(reason) for step, reason in before["missing"].items()}
            notes = dict(before["notes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            changed, rows, identities, missing, notes = ["they cannot be read"], {}, {}, {}, {}
        if changed:
            warnings.warn(
                f"rows of {table} were computed under other settings and are replaced ({'; '.join(changed)})",
                stacklevel=2,
            )
            return
        self._rows, self._identities, self.missing, self.notes = rows, identities, missing, notes

    def _read(self, directory: Path) -> dict[int, Row]:
        curves: dict[int, list[tuple[float, ...]]] = {}
        if self.mode == "unmask":
            for record in _records(directory / f"{self._stem}-prefix.csv"):
                line = tuple(_number(record[name]) for name in CURVES)
                curves.setdefault(int(record["step"]), []).append(line)
        rows = {}
        for record in _records(directory / f"{self._stem}.csv"):
            step = int(record["step"])
            if not record["sentences"]:
                continue  # a gap, to be tried again
            values = {name: _number(record[name]) for name in COLUMNS[self.mode]}
            by_prefix = np.array(curves.get(step, [])).reshape(-1, len(CURVES)).T
            rows[step] = Row(values, dict(zip(CURVES, by_prefix, strict=True)) if self.mode == "unmask" else {})
        return rows


def _attributes(name: str) -> dict[str, str]:
    units, long_name = _MEANING[name]
    return {"units": units, "long_name": long_name}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = sorted(before.keys() | now.keys())
    return [f"{name}: {before.get(name)} → {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _field(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if name in _COUNTS else repr(float(value))


def _line(fields: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue()


def _curve_lines(step: int, row: Row) -> str:
    lines = zip(*(row.curves[name] for name in CURVES), strict=True) if row.curves else ()
    return "".join(
        _line([step, k, *(_field(name, float(value)) for name, value in zip(CURVES, line, strict=True))])
        for k, line in enumerate(lines, start=1)
    )
