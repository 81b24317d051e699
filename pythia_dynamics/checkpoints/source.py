"""Where checkpoints come from: a directory or the Hub, behind one protocol that reads byte ranges.

`LocalSource` and `HubSource` implement `Source`; nothing after this module knows which one it holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from pythia_dynamics.checkpoints.registry import step_of
from pythia_dynamics.errors import CheckpointError, FormatError, HubError

__all__ = [
    "AccessError",
    "ByteStream",
    "FileMissingError",
    "Revision",
    "Source",
    "Traffic",
    "by_step",
    "checkpoint_files",
    "require_plain_path",
]


class FileMissingError(CheckpointError):
    """A revision lacks the file that was asked for."""

    def __init__(self, message: str, file: str = "") -> None:
        self.file = file
        super().__init__(message)


class AccessError(HubError):
    """Nothing of the repository can be had now: it is gated or not there, or the Hub is out of reach."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One checkpoint: its step, what the source calls it (branch or folder), and its immutable commit, if any."""

    step: int
    ref: str
    commit: str | None = None


class Traffic:
    """Counts what reading cost. Threads may add to one at once.

    `requests` are file requests (the Hub's rate limit counts these), `api` requests to the Hub's API, `bytes` the
    content that arrived, `retries` the requests that had to be made again.
    """

    def __init__(self) -> None:
        self.requests = self.api = self.bytes = self.retries = 0
        self._lock = threading.Lock()

    def add(self, *, requests: int = 0, api: int = 0, bytes: int = 0, retries: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.api += api
            self.bytes += bytes
            self.retries += retries

    def merge(self, other: Traffic) -> None:
        """Add what another one counted."""
        self.add(requests=other.requests, api=other.api, bytes=other.bytes, retries=other.retries)

    def __repr__(self) -> str:
        counts = f"requests={self.requests}, api={self.api}, bytes={self.bytes}, retries={self.retries}"
        return f"Traffic({counts})"

    def __getstate__(self) -> dict[str, int]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, int]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class ByteStream:
    """Bytes [start, stop) of a file of `size` bytes, read once from front to back; a context manager.

    `sha256` is that of the whole file, where the source states it. `position` is the offset of the next byte.
    """

    def __init__(
        self,
        pieces: Generator[bytes, None, None],
        *,
        start: int,
        stop: int,
        size: int,
        sha256: str | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.start, self.stop, self.size, self.sha256 = start, stop, size, sha256
        self.position = start
        self._pieces = pieces
        self._rest = b""
        self._on_close = on_close

    def pieces(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes, in pieces as they arrive. Raises when the stream has fewer."""
        end = self.position + count
        if end > self.stop:
            raise FormatError(f"byte {end} lies behind the range that was asked for, which ends at {self.stop}")
        while self.position < end:
            piece = self._rest or next(self._pieces, b"")
            if not piece:
                raise FormatError(f"the source stopped at byte {self.position} of a range up to {self.stop}")
            wanted = end - self.position
            self._rest = piece[wanted:]
            piece = piece[:wanted]
            self.position += len(piece)
            yield piece

    def read(self, count: int) -> bytes:
        """The next `count` bytes, or what is left when there are fewer."""
        return b"".join(self.pieces(min(count, self.stop - self.position)))

    def skip(self, count: int) -> None:
        """Drop the next `count` bytes."""
        for _ in self.pieces(count):
            pass

    def close(self) -> None:
        """Release the file or connection; bytes not read yet are not transferred."""
        self._pieces.close()
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source(Protocol):
    """Checkpoints of one model, by step."""

    @property
    def location(self) -> str:
        """Repository id or directory."""
        ...

    @property
    def name(self) -> str:
        """Short name; names the store."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What reading from it has cost so far."""
        ...

    def revisions(self) -> Mapping[int, Revision]:
        """Every revision by step, in increasing order. Raises `CheckpointError` when there is none."""
        ...

    def files(self, revision: Revision) -> Mapping[str, int]:
        """Size in bytes of every file of a revision, by path."""
        ...

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        """The bytes ``file[start:stop]``, with the meaning of a Python slice; the stream says which they are.

        Raises `FileMissingError` when the revision lacks the file, `HubError` when it cannot be had.
        """
        ...

    def snapshot(self, revision: Revision) -> Path:
        """A directory with the whole checkpoint (config, tokenizer, weights), downloaded if need be."""
        ...

    def evict(self, revision: Revision) -> None:
        """Free what `snapshot` brought; what was there before stays."""
        ...

    def metered(self) -> Source:
        """The same source, counting into a `Traffic` of its own."""
        ...

    def cancel(self) -> None:
        """Make reads that wait in other threads end with an error, soon."""
        ...


def by_step(
    named: Iterable[tuple[str, str | None]], pattern: str | None, *, where: str, kind: str
) -> dict[int, Revision]:
    """Revisions by step, from (ref, commit) pairs; refs that name no step are left out.

    Raises `CheckpointError` when two refs name one step. `where` and `kind` (branch, folder) are for its message.
    """
    found: dict[int, Revision] = {}
    for ref, commit in named:
        step = step_of(ref, pattern)
        if step is None:
            continue
        if step in found:
            raise CheckpointError(
                f"{where}: {found[step].ref} and {ref} are both step {step}; say with --revision-pattern which "
                f"{kind} is meant"
            )
        found[step] = Revision(step, ref, commit)
    return dict(sorted(found.items()))


def require_plain_path(file: str) -> str:
    """The path itself, when it is a relative one that stays inside its checkpoint. Raises `FormatError`."""
    parts = PurePosixPath(file).parts
    inside = bool(parts) and not file.startswith("/") and ".." not in parts
    if not inside or "\\" in file or ":" in file or not file.isprintable():
        raise FormatError(f"{file!r} is not a path inside a checkpoint")
    return file


_WEIGHTS = (".safetensors", ".bin")
_OTHER = ("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")


def checkpoint_files(names: Iterable[str]) -> list[str]:
    """The files a whole model is loaded from: config, tokenizer and weights, safetensors rather than torch files."""
    here = [name for name in names if "/" not in name]
    safe = [name for name in here if name.endswith((".safetensors", ".safetensors.index.json"))]
    torch = [name for name in here if name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json"))]
    other = [name for name in here if name in _OTHER or name.startswith(("tokenizer", "vocab"))]
    return sorted(other + (safe or torch))
