"""One pass over a history for all statistics that are sums over weights.

A pass goes over slabs. A slab is a range of weights at all steps; memory maps make such a range cheap to read.
Statistics that combine steps (running sums, Gram matrices) need memory for one slab only, whatever the size of the
model. While a slab is in the cache, every accumulator is updated with it. Slabs are independent: threads process them
one by one, or a `concurrent.futures.Executor` processes them in groups, which can be pickled.

An accumulator keeps one partial sum per slab and adds them in slab order at the end. The slabs depend only on the size
of a frame. So a result is the same to the last bit for any number and order of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import IntegrityError, PythiaDynError, listed
from pythia_dynamics.history.history import History
from pythia_dynamics.history.passage import Passed
from pythia_dynamics.shard import Shard
from pythia_dynamics.sweep.compute import Compute, exact_device
from pythia_dynamics.sweep.frames import Frames, is_finite, slabs, warn_nonfinite
from pythia_dynamics.sweep.partial import PartialSums, described

__all__ = ["Accumulator", "PerSlab", "SlabSums", "run_jobs", "sweep"]

A = TypeVar("A", bound="Accumulator")


class Accumulator(Protocol):
    """A statistic of a history that is a sum over weights.

    One object defines the statistic. `start` returns a copy with empty sums for a history, `update` adds a slab of
    weights of all steps, and `merge` adds the sums of another thread or process. For an `executor` of processes the
    object must be picklable.
    """

    mixes_steps: ClassVar[bool]
    """Whether the weights of one step enter the result of another. If so, steps that are not finite are left out."""

    uses_device: ClassVar[bool]
    """Whether it computes on `device`. If none does, a device of ``"auto"`` is the CPU, and torch is not imported."""

    def start(self, frames: Frames, device: str) -> Self:
        """A copy with empty sums for these frames; `device` is where Gram matrices are computed."""

    def fork(self) -> Self:
        """Empty sums for one more thread."""

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Add the weights `start` to `stop` of every frame. Called once per slab, in any thread."""

    def merge(self, other: Self) -> None:
        """Add the sums of another object of the same pass."""

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Which frames may have weights that are not finite, shape (T',)."""

    def refine(self) -> Self | None:
        """An accumulator for another pass in float64, if float32 was not precise enough; else None."""


@dataclass(kw_only=True)
class PerSlab:
    """Base class of accumulators that keep one array of sums per slab and add them in the order of the weights.

    Attributes
    ----------
    size : int
        Number of weights of each frame, after `start`.
    indices : array of int, shape (T',)
        Indices of the frames in use into the steps of the history, after `start`.
    sums : dict of int to array of float64, shape (T', K)
        The sums of each slab, by the index of its first weight.
    """

    mixes_steps: ClassVar[bool] = False
    uses_device: ClassVar[bool] = False

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
        """None: sums are float64."""
        return None


@dataclass
class SlabSums(PerSlab):
    """An accumulator of K sums over the weights of each step, for a user's own measure.

    Parameters
    ----------
    function : callable
        Called with n weights of one step, an array of shape (n,) in the dtype of the history; returns K numbers. They
        are added over all weights of the step. For an `executor` of processes it must be defined in a module.
    """

    function: Callable[[NDArray[Any]], Any]

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Add the weights `start` to `stop` of every frame."""
        rows = [self.function(frames.values(t, start, stop)) for t in range(len(frames))]
        self.sums[start] = np.array(rows, dtype=np.float64).reshape(len(frames), -1)


def sweep(
    history: History, accumulators: Sequence[A], compute: Compute | None = None, *, slab: int | None = None
) -> list[A]:
    """Read the history once, fill the accumulators and return them in the same order.

    A `NonFiniteWarning` names the steps whose weights are not all finite. The history is then read again without these
    steps for accumulators that mix steps, as if the steps were missing. It is also read again for every accumulator
    whose `refine` is not None.

    Parameters
    ----------
    history : History
        The weights.
    accumulators : sequence of Accumulator
        The statistics. These objects are not changed.
    compute : Compute, optional
        Threads or executor, device, rows. Progress counts slabs. An executor gets the slabs in groups, four for each
        worker.
    slab : int, optional
        Weights of a slab. The default depends on the size of a frame, see `slabs`.

    Raises
    ------
    PythiaDynError
        Finite weights have squares that are not finite, or no step has weights.
    PartSavedError
        With `Compute.partial`: the sums of one job are saved.
    """
    compute = compute or Compute()
    frames = Frames(history, compute.rows_of(history))
    ranges = slabs(frames.size, slab)
    if compute.partial is None:
        filled = _pass(frames, accumulators, compute, ranges)
    else:
        filled = _in_parts(frames, accumulators, compute, compute.partial, ranges)
    flagged = np.zeros(len(frames), dtype=bool)
    for item in filled:
        flagged |= item.nonfinite_frames()
    nonfinite = [i for i in np.flatnonzero(flagged) if not is_finite(frames, int(i))]
    large = frames.steps[sorted({*np.flatnonzero(flagged)} - {*nonfinite})].tolist()
    if large:
        raise PythiaDynError(
            f"the weights of {history.name} at {listed(large)} are too large for their squares; scale them"
        )

    def reread(templates: dict[int, A]) -> None:
        for i, item in zip(templates, _pass(frames, list(templates.values()), compute, ranges), strict=True):
            filled[i] = item

    if nonfinite:
        warn_nonfinite(history, frames.steps[nonfinite].tolist())
        if len(nonfinite) == len(frames):
            return filled
        frames = Frames(history, frames.rows, without=frames.indices[nonfinite].tolist())
        reread({i: template for i, template in enumerate(accumulators) if template.mixes_steps})
    reread({i: template for i, item in enumerate(filled) if (template := item.refine()) is not None})
    return filled


def _in_parts(
    frames: Frames, templates: Sequence[A], compute: Compute, partial: PartialSums, ranges: Sequence[tuple[int, int]]
) -> list[A]:
    """The first pass of the job of an array, whose sums are saved; or of all jobs, from what they have saved."""
    about = {**described(frames.history, frames.rows, templates), "slabs": len(ranges)}
    if not partial.merges:
        if not partial.is_saved("sums", about):
            sums = _pass(frames, templates, compute, partial.shard.block(ranges))
            partial.save("sums", about, (sums, _passed(frames)))
        raise partial.saved()
    (filled, passed), *others = partial.load("sums", about, templates)
    try:
        _absorb(frames, passed)
        for other, passed in others:
            _absorb(frames, passed)
            for item, more in zip(filled, other, strict=True):
                item.merge(more)
    except IntegrityError as error:
        partial.remove("sums")
        raise IntegrityError(f"{error}; its parts of {partial.name} are removed, run all jobs again") from None
    result: list[A] = filled
    return result


def _passed(frames: Frames) -> Passed:
    """What has been read of weights that are not on this machine, for the process that compares their checksums."""
    remote = frames.history.remote
    return {} if remote is None else remote.passage.take()


def _absorb(frames: Frames, passed: Passed) -> None:
    """Compare the checksums of weights of which all has been read, now that another process has read this."""
    if frames.history.remote is not None:
        frames.history.remote.absorb(passed)


def _pass(frames: Frames, templates: Sequence[A], compute: Compute, ranges: Sequence[tuple[int, int]]) -> list[A]:
    """Read slabs once and return filled copies of the templates; read nothing if there are none."""
    if not templates:
        return []
    _passed(frames)  # of a pass that was not finished
    count, progress = max(min(compute.workers, len(ranges)), 1), compute.progress
    is_idle = compute.device == "auto" and not any(template.uses_device for template in templates)
    device = "cpu" if is_idle else compute.task_device
    is_here = compute.executor is None
    # What an accumulator finds out of the frames before it reads them is sent with them.
    empty = [template.start(frames, device if is_here else "cpu") for template in templates]
    accumulators = empty if is_here else []
    # One copy per thread, used for one slab at a time: the tables of threads are merged, not those of slabs.
    others = [[item.fork() for item in accumulators] for _ in range(count - 1)] if is_here else []
    progress(0, len(ranges))
    done = 0

    for local, part in [(frames, ranges)] if compute.sends_ranges(frames.history) else frames.loaded(ranges, progress):
        if compute.executor is None:
            results = _in_threads(local, [accumulators, *others], part)
        else:
            results = _in_executor(local, templates, accumulators, part, compute, device)
        for size in results:
            done += size
            if local is frames:  # else their arrival has been reported, which takes longer than their sums
                progress(done, len(ranges))
    for other in others:
        for item, partial in zip(accumulators, other, strict=True):
            item.merge(partial)
    return accumulators or empty  # of no slab at all


def _in_threads(frames: Frames, copies: Sequence[list[A]], ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Add slabs to copies of the accumulators, one for each thread; yield the number of slabs that are done."""
    free: SimpleQueue[list[A]] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def update_slab(start: int, stop: int) -> None:
        local = free.get()
        try:
            for item in local:
                item.update(frames, start, stop)
        finally:
            free.put(local)

    with ThreadPoolExecutor(len(copies), thread_name_prefix="sweep") as pool:
        for _ in run_jobs(pool, ((1, (update_slab, start, stop)) for start, stop in ranges), ahead=4 * len(copies)):
            yield 1


def _in_executor(
    frames: Frames,
    templates: Sequence[A],
    accumulators: list[A],
    ranges: Sequence[tuple[int, int]],
    compute: Compute,
    device: str,
) -> Iterator[int]:
    """Add slabs to the accumulators, which are the first ones that come back; yield the numbers of slabs done.

    Four groups per worker balance the load; each group sends back only one set of tables.
    """
    executor = compute.pool
    assert executor is not None
    count = min(4 * compute.workers, len(ranges))
    if compute.sends_ranges(frames.history):  # adjacent ranges are read together
        groups = [Shard(number + 1, count).block(ranges) for number in range(count)]
    else:
        groups = [list(ranges[number::count]) for number in range(count)]
    jobs = ((len(group), (_task, frames, templates, device, group)) for group in groups)
    for size, (result, passed) in run_jobs(executor, jobs, ahead=2 * compute.workers):
        _absorb(frames, passed)
        if not accumulators:
            accumulators += result
        else:
            for item, other in zip(accumulators, result, strict=True):
                item.merge(other)
        yield size


def _task(
    frames: Frames, templates: Sequence[A], device: str, ranges: Sequence[tuple[int, int]]
) -> tuple[list[A], Passed]:
    """Sum a group of slabs. A module-level function, so that another process can run it; the tables are made there."""
    accumulators = [template.start(frames, exact_device(device)) for template in templates]
    for local, part in frames.loaded(ranges):
        for start, stop in part:
            for item in accumulators:
                item.update(local, start, stop)
    return accumulators, _passed(frames)


def run_jobs(executor: Executor, jobs: Iterable[tuple[int, tuple[Any, ...]]], ahead: int) -> Iterator[tuple[int, Any]]:
    """Run jobs and yield their results in the order in which they finish.

    Parameters
    ----------
    executor
        Runs the jobs.
    jobs
        (label, (function, *arguments)) of each job; (label, result) is yielded.
    ahead
        Number of jobs that are submitted at a time, at most. It limits the memory of results that wait.

    The exception of a job is raised here; jobs that have not started are then cancelled.
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
