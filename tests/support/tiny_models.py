"""Models, tokenizers and suites small enough to build in a test."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

END = "<|endoftext|>"
TEXTS = (
    "the cat sat on the mat and looked at the moon",
    "a dog ran over the hill to the river, and the river was cold",
    "she said that the answer was no, and then she said it again",
    "he opened the old door and heard the sea",
    "no one knew why the bell rang that night",
    "yes",
)


@functools.cache
def tokenizer() -> Tokenizer:
    """A byte-level BPE like Pythia's, of 300 entries."""
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    result.train_from_iterator(TEXTS, trainer)
    return result


SIZE: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,  # large, so that the likeliest token is far from the next one
}
"""Values of a config by which a model is tiny."""


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def config(**changes: Any) -> GPTNeoXConfig:
    return GPTNeoXConfig(**{**SIZE, "bos_token_id": 0, "eos_token_id": 0, **changes})


def model(seed: int = 0, **changes: Any) -> GPTNeoXForCausalLM:
    """A random GPT-NeoX in evaluation mode."""
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(config(**changes)).eval()


def write_checkpoint(directory: Path, weights: GPTNeoXForCausalLM, **options: object) -> Path:
    """A checkpoint in the Hub's layout: config, tokenizer, weights in float16."""
    weights.half().save_pretrained(directory, **options)
    tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def write_suite(root: Path, steps: Iterable[int]) -> Path:
    """A directory of checkpoints, each a model of its own."""
    for step in steps:
        write_checkpoint(root / f"step{step}", model(step))
    return root


def published_state(directory: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a checkpoint under the names its file has."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")
