"""The rows of one mode: kept in memory, written to ``perplexity-<mode>.csv`` as they come, read again by a later run.

Beside the table, ``perplexity-<mode>.json`` holds the settings under which the rows were computed, the commit that each
came from, and notes on how it was evaluated. Rows of other settings are never mixed with new ones. As most suites are
evaluated in one way throughout, ``notes`` are those of the first row, and ``notes_by_step`` has those of the rows whose
notes are others; it is left out where there are none.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.evaluation.settings import Mode
from pythia_dynamics.files import atomic_file
from pythia_dynamics.tables import csv_text, read_csv, read_json, write_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["COLUMNS", "CURVES", "Records", "Row"]

_SENTENCES = ("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "sentences", "nonfinite", "tokens", "entropy")
COLUMNS: Mapping[Mode, tuple[str, ...]] = {
    "forward": _SENTENCES,
    "unmask": _SENTENCES,
    "last-word": ("ppl", "accuracy", "sentences", "nonfinite"),
}
"""Columns of ``perplexity-<mode>.csv`` after `step`, and variables of the mode's dataset."""

CURVES = {"nll_mean": "prefix_nll", "entropy": "prefix_entropy", "sentences": "prefix_sentences"}
"""Columns of ``perplexity-unmask-prefix.csv`` after `step` and `prefix`, and their names in the dataset."""

_COUNTS = ("sentences", "nonfinite", "tokens")
"""Columns that are written as integers."""

_UNITS_AND_NAMES: Mapping[str, tuple[str, str]] = {
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
"""Least time between two writes. A write replaces the files and waits for the disk, and it takes longer the more rows
there are; once a second it stays a small part of the run, and a run that is killed loses one second of rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one revision in one mode.

    Parameters
    ----------
    values
        Value of each column of `COLUMNS`; NaN, or no entry, where there is none.
    curves
        Only of unmasking: for each column of `CURVES` the values by prefix length 1 … K, shape (K,), float64.
    """

    values: Mapping[str, float]
    curves: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Records:
    """The rows of one mode by step, and their files.

    Parameters
    ----------
    mode
        Which table the rows belong to.
    directory
        Where the files are; rows found there that were computed under the same `settings` are used again, others are
        replaced with a warning. None keeps the rows in memory only.
    settings
        What decides the values of a row besides the checkpoint; values that JSON can hold.

    Attributes
    ----------
    missing
        Reason by step, of the steps that could not be evaluated.
    """

    def __init__(self, mode: Mode, directory: Path | None, settings: Mapping[str, Any]) -> None:
        self.mode = mode
        self.settings = dict(settings)
        self.missing: dict[int, str] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self._commits: dict[int, str | None] = {}
        self._rows: dict[int, Row] = {}
        self._lines: dict[int, tuple[str, str]] = {}  # CSV text of each row, so that a flush formats only new rows
        self._directory = directory
        self._changed = False
        self._flushed = time.monotonic()
        if directory is not None:
            self._load(directory)

    def has(self, step: int, commit: str | None) -> bool:
        """Whether there is a row of a step that was computed from this commit."""
        return step in self._rows and self._commits.get(step) == commit

    def notes(self, step: int) -> Mapping[str, Any]:
        """How the row of a step was evaluated; empty where there is no row."""
        return self._notes.get(step, {})

    def add(self, step: int, commit: str | None, row: Row, notes: Mapping[str, Any] | None = None) -> None:
        """Add the row of a step, or replace it.

        Parameters
        ----------
        step
            The step.
        commit
            What identifies the checkpoint; None where it has no identity.
        row
            The row.
        notes
            How it was evaluated, such as the number of passages that were cut; values that JSON can hold.
        """
        self.missing.pop(step, None)
        self._lines.pop(step, None)
        self._commits[step] = commit
        self._rows[step] = row
        self._notes[step] = dict(notes or {})
        self._changed = True

    def add_missing(self, step: int, reason: str) -> None:
        """Record that a step could not be evaluated; its row is empty and it is tried again next time."""
        for known in (self._rows, self._lines, self._commits, self._notes):
            known.pop(step, None)
        self.missing[step] = reason
        self._changed = True

    def flush(self, *, force: bool = False) -> None:
        """Write what has changed, unless the last write was less than a second ago and `force` is not set.

        Each file appears whole or not at all. Raises `StoreError`.
        """
        if self._directory is None or not self._changed:
            return
        if not force and time.monotonic() - self._flushed < _FLUSH_SECONDS:
            return
        table, curves = self._tables()
        if self.mode == "unmask":
            _write_text(self._directory / f"{self._stem}-prefix.csv", curves)
        _write_text(self._directory / f"{self._stem}.csv", table)
        # Last: a run that ends before this line leaves rows that are computed again, never rows of wrong settings.
        write_json(self._directory / f"{self._stem}.json", self._sidecar())
        self._changed = False
        self._flushed = time.monotonic()

    def dataset(self, steps: Sequence[int], attributes: Mapping[str, Any]) -> xr.Dataset:
        """The rows as a dataset.

        Parameters
        ----------
        steps
            The `step` coordinate; a step without a row is NaN.
        attributes
            Attributes of the dataset besides the settings, the notes, the mode and the missing steps. The notes are
            those of the first of `steps` that has a row; where there are others, ``notes_by_step`` has them.

        Returns
        -------
        xarray.Dataset
            One float64 variable for each column; unmasking adds the curves over `prefix`, NaN beyond the longest
            prefix of a step.
        """
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
        notes, by_step = self._notes_of(steps)
        notes |= {"notes_by_step": by_step} if by_step else {}
        known = {**self.settings, **attributes, **notes, "mode": self.mode, "missing": absent}
        return xr.Dataset(variables, coordinates, known)

    def _notes_of(self, steps: Iterable[int]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The notes of the first of the steps that has a row, and by step those of the others where they differ."""
        notes = [(step, self._notes[step]) for step in sorted(steps) if step in self._notes]
        first = dict(notes[0][1]) if notes else {}
        return first, {str(step): dict(others) for step, others in notes if others != first}

    @property
    def _stem(self) -> str:
        return f"perplexity-{self.mode}"

    def _sidecar(self) -> dict[str, Any]:
        notes, by_step = self._notes_of(self._notes)
        return {
            "settings": self.settings,
            "notes": notes,
            **({"notes_by_step": by_step} if by_step else {}),
            "missing": {str(step): reason for step, reason in sorted(self.missing.items())},
            "revisions": {str(step): commit for step, commit in sorted(self._commits.items())},
        }

    def _tables(self) -> tuple[str, str]:
        """Text of the table and of the curves."""
        columns, curve_columns = ("step", *COLUMNS[self.mode]), ("step", "prefix", *CURVES)
        for step in self._rows.keys() - self._lines.keys():
            row = self._rows[step]
            values = (_cell(name, row.values.get(name, math.nan)) for name in columns[1:])
            main = _lines(columns, [(step, *values)])
            self._lines[step] = (main, _lines(curve_columns, _curve_rows(step, row)))
        empty = {step: (_lines(columns, [(step, *[None] * (len(columns) - 1))]), "") for step in self.missing}
        lines = [line for _, line in sorted({**empty, **self._lines}.items())]
        table = csv_text(columns, ()) + "".join(main for main, _ in lines)
        return table, csv_text(curve_columns, ()) + "".join(curves for _, curves in lines)

    def _load(self, directory: Path) -> None:
        """Use the rows that are there, or warn that they will be replaced."""
        table, sidecar = directory / f"{self._stem}.csv", directory / f"{self._stem}.json"
        if not table.is_file():
            return
        try:
            before = read_json(sidecar)
            changed = _differences(before["settings"], self.settings)
            if not changed:
                commits = {int(step): commit for step, commit in before["revisions"].items()}
                missing = {int(step): str(reason) for step, reason in before["missing"].items()}
                rows, by_step = self._read(directory), before.get("notes_by_step", {})
                notes = {step: dict(by_step.get(str(step), before["notes"])) for step in rows}
                self._rows, self._commits, self.missing, self._notes = rows, commits, missing, notes
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            changed = ["they cannot be read"]
        if changed:
            reason = f"rows of {table} were computed under other settings and are replaced ({'; '.join(changed)})"
            warnings.warn(reason, stacklevel=2)

    def _read(self, directory: Path) -> dict[int, Row]:
        """The rows of the files that are not empty."""
        curves: dict[int, list[tuple[float, ...]]] = {}
        if self.mode == "unmask":
            for record in read_csv(directory / f"{self._stem}-prefix.csv"):
                line = tuple(_number(record[name]) for name in CURVES)
                curves.setdefault(int(record["step"]), []).append(line)
        rows = {}
        for record in read_csv(directory / f"{self._stem}.csv"):
            step = int(record["step"])
            if not record["sentences"]:
                continue  # a missing step, which is tried again
            values = {name: _number(record[name]) for name in COLUMNS[self.mode]}
            by_prefix = np.array(curves.get(step, [])).reshape(-1, len(CURVES)).T
            rows[step] = Row(values, dict(zip(CURVES, by_prefix, strict=True)) if self.mode == "unmask" else {})
        return rows


def _attributes(name: str) -> dict[str, str]:
    units, long_name = _UNITS_AND_NAMES[name]
    return {"units": units, "long_name": long_name}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, as text."""
    names = sorted(before.keys() | now.keys())
    return [f"{name}: {before.get(name)} → {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _cell(name: str, value: float) -> float:
    """A value as its column is written: counts as integers."""
    return int(value) if name in _COUNTS and not math.isnan(value) else float(value)


def _curve_rows(step: int, row: Row) -> Iterable[Sequence[float]]:
    values = zip(*(row.curves[name].tolist() for name in CURVES), strict=True) if row.curves else ()
    for prefix, line in enumerate(values, start=1):
        yield step, prefix, *(_cell(name, value) for name, value in zip(CURVES, line, strict=True))


def _lines(columns: Sequence[str], rows: Iterable[Sequence[float | None]]) -> str:
    """The rows as CSV text without the line of the columns."""
    return csv_text(columns, rows).removeprefix(csv_text(columns, ()))


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
