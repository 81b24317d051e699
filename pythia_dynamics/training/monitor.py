"""Recording weights during training: copies in a store, and statistics that are updated with each copy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.formats.slices import select
from pythia_dynamics.checkpoints.learning_rate import LoggedLearningRate
from pythia_dynamics.checkpoints.registry import EMBED_OUT, FILE_NAMES
from pythia_dynamics.checkpoints.roles import ROLES, UNEMBEDDING, Role, find_roles
from pythia_dynamics.errors import PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store
from pythia_dynamics.objects import ObjectPath, as_place
from pythia_dynamics.training.online import COLUMNS, OnlineStatistics

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["WeightMonitor", "find_tensors"]

_RATE_FROM = "the optimiser, recorded while training"
"""Where the learning rate of a store is from that a monitor writes."""


class WeightMonitor:
    """Copies tensors of a model into a store at given steps, and measures them.

    The results are those that the analyses find in the store afterwards. Memory: eight bytes a weight; the rest is in
    the store. An existing store is continued: its records are measured again before the next one.

    Parameters
    ----------
    path
        The store, for instance ``cache/my-run.zarr``. Every analysis finds it by that name.
    tensors
        Names of parameters, globs, ``all`` or roles (``unembedding``, ``embedding``). Default: the unembedding W_U, as
        `get_output_embeddings` of the model gives it. That of GPT-NeoX is stored as ``embed_out.weight``, as in its
        files; a tied one under the head's name.
    source
        The origin of the weights that a new store names. Default: its path.
    with_gram
        Whether each record's row of the two-time Gram matrix and of the displacements is computed, which reads all
        earlier records. The stationary rule (`StationarityRule`) needs them.

    Raises
    ------
    StoreError
        On first use, for a store of another source.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        tensors: str | Sequence[str] | None = None,
        source: str | None = None,
        with_gram: bool = True,
    ) -> None:
        if isinstance(as_place(path), ObjectPath):  # all records are mapped into memory, to compare the next one
            raise PythiaDynError(f"a training is recorded into a directory, not into {path}; copy the store afterwards")
        path = Path(path)
        self.path = path if path.suffix == ".zarr" else path.with_name(f"{path.name}.zarr")
        self.patterns = (
            (tensors,) if isinstance(tensors, str) else (UNEMBEDDING,) if tensors is None else tuple(tensors)
        )
        self.with_gram = with_gram
        self.seconds = 0.0
        self._source = source
        self._store: Store | None = None
        self._statistics: dict[str, OnlineStatistics] = {}

    @property
    def store(self) -> Store:
        """The store. It is created, or opened and measured, on first use."""
        if self._store is None:
            self._store = Store.create(self.path, source=self._source or str(self.path.absolute()))
            for name in self._store.tensors:
                self._rebuild(name)
        return self._store

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the recorded tensors."""
        return tuple(self._statistics)

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps, in order."""
        return tuple(sorted({step for known in self._statistics.values() for step in known.steps}))

    @property
    def latest(self) -> dict[str, dict[str, float]]:
        """The last record of each tensor, by the names of `COLUMNS`."""
        return {name: dict(known.rows[-1]) for name, known in self._statistics.items() if known.rows}

    def record(
        self, step: int, model: torch.nn.Module, *, learning_rate: float | None = None
    ) -> dict[str, dict[str, float]]:
        """Copy the weights of a model and measure them.

        Parameters
        ----------
        step
            The training step, larger than all recorded ones.
        model
            The model.
        learning_rate
            The learning rate of the update that follows, as ``optimizer.param_groups[0]["lr"]`` has it. It becomes the
            coordinate `learning_rate` of the store; None where it is not known.

        Returns
        -------
        dict
            The new record of each tensor, as `latest`.

        Raises
        ------
        PythiaDynError
            For a step that is not larger than the recorded ones, or a learning rate that is negative or not finite.
        UnknownNameError
            For tensors that the model does not have.
        """
        began = time.perf_counter()
        found = find_tensors(model, self.patterns)
        store = self.store
        if self.steps and step <= self.steps[-1]:
            raise PythiaDynError(
                f"step {step} comes after step {self.steps[-1]} in {self.path}; name another store or call drop_after()"
            )
        rate = None if learning_rate is None else LoggedLearningRate((step,), (float(learning_rate),), _RATE_FROM)
        frames = {name: _to_numpy(tensor, name) for name, tensor in found.items()}
        roles = {name: _roles(_unwrapped(model), tensor) for name, tensor in found.items()}
        specs = [TensorSpec(name, frame.dtype.name, frame.shape, roles[name]) for name, frame in frames.items()]
        store.ensure(specs, [step], learning_rate=rate)
        for name, frame in frames.items():
            store.write(name, step, frame, {"commit": None, "file": "written while training"})
            known = self._statistics.setdefault(name, OnlineStatistics(frame.size, frame.shape[-1], self.with_gram))
            known.add(step, self._stored(name, step))
        self.seconds += time.perf_counter() - began
        return self.latest

    def drop_after(self, step: int) -> None:
        """Drop every record after `step`, from which training resumes. The dropped steps become missing steps."""
        for name in self.store.tensors:
            later = [number for number in self.store.records(name) if number > step]
            for number in later:
                self.store.remove_record(name, number)
            if later:
                self.store.record_missing(name, dict.fromkeys(later, f"dropped when training went on from step {step}"))
                self._rebuild(name)

    def matches(self, step: int, model: torch.nn.Module) -> bool:
        """Whether the weights recorded at `step` are those of `model`; True where none are recorded at that step."""
        for name, tensor in find_tensors(model, self.patterns).items():
            if name in self._statistics and step in self._statistics[name].steps:
                stored, current = self._stored(name, step), _to_numpy(tensor, name).reshape(-1)
                if stored.shape != current.shape or stored.tobytes() != current.tobytes():
                    return False
        return True

    def results(self, tensor: str | None = None) -> xr.Dataset:
        """All statistics of a tensor.

        Parameters
        ----------
        tensor
            Its name; by default the first recorded tensor.

        Returns
        -------
        xarray.Dataset
            The variables `COLUMNS` over `step`, `gram` and `squared_displacement` over (step, other_step); the
            coordinate `learning_rate` where it was recorded. A record with weights that are not finite is NaN, except
            for `nonfinite`.

        Raises
        ------
        UnknownNameError
            For a tensor that is not recorded.
        """
        import xarray as xr

        name = tensor if tensor is not None else next(iter(self._statistics), EMBED_OUT)
        if name not in self._statistics:
            raise UnknownNameError("tensor", name, self._statistics, where=str(self.path))
        known = self._statistics[name]
        data: dict[str, Any] = {}
        for column, label in COLUMNS.items():
            units = "weight" if column in ("frobenius_norm", "mean", "std", "order_parameter") else "1"
            values = np.array([row[column] for row in known.rows])
            data[column] = ("step", values, {"long_name": label, "units": units})
        if self.with_gram:
            length = len(known.steps)
            gram, squared = np.full((2, length, length), np.nan)
            at = np.array([i for i, row in enumerate(known.rows) if not row["nonfinite"]], dtype=int)
            for place, i in enumerate(at):
                gram[i, at[: place + 1]] = gram[at[: place + 1], i] = known.products[i]
                squared[i, at[: place + 1]] = squared[at[: place + 1], i] = known.displaced[i]
            data["gram"] = (("step", "other_step"), gram, {"long_name": "Gram matrix of the weights"})
            about = {"long_name": "squared displacement between two steps", "units": "weight^2", "weights": known.size}
            data["squared_displacement"] = (("step", "other_step"), squared, about)
        steps = np.array(known.steps, dtype=np.int64)
        attributes = {"source": self.store.source, "tensor": name, "learning_rate": self.store.learning_rate_from}
        coordinates: dict[str, Any] = {"step": steps, "other_step": steps}
        if rates := self.store.coordinate("learning_rate"):
            of_steps = [rates.get(step, np.nan) for step in known.steps]
            coordinates["learning_rate"] = ("step", of_steps, {"units": "1"})
        return xr.Dataset(data, coordinates, attributes)

    def last(self, tensor: str) -> NDArray[Any]:
        """The weights (N,) of the last record of a tensor, mapped from the store."""
        return self._stored(tensor, self._statistics[tensor].steps[-1])

    def _rebuild(self, name: str) -> None:
        """Measure the records of a tensor in the store again."""
        spec = self.store.tensors[name]
        size = int(np.prod(spec.shape, dtype=np.int64))
        self._statistics[name] = known = OnlineStatistics(size, spec.shape[-1], self.with_gram)
        for step in step_states(self.store, name).stored:
            known.add(step, self._stored(name, step))

    def _stored(self, name: str, step: int) -> NDArray[Any]:
        """The weights (N,) of a step, mapped from the store."""
        spec, size = self.store.tensors[name], self._statistics[name].size
        path = self.store.chunk_path(name, step)
        assert isinstance(path, Path)
        return np.memmap(path, dtype=spec.numpy_dtype, mode="r", shape=(size,))


def find_tensors(model: torch.nn.Module, patterns: Sequence[str] = (UNEMBEDDING,)) -> dict[str, torch.Tensor]:
    """The tensors of a model that match patterns.

    Parameters
    ----------
    model
        The model, or a wrapper of it (`DistributedDataParallel`, `torch.compile`).
    patterns
        Names of parameters in the model or in its files, globs, ``all`` and roles. A tied tensor is found by either of
        its names.

    Returns
    -------
    dict
        The tensors by the name that they have in files.

    Raises
    ------
    UnknownNameError
        For a pattern that matches nothing.
    CheckpointError
        For a role that no tensor is known to have.
    """
    model = _unwrapped(model)
    file_names = FILE_NAMES.get(getattr(getattr(model, "config", None), "model_type", ""), {})
    named = {file_names.get(name, name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
    places = {module: name for name, module in model.named_modules()}
    roles = {role: f"{places[module]}.weight" for role, module in _embeddings(model).items() if module in places}
    names = select(
        named,
        [file_names.get(pattern, pattern) for pattern in patterns],
        where=type(model).__name__,
        roles={role: file_names.get(name, name) for role, name in roles.items()} or find_roles(named),
    )
    return {name: named[name] for name in names}


def _embeddings(model: torch.nn.Module) -> dict[Role, torch.nn.Module]:
    """The modules of a model that embed and unembed, as one of transformers says."""
    modules: dict[Role, torch.nn.Module] = {}
    for role, name in zip(ROLES, ("get_output_embeddings", "get_input_embeddings"), strict=True):
        with suppress(NotImplementedError):  # transformers raises it for models without embeddings of tokens
            module: Any = getattr(model, name, lambda: None)()
            if isinstance(module, torch.nn.Module) and hasattr(module, "weight"):
                modules[role] = module
    return modules


def _roles(model: torch.nn.Module, tensor: torch.Tensor) -> tuple[Role, ...] | None:
    """What a tensor of a model is for; None where the model does not say, as one that is not of transformers."""
    modules = _embeddings(model)
    return tuple(role for role, module in modules.items() if module.weight is tensor) if modules else None


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside its wrappers."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        assert isinstance(inner, torch.nn.Module)
        model = inner
    return model


def _to_numpy(tensor: torch.Tensor, name: str) -> NDArray[Any]:
    """A copy of a tensor on the CPU, in its own dtype."""
    if type(tensor.detach()).__name__ == "DTensor" or tensor.numel() == 0:
        raise PythiaDynError(f"{name} is sharded over processes; record a model that is whole, or gather it first")
    on_cpu = tensor.detach().to("cpu").contiguous()
    if on_cpu.dtype == torch.bfloat16:
        bits: NDArray[Any] = on_cpu.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    if on_cpu.dtype not in (torch.float16, torch.float32, torch.float64):
        raise StoreError(f"{name} is {on_cpu.dtype}; weights must be float16, bfloat16, float32 or float64")
    array: NDArray[Any] = on_cpu.numpy()
    return array
