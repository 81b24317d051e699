"""Where the tensors of a checkpoint lie, found by reading as little of it as possible. No I/O.

`find_tensors` is a generator that yields read requests and is sent the answers, so that a test, a local directory and
the Hub can serve it alike. From the second revision on it guesses that a file is laid out like that of the revision
before, and requests header and tensor in one range; every guess is checked against the header that arrives.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, Literal, cast
from zlib import crc32

from pythia_dynamics.checkpoints.formats.pickles import MAX_PICKLE_BYTES
from pythia_dynamics.checkpoints.formats.safetensors import parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import (
    STORABLE,
    NeedBytes,
    TensorSlice,
    parse_index,
    require_storable,
    select,
)
from pythia_dynamics.checkpoints.formats.statedict import StorageView, locate, parse_state_dict
from pythia_dynamics.checkpoints.formats.torchzip import (
    LOCAL_HEADER_BYTES,
    ZipDirectory,
    member_data_start,
    parse_zip_directory,
)
from pythia_dynamics.checkpoints.roles import ROLES, Role, Roles, config_is_needed, find_roles
from pythia_dynamics.checkpoints.source import FileMissingError
from pythia_dynamics.errors import CheckpointError, FormatError, PythiaDynError

__all__ = [
    "Answer",
    "FileBytes",
    "Layout",
    "LayoutCache",
    "ListingRequest",
    "RangeRequest",
    "Request",
    "TensorRequest",
    "WeightFormat",
    "find_tensors",
]

FIRST_HEADER_BYTES = 24 * 1024
"""First guess at the header of a safetensors file. Pythia's take 10 KB (70m) to 65 KB (12b); up to 160m (21 KB) the
guess saves a request, above that the first revision costs a second one. Later revisions use the length of the first."""

FIRST_TAIL_BYTES = 48 * 1024
"""First guess at the directory of a torch zip, at the end of the file. Pythia's take 6 KB (70m) to 34 KB (12b)."""

MAX_INDEX_BYTES = 64 * 2**20
"""Longest accepted index of shards, which bounds the memory. That of Pythia 12b has 45 KB."""

MAX_CONFIG_BYTES = 2**20
"""Longest part of a ``config.json`` that is read; those of public models have a few kilobytes."""

_CONFIG = "config.json"

MAX_GAP_BYTES = 8 * 1024
"""Largest gap between two tensors that are read in one request. It covers what lies between the large tensors of a
block (biases and norms of up to 4,096 float16, headers and padding of a zip) but no matrix."""

MAX_GAPS_BYTES = 16 * 1024
"""Sum of the gaps in one request. With `FIRST_HEADER_BYTES` it keeps what is read beside the tensors below 64 KiB a
revision, which the tests of `fetch` assert."""

MAX_CACHED = 64
"""Entries of each table of `LayoutCache`. For Pythia 12b, with 544 tensors, a full one takes about 20 MB."""

MAX_TAIL_REQUESTS = 4
"""Requests for one zip directory: the tail, then at most comment, zip64 end record and directory."""

WeightFormat = Literal["safetensors", "torch"]
"""The file formats weights are read from."""


class Layout(Enum):
    """How the weights of a checkpoint are stored, in order of preference.

    Attributes
    ----------
    format : WeightFormat
        The format of its weight files.
    sharded : bool
        Whether the weights are spread over several files, which an index lists.
    entry_file : str
        The file by which the layout is recognised: the weights, or the index.
    """

    SAFETENSORS = ("safetensors", False, "model.safetensors")
    TORCH = ("torch", False, "pytorch_model.bin")
    SAFETENSORS_SHARDS = ("safetensors", True, "model.safetensors.index.json")
    TORCH_SHARDS = ("torch", True, "pytorch_model.bin.index.json")

    def __init__(self, format: WeightFormat, sharded: bool, entry_file: str) -> None:
        self.format: WeightFormat = format
        self.sharded = sharded
        self.entry_file = entry_file

    @property
    def files_read(self) -> int:
        """Files that are read for one tensor: the weights, and the index where there is one."""
        return 2 if self.sharded else 1

    @property
    def first_read_bytes(self) -> int:
        """Bytes that are read first of a weight file whose layout is not known yet."""
        return FIRST_HEADER_BYTES if self.format == "safetensors" else FIRST_TAIL_BYTES


@dataclass(frozen=True, slots=True)
class ListingRequest:
    """A request for the files of the revision. Answer: a mapping of path → size in bytes; None where there is none."""


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """A request for ``file[start:stop]``. Answer: `FileBytes`; `FileMissingError` is thrown where the file is missing.

    Parameters
    ----------
    file
        Path of the file in the revision.
    start, stop
        The range in bytes, as a Python slice.
    prefetch_stop
        Where the bytes end that are likely to be requested next; they are worth one read with this range.
    """

    file: str
    start: int
    stop: int | None
    prefetch_stop: int = 0


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """A request to store a tensor, which has been found. Answer: None.

    Parameters
    ----------
    tensor
        Where the tensor lies.
    prefetch_stop
        As for `RangeRequest`.
    roles
        What it is for, usually nothing; None where that is not known.
    """

    tensor: TensorSlice
    prefetch_stop: int
    roles: tuple[Role, ...] | None = None


Request = ListingRequest | RangeRequest | TensorRequest


@dataclass(frozen=True, slots=True)
class FileBytes:
    """The answer to a `RangeRequest`.

    Parameters
    ----------
    data
        The bytes.
    start
        Offset of the first one in the file.
    size
        Size of the whole file in bytes.
    """

    data: bytes
    start: int
    size: int


Answer = FileBytes | Mapping[str, int] | None
Plan = Generator[Request, Answer, None]
CacheKey = str | tuple[str, frozenset[str]]
"""Which file is meant across revisions: its name; of a shard also the tensors in it, which differ between revisions."""


@dataclass
class LayoutCache:
    """How earlier revisions of the same model were laid out. Guesses, which are always checked. Threads may share one.

    Parameters
    ----------
    layouts
        The layouts found so far, the latest first.
    headers
        (stop of the header, tensors) of safetensors files.
    tails
        Bytes from the start of the zip directory to the end of torch files.
    pickles
        State dicts, by the (CRC-32, size) of the pickle which the zip directory states.
    indexes
        Tensor name → shard, by revision and index file.
    roles
        The roles in a checkpoint, by the names of all its tensors.
    """

    layouts: tuple[Layout, ...] = ()
    headers: dict[CacheKey, tuple[int, dict[str, TensorSlice]]] = field(default_factory=dict)
    tails: dict[CacheKey, int] = field(default_factory=dict)
    pickles: dict[tuple[int, int], dict[str, StorageView]] = field(default_factory=dict)
    indexes: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    roles: dict[frozenset[str], Roles] = field(default_factory=dict)

    def add(self, layout: Layout) -> None:
        """Put a layout first, and drop the oldest entries of tables that have grown beyond `MAX_CACHED`."""
        self.layouts = (layout, *(other for other in self.layouts if other != layout))
        tables = (self.headers, self.tails, self.pickles, self.indexes, self.roles)
        for table in cast("tuple[dict[object, object], ...]", tables):
            while len(table) > MAX_CACHED:
                table.pop(next(iter(table)), None)


def find_tensors(patterns: Sequence[str], cache: LayoutCache, *, where: str, skip: Collection[str] = ()) -> Plan:
    """Find the tensors of one revision and request each, in the order of the bytes.

    Parameters
    ----------
    patterns
        Names, roles and globs of the tensors; see `select`.
    cache
        The layouts of earlier revisions; that of this one is added.
    where
        The revision, for messages and as a key of `cache`.
    skip
        Names of tensors that are not needed.

    Returns
    -------
    Plan
        A generator that yields `Request` values and is sent the `Answer` to each.

    Raises
    ------
    CheckpointError
        When the revision holds no weights, is incomplete, or has no tensor of the requested role.
    FormatError
        When a file is damaged, or a tensor cannot be stored.
    UnknownNameError
        When a pattern matches no tensor.
    """
    listed = False
    layouts = [*cache.layouts, *(layout for layout in Layout if layout not in cache.layouts)]
    while layouts:
        layout = layouts.pop(0)
        try:
            yield from _find_in_layout(layout, patterns, cache, where, skip)
        except FileMissingError as error:
            if error.file != layout.entry_file:
                what = f"its index names {error.file}, which does not exist"
                raise CheckpointError(f"{where} is incomplete: {what}") from None
        else:
            cache.add(layout)
            return
        if not listed:
            listed = True
            files = yield ListingRequest()
            if not isinstance(files, Mapping):
                continue
            layouts = [known for known in Layout if known.entry_file in files]
            if not layouts:
                shown = ", ".join(sorted(files)[:6]) or "nothing"
                raise CheckpointError(f"{where} holds no weights that can be read (found: {shown})")
    names = ", ".join(layout.entry_file for layout in Layout)
    raise CheckpointError(f"{where} holds no weights: it has none of {names}")


def _find_in_layout(
    layout: Layout, patterns: Sequence[str], cache: LayoutCache, where: str, skip: Collection[str]
) -> Plan:
    """The plan for a revision that has this layout. Raises `FileMissingError` when it has another one."""
    find = _find_in_safetensors if layout.format == "safetensors" else _find_in_torch_zip
    entry = layout.entry_file
    if not layout.sharded:
        yield from find(entry, entry, patterns, cache, where, skip, None)
        return
    shards = cache.indexes.get((where, entry))
    if shards is None:
        index = yield from _read(entry, 0, MAX_INDEX_BYTES)
        if index.size > MAX_INDEX_BYTES:
            raise FormatError(f"{where}/{entry} has {index.size} bytes, which no index of shards needs")
        shards = cache.indexes[where, entry] = parse_index(index.data, file=entry)
    roles = yield from _roles(shards, patterns, cache)
    wanted = [name for name in select(shards, patterns, where=where, roles=roles.tensors) if name not in skip]
    for shard in dict.fromkeys(shards[name] for name in wanted):
        members = frozenset(name for name, file in shards.items() if file == shard)
        names = [name for name in wanted if name in members]
        of_shard = _OfShard(roles, frozenset(names).difference(patterns, roles.tensors.values()))
        yield from find(shard, (shard, members), names, cache, f"{where}/{shard}", skip, of_shard)


@dataclass(frozen=True, slots=True)
class _OfShard:
    """What is known of a shard from the index: the roles, and the tensors that only a glob asks for."""

    roles: Roles
    optional: frozenset[str]


def _roles(names: Collection[str], patterns: Sequence[str], cache: LayoutCache) -> Generator[Request, Answer, Roles]:
    """The roles of the tensors of a checkpoint. Its config is read where they depend on it.

    A config that cannot be had ends the plan only where a role was asked for.
    """
    key, needed = frozenset(names), not {*ROLES}.isdisjoint(patterns)
    known = cache.roles.get(key)
    if known is None or (needed and not known.complete):
        config: Mapping[str, Any] | None = None
        if config_is_needed(names):
            try:
                read = yield from _read(_CONFIG, 0, MAX_CONFIG_BYTES)
            except (FileMissingError, FormatError):  # there is none, or it is empty
                pass
            except PythiaDynError:
                if needed:
                    raise
            else:
                config = _config(read.data)
        known = Roles(find_roles(names, config), config is not None or not config_is_needed(names))
        cache.roles[key] = known
    return known


def _config(content: bytes) -> Mapping[str, Any] | None:
    """A ``config.json``, None where it is damaged. Infinities are allowed: transformers writes them."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _find_in_safetensors(
    file: str,
    key: CacheKey,
    patterns: Sequence[str],
    cache: LayoutCache,
    where: str,
    skip: Collection[str],
    shard: _OfShard | None,
) -> Plan:
    """The plan for one safetensors file. `shard` is None where the file is the whole checkpoint."""
    stop, prefetch_stop = FIRST_HEADER_BYTES, 0
    if key in cache.headers:
        stop, tensors = cache.headers[key]
        known = cache.roles.get(frozenset(tensors)) if shard is None else shard.roles
        prefetch_stop = _guess_prefetch_stop(stop, tensors, patterns, skip, known.tensors if known else {})
    read = yield from _read(file, 0, stop, prefetch_stop)
    header, size = read.data, read.size
    stop = safetensors_header_stop(header, file=file, file_size=size)
    if stop > len(header):
        read = yield from _read(file, len(header), stop, prefetch_stop)
        header += read.data
    tensors = parse_safetensors(header, file=file, file_size=size)
    cache.headers[key] = (stop, tensors)
    roles = shard.roles if shard else (yield from _roles(tensors, patterns, cache))
    chosen = select(tensors, patterns, where=where, roles=roles.tensors)
    optional = shard.optional if shard else set(chosen).difference(patterns, roles.tensors.values())
    wanted = _storable([tensors[name] for name in chosen if name not in skip], optional)
    wanted.sort(key=lambda tensor: tensor.start)
    for tensor, run_end in zip(wanted, _run_ends([(t.start, t.stop) for t in wanted]), strict=True):
        yield TensorRequest(tensor, run_end, roles.of(tensor.name))


def _storable(tensors: Sequence[TensorSlice], optional: Collection[str]) -> list[TensorSlice]:
    """The tensors that a store can hold. Raises `FormatError` for another one, unless it is optional."""
    kept = [tensor for tensor in tensors if tensor.dtype in STORABLE or tensor.name not in optional]
    for tensor in kept or tensors:
        require_storable(tensor)
    return kept


def _guess_prefetch_stop(
    header_stop: int,
    tensors: Mapping[str, TensorSlice],
    patterns: Sequence[str],
    skip: Collection[str],
    roles: Mapping[Role, str],
) -> int:
    """Where the requested tensors that follow the header end, if the file is laid out like the last one; else 0."""
    try:
        expected = [tensors[name] for name in select(tensors, patterns, where="", roles=roles) if name not in skip]
    except PythiaDynError:
        return 0
    ranges = sorted((tensor.start, tensor.stop) for tensor in expected)
    return _run_ends(ranges)[0] if ranges and ranges[0][0] <= header_stop + MAX_GAP_BYTES else 0


def _find_in_torch_zip(
    file: str,
    key: CacheKey,
    patterns: Sequence[str],
    cache: LayoutCache,
    where: str,
    skip: Collection[str],
    shard: _OfShard | None,
) -> Plan:
    """The plan for one zip file of ``torch.save``. `shard` as for `_find_in_safetensors`."""
    directory = yield from _zip_directory(file, key, cache)
    views = yield from _state_dict(directory, cache)
    roles = shard.roles if shard else (yield from _roles(views, patterns, cache))
    chosen = select(views, patterns, where=where, roles=roles.tensors)
    optional = shard.optional if shard else set(chosen).difference(patterns, roles.tensors.values())
    wanted = [views[name] for name in chosen if name not in skip]
    approximate = [locate(view, directory, directory.storage(view.key).header_offset) for view in wanted]
    kept = {tensor.name for tensor in _storable(approximate, optional)}
    wanted = [view for view in wanted if view.name in kept]
    wanted.sort(key=lambda view: (directory.storage(view.key).header_offset, view.offset))
    approximate = [locate(view, directory, directory.storage(view.key).header_offset) for view in wanted]
    # Only the local header states where the data begin: until it is read, ranges that contain the data in any case.
    ranges = [_bounding_range(view, directory, tensor) for view, tensor in zip(wanted, approximate, strict=True)]
    for view, (start, _), run_end in zip(wanted, ranges, _run_ends(ranges), strict=True):
        member = directory.storage(view.key)
        length = LOCAL_HEADER_BYTES + len(member.name.encode())
        prefetch_stop = run_end if start == member.header_offset else 0
        local = yield from _read(file, member.header_offset, member.header_offset + length, prefetch_stop)
        tensor = locate(view, directory, member_data_start(local.data, member))
        yield TensorRequest(tensor, run_end, roles.of(tensor.name))


def _zip_directory(file: str, key: CacheKey, cache: LayoutCache) -> Generator[Request, Answer, ZipDirectory]:
    """The zip directory of a torch file, read from its end."""
    read = yield from _read(file, -cache.tails.get(key, FIRST_TAIL_BYTES), None)
    tail, size = read.data, read.size
    for _ in range(MAX_TAIL_REQUESTS):
        try:
            directory = parse_zip_directory(tail, file=file, file_size=size)
        except NeedBytes as need:
            read = yield from _read(file, need.start, need.stop)
            tail = read.data + tail
        else:
            cache.tails[key] = size - max(member.limit for member in directory.members.values())
            return directory
    raise FormatError(f"{file}: there is no zip directory at its end; the file is damaged")


def _state_dict(directory: ZipDirectory, cache: LayoutCache) -> Generator[Request, Answer, dict[str, StorageView]]:
    """The tensors that the pickle of a torch file describes; a pickle with a known checksum is not read again."""
    member = directory.pickle
    known = (member.crc32, member.size) if member.crc32 is not None else None
    if known in cache.pickles:
        return cache.pickles[known]
    if member.size > MAX_PICKLE_BYTES:
        raise FormatError(f"{directory.file}: its data.pkl of {member.size} bytes is larger than any state dict's")
    start, stop = member.bounding_range()
    read = yield from _read(directory.file, start, stop)
    begin = member_data_start(read.data, member) - start
    pickle = read.data[begin : begin + member.size]
    if member.crc32 is not None and crc32(pickle) != member.crc32:
        raise FormatError(f"{directory.file}: its data.pkl fails its checksum; the file is damaged")
    views = parse_state_dict(pickle, file=directory.file)
    if known is not None:
        cache.pickles[known] = views
    return views


def _read(file: str, start: int, stop: int | None, prefetch_stop: int = 0) -> Generator[Request, Answer, FileBytes]:
    """Request a range of a file."""
    answer = yield RangeRequest(file, start, stop, prefetch_stop)
    assert isinstance(answer, FileBytes)
    return answer


def _bounding_range(view: StorageView, directory: ZipDirectory, approximate: TensorSlice) -> tuple[int, int]:
    """A range of the file that contains the tensor, and its local header where the tensor begins next to it.

    `approximate` is the tensor as if its storage had no local header.
    """
    start, stop = directory.storage(view.key).bounding_range()
    slack = (stop - start) - directory.storage(view.key).size
    if approximate.start > start + MAX_GAP_BYTES:
        start = approximate.start
    return start, min(stop, approximate.stop + slack)


def _run_ends(ranges: Sequence[tuple[int, int]]) -> list[int]:
    """For each of these sorted ranges, the end of its run: ranges with small gaps, which are read in one request."""
    joined, gaps = [], 0
    for (_, stop), (start, _) in pairwise(ranges):
        gap = max(0, start - stop)
        joined.append(gap <= MAX_GAP_BYTES and gaps + gap <= MAX_GAPS_BYTES)
        gaps += gap if joined[-1] else 0
    ends = [stop for _, stop in ranges]
    for i in reversed(range(len(joined))):
        if joined[i]:
            ends[i] = max(ends[i], ends[i + 1])
    return ends
