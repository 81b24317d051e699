"""Defects that only the comparison of repositories shows: weights of another run, shards of another run, another start.

No I/O: the input are the listings of `pythia_dynamics.checkpoints.listings` and, where first weights were read, the
findings of `pythia_dynamics.checkpoints.continuity`. Weights are compared by the SHA-256 of their files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pythia_dynamics.checkpoints.findings import EQUAL_IN_PYTHIA, Finding, FindingKind, Verification
from pythia_dynamics.checkpoints.listings import Listing
from pythia_dynamics.checkpoints.registry import is_pythia
from pythia_dynamics.checkpoints.tree import FORMATS, WeightFormat
from pythia_dynamics.checkpoints.verify import verify_listing
from pythia_dynamics.errors import listed

__all__ = ["EARLY_STEPS", "have_different_seeds", "verify_repositories"]

EARLY_STEPS = 512
"""Steps up to here are so early in training that their weights are still close to those of the first step: they are in
the first half of the warm-up, which takes 1430 steps in Pythia."""

_SEED = re.compile(r"-(?P<kind>(?:data-|weight-)?seed)(?P<number>\d+)(?=-|$)", re.IGNORECASE)

_FAMILY = 3
"""Fewest repositories of one family whose common steps say what each of them should have: more than half is two."""


def verify_repositories(
    listings: Sequence[Listing], continuity: Mapping[str, Sequence[Finding]] | None = None
) -> list[Verification]:
    """Check every repository, alone and against the others.

    Parameters
    ----------
    listings
        What the Hub has stated of each repository.
    continuity
        By repository, what the first weights have shown: the findings of `check_continuity`, also where there are none.
        A repository that is left out was not checked by weights.

    Returns
    -------
    list of Verification
        One for each listing, in their order. Beside the kinds of `verify_listing` there are ``equal-elsewhere``,
        ``discontinuous``, and ``mixed`` for shards of another repository. The same weights at the first step of two
        repositories are harmless, unless their names say that the seed of the initial weights differs.
    """
    continuity = continuity or {}
    across: dict[str, dict[object, Finding]] = defaultdict(dict)  # what both formats show is one finding
    for format in FORMATS:
        for location, finding in [*_equal_elsewhere(listings, format), *_mixed_elsewhere(listings, format)]:
            across[location].setdefault((finding.kind, finding.steps, finding.elsewhere), finding)
    found = []
    for listing in listings:
        location = listing.location
        alone = verify_listing(listing, _grid_of_family(listing, listings))
        findings = [*alone.findings, *across[location].values(), *continuity.get(location, ())]
        if location not in continuity and not any(finding.kind == "discontinuous" for finding in findings):
            findings += _changed_first_step(listing)
        found.append(replace(alone, findings=tuple(findings)))
    return found


def have_different_seeds(one: str, other: str) -> bool:
    """Whether the names of two repositories say that their initial weights were drawn with different seeds.

    Parameters
    ----------
    one, other
        Repository ids. ``-seed3`` and ``-weight-seed3`` are seeds of the initial weights, ``-data-seed3`` is that of
        the data alone, and a name without any is the default seed.
    """
    if _family(one) != _family(other):
        return False
    seeds = [_SEED.search(name) for name in (one, other)]
    kinds = {match["kind"].lower() for match in seeds if match}
    numbers = {match["number"] if match else None for match in seeds}
    return len(kinds) == 1 and not kinds & {"data-seed"} and len(numbers) == 2


def _family(location: str) -> str:
    """The id of a repository without its seed."""
    return _SEED.sub("", location).lower()


def _grid_of_family(listing: Listing, listings: Sequence[Listing]) -> set[int]:
    """The steps that most repositories of the family have, in the range of the steps of this one."""
    family = [other for other in listings if _family(other.location) == _family(listing.location)]
    if len(family) < _FAMILY:
        return set()
    counts = Counter(step for other in family for step in other.steps)
    first, last = listing.steps[0], listing.steps[-1]
    return {step for step, count in counts.items() if first <= step <= last and 2 * count > len(family)}


def _initial_steps(contents: Mapping[int, tuple[str, ...]], is_pythia: bool) -> set[int]:
    """The steps that have the initial weights: the first one, and step 1 of Pythia where it is the same."""
    first = min(contents, default=None)
    if first not in EQUAL_IN_PYTHIA:  # the first branch is step 1000, for instance: these weights were trained
        return set()
    zero_and_one = {contents[step] for step in EQUAL_IN_PYTHIA if step in contents}
    return set(EQUAL_IN_PYTHIA) & set(contents) if is_pythia and len(zero_and_one) == 1 else {first}


_Meaning = Literal["later", "initial", "seeds", "start", "source", "shard"]
"""What the same files in two repositories mean. ``later``: after the first step. ``initial``: at the first step.
``seeds``: there, but the seeds are different. ``start``: the other run's first step at an early step of this one.
``source``: the converse of it. ``shard``: the same shard beside other ones."""

_EQUAL = "{own} {verb} the same {files} as {there} of {other}"
_MESSAGES: Mapping[_Meaning, str] = {
    "later": f"{_EQUAL}: at most one of the two runs has these weights there",
    "initial": f"{_EQUAL}, the same initial weights",
    "seeds": f"{_EQUAL}: the same initial weights, although the two runs have different seeds",
    "start": "{own} {verb} the {files} of {there} of {other}, which are not those of the own first step: the run does "
    "not continue it",
    "source": f"{_EQUAL}: the other run does not continue its own first step",
    "shard": f"{_EQUAL}, but not the other shards",
}
_KINDS: Mapping[_Meaning, FindingKind] = {"start": "discontinuous", "shard": "mixed"}
"""Kinds of the meanings that are not ``equal-elsewhere``."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """What two repositories share: own steps, steps of the other one, and the files."""

    own: set[int] = field(default_factory=set)
    others: set[int] = field(default_factory=set)
    sha256: set[str] = field(default_factory=set)

    def add(self, own: Collection[int], others: Collection[int], sha256: Collection[str]) -> None:
        self.own.update(own)
        self.others.update(others)
        self.sha256.update(sha256)

    def finding(self, other: str, files: str, meaning: _Meaning) -> Finding:
        """The finding in the repository that has the own steps."""
        own, others = sorted(self.own), sorted(self.others)
        verb = "has" if len(own) == 1 else "have"
        there = "the same steps" if own == others and len(own) > 1 else listed(others)
        message = _MESSAGES[meaning].format(own=listed(own), verb=verb, files=files, other=other, there=there)
        return Finding(
            _KINDS.get(meaning, "equal-elsewhere"),
            tuple(own),
            message,
            fault=meaning not in ("initial", "source"),
            elsewhere=tuple((other, step) for step in others),
            sha256=tuple(sorted(self.sha256)),
        )


def _equal_elsewhere(listings: Sequence[Listing], format: WeightFormat) -> Iterator[tuple[str, Finding]]:
    """(repository, finding) for weights that two repositories have."""
    steps_with: dict[tuple[str, ...], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    initial: dict[str, set[int]] = {}
    start: dict[str, tuple[str, ...]] = {}  # the content of the first step, or something that no other has
    pythia = {listing.location: is_pythia(listing.location) for listing in listings}
    for listing in listings:
        location, contents = listing.location, listing.contents(format)
        initial[location] = _initial_steps(contents, pythia[location])
        start[location] = contents[min(initial[location])] if initial[location] else (location,)
        for step, content in contents.items():
            steps_with[content][location].add(step)
    shared: dict[tuple[str, str, _Meaning], _Shared] = defaultdict(_Shared)
    for content, by_location in steps_with.items():
        for one, own in by_location.items():
            for other, others in by_location.items():
                if one == other:
                    continue
                # Where two runs of Pythia have the same step 0, step 1 has its weights too, even where the signs of
                # zeros, and so the files, differ.
                also = EQUAL_IN_PYTHIA if start[one] == start[other] and pythia[one] and pythia[other] else ()
                own_first, first = own & {*initial[one], *also}, others & {*initial[other], *also}
                if own_first and first:
                    meaning: _Meaning = "seeds" if have_different_seeds(one, other) else "initial"
                    shared[one, other, meaning].add(own_first, first, content)
                    continue
                meaning = "later"
                if first and initial[one] and max(own) <= EARLY_STEPS:
                    meaning = "start"
                elif own_first and initial[other] and max(others) <= EARLY_STEPS:
                    meaning = "source"
                shared[one, other, meaning].add(own, others, content)
    for (one, other, meaning), found in shared.items():
        yield one, found.finding(other, f"{format} files", meaning)


def _mixed_elsewhere(listings: Sequence[Listing], format: WeightFormat) -> Iterator[tuple[str, Finding]]:
    """(repository, finding) for single shards that two repositories have, where the other shards differ."""
    places: dict[str, list[tuple[str, int, str, tuple[str, ...]]]] = defaultdict(list)
    for listing in listings:
        contents = listing.contents(format)
        for step, files in listing.weights(format).items():
            for name, sha256 in files.items():
                places[sha256].append((listing.location, step, name, contents[step]))
    shared: dict[tuple[str, str, str], _Shared] = defaultdict(_Shared)
    for sha256, having in places.items():
        if len({content for *_, content in having}) == 1:
            continue
        for one, own, name, content in having:
            for other, step, _, there in having:
                if other != one and there != content:
                    shared[one, other, name].add((own,), (step,), (sha256,))
    for (one, other, name), found in shared.items():
        yield one, found.finding(other, f"shard {name}", "shard")


def _changed_first_step(listing: Listing) -> list[Finding]:
    """A note where steps 0 and 1 of Pythia have different files. Whether the weights differ, the files do not tell."""
    if not is_pythia(listing.location):
        return []
    formats = [contents for contents in map(listing.contents, FORMATS) if set(EQUAL_IN_PYTHIA) <= set(contents)]
    pairs = [tuple(contents[step] for step in EQUAL_IN_PYTHIA) for contents in formats]
    if not pairs or any(zero == one for zero, one in pairs):
        return []
    message = (
        "steps 0 and 1 have different files, while those of other Pythia models are equal: --weights compares them"
    )
    found = tuple(sorted({sha256 for pair in pairs for content in pair for sha256 in content}))
    return [Finding("discontinuous", EQUAL_IN_PYTHIA, message, fault=False, sha256=found)]
