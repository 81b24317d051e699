"""Perplexity and accuracy of the last word, as lm-evaluation-harness 0.4 defines its task ``lambada_openai``.

The text is split at its last space; the target is that space and the word. The perplexity is exp(−mean of the
targets' log-likelihoods): per word, not per token. A target counts as guessed when each of its tokens is the likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from pythia_dynamics.evaluation.scoring import Sentences, score, valid_sentences

__all__ = ["Target", "encode_targets", "last_word_row", "last_word_scores", "split_last_word"]

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Target:
    """Token ids of a context and its continuation; those from `start` on are the target."""

    tokens: tuple[int, ...]
    start: int


def split_last_word(text: str) -> tuple[str, str]:
    """Context and target: everything before the last space, and that space with what follows it."""
    context, _, word = text.rpartition(" ")
    return context, f" {word}"


def encode_targets(
    texts: Sequence[str], encode: Encode, *, context_length: int, prefix_token: int | None
) -> list[Target]:
    """Tokenise as the harness does: context and target together, cut where the context alone would end.

    A text of a single word has the `prefix_token` (end of text) for context; where the model has none, or the
    target comes to no token, nothing is scored. What is too long loses tokens on the left.
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
    model: PreTrainedModel, targets: Sequence[Target], *, batch_tokens: int | None = None
) -> Sentences:
    """Summed NLL of each target, and whether greedy decoding would have produced it."""
    return score(model, [t.tokens for t in targets], [t.start for t in targets], batch_tokens=batch_tokens)


def last_word_row(scores: Sentences) -> dict[str, float]:
    """One row of ``perplexity-last-word.csv``: ``ppl``, ``accuracy``, over ``sentences``; ``nonfinite`` are the others.

    A target whose log-likelihood is not finite is out of both, and counted.
    """
    words = (scores.tokens > 0).astype(np.int64)
    valid = valid_sentences(scores.nll, words)
    row = {"sentences": int(valid.sum()), "nonfinite": int(words.sum() - valid.sum())}
    if not valid.any():
        return {"ppl": np.nan, "accuracy": np.nan} | row
    return {
        "ppl": float(np.exp(scores.nll[valid].mean())),
        "accuracy": float(scores.greedy[valid].mean()),
    } | row
