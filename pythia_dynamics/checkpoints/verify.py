"""Verify a repository on the Hub before anything is downloaded: equal checkpoints, mixed shards, missing weights.

Some published branches have the weights of another step. Revisions are therefore compared by the SHA-256 that the Hub
states for each file, not by name. `pythia_dynamics.sweep.verify` checks weights that were fetched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from pythia_dynamics.checkpoints.findings import Finding, Verification, equal_content, groups_of_equal
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.source import AccessError, Revision
from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.progress import Progress, silent

__all__ = ["REMOTE", "verify_remote"]

REMOTE = "files on the Hub"
"""The subject of `verify_remote`, in place of a tensor."""

_WEIGHT_SUFFIXES = {"safetensors": ".safetensors", "torch": ".bin"}
"""How the names of weight files end, by format."""


def verify_remote(
    source: HubSource, steps: Iterable[int] | None = None, *, threads: int = 8, progress: Progress = silent
) -> Verification:
    """Check a repository by what the Hub states of its files: one API request per revision, no download.

    Parameters
    ----------
    source
        The repository.
    steps
        The steps to check. Default: every branch, and for Pythia every published step.
    threads
        Requests at once; the default is that of `download`.
    progress
        Called with the number of revisions that are done and of all.

    Returns
    -------
    Verification
        Findings of the kinds ``missing``, ``unreadable``, ``equal`` and ``mixed``.

    Raises
    ------
    AccessError
        The repository does not exist, is gated, or cannot be reached.
    CheckpointError
        The repository has no branch that is a step.
    """
    revisions = source.revisions()
    published = resolve(source.location).published_steps
    wanted = tuple(sorted({*revisions, *published} if steps is None else set(steps)))
    available = [revisions[step] for step in wanted if step in revisions]
    absent = [step for step in wanted if step not in revisions]
    findings = [Finding("missing", (step,), f"{source.location} has no branch step{step}") for step in absent]

    def list_files(revision: Revision) -> Mapping[str, tuple[int, str | None]] | PythiaDynError:
        try:
            return source.entries(revision)
        except AccessError:
            raise
        except PythiaDynError as error:
            return error

    shards: dict[str, dict[int, dict[str, str]]] = {kind: {} for kind in _WEIGHT_SUFFIXES}
    with ThreadPoolExecutor(threads) as pool:
        for done, (revision, found) in enumerate(zip(available, pool.map(list_files, available), strict=True), 1):
            progress(done, len(available))
            if isinstance(found, PythiaDynError):
                findings.append(Finding("unreadable", (revision.step,), str(found)))
                continue
            by_kind = {kind: _weight_files(found, suffix) for kind, suffix in _WEIGHT_SUFFIXES.items()}
            if not any(by_kind.values()):
                findings.append(Finding("missing", (revision.step,), f"{revision.ref} has no weights"))
            for kind, files in by_kind.items():
                if files:
                    shards[kind][revision.step] = files
    for kind, by_step in shards.items():
        reported = {(finding.kind, finding.steps) for finding in findings}  # in the files of the other format
        new = [*_equal_files(by_step, source.location, kind), *_mixed_shards(by_step)]
        findings += [finding for finding in new if (finding.kind, finding.steps) not in reported]
    return Verification(source.name, source.location, REMOTE, wanted, tuple(findings))


def _equal_files(by_step: Mapping[int, Mapping[str, str]], location: str, kind: str) -> list[Finding]:
    """Steps whose weight files are all the same, by the SHA-256 of each file."""
    groups = groups_of_equal((step, tuple(sorted(files.values()))) for step, files in by_step.items())
    return [equal_content(group, location, f"{kind} files") for group in groups]


def _mixed_shards(by_step: Mapping[int, Mapping[str, str]]) -> list[Finding]:
    """Steps that have a shard in common, but not all of their shards."""
    steps_with: dict[str, list[int]] = defaultdict(list)
    for step, files in sorted(by_step.items()):
        for sha256 in set(files.values()):
            steps_with[sha256].append(step)
    findings = []
    for sha256, steps in steps_with.items():
        if len({tuple(sorted(by_step[step].values())) for step in steps}) > 1:
            file = next(name for name, own in by_step[steps[0]].items() if own == sha256)
            message = f"{listed(steps)} share the shard {file} but not the others: shards of different steps are mixed"
            findings.append(Finding("mixed", tuple(steps), message))
    return findings


def _weight_files(entries: Mapping[str, tuple[int, str | None]], suffix: str) -> dict[str, str]:
    """The SHA-256 of each weight file of one format, by name."""
    return {
        name: sha256
        for name, (_, sha256) in sorted(entries.items())
        if sha256 and "/" not in name and name.endswith(suffix) and name.startswith(("model", "pytorch_model"))
    }
