"""One model built once, and the weights of checkpoint after checkpoint loaded straight into it.

Checkpoints come as one safetensors file, one torch file, or shards of either with an index. Names and shapes have to
match exactly; only buffers that older versions of transformers saved beside the weights are passed over, by name.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pythia_dynamics.errors import CheckpointError, FormatError
from pythia_dynamics.evaluation.scoring import head_of

__all__ = ["build_model", "context_length", "load_weights", "prefix_token", "round_head", "weight_files"]

_LAYOUTS = ("model.safetensors", "pytorch_model.bin")
_RENAMED = re.compile(r"^embed_out\.")  # what the files call lm_head
_MASK_OR_ROTARY_BUFFER = re.compile(r"(^|\.)(attention|attn)\.(masked_)?bias$|(^|\.)rotary_emb\.(inv_freq|cos|sin)\b")


def build_model(directory: Path, *, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint's ``config.json``, with no weights of use yet, in evaluation mode.

    Raises `CheckpointError` when there is no such file, or for an architecture that computes its logits by more than
    one matrix from the last hidden state, which the engines rely on.
    """
    cuda = [device] if device.type == "cuda" else []
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        # Building draws initial weights; the caller's random state is none of our business.
        with torch.random.fork_rng(devices=cuda), torch.device(device):
            build = AutoModelForCausalLM.from_config
            model = build(config, dtype=dtype, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot build a model from {directory}/config.json: {reason}") from error
    assert isinstance(model, PreTrainedModel)
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    probe = torch.arange(min(4, config.vocab_size), device=device)[None]
    with torch.inference_mode():
        ours = head_of(model)(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
        same = torch.equal(model(input_ids=probe, use_cache=False).logits, ours)
    if not same:
        raise CheckpointError(f"{config.model_type} models are not evaluated: their logits are not a product with W_U")
    return model


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence the model was made for."""
    return int(model.config.max_position_embeddings)


def prefix_token(model: PreTrainedModel) -> int | None:
    """The token that stands for an empty context: begin of text, or else end of text."""
    config = model.config
    for value in (config.bos_token_id, config.eos_token_id):
        if isinstance(value, int) and 0 <= value < config.vocab_size:
            return value
    return None


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, safetensors before torch. Raises `CheckpointError` for none."""
    for single in _LAYOUTS:
        index = directory / f"{single}.index.json"
        if (directory / single).is_file():
            return [directory / single]
        if index.is_file():
            return _shards(index)
    raise CheckpointError(f"{directory} holds no weights (model.safetensors, pytorch_model.bin or shards of either)")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"cannot read the index of shards {index}: {error}") from error
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names a shard {name} that is not there")
    return [index.parent / name for name in names]


def load_weights(model: PreTrainedModel, directory: Path) -> None:
    """Copy a checkpoint's weights into the model, casting to its dtype.

    Raises `CheckpointError` unless every parameter is there once, in its shape, and nothing else is. After an error
    the model holds a mixture, to be loaded again before use.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = set(dict(model.named_parameters()))
    with torch.inference_mode():
        for file in weight_files(directory):
            for name, tensor in _tensors(file):
                name = _RENAMED.sub("lm_head.", name)
                if _MASK_OR_ROTARY_BUFFER.search(name):
                    continue
                if name not in parameters:
                    raise CheckpointError(f"{file} holds {name}, which the model of its config.json does not have")
                parameter = parameters[name]
                if parameter.shape != tensor.shape:
                    shapes = f"{tuple(tensor.shape)}, not {tuple(parameter.shape)}"
                    raise CheckpointError(f"{name} of {file} has shape {shapes} as in the first checkpoint evaluated")
                if not tensor.is_floating_point():
                    raise FormatError(f"{name} of {file} is {tensor.dtype}, not a floating-point tensor")
                parameter.copy_(tensor)
                missing.discard(name)
    if missing:
        names = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise CheckpointError(f"{directory} lacks {len(missing)} weights: {names}")


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # a handle, not a mapping
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise FormatError(f"cannot read {file}: {error}") from error
        return
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"cannot read {file} as a zip-format torch file of weights only: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FormatError(f"{file} is not a state dict of tensors")
    yield from state.items()


def round_head(model: PreTrainedModel) -> None:
    """Round W_U in place to {−1, 0, +1}·γ with γ = mean |w| of the whole matrix (absmean, BitNet b1.58).

    Raises `CheckpointError` where input and output embeddings are one matrix: that would round both.
    """
    weight = head_of(model).weight
    if weight is model.get_input_embeddings().weight:
        raise CheckpointError("a ternary head needs an output embedding of its own; this model ties it to the input")
    with torch.inference_mode():
        exact = weight.float()
        scale = exact.abs().mean()
        if scale > 0:
            weight.copy_((exact / scale).round_().clamp_(-1, 1) * scale)
