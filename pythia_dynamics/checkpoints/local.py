"""Checkpoints in a directory: one folder or file per step, named ``step1000``, ``ckpt_10.pt`` or by a pattern.

Beside them the learning rate may be stated: in ``suite.json``, or in a ``trainer_state.json``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.learning_rate import (
    LearningRate,
    LoggedLearningRate,
    read_learning_rate,
    schedule_from_values,
)
from pythia_dynamics.checkpoints.source import (
    ByteStream,
    FileMissingError,
    Files,
    Revision,
    Traffic,
    require_relative_path,
)
from pythia_dynamics.checkpoints.suite import GENERIC, Suite
from pythia_dynamics.checkpoints.tree import (
    SUFFIXES,
    checkpoint_files,
    files_of,
    is_index,
    revisions_in,
    weight_files,
    without_suffix,
)
from pythia_dynamics.checkpoints.view import as_checkpoint
from pythia_dynamics.errors import CheckpointError, FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.tables import read_json

__all__ = ["SUITE_FILE", "LocalSource"]

SUITE_FILE = "suite.json"
"""File in which ``pythia-dyn train`` describes a suite; its key ``learning_rate`` has the schedule."""

_TRAINER_STATE = "trainer_state.json"
"""File of a checkpoint in which the Trainer of transformers keeps its log, with all earlier steps."""

_CHUNK_BYTES = 2**20
"""Bytes per read call: few enough to stay in the cache for the checksum, many enough to make the call cheap."""

_DEPTH = 3
"""How deep checkpoints may lie: ``run/checkpoints/epoch=1-step=100.ckpt``, as Lightning writes them below its logs."""

_SPECIAL = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
"""What a path can be that is neither a file nor a folder."""


class LocalSource:
    """A `Source` that reads a directory of checkpoints, and never changes it. It states no checksums.

    Regular files are read, also through symbolic links. A pipe, a socket, a device or a link that leads nowhere is the
    reason why a checkpoint cannot be read.

    The commit of a revision is a digest of the names, sizes and modification times of its weight files, so that a
    checkpoint that is written again counts as another one.

    Parameters
    ----------
    directory
        The directory, which holds one folder or file for each checkpoint, or folders of them.
    name
        Short name, which names the store; by default that of the directory.
    suite
        How its checkpoints are named. Default: the usual names.

    Raises
    ------
    CheckpointError
        When there is no such directory.
    """

    def __init__(self, directory: str | Path, *, name: str | None = None, suite: Suite = GENERIC) -> None:
        self._path = Path(directory).expanduser().resolve()
        if self._path.is_file():
            raise CheckpointError(f"{directory} is a file; give the directory that holds step1000/, ckpt_10.pt …")
        if not self._path.is_dir():
            raise CheckpointError(f"no directory {directory}; give one that holds step1000/, step2000/ …")
        self.suite = suite
        self.location = str(self._path)
        self.name = name or self._path.name or "root"
        self.traffic = Traffic()

    def revisions(self) -> Mapping[int, Revision]:
        """The checkpoints by step, in increasing order.

        Raises `CheckpointError` when there is none, or two of the same step.
        """
        folders, files = self._listing()
        found = revisions_in(self.suite, folders, files, where=self.location)
        inside = tuple(f"{revision.folder}/" for revision in found.values() if revision.folder)
        for path in files:
            is_link = without_suffix(path) == path and not (self._path / path).exists()
            if is_link and not path.startswith(inside):  # and leads nowhere
                found = revisions_in(self.suite, [path], [], where=self.location) | found
        if found:
            return {step: replace(found[step], commit=self._digest(found[step])) for step in sorted(found)}
        if not folders and not files:
            raise CheckpointError(f"{self.location} is empty; it should hold step1000/, step2000/ …")
        if weight_files(files) or "config.json" in files:
            hint = "name its folder step<N> and give the folder above it"
            raise CheckpointError(f"{self.location} is one checkpoint, not a directory of them; {hint}")
        there = [name for name in (*folders, *files) if "/" not in name]
        names = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
        hint = "the pattern matches none" if not self.suite.is_generic else "--revision-pattern reads other names"
        raise CheckpointError(
            f"{self.location} holds no checkpoints named step1000, ckpt_10.pt … (there: {names}); {hint}"
        )

    def revision(self, ref: str) -> Revision:
        """The revision of a folder or a file. Raises `UnknownNameError` when there is none of that name."""
        path = self._path / require_relative_path(ref)
        named = self.suite.step_name(without_suffix(ref) if path.is_file() else ref)
        step = named.step if named else 0
        if path.is_dir():
            return Revision(step, ref, kind="folder", folder=ref)
        if path.is_file():
            folder, _, file = ref.rpartition("/")
            return Revision(step, ref, kind="file", folder=folder, file=file)
        folders, files = self._listing()
        raise UnknownNameError("revision", ref, (*folders, *weight_files(files)), where=self.location)

    def _listing(self) -> tuple[list[str], list[str]]:
        """The paths of all folders and files of the directory, except what lies deeper than checkpoints may."""
        folders: list[str] = []
        files: list[str] = []
        for root, names, others in os.walk(self._path):
            inside = Path(root).relative_to(self._path)
            names[:] = sorted(name for name in names if not name.startswith(".")) if len(inside.parts) < _DEPTH else []
            folders += [(inside / name).as_posix() for name in names]
            files += [(inside / name).as_posix() for name in sorted(others) if not name.startswith(".")]
        return folders, files

    def files(self, revision: Revision) -> Files:
        """(size in bytes, None) of every file of a revision, by path; `CheckpointError` when its folder is gone."""
        root = self._folder(revision)
        paths = {path.relative_to(root).as_posix(): path for path in root.glob("*" if revision.file else "**/*")}
        files = {name: (paths[name].stat().st_size, None) for name in sorted(paths) if paths[name].is_file()}
        if not weight_files(files):
            for name in weight_files(paths):  # raises an error for what is there instead
                self.read(revision, name).close()
        return files_of(replace(revision, folder=""), files)

    def url(self, revision: Revision, file: str) -> str:
        """The path of a file of a revision."""
        return str(self._folder(revision) / require_relative_path(file))

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        """The bytes ``file[start:stop]`` of a revision; parameters and errors are those of `Source.read`."""
        path = self._folder(revision) / require_relative_path(file)
        try:
            kind = _SPECIAL.get(stat.S_IFMT(path.stat().st_mode))  # opening a pipe would wait for its writer
            if kind is not None:
                raise CheckpointError(f"cannot read {path}: it is a {kind}, not a regular file")
            handle = path.open("rb", buffering=0)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileMissingError(f"{self.location}/{revision.ref} has no {file}", file) from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
        size = os.fstat(handle.fileno()).st_size
        first, last, _ = slice(start, stop).indices(size)
        if first >= last:
            handle.close()
            raise FormatError(f"{file} of {revision.ref} has {size} bytes, none at byte {start}")

        def chunks() -> Generator[bytes, None, None]:
            position = handle.seek(first)
            while position < last and (chunk := handle.read(min(_CHUNK_BYTES, last - position))):
                position += len(chunk)
                self.traffic.add(bytes=len(chunk))
                yield chunk

        return ByteStream(chunks(), start=first, stop=last, size=size, on_close=handle.close)

    def snapshot(self, revision: Revision) -> Path:
        """The revision's folder, or one with its files. Raises `CheckpointError` when it has no model to load."""
        folder = self._folder(revision)
        if "config.json" not in checkpoint_files(self.files(revision)) and self.suite.config is None:
            raise CheckpointError(f"{folder} has no config.json, so no model can be loaded; give one with --config DIR")
        return as_checkpoint(folder, revision, self.suite)

    def stated_learning_rate(self, revisions: Mapping[int, Revision]) -> LearningRate | LoggedLearningRate | None:
        """The learning rate that the directory states; None where it states none.

        Its ``suite.json`` goes before the ``trainer_state.json`` of the last checkpoint that has one.

        Parameters
        ----------
        revisions
            Its checkpoints by step.

        Warns
        -----
        UserWarning
            A ``trainer_state.json`` is damaged; the learning rate is then not known.
        """
        values = _content(self._path / SUITE_FILE).get("learning_rate")
        if isinstance(values, dict):
            with suppress(PythiaDynError):  # other programs may write files of this name
                return schedule_from_values({**values, "origin": f"{SUITE_FILE} of {self._path.name}"})
        for step in sorted(revisions, reverse=True):
            revision = revisions[step]
            path = self._path / revision.folder / _TRAINER_STATE
            if revision.file or not path.is_file():
                continue
            try:
                return read_learning_rate(path, f"{_TRAINER_STATE} of {Path(revision.folder).name}")
            except PythiaDynError as error:
                content = _content(path)
                log = content.get("log_history", [] if content else None)
                # Without a log, or a learning rate in it, none was logged before this checkpoint; else it is damaged.
                if not isinstance(log, list) or any("learning_rate" in row for row in log if isinstance(row, dict)):
                    warnings.warn(f"the learning rate is not known: {error}", stacklevel=2)
                return None
        return None

    def evict(self, revision: Revision) -> None:
        """Does nothing: `snapshot` downloads nothing."""

    def with_own_traffic(self) -> LocalSource:
        """The same source, counting into a new `Traffic`."""
        return LocalSource(self._path, name=self.name, suite=self.suite)

    def cancel(self) -> None:
        """Does nothing: reading a file does not wait."""

    def _digest(self, revision: Revision) -> str:
        """What stands for the commit of a revision."""
        folder = self._path / revision.folder
        paths = [folder / revision.file] if revision.file else sorted(folder.glob("*"))
        weights = [path for path in paths if path.name.endswith(SUFFIXES) or is_index(path.name)]
        files = [(path.name, path.stat()) for path in weights if path.is_file()]
        text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
        return f"local-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _folder(self, revision: Revision) -> Path:
        """The folder of a revision. Raises `CheckpointError` when it is gone."""
        folder = self._path / require_relative_path(revision.folder) if revision.folder else self._path
        if folder.is_symlink() and not folder.exists():
            raise CheckpointError(f"{folder} is a symbolic link that leads nowhere, or to itself")
        if not folder.is_dir():
            raise CheckpointError(f"{self.location} has no folder {revision.folder} any more")
        return folder


def _content(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        content = read_json(path) if path.is_file() else {}  # reading a pipe would wait for its writer
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
