"""A corpus on a device, evaluated by one model whose weights change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from pythia_dynamics.device import resolve_dtype
from pythia_dynamics.errors import CheckpointError
from pythia_dynamics.evaluation.corpus import Corpus, load_tokenizer
from pythia_dynamics.evaluation.forward import forward_row, forward_scores
from pythia_dynamics.evaluation.last_word import encode_targets, last_word_row, last_word_scores
from pythia_dynamics.evaluation.model import build_model, context_length, load_weights, prefix_token, round_head
from pythia_dynamics.evaluation.records import Row
from pythia_dynamics.evaluation.unmasking import prefix_curves, unmask, unmask_row

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["HEADS", "Evaluator", "Options", "encode", "load", "prepare"]

HEADS = ("as-is", "ternary")
"""What may be done to W_U before it is used; ``ternary`` rounds it to {−1, 0, +1}·scale."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is evaluated, as against what it is evaluated on."""

    device: torch.device
    dtype: str = "float32"
    head: str = "as-is"
    batch_tokens: int | None = None
    max_tokens: int | None = None


class Evaluator:
    """One model on the device, built from a checkpoint's config, and the corpus as its tokenizer's tokens."""

    def __init__(self, directory: Path, corpus: Corpus, modes: Sequence[str], options: Options) -> None:
        self.options = options
        self.model, tokenizer = prepare(directory, options)
        sequences = encode(tokenizer, corpus.texts, self.model)
        context = context_length(self.model)
        width = min(context, options.max_tokens or context)
        self.sequences = [sequence[:width] for sequence in sequences]
        unscored = sum(len(sequence) < 2 for sequence in self.sequences)
        truncated = sum(len(sequence) > width for sequence in sequences)
        self._notes = {"unscored": unscored, "truncated": truncated, "context": width}
        if "last-word" in modes:
            self.targets = encode_targets(
                corpus.texts,
                lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
                context_length=context,
                prefix_token=prefix_token(self.model),
            )
            self._word_notes = {
                "unscored": sum(len(target.tokens) == target.start for target in self.targets),
                "truncated": sum(len(sequence) > context + 1 for sequence in sequences),
                "context": context,
            }

    def load(self, directory: Path) -> None:
        """Take the weights of a checkpoint; see `load_weights` for what it raises."""
        load(self.model, directory, self.options)

    def notes(self, mode: str) -> dict[str, int]:
        """What holds for every row of a mode: passages unscored and truncated, and the longest sequence read."""
        return dict(self._word_notes if mode == "last-word" else self._notes)

    def row(self, mode: str) -> Row:
        """Evaluate the weights loaded last."""
        budget = self.options.batch_tokens
        if mode == "forward":
            return Row(forward_row(forward_scores(self.model, self.sequences, batch_tokens=budget)))
        if mode == "last-word":
            return Row(last_word_row(last_word_scores(self.model, self.targets, batch_tokens=budget)))
        results = unmask(self.model, self.sequences, batch_tokens=budget)
        return Row(unmask_row(results), prefix_curves(results))


def prepare(directory: Path, options: Options) -> tuple[PreTrainedModel, Tokenizer]:
    """The model of a checkpoint, without its weights yet, and its tokenizer."""
    tokenizer = load_tokenizer(directory)
    return build_model(directory, device=options.device, dtype=resolve_dtype(options.dtype)), tokenizer


def load(model: PreTrainedModel, directory: Path, options: Options) -> None:
    """Take a checkpoint's weights, with W_U as the options want it."""
    load_weights(model, directory)
    if options.head == "ternary":
        round_head(model)


def encode(tokenizer: Tokenizer, texts: Sequence[str], model: PreTrainedModel) -> list[list[int]]:
    """Token ids of every text. Raises `CheckpointError` for ids that the model does not have."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    largest = max((max(ids) for ids in encoded if ids), default=0)
    if largest >= model.config.vocab_size:
        known = model.config.vocab_size
        raise CheckpointError(f"the tokenizer gives token {largest}, but the model knows {known}: not its tokenizer")
    return encoded
