"""Verification of stored weights: damaged chunks, equal content of different steps, stray and non-finite steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pythia_dynamics.checkpoints.findings import Finding, Verification, equal_content, groups_of_equal
from pythia_dynamics.errors import IntegrityError, listed
from pythia_dynamics.history.chunk import CHECKSUM_BYTES
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import Store
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import NonFiniteWarning
from pythia_dynamics.sweep.gram import Gram, displacements
from pythia_dynamics.sweep.sweep import sweep

__all__ = ["verify_store"]

_STRAY_RATIO = 1.1
"""A stray step is farther from both neighbours than this many times the distance between them. Independent random
frames all have the same distance (ratio 1), so a bound of 1 would report noise. The ratio of N weights varies by about
1/√N, far less than 10 %."""

_LONGEST_STRETCH = 4
"""Largest number of consecutive steps that are tested as one stray stretch. The distance across a stretch grows with
its length, so a longer stretch cannot be distinguished from ordinary motion."""


def verify_store(store: Store, tensor: str, compute: Compute | None = None) -> Verification:
    """Compare every stored chunk of a tensor with its checksum, then compare the steps with one another.

    Chunks of equal CRC-32C are compared byte by byte. A stretch of up to four consecutive steps i … j is stray when the
    distances ‖w_i − w_{i−1}‖ and ‖w_{j+1} − w_j‖ are both more than 1.1 times the distance across it,
    ‖w_{j+1} − w_{i−1}‖. In a random walk and in steady motion the distance across is the longest of the three. This
    function removes the records of damaged chunks, so that the next fetch replaces them. It reads all weights twice.

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

    def check(step: int) -> IntegrityError | None:
        try:
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
    findings = [*damaged, *_equal_chunks(store, tensor, intact)]
    if intact:
        history = History.from_store(store, tensor).select(intact)
        findings += _irregular_steps(history, compute.part(500, 500))
    return Verification(store.name, store.source, tensor, tuple(steps), tuple(findings))


def _equal_chunks(store: Store, tensor: str, steps: Sequence[int]) -> list[Finding]:
    """Steps whose chunks have the same bytes."""
    paths = {step: store.chunk_path(tensor, step) for step in steps}
    groups = groups_of_equal((step, _stored_checksum(path)) for step, path in paths.items())
    found: list[Finding] = []
    for group in groups:
        remaining = list(group)
        while len(remaining) > 1:  # different content may have the same checksum
            first = np.memmap(paths[remaining[0]], np.uint8, "r")
            same = [step for step in remaining if np.array_equal(first, np.memmap(paths[step], np.uint8, "r"))]
            remaining = [step for step in remaining if step not in same]
            if len(same) > 1:
                found.append(equal_content(tuple(same), store.source, tensor))
    return found


def _stored_checksum(path: Path) -> bytes:
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
    distance = np.sqrt(displacements(gram.increments()) / gram.size)
    reported: set[int] = set()
    for length in range(1, min(_LONGEST_STRETCH, len(steps) - 2) + 1):
        for first in range(1, len(steps) - length):
            stretch = range(first, first + length)
            before, after = first - 1, first + length
            to, back, across = distance[before, first], distance[after - 1, after], distance[before, after]
            if min(to, back) > _STRAY_RATIO * across and reported.isdisjoint(stretch):
                reported.update(stretch)
                findings.append(_stray([steps[i] for i in stretch], steps[before], steps[after], (to, back, across)))
    return sorted(findings, key=lambda finding: finding.steps)


def _stray(steps: list[int], before: int, after: int, distances: tuple[float, float, float]) -> Finding:
    """The finding for a stray stretch between two steps. `distances` are those to it, from it and across it."""
    to, back, across = distances
    subject = f"{listed(steps)} {'is' if len(steps) == 1 else 'are'}"
    message = (
        f"{subject} farther from {before} (root mean square {to:.3g}) and {after} ({back:.3g}) than these are from "
        f"each other ({across:.3g}): swapped checkpoints or mixed shards?"
    )
    return Finding("stray", tuple(steps), message)
