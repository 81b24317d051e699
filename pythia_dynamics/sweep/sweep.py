"""One pass over a history for every statistic that was asked of it.

The pass goes over slabs: a range of weights, across all steps. Memory maps make that cheap, and whatever couples
steps (running sums, Gram matrices) needs no more memory than a slab's, however large the model. Each slab is handed to
every accumulator in turn while it is warm in the cache. Slabs are independent: threads take them one by one, or any
`concurrent.futures.Executor` takes them in groups, as values that can be pickled.

An accumulator keeps one partial sum per slab and adds them up in slab order at the end, and slabs depend on the size
of the frame alone. So a result is the same to the last bit whatever the number of threads and their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.frames import Frames, is_finite, slabs, warn_nonfinite, workers

__all__ = ["Accumulator", "run_jobs", "sweep"]

A = TypeVar("A", bound="Accumulator")


class Accumulator(Protocol):
    """A statistic of a history that is a sum over weights."""

    couples: ClassVar[bool]
    """Whether one step's weights enter another step's result; then steps that are not finite must be left out."""

    def begin(self, frames: Frames) -> Self:
        """One of its kind for these frames, empty."""

    def fork(self) -> Self:
        """An empty copy for one more worker."""

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Take in the weights `start` to `stop` of every frame. Called once per range, without the interpreter lock."""

    def merge(self, other: Self) -> None:
        """Take in what another worker's copy has taken in."""

    def suspects(self) -> NDArray[np.bool_]:
        """Which of the frames seem to hold weights that are not finite."""

    def again(self) -> Self | None:
        """What is to read the history once more in place of this one, which has found itself not precise enough."""


def sweep(
    history: History,
    accumulators: Sequence[A],
    *,
    drop_padding: int | None = None,
    slab: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> list[A]:
    """Read the history once and return the accumulators, filled, in the order given.

    `drop_padding` is the number of rows to keep, `slab` the number of weights in a slab (default: by size), `threads`
    the number of threads (default: the cores this process may use). With an `executor`, slabs go to it in groups, four
    for each of `threads`; it may be of processes or machines. `progress` counts slabs.

    Steps whose weights are not all finite are named in a `NonFiniteWarning`, and the accumulators that couple steps
    read the history once more without them, as if they were missing; so does one that has found itself not precise
    enough (see `Accumulator.again`). Finite weights whose squares are not raise `PythiaDynError`.
    """
    frames = Frames(history, drop_padding)
    filled = _pass(frames, accumulators, slab, threads, executor, progress)
    suspected = np.zeros(len(frames), dtype=bool)
    for item in filled:
        suspected |= item.suspects()
    spoilt = [i for i in np.flatnonzero(suspected) if not is_finite(frames, int(i))]
    large = frames.steps[sorted({*np.flatnonzero(suspected)} - {*spoilt})].tolist()
    if large:
        raise PythiaDynError(
            f"the weights of {history.name} at {listed(large)} are too large for their squares; scale them"
        )

    def replace(kinds: dict[int, A]) -> None:
        for i, item in zip(kinds, _pass(frames, list(kinds.values()), slab, threads, executor, progress), strict=True):
            filled[i] = item

    if spoilt:
        warn_nonfinite(history, frames.steps[spoilt].tolist())
        if len(spoilt) == len(frames):
            return filled
        frames = Frames(history, drop_padding, without=frames.indices[spoilt].tolist())
        replace({i: kind for i, kind in enumerate(accumulators) if kind.couples})
    replace({i: kind for i, item in enumerate(filled) if (kind := item.again()) is not None})
    return filled


def _pass(
    frames: Frames,
    kinds: Sequence[A],
    slab: int | None,
    threads: int | None,
    executor: Executor | None,
    progress: Progress,
) -> list[A]:
    """One reading of all slabs; none where nothing is asked."""
    if not kinds:
        return []
    ranges = slabs(frames.size, slab)
    count = min(workers(threads), len(ranges))
    accumulators = [kind.begin(frames) for kind in kinds]
    progress(0, len(ranges))
    done = 0
    if executor is not None:
        groups = [ranges[i :: 4 * workers(threads)] for i in range(min(4 * workers(threads), len(ranges)))]
        jobs = ((len(group), (_task, frames, kinds, group)) for group in groups)
        for size, result in run_jobs(executor, jobs, ahead=2 * workers(threads)):
            for item, other in zip(accumulators, result, strict=True):
                item.merge(other)
            done += size
            progress(done, len(ranges))
        return accumulators
    # One copy per thread, lent to whichever slab runs next: merging costs as many tables as threads, not as slabs.
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


def _task(frames: Frames, kinds: Sequence[A], ranges: list[tuple[int, int]]) -> list[A]:
    """A group of slabs, as a task that can be sent to another process; tables are made where they are filled."""
    mine = [kind.begin(frames) for kind in kinds]
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
