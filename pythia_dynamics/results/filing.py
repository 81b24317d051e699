"""The text that reports the defects of a repository to its publisher: ``results/<model>/filing.md``.

It names branches, commits and checksums, says what was expected, and how to check it without this package.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.findings import Finding, FindingKind, Verification
from pythia_dynamics.checkpoints.listings import FORMATS, Listing, weight_files
from pythia_dynamics.errors import StoreError, listed
from pythia_dynamics.files import atomic_file, store_errors

__all__ = ["FILING", "filing_text", "reported", "save_filing"]

FILING = "filing.md"
"""Name of the file in the results of a model."""

_MARK = "<!-- pythia-dyn verify --remote, of"
_EXAMPLES = 6
"""Revisions in the commands that check the text: enough to see it, few enough to read the output."""


@dataclass(frozen=True, slots=True)
class _Wording:
    """What a kind of finding is called in a title, and what was expected instead."""

    title: str
    expected: str


_WORDINGS: Mapping[FindingKind, _Wording] = {
    "equal": _Wording(
        "different steps have the same weights",
        "The weights of a model change while it is trained, so the files of each step have checksums of their own.",
    ),
    "equal-elsewhere": _Wording(
        "steps have the weights of another repository",
        "Two runs have the same weights at their first step at most, and only if their initial seed is the same.",
    ),
    "discontinuous": _Wording(
        "the run does not continue its own first step",
        "The first steps of a run are its initial weights, moved by a few small updates.",
    ),
    "disagree": _Wording(
        "the safetensors and the torch files are of different steps",
        "Both formats of a branch have the weights of the same step, so that steps which are equal in one format are "
        "equal in the other.",
    ),
    "mixed": _Wording(
        "steps have a shard of another step",
        "All shards of a branch are of one step, so no shard occurs in two of them.",
    ),
    "size": _Wording(
        "weights have another size than at the other steps",
        "All steps of a run have the same tensors, so the sizes of their weights agree up to headers.",
    ),
    "missing": _Wording(
        "steps are missing or have no weights",
        "Each of these steps has a branch with all of its weights, as the other steps have.",
    ),
}
"""The kinds that a publisher can repair."""


def reported(found: Verification) -> tuple[Finding, ...]:
    """The findings that are for the publisher: all faults, except revisions that could not be listed just now.

    Parameters
    ----------
    found
        The findings of a repository.
    """
    return tuple(finding for finding in found.faults if finding.kind in _WORDINGS)


def filing_text(found: Verification, listings: Mapping[str, Listing]) -> str:
    """The report on one repository, in Markdown.

    Parameters
    ----------
    found
        The findings of the repository; `reported` must not be empty.
    listings
        What the Hub has stated of this repository and of those it was compared with, by repository id.
    """
    own = listings[found.location]
    by_kind: dict[FindingKind, list[Finding]] = defaultdict(list)
    for finding in reported(found):
        by_kind[finding.kind].append(finding)
    kinds = [kind for kind in _WORDINGS if kind in by_kind]
    subjects = [f"{_WORDINGS[kind].title} ({_steps(by_kind[kind])})" for kind in kinds]
    others = sorted(set(listings) - {found.location})
    lines = [
        f"# {found.location}: {'; '.join(subjects)}",
        "",
        f"- Repository: https://huggingface.co/{found.location}",
        f"- Listed: {own.listed:%Y-%m-%d %H:%M} UTC; {len(own.steps)} step branches, {len(found.checked)} steps "
        "checked",
        f"- Tool: pythia-dynamics {__version__}, `pythia-dyn verify --remote`. It compares the sizes and SHA-256 "
        "checksums that the Hub states for each commit.",
        *([f"- Compared with: {', '.join(others)}"] if others else []),
        "",
        "The commits below are those of the branches at that time. A branch may have been repaired since.",
    ]
    for number, kind in enumerate(kinds, 1):
        wording = _WORDINGS[kind]
        lines += [
            "",
            f"## {number}. {wording.title[0].upper()}{wording.title[1:]}",
            "",
            f"Expected: {wording.expected}",
        ]
        if kind == "missing":
            lines += ["", *(f"- {finding.message}" for finding in by_kind[kind])]
            lines += _table([row for finding in by_kind[kind] for row in _rows(finding, listings, own.location)])
            continue
        for finding in by_kind[kind]:
            lines += ["", f"Found: {finding.message}.", *_table(list(_rows(finding, listings, own.location)))]
    lines += ["", "## How to check", "", *_checks(by_kind, listings, own)]
    return "\n".join(lines) + "\n"


def save_filing(folder: Path, location: str, text: str | None) -> Path | None:
    """Write the report on a repository into the results of a model, or remove an earlier one if there is none any more.

    Only a file that this function has written for the same repository, and nobody has changed since, is replaced or
    removed: its first line holds the checksum of the rest.

    Parameters
    ----------
    folder
        The results of the model.
    location
        The repository's id.
    text
        The report; None where there is nothing to report.

    Returns
    -------
    Path or None
        The file, if it was written.

    Raises
    ------
    StoreError
        There is a file that is not to be replaced, or the file cannot be written.
    """
    path = folder / FILING
    own = _is_own(path, location)
    if text is None:
        if own:
            with store_errors(path):
                path.unlink(missing_ok=True)
        return None
    if not own and path.exists():
        raise StoreError(f"{path} was changed, or is not of {location}, and is kept; move it away and run this again")
    with atomic_file(path) as file:
        file.write(f"{_mark(location, text)}\n{text}".encode())
    return path


def _mark(location: str, text: str) -> str:
    """The first line of the file."""
    return f"{_MARK} {location}; sha256 of the text below: {hashlib.sha256(text.encode()).hexdigest()} -->"


def _is_own(path: Path, location: str) -> bool:
    """Whether a file was written by `save_filing` for a repository, and is unchanged."""
    try:
        first, _, rest = path.read_bytes().decode().partition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return first == _mark(location, rest)


def _steps(findings: Sequence[Finding]) -> str:
    """The number of the steps of some findings, as text."""
    count = len({step for finding in findings for step in finding.steps})
    return f"{count} {'step' if count == 1 else 'steps'}"


def _revisions(finding: Finding, location: str) -> list[tuple[str, int]]:
    """(repository, step) of every revision of a finding."""
    return [*((location, step) for step in finding.steps), *finding.elsewhere]


def _rows(finding: Finding, listings: Mapping[str, Listing], location: str) -> Iterator[tuple[str, ...]]:
    """The files that show a finding: those with its checksums, else all weights; one row where there are none."""
    for repository, step in _revisions(finding, location):
        listing = listings[repository]
        if step not in listing.revisions:
            continue
        revision, known = listing.revisions[step], listing.files.get(step, {})
        files = {name: entry for format in FORMATS for name, entry in weight_files(known, format).items()}
        shown = {name: entry for name, entry in files.items() if entry[1] in finding.sha256}
        if finding.kind == "disagree" or not shown:  # both formats are necessary to see it
            shown = files
        where = revision.ref if repository == location else f"{repository} {revision.ref}"
        begin = (f"`{where}`", f"`{revision.commit}`")
        for name, (count, sha256) in shown.items():
            yield (*begin, f"`{name}`", str(count), f"`{sha256}`" if sha256 else "not in LFS")
        if not shown:
            yield (*begin, "no weight files", "", "")


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table of files, with an empty line before it; nothing without rows."""
    if not rows:
        return []
    head = [("branch", "commit", "file", "bytes", "SHA-256"), ("---", "---", "---", "---:", "---")]
    return ["", *(f"| {' | '.join(row)} |" for row in [*head, *rows])]


def _checks(
    by_kind: Mapping[FindingKind, Sequence[Finding]], listings: Mapping[str, Listing], own: Listing
) -> list[str]:
    """How to see the findings with `huggingface_hub`, and with curl."""
    examples, absent = _examples(by_kind, listings, own), _absent(by_kind.get("missing", ()), own)
    lines = []
    if examples:
        lines += [
            "The checksums that the Hub states for some of these revisions (the others alike):",
            "",
            "```python",
            "from huggingface_hub import HfApi",
            "",
            "revisions = [",
            *(f'    ("{repository}", "{ref}", "{commit}"),' for repository, ref, commit in examples),
            "]",
            "for repository, branch, commit in revisions:",
            "    for file in HfApi().list_repo_tree(repository, revision=commit):",
            '        if file.path.endswith((".safetensors", ".bin")):',
            "            print(repository, branch, file.path, file.size, file.lfs and file.lfs.sha256)",
            "```",
            "",
            "```bash",
            *(
                f'curl -s "${{HF_ENDPOINT:-https://huggingface.co}}/api/models/{repository}/tree/{commit}?recursive=true"'
                for repository, _, commit in examples
            ),
            "```",
        ]
    if absent:
        lines += [
            *([""] if lines else []),
            f"The branches of the repository, without {listed(absent)}:",
            "",
            "```python",
            "from huggingface_hub import HfApi",
            "",
            f'print(sorted(branch.name for branch in HfApi().list_repo_refs("{own.location}").branches))',
            "```",
        ]
    if any(not finding.sha256 for finding in by_kind.get("discontinuous", ())):
        lines += ["", *_cosine_check(by_kind["discontinuous"], own)]
    return lines


def _examples(
    by_kind: Mapping[FindingKind, Sequence[Finding]], listings: Mapping[str, Listing], own: Listing
) -> list[tuple[str, str, str]]:
    """(repository, ref, commit) of a few revisions: the first two and the last one of each finding."""
    found: dict[tuple[str, str, str], None] = {}
    for finding in (finding for findings in by_kind.values() for finding in findings):
        places = [
            (place, step) for place, step in _revisions(finding, own.location) if step in listings[place].revisions
        ]
        for place, step in [*places[:2], *places[-1:]]:
            revision = listings[place].revisions[step]
            found[place, revision.ref, revision.address] = None
    return list(found)[:_EXAMPLES]


def _absent(missing: Sequence[Finding], own: Listing) -> list[int]:
    """The missing steps that have no branch."""
    return sorted({step for finding in missing for step in finding.steps if step not in own.steps})


def _cosine_check(findings: Sequence[Finding], own: Listing) -> list[str]:
    """How to compare the embeddings of two steps."""
    before, after = next(finding.steps for finding in findings if not finding.sha256)
    commits = ", ".join(f'"{own.revisions[step].address}"' for step in (before, after) if step in own.revisions)
    return [
        f"The cosine of the embeddings of steps {before} and {after}, which is close to 1 if the run continues:",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModelForCausalLM",
        "",
        "before, after = (",
        f'    AutoModelForCausalLM.from_pretrained("{own.location}", revision=commit).get_input_embeddings().weight',
        f"    for commit in ({commits})",
        ")",
        "print(torch.nn.functional.cosine_similarity(before.flatten().float(), after.flatten().float(), dim=0))",
        "```",
    ]
