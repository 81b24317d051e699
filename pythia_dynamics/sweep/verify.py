"""Verify weights that were fetched: damaged chunks, equal content under different steps, stray and non-finite steps."""

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
"""How many times the distance of its neighbours a stray step is away from both. Independent random frames are all at
the same distance (ratio 1), so a bound of 1 would report noise; 10 % is far above its spread of about 1/√N."""

_LONGEST_STRETCH = 4
"""Most consecutive steps that are tested as one stray stretch. The distance across a stretch grows with its length, so
longer ones are less and less distinguishable from ordinary motion."""


def verify_store(store: Store, tensor: str, compute: Compute | None = None) -> Verification:
    """Check every stored chunk of a tensor against its checksum, then the chunks against one another.

    Chunks of equal CRC-32C are compared byte by byte. A stretch of up to four consecutive steps i … j is stray when the
    distances ‖w_i − w_{i−1}‖ and ‖w_{j+1} − w_j‖ are both more than 1.1 times the distance across it,
    ‖w_{j+1} − w_{i−1}‖. In a random walk and in steady motion the distance across is the longest of the three. The
    records of damaged chunks are removed, so that the next fetch replaces them. All weights are read twice.

    Parameters
    ----------
    store
        The store.
    tensor
        Name of a tensor in it.
    compute
        How to compute. Its progress counts thousandths.

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
    bad = {step for finding in damaged for step in finding.steps}
    whole = [step for step in steps if step not in bad]
    findings = [*damaged, *_equal_chunks(store, tensor, whole)]
    if whole:
        history = History.from_store(store, tensor).select(whole)
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
    broken = sorted(set(history.steps.tolist()) - set(steps))
    findings = [Finding("non-finite", (step,), f"step {step} has weights that are NaN or infinite") for step in broken]
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
    """The finding for a stray stretch between two steps; the distances are to it, from it and across it."""
    to, back, across = distances
    subject = f"{listed(steps)} {'is' if len(steps) == 1 else 'are'}"
    message = (
        f"{subject} farther from {before} (root mean square {to:.3g}) and {after} ({back:.3g}) than these are from "
        f"each other ({across:.3g}): swapped checkpoints or mixed shards?"
    )
    return Finding("stray", tuple(steps), message)
