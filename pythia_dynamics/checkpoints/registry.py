"""The registry of suites and models: the names a user may give, and what they stand for. No network.

The suites are in ``registry.toml``, with the pages of their publishers. Shapes of Pythia are those of the published
``config.json`` files. (Table 1 of "The Garden of Forking Paths" lists the first six; it gives 14M eight heads, the
published model has four.)
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.suite import GENERIC, PARTS, Suite, read_suite
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError

__all__ = [
    "ALL_STEPS",
    "EMBED_OUT",
    "FILE_NAMES",
    "PAPER_STEPS",
    "SIZES",
    "TOKENIZER_ENTRIES",
    "V0_DOUBLE_BATCH",
    "Architecture",
    "Entry",
    "Model",
    "aliases",
    "branch",
    "is_pythia",
    "names_of_aliases",
    "other_suites",
    "parse_steps",
    "registered_suite",
    "resolve",
]

EMBED_OUT = "embed_out.weight"
"""Name of W_U in the checkpoint files of GPT-NeoX models; shape (vocab, d_model)."""

FILE_NAMES = {"gpt_neox": {"lm_head.weight": EMBED_OUT}}
"""Tensors that have another name in the files than in the model of transformers 5: file names by the model's, for each
`model_type`."""

TOKENIZER_ENTRIES = 50277
"""Entries of Pythia's tokenizer; the rows of W_U from here on are padding."""

PAPER_STEPS = tuple(range(1000, 143_001, 1000))
"""The 143 steps that both papers use."""

ALL_STEPS = (0, *(2**k for k in range(10)), *PAPER_STEPS)
"""The 154 published steps: 0, the powers of two up to 512, and every 1000 up to 143,000."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of a GPT-NeoX model.

    Parameters
    ----------
    layers
        Number of transformer blocks.
    d_model
        Width of the residual stream.
    heads
        Attention heads of a block.
    vocab
        Rows of each embedding, padding included.
    """

    layers: int
    d_model: int
    heads: int
    vocab: int = 50304

    @property
    def unembedding_parameters(self) -> int:
        """Number of weights in W_U, N = v·d."""
        return self.vocab * self.d_model

    @property
    def parameters(self) -> int:
        """Number of all weights: two embeddings, the blocks with their biases, and the final layer norm."""
        block = 12 * self.d_model**2 + 13 * self.d_model
        return 2 * self.unembedding_parameters + self.layers * block + 2 * self.d_model

    @property
    def non_embedding_parameters(self) -> int:
        """Number of all weights but those of the two embeddings, as in Table 1 of the first paper."""
        return self.parameters - 2 * self.unembedding_parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a published checkpoint: float16 weights, and a byte for each entry of every layer's causal mask."""
        return 2 * self.parameters + self.layers * _CONTEXT**2


@dataclass(frozen=True)
class Entry:
    """A suite of the registry.

    Parameters
    ----------
    title
        Its name in words.
    example
        The name of one of its checkpoints.
    suite
        What holds for all of its models.
    repositories
        Globs of the ids of its repositories.
    models
        By alias: the repository, or the common beginning of the repositories of its steps, and the values of the suite
        that hold for this model only.
    """

    title: str
    example: str
    suite: Suite
    repositories: tuple[str, ...]
    models: Mapping[str, tuple[str, Mapping[str, Any]]]


_PUBLISHED = "suite {}: published configuration"
"""The origin of a learning rate of the registry."""


@cache
def _registry() -> Mapping[str, Any]:
    """The content of ``registry.toml``."""
    return tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))


@cache
def _entries() -> Mapping[str, Entry]:
    """The suites of the registry by name."""
    entries = {}
    for name, values in _registry()["suites"].items():
        values = dict(values)
        title, example, repositories = (values.pop(key) for key in ("title", "example", "repositories"))
        models = {alias: dict(model) for alias, model in values.pop("models", {}).items()}
        for rate in (each["learning_rate"] for each in (values, *models.values()) if "learning_rate" in each):
            rate["origin"] = _PUBLISHED.format(name)
        suite = GENERIC.changed({"name": name, **values})
        by_alias = {alias: (model.pop("repository"), model) for alias, model in models.items()}
        entries[name] = Entry(title, example, suite, tuple(repositories), by_alias)
    return entries


def other_suites() -> tuple[Entry, ...]:
    """The suites of the registry without Pythia."""
    return tuple(entry for name, entry in _entries().items() if name != _PYTHIA)


_PYTHIA = "pythia"

SIZES: dict[str, Architecture] = {size: Architecture(**shape) for size, shape in _registry()["pythia_sizes"].items()}
"""The shapes of Pythia by size."""

V0_DOUBLE_BATCH = ("160m", "410m", "1.4b")
"""Sizes whose v0 models took 71,500 steps of 4M tokens: their branch ``step2000`` is step 1000 in training."""

_CONTEXT = 2048
"""Tokens of a training sequence; the causal mask in the files has this many rows and columns."""

_NEVER_DEDUPED_BY_DEFAULT = ("14m", "31m")
_SEEDED = ("14m", "31m", "70m", "160m", "410m")
_DECOUPLED = {"160m": tuple(f"{part}-seed{k}" for part in ("data", "weight") for k in (1, 2, 3))}
"""Runs in which only the order of the data, or only the initial weights differ (PolyPythias, arXiv 2503.09543)."""

_ALIAS = re.compile(
    r"(?:EleutherAI/)?(?:pythia-)?(?P<size>\d+(?:\.\d+)?[mb])"
    r"(?:-(?P<data>standard|deduped))?(?:-(?P<seed>(?:(?:data|weight)-)?seed[1-9]))?(?P<v0>-v0)?",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\s*(\d+)\s*(?::\s*(\d+)\s*)?(?::\s*(\d+)\s*)?")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_STEPS = 1_000_000
"""Most steps of one range: no training run saves that many, and a mistyped range must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model: what a name that a user gave was resolved to.

    Parameters
    ----------
    location
        A repository id of the Hub, or the absolute path of a directory of checkpoints.
    name
        Names the store ``cache/<name>.zarr`` and the folder ``results/<name>/``.
    is_local
        Whether `location` is a directory.
    architecture
        The shape of the model, known for Pythia only.
    suite
        How its checkpoints are named and found.
    """

    location: str
    name: str
    is_local: bool = False
    architecture: Architecture | None = None
    suite: Suite = GENERIC

    @property
    def is_pythia(self) -> bool:
        """Whether it is a published Pythia model, with their steps and tensor names."""
        return self.architecture is not None

    @property
    def published_steps(self) -> tuple[int, ...]:
        """The published steps of a Pythia model; empty for any other model, since they are not known."""
        if not self.is_pythia:
            return ()
        return PAPER_STEPS if self.location.endswith("-v0") else ALL_STEPS

    def changed(self, values: Mapping[str, Any] | Path | str | None) -> Model:
        """The model with other values of its suite. A chosen generation, stage or seed becomes part of the name.

        Parameters
        ----------
        values
            As for `Suite.changed`, or a TOML file with them; None or an empty mapping changes nothing. ``config`` and
            ``tokenizer`` may be directories relative to the current one.

        Raises
        ------
        PythiaDynError
            As `Suite.changed` and `read_suite`.
        """
        if not values:
            return self
        values = dict(values) if isinstance(values, Mapping) else read_suite(values)
        for key in ("config", "tokenizer"):
            if isinstance(values.get(key), (str, Path)) and Path(values[key]).is_dir():
                values[key] = str(Path(values[key]).resolve())
        suite = self.suite.changed(values)
        chosen = [part for part in PARTS if suite.part.get(part) != self.suite.part.get(part)]
        name = self.name
        for part in chosen:  # in place of that of a store which has another one
            name = name.removesuffix(f"-{part}{self.suite.part.get(part)}") + f"-{part}{suite.part[part]}"
        return replace(self, suite=suite, name=name)


def aliases() -> tuple[str, ...]:
    """All short names: sizes of Pythia, alone and with ``-standard``, ``-seed1`` …, ``-data-seed1`` …, ``-v0``, …, and
    those of the other suites."""
    names: list[str] = []
    for size in SIZES:
        deduped = size not in _NEVER_DEDUPED_BY_DEFAULT
        names += [size, f"{size}-standard"] if deduped else [size]
        names += [f"{size}-{seed}" for seed in _seeds(size)]
        names += [f"{size}-v0", f"{size}-deduped-v0"] if deduped else []
    return (*names, *(alias for entry in other_suites() for alias in entry.models))


def names_of_aliases(pattern: str) -> dict[str, str]:
    """The models whose aliases a glob matches: the alias by `Model.name`.

    Parameters
    ----------
    pattern
        A glob of aliases: ``160m-seed*`` means ``pythia-160m-seed1`` to ``pythia-160m-seed9``.
    """
    return {resolve(alias).name: alias for alias in fnmatch.filter(aliases(), pattern)}


def _seeds(size: str) -> tuple[str, ...]:
    """The names of the runs of a size with other random seeds."""
    return (*(f"seed{k}" for k in range(1, 10) if size in _SEEDED), *_DECOUPLED.get(size, ()))


def resolve(name: str | Path, *, known: Iterable[str] = ()) -> Model:
    """The model that a name means.

    Parameters
    ----------
    name
        An alias (see `aliases`), a repository id ``owner/name``, or a directory of checkpoints.
    known
        Further names, such as those of stores in the cache, to suggest when `name` is unknown.

    Raises
    ------
    UnknownNameError
        `name` is none of these; the message names the nearest aliases.
    CheckpointError
        `name` is the path of a file, or of a directory that does not exist.
    """
    text = str(name)
    suggestions = dict.fromkeys((*known, *SIZES, *aliases()))
    if match := _ALIAS.fullmatch(text):
        return _pythia(match, text, suggestions)
    for entry in other_suites():
        if text in entry.models:
            repository, changes = entry.models[text]
            return Model(repository, repository.partition("/")[2], suite=entry.suite.changed(changes))
    path = Path(text).expanduser()
    if text and path.is_dir():
        directory = path.resolve()
        return Model(str(directory), directory.name or "root", is_local=True)
    if text and path.is_file():
        raise CheckpointError(f"{text} is a file; give the directory that holds step1000/, ckpt_10.pt …")
    if isinstance(name, Path) or text.startswith((".", "/", "~")):
        raise CheckpointError(f"no directory {text}; give a directory that holds step1000/, step2000/ …")
    if _REPO_ID.fullmatch(text) and ".." not in text:
        return Model(text, text.partition("/")[2], suite=_suite_of(text))
    raise UnknownNameError("model", text, suggestions)


def _pythia(match: re.Match[str], text: str, suggestions: Iterable[str]) -> Model:
    size, data, seed, v0 = match["size"].lower(), match["data"], match["seed"], match["v0"]
    if size not in SIZES or (seed and (seed.lower() not in _seeds(size) or data or v0)):
        raise UnknownNameError("model", text, suggestions)
    # A size alone means the model in Table 1 of the paper, which is deduplicated; any other name is used as it is.
    by_size = not (seed or v0 or "pythia-" in text.lower() or size in _NEVER_DEDUPED_BY_DEFAULT)
    deduped = data.lower() == "deduped" if data else by_size
    parts = [f"pythia-{size}", "deduped" if deduped else "", seed.lower() if seed else "", "v0" if v0 else ""]
    name = "-".join(part for part in parts if part)
    suite, peak = _entries()[_PYTHIA].suite, _registry()["pythia_peaks"][size]
    if not v0:  # the publisher does not say what it was for v0
        rate = {**_registry()["pythia_learning_rate"], "peak": peak, "origin": _PUBLISHED.format(_PYTHIA)}
        suite = suite.changed({"learning_rate": rate})
    return Model(f"EleutherAI/{name}", name, architecture=SIZES[size], suite=suite)


def _suite_of(repository: str) -> Suite:
    """The suite of the registry that a repository belongs to, else one of which nothing is known."""
    for entry in other_suites():
        for location, changes in entry.models.values():
            if location == repository:
                return entry.suite.changed(changes)
    for entry in other_suites():
        if any(fnmatch.fnmatchcase(repository, pattern) for pattern in entry.repositories):
            return entry.suite
    return GENERIC


def registered_suite(source: str) -> Suite:
    """The suite of a model without any options; one of which nothing is known for a directory or an unknown name.

    Parameters
    ----------
    source
        Where its checkpoints are.
    """
    try:
        return resolve(source).suite
    except PythiaDynError:  # a directory that no longer exists
        return GENERIC


def is_pythia(location: str) -> bool:
    """Whether the source of a store is a published Pythia model.

    Parameters
    ----------
    location
        `Model.location`, or `Store.source`.
    """
    try:
        return resolve(location).is_pythia
    except PythiaDynError:  # the name of an array, or a directory that no longer exists
        return False


def branch(step: int) -> str:
    """Name of the branch, or the folder, of a step of Pythia: ``step1000``."""
    return f"step{step}"


def parse_steps(spec: str) -> tuple[int, ...] | None:
    """Steps as the option ``--steps`` gives them.

    Parameters
    ----------
    spec
        ``paper`` (`PAPER_STEPS`), ``all``, numbers and ranges ``first:last:stride`` (`last` included, stride 1 if left
        out), separated by commas.

    Returns
    -------
    tuple of int, or None
        The steps in increasing order, each once; None for ``all``, that is all that the source has.

    Raises
    ------
    PythiaDynError
        `spec` cannot be read, or a range is empty or has more than a million steps.
    """
    text = spec.strip().lower()
    if text == "all":
        return None
    if text == "paper":
        return PAPER_STEPS
    steps: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise PythiaDynError(f"cannot read steps {spec!r}; give paper, all, 1000:143000:1000 or 1000,2000")
        first, last, stride = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if stride < 1 or last < first or (last - first) // stride > _MAX_STEPS:
            raise PythiaDynError(f"steps {part!r} are none, or too many; write first:last:stride with first ≤ last")
        steps.update(range(first, last + 1, stride))
    return tuple(sorted(steps))
