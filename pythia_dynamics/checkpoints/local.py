"""Checkpoints in a directory: one folder per step, named ``step1000``, ``checkpoint-1000`` or by a pattern."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

from pythia_dynamics.checkpoints.source import (
    ByteStream,
    FileMissingError,
    Revision,
    Traffic,
    checkpoint_files,
    require_relative_path,
    revisions_by_step,
)
from pythia_dynamics.errors import CheckpointError, FormatError

__all__ = ["LocalSource"]

_CHUNK_BYTES = 2**20
"""Bytes per read call: few enough to stay in the cache for the checksum, many enough to make the call cheap."""

_CHECKPOINT_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
"""Files by which a single checkpoint is recognised where a directory of checkpoints is expected."""


class LocalSource:
    """A `Source` that reads a directory of checkpoints, and never changes it. It states no checksums.

    The commit of a revision is a digest of the names, sizes and modification times of its weight files, so that a
    checkpoint that is written again counts as another one.

    Parameters
    ----------
    directory
        The directory, which holds one folder for each checkpoint.
    name
        Short name, which names the store; by default that of the directory.
    pattern
        Regular expression with one group for the step, matched against whole folder names; None for the usual names.

    Raises
    ------
    CheckpointError
        When there is no such directory.
    """

    def __init__(self, directory: str | Path, *, name: str | None = None, pattern: str | None = None) -> None:
        self._path = Path(directory).expanduser().resolve()
        if not self._path.is_dir():
            raise CheckpointError(f"no directory {directory}; give one that holds step1000/, step2000/ …")
        self._pattern = pattern
        self.location = str(self._path)
        self.name = name or self._path.name or "root"
        self.traffic = Traffic()

    def revisions(self) -> Mapping[int, Revision]:
        """The checkpoint folders by step, in increasing order.

        Raises `CheckpointError` when there is none, or two of the same step.
        """
        entries = sorted(entry.name for entry in self._path.iterdir())
        folders = [name for name in entries if (self._path / name).is_dir()]
        found = revisions_by_step(((name, None) for name in folders), self._pattern, where=self.location, kind="folder")
        if found:
            return {step: replace(revision, commit=self._digest(revision)) for step, revision in found.items()}
        if not entries:
            raise CheckpointError(f"{self.location} is empty; it should hold step1000/, step2000/ …")
        if any((self._path / name).is_file() for name in _CHECKPOINT_FILES):
            hint = "name its folder step<N> and give the folder above it"
            raise CheckpointError(f"{self.location} is one checkpoint, not a directory of them; {hint}")
        hint = f" or like {self._pattern!r}" if self._pattern else "; --revision-pattern reads other names"
        raise CheckpointError(f"{self.location} holds no checkpoints named step1000, checkpoint-1000 …{hint}")

    def files(self, revision: Revision) -> Mapping[str, int]:
        """Size in bytes of every file of a revision, by path. Raises `CheckpointError` when its folder is gone."""
        root = self._folder(revision)
        files = (path for path in sorted(root.rglob("*")) if path.is_file())
        return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        """The bytes ``file[start:stop]`` of a revision; parameters and errors are those of `Source.read`."""
        path = self._folder(revision) / require_relative_path(file)
        try:
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
        """The revision's folder. Raises `CheckpointError` when no model can be loaded from it."""
        folder = self._folder(revision)
        if "config.json" not in checkpoint_files(self.files(revision)):
            raise CheckpointError(f"{folder} has no config.json, so no model can be loaded from it")
        return folder

    def evict(self, revision: Revision) -> None:
        """Does nothing: `snapshot` downloads nothing."""

    def with_own_traffic(self) -> LocalSource:
        """The same source, counting into a new `Traffic`."""
        return LocalSource(self._path, name=self.name, pattern=self._pattern)

    def cancel(self) -> None:
        """Does nothing: reading a file does not wait."""

    def _digest(self, revision: Revision) -> str:
        """What stands for the commit of a revision."""
        weights = (".safetensors", ".bin", ".index.json")
        paths = sorted((self._path / revision.ref).iterdir())
        files = [(path.name, path.stat()) for path in paths if path.name.endswith(weights) and path.is_file()]
        text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
        return f"local-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _folder(self, revision: Revision) -> Path:
        """The folder of a revision. Raises `CheckpointError` when it is gone."""
        folder = self._path / require_relative_path(revision.ref)
        if not folder.is_dir():
            raise CheckpointError(f"{self.location} has no folder {revision.ref} any more")
        return folder
