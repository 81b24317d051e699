"""Verify weights that were fetched: damaged chunks, one revision's weights under another's name, stray steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pythia_dynamics.checkpoints.findings import Finding, Verification, equal_content, groups_of_equal
from pythia_dynamics.errors import IntegrityError, listed
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import CHECKSUM_BYTES, Store
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import NonFiniteWarning
from pythia_dynamics.sweep.gram import Gram, displacements
from pythia_dynamics.sweep.sweep import sweep

__all__ = ["verify_store"]


_MARGIN = 1.1
"""By how much a step must be farther off: frames drawn independently of one another are all equally far apart."""


_LONGEST = 4
"""Steps in a row that are looked at as one stray stretch."""


def verify_store(store: Store, tensor: str, compute: Compute | None = None) -> Verification:
    """Check what a store holds of a tensor: every chunk against its checksum, then the chunks against one another.

    Chunks of equal CRC-32C are compared byte by byte. A step, or up to four in a row, is stray when the jumps to it and
    from it are both 10 % longer than the jump over it, ‖w_{j+1} − w_{i−1}‖; for a random walk and for steady motion
    that is the longest of the three. The records of damaged chunks are dropped, so that the next fetch brings them.
    Reads everything twice. The progress of `compute` counts thousandths.
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
                store.forget(tensor, step)
                damaged.append(Finding("damaged", (step,), str(error)))
            compute.progress(500 * done // len(steps), 1000)
    bad = {step for finding in damaged for step in finding.steps}
    whole = [step for step in steps if step not in bad]
    findings = [*damaged, *_equal_chunks(store, tensor, whole)]
    if whole:
        history = History.from_store(store, tensor).select(whole)
        findings += _strays(history, compute.part(500, 500))
    return Verification(store.name, store.source, tensor, tuple(steps), tuple(findings))


def _equal_chunks(store: Store, tensor: str, steps: Sequence[int]) -> list[Finding]:
    """Steps whose chunks have the same bytes."""
    paths = {step: store.chunk_path(tensor, step) for step in steps}
    groups = groups_of_equal((step, _stored_checksum(path)) for step, path in paths.items())
    found: list[Finding] = []
    for group in groups:
        left = list(group)
        while len(left) > 1:  # equal checksums do not make equal content
            first = np.memmap(paths[left[0]], np.uint8, "r")
            same = [step for step in left if np.array_equal(first, np.memmap(paths[step], np.uint8, "r"))]
            left = [step for step in left if step not in same]
            if len(same) > 1:
                found.append(equal_content(tuple(same), store.source, tensor))
    return found


def _stored_checksum(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, 2)
        return file.read()


def _strays(history: History, compute: Compute) -> list[Finding]:
    """Steps with weights that are not finite, and steps that lie beside the path of the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)  # told as findings
        (gram,) = sweep(history, [Gram()], compute)
    steps = history.steps[gram.indices[~gram.nonfinite_frames()]].tolist()
    broken = sorted(set(history.steps.tolist()) - set(steps))
    findings = [Finding("non-finite", (step,), f"step {step} has weights that are NaN or infinite") for step in broken]
    apart = np.sqrt(displacements(gram.increments()) / gram.size)
    told: set[int] = set()
    for length in range(1, min(_LONGEST, len(steps) - 2) + 1):
        for first in range(1, len(steps) - length):
            block = range(first, first + length)
            before, after = first - 1, first + length
            there, back, over = apart[before, first], apart[after - 1, after], apart[before, after]
            if min(there, back) > _MARGIN * over and told.isdisjoint(block):
                told.update(block)
                findings.append(_stray([steps[i] for i in block], steps[before], steps[after], (there, back, over)))
    return sorted(findings, key=lambda finding: finding.steps)


def _stray(steps: list[int], before: int, after: int, jumps: tuple[float, float, float]) -> Finding:
    there, back, over = jumps
    subject = f"{listed(steps)} {'is' if len(steps) == 1 else 'are'}"
    message = (
        f"{subject} farther from {before} (root mean square {there:.3g}) and {after} ({back:.3g}) than these are from "
        f"each other ({over:.3g}): swapped checkpoints or mixed shards?"
    )
    return Finding("stray", tuple(steps), message)
