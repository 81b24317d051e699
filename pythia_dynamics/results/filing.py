"""The text that reports the defects of a repository to its publisher: ``results/<model>/filing.md``.

It names branches, commits and checksums, says what was expected, and how to check it without this package.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.findings import Finding, FindingKind, Verification
from pythia_dynamics.checkpoints.listings import Listing, weight_files
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.checkpoints.suite import Reference
from pythia_dynamics.checkpoints.tree import FORMATS, SUFFIXES
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
        "Both formats of a checkpoint have the weights of one step, so steps that are equal in one format are equal in "
        "the other.",
    ),
    "mixed": _Wording(
        "steps have a shard of another step",
        "All shards of a checkpoint are of one step, so no shard occurs in two of them.",
    ),
    "size": _Wording(
        "weights have another size than at the other steps",
        "All steps of a run have the same tensors, so the sizes of their weights agree up to headers.",
    ),
    "missing": _Wording(
        "steps are missing or have no weights",
        "Each of these steps has a checkpoint with all of its weights, as the other steps have.",
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
        f"- Repository: {_address(own)}",
        f"- Listed: {own.listed:%Y-%m-%d %H:%M} UTC; {len(own.steps)} steps there, each a {own.kind}; "
        f"{len(found.checked)} checked",
        f"- Tool: pythia-dynamics {__version__}, `pythia-dyn verify --remote`. It compares the sizes and SHA-256 "
        "checksums that the Hub states for each commit.",
        *([f"- Compared with: {', '.join(others)}"] if others else []),
        "",
        "The commits below are those at that time. What they show may have been repaired since.",
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
            yield (*begin, f"`{revision.path(name)}`", str(count), f"`{sha256}`" if sha256 else "not in LFS")
        if not shown:
            yield (*begin, "no weight files", "", "")


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A Markdown table of files, with an empty line before it; nothing without rows."""
    if not rows:
        return []
    head = [("checkpoint", "commit", "file", "bytes", "SHA-256"), ("---", "---", "---", "---:", "---")]
    return ["", *(f"| {' | '.join(row)} |" for row in [*head, *rows])]


def _checks(
    by_kind: Mapping[FindingKind, Sequence[Finding]], listings: Mapping[str, Listing], own: Listing
) -> list[str]:
    """How to see the findings with `huggingface_hub`, and with curl."""
    examples, absent = _examples(by_kind, listings, own), _absent(by_kind.get("missing", ()), own)
    lines = []
    if examples:
        lines += [
            "The checksums that the Hub states for some of these checkpoints (the others alike):",
            "",
            "```python",
            "from huggingface_hub import HfApi",
            "",
            "checkpoints = [  # repository, commit, folder",
            *(f"    {example}," for example in examples),
            "]",
            "for repository, commit, folder in checkpoints:",
            "    for file in HfApi().list_repo_tree(repository, folder, revision=commit):",
            f"        if file.path.endswith({SUFFIXES}):",
            "            print(repository, commit, file.path, file.size, file.lfs and file.lfs.sha256)",
            "```",
            "",
            "```bash",
            *(f'curl -s "{_tree(*example)}"' for example in examples),
            "```",
        ]
    if absent:
        what, expression = _THERE[own.kind]
        lines += [
            *([""] if lines else []),
            f"The {what}, without {listed(absent)}:",
            "",
            "```python",
            "from huggingface_hub import HfApi",
            "",
            f"repository, branch = {own.location!r}, {own.branch!r}",
            f"print(sorted({expression}))",
            "```",
        ]
    if any(not finding.sha256 for finding in by_kind.get("discontinuous", ())) and own.kind != "file":
        lines += ["", *_cosine_check(by_kind["discontinuous"], own)]
    return lines


_FILES = "file.path for file in HfApi().list_repo_tree(repository, revision=branch, recursive=True)"
_THERE: Mapping[Reference, tuple[str, str]] = {
    "branch": ("branches of the repository", "ref.name for ref in HfApi().list_repo_refs(repository).branches"),
    "tag": ("tags of the repository", "ref.name for ref in HfApi().list_repo_refs(repository).tags"),
    "folder": ("files of the branch", _FILES),
    "file": ("files of the branch", _FILES),
    "commit": (
        "commits of the branch",
        "commit.title for commit in HfApi().list_repo_commits(repository, revision=branch)",
    ),
    "repository": (
        "repositories",
        'model.id for model in HfApi().list_models(author=repository.split("/")[0], search=repository.split("/")[1])',
    ),
}
"""What a checkpoint is among, and the Python expression that lists it."""


def _place(location: str, revision: Revision) -> tuple[str, str, str]:
    """Repository, commit and folder of a revision."""
    return revision.repository or location, revision.address, revision.folder


def _tree(repository: str, commit: str, folder: str) -> str:
    """The address at which the Hub lists the files of a folder."""
    path = "/".join(filter(None, (repository, "tree", commit, quote(folder))))
    return f"${{HF_ENDPOINT:-https://huggingface.co}}/api/models/{path}?recursive=true"


def _address(own: Listing) -> str:
    """The page of a repository, or of those that begin like it."""
    page = "https://huggingface.co/"
    return f"{page}models?search={quote(own.location)}" if own.kind == "repository" else f"{page}{own.location}"


def _examples(
    by_kind: Mapping[FindingKind, Sequence[Finding]], listings: Mapping[str, Listing], own: Listing
) -> list[tuple[str, str, str]]:
    """(repository, commit, folder) of a few checkpoints: the first two and the last one of each finding."""
    found: dict[tuple[str, str, str], None] = {}
    for finding in (finding for findings in by_kind.values() for finding in findings):
        places = [
            (place, step) for place, step in _revisions(finding, own.location) if step in listings[place].revisions
        ]
        for place, step in [*places[:2], *places[-1:]]:
            found[_place(place, listings[place].revisions[step])] = None
    return list(found)[:_EXAMPLES]


def _absent(missing: Sequence[Finding], own: Listing) -> list[int]:
    """The missing steps that have no checkpoint."""
    return sorted({step for finding in missing for step in finding.steps if step not in own.steps})


def _cosine_check(findings: Sequence[Finding], own: Listing) -> list[str]:
    """How to compare the embeddings of two steps."""
    before, after = next(finding.steps for finding in findings if not finding.sha256)
    pair = [own.revisions[step] for step in (before, after) if step in own.revisions]
    return [
        f"The cosine of the embeddings of steps {before} and {after}, which is close to 1 if the run continues:",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModelForCausalLM",
        "",
        "before, after = (",
        "    AutoModelForCausalLM.from_pretrained(repository, revision=commit, subfolder=folder)",
        "    .get_input_embeddings().weight.flatten().float()",
        "    for repository, commit, folder in (",
        *(f"        {_place(own.location, revision)}," for revision in pair),
        "    )",
        ")",
        "print(torch.nn.functional.cosine_similarity(before, after, dim=0))",
        "```",
    ]
