"""A suite on disk: a folder per step in the Hub's layout, the losses, the held-out passages, and how it was made."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.learning_rate import LearningRate
from pythia_dynamics.checkpoints.local import SUITE_FILE
from pythia_dynamics.errors import CorpusError, PythiaDynError
from pythia_dynamics.files import atomic_file
from pythia_dynamics.tables import plain, read_csv, read_json, write_csv, write_json
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.text import Text
from pythia_dynamics.training.tokenizer import bpe_tokenizer, character_ids, character_tokenizer

__all__ = [
    "HELD_OUT",
    "LOSSES",
    "SUITE",
    "Loss",
    "PreparedText",
    "Suite",
    "describe_suite",
    "describes",
    "is_finished",
    "prepare_text",
    "read_suite_losses",
    "replace_suite",
    "write_suite",
    "write_suite_losses",
]

SUITE = SUITE_FILE
"""The plan, the text and the version that made the suite. A directory with this file is a finished suite."""

LOSSES = "losses.csv"
"""Training and validation loss at every saved step."""

HELD_OUT = "heldout.jsonl"
"""The passages that were not trained on, one JSON object with the key `text` a line."""

_FORMAT = "pythia-dyn suite 1"
_COLUMNS = ("step", "train_loss", "validation_loss")

_MIN_WORDS = 12
"""Fewest words of an evaluated passage: shorter ones are headings, names of speakers or list items."""

_MIN_PROSE = 12
"""Fewest passages of prose for which the rest of the held-out text is left out."""

_PROSE_SHARE = 0.7
"""Least share of words made of letters alone (a punctuation mark may follow) in a passage of prose."""

_MIN_WINDOWS = 20
"""Fewest windows' worth of tokens to train on. The random windows of a shorter text nearly all overlap."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean losses at a step, in nats per token.

    Parameters
    ----------
    step
        The training step.
    train, validation
        The loss on the trained and on the held-out part of the text.
    """

    step: int
    train: float
    validation: float


@dataclass(frozen=True, slots=True)
class Suite:
    """A finished suite on disk.

    Parameters
    ----------
    path
        Its directory.
    fresh
        Whether this call trained it; False where it was there already.
    """

    path: Path
    fresh: bool

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses at every saved step, from ``losses.csv``."""
        return read_suite_losses(self.path)

    @property
    def about(self) -> dict[str, Any]:
        """The content of ``suite.json``: the plan, the text, the version that trained it."""
        content: dict[str, Any] = read_json(self.path / SUITE)
        return content


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text that is ready for training.

    Parameters
    ----------
    tokenizer
        The tokenizer made for it.
    training, validation
        The tokens of both parts, int64, one dimension.
    passages
        The held-out passages to evaluate.
    """

    tokenizer: PreTrainedTokenizerFast
    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    passages: tuple[str, ...]


def prepare_text(text: Text, plan: TrainingPlan) -> PreparedText:
    """Split a text, make its tokenizer and encode it.

    The character tokenizer keeps the text as it is, so the text is split at a character. With the BPE tokenizer it is
    split between passages, and a repeated passage counts once.

    Parameters
    ----------
    text
        The text.
    plan
        The plan; its `tokenizer`, `vocab`, `context` and `held_out` are used.

    Raises
    ------
    CorpusError
        Where the text is too short for the plan.
    """
    # A passage must still fit into the context after it is cut and encoded again, with a prefix token.
    longest = 3 * plan.context // 4
    if plan.tokenizer == "characters":
        if not text.content:
            raise CorpusError(f"{text.name} is empty; give a text of at least {_MIN_WINDOWS * plan.context} characters")
        tokenizer = character_tokenizer(text.content)
        contents = text.split_content(plan.held_out)
        training, validation = (character_ids(part, text.content) for part in contents)
        blocks = _blocks(contents[1])
    else:
        parts = text.split_passages(plan.held_out)
        tokenizer = bpe_tokenizer(parts[0], plan.vocab)
        training, validation = (np.array(tokenizer("\n\n".join(part))["input_ids"], dtype=np.int64) for part in parts)
        blocks = parts[1]
    needed = _MIN_WINDOWS * plan.context
    if len(training) < needed:
        raise CorpusError(f"{text.name} has {len(training)} tokens; training needs at least {needed}")
    passages = tuple(_pieces(blocks, tokenizer, longest))
    if not passages or len(validation) <= plan.context:
        raise CorpusError(f"{text.name} is too short to hold a part of it out; give a longer text")
    return PreparedText(tokenizer, training, validation, passages)


def _blocks(content: str) -> tuple[str, ...]:
    """The paragraphs of the held-out part, else its lines, without the first one, which the split went through."""
    for end in ("\n\n", "\n"):
        blocks = tuple(block.strip("\n") for block in content.split(end))
        if len(blocks) > 1:
            return blocks[1:]
    return (content,)


def _pieces(blocks: Sequence[str], tokenizer: PreTrainedTokenizerFast, longest: int) -> Iterator[str]:
    """The passages of enough words, each cut between words to at most `longest` tokens; only prose where there is some.

    A text without prose (verse, code, logs) gives its passages, or pieces of its joined lines.
    """
    passages = [passage for passage in blocks if len(passage.split()) >= _MIN_WORDS]
    prose = [passage for passage in passages if _is_prose(passage)]
    if len(prose) < _MIN_PROSE:
        words = " ".join(blocks).split(" ")
        prose = passages or [" ".join(words[i : i + longest]) for i in range(0, len(words) - 1, longest)]
    for passage in prose:
        spans = tokenizer(passage, return_offsets_mapping=True)["offset_mapping"]
        piece = passage if len(spans) <= longest else passage[: spans[longest][0]].rpartition(" ")[0]
        if " " in piece:
            yield piece


def _is_prose(passage: str) -> bool:
    """Whether most words of a passage are made of letters."""
    words = passage.split()
    return sum(word.isalpha() or word[:-1].isalpha() for word in words) >= _PROSE_SHARE * len(words)


def read_suite_losses(directory: Path) -> tuple[Loss, ...]:
    """The rows of ``losses.csv`` in the suite at `directory`, in its order.

    Returns no rows where there is no such file. Raises `PythiaDynError` for a damaged file.
    """
    path = directory / LOSSES
    try:
        rows = [[row[column] for column in _COLUMNS] for row in read_csv(path)]
        return tuple(Loss(int(step), float(train), float(validation)) for step, train, validation in rows)
    except FileNotFoundError:
        return ()
    except (KeyError, TypeError, ValueError):
        raise PythiaDynError(f"{path} is not a table of {', '.join(_COLUMNS)}") from None


def write_suite_losses(directory: Path, losses: Sequence[Loss]) -> None:
    """Write `losses` to ``losses.csv`` in the suite at `directory`, with nine digits, which float32 needs."""
    write_csv(directory / LOSSES, _COLUMNS, map(astuple, losses), digits=9)


def write_suite(
    directory: Path, passages: Sequence[str], about: Mapping[str, Any], learning_rate: LearningRate
) -> None:
    """Write the files that do not belong to a step: ``heldout.jsonl`` and, last, ``suite.json``.

    Parameters
    ----------
    directory
        The directory of the suite.
    passages
        The held-out passages.
    about
        The description that `describe_suite` gives.
    learning_rate
        The schedule of the training. A fetch takes it into the store.
    """
    with atomic_file(directory / HELD_OUT) as file:
        file.writelines(json.dumps({"text": passage}).encode() + b"\n" for passage in passages)
    schedule = {name: value for name, value in asdict(learning_rate).items() if name != "origin"}
    write_json(directory / SUITE, {**about, "learning_rate": schedule, "version": __version__})


def describe_suite(text: Text, plan: TrainingPlan) -> dict[str, Any]:
    """The description that identifies a suite, as it is read back from a JSON file.

    Parameters
    ----------
    text
        The text; its name, length and digest are part of the description.
    plan
        The plan; all its fields are.
    """
    name = text.name.encode(errors="backslashreplace").decode()  # a file's name may hold bytes that are not UTF-8
    about = {"name": name, "characters": text.characters, "sha256": text.sha256}
    description: dict[str, Any] = plain({"format": _FORMAT, "plan": asdict(plan), "text": about})
    return description


def is_finished(out: Path, about: Mapping[str, Any]) -> bool:
    """Whether `out` holds the finished suite with the description `about`.

    Raises `PythiaDynError` where `out` holds something that is not a suite.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not describes(out / SUITE, {"format": _FORMAT}):
        raise PythiaDynError(f"{out} exists and is not a suite made by pythia-dyn; name another directory")
    return describes(out / SUITE, about)


def describes(file: Path, about: Mapping[str, Any]) -> bool:
    """Whether a JSON file can be read and holds at least the entries of `about`."""
    try:
        found = read_json(file)
        return {key: found.get(key) for key in about} == about
    except (OSError, ValueError, AttributeError):
        return False


def replace_suite(out: Path, partial: Path, steps: Collection[int]) -> None:
    """Move a finished suite to its place and remove the checkpoints of an older suite there. Other files stay.

    After an interruption it can be called again: ``suite.json``, which marks a finished suite, is moved last.

    Parameters
    ----------
    out
        The place of the suite.
    partial
        The directory that holds the new suite.
    steps
        The steps of the new suite.
    """
    if not out.exists() or not any(out.iterdir()):
        partial.replace(out)
        return
    (out / SUITE).unlink(missing_ok=True)  # first, so that a mixture of two suites does not count as finished
    for entry in out.iterdir():
        step = re.fullmatch(r"step(\d+)", entry.name)
        if entry.is_dir() and step and int(step[1]) not in steps:
            shutil.rmtree(entry)
    for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == SUITE):
        if (out / entry.name).is_dir():
            shutil.rmtree(out / entry.name)
        entry.replace(out / entry.name)
    partial.rmdir()
