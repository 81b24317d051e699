"""Byte ranges of tensors, the selection of tensors by name, and the checks that all formats share."""

from __future__ import annotations

import fnmatch
import json
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pythia_dynamics.checkpoints.roles import ALL, ROLES, UNEMBEDDING, Role, find_roles, prefixes_removed
from pythia_dynamics.errors import CheckpointError, FormatError, UnknownNameError

__all__ = [
    "DTYPE_BITS",
    "MAX_JSON_BYTES",
    "STORABLE",
    "NeedBytes",
    "TensorSlice",
    "check_name",
    "element_count",
    "parse_index",
    "parse_json_object",
    "quote",
    "require_storable",
    "select",
    "wrong_file_hint",
]

STORABLE = ("float16", "bfloat16", "float32")
"""The dtypes a weight store holds without loss."""

_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
DTYPE_BITS = {
    **{"float4_e2m1fn": 4, "float6_e2m3fn": 6, "float6_e3m2fn": 6, "float4_e2m1fn_x2": 8},
    **dict.fromkeys(("bool", "uint8", "int8", *_FLOAT8), 8),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("uint32", "int32", "float32", "complex32"), 32),
    **dict.fromkeys(("uint64", "int64", "float64", "complex64"), 64),
    "complex128": 128,
}
"""Bits per element of every dtype that can be listed, by its NumPy, ml_dtypes or torch name."""

MAX_NAME_LENGTH = 1024
"""Characters of a tensor's name; those of public models have fewer than 100."""

MAX_JSON_BYTES = 100_000_000
"""Bytes of JSON: the reference implementation's limit for a safetensors header."""

MAX_JSON_VALUES = 2_000_000
"""Values in one JSON text. A parsed value takes about 100 bytes: this bounds the memory to a few hundred megabytes, and
allows 200,000 tensors in a file."""


_SHOWN_NAMES = 8
"""Names of tensors that a message lists."""


class NeedBytes(Exception):
    """A parser needs more of the file: bytes [start, stop), adjacent to those it was given. Not an error of the user.

    `parse_zip_directory` needs them before the given ones (``tail = read(need.start, need.stop) + tail``),
    `member_data_start` after them.

    Parameters
    ----------
    start, stop
        Offsets in the file.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        super().__init__(f"bytes {start}–{stop} are needed")


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Where the elements of one tensor lie, row-major and little-endian.

    Parameters
    ----------
    name
        The tensor's name.
    file
        Path of the file that holds it.
    start, stop
        Offsets in the file of its first byte and behind its last one.
    dtype
        A key of `DTYPE_BITS`.
    shape
        Sizes of its axes.
    crc32
        The CRC-32 that the format states for exactly these bytes, None where it states none.
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
        """Size of the tensor in bytes."""
        return self.stop - self.start


def require_storable(tensor: TensorSlice) -> None:
    """Raise `FormatError` unless a store can hold the dtype of `tensor`."""
    if tensor.dtype not in STORABLE:
        what = f"tensor {quote(tensor.name)} of {tensor.file} is {tensor.dtype}"
        raise FormatError(f"{what}; only {', '.join(STORABLE)} can be stored: choose another tensor")


def select(
    names: Iterable[str], patterns: Sequence[str], *, where: str, roles: Mapping[Role, str] | None = None
) -> list[str]:
    """The names that patterns match, each once, in the order of the patterns.

    Parameters
    ----------
    names
        Names of all tensors; the matches of one glob keep their order.
    patterns
        Exact names, also without the prefixes of wrappers; roles (``unembedding``, ``embedding``); ``all``; and globs,
        which distinguish case.
    where
        The revision or file, for messages.
    roles
        The tensors that have a role; None where roles cannot be asked for.

    Raises
    ------
    UnknownNameError
        When a pattern matches nothing.
    CheckpointError
        When no tensor is known to have the role that is asked for, or the unembedding has another name.
    """
    known, roles = dict.fromkeys(names), roles or {}
    chosen: dict[str, None] = {}
    for pattern in patterns:
        if pattern in known:
            chosen[pattern] = None
        elif pattern in ROLES:
            chosen[_of_role(pattern, roles, known, where)] = None
        else:
            matches = [name for name in known if pattern == ALL or fnmatch.fnmatchcase(name, pattern)]
            matches = matches or [name for name in known if pattern in prefixes_removed(name)]
            other = roles.get(UNEMBEDDING, pattern)
            if not matches and UNEMBEDDING in find_roles([pattern]) and other != pattern:
                raise CheckpointError(f"{where} has no {pattern}: its {UNEMBEDDING} is {other}")
            if not matches:
                raise UnknownNameError("tensor", pattern, known, where=where)
            chosen.update(dict.fromkeys(matches))
    return list(chosen)


def _of_role(role: str, roles: Mapping[Role, str], known: Collection[str], where: str) -> str:
    """The tensor that has a role. Raises `CheckpointError`, which lists the tensors, where none is known to."""
    for name, tensor in roles.items():
        if name == role:
            return tensor
    shown = ", ".join(list(known)[:_SHOWN_NAMES]) + (", …" if len(known) > _SHOWN_NAMES else "")
    raise CheckpointError(
        f"{where} has no tensor known to be its {role}; name one, with --tensor on the command line (it has {shown})"
    )


def parse_index(text: bytes, *, file: str) -> dict[str, str]:
    """Tensor name → shard file, from an index of shards.

    Parameters
    ----------
    text
        Content of a ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``.
    file
        Its name, for messages.

    Raises
    ------
    FormatError
        When it is damaged, or a shard is anything but the name of a file next to the index.
    """
    weight_map = parse_json_object(text, file=file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{file} is not an index of shards: it has no 'weight_map'")
    for name, shard in weight_map.items():
        check_name(name, file=file)
        if not isinstance(shard, str) or not _is_file_name(shard):
            raise FormatError(f"{file} puts tensor {quote(name)} into {quote(shard)}, which is not a file name")
    return weight_map


def _is_file_name(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on every system."""
    # A colon is a drive or an alternate stream on Windows; NUL, line ends, lone surrogates do not print.
    return (
        0 < len(name.encode("utf-8", "replace")) <= 255
        and name.isprintable()
        and name.strip(" .") != ""
        and not any(c in name for c in "/\\:")
    )


def parse_json_object(text: bytes, *, file: str) -> dict[str, object]:
    """A JSON object, parsed in bounded memory and depth.

    Parameters
    ----------
    text
        The JSON.
    file
        What it is, for messages.

    Raises
    ------
    FormatError
        When it is not valid, too large, not an object, or holds duplicate keys, NaN or infinities.
    """
    if len(text) > MAX_JSON_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise FormatError(f"{file} describes more than any checkpoint holds; it is damaged or hostile")
    if text[:1] != b"{":
        raise FormatError(f"{file} does not begin with a JSON object; {wrong_file_hint(text) or 'it is damaged'}")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(f"{file} names {quote(key)} twice; it is damaged")
            found[key] = value
        return found

    def constant(name: str) -> object:
        raise FormatError(f"{file} holds {name}, which is not JSON")

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # also of an integer with thousands of digits
        raise FormatError(f"{file} is not valid JSON ({quote(str(error))}); it is damaged or cut short") from None
    assert isinstance(found, dict)  # it began with a brace
    return found


def check_name(name: str, *, file: str) -> None:
    """Raise `FormatError` for a tensor's `name` that is empty, too long or not Unicode; `file` is for the message."""
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise FormatError(f"{file} names a tensor with {len(name)} characters; it is damaged or hostile")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(f"{file} names a tensor {quote(name)}, which is not valid Unicode") from None


def element_count(shape: Sequence[int], limit: int) -> int:
    """The product of `shape`, or a number above `limit` where it exceeds that, so that no huge integer is computed."""
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count > limit:
            break
    return count


def wrong_file_hint(head: bytes) -> str | None:
    """What a file that begins with `head` is instead of a checkpoint: an LFS pointer or a web page; else None."""
    if head.startswith(b"version https://git-lfs") or head == b"version ":
        return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if head[:32].lstrip().lower().startswith((b"<!doctyp", b"<html")):
        return "it is a web page, not the file"
    return None


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 160


def quote(value: object) -> str:
    """The `repr` of a value for messages, in one line and not longer than about 160 characters."""
    return _REPR.repr(value)
