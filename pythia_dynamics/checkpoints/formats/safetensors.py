"""The safetensors format: a length of 8 bytes, a JSON header, then the tensors without gaps.

Format: https://huggingface.co/docs/safetensors; the checks are those of the reference (tensor.rs).
"""

from __future__ import annotations

from pythia_dynamics.checkpoints.formats.slices import (
    DTYPE_BITS,
    MAX_JSON_BYTES,
    TensorSlice,
    check_name,
    element_count,
    parse_json_object,
    quote,
    wrong_file_hint,
)
from pythia_dynamics.errors import FormatError

__all__ = ["DTYPES", "HEADER_LENGTH", "parse_safetensors", "safetensors_header_stop"]

HEADER_LENGTH = 8
"""Bytes that state the length of the header."""

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F4": "float4_e2m1fn",
    "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
"""The format's dtypes by their name in the header."""


def safetensors_header_stop(prefix: bytes, *, file: str, file_size: int) -> int:
    """Offset at which the header ends and the tensors begin.

    Parameters
    ----------
    prefix
        The first 8 bytes of the file, or more.
    file
        Its name, for messages.
    file_size
        Its size in bytes.

    Raises
    ------
    FormatError
        When the file is too short, or states a length that it cannot have.
    """
    if len(prefix) < HEADER_LENGTH or file_size < HEADER_LENGTH:
        raise FormatError(f"{file} is {min(len(prefix), file_size)} bytes long: it is cut short, not safetensors")
    length = int.from_bytes(prefix[:HEADER_LENGTH], "little")
    if not 2 <= length <= min(MAX_JSON_BYTES, file_size - HEADER_LENGTH):
        hint = wrong_file_hint(prefix) or "it is damaged, cut short or not safetensors"
        raise FormatError(f"{file} of {file_size} bytes claims a header of {length} bytes: {hint}")
    return HEADER_LENGTH + length


def parse_safetensors(header: bytes, *, file: str, file_size: int) -> dict[str, TensorSlice]:
    """Every tensor of a safetensors file by name, in the order of the data.

    Parameters
    ----------
    header
        The beginning of the file, at least up to `safetensors_header_stop`.
    file
        Its name.
    file_size
        Its size in bytes.

    Raises
    ------
    FormatError
        Unless the tensors fill the rest of the file exactly, each with the bytes that its shape and dtype take.
    """
    begin = safetensors_header_stop(header, file=file, file_size=file_size)
    if len(header) < begin:
        raise FormatError(f"{file}: {len(header)} of the header's {begin} bytes are there")
    entries = parse_json_object(bytes(header[HEADER_LENGTH:begin]), file=f"the header of {file}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{file}: the header's __metadata__ is not a map of strings")

    slices = [_parse_entry(name, entry, file, begin, file_size) for name, entry in entries.items()]
    slices.sort(key=lambda tensor: (tensor.start, tensor.stop))
    position = begin
    for tensor in slices:
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise FormatError(f"{file}: tensor {quote(tensor.name)} {kind}; the file is damaged")
        position = tensor.stop
    if position != file_size:
        raise FormatError(f"{file} has {file_size} bytes, its tensors end at {position}: it is cut short or damaged")
    return {tensor.name: tensor for tensor in slices}


def _parse_entry(name: str, entry: object, file: str, begin: int, file_size: int) -> TensorSlice:
    """One tensor, from its entry in the header; the data begin at offset `begin`."""
    check_name(name, file=file)
    where = f"{file}: tensor {quote(name)}"
    if not isinstance(entry, dict):
        raise FormatError(f"{file}: the header's entry for {quote(name)} is not an object")
    code = entry.get("dtype")
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise FormatError(f"{where} has the unsupported dtype {quote(code)}; convert it to one of {', '.join(DTYPES)}")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None:
        raise FormatError(f"{where} has no valid shape")
    if offsets is None or len(offsets) != 2 or not offsets[0] <= offsets[1] <= file_size - begin:
        raise FormatError(f"{where} lies outside the file of {file_size} bytes")
    start, stop = offsets
    if element_count(shape, limit=8 * file_size) * DTYPE_BITS[dtype] != 8 * (stop - start):
        raise FormatError(f"{where} of {dtype} and shape {quote(shape)} does not take the stated {stop - start} bytes")
    return TensorSlice(name, file, begin + start, begin + stop, dtype, shape)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A JSON list of unsigned 64-bit integers, else None (bool is not an integer here)."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**64 for item in value):
        return None
    return tuple(value)
