"""Verification of stored weights: damaged chunks, equal content of different steps, stray and non-finite steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.findings import Finding, Verification, equal_content, groups_of_equal
from pythia_dynamics.errors import IntegrityError, listed
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.history import History
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store
from pythia_dynamics.objects import ObjectPath, Place
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import NonFiniteWarning
from pythia_dynamics.sweep.gram import Gram, displacements
from pythia_dynamics.sweep.misplaced import Misplaced, find_misplaced
from pythia_dynamics.sweep.sweep import sweep

__all__ = ["verify_store"]


def verify_store(store: Store, tensor: str, compute: Compute | None = None) -> Verification:
    """Compare every stored chunk of a tensor with its checksum, then compare the steps with one another.

    Chunks of equal CRC-32C are compared byte by byte. Steps whose weights seem to belong elsewhere are found from the
    distances between all pairs of steps (`find_misplaced`). This function removes the records of damaged chunks, so
    that the next fetch replaces them. It reads all weights twice.

    Parameters
    ----------
    store
        The store.
    tensor
        Name of a tensor in the store.
    compute
        How to compute. Progress counts thousandths of the whole work.

    Returns
    -------
    Verification
        Findings of the kinds ``damaged``, ``equal``, ``non-finite`` and ``stray``.

    Raises
    ------
    StoreError
        The record of a damaged chunk cannot be removed.
    """
    compute = compute or Compute()
    steps = sorted(store.records(tensor))
    damaged: list[Finding] = []

    virtual = step_states(store, tensor).virtual
    history = History.from_store(store, tensor) if virtual else None

    def check(step: int) -> IntegrityError | None:
        try:
            if history is not None and step in virtual:
                history.at(step)  # is read from its source, and compared with what that states
            else:
                store.check(tensor, step)
        except IntegrityError as error:
            return error
        return None

    with ThreadPoolExecutor(compute.workers) as pool:
        for done, (step, error) in enumerate(zip(steps, pool.map(check, steps), strict=True), 1):
            if error is not None:
                store.remove_record(tensor, step)
                damaged.append(Finding("damaged", (step,), str(error)))
            compute.progress(500 * done // len(steps), 1000)
    damaged_steps = {step for finding in damaged for step in finding.steps}
    intact = [step for step in steps if step not in damaged_steps]
    findings = [*damaged, *_equal_chunks(store, tensor, [step for step in intact if step not in virtual])]
    if intact:
        whole = History.from_store(store, tensor).select(intact)
        findings += _irregular_steps(whole, compute.part(500, 500))
    return Verification(store.name, store.source, tensor, tuple(steps), tuple(findings))


def _equal_chunks(store: Store, tensor: str, steps: Sequence[int]) -> list[Finding]:
    """Steps whose chunks have the same bytes."""
    paths = {step: store.chunk_path(tensor, step) for step in steps}
    nbytes = store.tensors[tensor].nbytes
    groups = groups_of_equal((step, _stored_checksum(path, nbytes)) for step, path in paths.items())
    found: list[Finding] = []
    for group in groups:
        remaining = list(group)
        while len(remaining) > 1:  # different content may have the same checksum
            first = _content(paths[remaining[0]])
            same = [step for step in remaining if np.array_equal(first, _content(paths[step]))]
            remaining = [step for step in remaining if step not in same]
            if len(same) > 1:
                found.append(equal_content(tuple(same), store.source, tensor))
    return found


def _content(path: Place) -> NDArray[np.uint8]:
    """The bytes of a chunk: mapped, or of an object store read."""
    if isinstance(path, ObjectPath):
        return np.frombuffer(path.read_bytes(), np.uint8)
    return np.memmap(path, np.uint8, "r")


def _stored_checksum(path: Place, nbytes: int) -> bytes:
    if isinstance(path, ObjectPath):
        return bytes(path.read_ranges([(nbytes, nbytes + CHECKSUM_BYTES)])[0])
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, 2)
        return file.read()


def _irregular_steps(history: History, compute: Compute) -> list[Finding]:
    """Steps with weights that are not finite, and stray stretches of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)  # reported as findings
        (gram,) = sweep(history, [Gram()], compute)
    steps = history.steps[gram.indices[~gram.nonfinite_frames()]].tolist()
    invalid = sorted(set(history.steps.tolist()) - set(steps))
    findings = [Finding("non-finite", (step,), f"step {step} has weights that are NaN or infinite") for step in invalid]
    if not steps:
        return findings
    sums, squares = gram.total[:, 0], gram.total[:, 1]
    variances = np.maximum(squares - sums**2 / gram.size, 0) / gram.size
    squared = displacements(gram.increments()) / gram.size
    findings += [_stray(item, steps) for item in find_misplaced(squared, variances, gram.size)]
    return sorted(findings, key=lambda finding: finding.steps)


def _stray(item: Misplaced, steps: Sequence[int]) -> Finding:
    """The finding for steps that seem misplaced. Distances are root mean squares over the weights."""
    places, beside = ([steps[place] for place in part] for part in (item.places, item.beside))
    subject = f"{listed(places)} {'is' if len(places) == 1 else 'are'}"
    if item.kind == "exchanged":
        before, after = item.distances
        said = (
            f"{listed(places)} seem exchanged: the path around them is {before / after:.2f} times as long as with each"
        )
        return Finding("stray", tuple(places), f"{said} in the place of the other")
    first, second = item.distances[:2]
    if item.kind == "stretch":
        message = (
            f"{subject} far from {beside[0]} (root mean square {first:.3g}) and {beside[1]} ({second:.3g}), which are "
            f"{item.distances[2]:.3g} from each other: swapped checkpoints or mixed shards?"
        )
    elif item.kind == "end":
        message = (
            f"{subject} nearer to {beside[1]} (root mean square {second:.3g}) than to its neighbour {beside[0]} "
            f"({first:.3g}): another checkpoint?"
        )
    else:
        message = (
            f"{subject} as far from its neighbour {beside[0]} (root mean square {first:.3g}) as independent weights "
            f"({second:.3g}), and the other steps are correlated: weights of another training?"
        )
    return Finding("stray", tuple(places), message)
