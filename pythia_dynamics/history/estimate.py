"""What a fetch would cost, from headers or from the registry, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.layout import LAYOUTS, Layout, LayoutCache
from pythia_dynamics.checkpoints.open import REGISTRY
from pythia_dynamics.checkpoints.reader import ListingBudget
from pythia_dynamics.checkpoints.registry import EMBED_OUT, Model
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.checkpoints.source import AccessError, Source
from pythia_dynamics.checkpoints.tree import checkpoint_files
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.request import WORKERS, FetchRequest
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.survey import stored_steps, survey

__all__ = ["FetchPlan", "preview"]

_WORKER_BYTES = 4 * 2**20
"""Upper bound of what one worker needs for a published Pythia checkpoint: a piece of at most 1 MiB that is being
written, and the header or the pickle of the file with what is parsed from it."""


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
        Size of all that is transferred: the tensors and the headers read to find them.
    full_bytes
        Size of the whole checkpoints of these revisions.
    disk_bytes
        Size of the chunks that are written.
    note
        Where the sizes are from, if not from the files themselves.
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
    note: str = ""

    @property
    def saved_bytes(self) -> int:
        """Bytes of the whole checkpoints that are not transferred."""
        return max(0, self.full_bytes - self.bytes)

    @staticmethod
    def memory_bytes(workers: int = WORKERS) -> int:
        """Memory of a fetch with so many `workers`, without that of the Python interpreter."""
        return workers * _WORKER_BYTES

    def seconds(self, bandwidth: float, *, latency: float = 0.1, workers: int = WORKERS) -> float:
        """Estimated duration: the longer of transferring the bytes and of waiting for the answers.

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
        return max(self.bytes / bandwidth, self.requests * 2 * latency / workers)


def preview(model: str | Path | Model | FetchRequest, **options: Any) -> FetchPlan:
    """What `download` of the same request would cost, from the headers of one revision and two API requests.

    If the Hub cannot be reached, or the source is ``"registry"``, the size of W_U of a Pythia model is taken from the
    registry; `FetchPlan.note` says so.

    Parameters
    ----------
    model
        As for `FetchRequest`, or a `FetchRequest`.
    **options
        Fields of `FetchRequest`, by name: `tensors`, `steps`, `source`, `cache`, `suite`.

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


def _plan_from_headers(request: FetchRequest, source: Source) -> FetchPlan:
    """The plan by the headers and the file list of the first readable revision."""
    revisions = source.revisions()
    steps = tuple(revisions) if request.wanted is None else request.wanted
    available = [revisions[step] for step in steps if step in revisions]
    cache = LayoutCache(rule=source.suite.roles)
    surveyed = survey(source, available, request.patterns, cache=cache, listings=ListingBudget())
    files = source.files(surveyed.revision)
    checkpoint_bytes = sum(files[name] for name in checkpoint_files(files))
    return _plan(request, steps, len(steps) - len(available), surveyed.specs, cache.layouts[0], checkpoint_bytes)


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
    return _plan(request, steps, 0, specs, LAYOUTS[0], shape.checkpoint_bytes, note)


def _plan(
    request: FetchRequest,
    steps: tuple[int, ...],
    missing: int,
    specs: tuple[TensorSpec, ...],
    layout: Layout,
    checkpoint_bytes: int,
    note: str = "",
) -> FetchPlan:
    """The plan for these tensors of these steps, of which the source lacks so many; `layout` is of one revision."""
    stored = set(steps)
    for spec in specs:
        stored &= stored_steps(Store.open(request.path), spec) if Store.exists(request.path) else set()
    revisions = max(0, len(steps) - len(stored) - missing)
    requests = revisions * layout.files_read
    tensor_bytes = revisions * sum(spec.nbytes for spec in specs)
    return FetchPlan(
        steps=len(steps),
        present=len(stored),
        missing=missing,
        revisions=revisions,
        requests=requests,
        api_requests=1,
        tensor_bytes=tensor_bytes,
        bytes=tensor_bytes + requests * layout.first_read_bytes,
        full_bytes=revisions * checkpoint_bytes,
        disk_bytes=tensor_bytes,
        note=note,
    )
