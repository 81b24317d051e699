"""The `data.pkl` of a torch checkpoint: which tensor is which stretch of which storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pythia_dynamics.checkpoints.formats.pickles import PickledTensor, kind_of, read_pickle
from pythia_dynamics.checkpoints.formats.slices import DTYPE_BITS, TensorSlice, check_name, element_count, quote
from pythia_dynamics.errors import FormatError

if TYPE_CHECKING:
    from pythia_dynamics.checkpoints.formats.torchzip import ZipDirectory

__all__ = ["StorageView", "locate", "parse_state_dict"]


@dataclass(frozen=True, slots=True)
class StorageView:
    """A tensor as torch describes it: `shape` and `stride`, from element `offset` of the storage `key` on.

    All of them, `storage_numel` too, count elements of `dtype`.
    """

    name: str
    key: str
    dtype: str
    storage_numel: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def parse_state_dict(pickle: bytes, *, file: str) -> dict[str, StorageView]:
    """The tensors of a state dict by name, in its order; entries that are no tensors are left out.

    `pickle` is the content of `ZipDirectory.pickle`; it is interpreted, never unpickled. Raises FormatError
    naming the first global or opcode which a state dict has no use for, and when the tensors do not lie at the
    top level.
    """
    found = read_pickle(pickle, file=file)
    if not isinstance(found, dict):
        raise FormatError(f"{file} holds a {kind_of(found)}, not a state dict; save model.state_dict() instead")
    views = {name: _view(name, value, file) for name, value in found.items() if isinstance(value, PickledTensor)}
    # By identity: a hostile pickle refers to one huge dict many times.
    inner = {id(value): (name, value) for name, value in found.items() if isinstance(value, dict)}
    nested = [name for name, value in inner.values() if any(isinstance(v, PickledTensor) for v in value.values())]
    if nested or not views:
        inside = f"its tensors lie under {quote(nested[0])}" if nested else "no tensor lies at its top level"
        key = quote(nested[0]) if nested else "..."
        raise FormatError(
            f"{file} is no plain state dict: {inside} (found {_listing(found)}); "
            f"re-save that part: torch.save(torch.load(path, weights_only=True)[{key}], path)"
        )
    return views


def _view(name: object, tensor: PickledTensor, file: str) -> StorageView:
    if not isinstance(name, str):
        raise FormatError(f"{file} calls a tensor {quote(name)}, no string; save model.state_dict() instead")
    check_name(name, file=file)
    storage, numel = tensor.storage, tensor.storage.numel
    if storage.dtype is None:
        numel = numel * 8 // DTYPE_BITS[tensor.dtype]
    elif storage.dtype != tensor.dtype:
        raise FormatError(f"{file}: tensor {quote(name)} reads a storage of {storage.dtype} as {tensor.dtype}")
    return StorageView(name, storage.key, tensor.dtype, numel, tensor.offset, tensor.shape, tensor.stride)


def _listing(found: dict[object, object]) -> str:
    shown = [f"{quote(name)}: {kind_of(found[name])}" for name in list(found)[:6]]
    return (", ".join(shown) or "nothing") + (", …" if len(found) > 6 else "")


def locate(view: StorageView, directory: ZipDirectory, data_start: int) -> TensorSlice:
    """The byte range of a tensor; `data_start` is `member_data_start` of ``directory.storage(view.key)``.

    `crc32` is stated when the tensor is the whole storage. Raises FormatError for a view whose elements are not
    adjacent in row-major order, or which leaves its storage.
    """
    member = directory.storage(view.key)
    where = f"{directory.file}: tensor {quote(view.name)} of shape {quote(view.shape)}"
    itemsize = DTYPE_BITS[view.dtype] // 8
    if view.storage_numel * itemsize > member.size:
        raise FormatError(
            f"{where} has a storage of {view.storage_numel} {view.dtype}, "
            f"of which the file holds {member.size} bytes; it is damaged"
        )
    if not _is_contiguous(view.shape, view.stride):
        raise FormatError(
            f"{where} is a transposed or strided view (stride {quote(view.stride)}), no single byte range; re-save "
            "it contiguous: {name: tensor.contiguous() for name, tensor in state_dict.items()}"
        )
    count = element_count(view.shape, limit=view.storage_numel)
    if view.offset + count > view.storage_numel:
        raise FormatError(f"{where} reaches beyond its storage of {view.storage_numel}; the file is damaged")
    start = data_start + view.offset * itemsize
    stop = start + count * itemsize
    whole = (start, stop) == (data_start, data_start + member.size)
    crc = member.crc32 if whole else None
    return TensorSlice(view.name, directory.file, start, stop, view.dtype, view.shape, crc)


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """torch's rule: the strides of a tensor without elements, or along an axis of length 1, say nothing."""
    if 0 in shape:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1:
            if step != expected:
                return False
            expected *= size
    return True
