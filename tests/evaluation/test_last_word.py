from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import TEXTS, encode, model
from transformers import GPTNeoXForCausalLM

from pythia_dynamics.evaluation.last_word import (
    Target,
    encode_targets,
    last_word_row,
    last_word_scores,
    split_last_word,
)

PASSAGES = (*TEXTS, "a  double space", "trailing space ", " leading", "two words")
PREFIX = 0


def harness(
    weights: GPTNeoXForCausalLM, text: str, tokenise: Callable[[str], list[int]], max_length: int
) -> tuple[float, bool]:
    """`loglikelihood` of lm-evaluation-harness 0.4.13 for one document of `lambada_openai`, written from its source."""
    context = " ".join(text.split(" ")[:-1])
    continuation = " " + text.split(" ")[-1]
    if context == "":
        continuation_enc = tokenise(continuation)
        context_enc = [PREFIX]
    else:
        n_spaces = len(context) - len(context.rstrip())
        if n_spaces > 0:
            continuation = context[-n_spaces:] + continuation
            context = context[:-n_spaces]
        whole_enc = tokenise(context + continuation)
        context_enc = tokenise(context)
        continuation_enc = whole_enc[len(context_enc) :]
    inp = torch.tensor([(context_enc + continuation_enc)[-(max_length + 1) :][:-1]])
    with torch.no_grad():
        logits = torch.log_softmax(weights(inp).logits, dim=-1)[0, -len(continuation_enc) :]
    cont = torch.tensor(continuation_enc)
    is_greedy = bool((logits.argmax(-1) == cont).all())
    return float(logits.gather(1, cont[:, None]).sum()), is_greedy


def targets(context_length: int = 48, passages: tuple[str, ...] = PASSAGES) -> list[Target]:
    return encode_targets(passages, encode, context_length=context_length, prefix_token=PREFIX)


@pytest.mark.parametrize("context_length", [48, 12])
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_as_the_harness_defines_it(context_length: int, batch_tokens: int) -> None:
    weights = model(1)
    scores = last_word_scores(weights, targets(context_length), batch_tokens=batch_tokens)
    expected = [harness(weights, text, encode, context_length) for text in PASSAGES]
    np.testing.assert_allclose(-scores.nll, [e[0] for e in expected], rtol=1e-5)
    assert scores.greedy.tolist() == [e[1] for e in expected]
    row = last_word_row(scores)
    assert row["ppl"] == pytest.approx(math.exp(-np.mean([e[0] for e in expected])), rel=1e-5)
    assert row["accuracy"] == np.mean([e[1] for e in expected])
    assert row["sentences"] == len(PASSAGES)


def test_a_word_counts_as_guessed_only_when_all_its_tokens_are() -> None:
    weights: Any = model(1)
    first = encode("the cat")
    generated = weights.generate(
        torch.tensor([first]), attention_mask=torch.ones(1, len(first)), do_sample=False,
        max_new_tokens=3, min_new_tokens=3, eos_token_id=None, pad_token_id=0,
    )[0].tolist()  # fmt: skip
    greedy = Target(tuple(generated), len(first))
    last_wrong = Target((*generated[:-1], (generated[-1] + 1) % 304), len(first))
    scores = last_word_scores(weights, [greedy, last_wrong])
    assert scores.greedy.tolist() == [True, False]
    assert last_word_row(scores)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("text", "context", "target"),
    [("a b c", "a b", " c"), ("word", "", " word"), ("a  b", "a ", " b"), ("a\nb c.", "a\nb", " c."), ("", "", " ")],
)
def test_the_split_is_the_harness_s(text: str, context: str, target: str) -> None:
    assert split_last_word(text) == (context, target)
    assert " ".join(text.split(" ")[:-1]) == context
    assert " " + text.split(" ")[-1] == target


def test_what_has_no_target_scores_nothing() -> None:
    without = encode_targets(["", "   ", "word"], encode, context_length=48, prefix_token=None)
    assert all(len(target.tokens) == target.start for target in without)
    row = last_word_row(last_word_scores(model(), without))
    assert (row["sentences"], row["nonfinite"]) == (0, 0)
    assert math.isnan(row["ppl"])
    assert math.isnan(row["accuracy"])
    # A target that alone is longer than the context cannot be scored with any context.
    (long,) = encode_targets(["a incomprehensibilities"], encode, context_length=2, prefix_token=None)
    assert len(long.tokens) == long.start


def test_a_target_that_starts_with_the_prefix_token_uses_it_as_context() -> None:
    (target,) = encode_targets(["word"], lambda text: [PREFIX, 5, 6], context_length=48, prefix_token=PREFIX)
    assert target == Target((PREFIX, 5, 6), 1)


def test_nonfinite_targets_are_counted() -> None:
    weights = model()
    with torch.no_grad():
        weights.gpt_neox.embed_in.weight[encode("moon")[0]] = torch.nan
        weights.gpt_neox.embed_in.weight[encode("sea")[0]] = torch.nan
    scores = last_word_scores(weights, targets())
    row = last_word_row(scores)
    spoilt = int((~np.isfinite(scores.nll)).sum())
    assert 0 < spoilt < len(PASSAGES)
    assert (row["nonfinite"], row["sentences"]) == (spoilt, len(PASSAGES) - spoilt)
    assert math.isfinite(row["ppl"])


def test_a_head_of_zeros_gives_the_vocabulary_to_the_power_of_the_tokens() -> None:
    weights = model()
    torch.nn.init.zeros_(weights.lm_head.weight)
    some = targets(passages=TEXTS[:5])
    tokens = [len(t.tokens) - t.start for t in some]
    row = last_word_row(last_word_scores(weights, some))
    assert row["ppl"] == pytest.approx(304 ** np.mean(tokens), rel=1e-5)
    assert row["accuracy"] == 0


@pytest.mark.skipif("PYTHIA_DYN_SHARED" not in os.environ, reason="PYTHIA_DYN_SHARED (real data) is not set")
def test_the_real_tokenizer_on_the_real_text() -> None:
    from pythia_dynamics.evaluation.corpus import load_corpus, load_tokenizer

    shared = Path(os.environ["PYTHIA_DYN_SHARED"])
    real = load_tokenizer((shared / "20B_tokenizer.json").read_bytes(), "20B_tokenizer.json")

    def tokenise(text: str) -> list[int]:
        return list(real.encode(text, add_special_tokens=False).ids)

    texts = load_corpus(shared / "lambada_test_first600.jsonl", limit=24).texts
    weights = model(vocab_size=50304, max_position_embeddings=512)
    scores = last_word_scores(weights, encode_targets(texts, tokenise, context_length=512, prefix_token=PREFIX))
    expected = [harness(weights, text, tokenise, 512) for text in texts]
    np.testing.assert_allclose(-scores.nll, [e[0] for e in expected], rtol=1e-5)
    assert scores.greedy.tolist() == [e[1] for e in expected]
