"""Shared by all modes: statistics of logits, scores of sentences in batches, and their summary.

Log-softmax is float32 for every dtype of the model. Logits are computed in chunks of tokens and dropped after each
chunk: with Pythia's vocabulary they take 200 KB a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pythia_dynamics.evaluation.batching import Batch, evaluate_in_batches, no_report
from pythia_dynamics.evaluation.memory import free_cached_memory, is_out_of_memory

__all__ = [
    "FinalStates",
    "Sentences",
    "TokenStatistics",
    "count_sentences",
    "default_batch_tokens",
    "final_states",
    "head_of",
    "head_statistics",
    "logit_chunks",
    "mean_per_token",
    "right_pad",
    "score",
    "standard_error",
    "summarise",
    "valid_sentences",
]

_BATCH_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 2048}
"""Tokens read at once, by device: many rows for each matrix product. Hidden states stay small beside the weights: for
a 12b in float16, 16,384 tokens have 168 MB of them and the weights are 24 GB."""

_LOGIT_BYTES = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 25}
"""Bytes of float32 logits computed by one matrix product, by device; with Pythia's vocabulary 5,300, 1,300 and 166
tokens. Enough rows for a product at full speed, and a bounded part of the device's memory."""

_CACHED_BYTES = 1 << 22
"""Bytes of logits that the statistics are taken of at once on a CPU. They pass over them several times, so they should
stay in the processor's cache; and a buffer of 4 MiB is reused by malloc, where a large one is mapped anew each time."""


class TokenStatistics(NamedTuple):
    """Statistics of N next-token distributions; each has shape (N,).

    Parameters
    ----------
    nll
        Negative log-likelihood (NLL, nats, float32) of the target; without targets, of the likeliest token.
    top
        The likeliest token, int64; of equal ones the first, as in `torch.argmax` and `generate`.
    entropy
        Entropy of the distribution, nats, float32.
    """

    nll: torch.Tensor
    top: torch.Tensor
    entropy: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sentences:
    """Scores of S sentences; each array has shape (S,).

    Parameters
    ----------
    nll, entropy
        Sums over the scored tokens, nats, float64. NaN or infinite where the arithmetic of the model was.
    tokens
        Number of scored tokens, int64; 0 for a sentence without any.
    greedy
        Whether every scored token is the likeliest one; True without scored tokens.
    """

    nll: NDArray[np.float64]
    entropy: NDArray[np.float64]
    tokens: NDArray[np.int64]
    greedy: NDArray[np.bool_]


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of text read at once on a device, where the caller gives no number."""
    return _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"])


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The unembedding layer; its ``weight`` is W_U, shape (vocab, d_model)."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(head, torch.nn.Linear)
    return head


def head_statistics(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor | None = None
) -> TokenStatistics:
    """Statistics of the next-token distributions of final hidden states, computed in chunks of bounded memory.

    Parameters
    ----------
    model
        The model whose unembedding makes the logits.
    hidden
        Final hidden states, shape (N, d_model), in the model's dtype.
    targets
        The token that each state should predict, int64, shape (N,); None takes the likeliest token.

    Returns
    -------
    TokenStatistics
        Shape (N,) each, on the device of `hidden`.
    """
    parts = [
        _statistics(logits, None if targets is None else targets[start : start + logits.shape[0]])
        for start, logits in logit_chunks(model, hidden)
    ]
    return TokenStatistics(*map(torch.cat, zip(*parts, strict=True)))


def logit_chunks(model: PreTrainedModel, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The logits of final hidden states, in chunks of bounded memory.

    Parameters
    ----------
    model, hidden
        As for `head_statistics`.

    Yields
    ------
    tuple of int and Tensor
        Index of the first state of a chunk, and its logits, shape (rows, vocab), in the dtype of the model. The caller
        may change them in place.
    """
    head = head_of(model)
    vocab = head.out_features  # not of the weight, which has no values while packed
    chunk = max(1, _LOGIT_BYTES.get(hidden.device.type, _LOGIT_BYTES["cpu"]) // (4 * vocab))
    rows = max(1, _CACHED_BYTES // (4 * vocab)) if hidden.device.type == "cpu" else chunk
    for i in range(0, hidden.shape[0], chunk):
        logits = head(hidden[i : i + chunk])
        for j in range(0, logits.shape[0], rows):
            yield i + j, logits[j : j + rows]


def _statistics(logits: torch.Tensor, targets: torch.Tensor | None) -> TokenStatistics:
    shifted = logits.float().contiguous()  # nothing else reads the logits, so they may be changed in place
    largest, top = _max_and_argmax(shifted)
    shifted -= largest[:, None]
    # The largest term is exp(0) = 1, so the partition function is at least 1 and no NLL is below 0 by rounding.
    at_target = shifted.gather(1, (top if targets is None else targets)[:, None]).squeeze(1)
    weights = shifted.exp()
    partition = weights.sum(dim=-1)
    log_partition = partition.log()
    mean_energy = torch.linalg.vecdot(weights, shifted) / partition
    return TokenStatistics(log_partition - at_target, top, log_partition - mean_energy)


def _max_and_argmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``logits.max(dim=-1)``: of equals the first, NaN above all.

    In two stages, blocks and then the best block, because amax is ten times as fast as max with its index.
    """
    count, vocab = logits.shape
    # Blocks of 64 to 512 columns: the second stage reads one value a block, and one block a row.
    width = next((width for width in range(512, 63, -1) if vocab % width == 0), vocab)
    blocks = logits.view(count, vocab // width, width)
    largest, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(count, device=logits.device), block].argmax(dim=-1)
    return largest, block * width + inside


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids as an (n, width) rectangle with zeros on the right, where causal attention does not see them.

    Parameters
    ----------
    sequences
        At least one sequence of token ids; the longest gives the width.
    device
        Where the int64 tensor is put.
    """
    width = max(len(sequence) for sequence in sequences)
    array = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in zip(array, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(array).to(device)


class FinalStates(NamedTuple):
    """The last hidden states of N positions that predict a token, sentence after sentence.

    They are the input of the unembedding: after the last normalisation.

    Parameters
    ----------
    hidden
        The states, shape (N, d_model), in the dtype of the model.
    rows
        Index of the sentence of each, int64, shape (N,), on the host.
    tokens
        The token at each position, the last one that the state has seen, int64, shape (N,).
    targets
        The next token, which the state predicts, int64, shape (N,).
    """

    hidden: torch.Tensor
    rows: NDArray[np.int64]
    tokens: torch.Tensor
    targets: torch.Tensor


def final_states(model: PreTrainedModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> FinalStates:
    """Last hidden states of sequences that are read at once.

    Parameters
    ----------
    model
        A model in evaluation mode.
    sequences
        Token ids, each longer than its start and no longer than the model's context.
    starts
        Index of the first token of each sequence that is predicted, at least 1.
    """
    device = head_of(model).weight.device
    tokens = right_pad(sequences, device)
    hidden = model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    # Column j of `hidden` predicts token j + 1.
    spans = [np.arange(start - 1, len(sequence) - 1) for sequence, start in zip(sequences, starts, strict=True)]
    rows = np.repeat(np.arange(len(sequences)), [len(span) for span in spans])
    at = torch.from_numpy(np.stack([rows, np.concatenate(spans)])).to(device)
    return FinalStates(hidden[at[0], at[1]], rows, tokens[at[0], at[1]], tokens[at[0], at[1] + 1])


def score(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    batch_tokens: int | None = None,
    reduced: Callable[[int], None] = no_report,
) -> Sentences:
    """Score the tokens of sequences, each given all tokens before it.

    Parameters
    ----------
    model
        A model in evaluation mode.
    sequences
        Token ids of S sentences, no longer than the model's context.
    starts
        Index of the first token of each sentence that is scored, at least 1: the first token is context only.
    batch_tokens
        Bound on the tokens read at once, padding included; None chooses by device. It is halved when memory is short.
    reduced
        Called with each smaller bound that memory makes necessary.

    Returns
    -------
    Sentences
        Sums over the tokens from ``starts[i]`` on.

    Raises
    ------
    PythiaDynError
        When a single sequence does not fit in memory, or `batch_tokens` is below 1.
    """
    device = head_of(model).weight.device
    count = len(sequences)
    result = Sentences(np.zeros(count), np.zeros(count), np.zeros(count, np.int64), np.ones(count, np.bool_))
    scored = [i for i in range(count) if len(sequences[i]) > starts[i]]

    def evaluate(batch: Batch, budget: int) -> None:
        _score_batch(model, [scored[i] for i in batch.members], sequences, starts, result)

    lengths = [len(sequences[i]) for i in scored]
    budget = default_batch_tokens(device) if batch_tokens is None else batch_tokens
    free = partial(free_cached_memory, device)
    with torch.inference_mode():
        for _ in evaluate_in_batches(
            lengths, budget, evaluate, out_of_memory=is_out_of_memory, free=free, reduced=reduced
        ):
            pass
    return result


def _score_batch(
    model: PreTrainedModel,
    members: Sequence[int],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    result: Sentences,
) -> None:
    states = final_states(model, [sequences[i] for i in members], [starts[i] for i in members])
    rows, targets = states.rows, states.targets
    statistics = head_statistics(model, states.hidden, targets)
    # One transfer to the host, and float64 only there: MPS has none.
    nll, entropy, missed = (
        torch.stack([statistics.nll, statistics.entropy, (statistics.top != targets).float()]).cpu().double().numpy()
    )
    where = np.asarray(members)
    result.nll[where] = np.bincount(rows, weights=nll)
    result.entropy[where] = np.bincount(rows, weights=entropy)
    result.tokens[where] = np.bincount(rows)
    result.greedy[where] = np.bincount(rows, weights=missed) == 0


def valid_sentences(nll: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which sentences have a valid perplexity exp(NLL/T): finite, at least 1, over at least one token.

    A perplexity below 1 would be a probability above 1.

    Parameters
    ----------
    nll
        Sums over the scored tokens, nats, shape (S,).
    tokens
        Number of scored tokens T, shape (S,).

    Returns
    -------
    ndarray of bool, shape (S,)
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        perplexity = np.exp(nll / tokens)  # without a token a division by zero: not finite, or 0
        return np.asarray(np.isfinite(perplexity) & (perplexity >= 1), dtype=np.bool_)


def count_sentences(nll: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, int]:
    """How many sentences are valid, and what is wrong with the others that were scored.

    Parameters
    ----------
    nll, tokens
        As for `valid_sentences`.

    Returns
    -------
    dict
        ``sentences``, the valid ones; ``nonfinite``, those whose NLL is NaN, infinite or below 0, which are errors of
        the arithmetic; ``overflow``, those whose NLL is right but whose perplexity is beyond the range of float64.
    """
    valid = valid_sentences(nll, tokens)
    overflow = ~valid & (tokens > 0) & np.isfinite(nll) & (nll > 0)
    nonfinite = ~valid & (tokens > 0) & ~overflow
    return {"sentences": int(valid.sum()), "nonfinite": int(nonfinite.sum()), "overflow": int(overflow.sum())}


def standard_error(values: NDArray[np.float64]) -> float:
    """The standard error of the mean of independent values, shape (S,): their standard deviation / √S. NaN for one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def mean_per_token(sums: NDArray[np.float64], tokens: NDArray[np.int64]) -> tuple[float, float]:
    """The mean over all tokens alike, and its standard error over sentences: that of a ratio of sums.

    Parameters
    ----------
    sums
        Sum over the tokens of each sentence, shape (S,).
    tokens
        Number of tokens of each, at least 1, shape (S,).
    """
    mean = float(sums.sum() / tokens.sum())
    return mean, standard_error((sums - mean * tokens) / tokens.mean())


def summarise(scores: Sentences) -> dict[str, float]:
    """One row of ``perplexity-forward.csv`` or ``perplexity-unmask.csv``.

    Parameters
    ----------
    scores
        NLL and entropy of each sentence, and its number T of scored tokens.

    Returns
    -------
    dict
        ``ppl_mean`` and ``ppl_median`` of the perplexities exp(NLL/T) of the sentences (Garden Eq 6), ``ppl_corpus``
        over all tokens alike, ``nll_mean`` and ``entropy``, means over sentences of the values per token (nats). All
        are over the valid sentences (see `valid_sentences`), and NaN when there is none. ``sentences``, ``nonfinite``
        and ``overflow`` are those of `count_sentences`, ``tokens`` counts the scored tokens of the valid sentences.

        ``ppl_mean_se``, ``ppl_corpus_se`` and ``nll_mean_se`` are standard errors over sentences, taken as independent;
        that of ``ppl_corpus`` is the first order of the delta method for the exponential of a ratio of sums. NaN for a
        single sentence.
    """
    valid = valid_sentences(scores.nll, scores.tokens)
    nll, entropy, tokens = scores.nll[valid], scores.entropy[valid], scores.tokens[valid]
    row = count_sentences(scores.nll, scores.tokens) | {"tokens": int(tokens.sum())}
    if not valid.any():
        return dict.fromkeys(_OF_VALID, np.nan) | row
    per_token = nll / tokens
    perplexity = np.exp(per_token)
    mean_nll, mean_nll_se = mean_per_token(nll, tokens)
    ppl_corpus = float(np.exp(mean_nll))
    return {
        "ppl_mean": float(perplexity.mean()),
        "ppl_median": float(np.median(perplexity)),
        "ppl_corpus": ppl_corpus,
        "nll_mean": float(per_token.mean()),
        "entropy": float((entropy / tokens).mean()),
        "ppl_mean_se": standard_error(perplexity),
        "ppl_corpus_se": ppl_corpus * mean_nll_se,
        "nll_mean_se": standard_error(per_token),
    } | row


_OF_VALID = (
    *("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "entropy"),
    *("ppl_mean_se", "ppl_corpus_se", "nll_mean_se"),
)
