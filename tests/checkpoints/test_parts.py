"""Parts of fused tensors and heads, compared with what the models of transformers compute from the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from pythia_dynamics.checkpoints.modules import PARTS, find_place, part_name, split_part
from pythia_dynamics.checkpoints.parts import (
    Attention,
    HeadsUnknownError,
    Part,
    head_parts,
    kind_parts,
    may_have_parts,
    part_of,
)
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.nanogpt import NanoGPTConfig

WIDE: dict[str, Any] = {"vocab_size": 32, "hidden_size": 24, "num_hidden_layers": 1}
USUAL: dict[str, Any] = {**WIDE, "intermediate_size": 40, "max_position_embeddings": 16, "num_attention_heads": 4}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, Any] = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**USUAL),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=32, n_positions=16, n_embd=24, n_layer=1, n_head=4),
    "nanogpt": lambda: NanoGPTConfig(**{**WIDE, "max_position_embeddings": 16, "num_attention_heads": 4}),
    "bloom": lambda: transformers.BloomConfig(vocab_size=32, hidden_size=24, n_layer=1, n_head=4),
    "falcon, groups": lambda: transformers.FalconConfig(
        **WIDE, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True, bias=True
    ),
    "falcon, one key": lambda: transformers.FalconConfig(**WIDE, num_attention_heads=4, multi_query=True, bias=True),
    "falcon, all keys": lambda: transformers.FalconConfig(**WIDE, num_attention_heads=4, multi_query=False),
    "phi3": lambda: transformers.Phi3Config(**USUAL, **IDS, num_key_value_heads=2),
    "llama": lambda: transformers.LlamaConfig(**USUAL, num_key_value_heads=2, attention_bias=True),
    "persimmon": lambda: transformers.PersimmonConfig(**{**USUAL, "hidden_size": 32}, qk_layernorm=False),
    "mpt": lambda: transformers.MptConfig(vocab_size=32, d_model=24, n_heads=4, n_layers=1, max_seq_len=16),
}
TOKENS = torch.randint(3, 32, (2, 7), generator=torch.Generator().manual_seed(1))


class Model:
    """A model of random weights, and its parts by (kind, head)."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        config = CONFIGS[name]()
        config._attn_implementation = "eager"
        self.model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(0, 0.4)
        found = Attention.from_config(config.to_dict())
        assert found is not None
        self.attention: Attention = found
        self.weights = dict(self.model.named_parameters())

    def parts(self, only: str) -> Iterator[tuple[str, str, int | None, Part]]:
        """Tensor, kind, head and part of each part, of weights or biases."""
        for name, weights in self.weights.items():
            if name.endswith(only):
                shape = weights.shape
                for part in (*kind_parts(name, shape, self.attention), *head_parts(name, shape, self.attention)):
                    yield name, part.kind or str(find_place(name).kind), part.head, part

    def run(self) -> Any:
        with torch.no_grad():
            return self.model(TOKENS, use_cache=True, output_attentions=True)

    def inputs(self) -> torch.Tensor:
        """What the layer of the queries gets, (2, 7, 24)."""
        layer = next(module for name, module in self.model.named_modules() if may_have_parts(f"{name}.weight"))
        seen: list[torch.Tensor] = []
        with_hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
        self.run()
        with_hook.remove()
        return seen[0]

    def product(self, kind: str, head: int, states: torch.Tensor) -> np.ndarray[Any, Any]:
        """The states multiplied by the part of the weights of this kind and head, with its bias."""
        total = np.zeros(())
        for end in ("weight", "bias"):
            for name, found, number, part in self.parts(end):
                if (found, number) == (kind, head):
                    cut = part.of(self.weights[name].detach().numpy())
                    if cut.ndim == 2:
                        total = total + states.numpy() @ (cut if part.axis == 1 else cut.T)
                    else:
                        total = total + cut
        return np.asarray(total)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def test_keys_and_values_of_each_head_are_those_that_the_model_keeps(model: Model) -> None:
    layer, states = model.run().past_key_values.layers[0], model.inputs()
    counts = {kind: {head for _, found, head, _ in model.parts("weight") if found == kind} - {None} for kind in PARTS}
    repeated = layer.values.shape[1] // len(counts["value"])  # Falcon keeps a key for each query
    assert len(counts["query"]) == model.attention.heads
    assert repeated == 1 or model.attention.model_type == "falcon"
    for head in range(layer.values.shape[1]):
        values = model.product("value", head // repeated, states)
        np.testing.assert_allclose(values, layer.values[:, head].numpy(), rtol=1e-9, atol=1e-12)
        keys = model.product("key", head // repeated, states[:, :1])  # the first position is not rotated
        np.testing.assert_allclose(keys, layer.keys[:, head, :1].numpy(), rtol=1e-9, atol=1e-12)


def test_without_the_query_of_a_head_its_attention_does_not_see_the_tokens(model: Model) -> None:
    before = model.run().attentions[0]
    for head in range(model.attention.heads):
        kept = {}
        for end in ("weight", "bias"):
            for name, kind, number, part in model.parts(end):
                if (kind, number) == ("query", head):
                    tensor = model.weights[name].detach()
                    kept[name] = tensor.clone()
                    part.segments(tensor.numpy())[...] = 0
        after = model.run().attentions[0]
        for name, tensor in kept.items():
            model.weights[name].data.copy_(tensor)
        others = [other for other in range(model.attention.heads) if other != head]
        assert torch.equal(after[:, others], before[:, others])
        assert not torch.allclose(before[0, head], before[1, head], atol=1e-3)
        np.testing.assert_allclose(after[0, head], after[1, head], rtol=1e-12)  # of two different texts


def test_the_parts_are_the_tensor_and_the_heads_are_the_parts(model: Model) -> None:
    for name, weights in model.weights.items():
        array = weights.detach().numpy()
        kinds, heads = (of(name, array.shape, model.attention) for of in (kind_parts, head_parts))
        if kinds:
            cut = [part.of(array) for part in kinds]
            assert sum(each.size for each in cut) == array.size
            assert sorted(np.concatenate([each.ravel() for each in cut])) == sorted(array.ravel())
        for part in kinds or (None,):
            of_kind = [each for each in heads if part is None or each.kind == part.kind]
            if of_kind:
                axis = of_kind[0].axis
                joined = np.concatenate([each.of(array) for each in of_kind], axis=axis)
                np.testing.assert_array_equal(joined, array if part is None else part.of(array))
                assert [each.head for each in of_kind] == list(range(len(of_kind)))
                assert all(np.shares_memory(each.segments(array), array) for each in of_kind)


@pytest.mark.parametrize("name", ["phi3", "glm"])
def test_gate_and_up_make_what_the_mlp_multiplies(name: str) -> None:
    config = {"phi3": transformers.Phi3Config, "glm": transformers.GlmConfig}[name]
    more = {**USUAL, **IDS, "num_key_value_heads": 2} | ({"head_dim": 6} if name == "glm" else {})
    model = transformers.AutoModelForCausalLM.from_config(config(**more)).double().eval()
    mlp, tensor = model.model.layers[0].mlp, "model.layers.0.mlp.gate_up_proj.weight"
    attention = Attention.from_config(model.config.to_dict())
    states, seen = torch.randn(5, 24, dtype=torch.float64), []
    mlp.down_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    mlp(states)
    array = dict(model.named_parameters())[tensor].detach().numpy()
    halves = {
        part.kind: states @ torch.from_numpy(part.of(array)).T for part in kind_parts(tensor, (80, 24), attention)
    }
    torch.testing.assert_close(seen[0], halves["up"] * torch.nn.functional.silu(halves["gate"]))
    assert not head_parts(tensor, (80, 24), attention)


def test_olmo_1_has_up_before_gate_and_fewer_keys() -> None:
    """As its conversion to transformers splits the tensors (`att_proj` by sizes, `ff_proj` in up and gate)."""
    block, attention = "model.transformer.blocks.3", Attention(8, 4, "hf_olmo")
    parts = kind_parts(f"{block}.att_proj.weight", (8 * 4 + 2 * 2 * 4, 32), attention)
    assert [(part.kind, part.start, part.length) for part in parts] == [
        ("query", 0, 32),
        ("key", 32, 8),
        ("value", 40, 8),
    ]
    halves = kind_parts(f"{block}.ff_proj.weight", (200, 32), attention)
    assert [(part.kind, part.start, part.length) for part in halves] == [("up", 0, 100), ("gate", 100, 100)]


@given(
    heads=st.integers(1, 5),
    per=st.integers(1, 4),
    size=st.integers(1, 6),
    width=st.integers(1, 9),
    model_type=st.sampled_from(["falcon", "phi3"]),
)
def test_any_shape_is_cut_as_a_reshape_cuts_it(heads: int, per: int, size: int, width: int, model_type: str) -> None:
    attention = Attention(heads * per, size, model_type)
    array = np.arange((heads * per + 2 * heads) * size * width).reshape(-1, width)
    if model_type == "falcon":
        name = "transformer.h.0.self_attention.query_key_value.weight"
        split = array.reshape(heads, per + 2, size, width)
        expected = {"query": split[:, :per], "key": split[:, per], "value": split[:, per + 1]}
    else:
        name, rows = "model.layers.0.self_attn.qkv_proj.weight", heads * per * size
        kept = heads * size
        expected = {"query": array[:rows], "key": array[rows : rows + kept], "value": array[rows + kept :]}
    for kind, wanted in expected.items():
        by_head = wanted.reshape(-1, size, width)
        np.testing.assert_array_equal(
            part_of(name, array.shape, kind, None, attention).of(array), by_head.reshape(-1, width)
        )
        for head, block in enumerate(by_head):
            np.testing.assert_array_equal(part_of(name, array.shape, kind, head, attention).of(array), block)


def test_names_of_parts_are_read_as_they_are_written() -> None:
    for tensor in ("gpt_neox.layers.3.attention.query_key_value.weight", "h.0.attn.c_attn.bias"):
        for kind in (None, *PARTS):
            for head in (None, 0, 31):
                name = part_name(tensor, kind, head)
                assert split_part(name) == (tensor, kind, head)
                place = find_place(name)
                assert (place.head, place.is_bias) == (head, tensor.endswith("bias"))
                assert place.kind == (PARTS[kind] if kind else "query-key-value")
    for name in ("bert.encoder.layer.3.attention.self.query", "rotary_emb.head3", "weights", "weights.query"):
        assert split_part(name) == (name, None, None)


NEOX = "gpt_neox.layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("tensor", "shape", "kind", "head", "attention", "said"),
    [
        (NEOX, (24, 8), "query", None, None, "the number of attention heads of .* is not known: give --heads"),
        (NEOX, (24, 8), "query", 2, Attention(2), "has the heads 0 to 1; got 2"),
        (NEOX, (24, 8), None, 1, Attention(2), "has the parts query, key, value; name one of them"),
        (NEOX, (24, 8), "query", None, Attention(3), r"\[24, 8\] cannot be divided among 3 heads"),
        (NEOX, (24, 8), "query", None, Attention(2, 5), "among 2 heads of size 5"),
        (NEOX, (24, 8), "query", None, Attention(2, None, "minimax"), "not known for the architecture minimax"),
        (NEOX, (24, 8), "gate", None, Attention(2), "has the parts query, key, value"),
        ("embed_out.weight", (24, 8), "query", None, Attention(2), "embed_out.weight is not fused"),
        ("embed_out.weight", (24, 8), None, 1, Attention(2), "has no heads"),
        ("h.0.attn.c_attn.weight", (10, 8), "query", None, None, "cannot be divided into query, key, value"),
        ("model.layers.0.self_attn.k_proj.weight", (10, 8), None, 0, Attention(2), "cannot be divided among 2 heads"),
        ("model.layers.0.self_attn.q_proj.weight", (32, 8), None, 0, Attention(2, 8), "2 heads of size 8"),
        ("model.layers.0.self_attn.qkv_proj.bias", (24,), "query", None, Attention(2), "size of a head"),
        ("model.layers.0.mlp.gate_up_proj.weight", (9, 8), "up", None, None, "cannot be divided into gate, up"),
    ],
)
def test_what_cannot_be_cut_says_why(
    tensor: str, shape: tuple[int, ...], kind: str | None, head: int | None, attention: Attention | None, said: str
) -> None:
    with pytest.raises(PythiaDynError, match=said) as caught:
        part_of(tensor, shape, kind, head, attention)
    assert "\n" not in str(caught.value)


def test_other_words_and_numbers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="querry"):
        part_of(NEOX, (24, 8), "querry", None, Attention(2))
    with pytest.raises(HeadsUnknownError):
        head_parts("model.layers.0.self_attn.q_proj.weight", (8, 8), None)
    for heads in (0, -1, 2.5, True):
        with pytest.raises(PythiaDynError, match="number of heads must be"):
            Attention(heads)  # type: ignore[arg-type]


def test_what_a_config_says_of_heads() -> None:
    assert Attention.from_config({}) is None
    assert Attention.from_config({"n_head": 4, "n_embd": 32}) == Attention(4, 8)
    assert Attention.from_config({"num_attention_heads": 3, "hidden_size": 32}) == Attention(3)
    assert Attention.from_config({"num_attention_heads": "4"}) is None
    text = {"num_attention_heads": 4, "head_dim": 7, "model_type": "phi3"}
    assert Attention.from_config({"text_config": text, "n_head": 2}) == Attention(4, 7, "phi3")
    assert Attention.from_config({"num_heads": 8, "d_kv": 64, "d_model": 768}) == Attention(8, 64)
