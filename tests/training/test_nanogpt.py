"""The blog's model: against a plain torch version of it, as a model of transformers, and as a suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.roles import find_roles
from pythia_dynamics.evaluation import attention
from pythia_dynamics.evaluation.model import build_model
from pythia_dynamics.evaluation.nanogpt import NanoGPTForCausalLM
from pythia_dynamics.evaluation.portrait import portrait
from pythia_dynamics.history.cache import open_history
from pythia_dynamics.history.fetch import download
from pythia_dynamics.studies.order_parameter import expected_b
from pythia_dynamics.training.loop import new_model, train_suite
from pythia_dynamics.training.plan import SIZES, TrainingPlan, plan_of_size
from pythia_dynamics.training.sample import sample_text
from pythia_dynamics.training.suite import Suite, prepare_text
from pythia_dynamics.training.text import Text

TINY = plan_of_size(
    "10k", arch="nanogpt", d_model=16, heads=4, layers=2, context=12, batch=4, max_steps=6, every=3, eval_batches=1
)
SUITE = replace(TINY, context=32, dropout=0.0)

PARAMETERS = {"10k": 25_089, "0.1m": 124_481, "1m": 841_281, "10m": 10_788_929}
"""Parameters of the models that the blog's ``gpt.py`` makes, counted there."""


# -- the model written out ------------------------------------------------------------------------------------


class SlowHead(nn.Module):
    """One head of attention, one query at a time. Its scores are divided by the root of d_model."""

    def __init__(self, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.query, self.key, self.value = (nn.Linear(width, size, bias=False) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        rows = []
        for t in range(x.shape[1]):
            scores = (query[:, t, None] * key[:, : t + 1]).sum(-1) / self.width**0.5
            padding = x.new_zeros(x.shape[0], x.shape[1] - t - 1)  # so that dropout sees the whole matrix
            rows.append(torch.cat([scores.exp() / scores.exp().sum(-1, keepdim=True), padding], dim=-1))
        return self.dropout(torch.stack(rows, dim=1)) @ value


class SlowBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList([SlowHead(width, width // heads, dropout) for _ in range(heads)])
        self.projection = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.before_attention(x)
        x = x + self.dropout(self.projection(torch.cat([head(normed) for head in self.heads], dim=-1)))
        return x + self.dropout(self.down(self.up(self.before_mlp(x)).clamp(min=0)))


class SlowGPT(nn.Module):
    def __init__(self, plan: TrainingPlan, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, plan.d_model), nn.Embedding(plan.context, plan.d_model)
        self.blocks = nn.ModuleList([SlowBlock(plan.d_model, plan.heads, plan.dropout) for _ in range(plan.layers)])
        self.norm, self.head = nn.LayerNorm(plan.d_model), nn.Linear(plan.d_model, vocab)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def named_as_ours(slow: SlowGPT, of: str = "data") -> dict[str, torch.Tensor]:
    """The weights, or the gradients with ``of="grad"``, under the names of `NanoGPTForCausalLM`."""

    def both(name: str, module: Any) -> dict[str, torch.Tensor]:
        return {f"{name}.{part}": getattr(value, of) for part, value in module.named_parameters(recurse=False)}

    found = both("transformer.wte", slow.tokens) | both("transformer.wpe", slow.positions)
    found |= both("transformer.ln_f", slow.norm) | both("lm_head", slow.head)
    for i, block in enumerate(slow.blocks):
        stem = f"transformer.h.{i}"
        linear = [getattr(head, kind).weight for kind in ("query", "key", "value") for head in block.heads]
        found[f"{stem}.attn.query_key_value.weight"] = torch.cat([getattr(weight, of) for weight in linear])
        found |= both(f"{stem}.attn.projection", block.projection) | both(f"{stem}.up", block.up)
        found |= both(f"{stem}.down", block.down)
        found |= both(f"{stem}.ln_1", block.before_attention) | both(f"{stem}.ln_2", block.before_mlp)
    return found


def pair(plan: TrainingPlan = TINY, vocab: int = 20) -> tuple[NanoGPTForCausalLM, SlowGPT]:
    """Ours and the slow model with the same weights."""
    torch.manual_seed(1)
    ours, slow = new_model(plan, vocab), SlowGPT(plan, vocab)
    assert isinstance(ours, NanoGPTForCausalLM)
    ours.load_state_dict(named_as_ours(slow))
    return ours, slow


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_gradients_are_those_of_the_model_written_out(attention: str) -> None:
    ours, slow = pair()
    ours.eval().set_attn_implementation(attention)
    slow.eval()
    windows = torch.randint(20, (3, 13), generator=torch.Generator().manual_seed(0))
    made, expected = ours(input_ids=windows[:, :-1], shift_labels=windows[:, 1:]), slow(windows[:, :-1])
    torch.testing.assert_close(made.logits, expected, rtol=1e-5, atol=1e-5)
    loss = nn.functional.cross_entropy(expected.flatten(0, 1), windows[:, 1:].flatten())
    torch.testing.assert_close(made.loss, loss, rtol=1e-6, atol=1e-6)
    made.loss.backward()
    loss.backward()
    gradients = named_as_ours(slow, "grad")
    assert set(gradients) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    short = windows[:, :-1]
    shifted = nn.functional.cross_entropy(ours(input_ids=short).logits[:, :-1].flatten(0, 1), short[:, 1:].flatten())
    torch.testing.assert_close(ours(input_ids=short, labels=short).loss, shifted)


def test_dropout_is_where_the_blog_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is replaced by a factor, which a missing or an additional place would change the logits by."""
    shapes: list[tuple[int, ...]] = []

    def scale(values: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        shapes.append(tuple(values.shape))
        return values * (1 - p) if training else values

    monkeypatch.setattr(nn.functional, "dropout", scale)
    monkeypatch.setattr(attention, "dropout", scale)
    ours, slow = pair(replace(TINY, dropout=0.4))
    ours.train().set_attn_implementation("eager")
    windows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    made = ours(input_ids=windows).logits
    assert shapes == [(3, 4, 12, 12), (3, 12, 16), (3, 12, 16)] * 2
    torch.testing.assert_close(made, slow.train()(windows), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made, ours.eval()(input_ids=windows).logits, rtol=1e-2, atol=1e-2)
    assert plan_of_size("10k", arch="nanogpt").dropout == 0.2


def test_the_fused_attention_drops_too() -> None:
    ours, _ = pair(replace(TINY, dropout=0.5))
    for block in ours.transformer.h:
        block.dropout.p = 0.0
    windows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))
    assert ours.config._attn_implementation == "sdpa"
    assert not torch.equal(ours.train()(input_ids=windows).logits, ours(input_ids=windows).logits)


@pytest.mark.parametrize("size", list(SIZES))
def test_the_four_sizes_are_those_of_the_blog(size: str) -> None:
    plan = plan_of_size(size, arch="nanogpt")
    assert plan.initialisation == "pytorch"
    assert (plan.context, plan.batch, plan.learning_rate, plan.weight_decay) == (256, 64, 3e-4, 0.01)
    assert plan_of_size(size, arch="nanogpt", initialisation="neox").initialisation == "neox"
    model = new_model(plan, 65)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    b = float(model.lm_head.weight.detach().double().norm()) / plan.d_model
    expected, spread = expected_b("pytorch", 65, plan.d_model)
    assert expected == pytest.approx((65 / 3) ** 0.5 / plan.d_model)
    assert abs(b - expected) < 4 * spread
    published = {"10k": 0.146, "0.1m": 0.072, "1m": 0.036, "10m": 0.012}
    assert b == pytest.approx(published[size], abs=6e-4 if size in ("1m", "10m") else 1.2e-3)


def test_every_layer_is_initialised_as_torch_does() -> None:
    model = new_model(plan_of_size("1m", arch="nanogpt"), 65)
    for name, tensor in model.named_parameters():
        values = tensor.detach()
        if ".ln_" in name:
            assert torch.equal(values, torch.full_like(values, float(name.endswith("weight")))), name
        elif name in ("transformer.wte.weight", "transformer.wpe.weight"):
            assert float(values.std()) == pytest.approx(1, rel=0.05), name
        else:
            bound = 512**-0.5 if ".down." in name else 128**-0.5
            assert 0.9 * bound < float(values.abs().max()) <= bound, name
            assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.2), name


# -- as a model of transformers -------------------------------------------------------------------------------


def test_a_cache_gives_the_logits_of_one_pass() -> None:
    ours, _ = pair()
    ours.eval()
    tokens = torch.randint(20, (2, 12), generator=torch.Generator().manual_seed(0))
    whole, cache = ours(input_ids=tokens).logits, DynamicCache()
    parts = [
        ours(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True).logits
        for start, end in ((0, 5), (5, 6), (6, 12))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)
    padded = torch.ones_like(tokens)
    padded[0, 9:] = 0
    masked = ours(input_ids=tokens, attention_mask=padded).logits
    torch.testing.assert_close(masked[0, :9], whole[0, :9], rtol=1e-5, atol=1e-5)
    untyped: Any = ours
    with_cache, without = (
        untyped.generate(input_ids=tokens[:, :4], do_sample=False, max_new_tokens=8, use_cache=kept, pad_token_id=0)
        for kept in (True, False)
    )
    assert torch.equal(with_cache, without)
    with pytest.raises(IndexError):
        ours(input_ids=torch.zeros(1, 13, dtype=torch.int64))


def play() -> Text:
    rng = np.random.default_rng(0)
    words = ["the", "of", "and", "in", "that", "is", "was", "with", "as", "his"]
    return Text("play", "".join(f"WHO:\n{' '.join(rng.choice(words, size=16))}.\n\n" for _ in range(60)))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return train_suite(tmp_path_factory.mktemp("nano") / "suite", play(), SUITE, device="cpu")


def test_a_training_is_the_loop_of_the_blog(suite: Suite) -> None:
    """AdamW on all parameters, and each of the positions of a window predicts the token after it."""
    plan, prepared = SUITE, prepare_text(play(), SUITE)
    vocab, tokens = len(prepared.tokenizer), torch.from_numpy(prepared.training)
    saved = load_file(suite.path / "step0" / "model.safetensors")
    for name, tensor in new_model(plan, vocab).state_dict().items():
        assert torch.equal(saved[name], tensor), name
    slow = SlowGPT(plan, vocab)
    for name, tensor in named_as_ours(slow).items():
        if "query_key_value" not in name:
            tensor.copy_(saved[name])
    blocks: Any = slow.blocks
    for i, block in enumerate(blocks):
        parts = saved[f"transformer.h.{i}.attn.query_key_value.weight"].view(3, plan.heads, -1, plan.d_model)
        for kind, of_kind in zip(("query", "key", "value"), parts, strict=True):
            for head, weight in zip(block.heads, of_kind, strict=True):
                getattr(head, kind).weight.data.copy_(weight)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=3e-4)
    starts = np.random.default_rng(plan.seed).integers(0, len(tokens) - plan.context, size=(6, plan.batch))
    for row in starts:
        read, next_ones = (torch.stack([tokens[s + k : s + k + plan.context] for s in row]) for k in (0, 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(slow(read).flatten(0, 1), next_ones.flatten()).backward()
        optimizer.step()
    final, moved = load_file(suite.path / "step6" / "model.safetensors"), 0.0
    for name, tensor in named_as_ours(slow).items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-5, atol=2e-6, msg=name)
        moved = max(moved, float((final[name] - saved[name]).abs().max()))
    assert moved > 1e-3
    rng = np.random.default_rng((plan.seed, 1))
    starts = rng.integers(0, len(tokens) - plan.context, size=plan.batch)
    read, next_ones = (torch.stack([tokens[s + k : s + k + plan.context] for s in starts]) for k in (0, 1))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(slow(read).flatten(0, 1), next_ones.flatten())
    assert suite.losses[-1].train == pytest.approx(float(loss), rel=1e-5)


def test_biases_and_norms_decay_too(tmp_path: Path) -> None:
    """Without gradient steps to speak of, AdamW multiplies every parameter by 1 − rate · decay."""
    plan = replace(SUITE, learning_rate=1e-9, weight_decay=1e8, max_steps=1, every=1)
    made = train_suite(tmp_path / "s", play(), plan, device="cpu")
    before, after = (load_file(made.path / f"step{step}" / "model.safetensors") for step in (0, 1))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], 0.9 * tensor, rtol=1e-4, atol=1e-7, msg=name)


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    plan = replace(SUITE, dropout=0.2)
    undisturbed = train_suite(tmp_path / "whole", play(), plan, device="cpu")

    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_suite(tmp_path / "s", play(), plan, device="cpu", resume_seconds=0, progress=interrupt)
    seen: list[int] = []
    resumed = train_suite(tmp_path / "s", play(), plan, device="cpu", progress=lambda done, _: seen.append(done))
    assert seen[0] > 3
    files = [load_file(made.path / "step6" / "model.safetensors") for made in (undisturbed, resumed)]
    for name, tensor in files[0].items():
        assert torch.equal(tensor, files[1][name]), name
    assert undisturbed.losses == resumed.losses


def test_a_suite_is_read_like_any_other(suite: Suite, tmp_path: Path) -> None:
    folder = suite.path / "step6"
    names = set(load_file(folder / "model.safetensors"))
    assert find_roles(names) == {"unembedding": "lm_head.weight", "embedding": "transformer.wte.weight"}
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), NanoGPTForCausalLM)
    model = build_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, NanoGPTForCausalLM)
    download(resolve(suite.path), cache=tmp_path)
    history = open_history(suite.path.name, cache=tmp_path)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(history.weights[-1], head.numpy())
    shown = portrait(suite.path, phrase="that is", text="the of and", device="cpu")
    np.testing.assert_array_equal(shown["unembedding"].to_numpy()[-1], head.numpy().T)
    np.testing.assert_allclose(shown["attention"].sum("key"), 1, rtol=1e-5)
    assert len(shown.attrs["completions"]) == len("that is") - 1
    assert set(sample_text(suite, 6, samples=1)) <= set(play().content) | {"-"}
