"""What has bitten people: damaged chunks, one revision's weights under another's name, swapped and mixed shards.

`verify_store` looks at weights that were fetched, `verify_remote` at what the Hub states of files before any of them is
downloaded. Neither believes a name: what two revisions have in common is found by content.
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
"""What `verify_remote` looks at, in place of a tensor."""


_WEIGHTS = {"safetensors": ".safetensors", "torch": ".bin"}


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


# -- equal content --------------------------------------------------------------------------------------------


def _equal_files(by_step: Mapping[int, Mapping[str, str]], location: str, kind: str) -> list[Finding]:
    """Steps whose weight files are all the same."""
    groups = groups_of_equal((step, tuple(sorted(files.values()))) for step, files in by_step.items())
    return [equal_content(group, location, f"{kind} files") for group in groups]


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


# -- strays ---------------------------------------------------------------------------------------------------
