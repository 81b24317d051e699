"""Weights watched while they train: copied into a store, and measured as they pass.

`WeightMonitor` is told of a model now and then; what it knows afterwards is what the offline analyses find in its
store, without reading the history again: only the two-time Gram row does that, as it must.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.store import Store, TensorSpec
from pythia_dynamics.measures.displacement import random_walk
from pythia_dynamics.measures.stationarity import SCALE
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.counts import Moments

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["COLUMNS", "WeightMonitor", "find_tensors"]

COLUMNS: Mapping[str, str] = {
    "frobenius_norm": "Frobenius norm of W",
    "order_parameter": "order parameter b = ‖W‖_F / d_model",
    "msd": "MSD, demeaned over weights (Eq 5)",
    "msd_null": "MSD of a random walk, demeaned over weights",
    "msd_null_sd": "standard deviation of the MSD of a random walk",
    "displacement": "mean squared displacement from the first step",
    "moved": "squared displacement since the record before",
    "displacement_rate": f"relative displacement per {SCALE} steps",
    "cosine_first": "cosine with the weights of the first record",
    "cosine_before": "cosine with the weights of the record before",
    "mean": "mean weight",
    "std": "standard deviation of the weights",
    "skewness": "skewness",
    "kurtosis": "excess kurtosis",
    "bimodality": "Sarle's bimodality coefficient",
    "nonfinite": "number of weights that are not finite",
}
"""What is known of each record; names and definitions are those of the offline analyses."""

_PIECE = 1 << 20  # weights that are widened at a time
_ROW = 1024  # weights whose products are added up in float32, as in the Gram matrix of the sweep
_RENAMED = {"gpt_neox": {"lm_head.weight": UNEMBEDDING}}
"""Parameters whose name in the files is another one than in memory, by type of model."""


@dataclass
class _Track:
    """What is known of one tensor after each record.

    `integral` is Σ_t (w_t − m_t), float64, the only large array in memory; `frames` are those in the store, of the
    records whose weights are all finite, mapped.
    """

    size: int
    width: int
    with_gram: bool = True
    steps: list[int] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    products: list[NDArray[np.float64]] = field(default_factory=list)
    integral: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    frames: list[NDArray[Any]] = field(default_factory=list)

    def take(self, step: int, frame: NDArray[Any]) -> None:
        """Take in the weights (N,) of a step, as they lie in the store."""
        moments = _moments(frame)
        earlier = self.frames if self.with_gram else [*self.frames[:1], *self.frames[-1:]]
        row = dict.fromkeys(COLUMNS, float("nan")) | {"nonfinite": float(moments.nonfinite[0])}
        self.steps.append(step)
        self.rows.append(row)
        if row["nonfinite"]:
            self.products.append(np.empty(0))
            return
        for name in ("mean", "std", "skewness", "kurtosis", "bimodality"):
            row[name] = float(getattr(moments, name)[0])
        products = np.array([*(_dot(other, frame) for other in earlier), float(moments.square_sum[0])])
        self.products.append(products)
        if not len(self.integral):
            self.integral = np.zeros(self.size)
        integrated = moved = since_first = 0.0
        mean = row["mean"]
        origin, before_it = (earlier[0], earlier[-1]) if earlier else (frame, frame)
        for i in range(0, self.size, _PIECE):
            pieces = [_wide(array[i : i + _PIECE]) for array in (frame, before_it, origin)]
            sums = _advance(pieces[0], pieces[1], pieces[2], self.integral[i : i + _PIECE], mean)
            integrated, moved, since_first = integrated + sums[0], moved + sums[1], since_first + sums[2]
        row["frobenius_norm"] = float(np.sqrt(products[-1]))
        row["order_parameter"] = row["frobenius_norm"] / self.width
        row["displacement"] = since_first / self.size
        row["moved"] = moved
        free = self.size - 1 if self.size > 1 else np.nan
        row["msd"] = integrated / free
        known = self.finite()
        sizes = np.array([other["moved"] for other in known])
        start = self.size * known[0]["std"] ** 2
        expected, spread = random_walk(start, sizes, self.size)
        row["msd_null"], row["msd_null_sd"] = float(expected[-1]), float(spread[-1])
        if earlier:
            norms = [other["frobenius_norm"] for other in known]
            before = [step for step, other in zip(self.steps, self.rows, strict=True) if not other["nonfinite"]][-2]
            with np.errstate(divide="ignore", invalid="ignore"):
                row["displacement_rate"] = float(
                    np.float64(np.sqrt(moved)) / row["frobenius_norm"] * SCALE / (step - before)
                )
                row["cosine_first"] = float(products[0] / np.float64(norms[0]) / row["frobenius_norm"])
                row["cosine_before"] = float(products[-2] / np.float64(norms[-2]) / row["frobenius_norm"])
        self.frames.append(frame)

    def finite(self) -> list[dict[str, float]]:
        """The rows of records whose weights were all finite."""
        return [row for row in self.rows if not row["nonfinite"]]


class WeightMonitor:
    """Copies tensors of a model into a store, and measures them, each time it is told of a step.

    `path` is the store, for instance ``cache/my-run.zarr``: every analysis reads it by that name. `tensors` are names
    of parameters or globs; by default the head, W_U, as `get_output_embeddings` of the model gives it (stored as
    ``embed_out.weight`` for GPT-NeoX, as in its files; a tied head under the head's name).

    Memory: eight bytes a weight; the rest is in the store. A record reads all earlier ones for the two-time Gram row;
    `with_gram=False` leaves that out.

    A store that exists is gone on with: what it holds is measured again when the next step is recorded. Raises
    `StoreError` for a store of another source.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        tensors: str | Sequence[str] | None = None,
        source: str | None = None,
        with_gram: bool = True,
    ) -> None:
        path = Path(path)
        self.path = path if path.suffix == ".zarr" else path.with_name(f"{path.name}.zarr")
        self.patterns = (tensors,) if isinstance(tensors, str) else None if tensors is None else tuple(tensors)
        self.with_gram = with_gram
        self.seconds = 0.0
        self._source = source
        self._store: Store | None = None
        self._tracks: dict[str, _Track] = {}

    @property
    def store(self) -> Store:
        """The store, made if need be."""
        if self._store is None:
            self._store = Store.create(self.path, source=self._source or str(self.path.absolute()))
            for name in self._store.tensors:
                self._rebuild(name)
        return self._store

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that have been recorded."""
        return tuple(self._tracks)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have been recorded, in order."""
        return tuple(sorted({step for track in self._tracks.values() for step in track.steps}))

    @property
    def latest(self) -> dict[str, dict[str, float]]:
        """The last record of each tensor, by the names of `COLUMNS`."""
        return {name: dict(track.rows[-1]) for name, track in self._tracks.items() if track.rows}

    def record(self, step: int, model: torch.nn.Module) -> dict[str, dict[str, float]]:
        """Copy the weights of `model` as those of `step` and measure them; returns `latest`.

        Steps come in increasing order. Raises `PythiaDynError` for one that does not, `UnknownNameError` for tensors
        that the model does not have.
        """
        began = time.perf_counter()
        found = find_tensors(model, self.patterns)
        store = self.store
        if self.steps and step <= self.steps[-1]:
            raise PythiaDynError(
                f"step {step} comes after step {self.steps[-1]} in {self.path}; name another store, or rewind() it"
            )
        frames = {name: _to_numpy(tensor, name) for name, tensor in found.items()}
        store.ensure([TensorSpec(name, frame.dtype.name, frame.shape) for name, frame in frames.items()], [step])
        for name, frame in frames.items():
            store.write(name, step, frame, {"commit": None, "file": "written while training"})
            track = self._tracks.setdefault(name, _Track(frame.size, frame.shape[-1], self.with_gram))
            track.take(step, self._stored(name, step))
        self.seconds += time.perf_counter() - began
        return self.latest

    def rewind(self, step: int) -> None:
        """Forget every record after `step`, because training goes on from there; their places stay, as gaps."""
        for name in self.store.tensors:
            later = [number for number in self.store.records(name) if number > step]
            for number in later:
                self.store.remove_record(name, number)
            reasons = dict.fromkeys(later, f"dropped when training went on from step {step}")
            if later:
                self.store.record_missing(name, reasons)
                self._rebuild(name)

    def holds(self, step: int, model: torch.nn.Module) -> bool:
        """Whether the weights recorded at `step` are those of `model`; True where none are recorded at that step."""
        for name, tensor in find_tensors(model, self.patterns).items():
            if name in self._tracks and step in self._tracks[name].steps:
                stored, here = self._stored(name, step), _to_numpy(tensor, name).reshape(-1)
                if stored.shape != here.shape or stored.tobytes() != here.tobytes():
                    return False
        return True

    def results(self, tensor: str | None = None) -> xr.Dataset:
        """Everything known of a tensor (default: the first one) over `step`: `COLUMNS`, and `gram` (step, other_step).

        Records with weights that are not finite are NaN. Raises `UnknownNameError` for a tensor not recorded.
        """
        import xarray as xr

        name = tensor if tensor is not None else next(iter(self._tracks), UNEMBEDDING)
        if name not in self._tracks:
            raise UnknownNameError("tensor", name, self._tracks, where=str(self.path))
        track = self._tracks[name]
        units = {"frobenius_norm": "weight", "mean": "weight", "std": "weight", "order_parameter": "weight"}
        data: dict[str, Any] = {
            column: (
                "step",
                np.array([row[column] for row in track.rows]),
                {"long_name": label, "units": units.get(column, "1")},
            )
            for column, label in COLUMNS.items()
        }
        if self.with_gram:
            length = len(track.steps)
            gram = np.full((length, length), np.nan)
            at = np.array([i for i, row in enumerate(track.rows) if not row["nonfinite"]], dtype=int)
            for place, i in enumerate(at):
                gram[i, at[: place + 1]] = gram[at[: place + 1], i] = track.products[i]
            data["gram"] = (("step", "other_step"), gram, {"long_name": "Gram matrix of the weights"})
        steps = np.array(track.steps, dtype=np.int64)
        attributes = {"source": self.store.source, "tensor": name}
        return xr.Dataset(data, {"step": steps, "other_step": steps}, attributes)

    def _rebuild(self, name: str) -> None:
        spec = self.store.tensors[name]
        size = int(np.prod(spec.shape, dtype=np.int64))
        self._tracks[name] = track = _Track(size, spec.shape[-1], self.with_gram)
        for step in sorted(self.store.records(name)):
            if self.store.has(name, step):
                track.take(step, self._stored(name, step))

    def _stored(self, name: str, step: int) -> NDArray[Any]:
        """The weights (N,) of a step where they lie."""
        spec, size = self.store.tensors[name], self._tracks[name].size
        return np.memmap(self.store.chunk_path(name, step), dtype=spec.numpy_dtype, mode="r", shape=(size,))


def find_tensors(model: torch.nn.Module, patterns: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a model that `patterns` (names or globs) ask for, by the name they have in files.

    None asks for the head. Wrappers (`DistributedDataParallel`, `torch.compile`) are looked through. A tied tensor is
    found by either name. Raises `UnknownNameError`, or `PythiaDynError` for a model without a head.
    """
    model = _unwrapped(model)
    renamed = _RENAMED.get(getattr(getattr(model, "config", None), "model_type", ""), {})
    named = {renamed.get(name, name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
    if patterns is None:
        get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
        head = get_head()
        if head is None:
            raise PythiaDynError(
                f"{type(model).__name__} has no output embeddings; name what to record, tensors=[...]: "
                f"{', '.join(list(named)[:4])} …"
            )
        place = next(name for name, module in model.named_modules() if module is head)
        name = f"{place}.weight"
        return {renamed.get(name, name): head.weight}
    found: dict[str, torch.Tensor] = {}
    for pattern in patterns:
        known = {renamed.get(pattern, pattern)} | {name for name in named if fnmatchcase(name, pattern)}
        matched = [name for name in named if name in known]
        if not matched:
            raise UnknownNameError("tensor", pattern, named, where=type(model).__name__)
        found |= {name: named[name] for name in matched}
    return found


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        assert isinstance(inner, torch.nn.Module)
        model = inner
    return model


def _to_numpy(tensor: torch.Tensor, name: str) -> NDArray[Any]:
    if type(tensor.detach()).__name__ == "DTensor" or tensor.numel() == 0:
        raise PythiaDynError(f"{name} is sharded over processes; record a model that is whole, or gather it first")
    here = tensor.detach().to("cpu").contiguous()
    if here.dtype == torch.bfloat16:
        bits: NDArray[Any] = here.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    if here.dtype not in (torch.float16, torch.float32, torch.float64):
        raise StoreError(f"{name} is {here.dtype}; weights must be float16, bfloat16, float32 or float64")
    array: NDArray[Any] = here.numpy()
    return array


def _moments(frame: NDArray[Any]) -> Moments:
    """The moments of N weights, by the power sums about a provisional mean that `density` uses."""
    n = frame.size
    shift = float(np.nan_to_num(frame[:: max(n // 4096, 1)].astype(np.float64)).mean())
    sums = np.zeros(5)
    least, greatest = np.inf, -np.inf
    for i in range(0, n, _PIECE):
        piece = frame[i : i + _PIECE]
        s1, s2, s3, s4, low, high, bad = kernels.power_sums(_wide(piece), shift)
        sums += (s1, s2, s3, s4, bad)
        least, greatest = min(least, low), max(greatest, high)
    s1, s2, s3, s4 = sums[:4] / n
    with np.errstate(all="ignore"):
        m2 = np.maximum(s2 - s1**2, 0)
        m3 = s3 - 3 * s1 * s2 + 2 * s1**3
        m4 = s4 - 4 * s1 * s3 + 6 * s1**2 * s2 - 3 * s1**4
        values = np.array([shift + s1, np.sqrt(m2), m3 / m2**1.5, m4 / m2**2 - 3, least, greatest])
    if sums[4]:
        values[:] = np.nan
    mean, std, skewness, kurtosis, lowest, highest = values[:, None]
    return Moments(n, mean, std, skewness, kurtosis, lowest, highest, nonfinite=sums[4:])


def _dot(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Σ w v: float32 inside rows of 1,024 weights, float64 over them."""
    total = 0.0
    for i in range(0, first.size, _PIECE):
        a, b = _wide(first[i : i + _PIECE]), _wide(second[i : i + _PIECE])
        whole = a.size - a.size % _ROW
        rows = np.einsum("ij,ij->i", a[:whole].reshape(-1, _ROW), b[:whole].reshape(-1, _ROW))
        total += float(rows.sum(dtype=np.float64)) + float(a[whole:].astype(np.float64) @ b[whole:].astype(np.float64))
    return total


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    """Weights as the loops take them: float32, in which 16-bit ones are exact, or float64; no copy of those."""
    kind: Any = np.float64 if values.dtype == np.float64 else np.float32
    wide: NDArray[Any] = np.asarray(values).astype(kind, copy=False)
    return wide


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract", "arcp"})
def _advance(w: Any, before: Any, first: Any, integral: Any, mean: float) -> tuple[float, float, float]:
    """Add w − mean to the integral; the sums of its squares and of those of w − before and w − first, in float64."""
    squares = moved = since_first = 0.0
    for i in range(w.size):
        x = np.float64(w[i])
        total = integral[i] + (x - mean)
        integral[i] = total
        squares += total * total
        moved += (x - np.float64(before[i])) ** 2
        since_first += (x - np.float64(first[i])) ** 2
    return squares, moved, since_first
