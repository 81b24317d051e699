"""The unigram and the bigram distribution of a text, and their Kullback-Leibler divergence to the model.

KL(n-gram ‖ model) as in the code of Belrose et al. (arXiv 2402.04362): it is finite without smoothing, because a token
that the text does not have contributes 0. KL(model ‖ n-gram) would be infinite there. The bigram distribution of a
position is that of the tokens that follow its token anywhere in the text, this position included; so nothing is
smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["NGrams", "bigram_energy", "count_ngrams", "unigram_energy"]

_PAIRS = 1 << 20
"""Pairs of a position and a successor whose logits are read at once: with indices and values, 20 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class NGrams:
    """Unigram and bigram distributions of a text.

    Parameters
    ----------
    tokens
        The U tokens that occur, ascending, int64, shape (U,).
    unigram
        Probability of each, float64, shape (U,).
    starts
        Where the successors of each token begin and end, int64, shape (V + 1,).
    successors
        The B different successors of all tokens one after the other, ascending for each, int64, shape (B,).
    bigram
        Probability of each given its token, float64, shape (B,).
    entropy
        Of the unigram distribution, nats.
    bigram_entropy
        Of the distribution after each token, nats, float64, shape (V,); 0 for a token without a successor.
    """

    tokens: NDArray[np.int64]
    unigram: NDArray[np.float64]
    starts: NDArray[np.int64]
    successors: NDArray[np.int64]
    bigram: NDArray[np.float64]
    entropy: float
    bigram_entropy: NDArray[np.float64]


def count_ngrams(sequences: Sequence[Sequence[int]], vocabulary: int) -> NGrams:
    """Count the tokens, and the pairs of neighbouring tokens, of passages.

    Parameters
    ----------
    sequences
        Token ids of each passage, below `vocabulary`. No pair goes across two passages.
    vocabulary
        Number V of tokens.
    """
    arrays = [np.asarray(sequence, np.int64) for sequence in sequences]
    joined = np.concatenate([np.empty(0, np.int64), *arrays])
    tokens, counts = np.unique(joined, return_counts=True)
    unigram = counts / max(len(joined), 1)
    codes = np.concatenate([np.empty(0, np.int64), *(each[:-1] * vocabulary + each[1:] for each in arrays)])
    pairs, pair_counts = np.unique(codes, return_counts=True)
    first, successors = np.divmod(pairs, vocabulary)
    starts = np.searchsorted(first, np.arange(vocabulary + 1)).astype(np.int64)
    bigram = pair_counts / np.bincount(first, weights=pair_counts, minlength=vocabulary)[first]
    bigram_entropy = np.bincount(first, weights=-bigram * np.log(bigram), minlength=vocabulary).astype(np.float64)
    entropy = float(-(unigram * np.log(unigram)).sum())
    return NGrams(tokens, unigram, starts, successors.astype(np.int64), bigram, entropy, bigram_entropy)


def unigram_energy(logits: torch.Tensor, tokens: torch.Tensor, unigram: torch.Tensor) -> torch.Tensor:
    """Σ_b p(b) ℓ_b: the mean logit of the tokens of a text.

    KL(p ‖ model) is ln Σ_b exp ℓ_b less this and less the entropy of p.

    Parameters
    ----------
    logits
        Logits ℓ, shape (N, V), float32.
    tokens, unigram
        Those of `NGrams`, on the same device, the second in the dtype of the logits.

    Returns
    -------
    Tensor
        Shape (N,). The logit of a token that the text does not have is not read: −∞ there does no harm.
    """
    return (logits[:, tokens] * unigram).sum(dim=-1)


def bigram_energy(logits: torch.Tensor, ngrams: NGrams, previous: NDArray[np.int64]) -> NDArray[np.float64]:
    """Σ_b p(b | a) ℓ_b for the token a of each position: the mean logit of what follows it in a text.

    Summed on the host in float64: no atomic additions, so a GPU gives the same bits each time.

    Parameters
    ----------
    logits
        Logits ℓ, shape (N, V).
    ngrams
        The distributions. Each token of `previous` has a successor in them.
    previous
        The token a of each position, int64, shape (N,).

    Returns
    -------
    array of float64, shape (N,)
    """
    counts = ngrams.starts[previous + 1] - ngrams.starts[previous]
    ends = np.cumsum(counts)
    parts = []
    row = 0
    while row < len(previous):
        before = ends[row] - counts[row]
        stop = max(row + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        begins = ends[row:stop] - counts[row:stop] - before
        rows = np.repeat(np.arange(row, stop), counts[row:stop])
        at = np.arange(len(rows)) + np.repeat(ngrams.starts[previous[row:stop]] - begins, counts[row:stop])
        index = torch.from_numpy(np.stack([rows, ngrams.successors[at]])).to(logits.device)
        values = logits[index[0], index[1]].cpu().double().numpy()
        parts.append(np.add.reduceat(values * ngrams.bigram[at], begins))
        row = stop
    return np.concatenate([np.empty(0), *parts])
