"""Atomic writing of files, and what a failure to write is called."""

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
"""A temporary file this old belongs to no running write, even if its process id is in use again. Writing one chunk of
the largest tensor (2.5 GB) takes minutes, so a day leaves a wide margin."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The error numbers of no free blocks or inodes, a used-up quota, and a limit on the size of files."""

_DISK_FULL_TEXTS = (*map(os.strerror, _DISK_FULL), "PytorchStreamWriter failed writing", "unexpected pos")
"""Parts of the messages of libraries that raise errors of their own: safetensors and tokenizers give the text of the
operating system, `torch.save` (torch 2.13) only says that it could not write a file, or that it is shorter than it
should be."""


@contextmanager
def atomic_file(target: Path, *, scratch: Path | None = None) -> Iterator[IO[bytes]]:
    """Write a file that appears complete or not at all.

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
    """Turn an `OSError` raised in the ``with`` block into a `StoreError` of one line.

    Parameters
    ----------
    path
        The store or file that is written in the block; the message names it.

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
    """Turn an error of any library that means a full disk into a `StoreError` of one line; other errors stay.

    Parameters
    ----------
    path
        What is written in the ``with`` block; the message names it.
    hint
        What to do, at the end of the message.

    Raises
    ------
    StoreError
        ``cannot write PATH: the disk is full``, and the hint.
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
        The directory that was given as `scratch`, or that holds the targets.
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
