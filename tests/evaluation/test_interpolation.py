"""The loss along the line between two checkpoints: against averaged models, and the barrier against its formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import suites
from support.tiny_models import SIZE, TEXTS, encode, model, tokenizer, write_checkpoint
from transformers import GPTNeoXForCausalLM

from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.interpolation import barrier, interpolation
from pythia_dynamics.evaluation.runner import perplexity


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("line") / "suite"
    for seed, step in enumerate((1000, 2000)):
        write_checkpoint(directory / f"step{step}", model(seed))
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def losses(weights: GPTNeoXForCausalLM) -> tuple[np.ndarray, np.ndarray]:
    """The NLL and the number of tokens of each text, from the logits of transformers."""
    found = []
    for text in TEXTS:
        ids = torch.tensor([encode(text)])
        with torch.inference_mode():
            scores = torch.log_softmax(weights(ids).logits[0, :-1].double(), -1)
        found.append((-float(scores.gather(1, ids[0, 1:, None]).sum()), ids.shape[1] - 1))
    nll, tokens = np.array(found).T
    return nll, tokens.astype(np.int64)


def test_the_loss_is_that_of_averaged_models(suite: Path, corpus: Path) -> None:
    done: list[tuple[int, int]] = []
    found = interpolation(
        (suite, 1000), (suite, 2000), 5, corpus=corpus, device="cpu", progress=lambda *at: done.append(at)
    )
    assert done == [(count, 5) for count in range(6)]
    ends = [model(seed).half().float() for seed in (0, 1)]
    state = [end.state_dict() for end in ends]
    nll = []
    for alpha in found["alpha"].to_numpy():
        mixed = model(0).float()
        mixed.load_state_dict(
            {name: (1 - alpha) * state[0][name].double() + alpha * state[1][name].double() for name in state[0]}
        )
        values, tokens = losses(mixed)
        nll.append(values)
    total = np.array(nll).sum(axis=1) / tokens.sum()
    np.testing.assert_allclose(found["nll"], total, rtol=1e-5)
    chord = total[0] + found["alpha"].to_numpy() * (total[-1] - total[0])
    np.testing.assert_allclose(found["chord"], chord, rtol=1e-5)
    np.testing.assert_allclose(found["excess"], total - chord, atol=1e-4)
    assert found.attrs["barrier"] == pytest.approx((total - chord).max(), abs=1e-4)
    assert (found.attrs["sentences"], found.attrs["left_out"]) == (np.count_nonzero(tokens), 0)


def test_the_ends_are_the_perplexity_of_the_checkpoints(suite: Path, corpus: Path) -> None:
    found = interpolation((suite, 1000), (suite, 2000), 3, corpus=corpus, limit=5, device="cpu", max_tokens=9)
    plain = perplexity(suite, corpus=corpus, limit=5, device="cpu", max_tokens=9)
    assert np.exp(found["nll"].to_numpy()[[0, 2]]).tolist() == pytest.approx(
        plain["ppl_corpus"].to_numpy().tolist(), rel=1e-14
    )
    relative = plain["ppl_corpus_se"] / plain["ppl_corpus"]
    assert found["nll_se"].to_numpy()[[0, 2]].tolist() == pytest.approx(relative.to_numpy().tolist(), rel=1e-9)
    assert found["excess"].to_numpy()[[0, 2]].tolist() == [0, 0]
    assert found.attrs["max_tokens"] == 9


def test_a_checkpoint_and_itself_have_no_barrier(suite: Path, corpus: Path) -> None:
    found = interpolation((suite, 1000), (suite, 1000), 4, corpus=corpus, device="cpu")
    assert np.abs(found["excess"].to_numpy()).max() < 1e-6
    assert found.attrs["barrier"] < 1e-6


def test_tied_weights_and_absent_biases(tmp_path: Path, corpus: Path) -> None:
    for seed in (0, 1):
        suites.write(tmp_path / "tied" / f"step{seed + 1}", suites.files("llama-tied", seed))
        suites.write(tmp_path / "bare" / f"step{seed + 1}", suites.without_biases(seed))
    for name in ("tied", "bare"):
        place = tmp_path / name
        found = interpolation((place, 1), (place, 2), 3, corpus=corpus, device="cpu")
        plain = perplexity(place, corpus=corpus, device="cpu")
        assert np.exp(found["nll"].to_numpy()[[0, 2]]).tolist() == pytest.approx(
            plain["ppl_corpus"].to_numpy().tolist(), rel=1e-14
        )


def test_the_barrier_is_its_formula_and_its_error_is_paired() -> None:
    rng = np.random.default_rng(0)
    alphas, texts = np.linspace(0, 1, 6), 400
    tokens = rng.integers(5, 30, texts)
    difficulty = rng.normal(3, 1, texts) * tokens  # of a text, the same at every α
    bump = 4 * alphas * (1 - alphas)
    nll = difficulty + alphas[:, None] * rng.normal(0, 0.1, texts) * tokens
    nll = nll + bump[:, None] * (0.2 + rng.normal(0, 0.02, texts)) * tokens
    found, excess, error = barrier(alphas, nll, tokens)
    loss = nll.sum(axis=1) / tokens.sum()
    np.testing.assert_allclose(excess, loss - (loss[0] + alphas * (loss[-1] - loss[0])), atol=1e-12)
    assert (excess[0], excess[-1], error[0], error[-1]) == (0, 0, 0, 0)
    assert found["barrier"] == excess.max()
    assert found["barrier_alpha"] in (0.4, 0.6)
    assert found["barrier"] == pytest.approx(0.2 * 0.96, abs=5 * found["barrier_se"])
    assert found["barrier_low"] < found["barrier"] < found["barrier_high"]
    assert (found["barrier_high"] - found["barrier_low"]) / found["barrier_se"] == pytest.approx(3.92, rel=0.2)
    unpaired = (difficulty / tokens).std() / np.sqrt(texts)
    assert found["barrier_se"] < unpaired / 10


def test_the_interval_of_the_barrier_holds_the_truth() -> None:
    rng, held = np.random.default_rng(1), 0
    alphas = np.linspace(0, 1, 5)
    for _ in range(100):
        tokens = rng.integers(5, 30, 80)
        bump = 4 * alphas * (1 - alphas)
        nll = rng.normal(3, 1, 80) * tokens + bump[:, None] * (0.1 + rng.normal(0, 0.1, 80)) * tokens
        found, _, _ = barrier(alphas, nll, tokens)
        held += found["barrier_low"] <= 0.1 <= found["barrier_high"]
    assert 87 <= held <= 100


def test_a_barrier_without_a_rise_or_with_one_text() -> None:
    alphas = np.linspace(0, 1, 5)
    valley = -4 * alphas * (1 - alphas)
    found, _, _ = barrier(alphas, 3 + np.tile(valley[:, None], 10), np.ones(10, np.int64))
    assert (found["barrier"], found["barrier_alpha"], found["barrier_high"]) == (0, 0, 0)
    found, _, error = barrier(alphas, 3 - valley[:, None], np.ones(1, np.int64))
    assert found["barrier"] == pytest.approx(1)
    assert np.isnan([found["barrier_se"], found["barrier_low"], *error]).all()


def test_models_of_another_architecture_are_refused(suite: Path, corpus: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "wide" / "step1000", model(0, intermediate_size=96))
    with pytest.raises(CheckpointError, match="suite@1000 and wide@1000 have other configs: only models of one"):
        interpolation((suite, 1000), (tmp_path / "wide", 1000), 3, corpus=corpus, device="cpu")
    write_checkpoint(tmp_path / "lies" / "step1000", model(0, intermediate_size=96))
    config = tmp_path / "lies" / "step1000" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": SIZE["intermediate_size"]}))
    with pytest.raises(CheckpointError, match="shape"):
        interpolation((suite, 1000), (tmp_path / "lies", 1000), 3, corpus=corpus, device="cpu")


def test_another_tokenizer_is_refused_where_it_cuts_other_tokens(suite: Path, corpus: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "same" / "step1", model(1))
    path = tmp_path / "same" / "step1" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer().to_str())))  # another file of the same content
    assert interpolation((suite, 1000), (tmp_path / "same", 1), 3, corpus=corpus, device="cpu").sizes["alpha"] == 3
    content = json.loads(tokenizer().to_str())
    content["model"]["merges"] = content["model"]["merges"][:3]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cut the texts into different tokens"):
        interpolation((suite, 1000), (tmp_path / "same", 1), 3, corpus=corpus, device="cpu")


def test_a_text_without_a_finite_loss_is_left_out_everywhere(suite: Path, corpus: Path, tmp_path: Path) -> None:
    broken = model(1).half()
    with torch.no_grad():
        broken.gpt_neox.embed_in.weight[encode(TEXTS[0])[0]] = torch.nan  # a token of some texts
    write_checkpoint(tmp_path / "broken" / "step1", broken)
    with pytest.warns(UserWarning, match="texts have no finite NLL at some α and are left out at every α"):
        found = interpolation((suite, 1000), (tmp_path / "broken", 1), 3, corpus=corpus, device="cpu")
    assert found.attrs["left_out"] > 0
    assert np.isfinite(found["nll"].to_numpy()).all()
    with torch.no_grad():
        broken.gpt_neox.embed_in.weight[:] = torch.nan
    write_checkpoint(tmp_path / "nothing" / "step1", broken)
    with pytest.raises(PythiaDynError, match="none of 6 texts has a finite NLL"):
        interpolation((suite, 1000), (tmp_path / "nothing", 1), 3, corpus=corpus, device="cpu")


def test_what_cannot_be_asked_for(suite: Path, corpus: Path) -> None:
    with pytest.raises(PythiaDynError, match="at least 3 points"):
        interpolation((suite, 1000), (suite, 2000), 2, corpus=corpus)
    with pytest.raises(UnknownNameError, match="no step 1500"):
        interpolation((suite, 1500), (suite, 2000), 3, corpus=corpus)
    with pytest.raises(PythiaDynError, match="computed in float32"):
        interpolation((suite, 1000), (suite, 2000), 3, corpus=corpus, dtype="float16")
    with pytest.raises(PythiaDynError, match="on one device"):
        interpolation((suite, 1000), (suite, 2000), 3, corpus=corpus, device="cpu,cpu")
