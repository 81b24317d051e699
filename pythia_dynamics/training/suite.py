"""A suite on disk: a folder per step in the layout the Hub has, the losses, the held-out passages, how it was made."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.registry import step_of
from pythia_dynamics.errors import CorpusError, PythiaDynError
from pythia_dynamics.files import atomic_file
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.text import Text
from pythia_dynamics.training.vocabulary import byte_pairs, character_ids, characters

__all__ = [
    "Loss",
    "Material",
    "Suite",
    "describe",
    "is_finished",
    "prepare",
    "read_losses",
    "replace_suite",
    "write_losses",
    "write_suite",
]

SUITE, LOSSES, HELD_OUT = "suite.json", "losses.csv", "heldout.jsonl"
_FORMAT = "pythia-dyn suite 1"
_SHORTEST, _ENOUGH = 12, 12  # words of an evaluated passage; passages that make prose worth singling out
_COLUMNS = ("step", "train_loss", "validation_loss")


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean losses at a step, in nats per token."""

    step: int
    train: float
    validation: float


@dataclass(frozen=True, slots=True)
class Suite:
    """A finished suite on disk; `fresh` when this call trained it."""

    path: Path
    fresh: bool

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses at every saved step, as in ``losses.csv``."""
        return read_losses(self.path)

    @property
    def about(self) -> dict[str, Any]:
        """What ``suite.json`` says: the plan, the text, the version that trained it."""
        content: dict[str, Any] = json.loads((self.path / SUITE).read_text())
        return content


@dataclass(frozen=True, slots=True)
class Material:
    """A text made ready: its tokenizer, the tokens of both parts (int64), the passages to evaluate."""

    tokenizer: PreTrainedTokenizerFast
    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    passages: tuple[str, ...]


def prepare(text: Text, plan: TrainingPlan) -> Material:
    """Split a text, make its tokenizer and encode it. Raises `CorpusError` where it is too short for the plan.

    With the character tokenizer the text is cut at a character and kept as it is; with the other one it is cut
    between passages, each counted once.
    """
    longest = 3 * plan.context // 4
    if plan.tokenizer == "characters":
        if not text.content:
            raise CorpusError(f"{text.name} is empty; give a text of at least {20 * plan.context} characters")
        tokenizer = characters(text.content)
        training, validation = (character_ids(part, text.content) for part in text.cut(plan.held_out))
        blocks = _blocks(text.cut(plan.held_out)[1])
    else:
        parts = text.split(plan.held_out)
        tokenizer = byte_pairs(parts[0], plan.vocab)
        training, validation = (np.array(tokenizer("\n\n".join(part))["input_ids"], dtype=np.int64) for part in parts)
        blocks = parts[1]
    if len(training) < 20 * plan.context:
        raise CorpusError(f"{text.name} has {len(training)} tokens; training needs at least {20 * plan.context}")
    passages = tuple(_pieces(blocks, tokenizer, longest))
    if not passages or len(validation) <= plan.context:
        raise CorpusError(f"{text.name} is too short to hold a part of it out; give a longer text")
    return Material(tokenizer, training, validation, passages)


def _blocks(content: str) -> tuple[str, ...]:
    """The paragraphs as they are (the lines, where there is only one), without the first one, which was cut through."""
    for end in ("\n\n", "\n"):
        blocks = tuple(block.strip("\n") for block in content.split(end))
        if len(blocks) > 1:
            return blocks[1:]
    return (content,)


def _pieces(blocks: Sequence[str], tokenizer: PreTrainedTokenizerFast, longest: int) -> Iterator[str]:
    """The passages of some length, each cut at a word to at most `longest` tokens; only the prose, if there is some."""
    passages = [passage for passage in blocks if len(passage.split()) >= _SHORTEST]
    prose = [passage for passage in passages if _is_prose(passage)]
    if len(prose) < _ENOUGH:  # verse, code, logs: their lines together
        words = " ".join(blocks).split(" ")
        prose = passages or [" ".join(words[i : i + longest]) for i in range(0, len(words) - 1, longest)]
    for passage in prose:
        spans = tokenizer(passage, return_offsets_mapping=True)["offset_mapping"]
        piece = passage if len(spans) <= longest else passage[: spans[longest][0]].rpartition(" ")[0]
        if " " in piece:
            yield piece


def _is_prose(passage: str) -> bool:
    words = passage.split()
    return sum(word.isalpha() or word[:-1].isalpha() for word in words) >= 0.7 * len(words)


def read_losses(directory: Path) -> tuple[Loss, ...]:
    """The rows of ``losses.csv``, none where there is no such file. Raises `PythiaDynError` for one that is damaged."""
    path = directory / LOSSES
    try:
        with path.open(newline="") as file:
            return tuple(
                Loss(int(row["step"]), float(row["train_loss"]), float(row["validation_loss"]))
                for row in csv.DictReader(file)
            )
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, ValueError):
        raise PythiaDynError(f"{path} is not a table of {', '.join(_COLUMNS)}") from None


def write_losses(directory: Path, losses: Sequence[Loss]) -> None:
    """Write ``losses.csv``."""
    with atomic_file(directory / LOSSES) as file:
        file.write(",".join(_COLUMNS).encode() + b"\n")
        file.writelines(f"{row.step},{row.train:.9g},{row.validation:.9g}\n".encode() for row in losses)


def write_suite(directory: Path, material: Material, about: Mapping[str, Any]) -> None:
    """Write what does not change with the step: the passages held out, and ``suite.json``."""
    with atomic_file(directory / HELD_OUT) as file:
        file.writelines(json.dumps({"text": passage}).encode() + b"\n" for passage in material.passages)
    with atomic_file(directory / SUITE) as file:
        file.write(json.dumps({**about, "version": __version__}, indent=1).encode() + b"\n")


def describe(text: Text, plan: TrainingPlan) -> dict[str, Any]:
    """What makes a suite this one and no other."""
    about = {"name": text.name, "characters": text.characters, "sha256": text.sha256}
    return {"format": _FORMAT, "plan": asdict(plan), "text": about}


def is_finished(out: Path, about: Mapping[str, Any]) -> bool:
    """Whether `out` holds this very suite. Raises `PythiaDynError` when it holds something that is not a suite."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / SUITE).read_text())
        ours = found["format"] == _FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise PythiaDynError(f"{out} exists and is not a suite made by pythia-dyn; name another directory")
    return {key: found.get(key) for key in about} == about


def replace_suite(out: Path, partial: Path, steps: Collection[int]) -> None:
    """Put a finished suite of these steps in its place, which an older one may hold; files that are no suite's stay.

    Interrupted, it can be called again: ``suite.json``, which tells a finished suite, is moved last.
    """
    if not out.exists() or not any(out.iterdir()):
        partial.replace(out)
        return
    (out / SUITE).unlink(missing_ok=True)  # first, so that a mixture is never taken for a suite
    for entry in out.iterdir():
        step = step_of(entry.name)
        if entry.is_dir() and step is not None and step not in steps:
            shutil.rmtree(entry)
    for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == SUITE):
        if (out / entry.name).is_dir():
            shutil.rmtree(out / entry.name)
        entry.replace(out / entry.name)
    partial.rmdir()
