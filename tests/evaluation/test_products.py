from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from support.tiny_models import model

from pythia_dynamics.evaluation import products
from pythia_dynamics.evaluation.products import (
    packed_is_faster,
    packed_layers,
    packed_linear_layers,
    product_rate,
)
from pythia_dynamics.evaluation.scoring import score
from pythia_dynamics.evaluation.unmasking import unmask

can_pack = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="torch is built without oneDNN for this processor"
)


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def faster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the machine is one where packed weights are faster."""
    monkeypatch.setattr(products, "packed_is_faster", lambda dtype: request.param)
    return bool(request.param)


def linear_layers(weights: torch.nn.Module) -> list[torch.nn.Linear]:
    return [module for module in weights.modules() if isinstance(module, torch.nn.Linear)]


@can_pack
@pytest.mark.parametrize("rows", [1, 5, 16, 57])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_model_with_packed_layers_is_the_same_model(rows: int, dtype: torch.dtype, faster: bool) -> None:
    weights: Any = model()
    weights.to(dtype)
    before = {name: parameter.clone() for name, parameter in weights.named_parameters()}
    tokens = torch.randint(0, 304, (rows, 3))
    expected = weights(tokens).logits
    packs = faster and dtype != torch.float64
    with packed_linear_layers(weights):
        assert all((type(layer) is not torch.nn.Linear) == packs for layer in linear_layers(weights))
        assert all((layer.weight.numel() == 0) == packs for layer in linear_layers(weights))  # not held twice
        found = weights(tokens).logits
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.05}.get(dtype, 0) if packs else 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert before.keys() == dict(weights.named_parameters()).keys()
    for name, parameter in weights.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.is_inference()


@can_pack
def test_a_tied_embedding_keeps_its_values_while_its_head_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "packed_is_faster", lambda dtype: True)
    weights: Any = model(tie_word_embeddings=True)
    assert weights.lm_head.weight is weights.gpt_neox.embed_in.weight
    tokens = torch.randint(0, 304, (4, 5))
    expected = weights(tokens).logits
    with packed_linear_layers(weights):
        assert weights.lm_head.weight.shape == (304, 32)
        torch.testing.assert_close(weights(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert weights.lm_head.weight is weights.gpt_neox.embed_in.weight


@can_pack
def test_layers_with_one_weight_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "packed_is_faster", lambda dtype: True)
    first, second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    second.weight = first.weight
    both = torch.nn.Sequential(first, second)
    states = torch.randn(3, 8)
    expected = both(states)
    with packed_linear_layers(both):
        assert first.packed_weight is second.packed_weight
        torch.testing.assert_close(both(states), expected)
    assert torch.equal(both(states), expected)
    assert second.weight is first.weight


def test_the_layers_are_themselves_again_after_an_error(faster: bool) -> None:
    weights = model()
    expected = weights.lm_head.weight.clone()
    with pytest.raises(KeyError), packed_linear_layers(weights):
        raise KeyError
    assert all(type(layer) is torch.nn.Linear for layer in linear_layers(weights))
    assert not any(hasattr(layer, "packed_weight") for layer in linear_layers(weights))
    assert torch.equal(weights.lm_head.weight, expected)


@can_pack
def test_an_error_while_packing_loses_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, pack, packed = model(), products.pack_weight, []

    def fail_at_the_fourth(weight: torch.Tensor) -> torch.Tensor:
        packed.append(weight)
        if len(packed) == 4:
            raise RuntimeError("no memory")
        return pack(weight)

    monkeypatch.setattr(products, "packed_is_faster", lambda dtype: True)
    monkeypatch.setattr(products, "pack_weight", fail_at_the_fourth)
    before = [layer.weight.clone() for layer in linear_layers(weights)]
    with pytest.raises(RuntimeError, match="no memory"), packed_linear_layers(weights):
        raise AssertionError("not reached")
    assert all(torch.equal(layer.weight, kept) for layer, kept in zip(linear_layers(weights), before, strict=True))
    assert all(type(layer) is torch.nn.Linear for layer in linear_layers(weights))


def test_scores_and_completions_are_the_same_either_way(faster: bool) -> None:
    weights, sentences = model(), [[7, 3, 250, 9, 30], [2, 1, 4]]
    weights.double()  # is never packed
    exact, truth = score(weights, sentences, [1, 1]), unmask(weights, sentences)
    weights.float()
    found, completions = score(weights, sentences, [1, 1]), unmask(weights, sentences)
    assert found.nll == pytest.approx(exact.nll, rel=1e-5)
    assert all((a.tokens == b.tokens).all() for a, b in zip(completions, truth, strict=True))


@can_pack
@pytest.mark.parametrize(("plain", "packed", "expected"), [(1.0, 0.7, True), (1.0, 0.9, False), (1.0, 1.5, False)])
def test_packing_is_used_where_it_is_clearly_faster(
    plain: float, packed: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def taking(seconds: float) -> Any:
        def product(*arguments: Any) -> torch.Tensor:
            now[0] += seconds
            return torch.empty(0)

        return product

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.nn.functional, "linear", taking(plain))
    monkeypatch.setattr(products, "packed_product", taking(packed))
    assert packed_is_faster.__wrapped__(torch.float32) is expected


@can_pack
def test_bfloat16_is_packed_where_the_processor_supports_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "packed_is_faster", lambda dtype: True)
    weights: Any = model()
    weights.to(torch.bfloat16)
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert bool(packed_layers(weights)) == supported


def test_the_rate_of_products_is_operations_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, products_done = [0.0], []

    def repeat(states: torch.Tensor, weight: torch.Tensor, count: int) -> None:
        assert (states.shape, weight.shape) == ((256, 64), (64, 256))
        products_done.append(count)
        now[0] += 0.05 * count + (2.0 if len(products_done) == 1 else 0)  # the first call loads kernels

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(products, "_repeat", repeat)
    # The first call alone exceeds the time that is measured for, as where a kernel is compiled: it must not count.
    assert product_rate.__wrapped__(64, "cpu") == pytest.approx(2 * 256 * 64 * 256 / 0.05)
    assert sum(products_done) * 0.05 >= products._RATE_SECONDS


def test_the_rate_of_products_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    product_rate.cache_clear()
    rate = product_rate(64, "cpu")
    assert rate > 0
    monkeypatch.setattr(products, "_repeat", None)
    assert product_rate(64, "cpu") == rate
