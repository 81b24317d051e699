"""Suites of one's own: a small GPT-NeoX trained on any text, with checkpoints in the layout the Hub has.

A suite is a directory with a folder per step (``step10/`` … with ``config.json``, the tokenizer and
``model.safetensors`` in float16, as Pythia's), ``losses.csv``, the held-out passages ``heldout.jsonl`` and
``suite.json``, which says how it was made. Everything downstream treats it as any other model.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pythia_dynamics import __version__
from pythia_dynamics.errors import CorpusError, PythiaDynError
from pythia_dynamics.files import atomic_file
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.suites import branch, step_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "HELD_OUT",
    "LOSSES",
    "SUITE",
    "Suite",
    "Text",
    "TrainingPlan",
    "python_reference",
    "read_text",
    "train_suite",
]

SUITE, LOSSES, HELD_OUT = "suite.json", "losses.csv", "heldout.jsonl"
_END = "<|endoftext|>"
_FORMAT = "pythia-dyn suite 1"
_SHORTEST, _ENOUGH = 12, 12  # words of an evaluated passage; passages that make prose worth singling out


@dataclass(frozen=True, slots=True)
class Text:
    """A text to train on: its name and its passages (paragraphs), in order."""

    name: str
    passages: tuple[str, ...]

    @property
    def characters(self) -> int:
        """Length of all passages together."""
        return sum(map(len, self.passages))

    def split(self, held_out: float) -> tuple[Text, Text]:
        """The text without, and with only, its last part; `held_out` is that part's share of the characters."""
        cut, seen, limit = len(self.passages), 0, held_out * self.characters
        while cut > 1 and seen < limit:
            cut -= 1
            seen += len(self.passages[cut])
        return Text(self.name, self.passages[:cut]), Text(f"{self.name} (held out)", self.passages[cut:])


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything that decides what a suite will be. Defaults: the demo's, about 40 s on one core."""

    d_model: int = 64
    layers: int = 3
    heads: int = 4
    context: int = 64
    vocab: int = 1024
    batch: int = 8
    max_steps: int = 1430
    checkpoints: int = 143
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise PythiaDynError(f"d_model {self.d_model} is not a multiple of the {self.heads} heads")
        if not 1 <= self.checkpoints <= self.max_steps:
            raise PythiaDynError(f"{self.checkpoints} checkpoints do not fit into {self.max_steps} steps")

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """The steps at which a checkpoint is written: evenly spaced, the last step included."""
        return tuple(self.max_steps * k // self.checkpoints for k in range(1, self.checkpoints + 1))


@dataclass(frozen=True, slots=True)
class Suite:
    """A finished suite on disk; `fresh` when this call trained it."""

    path: Path
    fresh: bool

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, training loss) of every logging interval, in nats per token."""
        with (self.path / LOSSES).open(newline="") as file:
            return [(int(row["step"]), float(row["train_loss"])) for row in csv.DictReader(file)]


def python_reference() -> Text:
    """The Python reference manual that CPython itself ships for ``help()``: 465,000 characters of English.

    Raises `CorpusError` where the interpreter came without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError(
            "this Python comes without pydoc_data.topics; give a text of your own with --corpus"
        ) from None
    return Text("Python reference (pydoc_data.topics)", _passages("\n\n".join(topics[key] for key in sorted(topics))))


def read_text(path: Path | str) -> Text:
    """A UTF-8 text file, its passages separated by empty lines (or, where there are none, by line ends).

    Raises `CorpusError`.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CorpusError(f"cannot read the text {path}: {reason}") from None
    passages = _passages(content)
    return Text(path.name, passages if len(passages) > 20 else _passages(content.replace("\n", "\n\n")))


def train_suite(out: Path | str, text: Text, plan: TrainingPlan, *, progress: Progress = silent) -> Suite:
    """Train a GPT-NeoX by AdamW on `text` and write the suite to `out`; `progress` counts training steps.

    A finished suite of the same plan and text is left as it is; another one is replaced when the new one is finished.
    An interrupted training starts again. The same plan gives the same suite on the same machine.

    Raises `CorpusError` when the text is too short to train on, `PythiaDynError` when `out` holds something else.
    """
    out = Path(out)
    about = {"format": _FORMAT, "plan": asdict(plan), "text": text.name, "characters": text.characters}
    if _finished(out, about):
        return Suite(out, fresh=False)
    training, held_out = text.split(plan.held_out)
    tokenizer = _train_tokenizer(training, plan.vocab)
    tokens = np.array(tokenizer("\n\n".join(training.passages))["input_ids"], dtype=np.int64)
    if len(tokens) < 20 * plan.context:
        raise CorpusError(f"{text.name} has {len(tokens)} tokens; training needs at least {20 * plan.context}")
    evaluated = list(_held_out_pieces(held_out, tokenizer, 3 * plan.context // 4))
    if not evaluated:
        raise CorpusError(f"{text.name} is too short to hold a part of it out; give a longer text")

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with atomic_file(partial / HELD_OUT) as file:
        file.writelines(json.dumps({"text": passage}).encode() + b"\n" for passage in evaluated)
    transformers.set_seed(plan.seed)
    model = GPTNeoXForCausalLM(_config(plan, tokenizer))
    losses = _Losses()
    with _quiet():
        trainer = Trainer(
            model=model,
            args=_arguments(partial, plan),
            train_dataset=_Windows(tokens, plan),
            callbacks=[_Suite(partial, tokenizer, plan), losses, _Report(progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    with atomic_file(partial / LOSSES) as file:
        file.write(b"step,train_loss\n")
        file.writelines(f"{step},{loss:.6g}\n".encode() for step, loss in losses.rows)
    with atomic_file(partial / SUITE) as file:
        file.write(json.dumps({**about, "version": __version__}, indent=1).encode() + b"\n")
    _replace(out, partial)
    return Suite(out, fresh=True)


class _Windows(Dataset[dict[str, torch.Tensor]]):
    """As many random windows of the token stream as training will ask for, the same for the same seed."""

    def __init__(self, tokens: NDArray[np.int64], plan: TrainingPlan) -> None:
        self.tokens = torch.from_numpy(tokens)
        self.context = plan.context
        starts = np.random.default_rng(plan.seed).integers(
            0, len(tokens) - plan.context, size=plan.max_steps * plan.batch
        )
        self.starts = starts.tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.tokens[self.starts[index] : self.starts[index] + self.context]
        return {"input_ids": window, "labels": window}


class _Suite(TrainerCallback):
    """Writes the checkpoints of a suite while the Trainer trains."""

    def __init__(self, out: Path, tokenizer: PreTrainedTokenizerFast, plan: TrainingPlan) -> None:
        self.out, self.saved = out, frozenset(plan.saved_steps)
        self.tokenizer_files = [Path(name) for name in tokenizer.save_pretrained(out / "tokenizer")]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.saved:
            self.save(kwargs["model"], state.global_step)

    def save(self, model: GPTNeoXForCausalLM, step: int) -> None:
        """Write one checkpoint in float16 under a temporary name, then give it its own."""
        target, temporary = self.out / branch(step), self.out / f".{branch(step)}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        half = {name: tensor.detach().half() for name, tensor in model.state_dict().items()}
        model.save_pretrained(temporary, state_dict=half)
        for file in self.tokenizer_files:
            shutil.copy(file, temporary)
        temporary.replace(target)


class _Losses(TrainerCallback):
    """Keeps the training loss of every logging interval."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.rows.append((state.global_step, logs["loss"]))


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def _config(plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.d_model,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        intermediate_size=4 * plan.d_model,
        max_position_embeddings=plan.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
        dtype="float16",  # of the files
    )


def _arguments(out: Path, plan: TrainingPlan) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(out),
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=plan.max_steps // plan.checkpoints,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=plan.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _train_tokenizer(text: Text, vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, the kind Pythia's own tokenizer is, with as many entries as the text is worth."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.passages, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=_END, eos_token=_END, unk_token=_END, model_max_length=10**9
    )


def _passages(content: str) -> tuple[str, ...]:
    """The paragraphs, each once: a repeated one could be trained on and held out."""
    blocks = (" ".join(block.split()) for block in content.split("\n\n"))
    return tuple(dict.fromkeys(block for block in blocks if block))


def _held_out_pieces(text: Text, tokenizer: PreTrainedTokenizerFast, longest: int) -> Iterator[str]:
    """The passages of some length, each cut at a word to at most `longest` tokens; only the prose, if there is some."""
    passages = [passage for passage in text.passages if passage.count(" ") >= _SHORTEST - 1]
    prose = [passage for passage in passages if _is_prose(passage)]
    if len(prose) < _ENOUGH:  # verse, code, logs: their lines together
        words = " ".join(text.passages).split(" ")
        prose = passages or [" ".join(words[i : i + longest]) for i in range(0, len(words) - 1, longest)]
    for passage in prose:
        spans = tokenizer(passage, return_offsets_mapping=True)["offset_mapping"]
        piece = passage if len(spans) <= longest else passage[: spans[longest][0]].rpartition(" ")[0]
        if " " in piece:
            yield piece


def _is_prose(passage: str) -> bool:
    words = passage.split(" ")
    return sum(word.isalpha() or word[:-1].isalpha() for word in words) >= 0.7 * len(words)


def _finished(out: Path, about: dict[str, Any]) -> bool:
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


def _replace(out: Path, partial: Path) -> None:
    """Put a finished suite in the place of an older one; files that are no part of a suite stay."""
    out.mkdir(parents=True, exist_ok=True)
    (out / SUITE).unlink(missing_ok=True)  # first, so that a mixture is never taken for a suite
    for entry in out.iterdir():
        if entry.is_dir() and (step_of(entry.name) is not None or entry.name == "tokenizer"):
            shutil.rmtree(entry)
    for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == SUITE):
        entry.replace(out / entry.name)
    partial.rmdir()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing its own bars and notes over ours."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
