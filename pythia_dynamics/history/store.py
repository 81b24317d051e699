"""The memory-mapped weight store: a Zarr v3 group with one array per tensor and one uncompressed chunk per step.

A chunk file is the raw little-endian tensor followed by its CRC-32C. It can be mapped into memory without a copy, and
zarr, xarray and TensorStore read it as well. Chunks and metadata appear complete or not at all; any number of threads
and processes may write one store. Layout, for a tensor of shape (vocab, d_model)::

    <name>.zarr/zarr.json                    attributes: format, source, suite, version of this package
    <name>.zarr/step/                        int64 coordinate, in order of arrival: sort before plotting
    <name>.zarr/{tokens,learning_rate}/      more coordinates of the steps, where they are known; float64
    <name>.zarr/<tensor>/zarr.json           attributes: `provenance`, `missing`, `superseded`, by step
    <name>.zarr/<tensor>/c/<index>/0/0       the chunk of steps[index]
    .<name>.zarr.lock, .<name>.zarr.partial/ beside it: the lock of the writers, and chunks that are being written
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.formats.slices import select
from pythia_dynamics.checkpoints.learning_rate import NOT_KNOWN, LearningRate, LoggedLearningRate
from pythia_dynamics.checkpoints.roles import ROLES, UNEMBEDDING, Role, find_roles
from pythia_dynamics.checkpoints.suite import GENERIC, Suite
from pythia_dynamics.errors import StoreError, UnknownNameError
from pythia_dynamics.files import store_errors
from pythia_dynamics.history.chunk import CHECKSUM_BYTES, ChunkWriter, check_chunk
from pythia_dynamics.history.coordinates import (
    COORDINATES,
    NO_STEP,
    coordinate_source,
    create_tensor,
    known_values,
    read_coordinate,
    update_coordinate,
    write_coordinate,
)
from pythia_dynamics.history.nodes import (
    array_names,
    bucket,
    chunk_sizes,
    is_node,
    new_chunk,
    open_node,
    remove_unfinished,
    writers_lock,
)
from pythia_dynamics.history.provenance import Recorder
from pythia_dynamics.history.recorded import read_source, recorded_place, recorded_suite
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.objects import ObjectPath, Place, as_place, is_web

__all__ = ["Store"]

_FORMAT = 1
"""Version of the layout above; a store of a later one is not opened."""

_ATTRIBUTE = "pythia_dynamics"
"""The key under which the group's own attributes are stored."""

_BY_STEP = ("provenance", "missing", "superseded")
"""The attributes of a tensor that have an entry for each step that they concern."""


class Store:
    """The weights of one model on disk. Use `Store.open` or `Store.create`, not the constructor.

    Attributes
    ----------
    path
        The directory ``<name>.zarr``.
    source
        Where the weights are from: a repository id, or a directory of checkpoints.
    suite
        How the checkpoints there are named and found.
    name
        Name of the directory without ``.zarr``.
    """

    def __init__(self, path: Place, source: str, suite: Suite = GENERIC) -> None:
        self.path = path
        self.source = source
        self.suite = suite
        self.name = path.name.removesuffix(".zarr")
        self._scratch = path.with_name(f".{path.name}.partial")
        self._lock = writers_lock(path)
        self._indices: dict[int, int] = {}  # the index of a step, and the spec of a tensor, never change
        self._specs: dict[str, TensorSpec] = {}

    # -- opening ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Place | str) -> Store:
        """Open an existing store.

        Parameters
        ----------
        path
            The directory ``<name>.zarr``, or its URL: ``s3://bucket/cache/<name>.zarr``.

        Raises
        ------
        StoreError
            There is no store, it is damaged, or it was not written by this package or by a later version of it.
        """
        path = as_place(path)
        if not cls.exists(path):
            raise StoreError(f"no weight store at {path}; make one with pythia-dyn fetch")
        attributes = open_node(path, zarr.open_group).attrs.get(_ATTRIBUTE)
        if not isinstance(attributes, Mapping) or "source" not in attributes:
            raise StoreError(f"{path} is a Zarr group but not a weight store of pythia-dyn; name another --cache")
        if attributes.get("format") != _FORMAT:
            raise StoreError(f"{path} was written by a newer pythia-dyn; update it, or name another --cache")
        return cls(path, *read_source(path, attributes))

    @classmethod
    def create(cls, path: Place | str, *, source: str, suite: Suite | None = None) -> Store:
        """Open a store for writing; make it if there is none.

        Parameters
        ----------
        path
            The directory ``<name>.zarr``, or its URL.
        source
            Where the weights are from: a repository id, or a directory of checkpoints, which is recorded relative to
            the store if it lies below the directory of the cache's directory.
        suite
            How the checkpoints there are named and found. Default: as an existing store has it.

        Raises
        ------
        StoreError
            The store has weights of another source, or of another stage, generation or seed; or it cannot be written.
        """
        store = cls(path := as_place(path), source, suite or GENERIC)
        if isinstance(path, Path):
            with store_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        with store.writing():
            remove_unfinished(path, store._scratch)
            if cls.exists(path):
                found = cls.open(path)
                parts = (found.suite.part, (suite or found.suite).part)
                if found.source != source or parts[0] != parts[1]:
                    names = zip((found.source, source), parts, strict=True)
                    mine, other = (" ".join((name, *map(" ".join, sorted(part.items())))) for name, part in names)
                    why = f"{path} holds the weights of {mine}, not of {other}"
                    raise StoreError(f"{why}; name another --cache or remove it")
                store.suite = suite or found.suite
                if store.suite != found.suite:
                    group = open_node(path, zarr.open_group, "r+")
                    group.attrs[_ATTRIBUTE] = {**group.attrs[_ATTRIBUTE], "suite": recorded_suite(path, store.suite)}
                    tokens = {step: store.suite.tokens_at(step) for step in store.steps}
                    is_new = store.suite.learning_rate != found.suite.learning_rate
                    store._write_known(store.steps, tokens, replaces=is_new)
            else:
                attributes = {
                    "format": _FORMAT,
                    "source": store.recorded_source,
                    "directory": Path(source).is_absolute(),
                    "suite": recorded_suite(path, store.suite),
                    "version": __version__,
                }
                # The second attribute is a convention of CF: xarray makes coordinates of these arrays.
                known = " ".join(name for name in COORDINATES if name != "step")
                zarr.create_group(**bucket(path), attributes={_ATTRIBUTE: attributes, "coordinates": known})
        return store

    @staticmethod
    def exists(path: Place) -> bool:
        """Whether there is a store, or something else, at `path`. A `create` that failed leaves an empty directory."""
        if isinstance(path, ObjectPath):
            return is_node(path)
        return path.is_dir() and any(not entry.name.endswith(".partial") for entry in path.iterdir())

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def recorded_source(self) -> str:
        """`source` as files of the store record it."""
        return recorded_place(self.path, self.source)

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensors of the store, by name."""
        group = open_node(self.path, zarr.open_group).attrs[_ATTRIBUTE] if is_web(self.path) else None
        names = array_names(self.path) if group is None else group.get("tensors", ())
        names = [name for name in names if name not in COORDINATES]
        return {name: self._spec(name) for name in names if name in self._specs or is_node(self.path / name)}

    def select(self, patterns: Sequence[str] = ()) -> tuple[str, ...]:
        """The tensors of the store that patterns mean.

        Parameters
        ----------
        patterns
            Names, roles, ``all`` and globs. Without any: the unembedding, else the only tensor.

        Raises
        ------
        UnknownNameError
            A pattern matches nothing.
        CheckpointError
            There are several tensors, and none is known to have the role.
        StoreError
            The store is empty.
        """
        specs = self.tensors
        if not specs:
            raise StoreError(f"{self.path} holds no weights yet; run pythia-dyn fetch")
        if not patterns and len(specs) == 1:
            return tuple(specs)
        return tuple(select(specs, patterns or (UNEMBEDDING,), where=str(self.path), roles=self.roles))

    @property
    def roles(self) -> dict[Role, str]:
        """The tensors that have a role. A role that several could have is left out."""
        specs, found = self.tensors, {}
        by_name = find_roles(specs)
        for role in ROLES:
            holders = [name for name, spec in specs.items() if role in (spec.roles or ())]
            holders = holders or [
                name for name, spec in specs.items() if spec.roles is None and by_name.get(role) == name
            ]
            if len(holders) > 1:  # one matrix, recorded under two names
                holders = [name for name in holders if by_name.get(role) == name]
            if len(holders) == 1:
                found[role] = holders[0]
        return found

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step that a chunk may be written for, in order of arrival.

        The index of a step is the index of its chunk. A write that failed may have left fill values at the end.
        """
        return tuple(takewhile(lambda step: step != NO_STEP, read_coordinate(self.path, "step")))

    def coordinate(self, name: str) -> dict[int, float] | None:
        """The values of ``tokens`` or ``learning_rate`` by step, where they are known; None where none is."""
        return known_values(self.path, name, self.steps)

    @property
    def learning_rate_from(self) -> str:
        """Where ``learning_rate`` is from, in words; `NOT_KNOWN` where no step has one."""
        source = coordinate_source(self.path, "learning_rate") or self.suite.learning_rate_from or "the store"
        return source if self.coordinate("learning_rate") else NOT_KNOWN

    def chunked(self, tensor: str, steps: Iterable[int]) -> set[int]:
        """The steps for which there is a chunk of the right length for `tensor`. Raises `UnknownNameError`."""
        paths = {step: self.chunk_path(tensor, step) for step in steps}
        sizes = chunk_sizes(self.path / tensor, paths.values())
        expected = self._spec(tensor).nbytes + CHECKSUM_BYTES
        return {step for step, found in zip(paths, sizes, strict=True) if found == expected}

    def records(self, tensor: str) -> dict[int, dict[str, Any]]:
        """Where the weights of each stored step are from: repository, branch, commit, file, byte range, dtype, time,
        as `writer` was given them, by step. Empty for a tensor that the store does not have."""
        found: dict[int, dict[str, Any]] = self.entries(tensor)["provenance"]
        return found

    def entries(self, tensor: str) -> dict[str, Any]:
        """What is recorded of a tensor, by kind: ``known`` (whether the store has it), and by step its ``provenance``,
        and the reasons why others are ``missing`` or these ``superseded``. `step_states` says what that means."""
        known = is_node(self.path / tensor)
        attributes = dict(open_node(self.path / tensor, zarr.open_array).attrs) if known else {}
        found = {key: attributes.get(key, {}) for key in _BY_STEP}
        if known and not all(isinstance(found[key], Mapping) and key in (*attributes, "superseded") for key in found):
            raise StoreError(f"{self.path / tensor} has no valid records; move it away and fetch again")
        return {"known": known} | {
            key: {int(step): value for step, value in of_step.items()} for key, of_step in found.items()
        }

    def check(self, tensor: str, step: int) -> None:
        """Compare the chunk of `tensor` at `step` with its checksum.

        Raises
        ------
        IntegrityError
            The chunk cannot be read, has another length, or does not match its checksum.
        UnknownNameError
            The store does not have the tensor or the step.
        """
        check_chunk(self.chunk_path(tensor, step), self._spec(tensor).nbytes, what=(step, tensor, self.path))

    def chunk_path(self, tensor: str, step: int) -> Place:
        """The file of the weights of `tensor` at `step`, written or not. Raises `UnknownNameError`."""
        spec, index = self._spec(tensor), self._index(step)
        return self.path.joinpath(spec.name, "c", str(index), *("0" for _ in spec.shape))

    # -- writing ----------------------------------------------------------------------------------------------

    def ensure(
        self,
        tensors: Iterable[TensorSpec],
        steps: Iterable[int],
        tokens: Mapping[int, int | None] | None = None,
        learning_rate: LearningRate | LoggedLearningRate | None = None,
    ) -> None:
        """Create the arrays of these tensors, with room for these steps. Existing chunks stay where they are.

        Parameters
        ----------
        tensors
            Name, dtype and shape of each tensor.
        steps
            Step numbers, in any order; those that the store does not know yet are appended in increasing order.
        tokens
            Tokens seen by step, None where not known.
        learning_rate
            The learning rate of these and of all other steps, as far as it has them. That of the suite goes before it.

        Raises
        ------
        StoreError
            The store has a tensor with another shape or dtype, or cannot be written.
        """
        with self.writing():
            known = self.steps
            grown = (*known, *sorted(set(steps) - set(known)))
            if len(grown) > len(known) or not known:
                write_coordinate(self.path, "step", grown, NO_STEP)
            self._write_known(grown, tokens or {}, learning_rate)
            present = self.tensors
            for spec in tensors:
                if spec.name not in present:
                    is_head = not any("vocab" in other.dimensions for other in self.tensors.values())
                    create_tensor(self.path, spec, len(grown), is_head=is_head)
                elif present[spec.name] != spec:
                    raise StoreError(
                        f"{self.path} has {spec.name} as {present[spec.name]}, the source as {spec}; "
                        "name another --cache or remove the store"
                    )
                elif spec.roles is not None and present[spec.name].roles != spec.roles:
                    open_node(self.path / spec.name, zarr.open_array, "r+").attrs["roles"] = spec.roles
                    self._specs.pop(spec.name, None)
            self._list_tensors()
            for name in present:
                array = open_node(self.path / name, zarr.open_array, "r+")
                if array.shape[0] < len(grown):
                    array.resize((len(grown), *array.shape[1:]))

    @contextmanager
    def writer(
        self, tensor: str, step: int, record: Mapping[str, Any], *, recorded: Recorder | None = None
    ) -> Iterator[ChunkWriter]:
        """Write the weights of one step, piece by piece.

        The chunk and its record are in the store when the ``with`` block has ended without an exception and exactly
        the bytes of the tensor were written. Otherwise the chunk is as it was.

        Parameters
        ----------
        tensor, step
            What is written; `ensure` has made room for it.
        record, recorded
            Where the weights are from: values that JSON can hold, read when the block ends; and what takes it then, to
            call `record_written` with those of several steps.

        Yields
        ------
        ChunkWriter
            Its `write` takes the little-endian bytes in order.

        Raises
        ------
        IntegrityError
            Fewer or more bytes were written than the tensor has.
        StoreError
            The chunk or its record cannot be written, as on a full disk.
        UnknownNameError
            `ensure` was not called for the tensor or the step.
        """
        spec, path = self._spec(tensor), self.chunk_path(tensor, step)
        with store_errors(self.path), new_chunk(path, self._scratch) as file:
            writer = ChunkWriter(file, spec.nbytes)
            yield writer
            writer.finish()
        (recorded or self.record_written)(tensor, {step: record})

    def record_written(self, tensor: str, records: Mapping[int, Mapping[str, Any]]) -> None:
        """Record where the weights of steps are from whose chunks have been written."""
        added = {"provenance": {str(step): dict(record) for step, record in records.items()}}
        self._update_records(tensor, added, without=dict.fromkeys(records, ("missing", "superseded")))

    def write(self, tensor: str, step: int, array: np.ndarray[Any, Any], record: Mapping[str, Any]) -> None:
        """Write the weights of one step from memory.

        Parameters
        ----------
        tensor, step, record
            As for `writer`.
        array
            The weights, of exactly the tensor's shape and dtype.

        Raises
        ------
        StoreError
            The array has another shape or dtype, or the store cannot be written.
        """
        spec = self._spec(tensor)
        if tuple(array.shape) != spec.shape or array.dtype != spec.numpy_dtype:
            raise StoreError(f"{tensor} at step {step} is {array.dtype}{list(array.shape)}, the store holds {spec}")
        with self.writer(tensor, step, record) as writer:
            writer.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)

    def record_missing(self, tensor: str, reasons: Mapping[int, str]) -> None:
        """Record why steps of a tensor could not be fetched. Raises `StoreError` for a step unknown to `ensure`."""
        if unknown := set(reasons) - set(self.steps):
            raise StoreError(f"{self.path} does not have step {min(unknown)}")
        self._update_records(tensor, {"missing": {str(step): why for step, why in reasons.items()}})

    def record_compared(self, tensor: str, found: Mapping[int, tuple[str, str | None, str]]) -> None:
        """Record what has become of checkpoints at the source: by step the commit that was compared, that which has
        left the weights as they were, if any, and why they are superseded, if so. Of another commit: left alone."""
        with self.writing():
            array = open_node(self.path / tensor, zarr.open_array, "r+")
            records, missing, superseded = after = [dict(array.attrs.get(key, {})) for key in _BY_STEP]
            for key, (compared, now, why) in ((str(step), each) for step, each in found.items()):
                if records.get(key, {}).get("commit") == compared:
                    if why:
                        superseded[key] = why
                    elif superseded.pop(key, None):
                        missing.pop(key, None)
                    records[key] = {**records[key], "commit": now or compared}
            if after != [array.attrs.get(key, {}) for key in _BY_STEP]:
                array.update_attributes(dict(zip(_BY_STEP, after, strict=True)))

    def remove_record(self, tensor: str, step: int) -> None:
        """Remove the record of `tensor` at `step`, so that the next fetch replaces its chunk."""
        self._update_records(tensor, {}, without={step: ("provenance", "superseded")})

    # -- internal ---------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writers' lock. An `OSError` inside, of zarr or the lock as well, becomes a `StoreError`."""
        with store_errors(self.path), self._lock():
            yield

    def _list_tensors(self) -> None:
        """Record the names of the tensors, for a web server that lists nothing."""
        group = open_node(self.path, zarr.open_group, "r+")
        if list(self.tensors) != group.attrs[_ATTRIBUTE].get("tensors"):
            group.attrs[_ATTRIBUTE] = {**group.attrs[_ATTRIBUTE], "tensors": list(self.tensors)}

    def _spec(self, tensor: str) -> TensorSpec:
        if tensor not in self._specs:
            if not is_node(self.path / tensor):
                raise UnknownNameError("tensor", tensor, array_names(self.path), where=str(self.path))
            array = open_node(self.path / tensor, zarr.open_array)
            roles: Any = array.attrs.get("roles")
            roles = None if roles is None else tuple(roles)
            self._specs[tensor] = TensorSpec(tensor, np.dtype(array.dtype).name, tuple(array.shape[1:]), roles)
        return self._specs[tensor]

    def _index(self, step: int) -> int:
        if step not in self._indices:
            self._indices = {known: index for index, known in enumerate(self.steps)}
        if step not in self._indices:
            raise UnknownNameError("step", step, self._indices, where=str(self.path))
        return self._indices[step]

    def _write_known(
        self,
        steps: tuple[int, ...],
        tokens: Mapping[int, int | None],
        rate: LearningRate | LoggedLearningRate | None = None,
        *,
        replaces: bool = False,
    ) -> None:
        """Write the tokens and the learning rate (the suite's, else `rate`) of these steps, where they are known."""
        counts = {step: float(count) for step, count in tokens.items() if count is not None}
        update_coordinate(self.path, "tokens", steps, counts)
        rate, source = self.suite.learning_rate or rate, self.suite.learning_rate_from or (rate.origin if rate else "")
        rates = dict(zip(steps, rate.at(steps).tolist(), strict=True)) if rate else {}
        update_coordinate(self.path, "learning_rate", steps, rates, source=source, replaces=replaces and bool(rate))

    def _update_records(
        self,
        tensor: str,
        additions: Mapping[str, Mapping[str, Any]],
        *,
        without: Mapping[int, Iterable[str]] | None = None,
    ) -> None:
        """Add entries to the attributes of a tensor, and remove those of some steps, named by their attributes."""
        with self.writing():
            array = open_node(self.path / tensor, zarr.open_array, "r+")
            changed = {key: {**array.attrs.get(key, {}), **additions.get(key, {})} for key in _BY_STEP}
            for step, keys in (without or {}).items():
                for key in keys:
                    changed[key].pop(str(step), None)
            array.update_attributes(changed)
