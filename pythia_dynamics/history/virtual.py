"""Virtual histories: a store has where the weights of a step are, pinned to a commit, instead of the weights.

The weights are read from their source when they are measured, in parts, and compared with the CRC-32 that a torch file
states of them. The places are also written as references (the format of Kerchunk, which fsspec and xarray read).
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import IntegrityError, PythiaDynError, StoreError
from pythia_dynamics.files import atomic_file, store_errors
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.parted import Ranges, temporary_room
from pythia_dynamics.history.provenance import VIRTUAL, record_of
from pythia_dynamics.history.remote import Located, LostStepsError, RemoteWeights, checksum_fails
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.transfer import Outcome, Stores
from pythia_dynamics.objects import ObjectPath, Place
from pythia_dynamics.progress import Progress

__all__ = ["REFERENCES", "VirtualWeights", "refer_revision", "virtual_weights", "write_references"]

REFERENCES = "references.json"
"""Name of the file in a store."""


def refer_revision(
    source: Source,
    revision: Revision,
    held: frozenset[str],
    stores: Stores,
    wanted: Mapping[str, TensorSpec],
    cache: LayoutCache,
    stop: threading.Event | None,
    verify_whole: bool,
) -> Outcome:
    """Record where the tensors of one revision are. Parameters as of `fetch_revision`, which stores their bytes."""
    reader = RevisionReader(source, revision, headers_only=True)
    patterns = [pattern for pattern, spec in wanted.items() if spec.name not in held]
    done, reasons = set(held), dict[str, str]()
    fatal: PythiaDynError | None = None
    try:
        if stop is not None and stop.is_set():
            return Outcome(revision, source.traffic)
        for request in reader.find(patterns, cache):
            tensor, asked = request.tensor, (request.tensor.name, *(request.roles or ()))
            spec = next(wanted[pattern] for pattern in patterns if pattern in asked)
            if spec.name in done:
                continue
            found = TensorSpec(spec.name, tensor.dtype, tensor.shape)
            if (found.dtype, found.shape) != (spec.dtype, spec.shape):
                reasons[spec.name] = f"{tensor.name} is {found} at {revision.ref}, and {spec} at the other steps"
                continue
            sha256 = reader.sha256.get(tensor.file)
            record = record_of(tensor, revision, stores.get().recorded_source, check="virtual", sha256=sha256)
            record[VIRTUAL] = {
                "url": source.url(revision, tensor.file),
                "crc32": tensor.crc32,
                "kind": revision.kind,
                "folder": revision.folder,
                "of": revision.file,
                "repository": revision.repository,
            }
            take = stores.recorder(spec.name, revision.step) or stores.get().record_written
            take(spec.name, {revision.step: record})
            done.add(spec.name)
    except (AccessError, StoreError) as error:
        fatal = error
    except PythiaDynError as error:
        if stop is None or not stop.is_set():
            reasons |= {spec.name: str(error) for spec in wanted.values() if spec.name not in {*done, *reasons}}
    finally:
        reader.close()
    return Outcome(revision, source.traffic, len(done) == len(wanted), reasons, fatal)


class VirtualWeights(RemoteWeights):
    """Reads parts of a tensor from its source, and those of steps that are stored from their chunks.

    Parameters
    ----------
    source, spec, located
        As for `RemoteWeights`.
    chunks
        The chunks of steps that are stored.
    """

    reads_anywhere = True

    def __init__(
        self, source: Source, spec: TensorSpec, located: Mapping[int, Located], chunks: Mapping[int, Place]
    ) -> None:
        super().__init__(source, spec, located, *temporary_room())
        self.chunks = {step: chunk.absolute() for step, chunk in chunks.items()}

    def _read(self, paths: Mapping[int, Path], ranges: Ranges, progress: Progress) -> None:
        """Read ranges of all steps into their files."""
        stored = [step for step in paths if step in self.chunks]
        virtual = {step: path for step, path in paths.items() if step not in self.chunks}
        width, count = self.spec.numpy_dtype.itemsize, len(paths)
        for step in stored:
            with store_errors(paths[step]), paths[step].open("wb") as file:
                for start, stop in ranges:
                    file.write(_chunk_bytes(self.chunks[step], start * width, stop * width, step))
                file.write(bytes(CHECKSUM_BYTES))
        try:
            if virtual:
                super()._read(virtual, ranges, lambda done, total: progress(len(stored) + done, count))
        except LostStepsError as lost:  # nothing measures a history of a store again
            raise IntegrityError(str(lost)) from None

    def _failed(self, steps: list[int]) -> None:
        """Say which steps fail their checksum: their weights may be in sums already."""
        raise IntegrityError("; ".join(checksum_fails(self.located[step]) for step in steps))


def _chunk_bytes(chunk: Place, start: int, stop: int, step: int) -> bytes:
    """A range of a chunk that is stored."""
    try:
        if isinstance(chunk, ObjectPath):
            return bytes(chunk.read_ranges([(start, stop)])[0])
        with chunk.open("rb") as file:
            file.seek(start)
            found = file.read(stop - start)
    except OSError as error:
        raise IntegrityError(f"the weights at step {step} cannot be read ({chunk}: {error.strerror})") from None
    if len(found) != stop - start:
        raise IntegrityError(f"the weights at step {step} are damaged ({chunk} is too short); fetch them again")
    return found


def virtual_weights(
    store: Store, spec: TensorSpec, records: Mapping[int, Mapping[str, Any]], chunks: Mapping[int, Place]
) -> VirtualWeights:
    """What reads a tensor of a store that has only the places of some of its steps.

    Parameters
    ----------
    store, spec
        The store, and the tensor.
    records
        The records of its steps.
    chunks
        The chunks of those that are stored.
    """
    model = replace(resolve(store.source), suite=store.suite)
    located = {step: _located(step, record, spec) for step, record in records.items() if step not in chunks}
    return VirtualWeights(open_source(model), spec, located, chunks)


def _located(step: int, record: Mapping[str, Any], spec: TensorSpec) -> Located:
    """Where a tensor is, from the record of its step."""
    more = record[VIRTUAL]
    revision = Revision(
        step,
        record["ref"],
        record["commit"],
        kind=more["kind"],
        folder=more["folder"],
        file=more["of"],
        repository=more["repository"],
    )
    start, stop = int(record["start"]), int(record["stop"])
    tensor = TensorSlice(record["tensor"], record["file"], start, stop, record["dtype"], spec.shape, more["crc32"])
    return Located(revision, tensor)


# -- references -----------------------------------------------------------------------------------------------


def write_references(store: Store) -> Place:
    """Write the places of all weights of a store as references, ``references.json`` in it.

    Each chunk is a URL, an offset and a length, those that are stored too; there are no checksums. xarray opens the
    file through fsspec's file system of references, and reads ranges of the files themselves.
    """
    path = store.path / REFERENCES
    refs: dict[str, Any] = {"zarr.json": _text(store.path / "zarr.json")}
    for name in ("step", "tokens", "learning_rate"):
        array = store.path / name
        if (array / "zarr.json").is_file():
            metadata = json.loads(_text(array / "zarr.json"))
            (count,) = metadata["chunk_grid"]["configuration"]["chunk_shape"] = metadata["shape"]
            refs[f"{name}/zarr.json"] = json.dumps(metadata)
            chunk = (array / "c" / "0").read_bytes()[: 8 * count]  # the rest has no values
            refs[f"{name}/c/0"] = "base64:" + base64.b64encode(chunk).decode()
    for name, spec in store.tensors.items():
        metadata = json.loads(_text(store.path / name / "zarr.json"))
        metadata["codecs"] = [codec for codec in metadata["codecs"] if codec["name"] == "bytes"]
        metadata["attributes"] = {key: value for key, value in metadata["attributes"].items() if key != "provenance"}
        refs[f"{name}/zarr.json"] = json.dumps(metadata)
        for step, record in store.records(name).items():
            chunk_path = store.chunk_path(name, step)
            key = str(chunk_path)[len(str(store.path)) + 1 :]  # <tensor>/c/<index>/0/0
            if VIRTUAL in record:
                refs[key] = [record[VIRTUAL]["url"], record["start"], record["stop"] - record["start"]]
            else:
                refs[key] = [str(chunk_path.absolute()), 0, spec.nbytes]
    content = json.dumps({"version": 1, "refs": refs}).encode()
    if isinstance(path, ObjectPath):
        path.put(content)
    else:
        with atomic_file(path) as file:
            file.write(content)
    return path


def _text(place: Place) -> str:
    return place.read_bytes().decode()
