"""The weights of a checkpoint: found in its files, checked against a model, and copied into it.

A checkpoint is one safetensors file, one torch file, or shards of either. Names and shapes must match exactly, except
for the prefixes of wrappers. Only buffers that older versions of transformers saved beside the weights are skipped, by
name. The matrices of a GPT-2 of nanoGPT, whose linear layers store them transposed, are turned.

Finding reads headers only and leaves the model as it is. So a checkpoint that does not fit the model is known before
the first parameter is overwritten, and the next checkpoint can be checked while the model computes.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pythia_dynamics.checkpoints.formats.slices import wrong_file_hint
from pythia_dynamics.checkpoints.layout import Layout, LayoutCache
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.registry import FILE_NAMES
from pythia_dynamics.checkpoints.roles import ALL, prefixes_removed
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.checkpoints.tensors import TensorRequest
from pythia_dynamics.errors import CheckpointError, FormatError, first_line

__all__ = ["Expected", "FoundTensor", "Weights", "copy_weights", "find_weights", "load_weights", "weight_files"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_MASK_OR_ROTARY_BUFFER = re.compile(r"(^|\.)(attention|attn)\.(masked_)?bias$|(^|\.)rotary_emb\.(inv_freq|cos|sin)\b")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model expects of the files of a checkpoint.

    It is a value, because a model that is in use may have weights without values for a while (`packed_linear_layers`).

    Parameters
    ----------
    shapes
        Shape of each parameter by its name; tied ones under all their names.
    required
        Names of the parameters that a checkpoint must have; tied ones under the first of their names.
    names
        Names in the model by those in the files, where they differ.
    conv1d
        Names of the weights that ``Conv1D`` stores transposed.
    """

    shapes: Mapping[str, torch.Size]
    required: frozenset[str]
    names: Mapping[str, str]
    conv1d: frozenset[str]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """What a model expects that is not in use."""
        names = FILE_NAMES.get(model.config.model_type, {})
        return cls(
            shapes={name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)},
            required=frozenset(name for name, _ in model.named_parameters()),
            names={in_file: name for name, in_file in names.items()},
            conv1d=frozenset(f"{name}.weight" for name, part in model.named_modules() if isinstance(part, Conv1D)),
        )


@dataclass(frozen=True, slots=True)
class FoundTensor:
    """A tensor of a file, which is read only when it is needed.

    Parameters
    ----------
    name
        Its name in the file; as part of `Weights`, that of its parameter in the model.
    shape, dtype
        As in the file.
    read
        Gives its values, shape `shape` and dtype `dtype`, on the host or where they are staged. Those of a safetensors
        file or of a plain torch file are a view of the mapped file, which takes no memory of its own; the file stays
        mapped as long as the tensor or this value is held. Raises `FormatError` where the file is damaged.
    is_turned
        Whether the parameter holds the transpose.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], torch.Tensor] = field(repr=False)
    is_turned: bool = False

    @property
    def nbytes(self) -> int:
        """Size of its values in bytes."""
        return self.shape.numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint that fits a model.

    Parameters
    ----------
    tensors
        What the parameters become, in the order of the files. Where two of them belong to one parameter (tied
        embeddings that a file holds twice), the later one counts.
    absent
        Names of the parameters that become zero: the biases of a GPT-2 of nanoGPT that was trained without.
    """

    tensors: tuple[FoundTensor, ...]
    absent: tuple[str, ...]


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
        From `build_model`. After an error it holds the weights it had before.
    directory
        The checkpoint.

    Raises
    ------
    CheckpointError
        When a parameter is missing or has another shape, or when there is a tensor that the model does not have.
    FormatError
        For a file that cannot be read, or that holds other things than floating-point tensors.
    """
    copy_weights(model, find_weights(Expected.of(model), directory))


def find_weights(expected: Expected, directory: Path) -> Weights:
    """The tensors of a checkpoint, each with the name of the parameter it belongs to.

    Parameters
    ----------
    expected
        Of the model.
    directory
        The checkpoint.

    Raises
    ------
    CheckpointError, FormatError
        As `load_weights`.
    """
    missing = set(expected.required)
    turned: bool | None = None
    tensors = []
    for file in weight_files(directory):
        for tensor in _tensors(file):
            name, shape = tensor.name, tensor.shape
            if _MASK_OR_ROTARY_BUFFER.search(name):
                continue
            known = _known_name(name, expected)
            if (right := expected.shapes.get(known)) is None:
                raise CheckpointError(f"{file} holds {name}, which the model of its config.json does not have")
            is_conv1d = known in expected.conv1d and len(shape) == 2
            if is_conv1d and turned is None and shape != right:  # the first ones are not square
                turned = shape[::-1] == right
            is_turned = is_conv1d and bool(turned)
            in_model = shape[::-1] if is_turned else shape
            if in_model != right:
                difference = f"{tuple(in_model)}, not {tuple(right)}"
                raise CheckpointError(f"{name} of {file} has shape {difference} as its config.json says")
            if tensor.dtype not in _DTYPES:  # quantised weights mean nothing without their scales
                raise FormatError(f"{name} of {file} is {tensor.dtype}; only floats of 16 bits or more are read")
            tensors.append(FoundTensor(known, shape, tensor.dtype, tensor.read, is_turned))
            missing.discard(known)
    absent: tuple[str, ...] = ()
    if turned and all(name.endswith(".bias") for name in missing):  # a GPT-2 of nanoGPT, trained without biases
        absent, missing = tuple(sorted(missing)), set()
    if missing:
        first = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise CheckpointError(f"{directory} lacks {len(missing)} weights: {first}")
    return Weights(tuple(tensors), absent)


def copy_weights(model: PreTrainedModel, weights: Weights) -> None:
    """Copy weights into the model, converted to its dtype; the parameters keep their place in memory.

    Parameters
    ----------
    model
        The model that the weights were found for. An error in reading leaves it as it is.
    weights
        What to copy. The tensors of a file that is not mapped are all held at once.

    Raises
    ------
    FormatError
        Where a file is damaged.
    """
    contents = [tensor.read() for tensor in weights.tensors]  # all of them, before the first parameter changes
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.inference_mode():
        for tensor, content in zip(weights.tensors, contents, strict=True):
            parameters[tensor.name].copy_(content.T if tensor.is_turned else content)
        for name in weights.absent:
            parameters[name].zero_()


def _known_name(name: str, expected: Expected) -> str:
    """The name that a tensor of a file has in the model: without what wrappers put before it."""
    for shorter in (name, *prefixes_removed(name)):
        if (known := expected.names.get(shorter, shorter)) in expected.shapes:
            return known
    return name


def _tensors(file: Path) -> Iterator[FoundTensor]:
    """The tensors of a file, under their names in it."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # a handle, not a mapping
                    yield _mapped(name, opened.get_tensor(name))
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
        for name, tensor in state.items():
            yield _mapped(name, tensor)
        return
    reader = _revision_reader(file)
    with closing(reader):
        for request in reader.find((ALL,), LayoutCache(tickets=iter(()))):
            shape, dtype = torch.Size(request.tensor.shape), getattr(torch, request.tensor.dtype)
            yield FoundTensor(request.tensor.name, shape, dtype, partial(_read, file, request))


def _mapped(name: str, tensor: torch.Tensor) -> FoundTensor:
    return FoundTensor(name, tensor.shape, tensor.dtype, lambda: tensor)


def _revision_reader(file: Path) -> RevisionReader:
    return RevisionReader(LocalSource(file.parent), Revision(0, file.name, kind="file", file=file.name))


def _read(file: Path, request: TensorRequest) -> torch.Tensor:
    """A tensor that our interpreter has found."""
    with closing(_revision_reader(file)) as reader:
        content = bytearray(b"".join(reader.read(request)))
    return torch.frombuffer(content, dtype=getattr(torch, request.tensor.dtype)).reshape(request.tensor.shape)


def _pointer_hint(file: Path) -> str | None:
    """What a file is instead of weights, if that is known."""
    with file.open("rb") as opened:
        return wrong_file_hint(opened.read(64))
