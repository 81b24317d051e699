"""Suites of tiny models, in the layouts in which others publish or save theirs.

Weights are multiples of 1/64 below 4: float16, bfloat16 and float32 hold them without loss, so that the same weights
have the same perplexity in every layout.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from support.checkpoints import torch_file
from support.tiny_models import SIZE, tokenizer

__all__ = [
    "Kind",
    "config_and_tokenizer",
    "files",
    "lightning",
    "model",
    "nanogpt",
    "prefixed",
    "state",
    "state_of",
    "torch_checkpoint",
    "write",
    "write_each",
]

Kind = Literal["gpt-neox", "llama", "llama-tied", "olmo2", "gpt2", "bloom", "bert"]

Files = Mapping[str, bytes]
"""The files of a checkpoint by name."""

_ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_GPT2: dict[str, Any] = {"vocab_size": 304, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}


def _config(kind: Kind) -> PretrainedConfig:
    if kind == "gpt-neox":
        return transformers.GPTNeoXConfig(**SIZE, **_ENDS)
    if kind == "olmo2":
        return transformers.Olmo2Config(**SIZE, **_ENDS)
    if kind == "gpt2":
        return transformers.GPT2Config(**_GPT2, **_ENDS, n_positions=48)
    if kind == "bloom":
        return transformers.BloomConfig(
            vocab_size=304, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **_ENDS
        )
    if kind == "bert":
        return transformers.BertConfig(**SIZE)
    return transformers.LlamaConfig(**SIZE, **_ENDS, num_key_value_heads=2, tie_word_embeddings=kind == "llama-tied")


@functools.cache
def model(kind: Kind, seed: int) -> PreTrainedModel:
    """A random model in float16, its biases included."""
    classes: dict[Kind, type[PreTrainedModel]] = {
        "gpt-neox": transformers.GPTNeoXForCausalLM,
        "olmo2": transformers.Olmo2ForCausalLM,
        "gpt2": transformers.GPT2LMHeadModel,
        "bloom": transformers.BloomForCausalLM,
        "bert": transformers.BertForPreTraining,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = classes.get(kind, transformers.LlamaForCausalLM)(_config(kind))
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.2)
            weight.copy_((weight * 64).round() / 64)
    result: PreTrainedModel = made.half().eval()
    return result


def state(kind: Kind, seed: int) -> dict[str, torch.Tensor]:
    """The state dict of a model."""
    return dict(model(kind, seed).state_dict())


@functools.cache
def files(kind: Kind, seed: int, *, shards: bool = False) -> dict[str, bytes]:
    """The checkpoint that transformers saves of a model, with a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"max_shard_size": "20KB"} if shards else {}
        model(kind, seed).save_pretrained(folder, **options)
        made = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return {**made, "tokenizer.json": tokenizer().to_str().encode()}


def state_of(checkpoint: Files) -> dict[str, torch.Tensor]:
    """The tensors of the safetensors files of a checkpoint."""
    parts = [safetensors.torch.load(content) for name, content in checkpoint.items() if name.endswith(".safetensors")]
    return {name: tensor for part in parts for name, tensor in part.items()}


def config_and_tokenizer(kind: Kind) -> dict[str, bytes]:
    """What a checkpoint has beside its weights."""
    return {name: content for name, content in files(kind, 0).items() if name in ("config.json", "tokenizer.json")}


def torch_checkpoint(kind: Kind, content: object, name: str = "pytorch_model.bin") -> dict[str, bytes]:
    """A checkpoint whose weights ``torch.save`` wrote."""
    return {**config_and_tokenizer(kind), name: torch_file(content)}


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """A state dict as a wrapper of the model names it."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def nanogpt(seed: int, step: int, *, biases: bool = True) -> dict[str, object]:
    """What train.py of nanoGPT saves of the GPT-2 of `model`: linear layers instead of ``Conv1D``, compiled.

    Without biases it is another model: one whose biases are 0, see `without_biases`.
    """
    found = state("gpt2", seed)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.T.contiguous()
        if biases or not name.endswith(".bias"):
            weights[f"_orig_mod.{name}"] = tensor
        if biases and name.endswith(".attn.c_attn.weight"):  # the mask, where there is no flash attention
            mask = torch.ones(48, 48).tril().view(1, 1, 48, 48)
            weights[f"_orig_mod.{name.removesuffix('c_attn.weight')}bias"] = mask
    return {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{}]},
        "model_args": {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 48, "bias": biases, "vocab_size": 304},
        "iter_num": step,
        "best_val_loss": torch.tensor(3.1),
        "config": {"out_dir": "out", "learning_rate": 6e-4},
    }


def without_biases(seed: int) -> dict[str, bytes]:
    """The checkpoint of transformers of the GPT-2 of `model` with biases of 0."""
    tensors = {name: torch.zeros_like(t) if name.endswith(".bias") else t for name, t in state("gpt2", seed).items()}
    return torch_checkpoint("gpt2", tensors)


def lightning(tensors: Mapping[str, torch.Tensor], step: int) -> dict[str, object]:
    """What a ``ModelCheckpoint`` of Lightning saves of a module that has the model as ``self.model``."""
    callback = {"best_model_score": torch.tensor(float("inf")), "dirpath": Path("/x")}
    return {
        "epoch": 1,
        "global_step": step,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": prefixed(tensors, "model."),
        "loops": {"fit_loop": {"state_dict": {}, "progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": callback},
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]}
        ],
        "lr_schedulers": [],
        "hyper_parameters": {"conf": argparse.Namespace(width=32, layers=[2])},
    }


def write(folder: Path, content: Files) -> Path:
    """Write files below a folder; the folder."""
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_each(folder: Path, checkpoints: Iterable[tuple[str, Files]]) -> Path:
    """Write checkpoints into folders of these names; the folder that holds them."""
    for name, content in checkpoints:
        write(folder / name, content)
    return folder


def json_file(**values: object) -> bytes:
    return json.dumps(values).encode()
