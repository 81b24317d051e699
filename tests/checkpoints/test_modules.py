"""The layer and the kind of a tensor, by the names of the architectures that are in use."""

from __future__ import annotations

import pytest

from pythia_dynamics.checkpoints.modules import find_place

PLACES = {
    "gpt_neox.embed_in.weight": (None, "embedding"),
    "gpt_neox.layers.0.attention.query_key_value.weight": (0, "query-key-value"),
    "gpt_neox.layers.0.attention.dense.weight": (0, "attention-out"),
    "gpt_neox.layers.11.mlp.dense_h_to_4h.weight": (11, "mlp-in"),
    "gpt_neox.layers.11.mlp.dense_4h_to_h.bias": (11, "mlp-out"),
    "gpt_neox.layers.0.post_attention_layernorm.weight": (0, "norm"),
    "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (0, "other"),
    "gpt_neox.final_layer_norm.weight": (None, "norm"),
    "embed_out.weight": (None, "unembedding"),
    "model.embed_tokens.weight": (None, "embedding"),
    "model.layers.2.self_attn.q_norm.weight": (2, "norm"),
    "model.layers.2.self_attn.q_proj.weight": (2, "query"),
    "model.layers.2.self_attn.k_proj.weight": (2, "key"),
    "model.layers.2.self_attn.v_proj.weight": (2, "value"),
    "model.layers.2.self_attn.o_proj.weight": (2, "attention-out"),
    "model.layers.2.mlp.gate_proj.weight": (2, "mlp-gate"),
    "model.layers.2.mlp.up_proj.weight": (2, "mlp-in"),
    "model.layers.2.mlp.down_proj.weight": (2, "mlp-out"),
    "lm_head.weight": (None, "unembedding"),
    "transformer.wte.weight": (None, "embedding"),
    "transformer.wpe.weight": (None, "position"),
    "transformer.h.0.attn.c_attn.weight": (0, "query-key-value"),
    "transformer.h.0.attn.c_proj.weight": (0, "attention-out"),
    "transformer.h.0.mlp.c_fc.weight": (0, "mlp-in"),
    "transformer.h.0.mlp.c_proj.weight": (0, "mlp-out"),
    "transformer.h.0.ln_1.weight": (0, "norm"),
    "transformer.h.0.attn.projection.bias": (0, "attention-out"),
    "transformer.h.0.up.weight": (0, "mlp-in"),
    "transformer.h.0.down.weight": (0, "mlp-out"),
    "model.transformer.blocks.3.att_proj.weight": (3, "query-key-value"),
    "model.transformer.blocks.3.ff_proj.weight": (3, "mlp-gate-in"),
    "model.transformer.blocks.3.ff_out.weight": (3, "mlp-out"),
    "model.transformer.ff_out.weight": (None, "unembedding"),
    "bert.encoder.layer.3.attention.self.query.weight": (3, "query"),
    "bert.encoder.layer.3.attention.output.dense.weight": (3, "attention-out"),
    "bert.encoder.layer.3.intermediate.dense.weight": (3, "mlp-in"),
    "bert.encoder.layer.3.output.dense.weight": (3, "mlp-out"),
    "bert.embeddings.LayerNorm.weight": (None, "norm"),
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": (0, "mlp-out"),
    "h.0.self_attention.query_key_value.weight": (0, "query-key-value"),
    "model.decoder.layers.1.self_attn.out_proj.weight": (1, "attention-out"),
    "model.decoder.layers.1.fc1.weight": (1, "mlp-in"),
    "startup.0.group.weight": (0, "other"),  # "up" is the end of a word, not of a name
    "weights": (None, "other"),
}


@pytest.mark.parametrize("tensor", PLACES)
def test_the_place_of_a_tensor(tensor: str) -> None:
    found = find_place(tensor)
    assert (found.layer, found.kind) == PLACES[tensor]
    assert found.is_bias == tensor.endswith(".bias")


def test_tensors_are_in_the_order_of_the_model() -> None:
    ordered = [
        "gpt_neox.embed_in.weight",
        "gpt_neox.layers.2.attention.query_key_value.weight",
        "gpt_neox.layers.2.attention.query_key_value.bias",
        "gpt_neox.layers.2.mlp.dense_4h_to_h.weight",
        "gpt_neox.layers.10.attention.query_key_value.weight",
        "gpt_neox.final_layer_norm.weight",
        "embed_out.weight",
    ]
    assert sorted(sorted(ordered), key=lambda name: find_place(name).order) == ordered
