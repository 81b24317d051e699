"""Tiny models, and a Trainer of `transformers` for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

ROWS = [{"input_ids": torch.arange(k, k + 8) % 20, "labels": torch.arange(k, k + 8) % 20} for k in range(64)]


def gpt2() -> PreTrainedModel:
    set_seed(0)
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=20, n_positions=8, tie_word_embeddings=False)
    return GPT2LMHeadModel(config)


def neox() -> PreTrainedModel:
    set_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
            vocab_size=20,
            max_position_embeddings=8,
        )
    )


def trainer(out: Path, model: PreTrainedModel, callbacks: list[TrainerCallback], **options: Any) -> Trainer:
    known: dict[str, Any] = {
        "max_steps": 12,
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(output_dir=str(out), **(known | options))
    return Trainer(model=model, args=arguments, train_dataset=ROWS, callbacks=callbacks)
