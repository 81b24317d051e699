"""Small checkpoints in every layout, and whole suites of them, for the tests of everything that reads checkpoints."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import safetensors.torch
import torch

__all__ = ["HEAD", "LAYOUTS", "checkpoint", "raw", "state", "suite", "torch_file"]

LAYOUTS = ("safetensors", "torch", "safetensors shards", "torch shards")
HEAD = "embed_out.weight"


def state(
    step: int, *, vocab: int = 96, d_model: int = 16, layers: int = 2, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    """A state dict as GPT-NeoX has it, in its order: weights drawn with the step as the seed, mask buffers between."""
    generator = torch.Generator().manual_seed(step)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {"gpt_neox.embed_in.weight": draw(vocab, d_model)}
    for layer in range(layers):
        prefix = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{prefix}.query_key_value.weight"] = draw(3 * d_model, d_model)
        tensors[f"{prefix}.bias"] = torch.ones(1, 1, 8, 8).tril().to(torch.bool)
        tensors[f"{prefix}.dense.weight"] = draw(d_model, d_model)
    tensors["gpt_neox.final_layer_norm.weight"] = draw(d_model)
    tensors[HEAD] = draw(vocab, d_model)
    return tensors


def torch_file(content: object, **options: bool) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def checkpoint(
    tensors: Mapping[str, torch.Tensor], layout: str = "safetensors", *, shards: int = 2, **config: Any
) -> dict[str, bytes]:
    """The files of a checkpoint, by name. `config` has further entries of its ``config.json``."""
    files = {"config.json": json.dumps({"model_type": "gpt_neox", "tie_word_embeddings": False} | config).encode()}
    kind, _, sharded = layout.partition(" ")
    save = safetensors.torch.save if kind == "safetensors" else torch_file
    single = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    if not sharded:
        return {**files, single: save(dict(tensors))}
    stem, _, suffix = single.partition(".")
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        here = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{suffix}"
        files[file] = save({name: tensors[name] for name in here})
        weight_map |= dict.fromkeys(here, file)
    files[f"{single}.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}, sort_keys=True).encode()
    return files


def suite(steps: Iterable[int], layout: str = "safetensors", **shape: Any) -> dict[str, dict[str, bytes]]:
    """Branch → files, for these steps."""
    return {f"step{step}": checkpoint(state(step, **shape), layout) for step in steps}


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor, row-major."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
