"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["atomic_file", "remove_stale"]

_STALE_SECONDS = 86_400


@contextmanager
def atomic_file(target: Path, *, scratch: Path | None = None) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name; give it its own name only after a clean exit and an fsync.

    `scratch` is a directory of the same file system for the temporary file (default: beside the target).
    On an exception, or a kill, the target is as it was before.
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


def remove_stale(directory: Path) -> None:
    """Remove what killed processes left: temporary files whose process is gone, or that are a day old."""
    for path in directory.glob(".*.partial"):
        with suppress(OSError, ValueError, IndexError):
            process = int(path.name.split(".")[-3])
            old = time.time() - path.stat().st_mtime > _STALE_SECONDS
            if old or not _alive(process):
                path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
