"""Build a model, and load the weights of one checkpoint after the other into it.

A checkpoint is one safetensors file, one torch file, or shards of either. Names and shapes must match exactly, except
for the prefixes of wrappers. Only buffers that older versions of transformers saved beside the weights are skipped, by
name. The matrices of a GPT-2 of nanoGPT, whose linear layers store them transposed, are turned.
"""

from __future__ import annotations

import json
import pickle
import re
import threading
from collections.abc import Container, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pythia_dynamics.checkpoints.formats.slices import wrong_file_hint
from pythia_dynamics.checkpoints.layout import Layout, LayoutCache
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.reader import ListingBudget, RevisionReader
from pythia_dynamics.checkpoints.registry import FILE_NAMES
from pythia_dynamics.checkpoints.roles import ALL, prefixes_removed
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import CheckpointError, FormatError, first_line
from pythia_dynamics.evaluation.scoring import head_of

__all__ = ["build_model", "context_length", "load_weights", "prefix_token", "round_head", "weight_files"]

_DEFAULT_CONTEXT = 2048
"""Context of models whose config states none, since their positions have no limit (BLOOM's was trained with 2,048)."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_BUILDING = threading.Lock()
"""Held while a model is built: the random state and the default dtype, which change meanwhile, are of all threads."""

_MASK_OR_ROTARY_BUFFER = re.compile(r"(^|\.)(attention|attn)\.(masked_)?bias$|(^|\.)rotary_emb\.(inv_freq|cos|sin)\b")


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


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint, as fetch reads them; safetensors files are preferred.

    Raises `CheckpointError` when there are none or a shard is missing, `FormatError` for an index that cannot be read.
    """
    found = Layout.among(path.name for path in directory.iterdir() if path.is_file())
    if not found:
        raise CheckpointError(
            f"{directory} holds no weights (model.safetensors, pytorch_model.bin or shards of either)"
        )
    layout = found[0]
    if layout.has_index:
        return _shards(directory / layout.entry_file)
    return [directory / name for name in layout.shards or (layout.entry_file,)]


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
    """Copy the weights of a checkpoint into the model, converted to its dtype.

    Parameters
    ----------
    model
        From `build_model`. After an error it holds a mixture of two checkpoints and must be loaded again before use.
    directory
        The checkpoint.

    Raises
    ------
    CheckpointError
        When a parameter is missing or has another shape, or when there is a tensor that the model does not have.
    FormatError
        For a file that cannot be read, or that holds other things than floating-point tensors.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = set(dict(model.named_parameters()))
    names = {in_file: name for name, in_file in FILE_NAMES.get(model.config.model_type, {}).items()}
    turned: bool | None = None
    conv1d = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    with torch.inference_mode():
        for file in weight_files(directory):
            for name, tensor in _tensors(file):
                if _MASK_OR_ROTARY_BUFFER.search(name):
                    continue
                parameter = parameters.get(known := _known_name(name, names, parameters))
                if parameter is None:
                    raise CheckpointError(f"{file} holds {name}, which the model of its config.json does not have")
                if known in conv1d and tensor.dim() == 2:
                    if turned is None and tensor.shape != parameter.shape:  # the first ones are not square
                        turned = tensor.T.shape == parameter.shape
                    tensor = tensor.T if turned else tensor
                if parameter.shape != tensor.shape:
                    shapes = f"{tuple(tensor.shape)}, not {tuple(parameter.shape)}"
                    raise CheckpointError(f"{name} of {file} has shape {shapes} as its config.json says")
                if tensor.dtype not in _DTYPES:  # quantised weights mean nothing without their scales
                    raise FormatError(f"{name} of {file} is {tensor.dtype}; only floats of 16 bits or more are read")
                parameter.copy_(tensor)
                missing.discard(known)
    if turned and all(name.endswith(".bias") for name in missing):  # a GPT-2 of nanoGPT, trained without biases
        for name in missing:
            parameters[name].data.zero_()
        missing.clear()
    if missing:
        first = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise CheckpointError(f"{directory} lacks {len(missing)} weights: {first}")


def _known_name(name: str, names: Mapping[str, str], parameters: Container[str]) -> str:
    """The name that a tensor of a file has in the model: without what wrappers put before it."""
    for shorter in (name, *prefixes_removed(name)):
        if (known := names.get(shorter, shorter)) in parameters:
            return known
    return name


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # a handle, not a mapping
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise FormatError(f"cannot read {file}: {_pointer_hint(file) or error}") from error
        return
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # beside the weights it has objects, which our interpreter does not make
        state = {}
    except (RuntimeError, EOFError, ValueError) as error:
        reason = _pointer_hint(file) or first_line(error)
        raise FormatError(f"cannot read {file} as a zip-format torch file of weights only: {reason}") from error
    if isinstance(state, dict) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
        yield from state.items()
        return
    source = LocalSource(file.parent)
    reader = RevisionReader(source, Revision(0, file.name, kind="file", file=file.name))
    with closing(reader):
        for request in reader.find((ALL,), LayoutCache(), listings=ListingBudget(0)):
            content = bytearray(b"".join(reader.read(request)))
            tensor = torch.frombuffer(content, dtype=getattr(torch, request.tensor.dtype))
            yield request.tensor.name, tensor.reshape(request.tensor.shape)


def _pointer_hint(file: Path) -> str | None:
    """What a file is instead of weights, if that is known."""
    with file.open("rb") as opened:
        return wrong_file_hint(opened.read(64))


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
