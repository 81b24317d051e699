"""What a fetch would cost, from headers or from the registry, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.layout import Layout, LayoutCache
from pythia_dynamics.checkpoints.registry import UNEMBEDDING, Model
from pythia_dynamics.checkpoints.source import AccessError, Source, checkpoint_files
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.request import REGISTRY, FetchRequest
from pythia_dynamics.history.store import Store, TensorSpec
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
    def memory_bytes(workers: int = 8) -> int:
        """Memory of a fetch with so many `workers`, without that of the Python interpreter."""
        return workers * _WORKER_BYTES

    def seconds(self, bandwidth: float, *, latency: float = 0.1, workers: int = 8) -> float:
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
        Fields of `FetchRequest`, by name: `tensors`, `steps`, `source`, `cache`, `pattern`.

    Raises
    ------
    PythiaDynError
        As `download`; or the registry does not know the tensors.
    """
    request = FetchRequest.of(model, options)
    if request.source == REGISTRY:
        sizes = _sizes_from_registry(request, "from the registry's shapes")
    else:
        source = request.open_source()
        try:
            sizes = _sizes_from_headers(request, source)
        except AccessError as error:
            if not _in_registry(request):
                raise
            sizes = _sizes_from_registry(request, f"from the registry's shapes: {error}")
    present = set(sizes.steps)
    for spec in sizes.specs:
        present &= stored_steps(Store.open(request.path), spec) if Store.exists(request.path) else set()
    return sizes.plan(len(present))


@dataclass(frozen=True)
class _Sizes:
    """The requested steps, how many of them the source lacks, and the tensors and files of one revision."""

    steps: tuple[int, ...]
    missing: int
    specs: tuple[TensorSpec, ...]
    layout: Layout
    checkpoint_bytes: int
    note: str = ""

    def plan(self, present: int) -> FetchPlan:
        """The plan, when so many of the steps are in the store."""
        revisions = max(0, len(self.steps) - present - self.missing)
        requests = revisions * self.layout.files_read
        tensor_bytes = revisions * sum(spec.nbytes for spec in self.specs)
        return FetchPlan(
            steps=len(self.steps),
            present=present,
            missing=self.missing,
            revisions=revisions,
            requests=requests,
            api_requests=1,
            tensor_bytes=tensor_bytes,
            bytes=tensor_bytes + requests * self.layout.first_read_bytes,
            full_bytes=revisions * self.checkpoint_bytes,
            disk_bytes=tensor_bytes,
            note=self.note,
        )


def _sizes_from_headers(request: FetchRequest, source: Source) -> _Sizes:
    """The sizes that the headers and the file list of the first readable revision state."""
    revisions = source.revisions()
    steps = tuple(revisions) if request.wanted is None else request.wanted
    available = [revisions[step] for step in steps if step in revisions]
    cache = LayoutCache()
    surveyed = survey(source, available, request.patterns, cache=cache)
    files = source.files(surveyed.revision)
    checkpoint_bytes = sum(files[name] for name in checkpoint_files(files))
    return _Sizes(steps, len(steps) - len(available), surveyed.specs, cache.layouts[0], checkpoint_bytes)


def _in_registry(request: FetchRequest) -> bool:
    return request.resolved.is_pythia and request.patterns == (UNEMBEDDING,)


def _sizes_from_registry(request: FetchRequest, note: str) -> _Sizes:
    """The sizes of W_U of a Pythia model, from the shapes of the registry."""
    model = request.resolved
    shape = model.architecture
    if shape is None or not _in_registry(request):
        raise PythiaDynError(f"the registry knows {UNEMBEDDING} of Pythia models only, not {model.name}")
    specs = (TensorSpec(UNEMBEDDING, "float16", (shape.vocab, shape.d_model)),)
    return _Sizes(request.wanted or model.published_steps, 0, specs, Layout.SAFETENSORS, shape.checkpoint_bytes, note)
