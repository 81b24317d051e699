"""Fetch tensors of many revisions into a weight store, transferring little more than their own bytes.

Revisions are independent: one that fails is recorded with its reason and the others go on, and a second fetch requests
only what is missing. Bytes are written to the chunk files as they arrive; a chunk appears complete or not at all.
"""

from __future__ import annotations

import shutil
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.learning_rate import LoggedLearningRate, rates_at
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.checkpoints.source import AccessError, OfflineError, Revision, Source
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.errors import (
    CheckpointError,
    HubError,
    PythiaDynError,
    StoreError,
    UnknownNameError,
    listed,
    size,
)
from pythia_dynamics.executors import Pool
from pythia_dynamics.history.attention import known_attention, read_attention, record_attention
from pythia_dynamics.history.history import History
from pythia_dynamics.history.provenance import weakest_checks
from pythia_dynamics.history.report import FetchReport
from pythia_dynamics.history.request import WORKERS, FetchRequest
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.states import compare_with_source, step_states
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.survey import common_specs, most_common, survey, survey_suite
from pythia_dynamics.history.transfer import Stores, fetch_revision, run_all
from pythia_dynamics.history.virtual import REFERENCES, refer_revision, write_references
from pythia_dynamics.objects import ObjectPath
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
    executor: Pool | None = None,
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
        `verify_whole`, `refresh`.

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
    executor: Pool | None = None,
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
        Runs the revisions instead of own threads: an `Executor`, of processes as well, a `distributed.Client`, or an
        executor of submitit. All must see the cache.
    progress
        Called with the number of revisions that are done and of all.
    **options
        Fields of `FetchRequest`, by name: `tensors`, `steps`, `source`, `cache`, `suite`, `learning_rate`,
        `verify_whole`, `refresh`, `virtual`, `shard`.

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
    request: FetchRequest, workers: int, executor: Pool | None, progress: Progress, *, only_one: bool = False
) -> FetchReport:
    """`download`; with `only_one`, several matching tensors are an error before any weights are read."""
    began = time.monotonic()
    source = request.open_source()
    job = _Job(request, source, only_one)
    revisions = job.ask()
    if revisions is None:
        job.keep_suite()
    else:
        job.run(revisions, workers, executor, progress)
    store = Store.open(request.path) if job.steps else None
    if store is not None and (request.virtual or (store.path / REFERENCES).is_file()):
        write_references(store)
    states = [step_states(store, spec.name) for spec in job.specs if store]
    stored = set(job.steps).intersection(*(each.stored for each in states))
    return FetchReport(
        model=request.resolved,
        source=source.location,
        path=request.path,
        tensors=job.specs,
        steps=job.steps,
        fetched=tuple(sorted(job.fetched)),
        present=tuple(sorted(job.present)),
        missing={step: why for step, why in sorted(job.failed.items()) if step not in stored},
        superseded={step: why for each in states for step, why in each.superseded.items() if step in job.steps},
        failed={step: why for step, why in sorted(job.failed.items()) if step in stored},
        checks=weakest_checks((store.records(spec.name) for spec in job.specs if store), job.steps),
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
        self.surveyed: tuple[int, ...] = ()
        self.reasons: dict[str, dict[int, str]] = defaultdict(dict)
        self.failed: dict[int, str] = {}
        self.present: set[int] = set()
        self.fetched: set[int] = set()

    def ask(self) -> Mapping[int, Revision] | None:
        """The revisions that the source has now; None where it cannot be asked and the store has all that is wanted."""
        try:
            return self.source.revisions()
        except HubError as error:
            if self.request.wanted is None or not self._knows_tensors() or len(self.present) < len(self.steps):
                raise
            if not isinstance(error, OfflineError):
                what = f"{self.path} has all steps; whether they have been replaced since is not known"
                warnings.warn(f"{error}; {what}", stacklevel=4)
            return None

    def keep_suite(self) -> None:
        """Write the suite and the learning rate of the request into the store, whose weights are complete."""
        if self.request.suite or self.request.learning_rate is not None:
            self._require_learning_rate()
            Store.create(self.path, source=self.source.location, suite=self._suite())

    def run(self, found: Mapping[int, Revision], workers: int, executor: Pool | None, progress: Progress) -> None:
        """Fetch what is not in the store. Raises as `download`, after every revision has ended or was cancelled."""
        self._compare(found)
        revisions = self._requested(found)
        if not self.steps:
            return
        cache = LayoutCache(rule=self.source.suite.roles)
        self._find_tensors(revisions, cache)
        order = dict.fromkeys((*self.surveyed, *self.steps))  # these first: where their files are, is known
        todo = [revisions[step] for step in order if step in revisions and step not in self.present]
        stop = threading.Event()
        wanted = {spec.asked_as(self.patterns): spec for spec in self.specs}
        events = stop if executor is None else None
        stores = Stores(self.path)
        common = (stores, wanted, cache, events, self.request.verify_whole)
        fatal: PythiaDynError | None = None
        for step in set(self.steps) - set(revisions):
            for name in self.stored:
                self._add_missing(step, f"{self.source.location} has no step {step}", name)
        calls = []
        for revision in todo:
            held = frozenset(name for name, steps in self.stored.items() if revision.step in steps)
            work = refer_revision if self.request.virtual else fetch_revision
            calls.append(partial(work, self.source.with_own_traffic(), revision, held, *common))
        running = run_all(self.source, calls, workers=workers, executor=executor, stop=stop, progress=progress)
        try:
            with closing(running) as outcomes:
                for outcome in outcomes:
                    fatal = fatal or outcome.fatal
                    if outcome.complete:
                        self.fetched.add(outcome.revision.step)
                    for name, why in outcome.reasons.items():
                        self._add_missing(outcome.revision.step, why, name)
        finally:
            stores.flush()
            store = Store.open(self.path)
            for name, reasons in self.reasons.items():
                kept = step_states(store, name).held  # what it could not check, is still there
                store.record_missing(name, {step: why for step, why in reasons.items() if step not in kept})
        self._raise_failure(fatal)

    # -- parts of `run` ---------------------------------------------------------------------------------------

    def _requested(self, revisions: Mapping[int, Revision]) -> dict[int, Revision]:
        """The requested revisions that the source has."""
        if self.request.wanted is None:
            self.steps = self.request.own(revisions)
        chosen = {step: revisions[step] for step in self.steps if step in revisions}
        if self.steps and self.present.issuperset(self.steps):
            return chosen
        if not self.steps:  # of a shard, where there are fewer steps than shards
            return {}
        if not chosen and self.request.names_each_step:
            raise UnknownNameError("step", self.steps[0], revisions, where=self.source.location)
        if not chosen:
            none_of = f"{self.source.location} has none of the steps {self.steps[0]} … {self.steps[-1]}"
            raise CheckpointError(f"{none_of}; it has {listed(list(revisions))}")
        return chosen

    def _find_tensors(self, revisions: Mapping[int, Revision], cache: LayoutCache) -> None:
        """Find out what the tensors are, and make room for them in the store."""
        all_known = self._knows_tensors()
        todo = [revision for step, revision in revisions.items() if step not in self.present]
        specs = self.specs
        try:
            if todo:
                if all_known:
                    surveys = [survey(self.source, todo[:_SAMPLE], self.patterns, cache=cache)]
                else:
                    surveys = list(survey_suite(self.source, todo, self.patterns, cache=cache))
                self.surveyed = tuple(each.revision.step for each in surveys)
                specs = tuple(_merged(self.known.get(spec.name), spec) for spec in common_specs(surveys))
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
        self._require_space(len(todo), specs)
        tokens = {step: revision.tokens for step, revision in revisions.items()}
        store = Store.create(self.path, source=self.source.location, suite=self._suite())
        stated = None
        if store.suite.learning_rate is None and isinstance(self.source, LocalSource):
            stated = self.source.stated_learning_rate(revisions)
        store.ensure(specs, self.steps, tokens, stated)
        if known_attention(store) is None:
            record_attention(store, read_attention(self.source, revisions.values(), store.tensors))
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
        self.stored = {spec.name: self._kept(store, spec.name) for spec in specs}
        self.present = set(self.steps).intersection(*self.stored.values())

    def _kept(self, store: Store, tensor: str) -> set[int]:
        """The steps of a tensor that are not fetched again."""
        states = step_states(store, tensor, verify_whole=self.request.verify_whole)
        kept = set(states.held if self.request.refresh else states.stored)
        return kept if self.request.virtual else kept - states.virtual

    def _compare(self, revisions: Mapping[int, Revision]) -> None:
        """Record which steps of the store have been replaced at the source since they were fetched."""
        named = self._knows_tensors()
        if not self.known:
            return
        names = [spec.name for spec in self.specs] if named else list(self.known)  # a glob may mean any of them
        source = self.source
        compare_with_source(Store.open(self.path), source.location, revisions, source.files, tensors=names)
        self._knows_tensors()

    def _require_space(self, revisions: int, specs: tuple[TensorSpec, ...]) -> None:
        """Raise `StoreError` if the disk has too little space for so many revisions, before a store is made."""
        if isinstance(self.path, ObjectPath) or self.request.virtual:
            return
        need = revisions * sum(spec.nbytes for spec in specs)
        place = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if revisions and need + _RESERVE_BYTES > free:
            what = f"{size(free)} free, {size(need)} needed and {size(_RESERVE_BYTES)} in reserve"
            raise StoreError(f"{self.path.parent} has {what}; free some, name another --cache, or fetch fewer steps")

    def _add_missing(self, step: int, why: str, tensor: str) -> None:
        """Note why a step of a tensor is missing, unless it is in the store."""
        if step not in self.stored[tensor]:
            self.reasons[tensor][step] = why
            self.failed.setdefault(step, why)

    def _raise_failure(self, fatal: PythiaDynError | None) -> None:
        """Raise the error that ended the fetch, or one when no step is in the store."""
        count = len(self.fetched | self.present)
        if fatal is not None:
            hint = f"; {count} of {len(self.steps)} steps are in {self.path}, the same fetch goes on from there"
            raise type(fatal)(f"{fatal}{hint if count else ''}") from None
        if not count and self.steps:
            none = f"none of the {len(self.steps)} steps of {self.source.location} could be fetched"
            raise CheckpointError(f"{none}: {most_common(self.failed.values())}")


def _merged(known: TensorSpec | None, found: TensorSpec) -> TensorSpec:
    """The tensor as the store has it, with the roles that were found."""
    return found if known is None else replace(known, roles=found.roles)
