from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_models import model

from pythia_dynamics.evaluation.products import linear, transposed_linear_layers

ROWS = [1, 5, 6, 7, 32, 56, 57]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_asked_for_the_other_way_round_is_the_same(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, hidden = torch.nn.Linear(32, 96, bias=bias), torch.randn(rows, 32)
    with torch.inference_mode():
        torch.testing.assert_close(linear(layer, hidden), layer(hidden), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch is built without MKL")
@pytest.mark.parametrize("rows", ROWS)
def test_products_of_6_to_56_rows_are_computed_transposed(rows: int) -> None:
    layer, hidden = torch.nn.Linear(32, 96), torch.randn(rows, 32)
    with torch.inference_mode():
        assert linear(layer, hidden).is_contiguous() == (not 6 <= rows <= 56)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_model_with_quick_layers_is_the_same_model(rows: int, dtype: torch.dtype) -> None:
    weights: Any = model()
    weights.to(dtype)
    tokens = torch.randint(0, 304, (rows, 1))
    with torch.inference_mode():
        expected = weights(tokens).logits
        with transposed_linear_layers(weights, exclude=weights.lm_head):
            found = weights(tokens).logits
            assert type(weights.lm_head) is torch.nn.Linear
    assert found.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(found, expected)


def test_the_layers_are_themselves_again_afterwards() -> None:
    weights = model()
    layers = [module for module in weights.modules() if isinstance(module, torch.nn.Linear)]

    def fail() -> None:
        with transposed_linear_layers(weights, exclude=weights.lm_head):
            if torch.backends.mkl.is_available():
                assert sum(type(layer) is not torch.nn.Linear for layer in layers) == len(layers) - 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(type(layer) is torch.nn.Linear for layer in layers)
