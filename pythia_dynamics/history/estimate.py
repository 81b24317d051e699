"""What a fetch would cost, from headers or from the registry, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pythia_dynamics.checkpoints.layout import Layout, LayoutCache
from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.registry import UNEMBEDDING, Model, resolve
from pythia_dynamics.checkpoints.source import AccessError, Source, checkpoint_files
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import store_path
from pythia_dynamics.history.store import Store, TensorSpec
from pythia_dynamics.history.survey import held_steps, survey, wanted_steps

__all__ = ["REGISTRY", "FetchPlan", "estimate", "preview"]


_WORKER_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What a fetch would cost: requests as the Hub counts them, bytes of the network and of the disk.

    Of `steps` that are asked for, `present` are in the store, `missing` the source does not have, and `revisions` are
    to be fetched. `full_bytes` is what whole checkpoints of these would take. `note` says where the sizes are from, if
    not from the files themselves.
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
        """Bytes that need not be moved."""
        return max(0, self.full_bytes - self.bytes)

    @staticmethod
    def memory_bytes(workers: int = 8) -> int:
        """Memory the fetch takes beside the interpreter: pieces in flight, headers and pickles of so many at once."""
        return workers * _WORKER_BYTES

    def seconds(self, bandwidth: float, *, latency: float = 0.1, workers: int = 8) -> float:
        """Time it takes at `bandwidth` bytes/s, with `latency` seconds to each answer."""
        return max(self.bytes / bandwidth, self.requests * 2 * latency / workers)


def estimate(
    sizes: Sequence[int],
    *,
    steps: int,
    present: int,
    missing: int,
    layout: Layout,
    checkpoint_bytes: int,
    note: str = "",
) -> FetchPlan:
    """The plan for tensors of these `sizes` in bytes, in `steps` revisions whose files take `checkpoint_bytes` each."""
    revisions = max(0, steps - present - missing)
    tensors = revisions * sum(sizes)
    return FetchPlan(
        steps=steps,
        present=present,
        missing=missing,
        revisions=revisions,
        requests=revisions * layout.files_read,
        api_requests=1,
        tensor_bytes=tensors,
        bytes=tensors + revisions * layout.files_read * layout.first_read_bytes,
        full_bytes=revisions * checkpoint_bytes,
        disk_bytes=tensors,
        note=note,
    )


REGISTRY = "registry"
"""A source for plans alone: what the registry says, no network."""


def preview(
    model: str | Path | Model,
    *,
    source: str | Source = "hub",
    steps: str | Iterable[int] | None = None,
    tensors: str | Sequence[str] = (UNEMBEDDING,),
    cache: str | Path | None = None,
    pattern: str | None = None,
) -> FetchPlan:
    """What `download` with the same arguments would cost, from the headers of one revision and two API requests.

    Where the Hub cannot be reached, or with `REGISTRY` as the source, W_U of a Pythia model is estimated from the
    registry's shapes; `FetchPlan.note` says so. Raises as `download`.
    """
    found = model if isinstance(model, Model) else resolve(model)
    patterns = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    wanted, _ = wanted_steps(found, steps)
    if source == REGISTRY:
        sizes = _registered(found, wanted, patterns, "from the registry's shapes")
    else:
        opened = open_source(found, source, pattern=pattern) if isinstance(source, str) else source
        try:
            sizes = _stated(opened, wanted, patterns)
        except AccessError as error:
            if not _is_registered(found, patterns):
                raise
            sizes = _registered(found, wanted, patterns, f"from the registry's shapes: {error}")
    path = store_path(found.name, cache)
    present = set(sizes.steps)
    for spec in sizes.specs:
        present &= held_steps(Store.open(path), spec) if path.is_dir() else set()
    return estimate(
        [spec.nbytes for spec in sizes.specs],
        steps=len(sizes.steps),
        present=len(present),
        missing=sizes.missing,
        layout=sizes.layout,
        checkpoint_bytes=sizes.checkpoint_bytes,
        note=sizes.note,
    )


@dataclass(frozen=True)
class _Sizes:
    """What a plan is made from: the steps asked for, those the source lacks, the tensors and files of one revision."""

    steps: tuple[int, ...]
    missing: int
    specs: tuple[TensorSpec, ...]
    layout: Layout
    checkpoint_bytes: int
    note: str = ""


def _stated(source: Source, wanted: tuple[int, ...] | None, patterns: tuple[str, ...]) -> _Sizes:
    """What the headers and the file list of the first readable revision say."""
    revisions = source.revisions()
    steps = tuple(revisions) if wanted is None else wanted
    there = [revisions[step] for step in steps if step in revisions]
    cache = LayoutCache()
    surveyed = survey(source, there, patterns, cache=cache)
    files = source.files(surveyed.revision)
    whole = sum(files[name] for name in checkpoint_files(files))
    return _Sizes(steps, len(steps) - len(there), surveyed.specs, cache.layouts[0], whole)


def _is_registered(model: Model, patterns: tuple[str, ...]) -> bool:
    return model.is_pythia and patterns == (UNEMBEDDING,)


def _registered(model: Model, wanted: tuple[int, ...] | None, patterns: tuple[str, ...], note: str) -> _Sizes:
    """What the registry says of W_U of a Pythia model."""
    shape = model.architecture
    if shape is None or not _is_registered(model, patterns):
        raise PythiaDynError(f"the registry knows {UNEMBEDDING} of Pythia models only, not {model.name}")
    specs = (TensorSpec(UNEMBEDDING, "float16", (shape.vocab, shape.d_model)),)
    return _Sizes(wanted or model.published_steps, 0, specs, Layout.SAFETENSORS, shape.checkpoint_bytes, note)
