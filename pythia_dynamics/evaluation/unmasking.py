"""Perplexity by causal unmasking: that of the text which the model generates itself (Garden, §4.2.2).

For every prefix length k of a sentence of t tokens, 1 ≤ k < t, the model completes the sentence greedily to t
tokens; the perplexity is that of the t − k tokens generated. As in ``generate(do_sample=False)``, the first of equally
likely tokens is taken; unlike there, an end-of-text token does not stop a completion, which always reaches t tokens.

Generated one by one these are t(t−1)/2 tokens for a sentence. Here all prefixes of all sentences of a batch are
completed in lockstep: at position p every active row has length p, so there is neither padding nor a mask, but for the
rounded shapes of a GPU (`pythia_dynamics.evaluation.generation`). The row of prefix p starts with the cache of one
forward pass over the sentence, which also gives the first token of every completion. A prefix whose first generated
token is the next token of the sentence continues exactly as the next longer prefix does, and is not computed a second
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from pythia_dynamics.evaluation.batching import Batch, Cost, evaluate_in_batches, no_report, plan
from pythia_dynamics.evaluation.generation import Completions, Generator, Rows
from pythia_dynamics.evaluation.memory import cached_positions_budget, free_cached_memory, is_out_of_memory
from pythia_dynamics.evaluation.products import packed_linear_layers
from pythia_dynamics.evaluation.scoring import Sentences, head_of, head_statistics, right_pad, valid_sentences
from pythia_dynamics.evaluation.settings import Products

__all__ = [
    "Completion",
    "Unmasker",
    "Unmasking",
    "default_cached_positions",
    "illustrate",
    "prefix_curves",
    "unmask",
    "unmask_scores",
]

_Number = TypeVar("_Number", np.int64, np.float32)


@dataclass(frozen=True, slots=True)
class Unmasking(Completions):
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
        Bound on the key-value positions held at once: a row of the length of its sentence for each prefix, and one for
        the sentence. None takes what fits in 1 GiB, on CUDA in 8 GiB. The prefixes of a sentence that needs more are
        completed in several waves, of one row at least. It is halved when memory is short.
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
    return Unmasker(model).unmask(sequences, batch_tokens=batch_tokens, reduced=reduced)


def default_cached_positions(model: PreTrainedModel) -> int:
    """Key-value positions held at once, where the caller gives no number."""
    config, weight = model.config, head_of(model).weight
    bytes_per_position = int(2 * config.num_hidden_layers * config.hidden_size * weight.element_size())
    return cached_positions_budget(weight.device, bytes_per_position)


class Unmasker:
    """Completes the prefixes of sentences with one model, of which only the weights change between calls.

    On CUDA it keeps the memory and the captured graphs of its steps for further calls, so that those of one checkpoint
    serve all others.

    Parameters
    ----------
    model
        A model in evaluation mode.
    generator
        Computes the completions; None chooses by device.
    products
        The linear layers on a CPU, as for `packed_layers`.
    """

    def __init__(
        self, model: PreTrainedModel, generator: Generator | None = None, *, products: Products = "auto"
    ) -> None:
        self.model = model
        self.generator = generator
        self.products = products

    def unmask(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        batch_tokens: int | None = None,
        reduced: Callable[[int], None] = no_report,
    ) -> list[Unmasking]:
        """As the function `unmask`."""
        device = head_of(self.model).weight.device
        results = [Unmasking.empty((0, len(sequence))) for sequence in sequences]
        work = [i for i, sequence in enumerate(sequences) if len(sequence) > 1]

        def cost(count: int, width: int) -> int:
            return (count + shapes.rows(count * width)) * shapes.width(width)

        def evaluate(batch: Batch, budget: int) -> list[Unmasking]:
            self._reserve(lengths, budget, cost)
            return list(self._complete([sequences[work[i]] for i in batch.members], budget))

        def free() -> None:
            self._release()
            free_cached_memory(device)

        lengths = [len(sequences[i]) for i in work]
        budget = default_cached_positions(self.model) if batch_tokens is None else batch_tokens
        with packed_linear_layers(self.model, self.products), torch.inference_mode():
            if self.generator is None:
                self.generator = Generator.for_device(self.model)
            shapes = self.generator.shapes
            for batch, done in evaluate_in_batches(
                lengths,
                budget,
                evaluate,
                out_of_memory=is_out_of_memory,
                free=free,
                reduced=reduced,
                cost=cost,
                least=lambda width: 2 * shapes.width(width),  # one row at a time
            ):
                for member, unmasking in zip(batch.members, done, strict=True):
                    results[work[member]] = unmasking
            if self.generator.graphs is None:
                self._release()
        return results

    def _reserve(self, lengths: Sequence[int], budget: int, cost: Cost) -> None:
        """Take the memory of the largest batch with the first one, where captured steps hold its addresses."""
        if self.generator is None or self.generator.graphs is None:
            return
        shapes = self.generator.shapes
        sizes = [(len(batch.members), batch.width) for batch in plan(lengths, budget, cost)]
        rows = max(min(shapes.rows(count * width), budget // shapes.width(width)) for count, width in sizes)
        self.generator.reserve(rows, min(budget, max(cost(count, width) for count, width in sizes)))

    def _release(self) -> None:
        if self.generator is not None:
            self.generator.release()

    def _complete(self, sentences: Sequence[Sequence[int]], budget: int) -> Iterator[Unmasking]:
        """Complete all prefixes of a batch of sentences, each of at least two tokens, in waves within a budget."""
        assert self.generator is not None
        model, generator = self.model, self.generator
        lengths = np.array([len(sentence) for sentence in sentences])
        count, width = len(sentences), int(lengths.max())
        tokens = right_pad(sentences, head_of(model).weight.device)
        cache = DynamicCache()
        hidden = model.base_model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True).last_hidden_state
        after = head_statistics(model, hidden.reshape(count * (width - 1), -1))
        del hidden
        # Entry [s, k - 1] belongs to the token that follows the prefix of k tokens of sentence s.
        top, nll, entropy = (values.view(count, width - 1) for values in (after.top, after.nll, after.entropy))
        first = Completions(top.cpu().numpy(), nll.cpu().numpy(), entropy.cpu().numpy())
        given = tokens.cpu().numpy()
        diverges = first.tokens != given[:, 1:]
        rows = _rows_to_compute(lengths, diverges)
        waves = _waves(len(rows), generator.shapes.most_rows(budget // generator.shapes.width(width) - count))
        parts = [generator.complete(cache, rows[part], width, top) for part in waves]
        del cache  # of a long text it is as large as what follows
        computed = Completions.concatenated(parts, width)
        for s, t in enumerate(lengths):
            yield _assemble(s, given[s, :t], diverges[s], first, rows, computed)


def _rows_to_compute(lengths: NDArray[np.int64], diverges: NDArray[np.bool_]) -> Rows:
    """Prefixes whose completion differs from the sentence at its first token and has further tokens."""
    prefix = np.arange(1, diverges.shape[1] + 1)
    wanted = diverges & (prefix < lengths[:, None] - 1)
    index, sentence = np.nonzero(wanted.T)
    return Rows(sentence, index + 1, lengths[sentence] - 1)


def _waves(total: int, most: int) -> list[slice]:
    """The rows that are computed together: as few parts of about equal size as there can be of at most `most`."""
    parts = -(-total // most)
    bounds = [total * part // max(1, parts) for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _assemble(
    s: int,
    given: NDArray[np.int64],
    diverges: NDArray[np.bool_],
    first: Completions,
    rows: Rows,
    computed: Completions,
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
