"""The files of a weight store, in a directory or in an object store: open, list and write them; the writers' lock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from pythia_dynamics.errors import StoreError
from pythia_dynamics.files import atomic_file, remove_stale, store_errors
from pythia_dynamics.objects import Lease, ObjectPath, Place, is_web

__all__ = [
    "METADATA",
    "array_names",
    "bucket",
    "chunk_sizes",
    "is_node",
    "new_chunk",
    "open_node",
    "remove_unfinished",
    "writers_lock",
]

METADATA = "zarr.json"
"""The file of an array or a group that describes it."""

_UNFINISHED = ("zarr.*.partial", "*/zarr.*.partial", "*/c/*.partial")
"""What zarr names metadata files, and the chunks of coordinates, while it writes them."""

_POLL_SECONDS = 0.004
"""Wait between two attempts to take the writers' lock. Writing one record takes about 4 ms, so a shorter wait would
only use the processor."""


def remove_unfinished(store: Place, scratch: Place) -> None:
    """Remove what killed processes have left half written. For the owner of the writers' lock.

    Parameters
    ----------
    store
        The store, whose metadata only the owner of the lock writes.
    scratch
        As for `new_chunk`; the files of processes that run are kept.
    """
    if isinstance(store, Path):
        for pattern in _UNFINISHED:
            for unfinished in store.glob(pattern):
                unfinished.unlink(missing_ok=True)
    if isinstance(scratch, Path) and scratch.is_dir():
        remove_stale(scratch)


def bucket(place: Place) -> dict[str, Any]:
    """The arguments ``store`` and ``path`` of zarr for a place."""
    if isinstance(place, ObjectPath):
        return {"store": place.zarr_store(), "path": place.key}
    return {"store": place, "path": None}


def open_node(place: Place, opener: Any, mode: str = "r") -> Any:
    """Open an array or a group of a store.

    Parameters
    ----------
    place
        Its folder.
    opener
        `zarr.open_array` or `zarr.open_group`.
    mode
        ``r``, or ``r+`` to write to it.

    Raises
    ------
    StoreError
        It is damaged.
    """
    try:
        return opener(**bucket(place), mode=mode, zarr_format=3)
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"{place} is not a readable Zarr v3 node ({reason}); move it away and fetch again") from None


def is_node(place: Place) -> bool:
    """Whether there is an array or a group at a place."""
    return (place / METADATA).is_file()


def array_names(place: Place) -> list[str]:
    """Names of the arrays of a store, sorted; of an object store, of all folders in it."""
    if isinstance(place, ObjectPath):
        return [name for name in place.folders() if not name.startswith(".")]
    return [path.parent.name for path in sorted(place.glob(f"*/{METADATA}"))]


def chunk_sizes(array: Place, chunks: Iterable[Place]) -> list[int | None]:
    """Bytes of the chunks of an array, None for those that are not there.

    Parameters
    ----------
    array
        The folder of the array.
    chunks
        The chunks.
    """
    if isinstance(array, ObjectPath) and not is_web(array):
        sizes = array.sizes()  # one request for a thousand of them
        prefix = f"{array}/"
        return [sizes.get(str(chunk).removeprefix(prefix)) for chunk in chunks]
    found: list[int | None] = []
    for chunk in chunks:
        if isinstance(chunk, ObjectPath):
            found.append(chunk.size())
        else:
            found.append(chunk.stat().st_size if chunk.is_file() else None)
    return found


def new_chunk(place: Place, scratch: Place) -> AbstractContextManager[IO[bytes]]:
    """A file that becomes a chunk at the end of the ``with`` block, unless that raises; see `atomic_file`.

    Parameters
    ----------
    place
        The chunk.
    scratch
        A directory for what is not complete. Not for an object store.
    """
    if isinstance(place, ObjectPath):
        return place.new_file()
    assert isinstance(scratch, Path)
    return atomic_file(place, scratch=scratch)


def writers_lock(store: Place) -> Callable[[], AbstractContextManager[Any]]:
    """What takes the lock of the writers of a store: one process, and one thread of it, has it at a time."""
    path = store.with_name(f".{store.name}.lock")
    if isinstance(path, ObjectPath):
        return Lease(path).held
    lock = FileLock(path, poll_interval=_POLL_SECONDS)

    @contextmanager
    def held() -> Iterator[None]:
        with store_errors(store), lock:
            yield

    return held
