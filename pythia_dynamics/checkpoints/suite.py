"""A suite of checkpoints as a value: how its steps are named and found, and what is known of its models. No I/O.

The suites that the package knows are in ``registry.toml``; one of a user has the same keys, in a file or as options. A
store keeps the suite of its weights, so that no later command asks for it again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pythia_dynamics.checkpoints.learning_rate import MAX_EXACT, LearningRate, LoggedLearningRate, schedule_from_values
from pythia_dynamics.checkpoints.roles import EMBEDDING, UNEMBEDDING, Role
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError

__all__ = [
    "GENERIC",
    "PARTS",
    "REFERENCES",
    "Part",
    "Reference",
    "StepName",
    "Suite",
    "chosen_steps",
    "read_suite",
]

Reference = Literal["branch", "tag", "folder", "file", "commit", "repository"]
"""What a checkpoint is in its source: a branch or a tag of a repository, a folder or a file on its main branch, one of
the commits of that branch, or a repository of its own. A directory has folders and files."""

Part = Literal["generation", "stage", "seed"]
"""What tells two runs in one repository apart when their steps have the same numbers."""

REFERENCES: tuple[Reference, ...] = get_args(Reference)
PARTS: tuple[Part, ...] = get_args(Part)

_GROUPS = ("step", "tokens", *PARTS)
_PLURAL = {kind: f"{kind}s" if not kind.endswith("y") else "repositories" for kind in REFERENCES} | {
    "branch": "branches"
}

_NONE = "none"
"""Stands for names without a generation, stage or seed where one is chosen."""

_MAX_DIGITS = 32
"""Digits of a number in a name, so that reading one takes no time; the point counts."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmbt]?)", re.IGNORECASE)

_ANY_NAME = (
    r"(?i)(?:^|/)(?:stage-?(?P<stage>\d+(?:-ingredient-?\d+)?)[-_])?(?:epoch=\d+-)?(?:global[-_]?)?"
    r"(?:step|steps|checkpoint|ckpt|iter)[-_=]?(?P<step>\d+k?)"
    r"(?:[-_](?:tokens?[-_]?)?(?P<tokens>\d+(?:\.\d+)?[mbt])t?)?(?:-seed-(?P<seed>[\w-]+))?$"
)
"""The names of steps in the suites of the registry and of the usual programs: ``step1000``, ``checkpoint-500``,
``ckpt_10``, ``global_step5000``, ``epoch=1-step=100``, ``step1000-tokens4B``, ``stage2-ingredient1-step1000``, …"""

_COMMIT_TITLE = r"(?i)\bstep[-_ =:]*(?P<step>\d+)$"
"""The end of the title of a commit that holds a step, as transformers writes it: "Training in progress, step 500"; the
commit "Training in progress, step 500, checkpoint" has the state of the optimiser."""


@dataclass(frozen=True, slots=True)
class StepName:
    """What the name of a checkpoint says.

    Parameters
    ----------
    step
        The training step, or the index where the suite numbers its checkpoints.
    tokens
        Tokens seen so far, as the name rounds them; None where it does not say.
    parts
        Generation, stage and seed, where it names them.
    """

    step: int
    tokens: int | None = None
    parts: Mapping[Part, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """How the steps of a suite are named and found, and what is known of its models.

    Parameters
    ----------
    name
        Short name; empty for a suite that the registry does not have.
    references
        What a checkpoint is in its source: the kinds to look for, in this order.
    pattern
        Regular expressions for the names of checkpoints. One matches a name in which it is found anywhere, unless ``^``
        or ``$`` anchor it. Its named groups are ``step`` (without any name, the first group), ``tokens``,
        ``generation``, ``stage`` and ``seed``. Numbers may end in k, M, B or T.
    branch
        The branch whose folders, files or commits are checkpoints.
    part
        Which generation, stage and seed to take, where there are several; ``none`` for names without one.
    unembedding, embedding
        Names of the tensors that have these roles; the first that a checkpoint has. Empty where the names of the
        tensors and the config tell (`pythia_dynamics.checkpoints.roles`).
    config, tokenizer
        A directory or a repository with the ``config.json`` or the tokenizer of checkpoints that have none.
    tokens_per_step
        Tokens of one training step.
    learning_rate
        The schedule, or the learning rates that a training has logged.
    documented
        Pages of the publisher that say all this.

    Raises
    ------
    PythiaDynError
        A pattern is not a regular expression with a group for the step, or a value has the wrong type.
    UnknownNameError
        There is no such kind of reference or part.
    """

    name: str = ""
    references: tuple[Reference, ...] = ("branch", "tag", "folder", "file", "commit")
    pattern: tuple[str, ...] = (_ANY_NAME,)
    branch: str = "main"
    part: Mapping[Part, str] = field(default_factory=dict, hash=False)
    unembedding: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    config: str | None = None
    tokenizer: str | None = None
    tokens_per_step: int | None = None
    learning_rate: LearningRate | LoggedLearningRate | None = None
    documented: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("references", "pattern"):
            if not getattr(self, name):
                raise PythiaDynError(f"a suite has at least one entry in {name}")
        for kind in self.references:
            if kind not in REFERENCES:
                raise UnknownNameError("kind of reference", kind, REFERENCES)
        for part in self.part:
            if part not in PARTS:
                raise UnknownNameError("part of a suite", part, PARTS)
        _ = self._compiled

    # -- making one -------------------------------------------------------------------------------------------

    def changed(self, values: Mapping[str, Any]) -> Suite:
        """The suite with other values.

        Parameters
        ----------
        values
            Values of fields by name; a single string stands for a tuple of one. ``stage``, ``generation`` and ``seed``
            are entries of `part`. ``learning_rate`` is a mapping. Where another stage or generation than before is
            chosen, `learning_rate` and `tokens_per_step` are those of the old one, and are dropped unless given.

        Raises
        ------
        PythiaDynError
            As the class; or there is no field of that name.
        """
        known = [each.name for each in fields(self)]
        changes: dict[str, Any] = {}
        part: dict[Any, str] = dict(self.part)
        for name, value in values.items():
            if name in PARTS:
                part[name] = _part_value(name, self._checked(name, value))
            elif name == "part" and isinstance(value, Mapping):
                part |= {key: _part_value(key, self._checked(key, chosen)) for key, chosen in value.items()}
            elif name in known:
                changes[name] = self._checked(name, value)
            else:
                raise UnknownNameError("key of a suite", name, (*known, *PARTS))
        if any(self.part.get(key, part.get(key)) != part.get(key) for key in ("stage", "generation")):
            changes = {"learning_rate": None, "tokens_per_step": None} | changes
        return replace(self, part=part, **changes)

    @staticmethod
    def _checked(name: Any, value: Any) -> Any:
        """A value of the type that its field has."""
        if name in ("references", "pattern", "unembedding", "embedding", "documented"):
            listed = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else (None,)
            if all(isinstance(each, str) for each in listed):
                return listed
        elif name == "learning_rate":
            if isinstance(value, Mapping):
                return schedule_from_values(value)
            if value is None or isinstance(value, (LearningRate, LoggedLearningRate)):
                return value
        elif name == "tokens_per_step":
            if value is None or (type(value) is int and value > 0):
                return value
        elif name in ("name", "branch", "config", "tokenizer"):
            if isinstance(value, str) or (value is None and name in ("config", "tokenizer")):
                return value
        elif name != "part" and type(value) in (int, str):
            return str(value)
        raise PythiaDynError(f"the suite's {name} cannot be {value!r}")

    @property
    def as_json(self) -> dict[str, Any]:
        """The values that differ from those of `GENERIC`, for a store or a file: ``GENERIC.changed(suite.as_json)``."""
        plain = asdict(GENERIC)
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    def options(self, known: Suite) -> dict[str, str]:
        """What was given of it as options: pattern, generation, stage, seed, config and tokenizer that `known` has not.

        Parameters
        ----------
        known
            The suite without options.
        """
        values = {"pattern": self.pattern[0]} if self.pattern != known.pattern and len(self.pattern) == 1 else {}
        values |= {part: value for part, value in self.part.items() if known.part.get(part) != value}
        places = {"config": (self.config, known.config), "tokenizer": (self.tokenizer, known.tokenizer)}
        return values | {name: own for name, (own, other) in places.items() if own not in (None, other)}

    # -- names ------------------------------------------------------------------------------------------------

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        compiled = []
        for pattern in self.pattern:
            try:
                found = re.compile(pattern)
            except re.error as error:
                raise PythiaDynError(f"the pattern {pattern!r} is not a regular expression: {error}") from None
            if unknown := [name for name in found.groupindex if name not in _GROUPS]:
                raise UnknownNameError("named group", unknown[0], _GROUPS, where=f"the pattern {pattern!r}")
            if not found.groups or (found.groupindex and "step" not in found.groupindex):
                raise PythiaDynError(f"the pattern {pattern!r} has no group for the step; write (?P<step>\\d+)")
            compiled.append(found)
        return tuple(compiled)

    @property
    def is_generic(self) -> bool:
        """Whether the names of its checkpoints are not known, so that each usual one is tried."""
        return self.pattern == GENERIC.pattern

    def step_name(self, name: str, kind: Reference | None = None) -> StepName | None:
        """What the name of a checkpoint says; None where it is not one.

        Parameters
        ----------
        name
            The name of a branch, a tag or a repository, the path of a folder or of a file without its extension, or
            the title of a commit.
        kind
            What it is the name of.

        Raises
        ------
        PythiaDynError
            The group for the step is not a number.
        """
        patterns = self._compiled
        if kind == "commit" and self.is_generic:
            patterns = (re.compile(_COMMIT_TITLE),)
        for pattern in patterns:
            match = pattern.search(name)
            if match is None:
                continue
            groups = match.groupdict() if "step" in pattern.groupindex else {"step": match[1]}
            if groups["step"] is None:
                continue
            step, tokens = (_number(groups.get(key)) for key in ("step", "tokens"))
            if step is None or (tokens is None and groups.get("tokens")):
                found = groups["step"] if step is None else groups["tokens"]
                raise PythiaDynError(f"the pattern {pattern.pattern!r} finds {found!r} in {name}, which is no number")
            parts = {part: _part_value(part, value) for part in PARTS if (value := groups.get(part)) is not None}
            return StepName(step, tokens, parts)
        return None

    @property
    def roles(self) -> dict[Role, tuple[str, ...]]:
        """The names of the tensors that have a role, as far as the suite says."""
        return {UNEMBEDDING: self.unembedding, EMBEDDING: self.embedding}

    @property
    def learning_rate_from(self) -> str:
        """Where the learning rate is from, in words; empty without one."""
        rate = self.learning_rate
        return "" if rate is None else rate.origin or (f"suite {self.name}" if self.name else "the suite")

    def tokens_at(self, step: int, named: int | None = None) -> int | None:
        """Tokens seen at a step: from the length of a step, else what the name of the checkpoint says."""
        return step * self.tokens_per_step if self.tokens_per_step else named


GENERIC = Suite()
"""A suite of which nothing is known: the usual names, wherever they are."""


def _number(text: str | None) -> int | None:
    """``20k`` → 20,000; None where it is no whole number below 2^53."""
    match = _NUMBER.fullmatch(text) if text else None
    if match is None or len(match[1].lstrip("0")) > _MAX_DIGITS:
        return None
    value = Fraction(match[1].lstrip("0").rjust(1, "0")) * _UNITS[match[2].lower()]
    return int(value) if value.denominator == 1 and value < MAX_EXACT else None


def _part_value(part: Any, text: str) -> str:
    """A generation, stage or seed without this word: ``stage2`` is stage ``2``."""
    return text.removeprefix(part).lstrip("-") or text


def read_suite(path: Path | str) -> dict[str, Any]:
    """The values of a suite in a TOML file, as `Suite.changed` takes them.

    Parameters
    ----------
    path
        The file. Its ``config`` and ``tokenizer`` are repositories, or directories relative to the file.

    Raises
    ------
    PythiaDynError
        The file cannot be read, or is not TOML.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PythiaDynError(f"cannot read the suite {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PythiaDynError(f"the suite {path} is not TOML: {error}") from None
    for name in ("config", "tokenizer"):
        value = values.get(name)
        if isinstance(value, str) and (path.parent / value).is_dir():
            values[name] = str((path.parent / value).resolve())
    if isinstance(rate := values.get("learning_rate"), dict):
        rate.setdefault("origin", str(path))
    return values


def chosen_steps(
    suite: Suite, refs: Iterable[tuple[str, StepName]], *, where: str, kind: Reference
) -> dict[int, tuple[str, StepName]]:
    """The checkpoints of the chosen generation, stage and seed by step, in increasing order.

    Parameters
    ----------
    suite
        The suite.
    refs
        The name of each checkpoint and what it says.
    where
        The source, for messages.
    kind
        What the checkpoints are, for messages.

    Raises
    ------
    UnknownNameError
        No checkpoint has the chosen part.
    CheckpointError
        There are several generations, stages or seeds and none is chosen; or two checkpoints are the same step.
    """
    left = list(refs)
    for part in PARTS:
        values = {named.parts.get(part, _NONE): ref for ref, named in reversed(left)}
        wanted = suite.part.get(part)
        if wanted is not None and left and not (wanted == _NONE and values.keys() == {_NONE}):
            same = {value for value in values if _part_value(part, value) == _part_value(part, wanted)}
            if not same:
                raise UnknownNameError(part, wanted, sorted(values), where=where)
            left = [ref for ref in left if ref[1].parts.get(part, _NONE) in same]
        elif len(values) > 1:
            shown = ", ".join(value if value != _NONE else f"none, as {values[value]}" for value in sorted(values))
            raise CheckpointError(f"{where} has several {part}s ({shown}); choose one with --{part}")
    found: dict[int, tuple[str, StepName]] = {}
    for ref, named in left:
        if named.step in found:
            both = f"{where}: the {_PLURAL[kind]} {found[named.step][0]} and {ref} are both step {named.step}"
            raise CheckpointError(f"{both}; choose with --revision-pattern, which matches only one of them")
        found[named.step] = (ref, named)
    return dict(sorted(found.items()))
