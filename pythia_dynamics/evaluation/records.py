"""The rows of one mode: kept in memory, written as they come, read again by a later run or another process.

The files of a mode in the results of a model:

* ``perplexity-<mode>.zarr``: the scores of every passage at every step (`pythia_dynamics.evaluation.archive`);
* ``perplexity-<mode>.json``: the settings under which all rows were computed, and for every row its index in the
  archive, the commit that it came from, and notes on how it was evaluated. A row is there as soon as this file, which
  is replaced whole, has it;
* ``perplexity-<mode>.csv``, and ``perplexity-unmask-prefix.csv``: the tables, made from these two.

Several processes may write rows of one table: whoever writes holds a lock, reads first what the others have written,
and adds its own rows. Rows of other settings are never mixed, and only replaced on request. As most suites are
evaluated in one way throughout, ``notes`` are those of the first row, and ``notes_by_step`` has those of the rows whose
notes are others; it is left out where there are none. The files of the mode ``representation`` have this name alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_dynamics.errors import PythiaDynError, StoreError
from pythia_dynamics.evaluation.archive import Archive
from pythia_dynamics.evaluation.rows import FIELDS, AnyRow, curve_lines, dataset_of, header, line, row_from, stem
from pythia_dynamics.evaluation.settings import Mode
from pythia_dynamics.files import atomic_file, store_errors
from pythia_dynamics.mirror import locked
from pythia_dynamics.tables import read_json, write_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Records"]

_FLUSH_SECONDS = 1.0
"""Least time between two writes. A write replaces the files and waits for the disk, and it takes longer the more rows
there are; once a second it stays a small part of the run, and a run that is killed loses one second of rows."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row, the commit that it came from, how it was evaluated, and its index in the archive once it is written."""

    row: AnyRow
    commit: str | None
    notes: Mapping[str, Any]
    index: int | None = None


class Records:
    """The rows of one mode by step, and their files.

    Parameters
    ----------
    mode
        Which table the rows belong to.
    directory
        Where the files are; rows found there are used again. None keeps the rows in memory only.
    settings
        What decides the values of a row besides the checkpoint, up to rounding; values that JSON can hold.
    overwrite
        Replace rows that were computed under other settings, when the first new row is written.

    Attributes
    ----------
    added_elsewhere
        The steps whose rows another process has written since this object was made.

    Raises
    ------
    PythiaDynError
        There are rows of other settings, or files that cannot be read, and `overwrite` is not set.
    """

    def __init__(
        self, mode: Mode, directory: Path | None, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.mode = mode
        self.settings = dict(settings)
        self.added_elsewhere: set[int] = set()
        self._directory = directory
        self._overwrite = overwrite
        self._rows: dict[int, _Kept] = {}
        self._missing: dict[int, str] = {}
        self._failed: dict[int, str] = {}
        self._lines: dict[int, tuple[_Kept, str, str]] = {}  # CSV text of each row: a write formats only new rows
        self._replaces = False
        self._read_state: object = False  # nothing was read
        self._used = 0  # indices of the archive that the files refer to are below this
        self._changed = False
        self._flushed = time.monotonic()
        if directory is not None and directory.is_dir():
            with self._locked(directory):
                self._remove_unfinished(directory)
                self._merge(directory)
            self.added_elsewhere.clear()
            # A process that was killed may have written the rows, and not yet the tables.
            self._changed = bool(self._rows) and any(_text(path) != text for path, text in self._tables(directory))

    @property
    def missing(self) -> dict[int, str]:
        """Reason by step, of the steps that could not be evaluated: by this run, or by an earlier one."""
        earlier = {step: reason for step, reason in self._missing.items() if step not in self._rows}
        return {**earlier, **self._failed}

    def has(self, step: int, commit: str | None) -> bool:
        """Whether there is a row of a step that was computed from this commit."""
        return step in self._rows and self._rows[step].commit == commit

    def notes(self, step: int) -> Mapping[str, Any]:
        """How the row of a step was evaluated; empty where there is no row."""
        return self._rows[step].notes if step in self._rows else {}

    def add(self, step: int, commit: str | None, row: AnyRow, notes: Mapping[str, Any] | None = None) -> None:
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
        self._failed.pop(step, None)
        self._rows[step] = _Kept(row, commit, dict(notes or {}))
        self._changed = True

    def add_missing(self, step: int, reason: str) -> None:
        """Record that a step could not be evaluated. It is tried again next time.

        A row of the step that is there, of an earlier commit, stays in the files, but is not in `dataset`.
        """
        self._failed[step] = reason
        self._changed = True

    def refresh(self) -> None:
        """Take over the rows that other processes have written. Raises as the class."""
        if self._directory is not None and self._state(self._directory) != self._read_state:
            with self._locked(self._directory):
                self._merge(self._directory)

    def flush(self, *, force: bool = False) -> None:
        """Write what has changed, unless the last write was less than a second ago and `force` is not set.

        Each file appears whole or not at all.

        Raises
        ------
        StoreError
            A file cannot be written.
        PythiaDynError
            Another process has written rows of other settings since.
        """
        if self._directory is None or not self._changed:
            return
        if not force and time.monotonic() - self._flushed < _FLUSH_SECONDS:
            return
        with store_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        with self._locked(self._directory):
            self._merge(self._directory)
            if self._replaces and all(kept.index is not None for kept in self._rows.values()):
                return  # there is nothing yet to replace the other rows with
            self._write(self._directory)
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
            As `dataset_of`.
        """
        wanted = {step: self._rows[step].row if self._is_known(step) else None for step in steps}
        missing = self.missing
        absent = {str(step): missing[step] for step in sorted(missing) if step in wanted}
        notes, by_step = self._notes_of(step for step in wanted if self._is_known(step))
        notes |= {"notes_by_step": by_step} if by_step else {}
        known = {**self.settings, **attributes, **notes, "mode": self.mode, "missing": absent}
        return dataset_of(self.mode, wanted).assign_attrs(known)

    # -- files ------------------------------------------------------------------------------------------------

    @property
    def _stem(self) -> str:
        return stem(self.mode)

    @contextmanager
    def _locked(self, directory: Path) -> Iterator[None]:
        """Hold the lock of the table. An `OSError` inside becomes a `StoreError`."""
        path = directory / self._stem
        with store_errors(path), locked(directory, self._stem):
            yield

    def _archive(self, directory: Path) -> Archive:
        return Archive(directory / f"{self._stem}.zarr", FIELDS[self.mode])

    def _sidecar_path(self, directory: Path) -> Path:
        return directory / f"{self._stem}.json"

    def _state(self, directory: Path) -> object:
        """What changes whenever the file of the rows is replaced."""
        try:
            found = self._sidecar_path(directory).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _remove_unfinished(self, directory: Path) -> None:
        """Remove files that a killed process did not finish: only who holds the lock writes here."""
        archive = self._archive(directory).path
        for path in (*directory.glob(f".{self._stem}[.-]*.partial"), *archive.rglob("*.partial")):
            path.unlink(missing_ok=True)

    def _merge(self, directory: Path) -> None:
        """Take over the rows in the files. Own rows that are not written yet stay."""
        state = self._state(directory)
        if state == self._read_state:
            return
        self._replaces = False
        new = {step: kept for step, kept in self._rows.items() if kept.index is None}
        path = self._sidecar_path(directory)
        if state is None:
            if path.with_suffix(".csv").exists():
                self._refuse(path, f"rows that cannot be read ({path.name} is not there)")
            self._rows, self._missing, self._used, self._read_state = new, {}, 0, None
            return
        try:
            found = read_json(path)
            differences = _differences(found["settings"], self.settings)
            indices = {int(step): int(index) for step, index in found["indices"].items()}
            listed = {step: (index, found["revisions"][str(step)]) for step, index in indices.items()}
            by_step, first = found.get("notes_by_step", {}), dict(found["notes"])
            missing = {int(step): str(reason) for step, reason in found["missing"].items()}
            if differences and listed:
                count = "1 row" if len(listed) == 1 else f"{len(listed)} rows"
                raise _OtherSettingsError(f"{count} of other settings ({'; '.join(differences)})")
            missing = {} if differences else missing
            rows = self._read(directory, listed, by_step, first)
        except _OtherSettingsError as error:
            self._refuse(path, str(error))
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, PythiaDynError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._refuse(path, f"rows that cannot be read ({reason})")
            return
        self.added_elsewhere |= {step for step, kept in rows.items() if self._rows.get(step) is not kept} - new.keys()
        self._rows, self._missing, self._read_state = {**rows, **new}, missing, state
        self._used = max(indices.values(), default=-1) + 1

    def _refuse(self, path: Path, what: str) -> None:
        """Raise an error, unless rows are to be replaced."""
        if not self._overwrite:
            table = path.with_suffix(".csv")
            raise PythiaDynError(f"{table} has {what}; --overwrite replaces them, another --results keeps them")
        self._replaces = True

    def _read(
        self,
        directory: Path,
        listed: Mapping[int, tuple[int, str | None]],
        by_step: Mapping[str, Mapping[str, Any]],
        first: Mapping[str, Any],
    ) -> dict[int, _Kept]:
        """The rows that the files list; those that are known already are not read again."""
        found = {
            step: self._rows[step]
            for step, (index, _) in listed.items()
            if step in self._rows and self._rows[step].index == index
        }
        new = [step for step in listed if step not in found]
        fields = self._archive(directory).read(listed[step][0] for step in new)
        for step, values in zip(new, fields, strict=True):
            if (values["sentence_tokens"] < 0).any():
                raise StoreError(f"there are no scores of step {step}")
            index, commit = listed[step]
            found[step] = _Kept(row_from(self.mode, values), commit, dict(by_step.get(str(step), first)), index)
        return found

    def _write(self, directory: Path) -> None:
        """Write the rows that are new, then which rows there are, then the tables."""
        archive = self._archive(directory)
        if self._replaces:
            # First the file without which the others are not read. Rows in memory are of the present settings.
            self._sidecar_path(directory).unlink(missing_ok=True)
            self._rows = {step: replace(kept, index=None) for step, kept in self._rows.items()}
            self._replaces, self._used = False, 0
        if not self._used and archive.path.exists():
            shutil.rmtree(archive.path)  # replaced, or left by a process that was killed: maybe of another corpus
        new = {step: kept for step, kept in sorted(self._rows.items()) if kept.index is None}
        indices = archive.write({step: kept.row.fields(self.mode) for step, kept in new.items()}, self._used)
        self._used += len(new)
        for step, kept in new.items():
            self._rows[step] = replace(kept, index=indices[step])
        write_json(self._sidecar_path(directory), self._sidecar())
        self._read_state = self._state(directory)
        for path, text in self._tables(directory):
            with atomic_file(path) as file:
                file.write(text.encode())

    def _sidecar(self) -> dict[str, Any]:
        notes, by_step = self._notes_of(self._rows)
        rows = [(str(step), kept) for step, kept in sorted(self._rows.items())]
        return {
            "settings": self.settings,
            "notes": notes,
            **({"notes_by_step": by_step} if by_step else {}),
            "missing": {str(step): reason for step, reason in sorted(self._without_row().items())},
            "revisions": {step: kept.commit for step, kept in rows},
            "indices": {step: kept.index for step, kept in rows},
        }

    def _tables(self, directory: Path) -> list[tuple[Path, str]]:
        """Path and text of the table, and of that of the curves."""
        for step, kept in self._rows.items():
            if step not in self._lines or self._lines[step][0].row is not kept.row:
                curves = curve_lines(step, kept.row) if self.mode == "unmask" else ""
                self._lines[step] = (kept, line(self.mode, step, kept.row), curves)
        known = {step: self._lines[step][1:] for step in self._rows}
        empty = {step: (line(self.mode, step, None), "") for step in self._without_row()}
        lines = [each for _, each in sorted({**empty, **known}.items())]
        table, curves = (start + "".join(texts) for start, *texts in zip(header(self.mode), *lines, strict=True))
        tables = [(directory / f"{self._stem}.csv", table)]
        if self.mode == "unmask":
            tables.insert(0, (directory / f"{self._stem}-prefix.csv", curves))
        return tables

    # -- rows -------------------------------------------------------------------------------------------------

    def _is_known(self, step: int) -> bool:
        """Whether there is a row that is of the present checkpoint, as far as this run knows."""
        return step in self._rows and step not in self._failed

    def _without_row(self) -> dict[int, str]:
        """The missing steps that have no row at all."""
        return {step: reason for step, reason in self.missing.items() if step not in self._rows}

    def _notes_of(self, steps: Iterable[int]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The notes of the first of the steps that has a row, and by step those of the others where they differ."""
        notes = [(step, self._rows[step].notes) for step in sorted(steps) if step in self._rows]
        first = dict(notes[0][1]) if notes else {}
        return first, {str(step): dict(others) for step, others in notes if others != first}


class _OtherSettingsError(PythiaDynError):
    """The files have rows of other settings."""


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, as text."""
    names = sorted(before.keys() | now.keys())
    return [f"{name}: {before.get(name)} → {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def _text(path: Path) -> str | None:
    """The text of a file; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
