"""Perplexity and accuracy of the last word, as lm-evaluation-harness 0.4 defines its task ``lambada_openai``.

The text is split at its last space; the target is that space and the word. The perplexity is exp(−mean log-likelihood
of the targets): per word, not per token. A target is predicted when each of its tokens is the likeliest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from pythia_dynamics.evaluation.batching import no_report
from pythia_dynamics.evaluation.scoring import (
    Sentences,
    count_sentences,
    score,
    standard_error,
    valid_sentences,
)

__all__ = ["Target", "encode_targets", "last_word_row", "last_word_scores", "split_last_word"]

Encode = Callable[[str], Sequence[int]]
"""Token ids of a text, without special tokens."""


@dataclass(frozen=True, slots=True)
class Target:
    """A context and its continuation.

    Parameters
    ----------
    tokens
        Token ids of both.
    start
        Index of the first token of the continuation, which is scored; ``len(tokens)`` where nothing is.
    """

    tokens: tuple[int, ...]
    start: int


def split_last_word(text: str) -> tuple[str, str]:
    """Context and target of a text: what is before the last space, and that space with what follows it."""
    context, _, word = text.rpartition(" ")
    return context, f" {word}"


def encode_targets(
    texts: Sequence[str], encode: Encode, *, context_length: int, prefix_token: int | None
) -> list[Target]:
    """Context and target of each text as token ids, as the harness makes them.

    Both are tokenised together and cut where the context alone would end.

    Parameters
    ----------
    texts
        The passages.
    encode
        The tokenizer.
    context_length
        The longest input of the model; longer texts lose tokens on the left.
    prefix_token
        Context of a text of a single word (end of text); None where the model has no such token.

    Returns
    -------
    list of Target
        One for each text. Nothing is scored of a text that has no context, whose target has no token, or whose target
        is longer than the context length.
    """
    targets = []
    for text in texts:
        context, target = split_last_word(text)
        if not text.strip():
            head, tail = [], []
        elif not context.strip():
            tail = list(encode(context + target))
            head = [] if prefix_token is None else [prefix_token]
            if tail[:1] == head:
                tail = tail[1:]
        else:
            # Spaces at the end of the context belong to the target's first token.
            whole = list(encode(context + target))
            cut = len(encode(context.rstrip()))
            head, tail = whole[:cut], whole[cut:]
        if not head or not tail or len(tail) > context_length:
            targets.append(Target(tuple(head), len(head)))
            continue
        kept = (*head, *tail)[-(context_length + 1) :]
        targets.append(Target(kept, max(1, len(kept) - len(tail))))
    return targets


def last_word_scores(
    model: PreTrainedModel,
    targets: Sequence[Target],
    *,
    batch_tokens: int | None = None,
    reduced: Callable[[int], None] = no_report,
) -> Sentences:
    """Summed NLL of each target, and whether greedy decoding would produce it.

    Parameters
    ----------
    model
        A model in evaluation mode.
    targets
        From `encode_targets`.
    batch_tokens
        Bound on the tokens read at once, padding included; None chooses by device.
    reduced
        Called with each smaller bound that memory makes necessary.

    Raises
    ------
    PythiaDynError
        When a single text does not fit in memory.
    """
    tokens, starts = [target.tokens for target in targets], [target.start for target in targets]
    return score(model, tokens, starts, batch_tokens=batch_tokens, reduced=reduced)


def last_word_row(scores: Sentences) -> dict[str, float]:
    """One row of ``perplexity-last-word.csv``.

    Parameters
    ----------
    scores
        From `last_word_scores`.

    Returns
    -------
    dict
        ``ppl``, exp of the mean NLL of a target, and ``accuracy``, the share of targets that are predicted: both over
        the valid targets, and NaN when there is none. ``ppl_se`` and ``accuracy_se`` are their standard errors over
        targets, that of ``ppl`` by the delta method. ``sentences``, ``nonfinite`` and ``overflow`` are those of
        `count_sentences`, with the word in the place of the tokens.
    """
    words = (scores.tokens > 0).astype(np.int64)
    valid = valid_sentences(scores.nll, words)
    row = count_sentences(scores.nll, words)
    if not valid.any():
        return dict.fromkeys(("ppl", "accuracy", "ppl_se", "accuracy_se"), np.nan) | row
    nll, greedy = scores.nll[valid], scores.greedy[valid].astype(np.float64)
    perplexity = float(np.exp(nll.mean()))
    return {
        "ppl": perplexity,
        "accuracy": float(greedy.mean()),
        "ppl_se": perplexity * standard_error(nll),
        "accuracy_se": standard_error(greedy),
    } | row
