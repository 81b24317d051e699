"""Build the model of a checkpoint, and what it says of itself: its context, its prefix token, its rounded head."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pythia_dynamics.errors import CheckpointError, first_line
from pythia_dynamics.evaluation import nanogpt  # noqa: F401  (registers the architecture)
from pythia_dynamics.evaluation.scoring import head_of

__all__ = ["build_model", "context_length", "prefix_token", "round_head"]

_DEFAULT_CONTEXT = 2048
"""Context of models whose config states none, since their positions have no limit (BLOOM's was trained with 2,048)."""

_BUILDING = threading.Lock()
"""Held while a model is built: the random state and the default dtype, which change meanwhile, are of all threads."""


def build_model(directory: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint's ``config.json``, in evaluation mode, with random weights.

    Parameters
    ----------
    directory
        The checkpoint.
    device, dtype
        Where the weights are put, and their precision.

    Raises
    ------
    CheckpointError
        When there is no such file or no such architecture, or when the logits are not the product of W_U and the last
        hidden state, which scoring relies on.
    """
    cuda = [device] if device.type == "cuda" else []
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        # Building draws initial weights; the random state of the caller must not change.
        with _BUILDING, torch.random.fork_rng(devices=cuda), torch.device(device):
            model = _from_config(config, dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"cannot build a model from {directory}/config.json: {first_line(error)}") from error
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    probe = torch.arange(min(4, config.vocab_size), device=device)[None]
    with torch.inference_mode():
        ours = head_of(model)(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
        same = torch.equal(model(input_ids=probe, use_cache=False).logits, ours)
    if not same:
        raise CheckpointError(f"{config.model_type} models are not evaluated: their logits are not a product with W_U")
    return model


def _from_config(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config, with fused attention where its architecture has it."""
    build = AutoModelForCausalLM.from_config
    try:
        model = build(config, dtype=dtype, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model = build(config, dtype=dtype, attn_implementation="eager")  # type: ignore[no-untyped-call]
    assert isinstance(model, PreTrainedModel)
    return model


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence, in tokens, that the model was trained for."""
    names = ("max_position_embeddings", "seq_length", "max_seq_len", "max_sequence_length")
    stated = (getattr(model.config, name, None) for name in names)
    return next((length for length in stated if isinstance(length, int)), _DEFAULT_CONTEXT)


def prefix_token(model: PreTrainedModel) -> int | None:
    """The token that stands for an empty context: begin of text, else end of text, else None."""
    config = model.config
    for value in (config.bos_token_id, config.eos_token_id):
        if isinstance(value, int) and 0 <= value < config.vocab_size:
            return value
    return None


def round_head(model: PreTrainedModel) -> None:
    """Round W_U in place to {−1, 0, +1}·γ with γ = mean |w| of the whole matrix (absmean, BitNet b1.58).

    The claim that weights quantise themselves is in Garden; the rounding is that of arXiv 2402.17764. Raises
    `CheckpointError` where input and output embeddings are one matrix, because that would round both.
    """
    weight = head_of(model).weight
    if weight is model.get_input_embeddings().weight:
        raise CheckpointError("a ternary head needs an output embedding of its own; this model ties it to the input")
    with torch.inference_mode():
        exact = weight.float()
        scale = exact.abs().mean()
        if scale > 0:
            weight.copy_((exact / scale).round_().clamp_(-1, 1) * scale)
