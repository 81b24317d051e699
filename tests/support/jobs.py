"""Jobs for processes that are started by spawn: functions of a module that imports little."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def kill_itself(number: int) -> None:
    """End the process by a signal."""
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(10)


def sleep(file: str | Path, seconds: float = 30) -> None:
    """Write the id of the process to a file, and sleep; an interruption is noted in another file."""
    file = Path(file)
    file.write_text(str(os.getpid()))
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        file.with_suffix(".interrupted").touch()
        raise


def sleep_on(file: Path) -> None:
    """As `sleep`, whatever comes."""
    file.write_text(str(os.getpid()))
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with suppress(KeyboardInterrupt):
            time.sleep(30)
