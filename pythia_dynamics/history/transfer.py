"""Fetch the tensors of one revision into the store, as their bytes arrive."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from zlib_ng.zlib_ng import crc32  # vector instructions: six times the standard library's

from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source, Traffic
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import FormatError, IntegrityError, PythiaDynError, StoreError, size
from pythia_dynamics.executors import Pool, as_executor
from pythia_dynamics.history.chunk import widening
from pythia_dynamics.history.provenance import Recorder, record_of
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.whole import has_whole_checksum, read_whole, repeat_if_damaged
from pythia_dynamics.objects import Place
from pythia_dynamics.progress import Progress

__all__ = ["Outcome", "Stores", "fetch_revision", "run_all"]

_LOG = logging.getLogger(__name__)


_FLUSH_SECONDS = 1.0
"""How long records of chunks wait for others of their tensor. Writing the records of a tensor takes 4 ms, for one step
or for all: those of 40 small tensors took 80 % of the time of a fetch. A killed process loses what it has written in
the last second, since a chunk without a record is fetched again."""


class Stores:
    """The store, opened once in each thread of each process: threads must not share its lock.

    Records of chunks that were not there before are collected, and written together once a second and by `flush`. Those
    of chunks that replace others are written at once, and so are all in another process.
    """

    def __init__(self, path: Place, *, collects: bool = True) -> None:
        self._path, self._local, self._collects = path, threading.local(), collects
        self._waiting: dict[str, dict[int, Mapping[str, Any]]] = {}
        self._flushed, self._lock = time.monotonic(), threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Stores, collects=False), (self._path.absolute(),)

    def recorder(self, tensor: str, step: int) -> Recorder | None:
        """What takes the record of a chunk that is going to be written; None to write it at once."""
        is_new = self._collects and not self.get().chunk_path(tensor, step).exists()
        return self._collect if is_new else None

    def _collect(self, tensor: str, records: Mapping[int, Mapping[str, Any]]) -> None:
        with self._lock:
            self._waiting.setdefault(tensor, {}).update({step: dict(record) for step, record in records.items()})
            is_due = time.monotonic() - self._flushed > _FLUSH_SECONDS
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write the records that have been collected. Raises `StoreError`."""
        with self._lock:
            waiting, self._waiting, self._flushed = self._waiting, {}, time.monotonic()
        for tensor, records in waiting.items():
            self.get().record_written(tensor, records)

    def get(self) -> Store:
        store: Store | None = getattr(self._local, "store", None)
        if store is None:
            store = self._local.store = Store.open(self._path)
        return store


@dataclass(frozen=True)
class Outcome:
    """The result of one revision: the reason for each tensor that failed, or the error that ends the whole fetch.

    `tensor` is where a tensor was found that was only located.
    """

    revision: Revision
    traffic: Traffic
    complete: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)
    fatal: PythiaDynError | None = None
    tensor: TensorSlice | None = None

    @property
    def said(self) -> str:
        """What has become of it, in words."""
        if self.complete:
            return f"fetched, {size(self.traffic.bytes)}"
        return str(self.fatal or "; ".join(self.reasons.values()) or "stopped")


def run_all(
    source: Source,
    calls: Sequence[Callable[[], Outcome]],
    *,
    workers: int,
    executor: Pool | None,
    stop: threading.Event,
    progress: Progress,
) -> Generator[Outcome, None, None]:
    """Run calls for revisions at once, and yield their outcomes as they arrive.

    After an outcome with a fatal error the others are cancelled. Close the generator (`contextlib.closing`), so that
    no call is running afterwards, whatever ends the loop.

    Parameters
    ----------
    source
        What the calls read from. It counts their traffic, and its reads are cancelled when the loop ends early.
    calls
        One for each revision. For an executor of processes they must be picklable.
    workers
        Calls that run at once, in threads.
    executor
        Runs the calls instead of own threads.
    stop
        Set when the loop ends; the calls may look at it.
    progress
        Called with the number of calls that are done and of all.
    """
    pool = as_executor(executor) or ThreadPoolExecutor(max(1, workers), thread_name_prefix="fetch")
    futures: set[Future[Outcome]] = set()
    try:
        for call in calls:
            futures.add(pool.submit(call))
        pending, fatal = futures, False
        progress(0, len(futures))
        while pending and not fatal:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for outcome in (future.result() for future in done):
                source.traffic.merge(outcome.traffic)
                fatal = fatal or outcome.fatal is not None
                _LOG.info("step %d: %s", outcome.revision.step, outcome.said)
                yield outcome
            progress(len(futures) - len(pending), len(futures))
    finally:
        stop.set()
        if any(not future.done() for future in futures):
            source.cancel()
        for future in futures:
            future.cancel()
        if executor is None:
            pool.shutdown(wait=True)
        wait([future for future in futures if not future.cancelled()])


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
                repeat_if_damaged(partial(_store_tensor, stores, spec, reader, request, stop))
                done.add(spec.name)
            except (IntegrityError, FormatError) as error:
                reasons[spec.name] = str(error)
        for tensors in whole.values():
            try:
                repeat_if_damaged(partial(_store_file, stores, reader, tensors, stop))
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
    stores: Stores, spec: TensorSpec, reader: RevisionReader, request: TensorRequest, stop: threading.Event | None
) -> None:
    """Write one tensor into its chunk as it arrives. Raises `IntegrityError` when it fails its checksum."""
    tensor, revision, store = request.tensor, reader.revision, stores.get()
    record = record_of(
        tensor,
        revision,
        store.recorded_source,
        check="transferred" if tensor.crc32 is None else "crc32",
        sha256=reader.sha256.get(tensor.file),
    )
    recorder = stores.recorder(spec.name, revision.step)
    with store.writer(spec.name, revision.step, record, recorded=recorder) as writer:
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
    stores: Stores, reader: RevisionReader, tensors: Mapping[TensorSlice, TensorSpec], stop: threading.Event | None
) -> None:
    """Write the tensors of one file into their chunks, while the whole of it arrives and is compared."""
    source, revision, store = reader.source, reader.revision, stores.get()
    sha256 = reader.sha256[next(iter(tensors)).file]
    assert sha256 is not None
    with ExitStack() as writers:
        targets = {}
        for tensor, spec in tensors.items():
            record = record_of(tensor, revision, store.recorded_source, check="sha256", sha256=sha256)
            recorder = stores.recorder(spec.name, revision.step)
            writer = writers.enter_context(store.writer(spec.name, revision.step, record, recorded=recorder))
            targets[tensor] = widening(writer.write, tensor.dtype, spec.dtype)
        read_whole(source, revision, targets, sha256=sha256, stop=lambda: stop is not None and stop.is_set())
