"""Unigrams and bigrams of a text against counting with dictionaries."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from pythia_dynamics.evaluation import ngrams
from pythia_dynamics.evaluation.ngrams import bigram_energy, count_ngrams, unigram_energy

RNG = np.random.default_rng(0)
PASSAGES = [RNG.integers(3, 17, size).tolist() for size in (40, 1, 0, 25, 2)]


def test_the_probabilities_are_those_of_counting() -> None:
    found = count_ngrams(PASSAGES, 20)
    unigram = Counter(token for passage in PASSAGES for token in passage)
    total = sum(unigram.values())
    assert found.tokens.tolist() == sorted(unigram)
    assert found.unigram.tolist() == pytest.approx([unigram[token] / total for token in sorted(unigram)])
    assert found.entropy == pytest.approx(-sum(n / total * math.log(n / total) for n in unigram.values()))
    pairs = Counter(pair for passage in PASSAGES for pair in pairwise(passage))
    for token in range(20):
        after = {second: n for (first, second), n in sorted(pairs.items()) if first == token}
        part = slice(found.starts[token], found.starts[token + 1])
        assert found.successors[part].tolist() == list(after)
        share = [n / sum(after.values()) for n in after.values()]
        assert found.bigram[part].tolist() == pytest.approx(share)
        assert found.bigram_entropy[token] == pytest.approx(-sum(p * math.log(p) for p in share))


def test_a_text_without_a_pair() -> None:
    texts: list[list[list[int]]] = [[], [[]], [[3], [5]]]
    for passages in texts:
        found = count_ngrams(passages, 8)
        assert len(found.successors) == 0
        assert found.starts.tolist() == [0] * 9
        assert found.tokens.tolist() == sorted(token for passage in passages for token in passage)


@pytest.mark.parametrize("pairs", [1, 7, 30, 1 << 20])
def test_mean_logits_whatever_is_read_at_once(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_PAIRS", pairs)
    found = count_ngrams(PASSAGES, 20)
    previous = np.array([token for passage in PASSAGES for token in passage[:-1]])
    logits = torch.from_numpy(RNG.normal(size=(len(previous), 20)))
    dense = np.zeros((20, 20))
    for token in range(20):
        part = slice(found.starts[token], found.starts[token + 1])
        dense[token, found.successors[part]] = found.bigram[part]
    expected = (dense[previous] * logits.numpy()).sum(axis=1)
    np.testing.assert_allclose(bigram_energy(logits, found, previous), expected, atol=1e-14)
    p = np.zeros(20)
    p[found.tokens] = found.unigram
    energy = unigram_energy(logits, torch.from_numpy(found.tokens), torch.from_numpy(found.unigram))
    np.testing.assert_allclose(energy.numpy(), logits.numpy() @ p, atol=1e-14)


def test_no_positions() -> None:
    assert bigram_energy(torch.empty(0, 20), count_ngrams(PASSAGES, 20), np.empty(0, np.int64)).shape == (0,)


def test_a_logit_of_minus_infinity_counts_where_the_text_has_its_token_only() -> None:
    found = count_ngrams([[1, 2, 1, 2, 1]], 5)
    tokens, unigram = torch.from_numpy(found.tokens), torch.from_numpy(found.unigram).float()
    logits = torch.zeros(1, 5)
    logits[0, 4] = -torch.inf
    assert unigram_energy(logits, tokens, unigram).tolist() == [0]
    assert bigram_energy(logits, found, np.array([1])).tolist() == [0]
    logits[0, 2] = -torch.inf
    assert unigram_energy(logits, tokens, unigram).tolist() == [-math.inf]
    assert bigram_energy(logits, found, np.array([1])).tolist() == [-math.inf]
    assert bigram_energy(logits, found, np.array([2])).tolist() == [0]
