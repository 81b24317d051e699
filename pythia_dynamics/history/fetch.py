"""Fetch tensors of many revisions into a weight store, at the cost of their own bytes.

Revisions are independent: one that fails is recorded with its reason and the others go on, and a second fetch tries
only what is missing. Bytes stream from the source into the chunk files; a chunk appears whole or not at all.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from zlib_ng.zlib_ng import crc32  # vector instructions: six times the standard library's

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.layout import LayoutCache, TensorRequest
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.reader import ListingBudget, RevisionReader
from pythia_dynamics.checkpoints.registry import UNEMBEDDING, Model, resolve
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source, Traffic
from pythia_dynamics.errors import (
    CheckpointError,
    FormatError,
    IntegrityError,
    PythiaDynError,
    StoreError,
    UnknownNameError,
)
from pythia_dynamics.history.cache import store_path
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import Store, TensorSpec
from pythia_dynamics.history.survey import held_steps, summary, survey, wanted_steps
from pythia_dynamics.progress import Progress, silent

__all__ = ["FetchReport", "download", "fetch"]

_ATTEMPTS = 3
_SPARE = 64 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did. Steps are those that were asked for; `missing` says why for each that is not in the store.

    `fetched` arrived now, `present` were there before; `requests` are file requests and `api` those to the Hub's
    API; `bytes` arrived over the network or were read from files.
    """

    model: Model
    source: str
    path: Path
    tensors: tuple[TensorSpec, ...]
    steps: tuple[int, ...]
    fetched: tuple[int, ...]
    present: tuple[int, ...]
    missing: Mapping[int, str]
    requests: int
    api: int
    retries: int
    bytes: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every step that was asked for is in the store."""
        return not self.missing

    def histories(self) -> dict[str, History]:
        """The history of each tensor, of the steps that were asked for."""
        store = Store.open(self.path)
        return {spec.name: History.from_store(store, spec.name).select(self.steps) for spec in self.tensors}


def fetch(
    model: str | Path | Model,
    *,
    source: str | Source = "hub",
    steps: str | Iterable[int] | None = None,
    tensors: str | Sequence[str] = (UNEMBEDDING,),
    cache: str | Path | None = None,
    workers: int = 8,
    executor: Executor | None = None,
    pattern: str | None = None,
    progress: Progress = silent,
) -> History | dict[str, History]:
    """The history of a tensor of a model, fetched as far as it is not in the cache yet.

    With several tensors, or a glob, a history for each by name. Arguments and errors are those of `download`.
    """
    report = download(
        model,
        source=source,
        steps=steps,
        tensors=tensors,
        cache=cache,
        workers=workers,
        executor=executor,
        pattern=pattern,
        progress=progress,
    )
    histories = report.histories()
    names = [tensors] if isinstance(tensors, str) else list(tensors)
    return histories[names[0]] if len(names) == 1 and names[0] in histories else histories


def download(
    model: str | Path | Model,
    *,
    source: str | Source = "hub",
    steps: str | Iterable[int] | None = None,
    tensors: str | Sequence[str] = (UNEMBEDDING,),
    cache: str | Path | None = None,
    workers: int = 8,
    executor: Executor | None = None,
    pattern: str | None = None,
    progress: Progress = silent,
) -> FetchReport:
    """Bring tensors of a model's revisions into ``<cache>/<name>.zarr``.

    `model` is an alias, repository id or directory; `source` "hub", a directory of the model's checkpoints, or a
    `Source`. `steps` as `parse_steps` reads them, or numbers (default: the papers' 143 for Pythia, all for others).
    `tensors` are names and globs. `workers` revisions are fetched at once, or as many as `executor` takes.
    `pattern` reads the step from branch names of other suites. `progress` counts revisions.

    Raises `AccessError` when the repository cannot be had, `UnknownNameError` for a tensor or step it does not have,
    `CheckpointError` when not one step could be had, `StoreError` when the disk is full. What has been
    fetched stays then, and the same call goes on from there; also after Ctrl-C.
    """
    began = time.monotonic()
    found = model if isinstance(model, Model) else resolve(model)
    opened = open_source(found, source, pattern=pattern) if isinstance(source, str) else source
    patterns = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    if not patterns:
        raise PythiaDynError("no tensor is named; name at least one, for instance " + UNEMBEDDING)
    path = store_path(found.name, cache)
    wanted, listed = wanted_steps(found, steps)
    job = _Job(opened, path, patterns, wanted, listed)
    if not job.is_done():
        job.run(workers, executor, progress)
    traffic = opened.traffic
    return FetchReport(
        model=found,
        source=opened.location,
        path=path,
        tensors=tuple(job.specs),
        steps=job.steps,
        fetched=tuple(sorted(job.fetched)),
        present=tuple(sorted(job.present)),
        missing=dict(sorted(job.missing.items())),
        requests=traffic.requests,
        api=traffic.api,
        retries=traffic.retries,
        bytes=traffic.bytes,
        seconds=time.monotonic() - began,
    )


class _Job:
    """One fetch: what is wanted, what has come of it."""

    def __init__(
        self, source: Source, path: Path, patterns: tuple[str, ...], steps: tuple[int, ...] | None, named: bool
    ) -> None:
        self.source, self.path, self.patterns, self.named = source, path, patterns, named
        self.steps = steps or ()
        self.all_steps = steps is None
        self.specs: tuple[TensorSpec, ...] = ()
        self.held: dict[str, set[int]] = {}
        self.commits: Mapping[int, str | None] = {}
        self.missing: dict[int, str] = {}
        self.present: set[int] = set()
        self.fetched: set[int] = set()

    def is_done(self) -> bool:
        """Whether all of it is in the store, which then needs no network to say so. A directory is looked at anew."""
        if not self.path.is_dir() or self.all_steps or isinstance(self.source, LocalSource):
            return False
        known = Store.open(self.path).tensors
        if not all(pattern in known for pattern in self.patterns):
            return False
        self._look_up(tuple(known[pattern] for pattern in self.patterns))
        return len(self.present) == len(self.steps)

    def run(self, workers: int, executor: Executor | None, progress: Progress) -> None:
        revisions = self._choose(self.source.revisions())
        cache, listings = LayoutCache(), ListingBudget()
        self.commits = {step: revision.commit for step, revision in revisions.items()}
        self._prepare(revisions, cache, listings)
        todo = [revisions[step] for step in self.steps if step in revisions and step not in self.present]
        self._require_space(len(todo))
        stop = threading.Event()
        common = (_Stores(self.path), self.specs, cache, listings, stop if executor is None else None)
        pool = executor or ThreadPoolExecutor(max(1, workers), thread_name_prefix="fetch")
        fatal: PythiaDynError | None = None
        reasons: dict[str, dict[int, str]] = {spec.name: {} for spec in self.specs}
        kind = "folder" if isinstance(self.source, LocalSource) else "branch"
        for step in set(self.steps) - set(revisions):
            self._miss(step, f"{self.source.location} has no {kind} step{step}", reasons)
        futures: set[Future[_Outcome]] = set()
        try:
            for revision in todo:
                held = frozenset(name for name, steps in self.held.items() if revision.step in steps)
                futures.add(pool.submit(_fetch_revision, self.source.with_own_traffic(), revision, held, *common))
            pending = futures
            progress(0, len(futures))
            while pending and fatal is None:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for outcome in (future.result() for future in done):
                    self.source.traffic.merge(outcome.traffic)
                    fatal = fatal or outcome.fatal
                    if outcome.complete:
                        self.fetched.add(outcome.revision.step)
                    for name, why in outcome.reasons.items():
                        self._miss(outcome.revision.step, why, reasons, name)
                progress(len(futures) - len(pending), len(futures))
        finally:
            stop.set()
            if any(not future.done() for future in futures):
                self.source.cancel()
            for future in futures:
                future.cancel()
            if executor is None:
                pool.shutdown(wait=True)
            wait([future for future in futures if not future.cancelled()])
            store = Store.open(self.path)
            for name, missing in reasons.items():
                if missing:
                    store.record_missing(name, missing)
        self._conclude(fatal)

    # -- the parts --------------------------------------------------------------------------------------------

    def _choose(self, revisions: Mapping[int, Revision]) -> dict[int, Revision]:
        """The revisions that are wanted and there."""
        if self.all_steps:
            self.steps = tuple(revisions)
        chosen = {step: revisions[step] for step in self.steps if step in revisions}
        if not chosen and self.named:
            raise UnknownNameError("step", self.steps[0], revisions, where=self.source.location)
        if not chosen:
            has = ", ".join(map(str, list(revisions)[:6])) + (", …" if len(revisions) > 6 else "")
            raise CheckpointError(
                f"{self.source.location} has none of the steps {self.steps[0]} … {self.steps[-1]}; it has {has}"
            )
        return chosen

    def _prepare(self, revisions: Mapping[int, Revision], cache: LayoutCache, listings: ListingBudget) -> None:
        """Learn what the tensors are, and make room for them."""
        known = Store.open(self.path).tensors if self.path.is_dir() and any(self.path.iterdir()) else {}
        familiar = all(pattern in known for pattern in self.patterns)
        if familiar:
            self._look_up(tuple(known[pattern] for pattern in self.patterns))
        todo = [revision for step, revision in revisions.items() if step not in self.present]
        specs = self.specs
        try:
            if todo:
                sample = todo[:_ATTEMPTS] if familiar else todo
                surveyed = survey(self.source, sample, self.patterns, cache=cache, listings=listings)
                specs = tuple(known.get(spec.name, spec) for spec in surveyed.specs)
        except AccessError:
            raise
        except PythiaDynError:
            if not familiar:
                raise
        store = Store.create(self.path, source=self.source.location)
        store.ensure(specs, self.steps)
        self._look_up(specs)

    def _look_up(self, specs: tuple[TensorSpec, ...]) -> None:
        store = Store.open(self.path)
        self.specs = specs
        self.held = {spec.name: self._current(store, spec) for spec in specs}
        complete = set.intersection(*self.held.values()) if self.held else set()
        self.present = complete & set(self.steps)

    def _current(self, store: Store, spec: TensorSpec) -> set[int]:
        """The steps whose weights are in the store and, where that is known, of the commit the source has now."""
        held = held_steps(store, spec)
        records = store.records(spec.name)  # after: another process may be adding to them
        return {
            step
            for step in held
            if step not in self.commits or records.get(step, {}).get("commit") == self.commits[step]
        }

    def _require_space(self, revisions: int) -> None:
        need = revisions * sum(spec.nbytes for spec in self.specs)
        free = shutil.disk_usage(self.path).free
        if need + _SPARE > free:
            raise StoreError(
                f"{self.path.parent} has {free / 1e9:.2f} GB free, the weights need {need / 1e9:.2f} GB; "
                "free some, name another --cache, or ask for fewer steps"
            )

    def _miss(self, step: int, why: str, reasons: dict[str, dict[int, str]], tensor: str | None = None) -> None:
        for name in reasons if tensor is None else (tensor,):
            if step not in self.held.get(name, ()):
                reasons[name][step] = why
                self.missing.setdefault(step, why)

    def _conclude(self, fatal: PythiaDynError | None) -> None:
        here = len(self.fetched | self.present)
        if fatal is not None:
            hint = f"; {here} of {len(self.steps)} steps are in {self.path}, the same fetch goes on from there"
            raise type(fatal)(f"{fatal}{hint if here else ''}") from None
        if not here and self.steps:
            raise CheckpointError(
                f"none of the {len(self.steps)} steps of {self.source.location} could be fetched: "
                f"{summary(self.missing.values())}"
            )


class _Stores:
    """The store, opened once by each thread of each process: its lock is not for threads to share."""

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()

    def __reduce__(self) -> tuple[type[_Stores], tuple[Path]]:
        return (_Stores, (self._path,))

    def mine(self) -> Store:
        store: Store | None = getattr(self._local, "store", None)
        if store is None:
            store = self._local.store = Store.open(self._path)
        return store


@dataclass(frozen=True)
class _Outcome:
    """What came of one revision: the reason for each tensor that failed, or a failure that ends the whole fetch."""

    revision: Revision
    traffic: Traffic
    complete: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)
    fatal: PythiaDynError | None = None


def _fetch_revision(
    source: Source,
    revision: Revision,
    held: frozenset[str],
    stores: _Stores,
    specs: Sequence[TensorSpec],
    cache: LayoutCache,
    listings: ListingBudget,
    stop: threading.Event | None,
) -> _Outcome:
    """Fetch the tensors of one revision that are not held yet. Sent to an executor, so all arguments pickle."""
    done = set(held)
    reasons: dict[str, str] = {}
    reader = RevisionReader(source, revision)
    names = [spec.name for spec in specs]
    by_name = {spec.name: spec for spec in specs}
    fatal: PythiaDynError | None = None
    try:
        if stop is not None and stop.is_set():
            return _Outcome(revision, source.traffic)
        store = stores.mine()
        for request in reader.find(names, cache, skip=held, listings=listings):
            spec = by_name[request.tensor.name]
            try:
                _store_tensor(store, spec, source, revision, reader, request, stop)
                done.add(spec.name)
            except IntegrityError as error:
                reasons[spec.name] = str(error)
            except FormatError as error:
                reasons[spec.name] = str(error)
    except (AccessError, StoreError) as error:
        fatal = error
    except PythiaDynError as error:
        if stop is None or not stop.is_set():
            reasons |= {name: str(error) for name in names if name not in done and name not in reasons}
    finally:
        with suppress(PythiaDynError):
            reader.close()
    return _Outcome(revision, source.traffic, len(done) == len(names), reasons, fatal)


def _store_tensor(
    store: Store,
    spec: TensorSpec,
    source: Source,
    revision: Revision,
    reader: RevisionReader,
    request: TensorRequest,
    stop: threading.Event | None,
) -> None:
    """Stream one tensor into its chunk. Raises `IntegrityError` when it arrives damaged time and again."""
    tensor = request.tensor
    if (tensor.dtype, tensor.shape) != (spec.dtype, spec.shape):
        raise FormatError(
            f"{tensor.name} is {tensor.dtype}{list(tensor.shape)} at {revision.ref}, elsewhere "
            f"{spec.dtype}{list(spec.shape)}"
        )
    for attempt in range(1, _ATTEMPTS + 1):
        record: dict[str, object] = {
            "repo": source.location,
            "ref": revision.ref,
            "commit": revision.commit,
            "file": tensor.file,
            "start": tensor.start,
            "stop": tensor.stop,
            "dtype": tensor.dtype,
            "version": __version__,
        }
        try:
            with store.writer(tensor.name, revision.step, record) as writer:
                checksum = 0
                for piece in reader.read(request):
                    if stop is not None and stop.is_set():
                        raise PythiaDynError("stopped")
                    if tensor.crc32 is not None:
                        checksum = crc32(piece, checksum)
                    writer.write(piece)
                if tensor.crc32 is not None and checksum != tensor.crc32:
                    raise IntegrityError(f"{tensor.name} of {revision.ref} fails the checksum of {tensor.file}")
                record["sha256"] = reader.sha256.get(tensor.file)
                record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        except IntegrityError:
            if attempt == _ATTEMPTS:
                raise
        except OSError as error:
            full = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
            raise StoreError(f"cannot write {store.path}: {full}") from None
        else:
            return
