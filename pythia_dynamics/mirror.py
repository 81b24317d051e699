"""Results in an object store, worked on in a folder of this machine that exchanges changed files with it.

Who reads or writes results does so in the folder, as anywhere else. Files that several processes change are changed
inside `locked`: what others have sent arrives before, and what was changed is sent after. All others are sent when the
folder is closed. The last who sends a file wins, as the last who writes one does in a directory.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from pythia_dynamics.errors import PythiaDynError, StoreError
from pythia_dynamics.files import atomic_file, store_errors
from pythia_dynamics.objects import Lease, ObjectPath, as_place, is_web, tag

__all__ = ["local", "locked", "mirrored"]

_STATE = ".mirror.json"
"""In the folder: its place, and the files that are the same in both. Each process that works in the folder reads it."""

_ENDS = (".lock", ".partial", ".running")
"""Ends of names that are of processes on this machine."""

_AT_ONCE = 16
"""Requests at once. Results are many small files."""

_POLL_SECONDS = 0.02
"""Wait between two attempts to take a lock on this machine."""

_Known = dict[str, list[Any]]  # by file: the tag of the object, and what changes with the file


@contextmanager
def mirrored(place: str | ObjectPath) -> Iterator[Path]:
    """A folder of this machine with the results of a place, to which what has changed in it is sent at the end.

    Also after an exception: files that are complete are kept. Rows of evaluations are sent as they are written, and
    several processes, on any machines, may write one table.

    Parameters
    ----------
    place
        The prefix of the objects: ``s3://bucket/results``.

    Yields
    ------
    Path
        The folder, as the ``results`` of any function.

    Raises
    ------
    PythiaDynError
        The place is no URL of objects.
    StoreError
        The place cannot be read or written. If that happens at the end, the folder is kept and named.
    """
    found = as_place(place)
    if isinstance(found, Path):
        raise PythiaDynError(f"{place} is a directory, which is used as it is")
    if is_web(found):
        raise StoreError(f"{place} is a web server, which can only be read; name another place for results")
    above = Path(tempfile.mkdtemp(prefix="pythia-dyn-")).resolve()
    folder = above / (found.name or "results")
    try:
        with store_errors(folder):
            folder.mkdir()
        (folder / _STATE).write_text(json.dumps({"place": [found.root, found.key], "known": {}}))
        _exchange(folder, "", "", is_sent=False)
    except BaseException:
        shutil.rmtree(above, ignore_errors=True)
        raise
    try:
        yield folder
    finally:
        try:
            _exchange(folder, "", "", is_sent=True)
        except StoreError as error:
            raise StoreError(f"{error}; what could not be sent is in {above}") from None
        shutil.rmtree(above, ignore_errors=True)


def local(place: str | Path) -> Path:
    """A directory of results of this machine. Raises `PythiaDynError` for a URL, which is opened by `mirrored`."""
    if "://" in str(place):
        raise PythiaDynError(f"{place} is in an object store; use what `with mirrored({str(place)!r}) as folder` gives")
    return Path(place)


@contextmanager
def locked(directory: Path, name: str, *, poll: float = _POLL_SECONDS) -> Iterator[None]:
    """Hold the lock of the files of a directory whose names begin with a name.

    Parameters
    ----------
    directory
        The directory, which exists. In a folder of `mirrored` the processes of all machines have one lock, and the
        files are exchanged.
    name
        The name.
    poll
        Seconds between two attempts to take a lock on this machine.

    Raises
    ------
    StoreError
        Files cannot be exchanged.
    """
    with FileLock(directory / f".{name}.lock", poll_interval=poll):
        folder = next((each for each in (directory, *directory.parents) if (each / _STATE).is_file()), None)
        if folder is None:
            yield
            return
        inside = directory.relative_to(folder).as_posix()
        inside = "" if inside == "." else inside
        with Lease(_place(folder).joinpath(*inside.split("/") if inside else (), f".{name}.lock")).held():
            _exchange(folder, inside, name, is_sent=False)
            yield
            _exchange(folder, inside, name, is_sent=True)


def _place(folder: Path) -> ObjectPath:
    return ObjectPath(*json.loads((folder / _STATE).read_text())["place"])


def _exchange(folder: Path, inside: str, name: str, *, is_sent: bool) -> None:
    """Get, or send, what has changed of the files of a directory in the folder whose names begin with a name."""
    place = _place(folder)
    with FileLock(folder / ".mirror.lock", poll_interval=_POLL_SECONDS):
        state = json.loads((folder / _STATE).read_text())
        known: _Known = state["known"]
        start = f"{inside}/{name}" if inside else name
        try:
            if is_sent:
                _send(folder, place, known, inside, name)
            else:
                _get(folder, place, known, inside, start)
        finally:
            with atomic_file(folder / _STATE) as file:
                file.write(json.dumps({**state, "known": known}).encode())


def _get(folder: Path, place: ObjectPath, known: _Known, inside: str, start: str) -> None:
    found = {path: e_tag for path, e_tag in _listed(place, inside, start) if _is_exchanged(path)}
    new = [path for path, e_tag in found.items() if path not in known or known[path][0] != e_tag]

    def get(path: str) -> None:
        try:
            content = place.joinpath(*path.split("/")).read_bytes()
        except FileNotFoundError:  # removed since
            return
        with atomic_file(folder / path) as file:
            file.write(content)
        known[path] = [found[path], _signature(folder / path)]

    _all(get, new)
    for path in [path for path in known if path.startswith(start) and path not in found]:  # removed elsewhere
        if _signature(folder / path) == known.pop(path)[1]:
            (folder / path).unlink(missing_ok=True)


def _send(folder: Path, place: ObjectPath, known: _Known, inside: str, name: str) -> None:
    start = f"{inside}/{name}" if inside else name
    found = [each for top in (folder / inside).glob(f"{name}*") for each in (top, *top.rglob("*")) if each.is_file()]
    here = {path: each for each in found if _is_exchanged(path := each.relative_to(folder).as_posix())}
    changed = [path for path in here if path not in known or known[path][1] != _signature(here[path])]

    def send(path: str) -> None:
        signature = _signature(here[path])
        known[path] = [tag(place.joinpath(*path.split("/")).put(here[path].read_bytes())), signature]

    # Arrays before the files that refer to them, and these before the tables.
    for is_next in (lambda path: ".zarr/" in path, lambda path: path.endswith(".json"), lambda _: True):
        _all(send, [path for path in changed if is_next(path)])
        changed = [path for path in changed if not is_next(path)]
    gone = [path for path in known if path.startswith(start) and path not in here]
    place.remove(gone)
    for path in gone:
        del known[path]


def _listed(place: ObjectPath, inside: str, start: str) -> Iterable[tuple[str, str | None]]:
    """Names and entity tags of the objects whose names begin with `start`, all of which are inside of a directory."""
    if not start:
        yield from place.tags().items()
        return
    directory = place.joinpath(*inside.split("/")) if inside else place
    before = f"{inside}/" if inside else ""
    for name, e_tag in directory.tags(deep=False).items():
        if f"{before}{name}".startswith(start):
            yield f"{before}{name}", e_tag
    for name in directory.folders():
        if f"{before}{name}".startswith(start):
            for rest, e_tag in (directory / name).tags().items():
                yield f"{before}{name}/{rest}", e_tag


def _is_exchanged(path: str) -> bool:
    return path != _STATE and not any(part.endswith(_ENDS) for part in path.split("/"))


def _signature(path: Path) -> list[int] | None:
    """What changes with a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def _all(function: Any, paths: list[str]) -> None:
    if paths:
        with ThreadPoolExecutor(min(_AT_ONCE, len(paths)), thread_name_prefix="results") as pool:
            list(pool.map(function, paths))
