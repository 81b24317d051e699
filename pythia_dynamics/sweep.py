"""One pass over a history for every statistic that was asked of it.

The pass goes over slabs: a range of weights, across all steps. Memory maps make that cheap, and whatever couples
steps (running sums, Gram matrices) needs no more memory than a slab's, however large the model. Each slab is handed to
every accumulator in turn while it is warm in the cache. Slabs are independent: threads take them one by one, or any
`concurrent.futures.Executor` takes them in groups, as values that can be pickled.

An accumulator keeps one partial sum per slab and adds them up in slab order at the end, and slabs depend on the size
of the frame alone. So a result is the same to the last bit whatever the number of threads and their order.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol, Self, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.suites import TOKENIZER_ENTRIES, resolve, step_of

__all__ = [
    "Accumulator",
    "Frames",
    "MissingStepsWarning",
    "NonFiniteWarning",
    "carrier",
    "rows_kept",
    "run_jobs",
    "slabs",
    "sweep",
    "tokenizer_entries",
    "warn_missing",
    "warn_nonfinite",
    "workers",
]

_CARRIERS: dict[np.dtype[Any], type[np.generic]] = {
    np.dtype(np.float16): np.uint16,
    np.dtype(ml_dtypes.bfloat16): np.int16,
    np.dtype(np.float32): np.float32,
    np.dtype(np.float64): np.float64,
}
A = TypeVar("A", bound="Accumulator")
_ALIGNMENT = 64  # weights; slabs begin on cache lines
_LEAST, _MOST = 1 << 13, 1 << 20  # weights in a slab: enough to amortise a call, little enough to share out evenly
_SHARES = 16  # the slabs of a pass are a multiple of this: few, as a counting table leaves the cache between two


class MissingStepsWarning(UserWarning):
    """Steps of the history have no weights; the message names them. They are NaN in every result."""


class NonFiniteWarning(UserWarning):
    """Steps have weights that are NaN or infinite; the message names them. Only their own rows are NaN."""


def carrier(weights: NDArray[Any]) -> NDArray[Any]:
    """Weights as the kernels take them, C-contiguous: the bits of float16 as uint16, those of bfloat16 as int16."""
    if weights.dtype not in _CARRIERS:
        raise PythiaDynError(f"weights must be float16, bfloat16, float32 or float64; got {weights.dtype}")
    return np.ascontiguousarray(weights).view(_CARRIERS[weights.dtype])


class Frames:
    """The frames in use, as memory: T' present steps of the same `size`, in step order.

    `indices` are their places on the history's step axis. `rows` keeps the first rows of each frame (the vocabulary
    without its padding). The arrays stay referenced here, so the addresses stay valid as long as this object. It
    pickles as its history: paths for a store, the weights themselves for an array.
    """

    def __init__(self, history: History, rows: int | None = None, *, without: Sequence[int] = ()) -> None:
        self.history, self.rows, self.without = history, rows, tuple(without)
        kept = rows_kept(history, rows)
        self.shape = (kept, *history.frame_shape[1:])
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.arrays: list[NDArray[Any]] = []
        indices = []
        for index in range(len(history.steps)):
            frame = None if index in self.without else history.frame(index)
            if frame is not None:
                self.arrays.append(carrier(frame).reshape(-1)[: self.size])
                indices.append(index)
        if not indices:
            raise PythiaDynError(f"no step of {history.name} has weights to analyse")
        self.indices = np.array(indices)
        self.addresses = np.array([array.ctypes.data for array in self.arrays], dtype=np.uint64)
        self.like = np.zeros(1, self.arrays[0].dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return _frames, (self.history, self.rows, self.without)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step numbers of the frames in use."""
        steps: NDArray[np.int64] = self.history.steps[self.indices]
        return steps

    @property
    def computing_type(self) -> type[np.floating[Any]]:
        """float32, in which 16-bit weights are exact; float64 for float64 weights."""
        return np.float64 if self.history.dtype == np.float64 else np.float32

    def values(self, position: int, start: int, stop: int) -> NDArray[Any]:
        """A copy-free view of the weights `start` to `stop` of one frame, in the dtype of the history."""
        return self.arrays[position][start:stop].view(self.history.dtype)

    def rough_means(self, pieces: int = 4, piece: int = 1024) -> NDArray[np.float64]:
        """A provisional mean of each frame from a few short stretches of it, rounded to the dtype of the weights.

        Sums of values shifted by it do not cancel when the exact mean is subtracted from them afterwards. Rounded, so
        that a constant frame is exactly zero after the shift. 0 where a stretch is not finite.
        """
        starts = np.unique(np.linspace(0, max(self.size - piece, 0), pieces).astype(int))
        means = np.empty(len(self))
        for t in range(len(self)):
            stretches = [self.values(t, start, min(start + piece, self.size)) for start in starts]
            with np.errstate(all="ignore"):
                means[t] = np.concatenate(stretches).astype(np.float64).mean()
        means[~np.isfinite(means)] = 0
        rounded: NDArray[np.float64] = means.astype(self.history.dtype).astype(np.float64)
        return rounded

    def padded(self, multiple: int) -> NDArray[np.uint64]:
        """The addresses, the last one repeated up to a multiple."""
        short = -len(self) % multiple
        return np.concatenate([self.addresses, np.repeat(self.addresses[-1:], short)])


def _frames(history: History, rows: int | None, without: tuple[int, ...]) -> Frames:
    return Frames(history, rows, without=without)


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
    spoilt = [i for i in np.flatnonzero(suspected) if not _finite(frames, int(i))]
    large = frames.steps[sorted({*np.flatnonzero(suspected)} - {*spoilt})].tolist()
    if large:
        raise PythiaDynError(
            f"the weights of {history.name} at {_listed(large)} are too large for their squares; scale them"
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


def slabs(size: int, slab: int | None = None) -> list[tuple[int, int]]:
    """The ranges of weights of one pass over frames of `size` weights, of `slab` weights each; by default 16 equal
    ranges or a multiple of it, fewer of a small frame."""
    if slab is None:
        count = _SHARES * -(-size // (_SHARES * _MOST))
        slab = max(-(-size // max(count, 1)), _LEAST)
    if slab < 1:
        raise PythiaDynError(f"a slab must have at least one weight; got {slab}")
    slab = -(-slab // _ALIGNMENT) * _ALIGNMENT
    return [(start, min(start + slab, size)) for start in range(0, size, slab)]


def workers(threads: int | None = None) -> int:
    """The number of threads to use: `threads`, or the cores this process may run on."""
    if threads is not None:
        if threads < 1:
            raise PythiaDynError(f"the number of threads must be at least 1; got {threads}")
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rows_kept(history: History, drop_padding: int | None) -> int:
    """Rows of each frame to use: all, or the first `drop_padding`. Raises when there are not that many."""
    rows = history.frame_shape[0]
    if drop_padding is None:
        return rows
    whole = isinstance(drop_padding, (int, np.integer)) and not isinstance(drop_padding, bool)
    if not whole or not 1 <= drop_padding <= rows:
        raise PythiaDynError(f"drop_padding is the number of rows to keep, 1 to {rows}; got {drop_padding}")
    return int(drop_padding)


def tokenizer_entries(history: History) -> int:
    """The number of entries of a model's tokenizer, for `drop_padding`: rows of W_U from there on are padding.

    Known for Pythia, and for a directory of checkpoints that has a ``tokenizer.json`` in it or in one of its steps.
    Raises `PythiaDynError` for others, and where there are fewer rows than entries, as in tensors without a vocabulary.
    """
    source = str(history.provenance.get("source", ""))
    files = [Path(source) / "tokenizer.json"]
    if Path(source).is_dir():
        folders = (folder for folder in Path(source).iterdir() if step_of(folder.name) is not None)
        files += [folder / "tokenizer.json" for folder in sorted(folders)]
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        entries = _entries(file)
    elif _is_pythia(source):
        entries = TOKENIZER_ENTRIES
    else:
        raise PythiaDynError(f"the tokenizer of {history.name} is not known; give --drop-padding a number of rows")
    if entries > history.frame_shape[0]:
        raise PythiaDynError(
            f"{history.tensor} of {history.name} has {history.frame_shape[0]} rows, its tokenizer {entries} entries: "
            "there is no padding to drop"
        )
    return entries


def _is_pythia(source: str) -> bool:
    try:
        return resolve(source).is_pythia
    except PythiaDynError:  # an array, a store made by other means
        return False


def _entries(file: Path) -> int:
    from tokenizers import Tokenizer

    try:
        return max(Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True).values(), default=-1) + 1
    except Exception as error:  # tokenizers raises nothing more special
        raise PythiaDynError(f"cannot read {file}: {error}") from None


def warn_missing(history: History) -> None:
    """Name the steps of the history that have no weights in a `MissingStepsWarning`, if there are any."""
    gone = history.steps[~history.present].tolist()
    if gone:
        warnings.warn(
            f"{history.name} lacks {_listed(gone)}: NaN there, and skipped in sums over steps",
            MissingStepsWarning,
            stacklevel=3,
        )


def warn_nonfinite(history: History, steps: Sequence[int]) -> None:
    """Name steps with weights that are NaN or infinite in a `NonFiniteWarning`, if there are any."""
    if steps:
        warnings.warn(
            f"{history.name} has weights that are not finite at {_listed(steps)}: NaN there, and skipped in sums",
            NonFiniteWarning,
            stacklevel=3,
        )


def _listed(steps: Sequence[int]) -> str:
    noun = "step" if len(steps) == 1 else f"{len(steps)} steps:"
    return f"{noun} {', '.join(str(step) for step in steps)}"


def _finite(frames: Frames, position: int) -> bool:
    pieces = (frames.values(position, start, stop) for start, stop in slabs(frames.size))
    with np.errstate(invalid="ignore"):  # bfloat16 remarks on signalling NaNs
        return all(np.isfinite(piece).all() for piece in pieces)
