"""Atomic writing of files, and errors when a file cannot be written."""

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

__all__ = ["atomic_file", "disk_full_errors", "remove_stale", "store_errors"]

_STALE_SECONDS = 86_400
"""A temporary file of this age is left over, even if another process now has its process id. Writing one chunk of the
largest tensor (2.5 GB) takes minutes, so a day is much longer than any write."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for: no free blocks or inodes, quota exceeded, file larger than the limit."""

_DISK_FULL_TEXTS = (*map(os.strerror, _DISK_FULL), "PytorchStreamWriter failed writing", "unexpected pos")
"""Parts of messages of libraries that do not raise `OSError`. safetensors and tokenizers give the text of the operating
system. `torch.save` (torch 2.13) only reports that writing failed, or that the file is too short."""


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
    OSError
        The file or one of its directories cannot be written.
    """
    directory = scratch or target.parent
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Convert an `OSError` in the ``with`` block into a `StoreError` with a message of one line.

    Parameters
    ----------
    path
        The store or file that the block writes, for the message.

    Raises
    ------
    StoreError
        ``cannot write PATH: the disk is full``, or the reason that the operating system gives.
    """
    try:
        with disk_full_errors(path):
            yield
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def disk_full_errors(path: Path, hint: str = "") -> Iterator[None]:
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
        raise StoreError(f"cannot write {path}: the disk is full{hint}") from None


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
