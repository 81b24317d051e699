"""The Gram matrix WᵀW of each step.

The (v, d) matrix of a step is read once and never decomposed; singular values and projections follow from the (d, d)
Gram matrix. It goes step by step: the Gram matrices of all steps at once would not fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.frames import carrier, rows_kept, warn_nonfinite, workers
from pythia_dynamics.sweep.sweep import run_jobs

__all__ = ["FrameGram", "frame_gram", "over_grams"]


_RESOLUTION = {"float32": 1e-7, "float64": 1e-13}


_ENOUGH = 1e-6  # of the largest eigenvalue: a smaller one is a matter for float64


_ON_DEVICE = 1 << 24  # weights of a step on a device at a time: every thread has its own


Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class FrameGram:
    """The Gram matrix of one step's weights W of shape (v, d), d the last axis.

    `gram` = WᵀW (d, d) and `mean_row` (d,) are float64; `eigenvalues` are those of `gram` in descending order, the
    first min(v, d) of them. Eigenvalues below `resolution` times the largest are lost in rounding.
    """

    rows: int
    gram: NDArray[np.float64]
    mean_row: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    resolution: float


def over_grams(
    history: History,
    functions: Sequence[Callable[[FrameGram], Any]],
    *,
    drop_padding: int | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    warn: bool = True,
) -> list[list[Any]]:
    """Apply `functions` to the Gram matrix of each step; one list per function with one value per step.

    None where the step is missing or its weights are not finite; the latter are named in a `NonFiniteWarning`, unless
    `warn` is false because they have been already.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if precision not in _RESOLUTION:
        raise UnknownNameError("precision", precision, _RESOLUTION)
    if device != "cpu":
        from pythia_dynamics.device import resolve_exact_device

        device = resolve_exact_device(device)
    length = len(history.steps)
    results: list[list[Any]] = [[None] * length for _ in functions]
    present = np.flatnonzero(history.present).tolist()
    if not present:
        raise PythiaDynError(f"no step of {history.name} has weights to analyse")
    # each job has its own step alone: weights in memory travel with a task to another process
    jobs = [
        (i, (_one, history.select([int(history.steps[i])]), tuple(functions), drop_padding, precision, device))
        for i in present
    ]
    count = min(workers(threads), len(jobs))
    spoilt = []
    progress(0, len(jobs))
    with ExitStack() as stack:
        pool = executor
        if pool is None:
            # one thread of BLAS for each of ours: sharing the cores twice over, they wait for one another
            stack.enter_context(threadpool_limits(1, user_api="blas"))
            pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="spectrum"))
        for done, (index, outcome) in enumerate(run_jobs(pool, jobs, ahead=2 * count), 1):
            if outcome is None:
                spoilt.append(int(history.steps[index]))
            else:
                for row, value in zip(results, outcome, strict=True):
                    row[index] = value
            progress(done, len(jobs))
    if warn:
        warn_nonfinite(history, sorted(spoilt))
    return results


def _one(
    history: History,
    functions: tuple[Callable[[FrameGram], Any], ...],
    drop_padding: int | None,
    precision: Precision,
    device: str,
) -> list[Any] | None:
    """The work of a history of one step, as a task that can be sent to another process."""
    frame = history.frame(0)
    assert frame is not None  # only present steps are asked for
    found = frame_gram(frame[: rows_kept(history, drop_padding)], precision=precision, device=device)
    return None if found is None else [function(found) for function in functions]


def frame_gram(weights: NDArray[Any], *, precision: Precision = "float32", device: str = "cpu") -> FrameGram | None:
    """The Gram matrix of weights of shape (…, d) (a vector is one column); None where they are not all finite."""
    matrix = weights.reshape(-1, weights.shape[-1]) if weights.ndim > 1 else weights.reshape(-1, 1)
    if device != "cpu" or weights.dtype == np.float64:
        precision = "float64"
    gram, total = _on_device(matrix, device) if device != "cpu" else _on_cpu(matrix, precision)
    if not np.isfinite(gram).all():
        with np.errstate(invalid="ignore"):  # bfloat16 remarks on signalling NaNs
            finite = np.isfinite(matrix).all()
        if finite:
            raise PythiaDynError("the weights are too large for their squares; scale them")
        return None
    eigenvalues = np.linalg.eigvalsh(gram)[::-1][: min(matrix.shape)].astype(np.float64)
    if precision == "float32" and eigenvalues[-1] <= _ENOUGH * eigenvalues[0]:
        return frame_gram(weights, precision="float64")
    return FrameGram(
        rows=len(matrix),
        gram=gram,
        mean_row=total / len(matrix),
        eigenvalues=eigenvalues,
        resolution=_RESOLUTION[precision],
    )


def _on_cpu(matrix: NDArray[Any], precision: Precision) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """WᵀW and the sum of the rows."""
    carried = carrier(matrix)
    length, width = matrix.shape
    padded = -(-width // kernels.TILE) * kernels.TILE
    work = kernels.workspace(padded, kernels.COLUMN_BLOCK, precision)
    gram, total = np.zeros((padded, padded)), np.zeros(width)
    address = np.uint64(carried.ctypes.data)
    kernels.column_gram(address, np.zeros(1, carried.dtype), 0, length, work, gram, total)
    lower = np.tril(gram[:width, :width])
    return lower + np.tril(lower, -1).T, total


def _on_device(matrix: NDArray[Any], device: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same on a CUDA device, in float64 throughout."""
    import torch

    width = matrix.shape[1]
    gram = torch.zeros((width, width), dtype=torch.float64, device=device)
    total = torch.zeros(width, dtype=torch.float64, device=device)
    piece = max(_ON_DEVICE // width, 1)
    for start in range(0, len(matrix), piece):
        rows = np.array(matrix[start : start + piece])
        if rows.dtype.itemsize == 2:
            kind = torch.float16 if rows.dtype == np.float16 else torch.bfloat16
            wide = torch.from_numpy(rows.view(np.int16)).to(device).view(kind).to(torch.float64)
        else:
            wide = torch.from_numpy(rows).to(device).to(torch.float64)
        gram += wide.T @ wide
        total += wide.sum(dim=0)
    return gram.cpu().numpy(), total.cpu().numpy()
