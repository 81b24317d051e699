"""The Gram matrix of each step: WᵀW, or WWᵀ where W has fewer rows than columns.

The (v, d) matrix W of a step is read once and not decomposed. Singular values follow from the Gram matrix of its
smaller side, which both have. Steps are processed one by one, because the Gram matrices of all steps would not fit into
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress
from pythia_dynamics.sweep import gram_kernels
from pythia_dynamics.sweep.compute import Compute, Precision, exact_device
from pythia_dynamics.sweep.frames import kernel_array, to_device, warn_nonfinite
from pythia_dynamics.sweep.intrinsics import workspace
from pythia_dynamics.sweep.kernels import TILE
from pythia_dynamics.sweep.partial import PartialSums, described
from pythia_dynamics.sweep.sweep import run_jobs

__all__ = ["FrameGram", "frame_gram", "map_gram_matrices"]


_RESOLUTION = {"float32": 1e-7, "float64": 1e-13}
"""Eigenvalues of a Gram matrix below this share of the largest are rounding errors. 1e-7 is the precision of float32.
1e-13 is 450 times that of float64, for the rounding of sums over 50,000 rows."""

_FLOAT64_BELOW = 1e-6
"""A step with eigenvalues below this share of the largest is computed in float64. The value is ten times the
resolution of float32, so that the eigenvalues that remain in float32 are accurate to 10 %."""

_DEVICE_ELEMENTS = 1 << 24
"""Weights of a step that one thread has on a device at a time: 128 MB in float64, so that 16 threads need 2 GB of the
memory of the device."""

_PROJECTED_ELEMENTS = 1 << 22
"""Weights that `FrameGram.batch_gram` widens to float64 at a time: 32 MB."""


@dataclass(frozen=True)
class FrameGram:
    """The Gram matrix of the weights W of one step. W has shape (v, d); d is the last axis of the frame.

    Parameters
    ----------
    weights : array, shape (v, d)
        W as it is stored: a view of the frame, usually of a memory map.
    gram : array of float64, shape (min(v, d), min(v, d))
        WᵀW where v ≥ d, else WWᵀ. Both have the same eigenvalues but for zeros, and the same trace ‖W‖_F².
    mean_row : array of float64, shape (d,)
        The mean of the rows of W.
    eigenvalues : array of float64, shape (min(v, d),)
        Eigenvalues of `gram`, descending.
    resolution : float
        Eigenvalues below this share of the largest are rounding errors.
    """

    weights: NDArray[Any]
    gram: NDArray[np.float64]
    mean_row: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    resolution: float

    @property
    def rows(self) -> int:
        """v, the number of rows of W."""
        return len(self.weights)

    @property
    def columns(self) -> int:
        """d, the number of columns of W."""
        return int(self.weights.shape[1])

    def batch_gram(self, batches: NDArray[np.float64]) -> NDArray[np.float64]:
        """V WᵀW Vᵀ, the products of the vectors of batches after they have been multiplied by W.

        From `gram` where that is WᵀW. Else W is read again, and V Wᵀ is computed in blocks of rows: d² products would
        cost more than the Gram matrix of the smaller side has saved.

        Parameters
        ----------
        batches
            V, shape (…, B, d).

        Returns
        -------
        array, shape (…, B, B)
        """
        if self.rows >= self.columns:
            return np.asarray(batches @ self.gram @ np.swapaxes(batches, -1, -2))
        products = np.zeros((*batches.shape[:-1], batches.shape[-2]))
        block = max(_PROJECTED_ELEMENTS // self.columns, 1)
        for start in range(0, self.rows, block):
            projected = batches @ self.weights[start : start + block].astype(np.float64).T
            products += projected @ np.swapaxes(projected, -1, -2)
        return products


def map_gram_matrices(
    history: History,
    functions: Sequence[Callable[[FrameGram], Any]],
    compute: Compute | None = None,
    *,
    warn: bool = True,
) -> list[list[Any]]:
    """Apply functions to the Gram matrix of each step.

    Parameters
    ----------
    history : History
        The weights.
    functions : sequence of callable
        Each is called with the `FrameGram` of a step. For an executor of processes they must be picklable.
    compute : Compute, optional
        Threads or executor, device, precision, rows. Each thread needs memory for a few Gram matrices. An executor
        gets one task per step. Progress counts steps.
    warn : bool
        Whether to issue a `NonFiniteWarning` that names the steps with weights that are not finite.

    Returns
    -------
    list of list
        For each function one value per step; None if the step is missing or its weights are not all finite.

    Raises
    ------
    PythiaDynError
        No step has weights, or finite weights have squares that are not finite.
    PartSavedError
        With `Compute.partial`: the values of one job are saved.
    """
    compute = compute or Compute()
    present = np.flatnonzero(history.present).tolist()
    if not present:
        raise PythiaDynError(f"no step of {history.name} has weights to analyse")
    if compute.partial is None:
        found = dict(_mapped(history, functions, compute, present))
    else:
        found = _in_parts(history, functions, compute, compute.partial, present)
    results: list[list[Any]] = [[None] * len(history.steps) for _ in functions]
    for index, outcome in found.items():
        for row, value in zip(results, outcome or (), strict=False):
            row[index] = value
    if warn:
        warn_nonfinite(history, [int(history.steps[index]) for index in sorted(found) if found[index] is None])
    return results


def _in_parts(
    history: History,
    functions: Sequence[Callable[[FrameGram], Any]],
    compute: Compute,
    partial: PartialSums,
    present: Sequence[int],
) -> dict[int, list[Any] | None]:
    """The values of the job of an array, which are saved; or of all jobs, from what they have saved."""
    about = described(history, compute.rows_of(history), functions)
    if not partial.merges:
        if not partial.is_saved("gram", about):
            partial.save("gram", about, dict(_mapped(history, functions, compute, partial.shard.take(present))))
        raise partial.saved()
    parts = partial.load("gram", about, functions)
    return {index: outcome for part in parts for index, outcome in part.items()}


def _mapped(
    history: History, functions: Sequence[Callable[[FrameGram], Any]], compute: Compute, present: Sequence[int]
) -> Iterator[tuple[int, list[Any] | None]]:
    """The values of the functions by index of the step, as they are ready; None where weights are not all finite."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows, device = compute.rows_of(history), compute.task_device
    count, done = max(min(compute.workers, len(present)), 1), 0
    compute.progress(0, len(present))
    with ExitStack() as stack:
        pool = compute.pool
        if pool is None:
            # One BLAS thread per thread of the pool: more threads than cores would wait for one another.
            stack.enter_context(threadpool_limits(1, user_api="blas"))
            pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="gram"))
        for local, group in _groups(history, present, compute.progress):
            # Each job has a history of one step, because weights in memory are sent to another process with the task.
            jobs = (
                (i, (_task, local[at : at + 1], tuple(functions), rows, compute.precision, device))
                for at, i in enumerate(group)
            )
            for index, outcome in run_jobs(pool, jobs, ahead=2 * count):
                yield index, outcome
                done += 1
                if not _is_grouped(history):  # else their arrival has been reported
                    compute.progress(done, len(present))


def _groups(history: History, present: Sequence[int], progress: Progress) -> Iterator[tuple[History, Sequence[int]]]:
    """Histories with whole frames, and the indices of their steps: one, or of a history that is streamed several."""
    steps = history.steps.tolist()
    if not _is_grouped(history):
        yield history.select([steps[index] for index in present]), present
        return
    assert history.remote is not None
    before = 0
    for group in history.remote.groups(present):
        arrived = partial(_arrived, progress, before, len(present))
        before += len(group)
        with history.read_ranges([steps[i] for i in group], [(0, history.remote.frame_size)], arrived) as whole:
            yield replace(whole, frame_shape=history.frame_shape), group


def _is_grouped(history: History) -> bool:
    """Whether whole frames are read here for several tasks. Otherwise each task reads its own."""
    return history.remote is not None and not history.remote.reads_anywhere


def _arrived(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report that `done` frames of a group have arrived, after `before` of other groups."""
    progress(before + done, total)


def _task(
    history: History, functions: tuple[Callable[[FrameGram], Any], ...], rows: int, precision: Precision, device: str
) -> list[Any] | None:
    """Apply the functions to a history of one step. A module-level function, so that another process can run it."""
    frame = history.frame(0)
    assert frame is not None  # jobs are made for present steps only
    found = frame_gram(frame[:rows], precision=precision, device=exact_device(device))
    return None if found is None else [function(found) for function in functions]


def frame_gram(weights: NDArray[Any], *, precision: Precision = "float32", device: str = "cpu") -> FrameGram | None:
    """The Gram matrix of the weights of one step.

    Parameters
    ----------
    weights : array, shape (…, d)
        float16, bfloat16, float32 or float64. Leading axes are merged; a vector is one column.
    precision, device
        As in `Compute`. float64 weights, and all weights on another device than the CPU, are computed in float64.

    Returns
    -------
    FrameGram or None
        None if the weights are not all finite.

    Raises
    ------
    PythiaDynError
        The weights are finite, but their squares are not.
    """
    matrix = weights.reshape(-1, weights.shape[-1]) if weights.ndim > 1 else weights.reshape(-1, 1)
    if device != "cpu" or weights.dtype == np.float64:
        precision = "float64"
    gram, total = _on_device(matrix, device) if device != "cpu" else _on_cpu(matrix, precision)
    if not np.isfinite(gram).all():
        with np.errstate(invalid="ignore"):  # bfloat16 warns of signalling NaNs
            finite = np.isfinite(matrix).all()
        if finite:
            raise PythiaDynError("the weights are too large for their squares; scale them")
        return None
    eigenvalues = np.linalg.eigvalsh(gram)[::-1][: min(matrix.shape)].astype(np.float64)
    if precision == "float32" and eigenvalues[-1] <= _FLOAT64_BELOW * eigenvalues[0]:
        return frame_gram(weights, precision="float64")
    return FrameGram(
        weights=matrix,
        gram=gram,
        mean_row=total / len(matrix),
        eigenvalues=eigenvalues,
        resolution=_RESOLUTION[precision],
    )


def _on_cpu(matrix: NDArray[Any], precision: Precision) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Gram matrix of the smaller side, and the sum of the rows, shape (d,)."""
    array = kernel_array(matrix)
    length, width = matrix.shape
    side = min(length, width)
    padded = -(-side // TILE) * TILE
    work = workspace(padded, gram_kernels.COLUMN_BLOCK, precision)
    gram, total = np.zeros((padded, padded)), np.zeros(width)
    address, like = np.uint64(array.ctypes.data), np.zeros(1, array.dtype)
    if length < width:
        gram_kernels.row_gram(address, like, length, work, gram, total)
    else:
        gram_kernels.column_gram(address, like, 0, length, work, gram, total)
    lower = np.tril(gram[:side, :side])
    return lower + np.tril(lower, -1).T, total


def _on_device(matrix: NDArray[Any], device: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same sums on a CUDA device, in float64."""
    import torch

    length, width = matrix.shape
    is_wide = length < width
    side = min(length, width)
    gram = torch.zeros((side, side), dtype=torch.float64, device=device)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    chunk = max(_DEVICE_ELEMENTS // side, 1)
    for start in range(0, max(length, width), chunk):
        stop = start + chunk
        part = to_device(np.ascontiguousarray(matrix[:, start:stop]) if is_wide else matrix[start:stop], device)
        gram += part @ part.T if is_wide else part.T @ part
        total[slice(start, stop) if is_wide else slice(None)] += part.sum(dim=0)
    return gram.cpu().numpy(), total.cpu().numpy()
