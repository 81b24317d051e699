from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import TEXTS, encode, model, tokenizer
from transformers import GPTNeoXForCausalLM

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation import generation
from pythia_dynamics.evaluation.lockstep import LockstepCache
from pythia_dynamics.evaluation.scoring import summarise
from pythia_dynamics.evaluation.unmasking import Unmasking, illustrate, prefix_curves, unmask, unmask_scores

SENTENCES = [encode(text)[:14] for text in TEXTS]


def complete(weights: Any, prefix: list[int], length: int) -> list[int]:
    """One completion by `generate`, which an end-of-text token does not stop."""
    ids = torch.tensor([prefix])
    return weights.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length - len(prefix),
        eos_token_id=None, pad_token_id=0,
    )[0].tolist()  # fmt: skip


def by_generate(weights: GPTNeoXForCausalLM, sentence: list[int]) -> list[list[int]]:
    return [complete(weights, sentence[:k], len(sentence)) for k in range(1, len(sentence))]


def check_scores(weights: GPTNeoXForCausalLM, result: Unmasking) -> None:
    """NLL and entropy of every generated token, from a forward pass over the whole completed sentence."""
    with torch.no_grad():
        logits = weights(torch.from_numpy(result.tokens)).logits[:, :-1].double()
    probabilities = logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).numpy()
    nll = -logits.log_softmax(-1).gather(2, torch.from_numpy(result.tokens)[:, 1:, None])[..., 0].numpy()
    generated = np.triu(np.ones(result.tokens.shape, bool), k=1)
    assert np.isnan(result.nll[~generated]).all()
    assert np.isnan(result.entropy[~generated]).all()
    np.testing.assert_allclose(result.nll[:, 1:][generated[:, 1:]], nll[generated[:, 1:]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.entropy[:, 1:][generated[:, 1:]], entropy[generated[:, 1:]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("batch_tokens", [1, 500, None])
def test_token_for_token_what_generate_gives(seed: int, batch_tokens: int | None) -> None:
    weights = model(seed)
    for sentence, result in zip(SENTENCES, unmask(weights, SENTENCES, batch_tokens=batch_tokens), strict=True):
        assert result.tokens.tolist() == by_generate(weights, sentence)
        if result.prefixes:
            check_scores(weights, result)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 303), max_size=9), max_size=5), st.integers(1, 400))
def test_any_mixture_of_lengths(sentences: list[list[int]], batch_tokens: int) -> None:
    weights = model(2)
    for sentence, result in zip(sentences, unmask(weights, sentences, batch_tokens=batch_tokens), strict=True):
        assert result.tokens.tolist() == by_generate(weights, sentence)


def test_prefixes_that_the_model_continues_as_given_are_not_computed_twice() -> None:
    weights = model(3)
    own = complete(weights, [9], 14)
    mixed = [*own[:6], (own[6] + 1) % 304, *complete(weights, own[:3], 14)[7:]]
    rows = []
    hook = weights.gpt_neox.register_forward_pre_hook(
        lambda _, __, options: rows.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    results = unmask(weights, [own])
    assert rows == [(1, 13)]  # one forward pass knows everything
    results += unmask(weights, [mixed])
    assert sum(count for count, width in rows[2:] if width == 1) < 12 * 13 / 2
    hook.remove()
    for sentence, result in zip((own, mixed), results, strict=True):
        assert result.tokens.tolist() == by_generate(weights, sentence)
        check_scores(weights, result)


@pytest.mark.parametrize("most", [1, 2, 5, 12])
def test_a_long_sentence_is_completed_in_waves(most: int) -> None:
    """No more rows at once than the budget has room for, and the same tokens."""
    weights, sentence = model(0), SENTENCES[0]
    seen: list[int] = []
    hook = weights.gpt_neox.register_forward_pre_hook(
        lambda _, __, options: seen.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    (result,) = unmask(weights, [sentence], batch_tokens=(most + 1) * len(sentence))
    hook.remove()
    assert max(seen) <= most
    assert result.tokens.tolist() == by_generate(weights, sentence)
    check_scores(weights, result)


def test_memory_that_is_short_makes_smaller_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, sentence = model(0), SENTENCES[0]
    reserve = LockstepCache

    def limited(source: Any, positions: int) -> Any:
        if positions > 2 * len(sentence):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return reserve(source, positions)

    monkeypatch.setattr(generation, "LockstepCache", limited)
    with pytest.warns(UserWarning, match="out of memory; goes on with --batch-tokens"):
        (result,) = unmask(weights, [sentence])
    assert result.tokens.tolist() == by_generate(weights, sentence)


@pytest.mark.parametrize("batch_tokens", [0, -1])
def test_nothing_at_once_is_refused(batch_tokens: int) -> None:
    with pytest.raises(PythiaDynError, match="at least 1"):
        unmask(model(), [SENTENCES[0]], batch_tokens=batch_tokens)


def test_ties_go_to_the_first_token_as_in_generate() -> None:
    weights = model(4)
    with torch.no_grad():
        # Integer rows on a few columns: equal tokens have logits that are equal to the last bit, in any order of sums.
        weights.lm_head.weight.zero_()
        weights.lm_head.weight[:, 0] = torch.arange(304).remainder(5).float()
        weights.lm_head.weight[:, 1] = -torch.arange(304).remainder(3).float()
    for sentence, result in zip(SENTENCES, unmask(weights, SENTENCES), strict=True):
        expected = by_generate(weights, sentence)
        assert result.tokens.tolist() == expected
        generated = [token for k, row in enumerate(expected, start=1) for token in row[k:]]
        assert all(token < 15 for token in generated)  # the first of each 15 that tie
    torch.nn.init.zeros_(weights.lm_head.weight)
    (result,) = unmask(weights, [SENTENCES[0]])
    assert result.tokens.tolist() == by_generate(weights, SENTENCES[0])
    assert result.tokens[0, 1:].tolist() == [0] * 13
    np.testing.assert_allclose(result.per_prefix(result.nll), math.log(304) * np.arange(13, 0, -1), rtol=1e-6)


def test_end_of_text_does_not_stop_a_completion() -> None:
    weights = model(5)
    with torch.no_grad():
        weights.gpt_neox.final_layer_norm.weight.zero_()
        weights.gpt_neox.final_layer_norm.bias.fill_(1.0)
        weights.lm_head.weight[0] = 1.0
    assert weights.config.eos_token_id == 0
    (result,) = unmask(weights, [SENTENCES[1]])
    assert result.tokens[0].tolist() == [SENTENCES[1][0], *[0] * 13]
    row = summarise(unmask_scores([result]))
    assert row["ppl_mean"] == pytest.approx(1.0, abs=1e-4)
    assert row["ppl_mean"] >= 1


def test_rows_and_curves_are_means_over_what_was_generated() -> None:
    weights = model(6)
    results = unmask(weights, SENTENCES)
    per_sentence = [float(np.nanmean(r.nll.astype(np.float64))) for r in results if r.prefixes]
    row = summarise(unmask_scores(results))
    assert row["nll_mean"] == pytest.approx(np.mean(per_sentence))
    assert row["ppl_mean"] == pytest.approx(np.mean(np.exp(per_sentence)))
    assert row["ppl_median"] == pytest.approx(np.median(np.exp(per_sentence)))
    every = np.concatenate([r.nll[~np.isnan(r.nll)] for r in results]).astype(np.float64)
    assert row["tokens"] == every.size == sum(len(s) * (len(s) - 1) // 2 for s in SENTENCES)
    assert row["ppl_corpus"] == pytest.approx(math.exp(every.mean()))
    curves = prefix_curves(results)
    for k in range(1, 14):
        rows = [r for r in results if r.prefixes >= k]
        assert curves["sentences"][k - 1] == len(rows)
        for name, values in (("nll_mean", "nll"), ("entropy", "entropy")):
            expected = [np.nanmean(getattr(r, values)[k - 1].astype(np.float64)) for r in rows]
            assert curves[name][k - 1] == pytest.approx(np.mean(expected))


def test_degenerate_sentences() -> None:
    weights = model()
    empty, one, two = unmask(weights, [[], [5], [5, 6]])
    assert (empty.prefixes, one.prefixes, two.prefixes) == (0, 0, 1)
    assert two.tokens.tolist() == by_generate(weights, [5, 6])
    assert unmask(weights, []) == []
    row = summarise(unmask_scores([empty, one]))
    assert (row["sentences"], row["nonfinite"]) == (0, 0)
    assert math.isnan(row["ppl_mean"])
    assert prefix_curves([empty])["entropy"].shape == (0,)


def test_nan_weights_are_counted() -> None:
    weights = model()
    with torch.no_grad():
        weights.gpt_neox.embed_in.weight[encode("yes")[0]] = torch.nan
    results = unmask(weights, [*SENTENCES, [*encode("yes"), 4, 5]])
    row = summarise(unmask_scores(results))
    assert row["nonfinite"] >= 1
    assert row["sentences"] + row["nonfinite"] == sum(r.prefixes > 0 for r in results)
    torch.nn.init.constant_(weights.lm_head.weight, torch.nan)
    results = unmask(weights, SENTENCES)
    row = summarise(unmask_scores(results))
    assert (row["sentences"], row["nonfinite"]) == (0, sum(r.prefixes > 0 for r in results))
    assert math.isnan(row["ppl_mean"])
    assert np.isnan(prefix_curves(results)["entropy"]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_generates_its_own_likeliest_tokens(dtype: torch.dtype) -> None:
    weights: Any = model()
    weights.to(dtype)
    (result,) = unmask(weights, [SENTENCES[0]])
    assert result.nll.dtype == np.float32
    with torch.no_grad():
        logits = weights(torch.from_numpy(result.tokens)).logits[:, :-1].float()
    # Rounded products differ between batch sizes: each token is the likeliest up to the rounding of a logit.
    generated = torch.from_numpy(np.triu(np.ones(result.tokens.shape, bool), k=1)[:, 1:])
    chosen = logits.gather(2, torch.from_numpy(result.tokens)[:, 1:, None])[..., 0]
    gap = (logits.amax(-1) - chosen)[generated]
    assert gap.max() <= 4 * torch.finfo(dtype).eps * logits.abs().max()


@pytest.mark.filterwarnings("ignore:out of memory; goes on with")
def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model()
    expected = [result.tokens.tolist() for result in unmask(weights, SENTENCES)]
    whole = type(weights.gpt_neox).forward

    def forward(self: torch.nn.Module, input_ids: torch.Tensor, **options: object) -> object:
        if input_ids.shape[1] > 1 and input_ids.shape[0] > 1:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return whole(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(weights.gpt_neox), "forward", forward)
    assert [result.tokens.tolist() for result in unmask(weights, SENTENCES)] == expected


def test_a_phrase_whose_tokens_split_characters() -> None:
    """Every byte of these characters is a token of its own; what they are followed by may complete them or not."""
    phrase = "é☕ the 😀 cat"
    tokens = encode(phrase)
    assert len(tokens) > len(phrase)
    for line, row in zip(
        illustrate(model(), tokens, tokenizer().decode), unmask(model(), [tokens])[0].tokens, strict=True
    ):
        whole = tokenizer().decode(row.tolist())
        assert line.given + line.generated == whole
        assert phrase.startswith(line.given.rstrip("\ufffd"))  # of bytes that are no character in the whole either


def test_the_illustration_of_a_phrase() -> None:
    weights = model()
    phrase = "the cat sat on the mat"
    tokens = encode(phrase)
    lines = illustrate(weights, tokens, tokenizer().decode)
    (result,) = unmask(weights, [tokens])
    assert [line.prefix for line in lines] == list(range(1, len(tokens)))
    for line, row in zip(lines, result.tokens, strict=True):
        assert phrase.startswith(line.given)
        assert line.given + line.generated == tokenizer().decode(row.tolist())
    per_token = result.per_prefix(result.nll) / np.arange(result.prefixes, 0, -1)
    np.testing.assert_allclose([line.perplexity for line in lines], np.exp(per_token))
    assert lines[-1].entropy == pytest.approx(result.entropy[-1, -1])
