"""The registry of models: Pythia's sizes and repositories, the steps they publish, and what a user may call them.

Pure values, no network. Shapes are those of the published ``config.json`` files (Table 1 of "The Garden of
Forking Paths" lists the first six; it gives 14M eight heads where the published model has four).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError

__all__ = [
    "ALL_STEPS",
    "FILE_NAMES",
    "PAPER_STEPS",
    "SIZES",
    "TOKENIZER_ENTRIES",
    "UNEMBEDDING",
    "V0_DOUBLE_BATCH",
    "Architecture",
    "Model",
    "aliases",
    "branch",
    "is_pythia",
    "parse_steps",
    "resolve",
    "step_of",
]

UNEMBEDDING = "embed_out.weight"
"""Name of W_U in the checkpoint files of GPT-NeoX models; shape (vocab, d_model)."""

FILE_NAMES = {"gpt_neox": {"lm_head.weight": UNEMBEDDING}}
"""Tensors that have another name in the files than in the model of transformers 5: file names by the model's, for each
`model_type`."""

TOKENIZER_ENTRIES = 50277
"""Entries of Pythia's tokenizer; the rows of W_U from here on are padding."""

PAPER_STEPS = tuple(range(1000, 143_001, 1000))
"""The 143 steps both papers use."""

ALL_STEPS = (0, *(2**k for k in range(10)), *PAPER_STEPS)
"""The 154 steps that are published."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of a GPT-NeoX model."""

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
        """Number of all weights: two embeddings, `layers` blocks with biases, the final layer norm."""
        block = 12 * self.d_model**2 + 13 * self.d_model
        return 2 * self.unembedding_parameters + self.layers * block + 2 * self.d_model

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a published checkpoint: float16 weights, and a byte for each entry of every layer's causal mask."""
        return 2 * self.parameters + self.layers * _CONTEXT**2


SIZES: dict[str, Architecture] = {
    "14m": Architecture(layers=6, d_model=128, heads=4),
    "31m": Architecture(layers=6, d_model=256, heads=8),
    "70m": Architecture(layers=6, d_model=512, heads=8),
    "160m": Architecture(layers=12, d_model=768, heads=12),
    "410m": Architecture(layers=24, d_model=1024, heads=16),
    "1b": Architecture(layers=16, d_model=2048, heads=8),
    "1.4b": Architecture(layers=24, d_model=2048, heads=16),
    "2.8b": Architecture(layers=32, d_model=2560, heads=32),
    "6.9b": Architecture(layers=32, d_model=4096, heads=32, vocab=50432),
    "12b": Architecture(layers=36, d_model=5120, heads=40, vocab=50688),
}
V0_DOUBLE_BATCH = ("160m", "410m", "1.4b")
"""Sizes whose v0 models took 71,500 steps of 4M tokens: their branch ``step2000`` is what was step 1000 in training."""

_CONTEXT = 2048
_NEVER_DEDUPED_BY_DEFAULT = ("14m", "31m")
_SEEDED = ("14m", "31m", "70m", "160m", "410m")
_ALIAS = re.compile(
    r"(?:EleutherAI/)?(?:pythia-)?(?P<size>\d+(?:\.\d+)?[mb])"
    r"(?:-(?P<data>standard|deduped))?(?:-seed(?P<seed>[1-9]))?(?P<v0>-v0)?",
    re.IGNORECASE,
)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_STEP = re.compile(r"(?:global_)?(?:step|checkpoint|ckpt)[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Model:
    """What a user's name for a model stands for.

    `location` is a repository id of the Hub or the absolute path of a directory of checkpoints; `name` names the
    store ``cache/<name>.zarr`` and the folder ``results/<name>/``; `architecture` is known for Pythia only.
    """

    location: str
    name: str
    is_local: bool = False
    architecture: Architecture | None = None

    @property
    def is_pythia(self) -> bool:
        """Whether the published step grid applies."""
        return self.architecture is not None

    @property
    def published_steps(self) -> tuple[int, ...]:
        """The steps that were published of a Pythia model; of others nothing is known."""
        if not self.is_pythia:
            return ()
        return PAPER_STEPS if self.name.endswith("-v0") else ALL_STEPS


def aliases() -> tuple[str, ...]:
    """Every short name there is: sizes, ``-standard``, ``-seedN``, ``-v0`` and ``-deduped-v0``."""
    names: list[str] = []
    for size in SIZES:
        names.append(size)
        if size not in _NEVER_DEDUPED_BY_DEFAULT:
            names.append(f"{size}-standard")
        if size in _SEEDED:
            names += [f"{size}-seed{k}" for k in range(1, 10)]
        if size not in _NEVER_DEDUPED_BY_DEFAULT:
            names += [f"{size}-v0", f"{size}-deduped-v0"]
    return tuple(names)


def resolve(name: str | Path, *, known: Iterable[str] = ()) -> Model:
    """The model a user means by an alias, a repository id or a directory of checkpoints.

    `known` adds names (of stores in the cache, say) to the suggestions.

    Raises `UnknownNameError` naming the nearest aliases, `CheckpointError` for a directory that is not there.
    """
    text = str(name)
    if match := _ALIAS.fullmatch(text):
        return _pythia(match, text, known)
    path = Path(text).expanduser()
    if text and path.is_dir():
        directory = path.resolve()
        return Model(str(directory), directory.name or "root", is_local=True)
    if isinstance(name, Path) or text.startswith((".", "/", "~")):
        raise CheckpointError(f"no directory {text}; give a directory that holds step1000/, step2000/ …")
    if _REPO_ID.fullmatch(text) and ".." not in text:
        return Model(text, text.partition("/")[2])
    raise UnknownNameError("model", text, (*known, *aliases()))


def _pythia(match: re.Match[str], text: str, known: Iterable[str]) -> Model:
    size, data, seed, v0 = match["size"].lower(), match["data"], match["seed"], match["v0"]
    if size not in SIZES or (seed and (size not in _SEEDED or data or v0)):
        raise UnknownNameError("model", text, (*known, *aliases()))
    # A size alone means what the paper's Table 1 means by it; everything else is taken at its word.
    by_size = not (seed or v0 or "pythia-" in text.lower() or size in _NEVER_DEDUPED_BY_DEFAULT)
    deduped = data.lower() == "deduped" if data else by_size
    parts = [
        f"pythia-{size}",
        "deduped" if deduped else "",
        f"seed{seed}" if seed else "",
        "v0" if v0 else "",
    ]
    name = "-".join(part for part in parts if part)
    return Model(f"EleutherAI/{name}", name, architecture=SIZES[size])


def is_pythia(location: str) -> bool:
    """Whether a repository id, or what a store names as its source, is one of the published Pythia models."""
    try:
        return resolve(location).is_pythia
    except PythiaDynError:  # an array, or a directory that is no longer there
        return False


def branch(step: int) -> str:
    """Name of the branch, or folder, that holds a step: ``step1000``."""
    return f"step{step}"


def step_of(name: str, pattern: str | None = None) -> int | None:
    """The step a branch or folder name stands for, or None.

    Knows ``step1000``, ``checkpoint-1000``, ``global_step1000`` and ``ckpt_100``; `pattern` is a regular
    expression with one group for the number, matched against the whole name.
    """
    try:
        match = re.compile(pattern).fullmatch(name) if pattern else _STEP.fullmatch(name)
        return int(match[1]) if match else None
    except (re.error, IndexError, ValueError) as error:
        raise PythiaDynError(
            f"revision pattern {pattern!r} must be a regular expression with one group for the step: {error}"
        ) from None


def parse_steps(spec: str) -> tuple[int, ...] | None:
    """Steps from ``paper``, ``all``, ``1000,2000`` or ``first:last:stride`` (last included).

    None means all that the source has. Raises `PythiaDynError` for anything else.
    """
    text = spec.strip().lower()
    if text == "all":
        return None
    if text == "paper":
        return PAPER_STEPS
    steps: set[int] = set()
    for part in text.split(","):
        bounds = part.strip().split(":")
        if not 1 <= len(bounds) <= 3 or not all(b.strip().isdigit() for b in bounds):
            raise PythiaDynError(f"cannot read steps {spec!r}; give paper, all, 1000:143000:1000 or 1000,2000")
        numbers = [int(b) for b in bounds]
        if len(numbers) == 1:
            steps.add(numbers[0])
            continue
        first, last, stride = numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1
        if stride < 1 or last < first or (last - first) // stride > 1_000_000:
            raise PythiaDynError(f"steps {part!r} name nothing; write first:last:stride with first ≤ last")
        steps.update(range(first, last + 1, stride))
    return tuple(sorted(steps))
