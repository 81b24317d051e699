"""The memory-mapped weight store: a Zarr v3 group with one array per tensor and one uncompressed chunk per step.

A chunk file is the raw little-endian tensor followed by its CRC-32C, so a memory map of it needs no copy, and zarr,
xarray and TensorStore read it as well. Chunks and records appear whole or not at all; any number of threads and
processes may write one store. Layout, for a tensor of shape (vocab, d_model)::

    <name>.zarr/zarr.json                    attributes: format, source, tool version
    <name>.zarr/step/                        int64 coordinate, in order of arrival: sort before plotting
    <name>.zarr/<tensor>/zarr.json           attributes: `provenance` and `missing`, by step
    <name>.zarr/<tensor>/c/<index>/0/0       the chunk of steps[index]
    .<name>.zarr.lock, .<name>.zarr.partial/ beside it: the writers' lock and their unfinished chunks
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import zarr
from filelock import FileLock
from zarr.codecs import BytesCodec, Crc32cCodec

from pythia_dynamics import __version__
from pythia_dynamics.errors import IntegrityError, StoreError, UnknownNameError
from pythia_dynamics.files import atomic_file, remove_stale
from pythia_dynamics.history.bfloat16 import BFloat16

__all__ = ["CHECKSUM_BYTES", "ChunkWriter", "Store", "TensorSpec"]

CHECKSUM_BYTES = 4
"""The CRC-32C that ends each chunk file."""

_FORMAT = 1
_KEY = "pythia_dynamics"
_VOCABULARY = ("embed_out.weight", "embed_in.weight", "lm_head.weight", "wte.weight", "embed_tokens.weight")
_UNFINISHED = ("zarr.*.partial", "*/zarr.*.partial", "step/c/*.partial")
"""What zarr calls the metadata it is writing."""
_SAFE_NAME = re.compile(r"\w[\w.-]*")
_TAKEN = ("step", "zarr.json", "c")
_BFLOAT16 = BFloat16().to_native_dtype()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is at every step: its name in the files, a dtype (float16, bfloat16, float32), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        # The name becomes a folder, and it comes from a file somebody else wrote.
        if not _SAFE_NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise StoreError(f"a tensor cannot be stored under the name {self.name!r}")

    @property
    def nbytes(self) -> int:
        """Bytes of one step."""
        return int(np.prod(self.shape, dtype=np.int64)) * _native(self.dtype).itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of its values in memory."""
        return _native(self.dtype)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the axes of the stored array; xarray wants equal names to mean equal lengths."""
        if len(self.shape) == 2 and self.name.endswith(_VOCABULARY):
            return ("step", "vocab", "d_model")
        return ("step", *(f"{self.name}.{axis}" for axis in range(len(self.shape))))


@dataclass
class ChunkWriter:
    """Takes the bytes of one chunk in order. Not for use after its context has ended."""

    file: IO[bytes] = field(repr=False)
    expected: int
    written: int = 0
    _checksum: Any = field(default_factory=google_crc32c.Checksum, repr=False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. Raises `IntegrityError` when they are more than the tensor has."""
        view = memoryview(data).cast("B")
        self.written += len(view)
        if self.written > self.expected:
            raise IntegrityError(f"more than the tensor's {self.expected} bytes arrived")
        self._checksum.update(bytes(view) if not isinstance(data, bytes) else data)
        self.file.write(view)

    def finish(self) -> None:
        """End the chunk with its checksum."""
        if self.written != self.expected:
            raise IntegrityError(f"{self.written} of the tensor's {self.expected} bytes arrived")
        self.file.write(int.from_bytes(self._checksum.digest(), "big").to_bytes(CHECKSUM_BYTES, "little"))


class Store:
    """One model's weights on disk. Open it with `Store.open` or `Store.create`."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source
        self.name = path.name.removesuffix(".zarr")
        self._partial = path.with_name(f".{path.name}.partial")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=0.004)  # a record takes 4 ms
        self._places: dict[int, int] = {}  # step → index and tensor → spec never change once given
        self._known: dict[str, TensorSpec] = {}

    # -- opening ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """The store at a path. Raises `StoreError` when there is none, or it is not one of ours."""
        path = Path(path)
        if not path.is_dir():
            raise StoreError(f"no weight store at {path}; make one with pythia-dyn fetch")
        attributes = _open(path, zarr.open_group).attrs.get(_KEY)
        if not isinstance(attributes, Mapping) or "source" not in attributes:
            raise StoreError(f"{path} is a Zarr group but not a weight store of pythia-dyn; name another --cache")
        if attributes.get("format") != _FORMAT:
            raise StoreError(f"{path} was written by a newer pythia-dyn; update it, or name another --cache")
        return cls(path, str(attributes["source"]))

    @classmethod
    def create(cls, path: Path | str, *, source: str) -> Store:
        """The store at a path for weights of `source` (a repository id or a directory), made if need be.

        Raises `StoreError` when it holds another source's weights.
        """
        path = Path(path)
        store = cls(path, source)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with store._lock:
                for pattern in _UNFINISHED:  # nobody else writes metadata now: a killed process left these
                    for unfinished in path.glob(pattern):
                        unfinished.unlink(missing_ok=True)
                if path.exists() and any(path.iterdir()):
                    found = cls.open(path)
                    if found.source != source:
                        raise StoreError(
                            f"{path} holds the weights of {found.source}, not of {source}; "
                            "name another --cache or remove it"
                        )
                else:
                    attributes = {_KEY: {"format": _FORMAT, "source": source, "version": __version__}}
                    zarr.create_group(path, attributes=attributes)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
        if store._partial.is_dir():
            remove_stale(store._partial)
        return store

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensors it has, by name."""
        names = sorted(
            entry.name for entry in self.path.iterdir() if entry.name != "step" and (entry / "zarr.json").is_file()
        )
        return {name: self._spec(name) for name in names}

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step it has a place for, in order of arrival: the index of a step is the index of its chunk."""
        if not (self.path / "step" / "zarr.json").is_file():
            return ()
        return tuple(int(step) for step in np.asarray(_open(self.path / "step", zarr.open_array)[:]))

    def has(self, tensor: str, step: int) -> bool:
        """Whether a step's weights are there: the record, and a chunk of the right length."""
        if step not in self.records(tensor):
            return False
        path = self.chunk_path(tensor, step)
        return path.is_file() and path.stat().st_size == self._spec(tensor).nbytes + CHECKSUM_BYTES

    def records(self, tensor: str) -> dict[int, dict[str, Any]]:
        """Where the weights of each step came from, for every step that was written."""
        if not self._has_array(tensor):
            return {}
        return {int(step): dict(record) for step, record in self._attributes(tensor)["provenance"].items()}

    def missing(self, tensor: str) -> dict[int, str]:
        """The steps that could not be had, with the reason."""
        if not self._has_array(tensor):
            return {}
        return {int(step): str(why) for step, why in self._attributes(tensor)["missing"].items()}

    def check(self, tensor: str, step: int) -> None:
        """Read a chunk and compare it with its checksum. Raises `IntegrityError`."""
        spec, path = self._spec(tensor), self.chunk_path(tensor, step)
        try:
            content = memoryview(path.read_bytes())
        except OSError as error:
            raise IntegrityError(f"step {step} of {self.path} cannot be read: {error.strerror}") from None
        body, stored = content[: spec.nbytes], int.from_bytes(content[spec.nbytes :], "little")
        if len(content) != spec.nbytes + CHECKSUM_BYTES or google_crc32c.value(bytes(body)) != stored:
            raise IntegrityError(f"step {step} of {tensor} in {self.path} fails its checksum; fetch it again")

    def chunk_path(self, tensor: str, step: int) -> Path:
        """The file that holds, or will hold, a step's weights."""
        return self._chunk(self._spec(tensor), self._place(step))

    # -- writing ----------------------------------------------------------------------------------------------

    def ensure(self, tensors: Iterable[TensorSpec], steps: Iterable[int]) -> None:
        """Make room for these tensors and steps; what is there already stays where it is.

        Raises `StoreError` when a tensor is there with another shape or dtype.
        """
        with self._lock:
            known = self.steps
            grown = (*known, *sorted(set(steps) - set(known)))
            if len(grown) > len(known) or not known:
                self._write_steps(grown)
            present = self.tensors
            for spec in tensors:
                if spec.name not in present:
                    self._create_array(spec, len(grown))
                elif present[spec.name] != spec:
                    found = present[spec.name]
                    raise StoreError(
                        f"{self.path} has {spec.name} as {found.dtype}{list(found.shape)}, the source as "
                        f"{spec.dtype}{list(spec.shape)}; name another --cache or remove the store"
                    )
            for name in present:
                array = _open(self.path / name, zarr.open_array, "r+")
                if array.shape[0] < len(grown):
                    array.resize((len(grown), *array.shape[1:]))

    @contextmanager
    def writer(self, tensor: str, step: int, record: Mapping[str, Any]) -> Iterator[ChunkWriter]:
        """Write the weights of a step, which `ensure` has made room for.

        After a clean exit with exactly the tensor's bytes, the chunk and its `record` (where it came from; JSON)
        are in the store; after anything else the store is as it was. `record` is read at the exit, so the caller
        may complete it while it writes.
        """
        spec = self._spec(tensor)
        with atomic_file(self.chunk_path(tensor, step), scratch=self._partial) as file:
            writer = ChunkWriter(file, spec.nbytes)
            yield writer
            writer.finish()
        self._record(tensor, {"provenance": {str(step): dict(record)}}, forget=("missing", str(step)))

    def write(self, tensor: str, step: int, array: np.ndarray[Any, Any], record: Mapping[str, Any]) -> None:
        """Write the weights of a step from memory. The array has the tensor's shape and dtype, exactly."""
        spec = self._spec(tensor)
        if tuple(array.shape) != spec.shape or array.dtype != _native(spec.dtype):
            raise StoreError(
                f"{tensor} at step {step} is {array.dtype}{list(array.shape)}, "
                f"the store holds {spec.dtype}{list(spec.shape)}"
            )
        with self.writer(tensor, step, record) as writer:
            writer.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)

    def record_missing(self, tensor: str, reasons: Mapping[int, str]) -> None:
        """Record why steps could not be had. Raises `StoreError` for a tensor or step without a place."""
        if unknown := set(reasons) - set(self.steps):
            raise StoreError(f"{self.path} has no place for step {min(unknown)}")
        self._record(tensor, {"missing": {str(step): why for step, why in reasons.items()}})

    def forget(self, tensor: str, step: int) -> None:
        """Drop the record of a step, a damaged one say, so that the next fetch brings it again."""
        self._record(tensor, {}, forget=("provenance", str(step)))

    # -- the parts --------------------------------------------------------------------------------------------

    def _has_array(self, tensor: str) -> bool:
        return (self.path / tensor / "zarr.json").is_file()

    def _attributes(self, tensor: str) -> dict[str, Any]:
        attributes = dict(_open(self.path / tensor, zarr.open_array).attrs)
        if not all(isinstance(attributes.get(key), Mapping) for key in ("provenance", "missing")):
            raise StoreError(f"{self.path / tensor} has lost its records; move it away and fetch again")
        return attributes

    def _spec(self, tensor: str) -> TensorSpec:
        if tensor not in self._known:
            if not self._has_array(tensor):
                raise UnknownNameError("tensor", tensor, self.tensors, where=str(self.path))
            array = _open(self.path / tensor, zarr.open_array)
            self._known[tensor] = TensorSpec(tensor, np.dtype(array.dtype).name, tuple(array.shape[1:]))
        return self._known[tensor]

    def _place(self, step: int) -> int:
        if step not in self._places:
            self._places = {known: index for index, known in enumerate(self.steps)}
        if step not in self._places:
            raise UnknownNameError("step", step, self._places, where=str(self.path))
        return self._places[step]

    def _chunk(self, spec: TensorSpec, index: int) -> Path:
        return self.path.joinpath(spec.name, "c", str(index), *("0" for _ in spec.shape))

    def _write_steps(self, steps: tuple[int, ...]) -> None:
        path = self.path / "step"
        if (path / "zarr.json").is_file():
            array = _open(path, zarr.open_array, "r+")
            array.resize((len(steps),))
        else:
            array = zarr.create_array(
                path,
                shape=(len(steps),),
                chunks=(4096,),
                dtype="int64",
                dimension_names=["step"],
                fill_value=-1,
                compressors=None,
                attributes={"long_name": "training step", "units": "1"},
            )
        array[:] = np.array(steps, dtype=np.int64)

    def _create_array(self, spec: TensorSpec, length: int) -> None:
        zarr.create_array(
            self.path / spec.name,
            shape=(length, *spec.shape),
            chunks=(1, *spec.shape),
            dtype=_native(spec.dtype),
            dimension_names=spec.dimensions,
            fill_value=float("nan"),
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            attributes={"provenance": {}, "missing": {}, "source_dtype": spec.dtype},
        )

    def _record(
        self, tensor: str, additions: Mapping[str, Mapping[str, Any]], forget: tuple[str, str] | None = None
    ) -> None:
        with self._lock:
            array = _open(self.path / tensor, zarr.open_array, "r+")
            attributes = dict(array.attrs)
            changed = {key: {**attributes.get(key, {}), **new} for key, new in additions.items()}
            if forget is not None and forget[1] in attributes.get(forget[0], {}):
                kept = {key: why for key, why in attributes[forget[0]].items() if key != forget[1]}
                changed[forget[0]] = kept
            array.update_attributes(changed)


def _native(dtype: str) -> np.dtype[Any]:
    return _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


def _open(path: Path, opener: Any, mode: str = "r") -> Any:
    """Open a node with zarr, so that damage is one of our errors and not one of zarr's many."""
    try:
        return opener(path, mode=mode, zarr_format=3)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(f"{path} is not a readable Zarr v3 node ({reason}); move it away and fetch again") from None
