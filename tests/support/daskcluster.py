"""A Dask cluster of processes that a test can kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["DaskProcesses"]


class DaskProcesses:
    """A scheduler and workers with one thread each, as the command line of Dask starts them."""

    def __init__(self, folder: Path, workers: int = 2, options: Sequence[str] = ()) -> None:
        self.folder, self.count, self.options = folder, workers, tuple(options)
        self.address = ""
        self._started = 0
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.start_scheduler("tcp://127.0.0.1:0")
        for _ in range(self.count):
            self.start_worker()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def _start(self, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
        self._started += 1
        log = self.folder / f"dask-{self._started}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__DISK": "false"}
        with log.open("wb") as file:
            command = [sys.executable, "-m", "dask", *words]
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=self.folder, env=environment)
        return process, log

    def start_scheduler(self, address: str) -> None:
        """Start a scheduler, and wait until it listens."""
        host, _, port = address.removeprefix("tcp://").partition(":")
        self.scheduler, log = self._start("scheduler", "--host", host, "--port", port, "--no-dashboard", "--no-show")
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Scheduler at:\s+(tcp://\S+)", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.address = found[1]

    def start_worker(self) -> None:
        """Start a worker, without waiting for it."""
        words = ("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", *self.options)
        self.workers.append(self._start(*words)[0])

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        """End a process as a machine that fails does."""
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
