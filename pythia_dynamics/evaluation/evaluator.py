"""A model on a device that becomes one checkpoint after the other, and a corpus that is evaluated with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from pythia_dynamics.device import resolve_device, resolve_dtype
from pythia_dynamics.errors import CheckpointError, PythiaDynError
from pythia_dynamics.evaluation.checkpoint import Checkpoint
from pythia_dynamics.evaluation.corpus import Corpus, load_tokenizer
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.hidden_states import hidden_states
from pythia_dynamics.evaluation.last_word import encode_targets, last_word_scores
from pythia_dynamics.evaluation.model import build_model, context_length, prefix_token, round_head
from pythia_dynamics.evaluation.ngrams import count_ngrams
from pythia_dynamics.evaluation.products import packed_layers
from pythia_dynamics.evaluation.rows import AnyRow, Row
from pythia_dynamics.evaluation.scoring import default_batch_tokens, head_of
from pythia_dynamics.evaluation.settings import EvaluationSettings, Mode, ModelSettings
from pythia_dynamics.evaluation.staging import StagedWeights, WeightLoader, device_queues
from pythia_dynamics.evaluation.unmasking import Unmasker, default_cached_positions, prefix_curves, unmask_scores
from pythia_dynamics.evaluation.weights import Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Evaluator", "LoadedModel", "Prepared", "encode"]

Prepared = Weights | StagedWeights | PythiaDynError | OSError | None
"""Weights of a checkpoint that is not yet due, or why they cannot be loaded; None where nothing is prepared."""


class LoadedModel:
    """The model and the tokenizer of the checkpoint that was loaded last.

    Parameters
    ----------
    settings
        How to load.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._model: PreTrainedModel | None = None
        self._loader: WeightLoader | None = None
        self._tokenizer: Tokenizer | None = None
        self._config_sha256 = self._tokenizer_sha256 = ""

    @property
    def model(self) -> PreTrainedModel:
        """The model, with the weights of the checkpoint."""
        assert self._model is not None, "no checkpoint is loaded"
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the checkpoint is run with."""
        assert self._tokenizer is not None, "no checkpoint is loaded"
        return self._tokenizer

    def prepare(self, checkpoint: Checkpoint, check: Callable[[], None] = lambda: None) -> Prepared:
        """Read the weights of a checkpoint, while the one that was loaded last is used.

        Another thread may call it, after `load` of the checkpoint before has returned or raised.

        Parameters
        ----------
        checkpoint
            The checkpoint.
        check
            Called often while the files are read; its exceptions end the reading.

        Returns
        -------
        Prepared
            For `load`. None where the model has to be built again, because the checkpoint has another config.
        """
        if self._loader is None or checkpoint.config_sha256 != self._config_sha256:
            return None
        try:
            return self._loader.prepare(checkpoint.directory, check)
        except (PythiaDynError, OSError) as error:
            return error

    def load(self, checkpoint: Checkpoint, prepared: Prepared = None) -> None:
        """Load a checkpoint, and round W_U where the settings say so.

        The model is built, and the tokenizer read, only where those of the last checkpoint were others.

        Parameters
        ----------
        checkpoint
            The checkpoint.
        prepared
            What `prepare` returned for it, if it was the last call; None reads the weights now.

        Raises
        ------
        PythiaDynError, OSError
            As `load_tokenizer`, `build_model`, `load_weights` and `round_head`; another checkpoint can be loaded
            afterwards.
        """
        tokenizer = checkpoint.tokenizer
        if tokenizer.sha256 != self._tokenizer_sha256:
            self._tokenizer = load_tokenizer(tokenizer.content, tokenizer.path)
            self._tokenizer_sha256 = tokenizer.sha256
        if self._loader is None or checkpoint.config_sha256 != self._config_sha256:
            prepared = None
            self._loader = self._build(checkpoint)
        if prepared is None:
            prepared = self._loader.prepare(checkpoint.directory)
        if isinstance(prepared, Exception):
            raise prepared
        self._loader.install(prepared)
        if self._settings.head == "ternary":
            round_head(self.model)

    def _build(self, checkpoint: Checkpoint) -> WeightLoader:
        """Build the model of a checkpoint."""
        # First let go of the last model: the device need not have room for two.
        if self._loader is not None:
            self._loader.close()
        self._model = self._loader = None
        device, dtype = resolve_device(self._settings.device), resolve_dtype(self._settings.dtype)
        self._model = build_model(checkpoint.directory, device=device, dtype=dtype)
        self._config_sha256 = checkpoint.config_sha256
        return WeightLoader(self._model, device_queues(head_of(self._model).weight.device))


class Evaluator:
    """A corpus, evaluated by one checkpoint after the other, each with its own config and tokenizer.

    Parameters
    ----------
    corpus
        The passages.
    modes
        The modes that will be evaluated; last-word targets and n-grams are only made where they are needed.
    settings
        How to load and evaluate. The corpus and steps in it are not used.
    """

    def __init__(self, corpus: Corpus, modes: Sequence[Mode], settings: EvaluationSettings) -> None:
        self.settings = settings
        self._corpus = corpus
        self._modes = modes
        self._loaded = LoadedModel(settings)
        self._encoded_for: tuple[str, str] | None = None  # config and tokenizer; the config has the context length
        self._identity: dict[str, Any] = {}
        self._unmasker: Unmasker | None = None
        self._reduced: dict[Mode, int] = {}  # budgets that memory has made smaller

    def prepare(self, checkpoint: Checkpoint, check: Callable[[], None] = lambda: None) -> Prepared:
        """Read the weights of the next checkpoint while this one is evaluated, as `LoadedModel.prepare`."""
        return self._loaded.prepare(checkpoint, check)

    def load(self, checkpoint: Checkpoint, prepared: Prepared = None) -> None:
        """Load a checkpoint, and encode the corpus with its tokenizer where it is not yet.

        Parameters
        ----------
        checkpoint, prepared
            As for `LoadedModel.load`.

        Raises
        ------
        PythiaDynError, OSError
            As `LoadedModel.load` and `encode`; another checkpoint can be loaded afterwards.
        """
        if self._encoded_for is None or self._encoded_for[0] != checkpoint.config_sha256:
            self._unmasker = None  # which keeps the last model alive
        self._loaded.load(checkpoint, prepared)
        if self._unmasker is None:
            self._unmasker = Unmasker(self._loaded.model, products=self.settings.products)
        needed = checkpoint.config_sha256, checkpoint.tokenizer.sha256
        if needed != self._encoded_for:
            self._encoded_for = None
            self._encode()
            self._encoded_for = needed
        self._identity = checkpoint.identity

    def _encode(self) -> None:
        model, tokenizer, texts = self._loaded.model, self._loaded.tokenizer, self._corpus.texts
        sequences = encode(tokenizer, texts, model)
        context = context_length(model)
        width = min(context, self.settings.max_tokens or context)
        self.sequences = [sequence[:width] for sequence in sequences]
        unscored = sum(len(sequence) < 2 for sequence in self.sequences)
        truncated = sum(len(sequence) > width for sequence in sequences)
        self._notes = {"unscored": unscored, "truncated": truncated, "context": width}
        if "representation" in self._modes:
            self._ngrams = count_ngrams(self.sequences, head_of(model).out_features)
        if "last-word" in self._modes:
            self.targets = encode_targets(
                texts,
                lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
                context_length=context,
                prefix_token=prefix_token(model),
            )
            self._word_notes = {
                "unscored": sum(len(target.tokens) == target.start for target in self.targets),
                "truncated": sum(len(sequence) > context + 1 for sequence in sequences),
                "context": context,
            }

    def notes(self, mode: Mode) -> dict[str, Any]:
        """How a mode evaluates the checkpoint: passages unscored and truncated, longest sequence, its identity, the
        kind of attention of its model, the tokens held at once and, in unmasking, whether the weights are packed, which
        decide the rounding.

        The tokens held at once are those of the last `row` of the mode: with this number it is computed again to the
        bit, without running short of memory.
        """
        passages = self._word_notes if mode == "last-word" else self._notes
        attention = getattr(self._loaded.model.config, "_attn_implementation", None)
        arithmetic = {"attention": attention, "batch_tokens": self._budget(mode)}
        if mode == "unmask":
            arithmetic["products"] = "packed" if packed_layers(self._loaded.model, self.settings.products) else "plain"
        return {**passages, **self._identity, **arithmetic}

    def _budget(self, mode: Mode) -> int:
        """Tokens held at once: no more than what fitted in memory before."""
        given, model = self.settings.batch_tokens, self._loaded.model
        if given is None:
            device = head_of(model).weight.device
            given = default_cached_positions(model) if mode == "unmask" else default_batch_tokens(device)
        return min(given, self._reduced.get(mode, given))

    def row(self, mode: Mode) -> AnyRow:
        """The row of the checkpoint that was loaded last.

        Where memory runs short it is computed with a smaller number of tokens held at once; so are later rows.
        """

        def reduced(budget: int) -> None:
            self._reduced[mode] = budget

        model, budget = self._loaded.model, self._budget(mode)
        if mode == "forward":
            return Row(forward_scores(model, self.sequences, batch_tokens=budget, reduced=reduced))
        if mode == "representation":
            return hidden_states(model, self.sequences, self._ngrams, batch_tokens=budget, reduced=reduced)
        if mode == "last-word":
            return Row(last_word_scores(model, self.targets, batch_tokens=budget, reduced=reduced))
        assert self._unmasker is not None, "no checkpoint is loaded"
        results = self._unmasker.unmask(self.sequences, batch_tokens=budget, reduced=reduced)
        return Row(unmask_scores(results), prefix_curves(results))


def encode(tokenizer: Tokenizer, texts: Sequence[str], model: PreTrainedModel) -> list[list[int]]:
    """Token ids of every text. Raises `CheckpointError` for ids that the model does not have."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    largest = max((max(ids) for ids in encoded if ids), default=0)
    if largest >= model.config.vocab_size:
        known = model.config.vocab_size
        raise CheckpointError(f"the tokenizer gives token {largest}, but the model knows {known}: not its tokenizer")
    return encoded
