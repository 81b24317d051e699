"""Fetch the tensors of one revision into the store, as their bytes arrive."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from zlib_ng.zlib_ng import crc32  # vector instructions: six times the standard library's

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source, Traffic
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import FormatError, IntegrityError, PythiaDynError, StoreError, size
from pythia_dynamics.history.chunk import widening
from pythia_dynamics.history.provenance import record_of
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.whole import has_whole_checksum, read_whole, repeat_if_damaged

__all__ = ["Outcome", "Stores", "fetch_revision"]


class Stores:
    """The store, opened once in each thread of each process: threads must not share its lock."""

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()

    def __reduce__(self) -> tuple[type[Stores], tuple[Path]]:
        return (Stores, (self._path,))

    def get(self) -> Store:
        store: Store | None = getattr(self._local, "store", None)
        if store is None:
            store = self._local.store = Store.open(self._path)
        return store


@dataclass(frozen=True)
class Outcome:
    """The result of one revision: the reason for each tensor that failed, or the error that ends the whole fetch."""

    revision: Revision
    traffic: Traffic
    complete: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)
    fatal: PythiaDynError | None = None

    @property
    def said(self) -> str:
        """What has become of it, in words."""
        if self.complete:
            return f"fetched, {size(self.traffic.bytes)}"
        return str(self.fatal or "; ".join(self.reasons.values()) or "stopped")


def fetch_revision(
    source: Source,
    revision: Revision,
    held: frozenset[str],
    stores: Stores,
    wanted: Mapping[str, TensorSpec],
    cache: LayoutCache,
    stop: threading.Event | None,
    verify_whole: bool,
) -> Outcome:
    """Fetch the tensors of one revision that are not in `held`. All arguments can be pickled, for an executor."""
    done, taken = set(held), set(held)
    reasons: dict[str, str] = {}
    whole: dict[str, dict[TensorSlice, TensorSpec]] = defaultdict(dict)
    reader = RevisionReader(source, revision, headers_only=verify_whole)
    names = [spec.name for spec in wanted.values()]
    patterns = [pattern for pattern, spec in wanted.items() if spec.name not in held]
    fatal: PythiaDynError | None = None
    try:
        if stop is not None and stop.is_set():
            return Outcome(revision, source.traffic)
        store = stores.get()
        for request in reader.find(patterns, cache):
            asked = (request.tensor.name, *(request.roles or ()))
            spec, tensor = next(wanted[pattern] for pattern in patterns if pattern in asked), request.tensor
            if spec.name in taken:  # two roles that one tensor has at other steps
                continue
            try:
                if not spec.holds(found := TensorSpec(spec.name, tensor.dtype, tensor.shape)):
                    differs = f"{tensor.name} is {found} at {revision.ref}, and {spec} in the store"
                    raise FormatError(f"{differs}, which cannot hold it; name another --cache for it")
                taken.add(spec.name)
                if verify_whole and has_whole_checksum(tensor, reader.sha256.get(tensor.file)):
                    whole[tensor.file][tensor] = spec
                    continue
                repeat_if_damaged(partial(_store_tensor, store, spec, reader, request, stop))
                done.add(spec.name)
            except (IntegrityError, FormatError) as error:
                reasons[spec.name] = str(error)
        for tensors in whole.values():
            try:
                repeat_if_damaged(partial(_store_file, store, reader, tensors, stop))
                done |= {spec.name for spec in tensors.values()}
            except (IntegrityError, FormatError) as error:
                reasons |= {spec.name: str(error) for spec in tensors.values()}
    except (AccessError, StoreError) as error:
        fatal = error
    except PythiaDynError as error:
        if stop is None or not stop.is_set():
            reasons |= {name: str(error) for name in names if name not in done and name not in reasons}
    finally:
        reader.close()
    return Outcome(revision, source.traffic, len(done) == len(names), reasons, fatal)


def _store_tensor(
    store: Store, spec: TensorSpec, reader: RevisionReader, request: TensorRequest, stop: threading.Event | None
) -> None:
    """Write one tensor into its chunk as it arrives. Raises `IntegrityError` when it fails its checksum."""
    tensor, revision = request.tensor, reader.revision
    record = record_of(
        tensor,
        revision,
        store.recorded_source,
        check="transferred" if tensor.crc32 is None else "crc32",
        sha256=reader.sha256.get(tensor.file),
    )
    with store.writer(spec.name, revision.step, record) as writer:
        write = widening(writer.write, tensor.dtype, spec.dtype)
        checksum = 0
        for piece in reader.read(request):
            if stop is not None and stop.is_set():
                raise PythiaDynError("stopped")
            if tensor.crc32 is not None:
                checksum = crc32(piece, checksum)
            write(piece)
        if tensor.crc32 is not None and checksum != tensor.crc32:
            raise IntegrityError(f"{tensor.name} of {revision.ref} fails the checksum of {tensor.file}")


def _store_file(
    store: Store, reader: RevisionReader, tensors: Mapping[TensorSlice, TensorSpec], stop: threading.Event | None
) -> None:
    """Write the tensors of one file into their chunks, while the whole of it arrives and is compared."""
    source, revision = reader.source, reader.revision
    sha256 = reader.sha256[next(iter(tensors)).file]
    assert sha256 is not None
    with ExitStack() as writers:
        targets = {}
        for tensor, spec in tensors.items():
            record = record_of(tensor, revision, store.recorded_source, check="sha256", sha256=sha256)
            writer = writers.enter_context(store.writer(spec.name, revision.step, record))
            targets[tensor] = widening(writer.write, tensor.dtype, spec.dtype)
        read_whole(source, revision, targets, sha256=sha256, stop=lambda: stop is not None and stop.is_set())
