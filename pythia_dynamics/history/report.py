"""What a fetch did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.history.history import History
from pythia_dynamics.history.provenance import Check
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.objects import Place

__all__ = ["FetchReport"]


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did.

    Parameters
    ----------
    model
        The model that the name stood for.
    source
        Repository id or directory.
    path
        The store.
    tensors
        Name, dtype and shape of each tensor that the names and globs meant.
    steps
        The requested steps.
    fetched
        Those that were fetched now.
    present
        Those that were in the store before.
    missing
        Those that are not in the store, with the reason of each.
    superseded
        Those that are in the store but have been replaced or removed at the source since, with what has become of them.
    failed
        Those that are in the store but should have been fetched again, with the reason why they were not.
    checks
        How the bytes of each step in the store were checked; of several tensors the weakest check.
    requests
        File requests.
    api
        Requests to the Hub's API.
    retries
        Requests that were repeated after a failure.
    bytes
        Bytes that were transferred, or read from files.
    seconds
        Duration.
    """

    model: Model
    source: str
    path: Place
    tensors: tuple[TensorSpec, ...]
    steps: tuple[int, ...]
    fetched: tuple[int, ...]
    present: tuple[int, ...]
    missing: Mapping[int, str]
    superseded: Mapping[int, str]
    failed: Mapping[int, str]
    checks: Mapping[int, Check]
    requests: int
    api: int
    retries: int
    bytes: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every requested step is in the store, as it was asked for."""
        return not self.missing and not self.failed

    def histories(self) -> dict[str, History]:
        """The history of each tensor, by name, of the requested steps. Steps in `missing` have no weights."""
        store = Store.open(self.path)
        return {spec.name: History.from_store(store, spec.name).select(self.steps) for spec in self.tensors}
