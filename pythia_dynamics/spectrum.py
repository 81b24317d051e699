"""The singular values of the weights at every step, and what they say: entropy, ranks, conditioning, power law.

All of it comes from the d×d Gram matrix G = WᵀW of each step, so the (v, d) matrix is read once and never decomposed.
Unlike the other analyses this one goes step by step: the Gram matrices of all steps at once would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics import kernels
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history import History, as_history
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep import carrier, rows_kept, run_jobs, warn_missing, warn_nonfinite, workers

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FrameGram", "Measures", "frame_gram", "from_measures", "measure", "over_grams", "power_law", "spectrum"]

_RESOLUTION = {"float32": 1e-7, "float64": 1e-13}
_ENOUGH = 1e-6  # of the largest eigenvalue: a smaller one is a matter for float64
_LEAST_FOR_POWER_LAW = 10
_CUTS = 64  # cut-offs tried at once
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


def spectrum(
    history: Any,
    *,
    drop_padding: int | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Singular values of the weights at every step and what follows from them.

    Returns a dataset over `step`: `singular_values` (step, index), descending, and with p_i = σ_i / Σσ

    * `entropy` H = −Σ p_i ln p_i in nats and `effective_rank` exp(H) (Roy & Vetterli 2007);
    * `stable_rank` ‖W‖_F² / σ_1²;
    * `condition_number` σ_1 / σ_min, infinite where σ_min is not resolved;
    * `alpha`, the exponent of the density of the eigenvalues σ² above a cut-off, as WeightWatcher fits it (see
      `power_law`), NaN with fewer than ten eigenvalues;
    * `mean_row_fraction` v‖w̄‖² / ‖W‖_F², the share of the weight that all rows have in common (Godey et al. 2024).

    ``precision="float32"`` multiplies blocks of 1,024 rows in float32 and adds them in float64, which resolves
    eigenvalues of WᵀW down to 1e-7 of the largest; a step that has some below 1e-6 is computed once more in float64,
    which goes to 1e-13. ``"float64"`` does that to all of them and takes twice as long. A CUDA `device` always works in
    float64. Steps are shared out among `threads`, each of which needs a few (d, d) matrices; an `executor` gets one
    task per step. `progress` counts steps. Missing steps and steps with weights that are not finite are NaN.
    """
    history = as_history(history)
    warn_missing(history)
    (rows,) = over_grams(
        history,
        [measure],
        drop_padding=drop_padding,
        precision=precision,
        device=device,
        threads=threads,
        executor=executor,
        progress=progress,
    )
    return from_measures(history, rows)


@dataclass(frozen=True)
class Measures:
    """What `spectrum` says of one step."""

    singular_values: NDArray[np.float64]
    entropy: float
    effective_rank: float
    stable_rank: float
    condition_number: float
    alpha: float
    mean_row_fraction: float


_LABELS = {
    "entropy": ("entropy of the singular values", "nat"),
    "effective_rank": ("effective rank exp(H)", "1"),
    "stable_rank": ("stable rank ‖W‖_F² / σ₁²", "1"),
    "condition_number": ("condition number σ₁ / σ_min", "1"),
    "alpha": ("power-law exponent of the eigenvalue density", "1"),
    "mean_row_fraction": ("share of the weight in the mean row", "1"),
}


def measure(frame: FrameGram) -> Measures:
    """The measures of one step; NaN for all-zero weights."""
    eigenvalues = np.maximum(frame.eigenvalues, 0)
    resolved = eigenvalues[eigenvalues > frame.resolution * eigenvalues[0]]
    sigma = np.sqrt(eigenvalues)
    if not len(resolved):
        return Measures(sigma, *[np.nan] * 6)
    p = np.sqrt(resolved) / np.sqrt(resolved).sum()  # the others are rounding
    entropy = float(-(p * np.log(p)).sum())
    norm = float(np.trace(frame.gram))
    return Measures(
        singular_values=sigma,
        entropy=entropy,
        effective_rank=float(np.exp(entropy)),
        stable_rank=norm / float(eigenvalues[0]),
        condition_number=float(sigma[0] / sigma[-1]) if len(resolved) == len(sigma) else np.inf,
        alpha=power_law(resolved),
        mean_row_fraction=frame.rows * float(frame.mean_row @ frame.mean_row) / norm,
    )


def from_measures(history: History, rows: Sequence[Measures | None]) -> xr.Dataset:
    """The dataset of `spectrum` from the measures of each step, None where there is none."""
    import xarray as xr

    width = max((len(row.singular_values) for row in rows if row is not None), default=0)
    sigma = np.full((len(rows), width), np.nan)
    columns = {name: np.full(len(rows), np.nan) for name in _LABELS}
    for t, row in enumerate(rows):
        if row is not None:
            sigma[t] = row.singular_values
            for name, column in columns.items():
                column[t] = getattr(row, name)
    data: dict[str, Any] = {
        "singular_values": (("step", "index"), sigma, {"long_name": "singular values of W", "units": "1"})
    }
    for name, (label, units) in _LABELS.items():
        data[name] = ("step", columns[name], {"long_name": label, "units": units})
    data["alpha"][2]["method"] = "maximum likelihood above the cut-off of least Kolmogorov-Smirnov distance"
    return xr.Dataset(data, coords={"step": history.steps, "index": np.arange(width)}, attrs=dict(history.provenance))


def power_law(eigenvalues: NDArray[np.float64]) -> float:
    """The exponent α of a density λ^−α, fitted to the eigenvalues from the cut-off that fits best.

    The method of WeightWatcher 0.7 (after Clauset, Shalizi & Newman 2009): for every eigenvalue but the largest as
    cut-off x, α = 1 + n / Σ ln(λ/x) over the n eigenvalues from x on; of those with α > 1 the one whose distribution
    function is nearest to the empirical one (Kolmogorov-Smirnov).
    """
    data = np.sort(eigenvalues[eigenvalues > 0])
    count = len(data)
    if count < _LEAST_FOR_POWER_LAW:
        return np.nan
    logs = np.log(data)
    tails = np.cumsum(logs[::-1])[::-1]  # Σ_{j≥i} ln λ_j
    place = np.arange(count)
    best, alpha = np.inf, np.nan
    for start in range(0, count - 1, _CUTS):
        cuts = place[start : min(start + _CUTS, count - 1), None]
        n = count - cuts
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # equal eigenvalues, and those below a cut
            exponents = 1 + n / (tails[cuts] - n * logs[cuts])
            fitted = 1 - np.exp((1 - exponents) * (logs[start:] - logs[cuts]))
        gaps = np.where(place[start:] >= cuts, np.abs(fitted - (place[start:] - cuts) / n), 0)
        distances = np.where(np.isfinite(exponents) & (exponents > 1), gaps.max(axis=1, keepdims=True), np.inf)
        least = int(np.argmin(distances))
        if distances[least, 0] < best:
            best, alpha = distances[least, 0], exponents[least, 0]
    return float(alpha)


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
