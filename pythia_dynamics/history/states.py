"""The state of each step of a stored tensor: held, superseded or missing. All that asks what a store has asks here."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.provenance import VIRTUAL, is_end_to_end
from pythia_dynamics.history.store import Store

__all__ = ["StepStates", "compare_with_source", "step_states"]


@dataclass(frozen=True)
class StepStates:
    """The steps of a tensor by their state; each step has one.

    Parameters
    ----------
    held
        The steps whose weights are in the store, in increasing order.
    superseded
        The steps whose weights are in the store, but whose checkpoint has been replaced or removed at the source since
        they were fetched, with what has become of it. Analyses use the weights that are there.
    missing
        The steps without weights, with the reason of each.
    virtual
        Those of the first two whose weights are not in the store, but read from their source.
    """

    held: tuple[int, ...]
    superseded: Mapping[int, str]
    missing: Mapping[int, str]
    virtual: frozenset[int] = frozenset()

    @property
    def stored(self) -> tuple[int, ...]:
        """The steps whose weights are in the store, in increasing order."""
        return tuple(sorted((*self.held, *self.superseded)))


def step_states(store: Store, tensor: str, *, verify_whole: bool = False) -> StepStates:
    """The state of every step of a tensor. Checksums are not read, and no network is used.

    Parameters
    ----------
    store
        The store.
    tensor
        Name of a tensor. One that the store does not have has no steps.
    verify_whole
        Whether weights that were not compared with a checksum of their publisher count as missing, where there is one.
    """
    attributes = store.entries(tensor)
    records, failed, replaced = (attributes[key] for key in ("provenance", "missing", "superseded"))
    held, superseded, missing = [], {}, {}
    chunked = store.chunked(tensor, records) if attributes["known"] else set()
    virtual = frozenset(step for step, record in records.items() if VIRTUAL in record and step not in chunked)
    for step in sorted(store.steps) if attributes["known"] else ():
        if step not in records:
            missing[step] = failed.get(step, "not fetched")
        elif step not in chunked and step not in virtual:
            missing[step] = "its chunk is damaged; fetch it again"
        elif verify_whole and not is_end_to_end(records[step], possible=True):
            missing[step] = "not compared with a checksum of its publisher"
        elif step in replaced:
            superseded[step] = "; ".join((replaced[step], *([failed[step]] if step in failed else [])))
        else:
            held.append(step)
    return StepStates(tuple(held), superseded, missing, virtual)


def compare_with_source(
    store: Store,
    location: str,
    revisions: Mapping[int, Revision],
    entries: Callable[[Revision], Mapping[str, tuple[int, str | None]]],
    *,
    tensors: Iterable[str],
    steps: Container[int] | None = None,
) -> dict[int, str]:
    """Find out, and record, which steps of a store have been replaced at the source since they were fetched.

    A commit that leaves the file of the weights as it was replaces nothing: where checksums are stated, they are
    compared, and the new commit is recorded.

    Parameters
    ----------
    store
        The store.
    location
        Name of the source, for messages.
    revisions
        The checkpoints that the source has now, by step.
    entries
        Gives the (size, sha256) of the files of a revision, by path. Asked only for those whose commit is another one.
    tensors
        The tensors that are compared.
    steps
        The steps that are compared. Default: all.

    Returns
    -------
    dict of int to str
        What has become of the checkpoints that were replaced or removed, by step.
    """
    found: dict[int, str] = {}
    files: dict[int, Mapping[str, tuple[int, str | None]]] = {}
    for tensor in tensors:
        records, compared = store.records(tensor), {}
        for step in sorted(records.keys() & step_states(store, tensor).stored):  # others may have written since
            record, revision = records[step], revisions.get(step)
            commit, now = record.get("commit"), revision.commit if revision else None
            if commit is None or (steps is not None and step not in steps):  # None: written while training
                continue
            why = ""
            if revision is None:
                why = f"{location} does not have it any more"
            elif now not in (None, commit):
                if step not in files:
                    with suppress(PythiaDynError):  # what it has now cannot be listed
                        files[step] = entries(revision)
                sha256 = files.get(step, {}).get(str(record.get("file")), (0, None))[1]
                if sha256 is None or sha256 != record.get("sha256"):
                    why = f"{revision.ref} has been replaced since: {commit[:13]} by {str(now)[:13]}"
            compared[step] = (commit, None if why or now == commit else now, why)
            if why:
                found[step] = why
        store.record_compared(tensor, compared)
    return dict(sorted(found.items()))
