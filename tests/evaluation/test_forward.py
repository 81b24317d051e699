from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.tiny_models import TEXTS, encode, model
from transformers import GPTNeoXForCausalLM

from pythia_dynamics.evaluation import scoring
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.scoring import Sentences, summarise

SENTENCES = [encode(text) for text in TEXTS]


def plain_loop(weights: GPTNeoXForCausalLM, sentence: list[int]) -> tuple[float, float]:
    """NLL per token and entropy per token of one sentence, by Hugging Face's own loss and the definition."""
    ids = torch.tensor([sentence])
    with torch.no_grad():
        output = weights(input_ids=ids, labels=ids)
    probabilities = output.logits[0, :-1].double().softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean()
    return float(output.loss), float(entropy)


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_each_sentence_as_in_a_plain_loop(batch_tokens: int) -> None:
    weights = model()
    scores = forward_scores(weights, SENTENCES, batch_tokens=batch_tokens)
    assert scores.tokens.tolist() == [len(sentence) - 1 for sentence in SENTENCES]
    expected = np.array([plain_loop(weights, s) for s in SENTENCES if len(s) > 1])
    some = scores.tokens > 0
    np.testing.assert_allclose(scores.nll[some] / scores.tokens[some], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(scores.entropy[some] / scores.tokens[some], expected[:, 1], rtol=1e-5)
    row = summarise(scores)
    perplexities = np.exp(expected[:, 0])
    assert row["ppl_mean"] == pytest.approx(perplexities.mean(), rel=1e-5)
    assert row["ppl_median"] == pytest.approx(np.median(perplexities), rel=1e-5)
    total = (expected[:, 0] * scores.tokens[some]).sum() / scores.tokens.sum()
    assert row["ppl_corpus"] == pytest.approx(math.exp(total), rel=1e-5)
    assert row["nll_mean"] == pytest.approx(expected[:, 0].mean(), rel=1e-5)
    assert row["tokens"] == scores.tokens.sum()
    assert (row["sentences"], row["nonfinite"]) == (some.sum(), 0)


def test_logits_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model()
    whole = forward_scores(weights, SENTENCES)
    monkeypatch.setitem(scoring._LOGIT_BYTES, "cpu", 4 * 304 * 3)
    monkeypatch.setattr(scoring, "_CACHED_BYTES", 4 * 304 * 2)
    seen = []
    weights.lm_head.register_forward_pre_hook(lambda _, hidden: seen.append(len(hidden[0])))
    chunked = forward_scores(weights, SENTENCES)
    assert max(seen) == 3
    assert sum(seen) == whole.tokens.sum()
    np.testing.assert_allclose(chunked.nll, whole.nll, rtol=1e-6)


@pytest.mark.parametrize("vocab", [1, 65, 304, 1024, 1031, 50304])
def test_the_largest_logit_is_the_first_of_equals(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(0, 3, (9, vocab), generator=generator).float()
    logits[1] = 0
    logits[2, vocab // 2] = torch.inf
    logits[3, vocab // 3 :: 7] = torch.nan
    logits[4] = -torch.inf
    for layout in (logits, logits.t().contiguous().t()):
        largest, top = scoring._max_and_argmax(layout)
        expected = logits.max(dim=-1)
        torch.testing.assert_close(largest, expected.values, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(top, logits.argmax(dim=-1))


def test_a_head_of_zeros_gives_the_uniform_distribution() -> None:
    weights = model()
    torch.nn.init.zeros_(weights.lm_head.weight)
    row = summarise(forward_scores(weights, SENTENCES))
    for column in ("ppl_mean", "ppl_median", "ppl_corpus"):
        assert row[column] == pytest.approx(304, rel=1e-6)
    assert row["entropy"] == pytest.approx(math.log(304), rel=1e-6)


def test_a_model_that_is_certain_has_perplexity_one_not_less() -> None:
    weights = model()
    torch.nn.init.zeros_(weights.lm_head.weight)
    with torch.no_grad():
        weights.gpt_neox.final_layer_norm.weight.zero_()
        weights.gpt_neox.final_layer_norm.bias.fill_(1.0)
        weights.lm_head.weight[7] = 3.0  # logit 96 for token 7, 0 for the others
    scores = forward_scores(weights, [[7] * 9, [5, 7]])
    row = summarise(scores)
    assert (scores.nll >= 0).all()
    assert row["ppl_mean"] == 1.0
    assert row["nonfinite"] == 0
    assert scores.greedy.all()


def test_sentences_without_a_token_to_score() -> None:
    scores = forward_scores(model(), [[], [3], [3, 4]])
    assert scores.tokens.tolist() == [0, 0, 1]
    assert summarise(scores)["sentences"] == 1
    nothing = summarise(forward_scores(model(), [[], [3]]))
    assert nothing["sentences"] == nothing["nonfinite"] == 0
    assert math.isnan(nothing["ppl_mean"])


def test_weights_that_are_nan_are_counted_not_dropped() -> None:
    weights = model()
    with torch.no_grad():
        weights.gpt_neox.embed_in.weight[encode("moon")[-1]] = torch.nan
    scores = forward_scores(weights, SENTENCES)
    row = summarise(scores)
    spoilt = sum(not np.isfinite(value) for value in scores.nll)
    scored = (scores.tokens > 0).sum()
    assert 0 < spoilt < scored
    assert (row["nonfinite"], row["sentences"]) == (spoilt, scored - spoilt)
    assert math.isfinite(row["ppl_mean"])
    torch.nn.init.constant_(weights.lm_head.weight, torch.nan)
    row = summarise(forward_scores(weights, SENTENCES))
    assert (row["nonfinite"], row["sentences"]) == (scored, 0)
    assert all(math.isnan(row[name]) for name in ("ppl_mean", "ppl_median", "ppl_corpus", "nll_mean", "entropy"))


def test_what_is_no_perplexity_is_nonfinite() -> None:
    nll = np.array([2.0, -0.5, np.inf, np.nan, 4.0, 0.0, 800.0])
    tokens = np.array([1, 1, 1, 1, 2, 0, 1])
    row = summarise(Sentences(nll, np.ones(7), tokens, np.ones(7, np.bool_)))
    assert (row["sentences"], row["nonfinite"], row["overflow"], row["tokens"]) == (2, 3, 1, 3)
    assert row["ppl_mean"] == row["ppl_corpus"] == pytest.approx(math.exp(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_log_softmax_is_float32(dtype: torch.dtype) -> None:
    weights = model()
    exact = forward_scores(weights, SENTENCES)
    halved = forward_scores(weights.to(dtype), SENTENCES)  # type: ignore[arg-type]
    some = exact.tokens > 0
    # Eight bits of mantissa: logits of size 10 are off by 0.03; the sum over a sentence averages.
    np.testing.assert_allclose(halved.nll[some] / halved.tokens[some], exact.nll[some] / exact.tokens[some], rtol=0.02)
    steps = 8 * (halved.nll[some] % 1)
    assert not np.allclose(steps, np.round(steps), atol=1e-3)  # a bfloat16 log-softmax would land on few values


def test_float16_overflow_is_reported() -> None:
    weights = model()
    layer = weights.gpt_neox.layers[0]
    with torch.no_grad():  # activations of 10^6 between two matrices, harmless in float32
        layer.mlp.dense_h_to_4h.weight.normal_(std=1e4)
        layer.post_attention_layernorm.weight.fill_(20.0)
        layer.mlp.dense_4h_to_h.weight.fill_(1e-6)
    assert summarise(forward_scores(weights, SENTENCES))["nonfinite"] == 0
    row = summarise(forward_scores(weights.half(), SENTENCES))
    assert row["nonfinite"] == len(SENTENCES)
    assert math.isnan(row["ppl_mean"])


@pytest.mark.filterwarnings("ignore:out of memory; goes on with")
def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model()
    expected = forward_scores(weights, SENTENCES)
    sizes = []
    whole = type(weights.gpt_neox).forward

    def forward(self: torch.nn.Module, input_ids: torch.Tensor, **options: object) -> object:
        sizes.append(input_ids.shape[0])
        if input_ids.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(weights.gpt_neox), "forward", forward)
    scores = forward_scores(weights, SENTENCES)
    assert sizes[:3] == [6, 3, 1]
    assert sum(size for size in sizes if size <= 2) == len(SENTENCES)
    np.testing.assert_allclose(scores.nll, expected.nll, rtol=1e-6)
