"""One pass over a history for all statistics that are sums over weights.

The pass goes over slabs: a range of weights, across all steps. Memory maps make that cheap, and what mixes steps
(running sums, Gram matrices) needs no more memory than a slab's, however large the model. Each slab is given to every
accumulator in turn while it is in the cache. Slabs are independent: threads take them one by one, or any
`concurrent.futures.Executor` takes them in groups, as values that can be pickled.

An accumulator keeps one partial sum per slab and adds them up in slab order at the end, and slabs depend on the size
of the frame alone. So a result is the same to the last bit whatever the number of threads and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.history.history import History
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import Frames, is_finite, slabs, warn_nonfinite

__all__ = ["Accumulator", "PerSlab", "SlabSums", "run_jobs", "sweep"]

A = TypeVar("A", bound="Accumulator")


class Accumulator(Protocol):
    """A statistic of a history that is a sum over weights.

    One object says what is summed; `start` makes the empty sums for a history. `update` adds a slab of weights of all
    steps, `merge` adds the sums of another thread or process. The object must be picklable for an `executor` of
    processes.
    """

    mixes_steps: ClassVar[bool]
    """Whether the weights of one step enter the result of another. Then steps that are not finite are left out."""

    def start(self, frames: Frames, device: str) -> Self:
        """Empty sums for these frames; `device` is where Gram matrices are computed."""

    def fork(self) -> Self:
        """Empty sums for one more thread."""

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Add the weights `start` to `stop` of every frame. Called once per range, without the interpreter lock."""

    def merge(self, other: Self) -> None:
        """Add the sums of another object of the same pass."""

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Which of the frames may hold weights that are not finite, shape (T',)."""

    def refine(self) -> Self | None:
        """What rereads the history in place of this one because float32 did not suffice; None where it did."""


@dataclass(kw_only=True)
class PerSlab:
    """Base of accumulators that keep one array of sums per slab and add them up in the order of the weights.

    Attributes
    ----------
    size : int
        Weights of each frame, after `start`.
    indices : array of int, shape (T',)
        Places of the frames in use on the step axis, after `start`.
    sums : dict of int to array of float64, shape (T', K)
        The sums of each slab, by its first weight.
    """

    mixes_steps: ClassVar[bool] = False

    size: int = 0
    indices: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def start(self, frames: Frames, device: str) -> Self:
        """Empty sums for these frames."""
        return replace(self, size=frames.size, indices=frames.indices, sums={})

    def fork(self) -> Self:
        """Empty sums for one more thread."""
        return replace(self, sums={})

    def merge(self, other: Self) -> None:
        """Add the slabs of another object of the same pass."""
        self.sums |= other.sums

    @property
    def total(self) -> NDArray[np.float64]:
        """The sums over all weights, shape (T', K)."""
        total: NDArray[np.float64] = np.sum([self.sums[start] for start in sorted(self.sums)], axis=0)
        return total

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Frames with a sum that is not finite."""
        return np.array([not np.isfinite(row).all() for row in self.total])

    def refine(self) -> Self | None:
        """Sums are float64."""
        return None


@dataclass
class SlabSums(PerSlab):
    """An accumulator of K sums over the weights of each step: the way to a measure of one's own.

    Parameters
    ----------
    function : callable
        Gets some weights of one step, an array of shape (n,) in the dtype of the history, and returns K numbers. The
        sums over all weights of the step are the result. Must be defined in a module for an `executor` of processes.
    """

    function: Callable[[NDArray[Any]], Any]

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Add the weights `start` to `stop` of every frame."""
        rows = [self.function(frames.values(t, start, stop)) for t in range(len(frames))]
        self.sums[start] = np.array(rows, dtype=np.float64).reshape(len(frames), -1)


def sweep(
    history: History, accumulators: Sequence[A], compute: Compute | None = None, *, slab: int | None = None
) -> list[A]:
    """Read the history once and return the accumulators, filled, in the order given.

    Steps whose weights are not all finite are named in a `NonFiniteWarning`. Accumulators that mix steps then read the
    history again without these steps, as if they were missing. So does one whose `refine` asks for it.

    Parameters
    ----------
    history : History
        The weights.
    accumulators : sequence of Accumulator
        What to sum.
    compute : Compute, optional
        Threads or executor, device, rows. Its progress counts slabs. An executor gets the slabs in groups, four for
        each worker.
    slab : int, optional
        Weights of a slab; by default by size, see `slabs`.

    Raises
    ------
    PythiaDynError
        Where finite weights have squares that are not, or no step has weights.
    """
    compute = compute or Compute()
    frames = Frames(history, compute.rows_of(history))
    filled = _pass(frames, accumulators, compute, slab)
    suspected = np.zeros(len(frames), dtype=bool)
    for item in filled:
        suspected |= item.nonfinite_frames()
    nonfinite = [i for i in np.flatnonzero(suspected) if not is_finite(frames, int(i))]
    large = frames.steps[sorted({*np.flatnonzero(suspected)} - {*nonfinite})].tolist()
    if large:
        raise PythiaDynError(
            f"the weights of {history.name} at {listed(large)} are too large for their squares; scale them"
        )

    def reread(kinds: dict[int, A]) -> None:
        for i, item in zip(kinds, _pass(frames, list(kinds.values()), compute, slab), strict=True):
            filled[i] = item

    if nonfinite:
        warn_nonfinite(history, frames.steps[nonfinite].tolist())
        if len(nonfinite) == len(frames):
            return filled
        frames = Frames(history, frames.rows, without=frames.indices[nonfinite].tolist())
        reread({i: kind for i, kind in enumerate(accumulators) if kind.mixes_steps})
    reread({i: kind for i, item in enumerate(filled) if (kind := item.refine()) is not None})
    return filled


def _pass(frames: Frames, kinds: Sequence[A], compute: Compute, slab: int | None) -> list[A]:
    """One reading of all slabs; none where there is nothing to sum."""
    if not kinds:
        return []
    ranges = slabs(frames.size, slab)
    count, device, progress = min(compute.workers, len(ranges)), compute.exact_device, compute.progress
    accumulators = [kind.start(frames, device) for kind in kinds]
    progress(0, len(ranges))
    done = 0
    if compute.executor is not None:
        groups = [ranges[i :: 4 * compute.workers] for i in range(min(4 * compute.workers, len(ranges)))]
        jobs = ((len(group), (_task, frames, kinds, device, group)) for group in groups)
        for size, result in run_jobs(compute.executor, jobs, ahead=2 * compute.workers):
            for item, other in zip(accumulators, result, strict=True):
                item.merge(other)
            done += size
            progress(done, len(ranges))
        return accumulators
    # One copy per thread, used by one slab at a time: merging costs as many tables as threads, not as slabs.
    copies: SimpleQueue[list[A]] = SimpleQueue()
    copies.put(accumulators)
    others = [[item.fork() for item in accumulators] for _ in range(count - 1)]
    for other in others:
        copies.put(other)

    def one(start: int, stop: int) -> None:
        mine = copies.get()
        try:
            for item in mine:
                item.update(frames, start, stop)
        finally:
            copies.put(mine)

    with ThreadPoolExecutor(count, thread_name_prefix="sweep") as pool:
        for _ in run_jobs(pool, ((1, (one, start, stop)) for start, stop in ranges), ahead=4 * count):
            done += 1
            progress(done, len(ranges))
    for other in others:
        for item, theirs in zip(accumulators, other, strict=True):
            item.merge(theirs)
    return accumulators


def _task(frames: Frames, kinds: Sequence[A], device: str, ranges: list[tuple[int, int]]) -> list[A]:
    """A group of slabs, as a task that can be sent to another process; tables are made where they are filled."""
    mine = [kind.start(frames, device) for kind in kinds]
    for start, stop in ranges:
        for item in mine:
            item.update(frames, start, stop)
    return mine


def run_jobs(executor: Executor, jobs: Iterable[tuple[int, tuple[Any, ...]]], ahead: int) -> Iterator[tuple[int, Any]]:
    """Run jobs (label, (function, *arguments)) and yield (label, result) as they finish.

    At most `ahead` are under way at a time, so that finished results do not pile up. After a failure, which is raised
    here, the others are cancelled.
    """
    running: dict[Future[Any], int] = {}
    try:
        for size, (function, *arguments) in jobs:
            running[executor.submit(function, *arguments)] = size
            if len(running) >= ahead:
                yield from _finished(running)
        while running:
            yield from _finished(running)
    finally:
        for future in running:
            future.cancel()


def _finished(running: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()
