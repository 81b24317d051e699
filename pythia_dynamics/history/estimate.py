"""What a fetch would cost, from headers or from the registry, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

from pythia_dynamics.checkpoints.layout import LAYOUTS, MAX_LISTINGS, Layout, LayoutCache
from pythia_dynamics.checkpoints.open import REGISTRY
from pythia_dynamics.checkpoints.registry import EMBED_OUT, Model
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.checkpoints.tree import checkpoint_files
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.provenance import CHECKS, Check
from pythia_dynamics.history.request import WORKERS, FetchRequest
from pythia_dynamics.history.scaling import fetch_seconds
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.survey import Survey, common_specs, survey_suite
from pythia_dynamics.history.whole import has_whole_checksum
from pythia_dynamics.history.workload import WORKER_BYTES, Resources, Work

__all__ = ["FetchPlan", "preview"]

_RANGES_OF_ZIP = 3
"""Ranges that are read of a torch zip for a tensor: its end, the local header, the tensor. The Hub counts one request,
since its redirect serves all of them."""

_BYTES_OF_WEIGHT = 2
"""Published checkpoints are in 16 bits. A pass takes about as long over weights of 32 bits as over twice as many."""


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What a fetch would cost. All sizes are in bytes.

    Parameters
    ----------
    steps
        Number of requested steps.
    present
        How many of them are in the store.
    missing
        How many of them the source does not have.
    revisions
        How many of them are to be fetched.
    requests
        File requests, as the Hub's rate limit counts them.
    api_requests
        Requests to the Hub's API.
    tensor_bytes
        Size of the tensors to be fetched.
    bytes
        Size of all that is transferred: the tensors and the headers read to find them; the whole of the files that
        `verify_whole` compares.
    full_bytes
        Size of the whole checkpoints of these revisions.
    disk_bytes
        Size of the chunks that are written.
    checks
        How the bytes of each layout that was found will be checked.
    note
        Where the sizes are from, if not from the files themselves.
    tensors
        Number of tensors.
    """

    steps: int
    present: int
    missing: int
    revisions: int
    requests: int
    api_requests: int
    tensor_bytes: int
    bytes: int
    full_bytes: int
    disk_bytes: int
    checks: tuple[Check, ...]
    note: str = ""
    tensors: int = 1

    @property
    def saved_bytes(self) -> int:
        """Bytes of the whole checkpoints that are not transferred."""
        return max(0, self.full_bytes - self.bytes)

    @staticmethod
    def memory_bytes(workers: int = WORKERS) -> int:
        """Memory of a fetch with so many `workers`, without that of the Python interpreter."""
        return workers * WORKER_BYTES

    @property
    def work(self) -> Work:
        """The fetch, and MSD and density of what is fetched, for the model in `pythia_dynamics.history.scaling`."""
        return Work(
            revisions=self.revisions,
            requests=self.requests if self.revisions else 0,
            storage_requests=(_RANGES_OF_ZIP if "crc32" in self.checks else 1) * self.requests,
            api_requests=self.api_requests,
            bytes=self.bytes,
            disk_bytes=self.disk_bytes,
            weights=self.tensor_bytes // _BYTES_OF_WEIGHT,
            frames=self.revisions * self.tensors,
        )

    def seconds(self, bandwidth: float, *, latency: float = 0.1, workers: int = WORKERS) -> float:
        """Estimated duration of the fetch, by the model in `pythia_dynamics.history.scaling`.

        Parameters
        ----------
        bandwidth
            Bytes per second of all connections together.
        latency
            Seconds until an answer begins. A file request takes two, since the Hub redirects it. The default is that
            of a distant server.
        workers
            Requests at once.
        """
        line = Resources(workers=workers, bandwidth=bandwidth, hub_latency=latency, storage_latency=latency)
        return fetch_seconds(self.work, line)


def preview(model: str | Path | Model | FetchRequest, **options: Any) -> FetchPlan:
    """What `download` of the same request would cost, from the headers of three revisions and four API requests.

    These are the first, the middle and the last revision. Where their layouts differ, `FetchPlan.note` says so, and the
    requests are as many as the worst order of these layouts takes.

    If the Hub cannot be reached, or the source is ``"registry"``, the size of W_U of a Pythia model is taken from the
    registry; `FetchPlan.note` says so.

    Parameters
    ----------
    model
        As for `FetchRequest`, or a `FetchRequest`.
    **options
        Fields of `FetchRequest`, by name: `tensors`, `steps`, `source`, `cache`, `suite`, `verify_whole`.

    Raises
    ------
    PythiaDynError
        As `download`; or the registry does not know the tensors.
    """
    request = FetchRequest.of(model, options)
    if request.source == REGISTRY:
        return _plan_from_registry(request, "from the registry's shapes")
    source = request.open_source()
    try:
        return _plan_from_headers(request, source)
    except AccessError as error:
        if not _in_registry(request):
            raise
        return _plan_from_registry(request, f"from the registry's shapes: {error}")


@dataclass(frozen=True, slots=True)
class _Sample:
    """What one revision would cost: its layout, the bytes read beside the tensors or in their place, and its size."""

    revision: Revision
    layout: Layout
    whole_bytes: int
    checkpoint_bytes: int


def _plan_from_headers(request: FetchRequest, source: Source) -> FetchPlan:
    """The plan by the headers and the file lists of the first readable, the middle and the last revision."""
    revisions = source.revisions()
    steps = tuple(revisions) if request.wanted is None else request.wanted
    available = [revisions[step] for step in steps if step in revisions]
    cache = LayoutCache(rule=source.suite.roles)
    surveys, samples = [], []
    for found in survey_suite(source, available, request.patterns, cache=cache):
        surveys.append(found)
        samples.append(_sample(source, found, cache, request))
    return _plan(request, steps, len(steps) - len(available), common_specs(surveys), samples)


def _sample(source: Source, found: Survey, cache: LayoutCache, request: FetchRequest) -> _Sample:
    """What a revision would cost whose headers have just been read."""
    files = source.files(found.revision)
    read = {tensor.file for tensor in found.tensors if has_whole_checksum(tensor, found.sha256.get(tensor.file))}
    whole_bytes = sum(found.file_sizes[file] for file in read) if request.verify_whole else 0
    all_bytes = sum(files[name][0] for name in checkpoint_files(files))
    return _Sample(found.revision, cache.layouts[0], whole_bytes, all_bytes)


def _in_registry(request: FetchRequest) -> bool:
    return request.resolved.is_pythia and request.patterns in ((UNEMBEDDING,), (EMBED_OUT,))


def _plan_from_registry(request: FetchRequest, note: str) -> FetchPlan:
    """The plan for W_U of a Pythia model, by the shapes of the registry."""
    model = request.resolved
    shape = model.architecture
    if shape is None or not _in_registry(request):
        raise PythiaDynError(f"the registry knows {EMBED_OUT} of Pythia models only, not {model.name}")
    specs = (TensorSpec(EMBED_OUT, "float16", (shape.vocab, shape.d_model)),)
    steps = request.wanted or model.published_steps
    whole_bytes = shape.checkpoint_bytes if request.verify_whole else 0
    sample = _Sample(Revision(steps[0], ""), LAYOUTS[0], whole_bytes, shape.checkpoint_bytes)
    return _plan(request, steps, 0, specs, [sample], note)


def _plan(
    request: FetchRequest,
    steps: tuple[int, ...],
    missing: int,
    specs: tuple[TensorSpec, ...],
    samples: list[_Sample],
    note: str = "",
) -> FetchPlan:
    """The plan for these tensors of these steps, of which the source lacks so many, from some of its revisions."""
    stored = set(steps)
    store = Store.open(request.path) if Store.exists(request.path) else None
    for spec in specs:
        states = step_states(store, spec.name, verify_whole=request.verify_whole) if store else None
        stored &= set() if states is None else set(states.held if request.refresh else states.stored)
    revisions = max(0, len(steps) - len(stored) - missing)
    layouts = dict.fromkeys(sample.layout for sample in samples)
    # Where revisions differ, a fetch first asks for the layout of the revision before, which this one may not have.
    files_read = ceil(revisions * mean(each.layout.files_read for each in samples))
    requests = files_read + revisions * (len(layouts) - 1)
    nbytes = sum(spec.nbytes for spec in specs)
    moved = round(revisions * mean(each.whole_bytes or nbytes for each in samples))
    if len(layouts) > 1:
        found = ", ".join(f"{each.layout.title} at {each.revision.ref}" for each in samples)
        note = f"the layout differs between revisions ({found}): requests are those of the worst order"
    checks = {_check(each) for each in samples}
    return FetchPlan(
        steps=len(steps),
        present=len(stored),
        missing=missing,
        revisions=revisions,
        requests=requests,
        api_requests=1 + (min(revisions, MAX_LISTINGS) if len(layouts) > 1 else 0),
        tensor_bytes=revisions * nbytes,
        bytes=moved + files_read * max(layout.first_read_bytes for layout in layouts),
        full_bytes=round(revisions * mean(each.checkpoint_bytes for each in samples)),
        disk_bytes=revisions * nbytes,
        checks=tuple(check for check in CHECKS if check in checks),
        note=note,
        tensors=len(specs),
    )


def _check(sample: _Sample) -> Check:
    """How the bytes of a revision will be checked. Local torch files have a CRC-32 too."""
    if sample.layout.format == "torch":
        return "crc32"
    return "sha256" if sample.whole_bytes else "transferred"
