"""The last hidden states of a text: NumPy on all states of transformers, and analytic truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import SIZE, TEXTS, encode, model
from transformers import GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation import hidden_states as module
from pythia_dynamics.evaluation import scoring
from pythia_dynamics.evaluation.hidden_states import HiddenStates, hidden_states
from pythia_dynamics.evaluation.nanogpt import NanoGPTConfig, NanoGPTForCausalLM
from pythia_dynamics.evaluation.ngrams import count_ngrams

SENTENCES = [encode(text) for text in (*TEXTS, "", *TEXTS[::-1])]
VOCABULARY = 304


def nanogpt() -> PreTrainedModel:
    torch.manual_seed(3)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    return NanoGPTForCausalLM(NanoGPTConfig(**{name: SIZE[name] for name in names}, initializer_range=0.2)).eval()


def llama() -> PreTrainedModel:
    torch.manual_seed(4)
    return LlamaForCausalLM(LlamaConfig(**SIZE)).eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt-neox": lambda: model(hidden_size=64),
    "nanogpt": nanogpt,
    "llama": llama,
}


def of(weights: PreTrainedModel, sentences: Sequence[Sequence[int]] = SENTENCES, **options: Any) -> HiddenStates:
    return hidden_states(weights, sentences, count_ngrams(sentences, VOCABULARY), **options)


def slow(weights: PreTrainedModel, sentences: Sequence[Sequence[int]] = SENTENCES) -> dict[str, float]:
    """The row by the definitions: every state at once, each pair of states, dense distributions with all tokens."""
    used = [sentence for sentence in sentences if len(sentence) > 1]
    unigram, bigram = np.zeros(VOCABULARY), np.zeros((VOCABULARY, VOCABULARY))
    for sentence in sentences:
        for token in sentence:
            unigram[token] += 1
        for first, second in pairwise(sentence):
            bigram[first, second] += 1
    unigram /= unigram.sum()
    states, per_sentence = [], []
    for sentence in used:
        with torch.no_grad():
            output = weights(input_ids=torch.tensor([sentence]), output_hidden_states=True)
        states.append(output.hidden_states[-1][0, :-1].double().numpy())
        log_q = output.logits[0, :-1].double().log_softmax(-1).numpy()
        divergences = np.zeros(2)
        for token, log_predicted in zip(sentence[:-1], log_q, strict=True):
            for i, p in enumerate((unigram, bigram[token] / bigram[token].sum())):
                divergences[i] += sum(p[b] * (math.log(p[b]) - log_predicted[b]) for b in range(VOCABULARY) if p[b])
        per_sentence.append(divergences)
    h = np.concatenate(states)
    count, width = h.shape
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    cosines = unit @ unit.T
    singular = np.linalg.svd(h, compute_uv=False)
    covariance = np.linalg.svd(h - h.mean(axis=0), compute_uv=False) ** 2
    ranks = np.arange(11, min(100, min(width, count - 1) // 2) + 1)
    alpha = np.nan
    if len(ranks) >= 10:
        alpha = -np.polyfit(np.log(ranks), np.log(covariance[ranks - 1]), 1, w=np.sqrt(1 / ranks))[0]

    def entropy_rank(values: np.ndarray) -> float:
        p = values[values > 1e-13 * values.max()] / values.sum()
        return math.exp(-(p * np.log(p)).sum())

    sums, lengths = np.array(per_sentence), np.array([len(sentence) - 1 for sentence in used])
    means = sums.sum(axis=0) / count
    errors = (sums - means * lengths[:, None]).std(axis=0, ddof=1) / lengths.mean() / math.sqrt(len(used))
    return {
        "anisotropy": (cosines.sum() - count) / (count * (count - 1)),
        "rankme": entropy_rank(singular),
        "effective_rank": entropy_rank(covariance),
        "alpha": alpha,
        **dict(zip(("kl_unigram", "kl_bigram"), means, strict=True)),
        **dict(zip(("kl_unigram_se", "kl_bigram_se"), errors, strict=True)),
        "positions": count,
        "nonfinite": 0,
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_tokens", [None, 1, 60])
def test_the_row_is_that_of_the_definitions(name: str, batch_tokens: int | None) -> None:
    weights = MODELS[name]()
    found, expected = of(weights, batch_tokens=batch_tokens).values(), slow(weights)
    for column, value in expected.items():
        assert found[column] == pytest.approx(value, rel=2e-5, nan_ok=True), column
    assert math.isfinite(found["alpha"]) == (name == "gpt-neox")  # the others have 32 dimensions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    exact = of(model()).values()
    halved = of(model().to(dtype)).values()  # type: ignore[arg-type]
    for column in ("anisotropy", "rankme", "effective_rank", "kl_unigram", "kl_bigram"):
        assert halved[column] == pytest.approx(exact[column], rel=0.03), column
    again = of(model().to(dtype), batch_tokens=1).values()  # type: ignore[arg-type]
    assert again["rankme"] == pytest.approx(halved["rankme"], rel=0.01)


def test_states_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = of(model())
    monkeypatch.setattr(module, "_STATE_ROWS", 7)
    monkeypatch.setitem(scoring._LOGIT_BYTES, "cpu", 4 * VOCABULARY * 3)
    monkeypatch.setattr(scoring, "_CACHED_BYTES", 4 * VOCABULARY * 2)
    parts = of(model())
    for name, values in whole.fields().items():
        np.testing.assert_allclose(parts.fields()[name], values, rtol=1e-6, atol=1e-12)


def test_a_uniform_model_is_the_entropy_away() -> None:
    weights = model()
    torch.nn.init.zeros_(weights.lm_head.weight)
    row, text = of(weights).values(), count_ngrams(SENTENCES, VOCABULARY)
    assert row["kl_unigram"] == pytest.approx(math.log(VOCABULARY) - text.entropy, rel=1e-6)
    tokens = [token for sentence in SENTENCES for token in sentence[:-1]]
    assert row["kl_bigram"] == pytest.approx(math.log(VOCABULARY) - text.bigram_entropy[tokens].mean(), rel=1e-6)


def constant_model(row: np.ndarray) -> GPTNeoXForCausalLM:
    """A model whose hidden states are all (1, 0, …, 0), and whose logits are `row` everywhere."""
    weights = model()
    with torch.no_grad():
        weights.gpt_neox.final_layer_norm.weight.zero_()
        weights.gpt_neox.final_layer_norm.bias.zero_()
        weights.gpt_neox.final_layer_norm.bias[0] = 1
        weights.lm_head.weight.zero_()
        weights.lm_head.weight[:, 0] = torch.from_numpy(row)
    return weights


def test_the_unigram_model_is_no_distance_from_the_unigram_and_its_states_are_one() -> None:
    text = count_ngrams(SENTENCES, VOCABULARY)
    logits = np.full(VOCABULARY, -1e4)  # of tokens that the text does not have
    logits[text.tokens] = np.log(text.unigram)
    row = of(constant_model(logits)).values()
    assert row["kl_unigram"] == pytest.approx(0, abs=1e-6)
    assert row["kl_bigram"] > 0.5
    assert row["anisotropy"] == pytest.approx(1)
    assert row["rankme"] == pytest.approx(1)
    assert math.isnan(row["effective_rank"])  # the covariance is 0
    assert math.isnan(row["alpha"])
    assert (row["positions"], row["nonfinite"]) == (sum(len(s) - 1 for s in SENTENCES if s), 0)


def test_few_positions_bound_the_ranks() -> None:
    sentence = SENTENCES[0][:6]
    row = of(model(), [sentence]).values()
    assert row["positions"] == 5
    assert 1 < row["rankme"] <= 5
    assert 1 < row["effective_rank"] <= 4
    assert row["rankme_null"] <= 5
    assert row["effective_rank_null"] <= 4
    assert math.isnan(row["kl_unigram_se"])  # of one passage
    found = of(model(), [sentence])
    assert np.count_nonzero(found.moment_eigenvalues) == 5
    assert np.count_nonzero(found.covariance_eigenvalues) == 4


def test_one_position_and_none() -> None:
    row = of(model(), [SENTENCES[0][:2]]).values()
    assert (row["positions"], row["rankme"]) == (1, 1)
    assert math.isnan(row["anisotropy"])
    assert math.isnan(row["effective_rank"])
    assert row["kl_bigram"] > 0
    texts: list[list[list[int]]] = [[], [[]], [[3], []]]
    for nothing in texts:
        row = of(model(), nothing).values()
        assert (row["positions"], row["nonfinite"]) == (0, 0)
        assert all(math.isnan(value) for name, value in row.items() if name not in ("positions", "nonfinite"))


def test_states_that_are_not_finite_are_counted_and_leave_nothing_else() -> None:
    weights = model()
    token = encode("moon")[-1]
    with torch.no_grad():
        weights.gpt_neox.embed_in.weight[token] = torch.nan
    found = of(weights)
    with torch.no_grad():
        states = [weights(torch.tensor([s]), output_hidden_states=True).hidden_states[-1] for s in SENTENCES if s]
    spoilt = sum(int(each[0, :-1].isnan().any(dim=-1).sum()) for each in states)
    row = found.values()
    assert 0 < spoilt < row["positions"]
    assert row["nonfinite"] == spoilt
    assert all(math.isnan(value) for name, value in row.items() if name not in ("positions", "nonfinite"))
    assert HiddenStates.from_fields(found.fields()).values() == pytest.approx(row, nan_ok=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_are_counted(value: float) -> None:
    weights = model()
    with torch.no_grad():
        weights.lm_head.weight[SENTENCES[0][0]] = value
    row = of(weights).values()
    assert row["nonfinite"] == row["positions"] > 0
    assert math.isnan(row["rankme"])


def test_a_state_of_zeros_has_no_direction() -> None:
    weights = constant_model(np.zeros(VOCABULARY))
    with torch.no_grad():
        weights.gpt_neox.final_layer_norm.bias.zero_()
    row = of(weights).values()
    assert row["nonfinite"] == 0
    assert math.isnan(row["anisotropy"])
    assert math.isnan(row["rankme"])
    assert row["kl_unigram"] > 0


def test_out_of_memory_begins_again_with_half(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model()
    whole = of(weights).values()
    forward, seen = type(weights.gpt_neox).forward, []

    def limited(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(options["input_ids"].numel())
        if len(seen) > 1 and options["input_ids"].numel() > 60:  # the second batch fails: the first was summed
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(weights.gpt_neox), "forward", limited)
    told: list[int] = []
    with pytest.warns(UserWarning, match="out of memory"):
        found = of(weights, batch_tokens=100, reduced=told.append).values()
    assert told
    assert found == pytest.approx(whole, rel=1e-5, nan_ok=True)
    monkeypatch.setattr(scoring, "right_pad", out_of_memory)
    with pytest.raises(PythiaDynError, match="single sequence"):
        of(weights, SENTENCES[:1])


def out_of_memory(*arguments: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_fields_come_back_from_a_wider_archive() -> None:
    found = of(model())
    padded = {
        name: np.concatenate([values, np.full(5, np.nan)]) if name.endswith(("direction", "eigenvalues")) else values
        for name, values in found.fields().items()
    }
    again = HiddenStates.from_fields(padded)
    for name, values in found.fields().items():
        np.testing.assert_array_equal(again.fields()[name], values)
    assert again.values() == pytest.approx(found.values(), nan_ok=True)
