"""The `data.pkl` of a torch checkpoint: where its state dict is, and which part of which storage each tensor is."""

from __future__ import annotations

import math
from collections.abc import Collection

from pythia_dynamics.checkpoints.formats.pickles import Opaque, PickledTensor, read_pickle, type_name
from pythia_dynamics.checkpoints.formats.slices import DTYPE_BITS, TensorSlice, check_name, element_count, quote
from pythia_dynamics.checkpoints.formats.torchzip import ZipDirectory
from pythia_dynamics.errors import FormatError

__all__ = ["locate", "parse_state_dict", "state_dict_key"]

_KEYS = ("state_dict", "model_state_dict", "model", "module", "model_state", "params")
"""Keys of a checkpoint under which training programs save the state dict: Lightning, the tutorials of torch, nanoGPT,
DeepSpeed and others. Of several, the first one counts."""


def parse_state_dict(pickle: bytes, *, file: str) -> dict[str, PickledTensor]:
    """The tensors of a state dict by name, in its order; entries that are not tensors are left out.

    The state dict is the whole object, or lies under a key of it.

    Parameters
    ----------
    pickle
        Content of the member `ZipDirectory.pickle`; it is interpreted, never unpickled.
    file
        Name of the file, for messages.

    Raises
    ------
    FormatError
        When the state dict holds an object that no state dict needs, which the message names; and when it cannot be
        told where in the pickle it is.
    """
    found = read_pickle(pickle, file=file)
    if not isinstance(found, dict):
        raise FormatError(f"{file} holds a {type_name(found)}, not a state dict; save model.state_dict() instead")
    at_top = any(isinstance(value, PickledTensor) for value in found.values())
    # By identity: a hostile pickle refers to one huge dict many times.
    inner = {id(value): (key, value) for key, value in reversed(found.items()) if isinstance(value, dict)}
    holding = {key: value for key, value in inner.values() if any(isinstance(v, PickledTensor) for v in value.values())}
    if holding or not at_top:
        key = state_dict_key(holding, at_top=at_top)
        if key is None:
            keys = ", ".join(map(quote, holding))
            inside = f"its tensors lie under {keys}" if holding else "no tensor lies at its top level"
            raise FormatError(
                f"{file} is not a state dict: {inside} (found {_listing(found)}); "
                "re-save that part: torch.save(torch.load(path, weights_only=True)[...], path)"
            )
        found = holding[key]
    for name, value in found.items():
        if isinstance(value, Opaque):
            raise FormatError(
                f"{file}: {quote(name)} is a {quote(value.name)}, which no state dict needs, so it is not read; if you "
                "trust it, save model.state_dict() alone or convert it to safetensors"
            )
    tensors = {name: value for name, value in found.items() if isinstance(value, PickledTensor)}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise FormatError(f"{file} names a tensor {quote(name)}, not a string; save model.state_dict() instead")
        check_name(name, file=file)
        if tensor.storage.dtype not in (None, tensor.dtype):
            reads = f"reads a storage of {tensor.storage.dtype} as {tensor.dtype}"
            raise FormatError(f"{file}: tensor {quote(name)} {reads}; the file is damaged")
    return tensors


def state_dict_key(holding: Collection[object], *, at_top: bool) -> object | None:
    """The key of a checkpoint under which its state dict is: a usual one, else the only one. None where not known.

    Parameters
    ----------
    holding
        The keys whose values are dicts with tensors.
    at_top
        Whether there are tensors beside these keys, such as a loss, so that the only one need not be meant.
    """
    usual = next((key for key in _KEYS if key in holding), None)
    return usual if usual is not None or at_top or len(holding) != 1 else next(iter(holding))


def _listing(found: dict[object, object]) -> str:
    shown = [f"{quote(name)}: {type_name(found[name])}" for name in list(found)[:6]]
    return (", ".join(shown) or "nothing") + (", …" if len(found) > 6 else "")


def locate(name: str, tensor: PickledTensor, directory: ZipDirectory, data_start: int) -> TensorSlice:
    """The byte range of a tensor in the file. Its `crc32` is known where the tensor is the whole storage.

    Parameters
    ----------
    name, tensor
        The tensor, from `parse_state_dict`.
    directory
        The archive's members, from `parse_zip_directory`.
    data_start
        `member_data_start` of ``directory.storage(tensor.storage.key)``.

    Raises
    ------
    FormatError
        When the elements are not adjacent in row-major order, or lie outside the storage.
    """
    member = directory.storage(tensor.storage.key)
    where = f"{directory.file}: tensor {quote(name)} of shape {quote(tensor.shape)}"
    itemsize = DTYPE_BITS[tensor.dtype] // 8
    numel = tensor.storage.numel if tensor.storage.dtype else tensor.storage.numel // itemsize
    if numel * itemsize > member.size:
        held = f"of which the file holds {member.size} bytes"
        raise FormatError(f"{where} has a storage of {numel} {tensor.dtype}, {held}; it is damaged")
    if not _is_contiguous(tensor.shape, tensor.stride):
        raise FormatError(
            f"{where} is a transposed or strided view (stride {quote(tensor.stride)}), not one byte range; re-save "
            "it contiguous: {name: tensor.contiguous() for name, tensor in state_dict.items()}"
        )
    count = element_count(tensor.shape, limit=numel)
    if tensor.offset + count > numel:
        raise FormatError(f"{where} reaches beyond its storage of {numel}; the file is damaged")
    start = data_start + tensor.offset * itemsize
    stop = start + count * itemsize
    crc = member.crc32 if (start, stop) == (data_start, data_start + member.size) else None
    return TensorSlice(name, directory.file, start, stop, tensor.dtype, tensor.shape, crc)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Torch's rule: strides of a tensor without elements, or along an axis of length 1, have no meaning."""
    if 0 in shape:
        return True
    row_major = (math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return all(size == 1 or step == expected for size, step, expected in zip(shape, stride, row_major, strict=True))
