"""Atomic writing of files, errors when a file cannot be written, and how many writes this process has made."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pythia_dynamics.errors import StoreError

__all__ = ["atomic_file", "disk_full_errors", "portable", "reason_of", "remove_stale", "store_errors", "write_count"]

_STALE_SECONDS = 86_400
"""A temporary file of this age is left over, even if another process now has its process id. Writing one chunk of the
largest tensor (2.5 GB) takes minutes, so a day is much longer than any write."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for: no free blocks or inodes, quota exceeded, file larger than the limit."""

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
"""Error numbers for a place where this user cannot write."""

_FULL = "the disk is full"

_DISK_FULL_TEXTS = (_FULL, *map(os.strerror, _DISK_FULL), "PytorchStreamWriter failed writing", "unexpected pos")
"""Parts of messages of `atomic_file`, and of libraries that do not raise `OSError`. safetensors and tokenizers give the
text of the operating system. `torch.save` (torch 2.13) only reports that writing failed, or that the file is too short.
"""

_writes = 0


def write_count() -> int:
    """The number of writes by this process, in all its threads: files that were complete, and changes of stores.

    A write counts from the moment at which its target may change. If the number has not increased, no file was written.
    """
    return _writes


def _count_write() -> None:
    global _writes
    _writes += 1  # two threads may count one write together; the first write always counts


@contextmanager
def atomic_file(target: Path, *, scratch: Path | None = None) -> Iterator[IO[bytes]]:
    """Write a file atomically: it is complete, or it does not exist.

    The bytes go to a temporary file, which is synchronised to disk and renamed after the ``with`` block has ended
    without an exception. After an exception, or when the process is killed, `target` is as it was before.

    Parameters
    ----------
    target
        The file to write. Missing parent directories are created.
    scratch
        A directory of the same file system for the temporary file. Default: the directory of `target`.

    Yields
    ------
    IO of bytes
        The temporary file, open for writing.

    Raises
    ------
    StoreError
        The file or one of its directories cannot be written. The message names `target`, with the words of `reason_of`.
    """
    directory = scratch or target.parent
    temporary = directory / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        _count_write()
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:  # others are of a library that the block calls
            raise StoreError(f"cannot write {target}: {reason_of(error)}") from error
        raise


def portable(place: str, folder: Path, project: Path) -> str:
    """A directory as it is recorded in a file: relative where that holds in a copy of the project as well.

    Parameters
    ----------
    place
        The absolute path of a directory, or another name, which is returned as it is.
    folder
        The folder of the file that records it.
    project
        The directory that people copy with all that is in it. A place outside is returned as it is; so is any place
        where this is the root of the file system.
    """
    project = project.resolve()
    if Path(place).is_absolute() and Path(place).is_relative_to(project) and project != Path(project.anchor):
        return Path(os.path.relpath(place, folder.resolve())).as_posix()
    return place


def reason_of(error: OSError) -> str:
    """Why the operating system has refused something, and what to do where that is known, for a message of one line.

    Parameters
    ----------
    error
        The error. A message with the reason also names the file.
    """
    if error.errno in _DISK_FULL:
        return f"{_FULL}; free some space or name another directory"
    reason = error.strerror or str(error)
    return f"{reason}; name another directory" if error.errno in _NOT_WRITABLE else reason


@contextmanager
def store_errors(path: object) -> Iterator[None]:
    """Convert an `OSError` in the ``with`` block into a `StoreError` with a message of one line, and count a write.

    Parameters
    ----------
    path
        The store or directory that the block writes, for the message.

    Raises
    ------
    StoreError
        ``cannot write PATH: `` with the words of `reason_of`.
    """
    _count_write()
    try:
        with disk_full_errors(path):
            yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason_of(error)}") from None


@contextmanager
def disk_full_errors(path: object, hint: str = "; free some space or name another directory") -> Iterator[None]:
    """Convert an error that means a full disk, from any library, into a `StoreError`. Other errors are not changed.

    Parameters
    ----------
    path
        The file or directory that the ``with`` block writes, for the message.
    hint
        End of the message: what the user can do.

    Raises
    ------
    StoreError
        ``cannot write PATH: the disk is full``, followed by the hint.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, OSError) and error.errno in _DISK_FULL
        if not known and not any(text in str(error) for text in _DISK_FULL_TEXTS):
            raise
        raise StoreError(f"cannot write {path}: {_FULL}{hint}") from None


def remove_stale(directory: Path) -> None:
    """Remove temporary files of `atomic_file` whose process has ended, or that are older than a day.

    Parameters
    ----------
    directory
        The directory that was given as `scratch`, or the directory of the targets. Other files in it are kept.
    """
    for path in directory.glob(".*.partial"):
        with suppress(OSError, ValueError, IndexError):
            process = int(path.name.split(".")[-3])
            old = time.time() - path.stat().st_mtime > _STALE_SECONDS
            if old or not _is_running(process):
                path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
