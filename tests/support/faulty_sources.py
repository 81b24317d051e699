"""Sources in a module that other processes can import, which fail in one of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import CheckpointError


class FaultySource(LocalSource):
    """A directory of checkpoints; something happens when the snapshot of one step is asked for.

    Parameters
    ----------
    directory
        The directory.
    step
        The step whose snapshot fails.
    fault
        ``kill`` ends the process, ``raise`` raises an error that is no error of the package, ``wait`` does not return
        before `cancel`.
    after
        The fault waits until this file exists and has so many lines.
    """

    def __init__(self, directory: Path, step: int, fault: str, after: tuple[Path, int] | None = None) -> None:
        super().__init__(directory)
        self.step, self.fault, self.after = step, fault, after
        self.cancelled = False

    def snapshot(self, revision: Revision) -> Path:
        if revision.step == self.step:
            end = time.monotonic() + 60
            while not self.cancelled and not self._is_time() and time.monotonic() < end:
                time.sleep(0.01)
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "raise":
                raise ZeroDivisionError("a defect")
            while not self.cancelled and time.monotonic() < end:
                time.sleep(0.01)
            raise CheckpointError("cancelled")
        return super().snapshot(revision)

    def cancel(self) -> None:
        self.cancelled = True

    def _is_time(self) -> bool:
        if self.after is None:
            return True
        path, lines = self.after
        return path.exists() and len(path.read_text().splitlines()) >= lines
