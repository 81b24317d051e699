"""Fetch tensors of many revisions into a weight store, transferring little more than their own bytes.

Revisions are independent: one that fails is recorded with its reason and the others go on, and a second fetch requests
only what is missing. Bytes are written to the chunk files as they arrive; a chunk appears complete or not at all.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from zlib_ng.zlib_ng import crc32  # vector instructions: six times the standard library's

from pythia_dynamics.checkpoints.directory_rate import stated_learning_rate
from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.learning_rate import LoggedLearningRate, rates_at
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.reader import ListingBudget, RevisionReader
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source, Traffic
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import (
    CheckpointError,
    FormatError,
    IntegrityError,
    PythiaDynError,
    StoreError,
    UnknownNameError,
    listed,
    size,
)
from pythia_dynamics.history.history import History
from pythia_dynamics.history.provenance import record_of, weakest_checks
from pythia_dynamics.history.report import FetchReport
from pythia_dynamics.history.request import WORKERS, FetchRequest
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.survey import most_common, stored_steps, survey
from pythia_dynamics.history.whole import has_whole_checksum, read_whole, repeat_if_damaged
from pythia_dynamics.progress import Progress, silent

__all__ = ["download", "fetch"]

_SAMPLE = 3
"""Revisions whose headers are read to learn the layout when the tensors are in the store already. More would be read
only if these cannot be, and then the fetch itself reports each of them."""

_RESERVE_BYTES = 64 * 2**20
"""Disk space that a fetch leaves free: for the records (60 KB a tensor for 154 steps, rewritten for every step) and for
whatever else writes to the same disk."""


def fetch(
    model: str | Path | Model,
    *,
    tensor: str = UNEMBEDDING,
    workers: int = WORKERS,
    executor: Executor | None = None,
    progress: Progress = silent,
    **options: Any,
) -> History:
    """Fetch one tensor of a model, as far as it is not in the cache yet, and open its history.

    Parameters
    ----------
    model
        An alias (``70m``), a repository id, the name of a store, a directory of checkpoints, or a `Model`.
    tensor
        Its role (``unembedding``, ``embedding``), its name in the checkpoint files, or a glob that matches one.
    workers, executor, progress
        As for `download`.
    **options
        The other fields of `FetchRequest`, by name: `steps`, `source`, `cache`, `suite`, `learning_rate`,
        `verify_whole`.

    Returns
    -------
    History
        The requested steps in increasing order; a step that could not be fetched has no weights and a reason in
        `History.missing`.

    Raises
    ------
    PythiaDynError
        As `download`; or `tensor` matches several tensors, which `download` takes.
    """
    if "tensors" in options:
        raise UnknownNameError("option", "tensors", ["tensor"], where="fetch")
    keywords = ("tensor", "workers", "executor", "progress")
    request = FetchRequest.of(model, {**options, "tensors": (tensor,)}, others=keywords)
    (history,) = _download(request, workers, executor, progress, only_one=True).histories().values()
    return history


def download(
    model: str | Path | Model | FetchRequest,
    *,
    workers: int = WORKERS,
    executor: Executor | None = None,
    progress: Progress = silent,
    **options: Any,
) -> FetchReport:
    """Fetch tensors of a model into its store ``<cache>/<name>.zarr``, as far as they are not in it yet.

    A revision that fails is recorded with its reason, and the others go on. After an error or an interrupt, what was
    fetched stays in the store, and the same call fetches the rest.

    Parameters
    ----------
    model
        An alias (``70m``), a repository id, the name of a store, a directory of checkpoints, a `Model`, or a
        `FetchRequest`.
    workers
        Revisions that are fetched at once, in threads.
    executor
        Runs the revisions instead of own threads. Processes work as well.
    progress
        Called with the number of revisions that are done and of all.
    **options
        Fields of `FetchRequest`, by name: `tensors`, `steps`, `source`, `cache`, `suite`, `learning_rate`,
        `verify_whole`.

    Raises
    ------
    AccessError
        The repository does not exist, is gated, or cannot be reached.
    UnknownNameError
        There is no such model, tensor, step or option.
    CheckpointError
        Not one step could be fetched.
    StoreError
        The disk is full, or the store cannot be written.
    """
    request = FetchRequest.of(model, options, others=("workers", "executor", "progress"))
    return _download(request, workers, executor, progress)


def _download(
    request: FetchRequest, workers: int, executor: Executor | None, progress: Progress, *, only_one: bool = False
) -> FetchReport:
    """`download`; with `only_one`, several matching tensors are an error before any weights are read."""
    began = time.monotonic()
    source = request.open_source()
    job = _Job(request, source, only_one)
    if job.is_done():
        job.keep_suite()
    else:
        job.run(workers, executor, progress)
    return FetchReport(
        model=request.resolved,
        source=source.location,
        path=request.path,
        tensors=job.specs,
        steps=job.steps,
        fetched=tuple(sorted(job.fetched)),
        present=tuple(sorted(job.present)),
        missing=dict(sorted(job.missing.items())),
        checks=weakest_checks(map(Store.open(request.path).records, (spec.name for spec in job.specs)), job.steps),
        **source.traffic.counts(),
        seconds=time.monotonic() - began,
    )


class _Job:
    """One fetch: the request, and its results so far."""

    def __init__(self, request: FetchRequest, source: Source, only_one: bool) -> None:
        self.request, self.source, self.only_one = request, source, only_one
        self.path, self.patterns = request.path, request.patterns
        self.steps = request.wanted or ()
        self.known: Mapping[str, TensorSpec] = {}
        self.specs: tuple[TensorSpec, ...] = ()
        self.stored: dict[str, set[int]] = {}
        self.commits: Mapping[int, str | None] = {}
        self.reasons: dict[str, dict[int, str]] = defaultdict(dict)
        self.missing: dict[int, str] = {}
        self.present: set[int] = set()
        self.fetched: set[int] = set()

    def is_done(self) -> bool:
        """Whether the store has all of it, which takes no network to know. Directories may have changed since."""
        if self.request.wanted is None or isinstance(self.source, LocalSource) or not self._knows_tensors():
            return False
        return len(self.present) == len(self.steps)

    def keep_suite(self) -> None:
        """Write the suite and the learning rate of the request into the store, whose weights are complete."""
        if self.request.suite or self.request.learning_rate is not None:
            self._require_learning_rate()
            Store.create(self.path, source=self.source.location, suite=self._suite())

    def run(self, workers: int, executor: Executor | None, progress: Progress) -> None:
        """Fetch what is not in the store. Raises as `download`, after every revision has ended or was cancelled."""
        revisions = self._requested(self.source.revisions())
        cache, listings = LayoutCache(rule=self.source.suite.roles), ListingBudget()
        self.commits = {step: revision.commit for step, revision in revisions.items()}
        self._find_tensors(revisions, cache, listings)
        todo = [revisions[step] for step in self.steps if step in revisions and step not in self.present]
        self._require_space(len(todo))
        stop = threading.Event()
        wanted = {self._asked_as(spec): spec for spec in self.specs}
        events = stop if executor is None else None
        common = (_Stores(self.path), wanted, cache, listings, events, self.request.verify_whole)
        pool = executor or ThreadPoolExecutor(max(1, workers), thread_name_prefix="fetch")
        fatal: PythiaDynError | None = None
        for step in set(self.steps) - set(revisions):
            for name in self.stored:
                self._add_missing(step, f"{self.source.location} has no step {step}", name)
        futures: set[Future[_Outcome]] = set()
        try:
            for revision in todo:
                held = frozenset(name for name, steps in self.stored.items() if revision.step in steps)
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
                        self._add_missing(outcome.revision.step, why, name)
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
            for name, reasons in self.reasons.items():
                kept = (
                    store.records(name) if self.request.verify_whole else {}
                )  # what it could not check, is still there
                store.record_missing(name, {step: why for step, why in reasons.items() if step not in kept})
        self._raise_failure(fatal)

    # -- parts of `run` ---------------------------------------------------------------------------------------

    def _requested(self, revisions: Mapping[int, Revision]) -> dict[int, Revision]:
        """The requested revisions that the source has."""
        if self.request.wanted is None:
            self.steps = tuple(revisions)
        chosen = {step: revisions[step] for step in self.steps if step in revisions}
        if not chosen and self.request.names_each_step:
            raise UnknownNameError("step", self.steps[0], revisions, where=self.source.location)
        if not chosen:
            none_of = f"{self.source.location} has none of the steps {self.steps[0]} … {self.steps[-1]}"
            raise CheckpointError(f"{none_of}; it has {listed(list(revisions))}")
        return chosen

    def _find_tensors(self, revisions: Mapping[int, Revision], cache: LayoutCache, listings: ListingBudget) -> None:
        """Find out what the tensors are, and make room for them in the store."""
        all_known = self._knows_tensors()
        todo = [revision for step, revision in revisions.items() if step not in self.present]
        specs = self.specs
        try:
            if todo:
                sample = todo[:_SAMPLE] if all_known else todo
                surveyed = survey(self.source, sample, self.patterns, cache=cache, listings=listings)
                specs = tuple(_merged(self.known.get(spec.name), spec) for spec in surveyed.specs)
        except AccessError:
            raise
        except PythiaDynError:
            if not all_known:
                raise
        if self.only_one and len(specs) > 1:
            names = ", ".join(spec.name for spec in specs[:6]) + (", …" if len(specs) > 6 else "")
            found = f"{self.patterns[0]!r} matches {len(specs)} tensors ({names})"
            raise PythiaDynError(f"{found}; fetch takes one, download takes several")
        self._require_learning_rate()
        tokens = {step: revision.tokens for step, revision in revisions.items()}
        store = Store.create(self.path, source=self.source.location, suite=self._suite())
        stated = None
        if store.suite.learning_rate is None and isinstance(self.source, LocalSource):
            stated = stated_learning_rate(self.source.location, revisions)
        store.ensure(specs, self.steps, tokens, stated)
        self._read_store(specs)

    def _suite(self) -> Suite:
        """The suite to record: that of the source, with the learning rate that a user gave the store before.

        A schedule of the registry does not replace values that were given; only others that are given do.
        """
        suite = self.source.suite
        if self.request.learning_rate is None and not self.request.suite and Store.exists(self.path):
            given = Store.open(self.path).suite.learning_rate
            if isinstance(given, LoggedLearningRate):
                return replace(suite, learning_rate=given)
        return suite

    def _require_learning_rate(self) -> None:
        """Raise `PythiaDynError` if the learning rate of the request has none of the steps."""
        rate = self.source.suite.learning_rate
        if self.request.learning_rate is not None and rate is not None:
            rates_at(rate, self.steps, where=self.request.resolved.name)

    def _asked_as(self, spec: TensorSpec) -> str:
        """What each revision is asked for to get a tensor: its role where that was requested, else its name.

        Some revisions of a tied model have the unembedding under its own name as well, others do not.
        """
        roles = [role for role in spec.roles or () if role in self.patterns]
        return roles[0] if roles and spec.name not in self.patterns else spec.name

    def _knows_tensors(self) -> bool:
        """Whether the store has a tensor of each requested name; if so, find out which of their steps it has."""
        store = Store.open(self.path) if Store.exists(self.path) else None
        self.known = store.tensors if store else {}
        named = {str(role): name for role, name in (store.roles.items() if store else ())}
        named |= {name: name for name in self.known}
        if not all(pattern in named for pattern in self.patterns):
            return False
        self._read_store(tuple(self.known[name] for name in dict.fromkeys(named[p] for p in self.patterns)))
        return True

    def _read_store(self, specs: tuple[TensorSpec, ...]) -> None:
        """Find out which of the requested steps are in the store."""
        store = Store.open(self.path)
        self.specs = specs
        self.stored = {spec.name: self._up_to_date(store, spec) for spec in specs}
        self.present = set(self.steps).intersection(*self.stored.values())

    def _up_to_date(self, store: Store, spec: TensorSpec) -> set[int]:
        """The steps whose weights are in the store and of the source's present commit, where that is known.

        Of those that `verify_whole` can check, the ones that have been checked.
        """
        stored = stored_steps(store, spec, verify_whole=self.request.verify_whole)
        records = store.records(spec.name)  # read after: another process may be adding to them
        changed = {step for step, commit in self.commits.items() if records.get(step, {}).get("commit") != commit}
        return stored - changed

    def _require_space(self, revisions: int) -> None:
        """Raise `StoreError` if the disk has too little space for so many revisions."""
        need = revisions * sum(spec.nbytes for spec in self.specs)
        free = shutil.disk_usage(self.path).free
        if revisions and need + _RESERVE_BYTES > free:
            what = f"{size(free)} free, {size(need)} needed and {size(_RESERVE_BYTES)} in reserve"
            raise StoreError(f"{self.path.parent} has {what}; free some, name another --cache, or fetch fewer steps")

    def _add_missing(self, step: int, why: str, tensor: str) -> None:
        """Note why a step of a tensor is missing, unless it is in the store."""
        if step not in self.stored[tensor]:
            self.reasons[tensor][step] = why
            self.missing.setdefault(step, why)

    def _raise_failure(self, fatal: PythiaDynError | None) -> None:
        """Raise the error that ended the fetch, or one when no step is in the store."""
        count = len(self.fetched | self.present)
        if fatal is not None:
            hint = f"; {count} of {len(self.steps)} steps are in {self.path}, the same fetch goes on from there"
            raise type(fatal)(f"{fatal}{hint if count else ''}") from None
        if not count and self.steps:
            none = f"none of the {len(self.steps)} steps of {self.source.location} could be fetched"
            raise CheckpointError(f"{none}: {most_common(self.missing.values())}")


def _merged(known: TensorSpec | None, found: TensorSpec) -> TensorSpec:
    """The tensor as the store has it, with the roles that were found."""
    return found if known is None else replace(known, roles=found.roles)


class _Stores:
    """The store, opened once in each thread of each process: threads must not share its lock."""

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()

    def __reduce__(self) -> tuple[type[_Stores], tuple[Path]]:
        return (_Stores, (self._path,))

    def get(self) -> Store:
        store: Store | None = getattr(self._local, "store", None)
        if store is None:
            store = self._local.store = Store.open(self._path)
        return store


@dataclass(frozen=True)
class _Outcome:
    """The result of one revision: the reason for each tensor that failed, or the error that ends the whole fetch."""

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
    wanted: Mapping[str, TensorSpec],
    cache: LayoutCache,
    listings: ListingBudget,
    stop: threading.Event | None,
    verify_whole: bool,
) -> _Outcome:
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
            return _Outcome(revision, source.traffic)
        store = stores.get()
        for request in reader.find(patterns, cache, listings=listings):
            asked = (request.tensor.name, *(request.roles or ()))
            spec, tensor = next(wanted[pattern] for pattern in patterns if pattern in asked), request.tensor
            if spec.name in taken:  # two roles that one tensor has at other steps
                continue
            try:
                if (found := TensorSpec(spec.name, tensor.dtype, tensor.shape)) != spec:
                    raise FormatError(f"{tensor.name} is {found} at {revision.ref}, elsewhere {spec}")
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
    return _Outcome(revision, source.traffic, len(done) == len(names), reasons, fatal)


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
        checksum = 0
        for piece in reader.read(request):
            if stop is not None and stop.is_set():
                raise PythiaDynError("stopped")
            if tensor.crc32 is not None:
                checksum = crc32(piece, checksum)
            writer.write(piece)
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
            targets[tensor] = writers.enter_context(store.writer(spec.name, revision.step, record)).write
        read_whole(source, revision, targets, sha256=sha256, stop=lambda: stop is not None and stop.is_set())
