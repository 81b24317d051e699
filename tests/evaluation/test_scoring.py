"""Constants and edges of scoring: what a valid perplexity is, and each column by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.tiny_models import model

from pythia_dynamics.evaluation import scoring
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.last_word import last_word_row
from pythia_dynamics.evaluation.scoring import (
    Sentences,
    default_batch_tokens,
    head_statistics,
    right_pad,
    score,
    summarise,
    valid_sentences,
)


def sentences(nll: list[float], entropy: list[float], tokens: list[int]) -> Sentences:
    return Sentences(np.array(nll), np.array(entropy), np.array(tokens), np.ones(len(nll), np.bool_))


@pytest.mark.parametrize(
    ("nll", "tokens", "counted"),
    [
        (0.0, 1, "sentences"),  # a perplexity of exactly 1
        (-1e-12, 1, "nonfinite"),  # below 1 by rounding is below 1
        (-1e-12, 1000, "nonfinite"),
        (2.0, 0, None),  # nothing scored
        (0.0, 0, None),
        (709.0, 1, "sentences"),  # the largest whole NLL whose exponential is a float64
        (710.0, 1, "overflow"),
        (7090.0, 10, "sentences"),  # per token, not per sentence
        (7100.0, 10, "overflow"),
        (math.inf, 3, "nonfinite"),
        (-math.inf, 3, "nonfinite"),
        (math.nan, 3, "nonfinite"),
    ],
)
def test_a_perplexity_is_finite_and_at_least_one(nll: float, tokens: int, counted: str | None) -> None:
    valid = counted == "sentences"
    assert valid_sentences(np.array([nll]), np.array([tokens])).tolist() == [valid]
    row = summarise(sentences([nll], [1.0], [tokens]))
    for name in ("sentences", "nonfinite", "overflow"):
        assert row[name] == int(name == counted)
    assert row["tokens"] == (tokens if valid else 0)
    assert math.isfinite(row["ppl_mean"]) == valid


def test_each_column_by_hand() -> None:
    row = summarise(sentences([2.0, 9.0, 8.0, math.nan, 0.0], [1.0, 6.0, 2.0, 5.0, 7.0], [1, 3, 2, 4, 0]))
    # NLL per token 2, 3 and 4; six tokens with 19 nats; entropy per token 1, 2 and 1.
    assert row == {
        "ppl_mean": pytest.approx((math.exp(2) + math.exp(3) + math.exp(4)) / 3, rel=1e-14),
        "ppl_median": pytest.approx(math.exp(3), rel=1e-14),
        "ppl_corpus": pytest.approx(math.exp(19 / 6), rel=1e-14),
        "nll_mean": pytest.approx(3.0, rel=1e-14),
        "entropy": pytest.approx(4 / 3, rel=1e-14),
        "ppl_mean_se": pytest.approx(np.std(np.exp([2, 3, 4]), ddof=1) / math.sqrt(3), rel=1e-14),
        # Of the ratio 19/6: residuals 2 - 19/6, 9 - 57/6, 8 - 38/6 of sentences of 2 tokens in the mean.
        "ppl_corpus_se": pytest.approx(
            math.exp(19 / 6) * math.sqrt(((-7 / 6) ** 2 + (-1 / 2) ** 2 + (5 / 3) ** 2) / 2 / 3) / 2, rel=1e-13
        ),
        "nll_mean_se": pytest.approx(1 / math.sqrt(3), rel=1e-14),
        "sentences": 3,
        "nonfinite": 1,
        "overflow": 0,
        "tokens": 6,
    }
    assert all(type(row[name]) is int for name in ("sentences", "nonfinite", "overflow", "tokens"))


def test_standard_errors_are_the_spread_of_repeated_corpora() -> None:
    """1,000 corpora of 200 sentences: the spread of each column, and the mean of what the column with `_se` says."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, size=(1000, 200))
    nll = tokens * rng.normal(2.0, 0.4, size=tokens.shape) + rng.normal(0, 2, size=tokens.shape)
    greedy = rng.random(tokens.shape) < 0.3
    for name in ("ppl_mean", "ppl_corpus", "nll_mean", "ppl", "accuracy"):
        rows = []
        for i in range(len(tokens)):
            scores = Sentences(nll[i], nll[i], tokens[i], greedy[i])
            words = Sentences(nll[i] / tokens[i], nll[i], np.ones(200, np.int64), greedy[i])
            rows.append(summarise(scores) if name.startswith(("ppl_", "nll")) else last_word_row(words))
        spread, stated = np.std([row[name] for row in rows]), np.mean([row[f"{name}_se"] for row in rows])
        assert stated == pytest.approx(spread, rel=0.1), name  # the spread of 1,000 has an error of 2.2 %
    assert math.isnan(summarise(sentences([2.0], [1.0], [3]))["nll_mean_se"])


def test_the_last_word_is_scored_per_word() -> None:
    nll = np.array([1.0, 3.0, 710.0, 5.0, -0.1])
    tokens, greedy = np.array([1, 2, 8, 0, 1]), np.array([True, False, True, True, True])
    row = last_word_row(Sentences(nll, np.zeros(5), tokens, greedy))
    assert row == {
        "ppl": pytest.approx(math.exp(2), rel=1e-14),
        "accuracy": 0.5,
        "ppl_se": pytest.approx(math.exp(2), rel=1e-14),  # the NLL 1 and 3: standard deviation √2, divided by √2
        "accuracy_se": pytest.approx(0.5, rel=1e-14),
        "sentences": 2,
        "nonfinite": 1,
        "overflow": 1,
    }


def test_a_sentence_without_scored_tokens_counts_nothing() -> None:
    scores = forward_scores(model(), [[7]])
    assert (scores.nll[0], scores.entropy[0], scores.tokens[0], scores.greedy[0]) == (0, 0, 0, True)


def test_only_tokens_from_the_start_on_are_scored() -> None:
    weights, sentence = model(), [5, 9, 200, 31, 77]
    with torch.inference_mode():
        logs = weights(torch.tensor([sentence])).logits[0].double().log_softmax(-1)
    for start in (1, 2, 4):
        (nll,) = score(weights, [sentence], [start]).nll
        expected = -sum(float(logs[i - 1, sentence[i]]) for i in range(start, 5))
        assert nll == pytest.approx(expected, rel=1e-5)


def test_padding_is_on_the_right() -> None:
    padded = right_pad([[1, 2, 3], [], [4]], torch.device("cpu"))
    assert padded.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert padded.dtype == torch.int64


@pytest.mark.parametrize(("logit_rows", "cached_rows"), [(0, 0), (1, 1), (500, 2), (7, 500)])
def test_chunks_of_any_size_give_the_same(logit_rows: int, cached_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, generator = model(), torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 32, generator=generator)  # more states than the vocabulary has entries
    targets = torch.randint(0, 304, (700,), generator=generator)
    monkeypatch.setitem(scoring._LOGIT_BYTES, "cpu", 4 * 304 * logit_rows)
    monkeypatch.setattr(scoring, "_CACHED_BYTES", 4 * 304 * cached_rows)
    with torch.inference_mode():
        logs = (hidden.double() @ weights.lm_head.weight.double().t()).log_softmax(-1)
        found, likeliest = head_statistics(weights, hidden, targets), head_statistics(weights, hidden)
    for name, expected in (("nll", -logs.gather(1, targets[:, None])[:, 0]), ("entropy", -(logs.exp() * logs).sum(-1))):
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(likeliest.nll, -logs.amax(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.top, logs.argmax(-1))


def test_tokens_read_at_once_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    by_device = {kind: default_batch_tokens(torch.device(kind)) for kind in ("cpu", "mps", "cuda", "meta")}
    assert by_device == {"cpu": 2048, "mps": 4096, "cuda": 16384, "meta": 2048}
    weights, sizes = model(), []
    hook = weights.gpt_neox.register_forward_pre_hook(
        lambda _, __, options: sizes.append(len(options["input_ids"])), with_kwargs=True
    )
    forward_scores(weights, [[1] * 48] * 50)
    hook.remove()
    assert sizes == [42, 8]  # 42 · 48 ≤ 2048 < 43 · 48


def test_logits_of_pythia_are_made_and_read_in_blocks_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model()
    weights.set_output_embeddings(torch.nn.Linear(32, 50304, bias=False))
    made, read = [], []
    statistics = scoring._statistics
    weights.lm_head.register_forward_pre_hook(lambda _, hidden: made.append(len(hidden[0])))
    monkeypatch.setattr(
        scoring, "_statistics", lambda logits, targets: read.append(len(logits)) or statistics(logits, targets)
    )
    with torch.inference_mode():
        head_statistics(weights, torch.zeros(170, 32))
        assert made == [166, 4]  # 166 · 4 · 50304 ≤ 32 MiB < 167 · 4 · 50304
        assert read == [*[20] * 8, 6, 4]  # 20 · 4 · 50304 ≤ 4 MiB < 21 · 4 · 50304
        made.clear(), read.clear()
        monkeypatch.setitem(scoring._LOGIT_BYTES, "cpu", 2 * 4 * 50304)
        monkeypatch.setattr(scoring, "_CACHED_BYTES", 1)
        head_statistics(weights, torch.zeros(2, 32))
        assert (made, read) == ([2], [1, 1])  # at least one row, however small the budget
        made.clear(), read.clear()
        monkeypatch.setitem(scoring._LOGIT_BYTES, "cpu", 1)
        head_statistics(weights, torch.zeros(2, 32))
    assert made == read == [1, 1]


@pytest.mark.parametrize("vocab", [50304, 50257, 512, 513, 63 * 521, 64 * 521])
def test_the_maximum_takes_blocks_of_64_to_512_columns(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    widths, amax = [], torch.Tensor.amax
    monkeypatch.setattr(torch.Tensor, "amax", lambda self, dim: widths.append(self.shape[-1]) or amax(self, dim=dim))
    scoring._max_and_argmax(torch.zeros(2, vocab))
    divisors = [width for width in range(64, 513) if vocab % width == 0]
    assert widths == [max(divisors, default=vocab)]


def test_scores_keep_no_attention_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, caches = model(), []
    hook = weights.gpt_neox.register_forward_hook(lambda _, __, output: caches.append(output.past_key_values))
    score(weights, [[1, 2, 3]], [1])
    hook.remove()
    assert caches == [None]
