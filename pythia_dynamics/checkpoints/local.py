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
    by_step,
    checkpoint_files,
    require_plain_path,
)
from pythia_dynamics.errors import CheckpointError, FormatError

__all__ = ["LocalSource"]

_PIECE = 1 << 20
_SINGLE = ("config.json", "model.safetensors", "pytorch_model.bin")


class LocalSource:
    """A `Source` that reads a directory of checkpoints. It states no hashes and is never changed.

    In the place of a commit stands a digest of the names, sizes and times of a checkpoint's weight files, so that a
    checkpoint that was written anew is taken for another one.
    """

    def __init__(self, directory: str | Path, *, name: str | None = None, pattern: str | None = None) -> None:
        path = Path(directory).expanduser()
        if not path.is_dir():
            raise CheckpointError(f"no directory {directory}; give one that holds step1000/, step2000/ …")
        self._path = path.resolve()
        self._pattern = pattern
        self.location = str(self._path)
        self.name = name or self._path.name or "root"
        self.traffic = Traffic()

    def revisions(self) -> Mapping[int, Revision]:
        """The checkpoint folders by step. Raises `CheckpointError` when there is none, or two of one step."""
        entries = sorted(entry.name for entry in self._path.iterdir())
        folders = [name for name in entries if (self._path / name).is_dir()]
        found = by_step(((name, None) for name in folders), self._pattern, where=self.location, kind="folder")
        if found:
            return {step: replace(revision, commit=self._digest(revision)) for step, revision in found.items()}
        if not entries:
            raise CheckpointError(f"{self.location} is empty; it should hold step1000/, step2000/ …")
        if any((self._path / name).is_file() for name in _SINGLE):
            raise CheckpointError(
                f"{self.location} is one checkpoint, not a directory of them; name its folder step<N> and give the "
                "folder above it"
            )
        raise CheckpointError(
            f"{self.location} holds no checkpoints named step1000, checkpoint-1000 …"
            + (f" or like {self._pattern!r}" if self._pattern else "; --revision-pattern reads other names")
        )

    def files(self, revision: Revision) -> Mapping[str, int]:
        root = self._folder(revision)
        return {
            path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()
        }

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        path = self._folder(revision) / require_plain_path(file)
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

        def pieces() -> Generator[bytes, None, None]:
            position = handle.seek(first)
            while position < last and (piece := handle.read(min(_PIECE, last - position))):
                position += len(piece)
                self.traffic.add(bytes=len(piece))
                yield piece

        return ByteStream(pieces(), start=first, stop=last, size=size, on_close=handle.close)

    def snapshot(self, revision: Revision) -> Path:
        """The folder itself. Raises `CheckpointError` when no model can be loaded from it."""
        folder = self._folder(revision)
        if "config.json" not in checkpoint_files(self.files(revision)):
            raise CheckpointError(f"{folder} has no config.json, so no model can be loaded from it")
        return folder

    def evict(self, revision: Revision) -> None:
        """Nothing: the checkpoints are not ours to remove."""

    def metered(self) -> LocalSource:
        return LocalSource(self._path, name=self.name, pattern=self._pattern)

    def cancel(self) -> None:
        """Nothing: reading a file does not wait."""

    def _digest(self, revision: Revision) -> str:
        stats = (
            (entry.name, entry.stat())
            for entry in sorted(os.scandir(self._path / revision.ref), key=lambda entry: entry.name)
            if entry.name.endswith((".safetensors", ".bin", ".index.json")) and entry.is_file()
        )
        text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
        return f"local-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _folder(self, revision: Revision) -> Path:
        folder = self._path / require_plain_path(revision.ref)
        if not folder.is_dir():
            raise CheckpointError(f"{self.location} has no folder {revision.ref} any more")
        return folder
