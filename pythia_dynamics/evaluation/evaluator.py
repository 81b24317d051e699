"""A corpus on a device, evaluated by one model whose weights change from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from pythia_dynamics.device import resolve_device, resolve_dtype
from pythia_dynamics.errors import CheckpointError
from pythia_dynamics.evaluation.corpus import Corpus, load_tokenizer
from pythia_dynamics.evaluation.forward import forward_row, forward_scores
from pythia_dynamics.evaluation.last_word import encode_targets, last_word_row, last_word_scores
from pythia_dynamics.evaluation.model import build_model, context_length, load_weights, prefix_token, round_head
from pythia_dynamics.evaluation.records import Row
from pythia_dynamics.evaluation.settings import EvaluationSettings, Mode, ModelSettings
from pythia_dynamics.evaluation.unmasking import prefix_curves, unmask, unmask_row

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Evaluator", "build", "encode", "load_checkpoint"]


class Evaluator:
    """One model on the device, built from the config of a checkpoint, and the corpus as token ids.

    Parameters
    ----------
    directory
        The checkpoint whose config and tokenizer are used; its weights are not loaded yet.
    corpus
        The passages.
    modes
        The modes that will be evaluated; last-word targets are only made where they are needed.
    settings
        How to load and evaluate. The corpus and steps in it are not used.

    Raises
    ------
    CheckpointError
        As `build` and `encode`.
    """

    def __init__(self, directory: Path, corpus: Corpus, modes: Sequence[Mode], settings: EvaluationSettings) -> None:
        self.settings = settings
        self.model, tokenizer = build(directory, settings)
        sequences = encode(tokenizer, corpus.texts, self.model)
        context = context_length(self.model)
        width = min(context, settings.max_tokens or context)
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
        """Load the weights of a checkpoint; raises as `load_weights`."""
        load_checkpoint(self.model, directory, self.settings)

    def notes(self, mode: Mode) -> dict[str, int]:
        """What holds for every row of a mode: passages unscored and truncated, and the longest sequence read."""
        return dict(self._word_notes if mode == "last-word" else self._notes)

    def row(self, mode: Mode) -> Row:
        """The row of the weights that were loaded last."""
        budget = self.settings.batch_tokens
        if mode == "forward":
            return Row(forward_row(forward_scores(self.model, self.sequences, batch_tokens=budget)))
        if mode == "last-word":
            return Row(last_word_row(last_word_scores(self.model, self.targets, batch_tokens=budget)))
        results = unmask(self.model, self.sequences, batch_tokens=budget)
        return Row(unmask_row(results), prefix_curves(results))


def build(directory: Path, settings: ModelSettings) -> tuple[PreTrainedModel, Tokenizer]:
    """The model of a checkpoint, without its weights yet, and its tokenizer.

    Raises `CheckpointError` as `build_model` and `load_tokenizer`.
    """
    tokenizer = load_tokenizer(directory)
    device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
    return build_model(directory, device=device, dtype=dtype), tokenizer


def load_checkpoint(model: PreTrainedModel, directory: Path, settings: ModelSettings) -> None:
    """Load the weights of a checkpoint into the model, and round W_U where ``settings.head`` says so.

    Raises as `load_weights` and `round_head`.
    """
    load_weights(model, directory)
    if settings.head == "ternary":
        round_head(model)


def encode(tokenizer: Tokenizer, texts: Sequence[str], model: PreTrainedModel) -> list[list[int]]:
    """Token ids of every text. Raises `CheckpointError` for ids that the model does not have."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    largest = max((max(ids) for ids in encoded if ids), default=0)
    if largest >= model.config.vocab_size:
        known = model.config.vocab_size
        raise CheckpointError(f"the tokenizer gives token {largest}, but the model knows {known}: not its tokenizer")
    return encoded
