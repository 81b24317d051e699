"""Stream the tensors of a model: the history of each can be read while it is measured, and is deleted after that.

Tensors whose histories together have room in a scratch folder are fetched as `download` does, with its checks, and
opened as usual. The history of a larger tensor is read piece by piece (`RemoteWeights`): ranges of its weights at all
steps, or all its weights at some steps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.parts import Attention
from pythia_dynamics.checkpoints.roles import ALL
from pythia_dynamics.checkpoints.source import Revision, Source
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError, listed
from pythia_dynamics.files import store_errors
from pythia_dynamics.history.attention import divided, read_attention, registered_attention
from pythia_dynamics.history.cache import cache_directory
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.history import History
from pythia_dynamics.history.remote import Located, LostStepsError, RemoteWeights, locate
from pythia_dynamics.history.request import WORKERS, FetchRequest
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.survey import common_specs, most_common, survey, survey_suite
from pythia_dynamics.history.transfer import run_all
from pythia_dynamics.progress import Progress, silent

__all__ = ["SCRATCH", "StreamPlan", "WeightStream", "open_stream"]

T = TypeVar("T")

SCRATCH = 2 * 10**9
"""Bytes of a scratch folder. A slab of a history (a million weights, 143 steps) has 300 MB in 16 bits, 600 MB in 32. So
the largest matrix of a 70m (7.4 GB) takes four parts, which is four requests a step more."""

_RECORD_BYTES = 512
"""Bytes of the record of a chunk in the metadata of a store, at most."""


@dataclass(frozen=True)
class StreamPlan:
    """How the tensors of a model are streamed.

    Parameters
    ----------
    steps
        The requested steps.
    groups
        The tensors that are fetched together, each group with room for all steps.
    parted
        The tensors whose history is read in parts.
    scratch
        Bytes of the scratch folder.
    """

    steps: tuple[int, ...]
    groups: tuple[tuple[TensorSpec, ...], ...]
    parted: tuple[TensorSpec, ...]
    scratch: int

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors, in the order in which they are streamed."""
        return (*(spec for group in self.groups for spec in group), *self.parted)

    def bytes(self, passes: int = 1) -> int:
        """Bytes of the weights of all steps that are transferred.

        Parameters
        ----------
        passes
            How often a tensor that is read in parts is read: once for sums over weights, once for whole frames.
        """
        grouped = sum(spec.nbytes for group in self.groups for spec in group)
        return len(self.steps) * (grouped + passes * sum(spec.nbytes for spec in self.parted))


@contextmanager
def open_stream(request: FetchRequest, *, scratch: int = SCRATCH, workers: int = WORKERS) -> Iterator[WeightStream]:
    """A stream of the tensors of a request, with a scratch folder of its own in the cache.

    The folder is removed at the end. After an error, an interrupt or a kill it stays; the next stream of the model goes
    on with the chunks in it if they are of its tensors, and removes others. Several processes may stream one model.

    Parameters
    ----------
    request
        What to stream. `FetchRequest.refresh` and `FetchRequest.verify_whole` cannot be set.
    scratch
        Bytes of weights that are on the disk at one time.
    workers
        Revisions that are read at once.

    Raises
    ------
    PythiaDynError
        The request cannot be streamed, or as `download` does.
    """
    if request.verify_whole:
        raise PythiaDynError("whole files are not compared while tensors are streamed; fetch them into the cache")
    if scratch < 1:
        raise PythiaDynError(f"the scratch space must be a number of bytes above 0; got {scratch}")
    cache = cache_directory(request.cache)
    scratch_root = cache if isinstance(cache, Path) else Path(tempfile.gettempdir()) / "pythia-dyn"
    root = scratch_root / f".{request.resolved.name}.stream"
    with ExitStack() as stack:
        with store_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            for number in count():
                try:
                    stack.enter_context(FileLock(root / f"{number}.lock").acquire(timeout=0))
                except Timeout:
                    continue  # another process streams the model
                break
        folder = root / str(number)
        yield WeightStream(request, request.open_source(), folder, scratch, workers)
        shutil.rmtree(folder, ignore_errors=True)


class WeightStream:
    """The tensors of a model, one after another. `open_stream` makes it.

    Attributes
    ----------
    request
        What is streamed.
    source
        Where it is read from; `source.traffic` has the counts.
    """

    def __init__(self, request: FetchRequest, source: Source, folder: Path, scratch: int, workers: int) -> None:
        self.request, self.source = request, source
        self._folder, self._scratch, self._workers = folder, scratch, workers
        self._cache = LayoutCache(rule=source.suite.roles)

    @cached_property
    def revisions(self) -> Mapping[int, Revision]:
        """The requested revisions that the source has, by step. Raises as `download`."""
        found = self.source.revisions()
        chosen = {step: found[step] for step in self.request.wanted or found if step in found}
        if not chosen and self.request.wanted and self.request.names_each_step:
            raise UnknownNameError("step", self.request.wanted[0], found, where=self.source.location)
        if not chosen:
            raise CheckpointError(f"{self.source.location} has none of the steps; it has {listed(list(found))}")
        return chosen

    @property
    def steps(self) -> tuple[int, ...]:
        """The requested steps."""
        return tuple(self.revisions) if self.request.wanted is None else self.request.wanted

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The requested tensors in the order of the bytes, from three headers. Raises as `download`."""
        revisions = list(self.revisions.values())
        return common_specs(list(survey_suite(self.source, revisions, self.request.patterns, cache=self._cache)))

    def names(self, spec: TensorSpec) -> tuple[str, ...]:
        """The names under which a tensor is measured: those of its parts if it is fused and ``all`` was asked for.

        A tensor whose history is read in parts is measured whole.
        """
        patterns = self.request.patterns
        if ALL not in patterns or self._need(spec) > self._scratch:
            return (spec.name,)
        parts = divided(spec.name, spec.shape, self._attention)
        return tuple(dict.fromkeys([spec.name, *parts] if spec.name in patterns else parts))

    def plan(self, without: Collection[str] = ()) -> StreamPlan:
        """How the tensors are streamed.

        Parameters
        ----------
        without
            Names of tensors that are left out.
        """
        groups: list[list[TensorSpec]] = []
        parted, room = [], 0
        for spec in (spec for spec in self.tensors if spec.name not in without):
            need = self._need(spec)
            if need > self._scratch:
                parted.append(spec)
                continue
            if need > room:
                groups.append([])
                room = self._scratch
            groups[-1].append(spec)
            room -= need
        return StreamPlan(self.steps, tuple(map(tuple, groups)), tuple(parted), self._scratch)

    def can_be_read(self, spec: TensorSpec, step: int) -> bool:
        """Whether the header of a tensor at one step can be read."""
        try:
            pattern = spec.asked_as(self.request.patterns)
            survey(self.source, [self.revisions[step]], (pattern,), cache=self._cache)
        except (PythiaDynError, KeyError):
            return False
        return True

    def histories(
        self, plan: StreamPlan, *, rows: int | None = None, progress: Progress = silent
    ) -> Iterator[tuple[History, Progress]]:
        """The history of each tensor of a plan. Its weights can be read until the next one is asked for.

        Parameters
        ----------
        plan
            From `plan`.
        rows
            Rows of each frame that are read of a tensor in parts. Its checksum can then not be compared.
        progress
            Called with thousandths of the bytes of all tensors that have arrived, and of all.

        Yields
        ------
        tuple of History and Progress
            A history, and what to report the progress of its measures to. `measured` calls a function with it.

        Raises
        ------
        PythiaDynError
            As `download`: the source cannot be reached, the disk is full, or no step of a tensor can be fetched.
        """
        total, before = max(plan.bytes(), 1), 0
        for group in (*plan.groups, *((spec,) for spec in plan.parted)):
            nbytes = len(plan.steps) * sum(spec.nbytes for spec in group)
            part = partial(_report, progress, before, nbytes, total)
            if group[0] in plan.parted:
                yield self._in_parts(group[0], rows), part
            else:
                for history in self._fetched(group, part):
                    yield history, silent
            before += nbytes
            part(1, 1)

    def measured(self, history: History, function: Callable[[History], T]) -> T:
        """The result of a function of a history.

        The function is called again if the weights of a step end before they have all been read, without that step:
        it is then missing, as it would be in a store.

        Parameters
        ----------
        history
            The current one of `histories`.
        function
            Reads its weights.
        """
        while True:
            try:
                return function(history)
            except LostStepsError as lost:
                history = _without(history, lost.reasons)

    # -- internal ---------------------------------------------------------------------------------------------

    @cached_property
    def _attention(self) -> Attention | None:
        """The attention heads of the model, as `download` finds them."""
        known = registered_attention(self.source.location)
        return known or read_attention(self.source, self.revisions.values(), [spec.name for spec in self.tensors])

    def _need(self, spec: TensorSpec) -> int:
        """Bytes that a tensor takes on the disk, with all its steps."""
        return len(self.steps) * (spec.nbytes + CHECKSUM_BYTES + _RECORD_BYTES)

    def _fetched(self, group: tuple[TensorSpec, ...], progress: Progress) -> Iterator[History]:
        """The histories of a group, from a store in the scratch folder."""
        folder = self._own_folder(group)
        request = replace(
            self.request,
            model=self.request.resolved,
            tensors=tuple(spec.asked_as(self.request.patterns) for spec in group),
            steps=self.steps,
            source=self.source,
            cache=folder,
            suite=None,
            refresh=True,
        )
        report = download(request, workers=self._workers, progress=progress)
        store = Store.open(report.path)
        for name in (name for spec in group for name in self.names(spec)):
            history = History.from_store(store, name).select(self.steps)
            yield replace(history, provenance=_streamed(history.provenance))
        shutil.rmtree(folder)

    def _in_parts(self, spec: TensorSpec, rows: int | None) -> History:
        """The history of one tensor, whose weights are read in parts."""
        folder, location = self._own_folder((spec,)), self.source.location
        shutil.rmtree(folder, ignore_errors=True)  # parts that a killed process has left
        found, reasons = self._locate(spec)
        reasons |= {step: f"{location} has no step {step}" for step in self.steps if step not in self.revisions}
        if not found:
            none = f"none of the {len(self.steps)} steps of {location} could be fetched"
            raise CheckpointError(f"{none}: {most_common(reasons.values())}")
        store = Store.create(folder / f"{self.request.resolved.name}.zarr", source=location, suite=self.source.suite)
        stated = None
        if store.suite.learning_rate is None and isinstance(self.source, LocalSource):
            stated = self.source.stated_learning_rate(self.revisions)
        store.ensure((spec,), self.steps, {step: each.tokens for step, each in self.revisions.items()}, stated)
        store.record_missing(spec.name, reasons)
        history = History.from_store(store, spec.name)  # of a store without chunks: all its steps are missing
        provenance = _streamed(history.provenance) | {
            "commits": {str(step): found[step].revision.commit for step in sorted(found)},
            "checks": {
                str(step): "transferred" if rows is not None or found[step].tensor.crc32 is None else "crc32"
                for step in sorted(found)
            },
            "missing": {str(step): why for step, why in sorted(reasons.items())},
        }
        return replace(
            history,
            missing=dict(sorted(reasons.items())),
            frames=tuple(Path(found[step].tensor.file) if step in found else None for step in history.steps.tolist()),
            provenance=provenance,
            remote=RemoteWeights(self.source, spec, found, folder, self._scratch, self._workers),
        )

    def _locate(self, spec: TensorSpec) -> tuple[dict[int, Located], dict[int, str]]:
        """Where a tensor lies at each step, and why it cannot be found at others."""
        stop = threading.Event()
        pattern = spec.asked_as(self.request.patterns)
        calls = [
            partial(locate, self.source.with_own_traffic(), revision, spec, pattern, self._cache, stop)
            for revision in self.revisions.values()
        ]
        found, reasons = {}, {}
        running = run_all(self.source, calls, workers=self._workers, executor=None, stop=stop, progress=silent)
        with closing(running) as outcomes:
            for outcome in outcomes:
                if outcome.fatal is not None:
                    raise outcome.fatal
                if outcome.tensor is not None:
                    found[outcome.revision.step] = Located(outcome.revision, outcome.tensor)
                for why in outcome.reasons.values():
                    reasons[outcome.revision.step] = why
        return found, reasons

    def _own_folder(self, group: tuple[TensorSpec, ...]) -> Path:
        """The scratch folder of a group; that of any other, which an earlier run has left, is removed."""
        what = [self.source.location, self.steps, [(spec.name, str(spec)) for spec in group]]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        with store_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in self._folder.iterdir():
                if other.name != key:
                    shutil.rmtree(other, ignore_errors=True)
        return self._folder / key


def _without(history: History, reasons: Mapping[int, str]) -> History:
    """A history without steps that were lost."""
    provenance = dict(history.provenance)
    for key in ("commits", "checks"):
        provenance[key] = {step: what for step, what in provenance[key].items() if int(step) not in reasons}
    missing = dict(sorted({**history.missing, **reasons}.items()))
    provenance["missing"] = {str(step): why for step, why in missing.items()}
    frames = zip(history.steps.tolist(), history.frames, strict=True)
    left = tuple(None if step in reasons else frame for step, frame in frames)
    return replace(history, missing=missing, frames=left, provenance=provenance)


def _streamed(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {**provenance, "streamed": True}


def _report(progress: Progress, before: int, nbytes: int, total: int, done: int, count: int) -> None:
    """Report a share of the bytes of one group, in thousandths of all."""
    progress(round(1000 * (before + nbytes * done / max(count, 1)) / total), 1000)
