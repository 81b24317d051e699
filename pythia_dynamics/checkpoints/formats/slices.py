"""What every checkpoint format comes down to: the byte range of a tensor, and how a user names one."""

from __future__ import annotations

import fnmatch
import json
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pythia_dynamics.errors import CheckpointError, FormatError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DTYPE_BITS",
    "HEADS",
    "STORABLE",
    "NeedBytes",
    "TensorSlice",
    "check_name",
    "element_count",
    "not_the_file",
    "parse_index",
    "parse_json_object",
    "quote",
    "require_storable",
    "select",
]

STORABLE = ("float16", "bfloat16", "float32")
"""The dtypes a weight store holds without loss."""

DTYPE_BITS = {
    "bool": 8,
    "uint8": 8,
    "uint16": 16,
    "uint32": 32,
    "uint64": 64,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "int64": 64,
    "float4_e2m1fn": 4,
    "float4_e2m1fn_x2": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float64": 64,
    "complex32": 32,
    "complex64": 64,
    "complex128": 128,
}
"""Bits per element of every dtype that can be listed, by its NumPy, ml_dtypes or torch name."""

MAX_NAME_LENGTH = 1024
MAX_JSON_BYTES = 100_000_000
# A parsed value takes some 100 bytes of memory: this many bound it to a few hundred megabytes, and leave
# room for 200,000 tensors a file.
MAX_JSON_VALUES = 2_000_000

HEADS = ("embed_out.weight", "lm_head.weight")
EMBEDDINGS = (
    "gpt_neox.embed_in.weight",
    "embed_in.weight",
    "model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "transformer.word_embeddings.weight",
)


class NeedBytes(Exception):
    """More of the file is needed: the absolute byte range [start, stop), adjacent to the bytes given.

    A signal to the caller, not an error of the user. `parse_zip_directory` wants the range put before the
    tail it was given (``tail = read(need.start, need.stop) + tail``), `member_data_start` wants it behind.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        super().__init__(f"bytes {start}–{stop} are needed")


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Where the elements of one tensor lie: row-major, little-endian, in bytes [start, stop) of `file`.

    `dtype` is a NumPy or ml_dtypes name. `crc32` is the CRC-32 which the format states for exactly these
    bytes, None where it states none.
    """

    name: str
    file: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]
    crc32: int | None = None

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def require_storable(tensor: TensorSlice) -> None:
    """Raise FormatError unless the store can hold the tensor's dtype."""
    if tensor.dtype not in STORABLE:
        raise FormatError(
            f"tensor {quote(tensor.name)} of {tensor.file} is {tensor.dtype}; "
            f"only {', '.join(STORABLE)} can be stored: choose another tensor"
        )


def select(names: Iterable[str], patterns: Sequence[str], *, where: str) -> list[str]:
    """The tensors meant by `patterns`: exact names and case-sensitive globs, in the patterns' order, each once.

    The matches of one glob keep the order of `names`. Raises UnknownNameError for a pattern that matches
    nothing, CheckpointError for an output head that is tied to the embedding or has another name.
    """
    known = dict.fromkeys(names)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        if pattern in known:
            chosen[pattern] = None
            continue
        matches = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            _explain_missing_head(pattern, known, where)
            raise UnknownNameError("tensor", pattern, known, where=where)
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def _explain_missing_head(name: str, known: Iterable[str], where: str) -> None:
    if name not in HEADS:
        return
    here = set(known)
    other = [head for head in HEADS if head in here]
    if other:
        raise CheckpointError(f"{where} has no {name}: its output head is called {other[0]}, ask for that")
    tied = [embedding for embedding in EMBEDDINGS if embedding in here]
    if tied:
        raise CheckpointError(
            f"{where} has no {name}: where the output head is tied to the input embedding, that is {tied[0]}"
        )


def parse_index(text: bytes, *, file: str) -> dict[str, str]:
    """Tensor name → shard file, of a `model.safetensors.index.json` or `pytorch_model.bin.index.json`.

    Shards must be plain file names beside the index. Raises FormatError for anything else.
    """
    weight_map = parse_json_object(text, file=file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{file} is not an index of shards: it has no 'weight_map'")
    shards: dict[str, str] = {}
    for name, shard in weight_map.items():
        check_name(name, file=file)
        if not isinstance(shard, str) or not _is_plain(shard):
            raise FormatError(f"{file} puts tensor {quote(name)} into {quote(shard)}, which is no plain file name")
        shards[name] = shard
    return shards


def _is_plain(name: str) -> bool:
    # A colon is a drive or an alternate stream on Windows; NUL, line ends, lone surrogates do not print.
    return (
        0 < len(name.encode("utf-8", "replace")) <= 255
        and name.isprintable()
        and name.strip(" .") != ""
        and not any(c in name for c in "/\\:")
    )


def parse_json_object(text: bytes, *, file: str) -> dict[str, object]:
    """A JSON object without duplicate keys, NaN or infinities, parsed in bounded memory and depth."""
    if len(text) > MAX_JSON_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise FormatError(f"{file} describes more than any checkpoint holds; it is damaged or hostile")
    if text[:1] != b"{":
        raise FormatError(f"{file} does not begin with a JSON object; {not_the_file(text) or 'it is damaged'}")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(f"{file} names {quote(key)} twice; it is damaged")
            found[key] = value
        return found

    def constant(name: str) -> object:
        raise FormatError(f"{file} holds {name}, which is no JSON")

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # also of an integer with thousands of digits
        raise FormatError(f"{file} is not valid JSON ({quote(str(error))}); it is damaged or cut short") from None
    assert isinstance(found, dict)  # it began with a brace
    return found


def check_name(name: str, *, file: str) -> None:
    """Raise FormatError for a tensor name nobody gives: empty, endless, or not encodable."""
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise FormatError(f"{file} names a tensor with {len(name)} characters; it is damaged or hostile")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(f"{file} names a tensor {quote(name)}, which is not valid Unicode") from None


def element_count(shape: Iterable[int], limit: int) -> int:
    """The product of `shape`, or some number above `limit` once that is passed (never a huge integer)."""
    sizes = tuple(shape)
    if 0 in sizes:
        return 0
    count = 1
    for size in sizes:
        count *= size
        if count > limit:
            break
    return count


def not_the_file(head: bytes) -> str | None:
    """What a file turns out to be that is often found in a checkpoint's place, else None."""
    if head.startswith(b"version https://git-lfs") or head == b"version ":
        return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if head[:32].lstrip().lower().startswith((b"<!doctyp", b"<html")):
        return "it is a web page, not the file"
    return None


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 160


def quote(value: object) -> str:
    """A one-line, bounded `repr` for messages."""
    return _REPR.repr(value)
