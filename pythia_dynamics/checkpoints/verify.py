"""Verify a repository on the Hub before anything is downloaded: equal checkpoints, mixed shards, missing weights.

Some published branches have the weights of another step. Revisions are therefore compared by the SHA-256 that the Hub
states for each file, not by name. `pythia_dynamics.checkpoints.defects` compares several repositories, and
`pythia_dynamics.sweep.verify` checks weights that were fetched. No I/O.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from pythia_dynamics.checkpoints.findings import (
    EQUAL_IN_PYTHIA,
    Finding,
    Verification,
    equal_content,
    groups_of_equal,
)
from pythia_dynamics.checkpoints.listings import Listing, weight_files
from pythia_dynamics.checkpoints.registry import is_pythia, resolve
from pythia_dynamics.checkpoints.tree import FORMATS, WeightFormat
from pythia_dynamics.errors import listed, size

__all__ = ["REMOTE", "verify_listing"]

REMOTE = "files on the Hub"
"""The subject of `verify_listing`, in place of a tensor."""

_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\..*")

_SAME_SIZE = 1e-3
"""Sizes are the same up to this share: headers and the paddings of torch files differ by kilobytes from upload to
upload, tensors by more. The smallest checkpoint of Pythia has 53 MB."""

_VARIANT = 3
"""As many revisions of one other size are a variant, with another dtype or with mask buffers, and no broken upload."""

_GRID_STEPS = 5
"""Fewest steps at one distance that are taken for a grid; three steps at one distance are chance."""


def verify_listing(listing: Listing, grid: Iterable[int] = ()) -> Verification:
    """Check what the Hub has stated of one repository.

    Parameters
    ----------
    listing
        What the Hub has stated, from `list_repository`. Where it was listed whole, every published step of Pythia is
        checked.
    grid
        Steps that the repository should have beside those that are published, or fill a gap of its own grid.

    Returns
    -------
    Verification
        Findings of the kinds ``missing``, ``unreadable``, ``equal``, ``mixed``, ``disagree`` and ``size``.
    """
    if listing.asked is None:
        published = resolve(listing.location).published_steps
        wanted = tuple(sorted({*listing.steps, *grid, *(published or _gaps(listing.steps))}))
    else:
        wanted = listing.asked
    absent = [step for step in wanted if step not in listing.revisions]
    findings = [
        Finding("missing", (step,), f"{listing.location} has no {listing.kind} for step {step}") for step in absent
    ]
    incomplete: set[int] = set()
    for step, revision in listing.revisions.items():
        if step in listing.unreadable:
            findings.append(Finding("unreadable", (step,), listing.unreadable[step]))
        elif message := _lacking(listing, step):
            findings.append(Finding("missing", (step,), f"{revision.ref} {message}"))
            incomplete.add(step)
    for format in FORMATS:
        contents = listing.contents(format)
        equal = groups_of_equal(contents.items())
        reported = {(finding.kind, finding.steps) for finding in findings}  # in the files of the other format
        new = [
            *(equal_content(group, listing.location, f"{format} files", contents[group[0]]) for group in equal),
            *_mixed_shards(listing, format),
            *_other_sizes(listing, format, incomplete),
        ]
        findings += [finding for finding in new if (finding.kind, finding.steps) not in reported]
    findings += _disagreeing_formats(listing)
    return Verification(listing.name, listing.location, REMOTE, wanted, tuple(findings))


def _mixed_shards(listing: Listing, format: WeightFormat) -> list[Finding]:
    """Steps that have a shard in common, but not all of their shards."""
    by_step, contents = listing.weights(format), listing.contents(format)
    steps_with: dict[str, list[int]] = defaultdict(list)
    for step, files in by_step.items():
        for sha256 in set(files.values()):
            steps_with[sha256].append(step)
    findings = []
    for sha256, steps in steps_with.items():
        if len({contents[step] for step in steps}) > 1:
            file = next(name for name, own in by_step[steps[0]].items() if own == sha256)
            message = f"{listed(steps)} share the shard {file} but not the others: shards of different steps are mixed"
            findings.append(Finding("mixed", tuple(steps), message, sha256=(sha256,)))
    return findings


def _disagreeing_formats(listing: Listing) -> list[Finding]:
    """Steps with the same files in one format, but not in the other: the two formats are of different steps there."""
    findings = []
    contents = {format: listing.contents(format) for format in FORMATS}
    both = sorted(set.intersection(*map(set, contents.values())))
    for one, other in (FORMATS, FORMATS[::-1]):
        for steps in groups_of_equal((step, contents[one][step]) for step in both):
            if len({contents[other][step] for step in steps}) == 1:
                continue
            harmless = steps == EQUAL_IN_PYTHIA and is_pythia(listing.location)
            message = f"{listed(steps)} have the same {one} files, but different {other} files"
            if not harmless:
                message += ": the two formats are not of the same step at all of them"
            findings.append(Finding("disagree", steps, message, not harmless, sha256=contents[one][steps[0]]))
    return findings


def _other_sizes(listing: Listing, format: WeightFormat, incomplete: set[int]) -> list[Finding]:
    """Steps whose weights have another size in all than those of most steps."""
    sizes = {
        step: sum(count for count, sha256 in weight_files(listing.files[step], format).values() if sha256)
        for step in listing.weights(format)
        if step not in incomplete
    }
    groups: dict[int, list[int]] = {}
    for count, _ in Counter(sizes.values()).most_common():  # the most frequent size of a group comes to stand for it
        same = next((other for other in groups if abs(other - count) <= _SAME_SIZE * other), count)
        groups.setdefault(same, []).extend(step for step, own in sizes.items() if own == count)
    usual = max(groups, key=lambda count: len(groups[count]), default=0)
    if len(groups.get(usual, ())) < _VARIANT:  # too few to say what the size should be
        return []
    findings = []
    for count, members in sorted(groups.items()):
        if count == usual:
            continue
        steps = tuple(sorted(members))
        have = "has" if len(steps) == 1 else "have"
        message = f"{listed(steps)} {have} {count} bytes of {format} files; {len(groups[usual])} steps have {usual}"
        harmless = len(steps) >= _VARIANT
        message += ": another dtype or further buffers" if harmless else f" ({size(abs(usual - count))} apart)"
        found = {sha256 for step in steps for sha256 in listing.weights(format)[step].values()}
        findings.append(Finding("size", steps, message, not harmless, sha256=tuple(sorted(found))))
    return findings


def _lacking(listing: Listing, step: int) -> str:
    """What a revision lacks, as the rest of a sentence that begins with its ref; empty if it has weights."""
    lacking = []
    for format in FORMATS:
        files = weight_files(listing.files[step], format)
        in_lfs = [name for name, (_, sha256) in files.items() if sha256]
        matches = [_SHARD.fullmatch(name) for name in in_lfs]
        shards: dict[int, set[int]] = defaultdict(set)
        for match in filter(None, matches):
            shards[int(match[2])].add(int(match[1]))
        if not all(matches) or any(set(range(1, count + 1)) <= found for count, found in shards.items()):
            continue  # a file that is no shard, or all shards
        if shards:
            count, found = max(shards.items(), key=lambda item: len(item[1]))
            numbers = ", ".join(str(number) for number in range(1, count + 1) if number not in found)
            lacking.append(f"has {len(found)} of {count} shards of its {format} files; missing: {numbers}")
        elif files:
            name, (count, _) = next(iter(files.items()))
            lacking.append(f"has no weights: {name} with {count} bytes is not in LFS, as weights are")
    if lacking:
        return "; ".join(lacking)
    has_any = any(weight_files(listing.files[step], format) for format in FORMATS)
    return "" if has_any else "has no weights"


def _gaps(steps: Sequence[int]) -> set[int]:
    """Steps that are missing inside a grid: where steps at one distance come before and after a multiple of it."""
    differences = [b - a for a, b in pairwise(steps)]
    if not differences:
        return set()
    stride, count = Counter(differences).most_common(1)[0]
    if count < _GRID_STEPS or 2 * count < len(differences):
        return set()
    found: set[int] = set()
    for i, difference in enumerate(differences):
        # Two gaps may be close together, so three differences on each side are looked at. Where the grid becomes
        # coarser, those behind are all larger.
        around = stride in differences[max(i - 3, 0) : i] and stride in differences[i + 1 : i + 4]
        if difference > stride and difference % stride == 0 and around:
            found |= set(range(steps[i] + stride, steps[i + 1], stride))
    return found
