"""Generation with rounded shapes and captured steps, as on a GPU, held to the plain path on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import suites
from support.recorded import capture_by_recording, start_recording
from support.tiny_models import SIZE, TEXTS, encode, model

from pythia_dynamics.evaluation import products
from pythia_dynamics.evaluation.generation import Generator, Shapes, computes_with_masks
from pythia_dynamics.evaluation.graphs import StepGraphs
from pythia_dynamics.evaluation.scoring import head_statistics
from pythia_dynamics.evaluation.unmasking import Unmasker, Unmasking, unmask

SENTENCES = [encode(text)[:14] for text in TEXTS]
ROUNDED = Shapes(rounded=True)
Captured = tuple[Unmasker, Generator, StepGraphs]


@pytest.fixture(autouse=True)
def _plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: packed weights have new addresses at each call."""
    monkeypatch.setattr(products, "packed_is_faster", lambda dtype: False)


def captured(weights: Any) -> Captured:
    graphs = StepGraphs(start_recording)
    generator = Generator(weights, ROUNDED, graphs)
    return Unmasker(weights, generator), generator, graphs


def check_equal(found: list[Unmasking], expected: list[Unmasking]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        np.testing.assert_allclose(ours.nll, theirs.nll, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(ours.entropy, theirs.entropy, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 10**6))
def test_shapes_are_rounded_by_little(count: int) -> None:
    assert Shapes(rounded=False).rows(count) == count == Shapes(rounded=False).most_rows(count)
    assert Shapes(rounded=False).width(count + 1) == count + 1
    rows, most = ROUNDED.rows(count), ROUNDED.most_rows(count)
    assert most <= count <= rows < 1.25 * count + 1
    assert ROUNDED.rows(rows) == rows
    assert ROUNDED.rows(most) == most
    assert count <= ROUNDED.length(count) < count + 16
    assert ROUNDED.width(count + 1) == ROUNDED.length(count) + 1  # one more than any step reads


def test_four_shapes_for_each_power_of_two() -> None:
    assert len({ROUNDED.rows(count) for count in range(9, 1025)}) == 4 * 7


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("batch_tokens", [1, 500, None])
def test_rounded_and_captured_steps_give_the_same_tokens(seed: int, batch_tokens: int | None) -> None:
    weights = model(seed)
    unmasker, _, graphs = captured(weights)
    expected = unmask(weights, SENTENCES)
    for _ in range(3):  # run, captured, replayed
        check_equal(unmasker.unmask(SENTENCES, batch_tokens=batch_tokens), expected)
    assert graphs.failure is None
    assert len(graphs) > 0


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.integers(0, 303), max_size=20), max_size=6), st.integers(1, 900), st.integers(0, 3))
def test_any_mixture_of_lengths(sentences: list[list[int]], batch_tokens: int, seed: int) -> None:
    weights = model(seed)
    unmasker, _, _ = captured(weights)
    for _ in range(3):
        check_equal(unmasker.unmask(sentences, batch_tokens=batch_tokens), unmask(weights, sentences))


def test_graphs_of_one_checkpoint_serve_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the values of the weights change, as `load_weights` does it; no step is run in Python any more."""
    weights, other = model(0), model(1)
    unmasker, _, graphs = captured(weights)
    for _ in range(2):
        unmasker.unmask(SENTENCES)
    known = len(graphs)
    with torch.no_grad():
        for parameter, new in zip(weights.parameters(), other.parameters(), strict=True):
            parameter.copy_(new)
    calls = []
    hook = weights.gpt_neox.register_forward_pre_hook(
        lambda _, __, options: calls.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    found = unmasker.unmask(SENTENCES)
    hook.remove()
    check_equal(found, unmask(other, SENTENCES))
    steps = [width for width in calls if width == 1]
    assert len(steps) <= len(graphs) - known + 8  # those with shapes that the first checkpoint did not need


def test_what_is_masked_cannot_spoil_a_row() -> None:
    """Keys and values beyond a row's position are not finite in the sentence that it starts with."""
    weights: Any = model()
    bad = 77
    with torch.no_grad():
        weights.gpt_neox.embed_in.weight[bad] = torch.nan
    sentence = [*SENTENCES[0][:6], bad, *SENTENCES[0][6:]]
    unmasker, _, _ = captured(weights)
    for _ in range(3):
        check_equal(unmasker.unmask([sentence]), unmask(weights, [sentence]))


def test_what_an_earlier_sentence_left_cannot_spoil_a_row() -> None:
    weights: Any = model()
    unmasker, _, _ = captured(weights)
    expected = unmask(weights, SENTENCES[:2])
    kept = weights.gpt_neox.embed_in.weight.detach().clone()
    torch.nn.init.constant_(weights.gpt_neox.embed_in.weight, torch.nan)
    unmasker.unmask(SENTENCES)
    with torch.no_grad():
        weights.gpt_neox.embed_in.weight.copy_(kept)
    check_equal(unmasker.unmask(SENTENCES[:2]), expected)


@pytest.mark.parametrize("rounded", [False, True])
def test_rows_that_have_ended_are_dropped_when_they_are_a_quarter(rounded: bool) -> None:
    weights = model(0)
    lengths = [14, 14, 14, 14, 13, 12, 9, 5]
    sentences = [(SENTENCES[0] * 2)[i : i + length] for i, length in enumerate(lengths)]
    sizes: list[int] = []
    hook = weights.gpt_neox.register_forward_pre_hook(
        lambda _, __, options: (
            sizes.append(options["input_ids"].shape[0]) if options["input_ids"].shape[1] == 1 else None
        ),
        with_kwargs=True,
    )
    generator = Generator(weights, Shapes(rounded=rounded))
    found = Unmasker(weights, generator).unmask(sentences)
    hook.remove()
    check_equal(found, [unmask(weights, [sentence])[0] for sentence in sentences])
    # At each position no more than a quarter of the rows have ended, up to rounding.
    alive = [sum(min(position, t - 2) for t in lengths if position < t - 1) for position in range(1, 13)]
    assert all(size <= Shapes(rounded).rows(most * 4 // 3 + 1) for size, most in zip(sizes, alive, strict=True))
    assert any(size > most for size, most in zip(sizes, alive, strict=True))  # not at once


@pytest.mark.parametrize("kind", ["gpt-neox", "llama", "llama-tied", "olmo2", "gpt2"])
def test_architectures_that_compute_with_masks(kind: suites.Kind) -> None:
    weights = suites.model(kind, 0).float()
    assert computes_with_masks(weights)
    unmasker, _, graphs = captured(weights)
    for _ in range(3):
        check_equal(unmasker.unmask(SENTENCES[:3]), unmask(weights, SENTENCES[:3]))
    assert graphs.failure is None


def test_an_architecture_whose_positions_come_from_the_mask_does_not() -> None:
    assert not computes_with_masks(suites.model("bloom", 0).float())


def test_eager_attention_takes_the_mask_too() -> None:
    weights: Any = model(0)
    weights.set_attn_implementation("eager")
    assert computes_with_masks(weights)


@pytest.mark.parametrize("kind", ["gpt-neox", "gpt2"])
def test_a_model_that_ignores_the_mask_is_found_out(kind: suites.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = suites.model(kind, 0).float()
    forward = type(weights.base_model).forward

    def without_mask(self: Any, *args: Any, attention_mask: Any = None, **options: Any) -> Any:
        return forward(self, *args, **options)

    monkeypatch.setattr(type(weights.base_model), "forward", without_mask)
    assert not computes_with_masks(weights)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3", "gpt-neo", "qwen2"])
def test_layers_that_attend_to_a_window_are_not_given_masks(kind: str) -> None:
    """transformers takes a mask of ours in the place of that of the window."""
    size: dict[str, Any] = {**SIZE, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    made: dict[str, Any] = {
        "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**size, sliding_window=8)),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**size, sliding_window=8)),
        "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**size, sliding_window=8)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**size, use_sliding_window=True, sliding_window=8, max_window_layers=0)
        ),
        "gpt-neo": lambda: transformers.GPTNeoForCausalLM(
            transformers.GPTNeoConfig(
                vocab_size=304,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                window_size=8,
                attention_types=[[["global", "local"], 1]],
                bos_token_id=0,
                eos_token_id=0,
            )
        ),
    }
    torch.manual_seed(0)
    assert not computes_with_masks(made[kind]().eval())


def test_a_window_that_is_not_used_is_none() -> None:
    size: dict[str, Any] = {**SIZE, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    weights = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**size, num_key_value_heads=2)).eval()
    assert computes_with_masks(weights)


def test_weights_that_are_not_finite_tell_nothing() -> None:
    weights: Any = model(0)
    torch.nn.init.constant_(weights.lm_head.weight, torch.nan)
    assert not computes_with_masks(weights)


def test_scores_below_the_range_of_the_dtype_do_not_uncover_what_is_masked() -> None:
    """Attention scores of Pythia reach −110,000, below the least number of float16."""
    weights: Any = model(0)
    scores = torch.full((1, 1, 1, 3), -96_000.0)
    assert float((scores + torch.finfo(torch.float16).min).max()) < -96_000 < torch.finfo(torch.float16).min
    unmasker, _, _ = captured(weights)
    seen: list[torch.Tensor] = []
    hook = weights.gpt_neox.register_forward_pre_hook(
        lambda _, __, options: seen.append(options.get("attention_mask")), with_kwargs=True
    )
    unmasker.unmask(SENTENCES[:1])
    hook.remove()
    masks = [mask for mask in seen if mask is not None]
    assert masks
    assert all(set(mask.unique().tolist()) <= {0.0, -float("inf")} for mask in masks)


def test_memory_is_that_of_the_largest_batch_from_the_first_one_on() -> None:
    """Later batches, narrower and with more rows, drop no graphs."""
    weights = model(0)
    sentences = [(SENTENCES[0] * 3)[:length] for length in (30, 30, 20, 20, 12, 12, 12, 12, 9, 9, 9, 9)]
    unmasker, generator, graphs = captured(weights)
    released = []
    release = generator.release
    generator.release = lambda: (released.append(len(graphs)), release())[1]  # type: ignore[method-assign]
    for _ in range(3):
        check_equal(unmasker.unmask(sentences, batch_tokens=2500), unmask(weights, sentences))
    assert released == [0]  # before the first batch
    assert len(graphs) > 10


def test_what_is_captured_after_a_release_has_a_pool_of_its_own() -> None:
    weights = model(0)
    unmasker, generator, graphs = captured(weights)
    for _ in range(2):
        for _ in range(3):
            check_equal(unmasker.unmask(SENTENCES), unmask(weights, SENTENCES))
        assert len(graphs) > 0
        assert graphs.failure is None
        generator.release()


def test_a_step_that_cannot_be_captured_is_run() -> None:
    weights = model(0)

    def refuse(step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = StepGraphs(lambda: refuse)
    unmasker = Unmasker(weights, Generator(weights, ROUNDED, graphs))
    expected = unmask(weights, SENTENCES)
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted"):
        found = [unmasker.unmask(SENTENCES) for _ in range(3)]
    for completions in found:
        check_equal(completions, expected)
    assert graphs.failure == "operation not permitted when stream is capturing"
    assert len(graphs) == 0


def test_a_step_for_which_a_capture_has_no_memory_is_run() -> None:
    def full(step: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def short() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphs, done = StepGraphs(lambda: full), []
    for _ in range(3):
        graphs.run("a", lambda: done.append(1))
    assert done == [1, 1, 1]
    assert graphs.failure is None
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("a", short)


def test_the_stand_in_refuses_what_a_capture_on_cuda_refuses() -> None:
    values = torch.arange(4.0)
    steps = [
        lambda: float(values.sum()),
        lambda: values[values > 1],
        lambda: values.nonzero(),
    ]
    for step in steps:
        with torch.inference_mode(), pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            capture_by_recording(step)  # type: ignore[arg-type]


def test_the_stand_in_reads_and_writes_what_it_saw() -> None:
    source, target = torch.arange(4.0), torch.zeros(4)

    def step() -> None:
        target.copy_((source * 2).cumsum(0)[1:].sum() + torch.arange(4))

    with torch.inference_mode():
        replay = capture_by_recording(step)
        source += 10
        replay()
        assert target.tolist() == [((source * 2).cumsum(0)[1:].sum() + i).item() for i in range(4)]


def test_what_is_kept_is_released_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = model(0)
    unmasker, generator, graphs = captured(weights)
    for _ in range(2):
        unmasker.unmask(SENTENCES)
    assert len(graphs) > 0
    reserve, fails = head_statistics, [True]

    def once(*args: Any) -> Any:
        if fails:
            fails.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return reserve(*args)

    monkeypatch.setattr("pythia_dynamics.evaluation.generation.head_statistics", once)
    generator.release()
    with pytest.warns(UserWarning, match="out of memory"):
        check_equal(unmasker.unmask(SENTENCES), unmask(weights, SENTENCES))


def test_least_recently_used_graphs_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from pythia_dynamics.evaluation import graphs as module

    monkeypatch.setattr(module, "_MOST", 2)
    replayed: list[str] = []
    graphs = StepGraphs(lambda: lambda step: step)
    for key in ("a", "a", "b", "b", "a", "c", "c"):
        graphs.run(key, lambda key=key: replayed.append(key))  # type: ignore[misc]
    assert len(graphs) == 2
    assert replayed == ["a", "a", "b", "b", "a", "c", "c"]
    graphs.run("b", lambda: replayed.append("captured again"))
    assert replayed[-1] == "captured again"
    graphs.run("a", lambda: replayed.append("not called"))
    assert replayed[-1] in ("a", "not called")
