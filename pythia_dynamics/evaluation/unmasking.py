"""Perplexity by causal unmasking: that of the text which the model generates itself (Garden, §4.2.2).

For every prefix length k of a sentence of t tokens, 1 ≤ k < t, the model completes the sentence greedily to t
tokens; the perplexity is that of the t − k tokens generated. As in ``generate(do_sample=False)``, the first of equally
likely tokens is taken; unlike there, an end-of-text token does not stop a completion, which always reaches t tokens.

Generated one by one these are t(t−1)/2 tokens for a sentence. Here all prefixes of all sentences of a batch are
completed in lockstep: at position p every active row has length p, so there is neither padding nor a mask. The row of
prefix p starts with the cache of one forward pass over the sentence, which also gives the first token of every
completion. A prefix whose first generated token is the next token of the sentence continues exactly as the next longer
prefix does, and is not computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from pythia_dynamics.evaluation.batching import Batch, evaluate_in_batches, no_report
from pythia_dynamics.evaluation.lockstep import LockstepCache
from pythia_dynamics.evaluation.memory import cached_positions_budget, free_cached_memory, is_out_of_memory
from pythia_dynamics.evaluation.products import transposed_linear_layers
from pythia_dynamics.evaluation.scoring import Sentences, head_of, head_statistics, right_pad, valid_sentences

__all__ = [
    "Completion",
    "Unmasking",
    "cached_positions",
    "default_cached_positions",
    "illustrate",
    "prefix_curves",
    "unmask",
    "unmask_scores",
]


_Number = TypeVar("_Number", np.int64, np.float32)


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Tokens, NLL and entropy (nats) on the host, of equal shape."""

    tokens: NDArray[np.int64]
    nll: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Self:
        """Zeros of a shape."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    @classmethod
    def concatenated(cls, parts: Sequence[_Statistics], width: int) -> _Statistics:
        """The rows of all parts, of this width."""
        if not parts:
            return _Statistics.empty((0, width))
        names = ("tokens", "nll", "entropy")
        return _Statistics(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class Unmasking(_Statistics):
    """All completions of one sentence of t tokens; each array has shape (t − 1, t).

    Row k − 1 belongs to the prefix of k tokens. A sentence of fewer than two tokens has no rows.

    Parameters
    ----------
    tokens
        Prefix and completion, int64.
    nll, entropy
        Of the model when it generated the token, nats, float32; NaN where the token was given.
    """

    @property
    def prefixes(self) -> int:
        """Number of completions, t − 1."""
        return int(self.tokens.shape[0])

    def per_prefix(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Sums of `nll` or `entropy` over the generated tokens, by prefix length; shape (t − 1,), float64."""
        generated = np.triu(np.ones(values.shape, np.bool_), k=1)
        return np.asarray(np.where(generated, values, 0).sum(axis=1, dtype=np.float64), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Completion:
    """One line of the paper's Fig 5.

    Parameters
    ----------
    prefix
        Number of tokens given.
    given, generated
        Text of the prefix up to its last whole character, and the rest of the completion.
    perplexity
        Of the generated tokens.
    entropy
        Mean entropy of the generated tokens, nats.
    """

    prefix: int
    given: str
    generated: str
    perplexity: float
    entropy: float


@dataclass(frozen=True, slots=True)
class _Rows:
    """The completions to compute, in order of prefix length: sentence, prefix length and last index of each."""

    sentence: NDArray[np.int64]
    prefix: NDArray[np.int64]
    last: NDArray[np.int64]

    def __getitem__(self, part: slice) -> Self:
        """Some of the rows."""
        return type(self)(self.sentence[part], self.prefix[part], self.last[part])


def cached_positions(count: int, width: int) -> int:
    """Key-value positions that `count` sentences of `width` tokens hold at once: a row of `width` for each prefix."""
    return count * width * width


def unmask(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    batch_tokens: int | None = None,
    reduced: Callable[[int], None] = no_report,
) -> list[Unmasking]:
    """Complete every prefix of every sentence, with the tokens that `generate` gives for each prefix alone.

    Where the logits of the two likeliest tokens differ by less than the rounding of a matrix product, either may be
    taken, as in `generate` itself at another batch size.

    Parameters
    ----------
    model
        A model in evaluation mode.
    sequences
        Token ids of each sentence, no longer than the model's context.
    batch_tokens
        Bound on the key-value positions held at once, beside those of the sentences themselves; None takes what fits in
        1 GiB, on CUDA in 8 GiB. The prefixes of a sentence that needs more are completed in several waves. It is halved
        when memory is short.
    reduced
        Called with each smaller bound that memory makes necessary.

    Returns
    -------
    list of Unmasking
        One for each sentence.

    Raises
    ------
    PythiaDynError
        When a single sentence does not fit in memory, or `batch_tokens` is below 1.
    """
    device = head_of(model).weight.device
    results = [Unmasking.empty((0, len(sequence))) for sequence in sequences]
    work = [i for i, sequence in enumerate(sequences) if len(sequence) > 1]

    def evaluate(batch: Batch, budget: int) -> list[Unmasking]:
        return list(_complete_batch(model, [sequences[work[i]] for i in batch.members], device, budget))

    lengths = [len(sequences[i]) for i in work]
    budget = default_cached_positions(model) if batch_tokens is None else batch_tokens
    free = partial(free_cached_memory, device)
    with torch.inference_mode(), transposed_linear_layers(model, exclude=head_of(model)):
        for batch, done in evaluate_in_batches(
            lengths,
            budget,
            evaluate,
            out_of_memory=is_out_of_memory,
            free=free,
            reduced=reduced,
            cost=cached_positions,
            least=lambda width: width,  # one row at a time
        ):
            for member, unmasking in zip(batch.members, done, strict=True):
                results[work[member]] = unmasking
    return results


def default_cached_positions(model: PreTrainedModel) -> int:
    """Key-value positions held at once, where the caller gives no number."""
    config, weight = model.config, head_of(model).weight
    bytes_per_position = int(2 * config.num_hidden_layers * config.hidden_size * weight.element_size())
    return cached_positions_budget(weight.device, bytes_per_position)


def _complete_batch(
    model: PreTrainedModel, sentences: Sequence[Sequence[int]], device: torch.device, budget: int
) -> Iterator[Unmasking]:
    """Complete all prefixes of a batch of sentences, each of at least two tokens, in waves within a budget."""
    lengths = np.array([len(sentence) for sentence in sentences])
    count, width = len(sentences), int(lengths.max())
    tokens = right_pad(sentences, device)
    cache = DynamicCache()
    hidden = model.base_model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True).last_hidden_state
    after = head_statistics(model, hidden.reshape(count * (width - 1), -1))
    del hidden
    # Entry [s, k - 1] belongs to the token that follows the prefix of k tokens of sentence s.
    top, nll, entropy = (values.view(count, width - 1) for values in (after.top, after.nll, after.entropy))
    first = _Statistics(top.cpu().numpy(), nll.cpu().numpy(), entropy.cpu().numpy())
    given = tokens.cpu().numpy()
    diverges = first.tokens != given[:, 1:]
    rows = _rows_to_compute(lengths, diverges)
    waves = [_generate(model, cache, rows[part], width, top) for part in _waves(rows, width, budget)]
    computed = _Statistics.concatenated(waves, width)
    for s, t in enumerate(lengths):
        yield _assemble(s, given[s, :t], diverges[s], first, rows, computed)


def _rows_to_compute(lengths: NDArray[np.int64], diverges: NDArray[np.bool_]) -> _Rows:
    """Prefixes whose completion differs from the sentence at its first token and has further tokens."""
    prefix = np.arange(1, diverges.shape[1] + 1)
    wanted = diverges & (prefix < lengths[:, None] - 1)
    index, sentence = np.nonzero(wanted.T)
    return _Rows(sentence, index + 1, lengths[sentence] - 1)


def _generate(model: PreTrainedModel, cache: DynamicCache, rows: _Rows, width: int, top: torch.Tensor) -> _Statistics:
    """Generate all rows in lockstep; column p of the results, shape (rows, width), belongs to the token at p."""
    device, total = top.device, len(rows.prefix)
    tokens = torch.zeros((total, width), dtype=torch.int64, device=device)
    # With a dtype: the default one is another while a thread builds a model.
    nll, entropy = (torch.zeros((total, width), dtype=torch.float32, device=device) for _ in range(2))
    sentence = torch.from_numpy(rows.sentence).to(device)
    lockstep = LockstepCache(cache, _max_active(rows, width), width - 1)
    active = np.zeros(0, np.int64)  # rows being generated, and the same on the device
    index = torch.from_numpy(active).to(device)
    current = tokens[:0, 0]
    for position in range(int(rows.prefix[0]), width - 1):
        done = rows.last[active] == position
        if done.any():
            kept = torch.from_numpy(np.flatnonzero(~done)).to(device)
            lockstep.keep(kept)
            active, index, current = active[~done], index[kept], current[kept]
        starting = np.searchsorted(rows.prefix, [position, position + 1])
        sentences = None
        if starting[0] < starting[1]:
            new = torch.arange(starting[0], starting[1], device=device)
            sentences = sentence[new]
            active, index = np.concatenate([active, np.arange(*starting)]), torch.cat([index, new])
            current = torch.cat([current, top[sentences, position - 1]])
        if not active.size:
            continue
        lockstep.begin(position, sentences)
        states = model.base_model(input_ids=current[:, None], past_key_values=lockstep, use_cache=True)
        statistics = head_statistics(model, states.last_hidden_state[:, 0])
        current = statistics.top
        tokens[index, position + 1] = current
        nll[index, position + 1] = statistics.nll
        entropy[index, position + 1] = statistics.entropy
    return _Statistics(tokens.cpu().numpy(), nll.cpu().numpy(), entropy.cpu().numpy())


def _waves(rows: _Rows, width: int, budget: int) -> list[slice]:
    """The rows that are computed together: all of them if their cache fits, else as many at a time as surely do."""
    total = len(rows.prefix)
    if not total:
        return []
    most = max(1, budget // width)
    size = total if _max_active(rows, width) <= most else most
    return [slice(start, start + size) for start in range(0, total, size)]


def _max_active(rows: _Rows, width: int) -> int:
    """The largest number of rows that are active at one position."""
    change = np.bincount(rows.prefix, minlength=width + 1) - np.bincount(rows.last, minlength=width + 1)
    return int(np.cumsum(change).max())


def _assemble(
    s: int,
    given: NDArray[np.int64],
    diverges: NDArray[np.bool_],
    first: _Statistics,
    rows: _Rows,
    computed: _Statistics,
) -> Unmasking:
    """The completions of sentence `s`.

    The completion of prefix k follows the sentence up to the first prefix m ≥ k at which the model diverges from it: up
    to column m it is the prediction of the forward pass over the sentence, after it the computed row of prefix m.
    """
    t = given.shape[0]
    prefix, column = np.arange(1, t)[:, None], np.arange(t)[None, :]
    stops = np.where(diverges[: t - 1], np.arange(1, t), t - 1)
    m = np.minimum.accumulate(stops[::-1])[::-1][:, None]
    row_of = np.zeros(t, np.int64)
    own = np.flatnonzero(rows.sentence == s)
    row_of[rows.prefix[own]] = own
    from_forward = column <= m
    before = np.broadcast_to(np.maximum(column - 1, 0), from_forward.shape)

    def merge(forward: NDArray[_Number], generated: NDArray[_Number]) -> NDArray[_Number]:
        predicted = forward[s][before]
        return np.where(from_forward, predicted, generated[row_of[m], column]) if own.size else predicted

    is_given = column < prefix
    return Unmasking(
        np.where(is_given, given, merge(first.tokens, computed.tokens)),
        np.where(is_given, np.float32(np.nan), merge(first.nll, computed.nll)),
        np.where(is_given, np.float32(np.nan), merge(first.entropy, computed.entropy)),
    )


def unmask_scores(results: Sequence[Unmasking]) -> Sentences:
    """NLL, entropy and number of the t(t−1)/2 tokens that were generated for all prefixes of each sentence.

    Parameters
    ----------
    results
        From `unmask`. `greedy` of the scores is True: every token is the likeliest one.
    """
    return Sentences(
        nll=np.array([result.per_prefix(result.nll).sum() for result in results], dtype=np.float64),
        entropy=np.array([result.per_prefix(result.entropy).sum() for result in results], dtype=np.float64),
        tokens=np.array([result.prefixes * (result.prefixes + 1) // 2 for result in results], dtype=np.int64),
        greedy=np.ones(len(results), dtype=np.bool_),
    )


def prefix_curves(results: Sequence[Unmasking]) -> dict[str, NDArray[np.float64]]:
    """Means over sentences by prefix length k = 1 … K, where K is that of the longest sentence.

    Parameters
    ----------
    results
        From `unmask`.

    Returns
    -------
    dict
        Arrays of shape (K,), float64: ``nll_mean`` and ``entropy`` (nats), means over the valid sentences of more than
        k tokens of their NLL and entropy per generated token, NaN where there is no such sentence; ``sentences``, the
        number of these sentences.
    """
    scores = unmask_scores(results)
    valid = valid_sentences(scores.nll, scores.tokens)
    longest = max((result.prefixes for result in results), default=0)
    sums = np.zeros((2, longest))
    sentences = np.zeros(longest)
    for result, good in zip(results, valid, strict=True):
        if good:
            k = result.prefixes
            generated = np.arange(k, 0, -1)
            sums[0, :k] += result.per_prefix(result.nll) / generated
            sums[1, :k] += result.per_prefix(result.entropy) / generated
            sentences[:k] += 1
    with np.errstate(invalid="ignore"):
        mean = sums / sentences
    return {"nll_mean": mean[0], "entropy": mean[1], "sentences": sentences}


def illustrate(
    model: PreTrainedModel, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[Completion]:
    """The completions of one phrase from each of its prefixes: the paper's Fig 5.

    Parameters
    ----------
    model
        A model in evaluation mode.
    tokens
        The phrase, at least two token ids.
    decode
        Text of token ids.
    """
    (result,) = unmask(model, [tokens])
    generated = np.arange(result.prefixes, 0, -1)
    nll = result.per_prefix(result.nll) / generated
    entropy = result.per_prefix(result.entropy) / generated
    with np.errstate(over="ignore"):
        perplexity = np.exp(nll)
    lines = []
    for k, row in enumerate(result.tokens.tolist(), start=1):
        whole = decode(row)
        # A prefix that ends inside a character is decoded with a sign in its place: it ends before the character.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(decode(row[:k]), whole, strict=False))
        given = "".join(character for character, _ in same)
        lines.append(Completion(k, given, whole[len(given) :], float(perplexity[k - 1]), float(entropy[k - 1])))
    return lines
