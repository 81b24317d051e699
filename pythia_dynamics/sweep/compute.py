"""How weights are swept, as one value: threads or an executor, device, precision, rows kept, progress."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent

__all__ = ["Compute"]

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Compute:
    """How to compute, as against what: every measure takes one as its keyword `compute`.

    No field changes what a result means; `rows` says which weights it is of.

    Parameters
    ----------
    threads : int, optional
        Number of threads; by default as many as there are cores that this process may use.
    executor : concurrent.futures.Executor, optional
        Runs the blocks of work instead of threads of this process: processes, or machines. The weights of a store are
        sent as paths, those of an array by value.
    device : str
        Where Gram matrices are computed: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …, or ``"auto"`` (CUDA where there is
        one). CUDA computes them in float64. Everything else runs on the CPU.
    precision : {"float32", "float64"}
        Of the Gram matrix WᵀW of a step on the CPU. float32 multiplies blocks of 1,024 rows in float32 and adds them
        in float64, and repeats a step in float64 where that does not resolve its smallest eigenvalues.
    rows : int, optional
        Number of rows of each frame to use, the first ones: the entries of the tokenizer leave out the padding of a
        vocabulary. By default all rows.
    progress : Progress
        Called with (done, total) from the calling thread.

    Raises
    ------
    PythiaDynError
        For fewer than one thread, or `rows` that are no positive whole number.
    UnknownNameError
        For another `precision`.
    """

    threads: int | None = None
    executor: Executor | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    rows: int | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise PythiaDynError(f"the number of threads must be at least 1; got {self.threads}")
        if self.precision not in get_args(Precision):
            raise UnknownNameError("precision", self.precision, get_args(Precision))

    @property
    def workers(self) -> int:
        """The number of threads to use: `threads`, or the cores this process may run on."""
        if self.threads is not None:
            return self.threads
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    @property
    def exact_device(self) -> str:
        """`device` with ``"auto"`` resolved, a device that computes in float64. Raises as `resolve_exact_device`."""
        if self.device == "cpu":
            return self.device
        from pythia_dynamics.device import resolve_exact_device  # which loads torch

        return resolve_exact_device(self.device)

    def rows_of(self, history: History) -> int:
        """Rows of each frame of a history that are used. Raises `PythiaDynError` where it does not have so many."""
        there = history.frame_shape[0]
        if self.rows is None:
            return there
        whole = isinstance(self.rows, (int, np.integer)) and not isinstance(self.rows, bool)
        if not whole or not 1 <= self.rows <= there:
            raise PythiaDynError(f"rows must be a whole number from 1 to {there}, the rows of a frame; got {self.rows}")
        return int(self.rows)

    def part(self, start: int, length: int) -> Compute:
        """The same, with progress reported as `length` thousandths of the whole, from the thousandth `start` on."""

        def report(done: int, total: int) -> None:
            self.progress(start + done * length // max(total, 1), 1000)

        return replace(self, progress=report)
