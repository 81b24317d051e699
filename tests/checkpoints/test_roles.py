"""Which tensor is the unembedding: by names and config, for every language model that transformers can build."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from pythia_dynamics.checkpoints.roles import config_is_needed, find_roles, prefixes_removed

BLOCKS = [f"transformer.h.{i}.{part}.weight" for i in range(3) for part in ("ln_1", "attn.c_proj", "mlp.c_fc")]


@pytest.mark.parametrize(
    ("names", "config", "roles"),
    [
        (["gpt_neox.embed_in.weight", "embed_out.weight"], None, ("embed_out.weight", "gpt_neox.embed_in.weight")),
        (["transformer.wte.weight", "transformer.wpe.weight"], {"model_type": "gpt2"}, ("transformer.wte.weight",) * 2),
        (["model.embed_tokens.weight"], {"model_type": "llama"}, (None, "model.embed_tokens.weight")),
        (["embedding.word_embeddings.weight", "output_layer.weight"], {}, (None, "embedding.word_embeddings.weight")),
        (["a.word_embeddings.weight"], {"model_type": "of one's own"}, (None, "a.word_embeddings.weight")),
        (["transformer.wte.weight"], {"tie_word_embeddings": False}, (None, "transformer.wte.weight")),
        (["transformer.wte.weight"], None, (None, "transformer.wte.weight")),
        (
            ["model.embed_tokens.weight", "lm_head.weight"],
            {"tie_word_embeddings": True},
            ("lm_head.weight", "model.embed_tokens.weight"),
        ),
        (
            ["module._orig_mod.wte.weight", "module._orig_mod.lm_head.weight"],
            None,
            ("module._orig_mod.lm_head.weight", "module._orig_mod.wte.weight"),
        ),
        (  # OLMo 1: every block has an ff_out
            ["model.transformer.wte.weight", "model.transformer.blocks.0.ff_out.weight"],
            {"weight_tying": True},
            ("model.transformer.wte.weight",) * 2,
        ),
        (
            [f"model.transformer.{part}.weight" for part in ("wte", "blocks.0.ff_out", "ff_out")],
            {},
            ("model.transformer.ff_out.weight", "model.transformer.wte.weight"),
        ),
        (
            ["tok_embeddings.weight", "layers.0.w1.weight", "output.weight"],
            {},
            ("output.weight", "tok_embeddings.weight"),
        ),
        (["bert.encoder.output.weight", "bert.head.weight"], {}, (None, None)),
        (
            ["language_model.model.embed_tokens.weight", "vision.patch.weight"],
            {"text_config": {"tie_word_embeddings": False}},
            (None, "language_model.model.embed_tokens.weight"),
        ),
        (["a.lm_head.weight", "b.lm_head.weight", "a.wte.weight"], {}, (None, "a.wte.weight")),
        (["mtp.0.lm_head.weight", "lm_head.weight"], {}, ("lm_head.weight", None)),
        (["layernorm"], {}, (None, None)),
        ([], {}, (None, None)),
    ],
)
def test_roles(names: list[str], config: Any, roles: tuple[str | None, str | None]) -> None:
    found = find_roles([*BLOCKS, *names], config)
    assert (found.get("unembedding"), found.get("embedding")) == roles


def test_the_config_is_needed_only_without_a_head() -> None:
    assert config_is_needed(["transformer.wte.weight"])
    assert not config_is_needed(["transformer.wte.weight", "lm_head.weight"])
    assert not config_is_needed(["layernorm"])


def test_prefixes_of_wrappers() -> None:
    assert [*prefixes_removed("module._orig_mod.model.lm_head.weight")][-1] == "lm_head.weight"
    assert [*prefixes_removed("modular.weight")] == []


def language_models() -> Iterator[tuple[str, Any]]:
    """Every causal or masked language model of transformers that its default config builds, with two layers."""
    names = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items(), *MODEL_FOR_MASKED_LM_MAPPING_NAMES.items()]
    for kind, class_name in names:
        with contextlib.suppress(Exception):  # some need another library, or cannot be built from their default config
            config = CONFIG_MAPPING[kind]()
            for layers in (
                "num_hidden_layers",
                "n_layer",
                "num_layers",
                "n_layers",
                "encoder_layers",
                "decoder_layers",
            ):
                with contextlib.suppress(Exception):
                    if isinstance(getattr(config, layers, None), int):
                        setattr(config, layers, 2)
            with torch.device("meta"):
                model = getattr(transformers, class_name if isinstance(class_name, str) else class_name[0])(config)
            model.tie_weights()
            yield class_name, model


def test_every_language_model_of_transformers() -> None:
    right: list[tuple[str, str]] = []
    wrong: list[tuple[str, str]] = []
    for name, model in language_models():
        names_of: dict[int, list[str]] = {}
        for place, parameter in model.named_parameters(remove_duplicate=False):
            names_of.setdefault(id(parameter), []).append(place)
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        in_file = [place for place in dict(model.named_parameters(remove_duplicate=False)) if place not in tied]
        found = find_roles(in_file, model.config.to_dict())
        for role, module in (
            ("unembedding", model.get_output_embeddings()),
            ("embedding", model.get_input_embeddings()),
        ):
            truth = names_of.get(id(getattr(module, "weight", None)), [])
            if truth and role in found:
                (right if found[role] in truth else wrong).append((name, role))
            elif truth:
                wrong.append((name, f"no {role}"))
    assert len(right) > 350
    assert wrong == [("BltForCausalLM", "no embedding")]  # it has two, of an encoder and a decoder
