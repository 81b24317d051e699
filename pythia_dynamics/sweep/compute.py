"""How to compute: threads or an executor, device, precision, rows in use and progress, as one value."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.executors import Pool, as_executor, workers_of
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.partial import PartialSums

__all__ = ["Compute", "exact_device"]

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Compute:
    """How to compute. Every measure takes one as its keyword argument `compute`.

    Only `rows` changes what a result means: it selects the weights. The other fields change speed and rounding.

    Parameters
    ----------
    threads : int, optional
        Number of threads, or of tasks that the executor runs at once. Default: what the executor says, else the number
        of cores that this process may use.
    executor : Executor, distributed.Client or executor of submitit, optional
        Runs the work instead of threads of this process, in other processes or on other machines. The weights of a
        store are sent as paths. The weights of an array are sent by value.
    device : str
        Where Gram matrices are computed: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …, or ``"auto"`` (CUDA if the machine has
        it, else the CPU). CUDA computes them in float64. Everything else runs on the CPU.
    precision : {"float32", "float64"}
        Precision of the Gram matrix of a step on the CPU. With float32, blocks of 1,024 rows are multiplied in
        float32 and added in float64. A step whose smallest eigenvalues float32 does not resolve is repeated in float64.
    rows : int, optional
        Use only the first `rows` rows of each frame. The number of entries of the tokenizer excludes the padding of a
        vocabulary. Default: all rows.
    progress : Progress
        Called as ``progress(done, total)`` from the calling thread. The unit depends on the function that reports.
    partial : PartialSums, optional
        Where the job of an array saves its part of the sums in place of a result, or where those of all jobs are read.

    Raises
    ------
    PythiaDynError
        `threads` is below 1. Or `rows`, when it is used, is not a whole number from 1 to the rows of a frame.
    UnknownNameError
        `precision` is neither of the two.
    """

    threads: int | None = None
    executor: Pool | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    rows: int | None = None
    progress: Progress = silent
    partial: PartialSums | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise PythiaDynError(f"the number of threads must be at least 1; got {self.threads}")
        if self.precision not in get_args(Precision):
            raise UnknownNameError("precision", self.precision, get_args(Precision))

    @property
    def workers(self) -> int:
        """The number of tasks at once: `threads`, or that of the executor, or of the cores this process may use."""
        if self.threads is not None:
            return self.threads
        if (count := workers_of(self.executor)) is not None:
            return count
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @property
    def pool(self) -> Executor | None:
        """`executor` with the interface of `concurrent.futures`; None for threads of this process."""
        return as_executor(self.executor)

    @property
    def task_device(self) -> str:
        """`device` as tasks get it: as `exact_device` has it, or as it is if an executor runs them elsewhere."""
        return self.device if self.executor is not None else exact_device(self.device)

    def sends_ranges(self, history: History) -> bool:
        """Whether the tasks of an executor read the weights for themselves, and are sent ranges only."""
        return self.executor is not None and history.remote is not None and history.remote.reads_anywhere

    def rows_of(self, history: History) -> int:
        """The number of rows of each frame of a history that are used.

        Raises `PythiaDynError` when `rows` is not a whole number from 1 to the rows of a frame.
        """
        count = history.frame_shape[0]
        if self.rows is None:
            return count
        is_integer = isinstance(self.rows, (int, np.integer)) and not isinstance(self.rows, bool)
        if not is_integer or not 1 <= self.rows <= count:
            raise PythiaDynError(f"rows must be a whole number from 1 to {count}, the rows of a frame; got {self.rows}")
        return int(self.rows)

    def part(self, start: int, length: int) -> Compute:
        """The same settings for one part of the work.

        Parameters
        ----------
        start, length
            The part in thousandths of the whole work. Progress is reported from `start` to `start + length` of 1,000.
        """

        def report(done: int, total: int) -> None:
            self.progress(start + done * length // max(total, 1), 1000)

        return replace(self, progress=report)


def exact_device(device: str) -> str:
    """A device that computes in float64: `device`, or what ``"auto"`` is on this machine.

    Parameters
    ----------
    device
        As of `Compute`. Errors as in `pythia_dynamics.device.resolve_exact_device`.
    """
    if device == "cpu":
        return device
    from pythia_dynamics.device import resolve_exact_device  # imports torch

    return resolve_exact_device(device)
