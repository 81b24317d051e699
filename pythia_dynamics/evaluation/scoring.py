"""What every engine shares: statistics of logits, sentences scored in batches, and their summary.

Log-softmax is taken in float32 whatever the model's dtype, and logits are never kept for more than a chunk of
tokens: with Pythia's vocabulary they are 200 KB a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pythia_dynamics.device import free_cached_memory, is_out_of_memory
from pythia_dynamics.evaluation.batching import Batch, evaluate_in_batches
from pythia_dynamics.evaluation.products import linear

__all__ = [
    "Sentences",
    "TokenStatistics",
    "default_batch_tokens",
    "head_of",
    "head_statistics",
    "right_pad",
    "score",
    "summarise",
    "valid_sentences",
]

_CACHED_BYTES = 1 << 22  # on a CPU several passes are made over this much: it stays in the cache, and malloc keeps it
_LOGIT_BYTES = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 25}
_BATCH_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 2048}


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Of N next-token distributions: NLL of the target (nats), the likeliest token, entropy (nats). Shape (N,) each.

    Without targets the NLL is that of the likeliest token. Of tokens that tie, the likeliest is the first, as
    `torch.argmax` and `generate` have it.
    """

    nll: torch.Tensor
    top: torch.Tensor
    entropy: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sentences:
    """Scores of S sentences: summed NLL and entropy (nats, float64), number of scored tokens, all of them greedy?

    A sentence without a token to score has ``tokens`` 0.
    """

    nll: NDArray[np.float64]
    entropy: NDArray[np.float64]
    tokens: NDArray[np.int64]
    greedy: NDArray[np.bool_]


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of text read at once: enough to keep the device busy, little beside the model's own memory."""
    return _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cpu"])


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    """The unembedding, W_U: ``head.weight`` has shape (vocab, d_model)."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(head, torch.nn.Linear)
    return head


def head_statistics(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor | None = None
) -> TokenStatistics:
    """Statistics of the logits of final hidden states (N, d_model), computed in chunks of bounded memory."""
    head = head_of(model)
    vocab = head.weight.shape[0]
    chunk = max(1, _LOGIT_BYTES.get(hidden.device.type, _LOGIT_BYTES["cpu"]) // (4 * vocab))
    rows = max(1, _CACHED_BYTES // (4 * vocab)) if hidden.device.type == "cpu" else chunk
    parts = []
    for i in range(0, hidden.shape[0], chunk):
        logits = linear(head, hidden[i : i + chunk])
        for j in range(0, logits.shape[0], rows):
            some = logits[j : j + rows]
            parts.append(_statistics(some, None if targets is None else targets[i + j : i + j + some.shape[0]]))
    if len(parts) == 1:
        return parts[0]
    return TokenStatistics(
        torch.cat([part.nll for part in parts]),
        torch.cat([part.top for part in parts]),
        torch.cat([part.entropy for part in parts]),
    )


def _statistics(logits: torch.Tensor, targets: torch.Tensor | None) -> TokenStatistics:
    shifted = logits.float().contiguous()  # the logits are ours alone: work in place where no copy was made
    largest, top = _largest(shifted)
    shifted -= largest[:, None]
    # The largest term is exp(0) = 1, so the partition function is at least 1 and no NLL is below 0 by rounding.
    at_target = shifted.gather(1, (top if targets is None else targets)[:, None]).squeeze(1)
    weights = shifted.exp()
    partition = weights.sum(dim=-1)
    log_partition = partition.log()
    mean_energy = torch.linalg.vecdot(weights, shifted) / partition
    return TokenStatistics(log_partition - at_target, top, log_partition - mean_energy)


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``logits.max(dim=-1)``, first of equals, NaN above all; in two stages, as amax is ten times as fast as max."""
    count, vocab = logits.shape
    width = next((width for width in range(512, 63, -1) if vocab % width == 0), vocab)
    blocks = logits.view(count, vocab // width, width)
    largest, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(count, device=logits.device), block].argmax(dim=-1)
    return largest, block * width + inside


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids as an (n, width) rectangle, zeros on the right, where causal attention never looks back from."""
    width = max(len(sequence) for sequence in sequences)
    array = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in zip(array, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(array).to(device)


def score(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    batch_tokens: int | None = None,
) -> Sentences:
    """Score the tokens ``starts[i]:`` of every sequence, given all tokens before each.

    ``starts[i]`` is at least 1: the first token is context only. The model must be in evaluation mode.
    """
    device = head_of(model).weight.device
    count = len(sequences)
    result = Sentences(np.zeros(count), np.zeros(count), np.zeros(count, np.int64), np.ones(count, np.bool_))
    scored = [i for i in range(count) if len(sequences[i]) > starts[i]]
    lengths = [len(sequences[i]) for i in scored]

    def evaluate(batch: Batch) -> None:
        members = [scored[i] for i in batch.members]
        _score_batch(model, members, sequences, starts, result, device)

    budget = batch_tokens or default_batch_tokens(device)
    with torch.inference_mode():
        for _ in evaluate_in_batches(
            lengths, budget, evaluate, out_of_memory=is_out_of_memory, free=partial(free_cached_memory, device)
        ):
            pass
    return result


def _score_batch(
    model: PreTrainedModel,
    members: Sequence[int],
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    result: Sentences,
    device: torch.device,
) -> None:
    tokens = right_pad([sequences[i] for i in members], device)
    hidden = model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    # Which predictions count: column j of `hidden` predicts token j + 1.
    spans = [np.arange(starts[i] - 1, len(sequences[i]) - 1) for i in members]
    rows = np.repeat(np.arange(len(members)), [len(span) for span in spans])
    at = torch.from_numpy(np.stack([rows, np.concatenate(spans)])).to(device)
    targets = tokens[at[0], at[1] + 1]
    statistics = head_statistics(model, hidden[at[0], at[1]], targets)
    # One transfer; float64 only on the host, where every device has it.
    nll, entropy, missed = (
        torch.stack([statistics.nll, statistics.entropy, (statistics.top != targets).float()]).cpu().double().numpy()
    )
    where = np.asarray(members)
    result.nll[where] = np.bincount(rows, weights=nll)
    result.entropy[where] = np.bincount(rows, weights=entropy)
    result.tokens[where] = np.bincount(rows)
    result.greedy[where] = np.bincount(rows, weights=missed) == 0


def valid_sentences(nll: NDArray[np.float64], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which summed NLLs are those of a perplexity: finite, at least 1, over at least one token.

    What is scored but not valid is a ``nonfinite`` sentence: an error of the arithmetic, to be counted and named.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        perplexity = np.exp(nll / tokens)
        return np.asarray((tokens > 0) & np.isfinite(perplexity) & (perplexity >= 1), dtype=np.bool_)


def summarise(nll: NDArray[np.float64], entropy: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
    """One row of ``perplexity-forward.csv`` from sums over the tokens of each sentence, shape (S,) each.

    ``ppl_mean`` and ``ppl_median`` are over the sentences' perplexities exp(NLL/T) (Garden Eq 6), ``nll_mean`` is
    the mean of the sentences' NLL per token and ``entropy`` that of their entropy; ``ppl_corpus`` weighs tokens
    alike. All are over the ``sentences`` that are valid (see `valid_sentences`) and NaN when none is; ``nonfinite``
    counts the others that were scored, ``tokens`` what the valid ones hold.
    """
    valid = valid_sentences(nll, tokens)
    row = {
        "sentences": int(valid.sum()),
        "nonfinite": int((tokens > 0).sum() - valid.sum()),
        "tokens": int(tokens[valid].sum()),
    }
    if not valid.any():
        return dict.fromkeys(("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "entropy"), np.nan) | row
    per_token = nll[valid] / tokens[valid]
    perplexity = np.exp(per_token)
    return {
        "ppl_mean": float(perplexity.mean()),
        "ppl_median": float(np.median(perplexity)),
        "ppl_corpus": float(np.exp(nll[valid].sum() / tokens[valid].sum())),
        "nll_mean": float(per_token.mean()),
        "entropy": float((entropy[valid] / tokens[valid]).mean()),
    } | row
