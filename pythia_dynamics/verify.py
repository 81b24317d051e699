"""What has bitten people: damaged chunks, one revision's weights under another's name, swapped and mixed shards.

`verify_store` looks at weights that were fetched, `verify_remote` at what the Hub states of files before any of them is
downloaded. Neither believes a name: what two revisions have in common is found by content.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pythia_dynamics.errors import IntegrityError, PythiaDynError
from pythia_dynamics.gram import Gram, displacements
from pythia_dynamics.history import History
from pythia_dynamics.hub import HubSource
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sources import AccessError, Revision
from pythia_dynamics.store import CHECKSUM_BYTES, Store
from pythia_dynamics.suites import resolve
from pythia_dynamics.sweep import NonFiniteWarning, sweep, workers

__all__ = ["REMOTE", "Finding", "Verification", "listed", "verify_remote", "verify_store"]

REMOTE = "files on the Hub"
"""What `verify_remote` looks at, in place of a tensor."""

_MARGIN = 1.1
"""By how much a step must be farther off: frames drawn independently of one another are all equally far apart."""

_LONGEST = 4
"""Steps in a row that are looked at as one stray stretch."""

_WEIGHTS = {"safetensors": ".safetensors", "torch": ".bin"}
_FIRST = (0, 1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One oddity: its kind, the steps it is about, a sentence; not a `fault` where it is known and harmless.

    Kinds: ``damaged`` (fails its checksum), ``equal`` (the same content under different steps), ``mixed`` (some shards
    of different steps are the same), ``stray`` (farther from its neighbours than they are from each other),
    ``non-finite``, ``missing``, ``unreadable``.
    """

    kind: str
    steps: tuple[int, ...]
    message: str
    fault: bool = True


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at (a tensor, or `REMOTE`), at which steps, and what was found."""

    model: str
    location: str
    subject: str
    checked: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that are not known to be harmless."""
        return tuple(finding for finding in self.findings if finding.fault)


def verify_store(store: Store, tensor: str, *, threads: int | None = None, progress: Progress = silent) -> Verification:
    """Check what a store holds of a tensor: every chunk against its checksum, then the chunks against one another.

    Chunks of equal CRC-32C are compared byte by byte. A step, or up to four in a row, is stray when the jumps to it and
    from it are both 10 % longer than the jump over it, ‖w_{j+1} − w_{i−1}‖; for a random walk and for steady motion
    that is the longest of the three. The records of damaged chunks are dropped, so that the next fetch brings them.
    Reads everything twice. `progress` counts thousandths.
    """
    steps = sorted(store.records(tensor))
    damaged: list[Finding] = []

    def check(step: int) -> IntegrityError | None:
        try:
            store.check(tensor, step)
        except IntegrityError as error:
            return error
        return None

    with ThreadPoolExecutor(workers(threads)) as pool:
        for done, (step, error) in enumerate(zip(steps, pool.map(check, steps), strict=True), 1):
            if error is not None:
                store.forget(tensor, step)
                damaged.append(Finding("damaged", (step,), str(error)))
            progress(500 * done // len(steps), 1000)
    bad = {step for finding in damaged for step in finding.steps}
    whole = [step for step in steps if step not in bad]
    findings = [*damaged, *_equal_chunks(store, tensor, whole)]
    if whole:
        history = History.from_store(store, tensor).select(whole)
        findings += _strays(history, threads, lambda done, total: progress(500 + 500 * done // max(total, 1), 1000))
    return Verification(store.name, store.source, tensor, tuple(steps), tuple(findings))


def verify_remote(
    source: HubSource, steps: Iterable[int] | None = None, *, threads: int = 8, progress: Progress = silent
) -> Verification:
    """Check a repository by what the Hub's tree API states of its files (size, sha256): one API request per revision.

    `steps` default to every branch there is and every step that Pythia publishes. Raises `AccessError`,
    `CheckpointError`; a revision that fails by itself is a finding.
    """
    revisions = source.revisions()
    published = resolve(source.location).published_steps
    wanted = tuple(sorted({*revisions, *published} if steps is None else set(steps)))
    there = [revisions[step] for step in wanted if step in revisions]
    findings = [
        Finding("missing", (step,), f"{source.location} has no branch step{step}")
        for step in wanted
        if step not in revisions
    ]

    def ask(revision: Revision) -> Mapping[str, tuple[int, str | None]] | PythiaDynError:
        try:
            return source.entries(revision)
        except AccessError:
            raise
        except PythiaDynError as error:
            return error

    shards: dict[str, dict[int, dict[str, str]]] = {kind: {} for kind in _WEIGHTS}
    with ThreadPoolExecutor(threads) as pool:
        for done, (revision, found) in enumerate(zip(there, pool.map(ask, there), strict=True), 1):
            progress(done, len(there))
            if isinstance(found, PythiaDynError):
                findings.append(Finding("unreadable", (revision.step,), str(found)))
                continue
            by_kind = {kind: _weight_files(found, suffix) for kind, suffix in _WEIGHTS.items()}
            if not any(by_kind.values()):
                findings.append(Finding("missing", (revision.step,), f"{revision.ref} holds no weights"))
            for kind, files in by_kind.items():
                if files:
                    shards[kind][revision.step] = files
    for kind, by_step in shards.items():
        new = [*_equal_files(by_step, source.location, kind), *_mixed_shards(by_step)]
        findings += [finding for finding in new if not _is_told(finding, findings)]
    return Verification(source.name, source.location, REMOTE, wanted, tuple(findings))


def listed(steps: Sequence[int]) -> str:
    """Steps for a sentence: all of a few, the first and the last of many."""
    noun = "step" if len(steps) == 1 else "steps"
    if len(steps) <= 6:
        return f"{noun} {', '.join(map(str, steps))}"
    return f"{len(steps)} steps ({', '.join(map(str, steps[:4]))} … {steps[-1]})"


# -- equal content --------------------------------------------------------------------------------------------


def _equal_chunks(store: Store, tensor: str, steps: Sequence[int]) -> list[Finding]:
    """Steps whose chunks have the same bytes."""
    paths = {step: store.chunk_path(tensor, step) for step in steps}
    groups = _grouped((step, _stored_checksum(path)) for step, path in paths.items())
    found: list[Finding] = []
    for group in groups:
        left = list(group)
        while len(left) > 1:  # equal checksums do not make equal content
            first = np.memmap(paths[left[0]], np.uint8, "r")
            same = [step for step in left if np.array_equal(first, np.memmap(paths[step], np.uint8, "r"))]
            left = [step for step in left if step not in same]
            if len(same) > 1:
                found.append(_equal(tuple(same), store.source, tensor))
    return found


def _stored_checksum(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, 2)
        return file.read()


def _equal_files(by_step: Mapping[int, Mapping[str, str]], location: str, kind: str) -> list[Finding]:
    """Steps whose weight files are all the same."""
    groups = _grouped((step, tuple(sorted(files.values()))) for step, files in by_step.items())
    return [_equal(group, location, f"{kind} files") for group in groups]


def _mixed_shards(by_step: Mapping[int, Mapping[str, str]]) -> list[Finding]:
    """Steps that have one shard in common, but not all of them."""
    holders: dict[str, list[int]] = defaultdict(list)
    for step, files in sorted(by_step.items()):
        for sha256 in set(files.values()):
            holders[sha256].append(step)
    findings = []
    for sha256, steps in holders.items():
        if len({tuple(sorted(by_step[step].values())) for step in steps}) > 1:
            file = next(name for name, own in by_step[steps[0]].items() if own == sha256)
            message = f"{listed(steps)} share the shard {file} but not the others: shards of different steps are mixed"
            findings.append(Finding("mixed", tuple(steps), message))
    return findings


def _equal(steps: tuple[int, ...], location: str, what: str) -> Finding:
    if steps == _FIRST and _is_pythia(location):
        message = f"steps 0 and 1 have the same {what}, as in all of Pythia"
        return Finding("equal", steps, message, fault=False)
    return Finding("equal", steps, f"{listed(steps)} have the same {what}: at most one of them is what its name says")


def _is_pythia(location: str) -> bool:
    try:
        return resolve(location).is_pythia
    except PythiaDynError:  # a directory that has gone since
        return False


def _is_told(finding: Finding, others: Iterable[Finding]) -> bool:
    """Whether the other file format has told the same already."""
    return any((finding.kind, finding.steps) == (other.kind, other.steps) for other in others)


def _weight_files(entries: Mapping[str, tuple[int, str | None]], suffix: str) -> dict[str, str]:
    """sha256 by name of the files that hold weights in one format."""
    return {
        name: sha256
        for name, (_, sha256) in sorted(entries.items())
        if sha256 is not None
        and name.endswith(suffix)
        and name.startswith(("model", "pytorch_model"))
        and "/" not in name
    }


def _grouped(keys: Iterable[tuple[int, Hashable]]) -> list[tuple[int, ...]]:
    """The steps that share a key with another, by key."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for step, key in keys:
        groups[key].append(step)
    return [tuple(sorted(steps)) for steps in groups.values() if len(steps) > 1]


# -- strays ---------------------------------------------------------------------------------------------------


def _strays(history: History, threads: int | None, progress: Callable[[int, int], None]) -> list[Finding]:
    """Steps with weights that are not finite, and steps that lie beside the path of the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)  # told as findings
        (gram,) = sweep(history, [Gram()], threads=threads, progress=progress)
    steps = history.steps[gram.indices[~gram.suspects()]].tolist()
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
