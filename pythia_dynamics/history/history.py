"""The history of one tensor: its values at every step, read in place.

A history is the same value whether the weights are in a store that `fetch` or a training run wrote, or in an array in
memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.learning_rate import NOT_KNOWN, RateLike, as_learning_rate, rates_at
from pythia_dynamics.checkpoints.modules import part_name, split_part
from pythia_dynamics.checkpoints.parts import Attention, Part, part_of
from pythia_dynamics.checkpoints.registry import registered_suite
from pythia_dynamics.checkpoints.roles import find_roles
from pythia_dynamics.errors import IntegrityError, PythiaDynError, UnknownNameError, listed, size
from pythia_dynamics.history.arrays import as_numpy, masked, memory_map
from pythia_dynamics.history.attention import known_attention, select_parts
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.lazy_weights import Weights
from pythia_dynamics.history.parted import PartedWeights, StoredWeights
from pythia_dynamics.history.provenance import check_of
from pythia_dynamics.history.spec import DTYPES
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store
from pythia_dynamics.objects import ObjectPath, Place
from pythia_dynamics.progress import Progress, silent

__all__ = ["History"]

_SHOWN_GAPS = 5
"""Missing steps that the table of a notebook names."""


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """One tensor at T steps. The weights of one step are called a frame.

    Make one with `pythia_dynamics.fetch`, `pythia_dynamics.open_history` or `from_array`. Frames of a store are
    read-only memory maps of the chunk files: opening a history reads no weights, and pickling it sends paths.

    Parameters
    ----------
    name
        Name of the model or the array.
    tensor
        Name of the tensor.
    steps
        Step numbers; int64 of shape (T,), strictly increasing.
    frame_shape
        Shape of the weights at one step, usually (vocab, d_model).
    dtype
        dtype of the weights: float16, bfloat16, float32 or float64.
    missing
        The steps without weights, with the reason of each.
    frames
        For every step the file or the array with its weights, None where missing. The file has the whole tensor, of
        which this history may be a part; an array has the weights themselves, in row-major order of its axes.
    provenance
        Where the weights are from: `source`, `tensor` and, from a store, `commits` and `missing` by step; and where the
        `learning_rate` is from, in words.
    coordinates
        More coordinates of the steps, where known: ``tokens`` seen, ``learning_rate``; float64 of shape (T,), NaN at a
        step where it is not known.
    attention
        The heads of the model, which `part` needs; None where they are not known.
    file_shape, within
        Of a part of a tensor, the shape of the tensor in the files, and where in it the part is; else None.
    remote
        What reads ranges of weights that are not on this machine: of a tensor that is streamed, or that is in an object
        store. None for others.
    """

    name: str
    tensor: str
    steps: NDArray[np.int64]
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    missing: Mapping[int, str]
    frames: tuple[Place | NDArray[Any] | None, ...] = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    coordinates: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    attention: Attention | None = None
    file_shape: tuple[int, ...] | None = None
    within: Part | None = None
    remote: PartedWeights | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        nbytes = math.prod(self.frame_shape) * self.dtype.itemsize * int(self.present.sum())
        of_steps = f"{len(self)} {'step' if len(self) == 1 else 'steps'}"
        if len(self):
            of_steps += f" {self.steps[0]}" + (f" … {self.steps[-1]}" if len(self) > 1 else "")
        gaps = f", {len(self.missing)} missing" if self.missing else ""
        what = f"{self.dtype}{list(self.frame_shape)}, {of_steps}{gaps}, {size(nbytes)}"
        return f"<History {self.name} {self.tensor}: {what}>"

    def _repr_html_(self) -> str:
        """A table for notebooks: what the weights are, where they are from, and which are missing."""
        rows = {
            "tensor": self.tensor,
            "weights": f"{self.dtype}{list(self.frame_shape)}",
            "steps": listed(self.steps.tolist()).removeprefix("steps "),
            "missing": "; ".join(f"{step}: {why}" for step, why in [*self.missing.items()][:_SHOWN_GAPS]) or "none",
            "source": str(self.provenance.get("source", "")),
            "learning rate": str(self.provenance.get("learning_rate", "")),
        }
        more = len(self.missing) - _SHOWN_GAPS
        rows["missing"] += f"; and {more} more" if more > 0 else ""
        cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(text)}</td></tr>" for key, text in rows.items())
        return f"<table><caption>History {escape(self.name)}</caption>{cells}</table>"

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process, whose working directory may be another: absolute paths."""
        frames = tuple(each.absolute() if isinstance(each, Path) else each for each in self.frames)
        return {**self.__dict__, "frames": frames}

    def __len__(self) -> int:
        """T, the number of steps, present or missing."""
        return len(self.steps)

    def __getitem__(self, index: int | slice) -> Any:
        """By position: the weights of one step, as `at`, or the history of several."""
        chosen = self.steps[index]
        return self.select(chosen.tolist()) if isinstance(index, slice) else self.at(int(chosen))

    def sel(self, step: int | np.integer[Any] | slice | Collection[int]) -> Any:
        """By step number, as in xarray.

        Parameters
        ----------
        step
            A step; several; or a slice of step numbers, both ends included.

        Returns
        -------
        array or History
            The weights of one step, as `at`; of several, their history, as `select`.

        Raises
        ------
        PythiaDynError
            As `at` and `select`.
        """
        if isinstance(step, slice):
            low = -math.inf if step.start is None else step.start
            high = math.inf if step.stop is None else step.stop
            return self.select(self.steps[(self.steps >= low) & (self.steps <= high)][:: step.step].tolist())
        return self.select([int(each) for each in step]) if isinstance(step, Collection) else self.at(int(step))

    @property
    def shape(self) -> tuple[int, ...]:
        """``(T, *frame_shape)``: T steps, present or missing."""
        return (len(self.steps), *self.frame_shape)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which of the T steps have a frame; shape (T,)."""
        return np.array([frame is not None for frame in self.frames], dtype=bool)

    @property
    def weights(self) -> Weights:
        """All frames as one lazy array of shape ``(T, *frame_shape)``; missing ones read as NaN."""
        return Weights(self.shape, self.dtype, self.frame)

    def frame(self, index: int) -> NDArray[Any] | None:
        """The weights of one step.

        Parameters
        ----------
        index
            Index into `steps`.

        Returns
        -------
        array of shape `frame_shape`, or None
            C-contiguous; of a part that is not one run of the file a copy. None where the step is missing.

        Raises
        ------
        IntegrityError
            The chunk file does not exist or has the wrong length. (Its checksum is compared by ``verify`` only.)
        """
        segments = self.segments(index)
        return None if segments is None else np.ascontiguousarray(segments).reshape(self.frame_shape)

    def segments(self, index: int) -> NDArray[Any] | None:
        """The weights of one step without a copy, as runs of weights that are adjacent in memory.

        Parameters
        ----------
        index
            As for `frame`.

        Returns
        -------
        array of shape (runs, weights of a run), or None
            Its elements in row-major order are those of the frame. One run, except of a part of a fused tensor.

        Raises
        ------
        IntegrityError
            As `frame`.
        """
        source = self.frames[index]
        if source is None or isinstance(source, np.ndarray):
            return source if source is None or self.within else source.reshape(1, -1)
        if self.remote is not None:
            frame = self.remote.frame(int(self.steps[index]))
            return frame.reshape(1, -1) if self.within is None else self.within.segments(frame)
        shape = self.file_shape or self.frame_shape
        assert isinstance(source, Path)
        expected = math.prod(shape) * self.dtype.itemsize + CHECKSUM_BYTES
        found = source.stat().st_size if source.is_file() else 0
        if found != expected:
            raise IntegrityError(
                f"the weights of {self.name} at step {self.steps[index]} are damaged ({source} should have "
                f"{expected} bytes, has {found}); run the fetch again to replace them"
            )
        whole = memory_map(source, self.dtype, shape)
        return whole.reshape(1, -1) if self.within is None else self.within.segments(whole)

    @contextlib.contextmanager
    def read_ranges(
        self, steps: Sequence[int], ranges: Sequence[tuple[int, int]], progress: Progress = silent
    ) -> Iterator[History]:
        """Ranges of the weights of some steps, where `remote` reads them. Valid inside the ``with`` block.

        Parameters and errors are those of `PartedWeights.open`. Of each step the weights of all ranges are one vector.
        """
        assert self.remote is not None
        if self.within is None:
            read: Sequence[tuple[int, int]] = ranges
        else:
            assert self.file_shape is not None
            read = [each for start, stop in ranges for each in self.within.ranges(self.file_shape, start, stop)]
        with self.remote.open(steps, read, progress) as paths:
            shape, numbers = (sum(stop - start for start, stop in ranges),), np.array(steps, dtype=np.int64)
            yield History(self.name, self.tensor, numbers, shape, self.dtype, {}, paths)

    def at(self, step: int) -> NDArray[Any]:
        """The weights of one step.

        Parameters
        ----------
        step
            A step number.

        Raises
        ------
        UnknownNameError
            The history does not have the step.
        PythiaDynError
            The step is missing; the message gives the reason.
        """
        matches = np.flatnonzero(self.steps == step)
        if not len(matches):
            raise UnknownNameError("step", step, self.steps.tolist(), where=self.name)
        frame = self.frame(int(matches[0]))
        if frame is None:
            raise PythiaDynError(f"step {step} of {self.name} is missing: {self.missing.get(step, 'unknown')}")
        return frame

    def select(self, steps: Collection[int]) -> History:
        """The same history with fewer steps.

        Parameters
        ----------
        steps
            The step numbers to keep, in any order.

        Raises
        ------
        UnknownNameError
            The history does not have one of them.
        """
        known = {int(step): i for i, step in enumerate(self.steps)}
        for step in steps:
            if step not in known:
                raise UnknownNameError("step", step, known, where=self.name)
        kept = dict.fromkeys(sorted(steps))
        provenance = dict(self.provenance)
        for key in {"commits", "checks", "missing", "superseded"} & provenance.keys():
            provenance[key] = {step: what for step, what in provenance[key].items() if int(step) in kept}
        return replace(
            self,
            steps=np.array(list(kept), dtype=np.int64),
            missing={step: why for step, why in self.missing.items() if step in kept},
            frames=tuple(self.frames[known[step]] for step in kept),
            provenance=provenance,
            coordinates={name: values[[known[step] for step in kept]] for name, values in self.coordinates.items()},
        )

    def part(self, kind: str | None = None, *, head: int | None = None, heads: int | None = None) -> History:
        """The history of a part of a fused tensor, or of one head of attention. The weights are not copied.

        Parameters
        ----------
        kind
            ``query``, ``key`` or ``value``; ``gate`` or ``up``. None for a head of a tensor that is not fused.
        head
            Number of the head, from 0. Default: all.
        heads
            Attention heads of a block, where the store does not know them.

        Raises
        ------
        PythiaDynError
            The tensor has no such part, or the number of heads is not known.
        """
        if self.within is not None:
            raise PythiaDynError(f"{self.tensor} is a part already")
        attention = self.attention if heads is None else Attention(heads)
        part = part_of(self.tensor, self.frame_shape, kind, head, attention)
        tensor = part_name(self.tensor, kind, head)
        return replace(
            self,
            tensor=tensor,
            frame_shape=part.shape(self.frame_shape),
            frames=tuple(part.segments(each) if isinstance(each, np.ndarray) else each for each in self.frames),
            provenance={**self.provenance, "tensor": tensor, "roles": []},
            attention=attention,
            file_shape=self.frame_shape,
            within=part,
        )

    def with_learning_rate(self, learning_rate: RateLike | None) -> History:
        """The same history with another learning rate. That of its suite is not used.

        Parameters
        ----------
        learning_rate
            A CSV file, a ``.jsonl`` log or a ``trainer_state.json`` with the columns step and learning_rate (or lr); a
            mapping of step to learning rate; or a schedule. Between its steps it is interpolated linearly; before the
            first and after the last it is not known. None changes nothing.

        Raises
        ------
        PythiaDynError
            It cannot be read, has a learning rate that is negative or not finite, or has none at any step here.
        """
        if learning_rate is None:
            return self
        rate = as_learning_rate(learning_rate)
        coordinates = {**self.coordinates, "learning_rate": rates_at(rate, self.steps.tolist(), where=self.name)}
        provenance = {**self.provenance, "learning_rate": rate.origin}
        return replace(self, coordinates=coordinates, provenance=provenance)

    @classmethod
    def from_store(cls, store: Store, tensor: str | None = None, *, heads: int | None = None) -> History:
        """The history of a tensor of a store, or of a part of one.

        Parameters
        ----------
        store
            An open store.
        tensor
            Name of the tensor, or its role: ``unembedding``, ``embedding``; or of a part: ``….weight.query.head5``.
            Default: the unembedding, else the only tensor.
        heads
            As for `part`.

        Returns
        -------
        History
            All steps of the store in increasing order. A step without weights of this tensor is in `missing`.

        Raises
        ------
        UnknownNameError
            The store does not have the tensor.
        CheckpointError
            The store has several tensors, and none is known to have the role.
        PythiaDynError
            `tensor` is a glob that matches several tensors.
        StoreError
            The store is empty.
        """
        attention = known_attention(store, heads)
        specs, found = store.tensors, select_parts(store, () if tensor is None else (tensor,), attention)
        if len(found) > 1:
            raise PythiaDynError(f"{tensor!r} means {len(found)} tensors of {store.path}: {', '.join(found[:6])} …")
        if found[0] not in specs:
            tensor, kind, head = split_part(found[0])
            return cls.from_store(store, tensor, heads=heads).part(kind, head=head)
        (tensor,) = found
        spec, records, states = specs[tensor], store.records(tensor), step_states(store, tensor)
        steps = np.sort(np.array(store.steps, dtype=np.int64))
        # A chunk that is damaged is no gap to pass over: reading it is an error.
        missing = {step: why for step, why in states.missing.items() if step not in records}
        frames = tuple(store.chunk_path(tensor, step) if step in records else None for step in steps.tolist())
        provenance = {
            "source": store.source,
            "tensor": tensor,
            "roles": [role for role, name in store.roles.items() if name == tensor],
            "commits": {str(step): records[step].get("commit") for step in sorted(records)},
            "checks": {str(step): check_of(records[step]) for step in sorted(records)},
            "missing": {str(step): why for step, why in missing.items()},
            "superseded": {str(step): why for step, why in states.superseded.items()},
            "learning_rate": store.learning_rate_from,
            "suite": store.suite.options(registered_suite(store.source)),
        }
        coordinates = {
            name: np.array([known.get(step, np.nan) for step in steps.tolist()])
            for name in ("tokens", "learning_rate")
            if (known := store.coordinate(name)) is not None
        }
        shape, dtype = spec.shape, spec.numpy_dtype
        objects = {
            step: path for step, path in zip(steps.tolist(), frames, strict=True) if isinstance(path, ObjectPath)
        }
        history = cls(store.name, tensor, steps, shape, dtype, missing, frames, provenance, coordinates, attention)
        if states.virtual:
            from pythia_dynamics.history.virtual import virtual_weights  # imports what reads sources

            stored = {step: store.chunk_path(tensor, step) for step in states.stored if step not in states.virtual}
            return replace(history, remote=virtual_weights(store, spec, records, stored))
        return replace(history, remote=StoredWeights(spec, objects)) if objects else history

    @classmethod
    def from_array(
        cls,
        array: Any,
        steps: Any = None,
        *,
        name: str = "array",
        tensor: str = "weights",
        missing: Mapping[int, str] | None = None,
        learning_rate: RateLike | None = None,
    ) -> History:
        """The history of an array in memory.

        Parameters
        ----------
        array
            Shape (T, …), dtype float16, bfloat16, float32 or float64: of NumPy, torch, or a `DataArray` with a `step`
            axis. Weights in the byte order of another machine are copied into that of this one. A step of a masked
            array that is masked completely is missing.
        steps
            T strictly increasing integers. Default: the coordinate `step` of a `DataArray`, else 0 … T−1.
        name
            Name of the history, used in messages and for its results.
        tensor
            Name of the tensor.
        missing
            Further steps whose weights are not to be used, with the reason of each.
        learning_rate
            The learning rate, as for `with_learning_rate`.

        Raises
        ------
        PythiaDynError
            The array has another dtype or shape or is masked in part, or the steps are not as described.
        UnknownNameError
            A step in `missing` is not in `steps`.
        """
        if steps is None and "step" in getattr(array, "coords", ()):
            array = array.transpose("step", ...)
            steps = array["step"].to_numpy()
        data = as_numpy(array)
        if data.dtype.name not in DTYPES:
            raise PythiaDynError(f"weights must be {', '.join(DTYPES)}; got an array of {data.dtype}")
        if data.ndim < 2:
            raise PythiaDynError(f"weights must have shape (steps, …); got shape {data.shape}")
        if data.size == 0:
            raise PythiaDynError(f"there are no weights in an array of shape {data.shape}")
        numbers = np.arange(len(data)) if steps is None else np.asarray(steps)
        if numbers.shape != data.shape[:1] or numbers.dtype.kind not in "iu" or np.any(np.diff(numbers) <= 0):
            raise PythiaDynError(f"steps must be {len(data)} strictly increasing integers")
        absent = {int(step): str(why) for step, why in (missing or {}).items()} | masked(array, numbers)
        for step in absent:
            if step not in numbers:
                raise UnknownNameError("step", step, numbers.tolist(), where=name)
        present = (step not in absent for step in numbers.tolist())
        native = data.dtype.newbyteorder("=")
        frames = tuple(
            np.ascontiguousarray(frame, native) if here else None for here, frame in zip(present, data, strict=True)
        )
        roles = list(find_roles([tensor]))
        provenance = {"source": name, "tensor": tensor, "roles": roles, "learning_rate": NOT_KNOWN}
        steps = numbers.astype(np.int64)
        history = cls(name, tensor, steps, data.shape[1:], native, absent, frames, provenance)
        return history.with_learning_rate(learning_rate)
