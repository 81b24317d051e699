"""The protocol of a source of checkpoints, which reads byte ranges of files by revision, and the values it hands out.

`LocalSource` (a directory) and `HubSource` (a repository) implement `Source`; code that reads checkpoints uses only it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from pythia_dynamics.checkpoints.suite import Reference, Suite
from pythia_dynamics.errors import CheckpointError, FormatError, HubError

__all__ = [
    "AccessError",
    "ByteStream",
    "FileMissingError",
    "Files",
    "OfflineError",
    "Revision",
    "Source",
    "Traffic",
    "require_relative_path",
]


Files = Mapping[str, tuple[int, str | None]]
"""(size in bytes, sha256) of each file of a revision, by path; the sha256 is None for files that are not in LFS, and in
a directory."""


class FileMissingError(CheckpointError):
    """A revision lacks the requested file.

    Parameters
    ----------
    message
        The error's message.
    file
        Path of the file in the revision.
    """

    def __init__(self, message: str, file: str = "") -> None:
        self.file = file
        super().__init__(message)


class AccessError(HubError):
    """No file of the repository can be had now: it is gated, private or does not exist, or the Hub is unreachable."""


class OfflineError(AccessError):
    """The Hub is not asked, because ``HF_HUB_OFFLINE`` is set."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One checkpoint.

    Parameters
    ----------
    step
        The training step.
    ref
        Its name: of a branch, tag or repository, the path of a folder or file, the title of a commit.
    commit
        What identifies its content: the commit on the Hub, a digest of the local files; None where unknown.
    kind
        What `ref` is the name of.
    tokens
        Tokens seen so far, where its name or the suite says so.
    folder
        Where its files are, relative to the source; empty for the top.
    file
        Name in `folder` of the one file that holds its weights; empty where the whole folder is the checkpoint.
    repository
        Where it is a repository of its own, that repository's id.
    """

    step: int
    ref: str
    commit: str | None = None
    kind: Reference = "branch"
    tokens: int | None = None
    folder: str = ""
    file: str = ""
    repository: str = ""

    @property
    def address(self) -> str:
        """What to request from the Hub: the commit where known, so that a branch that moves changes nothing."""
        return self.commit or ("main" if self.repository else self.ref)

    @property
    def path_of_all(self) -> str:
        """The path of its folder or its file in the source; empty where its files are all there are."""
        return f"{self.folder}/{self.file}".strip("/")

    def path(self, file: str) -> str:
        """The path of one of its files in the source. Raises `FormatError` for a file outside of it."""
        return f"{self.folder}/{require_relative_path(file)}" if self.folder else require_relative_path(file)


class Traffic:
    """Counts what reading cost. Threads may share one; it pickles with its counts.

    `requests` are file requests to the Hub and `api` requests to its API, which have a rate limit each; `bytes` is the
    file content that arrived; `retries` are the attempts that failed and were repeated.
    """

    def __init__(self) -> None:
        self.requests = self.api = self.bytes = self.retries = 0
        self._lock = threading.Lock()

    def add(self, *, requests: int = 0, api: int = 0, bytes: int = 0, retries: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self.requests += requests
            self.api += api
            self.bytes += bytes
            self.retries += retries

    def merge(self, other: Traffic) -> None:
        """Add the counts of another `Traffic`."""
        self.add(**other.counts())

    def counts(self) -> dict[str, int]:
        """The counts by name: `requests`, `api`, `bytes`, `retries`."""
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __repr__(self) -> str:
        return f"Traffic({', '.join(f'{name}={count}' for name, count in self.counts().items())})"

    __getstate__ = counts

    def __setstate__(self, state: dict[str, int]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class ByteStream:
    """Bytes [start, stop) of a file, read once from front to back; a context manager.

    `position` is the offset of the next byte.

    Parameters
    ----------
    chunks
        The bytes, in order.
    start, stop
        Offsets in the file of the first byte and behind the last one.
    size
        Size of the whole file in bytes.
    sha256
        Checksum of the whole file in hexadecimal, None where the source states none.
    on_close
        Called when the stream is closed.
    """

    def __init__(
        self,
        chunks: Generator[bytes, None, None],
        *,
        start: int,
        stop: int,
        size: int,
        sha256: str | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.start, self.stop, self.size, self.sha256 = start, stop, size, sha256
        self.position = start
        self._chunks = chunks
        self._rest = b""
        self._on_close = on_close

    def chunks(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes, in chunks as they arrive. Raises `FormatError` when the stream has fewer."""
        end = self.position + count
        if end > self.stop:
            raise FormatError(f"byte {end} is outside the requested range, which ends at {self.stop}")
        while self.position < end:
            chunk = self._rest or next(self._chunks, b"")
            if not chunk:
                raise FormatError(f"the source stopped at byte {self.position} of a range up to {self.stop}")
            wanted = end - self.position
            self._rest = chunk[wanted:]
            chunk = chunk[:wanted]
            self.position += len(chunk)
            yield chunk

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or those that are left when there are fewer."""
        return b"".join(self.chunks(min(count, self.stop - self.position)))

    def close(self) -> None:
        """Release the file or connection; bytes not read yet are not transferred."""
        self._chunks.close()
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Source(Protocol):
    """Checkpoints of one model, by step. Threads may share one."""

    @property
    def location(self) -> str:
        """Repository id or absolute path of the directory."""

    @property
    def name(self) -> str:
        """Short name, which names the store."""

    @property
    def suite(self) -> Suite:
        """How its checkpoints are named and found."""

    @property
    def traffic(self) -> Traffic:
        """What reading from it has cost so far."""

    def revisions(self) -> Mapping[int, Revision]:
        """Every revision by step, in increasing order. Raises `CheckpointError` when there is none."""

    def revision(self, ref: str) -> Revision:
        """The revision of a branch, tag, commit, folder or file by name. Raises `UnknownNameError`."""

    def files(self, revision: Revision) -> Files:
        """(size in bytes, sha256) of every file of a revision, by path."""

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        """The bytes ``file[start:stop]`` of a revision.

        Parameters
        ----------
        revision
            One of `revisions`.
        file
            Path of the file in the revision, relative.
        start, stop
            The range in bytes, with the meaning of a Python slice; the stream states which bytes these are.

        Raises
        ------
        FileMissingError
            When the revision has no such file.
        FormatError
            When the path leaves the revision, or the file has no byte in the range.
        CheckpointError, HubError
            When the file cannot be read.
        """

    def url(self, revision: Revision, file: str) -> str:
        """Where a file of a revision is, for other programs: an address, or a path."""

    def snapshot(self, revision: Revision) -> Path:
        """A directory with the whole checkpoint (config, tokenizer, weights), downloaded where necessary."""

    def evict(self, revision: Revision) -> None:
        """Delete what `snapshot` downloaded; what was there before stays.

        Safe while other revisions are downloaded, in this process and in others: these are whole in the end.
        """

    def with_own_traffic(self) -> Source:
        """The same source, counting into a new `Traffic`."""

    def cancel(self) -> None:
        """Make reads that wait in other threads end with an error."""


def require_relative_path(file: str) -> str:
    """The path `file` itself. Raises `FormatError` unless it is relative and stays inside its checkpoint."""
    path = PurePosixPath(file)
    inside = path.parts and not path.is_absolute() and ".." not in path.parts
    if not inside or "\\" in file or ":" in file or not file.isprintable():
        raise FormatError(f"{file!r} is not a path inside a checkpoint")
    return file
