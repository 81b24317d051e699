"""Where the tensors of a checkpoint lie, found by reading as little of it as possible.

From the second revision on, `find_tensors` guesses that a file is laid out like that of the revision before, and
requests header and tensor in one range; every guess is checked against the header that arrives.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol
from zlib import crc32

from pythia_dynamics.checkpoints.formats.pickles import MAX_PICKLE_BYTES, PickledTensor
from pythia_dynamics.checkpoints.formats.safetensors import parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import (
    STORABLE,
    NeedBytes,
    TensorSlice,
    parse_index,
    require_storable,
    select,
)
from pythia_dynamics.checkpoints.formats.statedict import locate, parse_state_dict
from pythia_dynamics.checkpoints.formats.torchzip import (
    LOCAL_HEADER_BYTES,
    ZipDirectory,
    ZipMember,
    member_data_start,
    parse_zip_directory,
)
from pythia_dynamics.checkpoints.layout import (
    FIRST_HEADER_BYTES,
    FIRST_TAIL_BYTES,
    LAYOUTS,
    CacheKey,
    Layout,
    LayoutCache,
)
from pythia_dynamics.checkpoints.roles import ROLES, UNEMBEDDING, Role, Roles, config_is_needed, find_roles
from pythia_dynamics.checkpoints.source import FileMissingError
from pythia_dynamics.errors import CheckpointError, FormatError, PythiaDynError

__all__ = ["CheckpointFiles", "TensorRequest", "find_tensors"]

MAX_INDEX_BYTES = 64 * 2**20
"""Longest accepted index of shards, which bounds the memory. That of Pythia 12b has 45 KB."""

_INDEX_ATTEMPTS = 3
"""How often an index that is damaged is read: no checksum covers it, and damage in transit is rare."""

MAX_CONFIG_BYTES = 2**20
"""Longest part of a ``config.json`` that is read; those of public models have a few kilobytes."""

_CONFIG = "config.json"

MAX_GAP_BYTES = 8 * 1024
"""Largest gap between two tensors that are read in one request. It covers what lies between the large tensors of a
block (biases and norms of up to 4,096 float16, headers and padding of a zip) but no matrix."""

MAX_GAPS_BYTES = 16 * 1024
"""Sum of the gaps in one request. With `FIRST_HEADER_BYTES` it keeps what is read beside the tensors below 64 KiB a
revision, which the tests of `fetch` assert."""

MAX_TAIL_REQUESTS = 4
"""Requests for one zip directory: the tail, then at most comment, zip64 end record and directory."""


@dataclass(frozen=True, slots=True)
class TensorRequest:
    """A tensor that has been found, to be read before the next one is looked for.

    Parameters
    ----------
    tensor
        Where the tensor lies.
    prefetch_stop
        As for `CheckpointFiles.read_range`.
    roles
        What it is for, usually nothing; None where that is not known.
    """

    tensor: TensorSlice
    prefetch_stop: int
    roles: tuple[Role, ...] | None = None


class CheckpointFiles(Protocol):
    """The files of one revision, as `find_tensors` reads them."""

    def read_range(self, file: str, start: int, stop: int | None, prefetch_stop: int = 0) -> tuple[bytes, int]:
        """The bytes ``file[start:stop]``, as a Python slice, and the size of the whole file in bytes. Those up to
        `prefetch_stop` are likely to be wanted next, and worth one read with these. Raises `FileMissingError` where the
        file is missing."""

    def list_files(self) -> Collection[str]:
        """The paths of all files."""


@dataclass(frozen=True, slots=True)
class _Query:
    """What is looked for in a revision (see `find_tensors`), or in its weight file `file`.

    `key` is that of the file in the cache. Of a shard the roles in the checkpoint are known, and the tensors that only
    a glob asks for.
    """

    files: CheckpointFiles
    patterns: Sequence[str]
    cache: LayoutCache
    where: str
    file: str = ""
    key: CacheKey = ""
    roles: Roles | None = None
    optional: frozenset[str] = frozenset()


def find_tensors(
    files: CheckpointFiles, patterns: Sequence[str], cache: LayoutCache, *, where: str, file: str = ""
) -> Iterator[TensorRequest]:
    """Find the tensors of one revision, in the order of the bytes.

    Parameters
    ----------
    files
        The files of the revision.
    patterns
        Names, roles and globs of the tensors; see `select`.
    cache
        The layouts of earlier revisions; that of this one is added.
    where
        The revision, for messages and as a key of `cache`.
    file
        The one weight file of the revision; empty where it is looked for.

    Yields
    ------
    TensorRequest
        Each tensor.

    Raises
    ------
    CheckpointError
        When the revision holds no weights, is incomplete, or has no tensor of the requested role.
    FormatError
        When a file is damaged, or a tensor cannot be stored.
    UnknownNameError
        When a pattern matches no tensor.
    """
    query = _Query(files, patterns, cache, where)
    if file:
        layout = Layout.of_file(file)
        yield from _find_in_file(layout, replace(query, file=file, key=f"*.{layout.format}"))
        cache.add(replace(layout, entry_file=f"*.{layout.format}"))
        return
    listed = False
    layouts = [*cache.layouts, *(layout for layout in LAYOUTS if layout not in cache.layouts)]
    while layouts:
        layout = layouts.pop(0)
        try:
            if listed or not layout.shards:  # how many shards this revision has, only its list of files tells
                yield from _find_in_layout(layout, query)
                cache.add(layout)
                return
        except FileMissingError as error:
            if error.file not in (layout.entry_file, *layout.shards):
                what = f"its index names {error.file}, which does not exist"
                raise CheckpointError(f"{where} is incomplete: {what}") from None
        if not listed:
            listed = True
            if not cache.may_list():
                layouts = [layout, *layouts] if layout.shards else layouts
                continue
            names = files.list_files()
            layouts = Layout.among(names)
            if not layouts:
                shown = ", ".join(sorted(names)[:6]) or "nothing"
                raise CheckpointError(f"{where} holds no weights that can be read (found: {shown})")
    usual = ", ".join(layout.entry_file for layout in LAYOUTS)
    raise CheckpointError(f"{where} holds no weights: it has none of {usual}")


def _find_in_layout(layout: Layout, query: _Query) -> Iterator[TensorRequest]:
    """The plan for a revision that has this layout. Raises `FileMissingError` when it has another one."""
    entry = layout.entry_file
    if not layout.has_index and not layout.shards:
        yield from _find_in_file(layout, replace(query, file=entry, key=entry))
        return
    cache, where = query.cache, query.where
    shards = cache.indexes.get((where, entry))
    if shards is None:
        shards = _joint_index(layout, query) if layout.shards else _index(entry, query)
        cache.indexes[where, entry] = shards
    roles = _roles(shards, query)
    chosen = select(shards, query.patterns, where=where, roles=roles.tensors)
    for shard in dict.fromkeys(shards[name] for name in chosen):
        members = frozenset(name for name, file in shards.items() if file == shard)
        names = [name for name in chosen if name in members]
        optional = frozenset(names).difference(query.patterns, roles.tensors.values())
        in_shard = replace(query, file=shard, key=(shard, members), roles=roles, optional=optional)
        yield from _find_in_file(layout, replace(in_shard, patterns=names, where=f"{where}/{shard}"))


def _index(file: str, query: _Query) -> dict[str, str]:
    """Tensor name → shard, from an index of shards."""
    for attempt in range(1, _INDEX_ATTEMPTS + 1):
        index, size = query.files.read_range(file, 0, MAX_INDEX_BYTES)
        if size > MAX_INDEX_BYTES:
            raise FormatError(f"{file} has {size} bytes, which no index of shards needs")
        try:
            return parse_index(index, file=file)
        except FormatError:
            if attempt == _INDEX_ATTEMPTS:
                raise
    raise AssertionError


def _joint_index(layout: Layout, query: _Query) -> dict[str, str]:
    """Tensor name → shard, from the headers of shards that have no index."""
    shards: dict[str, str] = {}
    for file in layout.shards:
        names: Collection[str]
        if layout.format == "safetensors":
            names = _safetensors_header(replace(query, file=file, key=file), 0)
        else:
            names = _state_dict(_zip_directory(replace(query, file=file, key=file)), query)
        for name in names:
            if name in shards:
                both = f"{shards[name]} and {file} both hold {name}"
                raise CheckpointError(f"{query.where}: {both}; leave only the files of one model in its folder")
            shards[name] = file
    return shards


def _find_in_file(layout: Layout, query: _Query) -> Iterator[TensorRequest]:
    """The plan for one weight file."""
    return _find_in_safetensors(query) if layout.format == "safetensors" else _find_in_torch_zip(query)


def _choose(names: Collection[str], query: _Query) -> tuple[list[str], Collection[str], Roles]:
    """The tensors of a file that are wanted, those of them that only a glob asks for, and the roles."""
    roles = query.roles or _roles(names, query)
    chosen = select(names, query.patterns, where=query.where, roles=roles.tensors)
    optional = query.optional if query.roles else set(chosen).difference(query.patterns, roles.tensors.values())
    return chosen, optional, roles


def _roles(names: Collection[str], query: _Query) -> Roles:
    """The roles of the tensors of a checkpoint. Its config is read where they depend on it.

    A config that cannot be had ends the plan only where a role was asked for.
    """
    cache, key, needed = query.cache, frozenset(names), not {*ROLES}.isdisjoint(query.patterns)
    known = cache.roles.get(key)
    if known is None or (needed and not known.complete):
        config: Mapping[str, Any] | None = None
        by_rule = {role: name for role, rule in cache.rule.items() for name in reversed(rule) if name in key}
        unknown = UNEMBEDDING not in by_rule and config_is_needed(names)
        if unknown:
            try:
                content, _ = query.files.read_range(_CONFIG, 0, MAX_CONFIG_BYTES)
            except (FileMissingError, FormatError):  # there is none, or it is empty
                pass
            except PythiaDynError:
                if needed:
                    raise
            else:
                with suppress(ValueError, RecursionError):  # damaged. Infinities are allowed: transformers writes them
                    found = json.loads(content)
                    config = found if isinstance(found, dict) else None
        known = Roles(find_roles(names, config) | by_rule, config is not None or not unknown)
        cache.roles[key] = known
    return known


def _find_in_safetensors(query: _Query) -> Iterator[TensorRequest]:
    """The plan for one safetensors file."""
    known = query.cache.headers.get(query.key)
    prefetch_stop = _guess_prefetch_stop(*known, query) if known else 0
    tensors = _safetensors_header(query, prefetch_stop)
    chosen, optional, roles = _choose(tensors, query)
    wanted = _storable([tensors[name] for name in chosen], optional)
    wanted.sort(key=lambda tensor: tensor.start)
    for tensor, run_end in zip(wanted, _run_ends([(t.start, t.stop) for t in wanted]), strict=True):
        yield TensorRequest(tensor, run_end, roles.of(tensor.name))


def _safetensors_header(query: _Query, prefetch_stop: int) -> dict[str, TensorSlice]:
    """The tensors of a safetensors file."""
    stop, _ = query.cache.headers.get(query.key, (FIRST_HEADER_BYTES, None))
    header, size = query.files.read_range(query.file, 0, stop, prefetch_stop)
    stop = safetensors_header_stop(header, file=query.file, file_size=size)
    if stop > len(header):
        header += query.files.read_range(query.file, len(header), stop, prefetch_stop)[0]
    tensors = parse_safetensors(header, file=query.file, file_size=size)
    query.cache.headers[query.key] = (stop, tensors)
    return tensors


def _storable(tensors: Sequence[TensorSlice], optional: Collection[str]) -> list[TensorSlice]:
    """The tensors that a store can hold. Raises `FormatError` for another one, unless it is optional."""
    kept = [tensor for tensor in tensors if tensor.dtype in STORABLE or tensor.name not in optional]
    for tensor in kept or tensors:
        require_storable(tensor)
    return kept


def _guess_prefetch_stop(header_stop: int, tensors: Mapping[str, TensorSlice], query: _Query) -> int:
    """Where the requested tensors that follow the header end, if the file is laid out like the last one; else 0."""
    roles = query.roles or query.cache.roles.get(frozenset(tensors))
    try:
        chosen = select(tensors, query.patterns, where="", roles=roles.tensors if roles else {})
    except PythiaDynError:
        return 0
    ranges = sorted((tensors[name].start, tensors[name].stop) for name in chosen)
    return _run_ends(ranges)[0] if ranges and ranges[0][0] <= header_stop + MAX_GAP_BYTES else 0


def _find_in_torch_zip(query: _Query) -> Iterator[TensorRequest]:
    """The plan for one zip file of ``torch.save``."""
    directory = _zip_directory(query)
    views = _state_dict(directory, query)
    chosen, optional, roles = _choose(views, query)
    # Only the local header states where the data begin: until it is read, tensors as if there were none.
    approximate = [
        locate(name, views[name], directory, directory.storage(views[name].storage.key).header_offset)
        for name in chosen
    ]
    wanted = sorted(_storable(approximate, optional), key=lambda tensor: tensor.start)
    members = [directory.storage(views[tensor.name].storage.key) for tensor in wanted]
    ranges = [_bounding_range(tensor, member) for tensor, member in zip(wanted, members, strict=True)]
    for tensor, member, (start, _), run_end in zip(wanted, members, ranges, _run_ends(ranges), strict=True):
        stop = member.header_offset + LOCAL_HEADER_BYTES + len(member.name.encode())
        prefetch_stop = run_end if start == member.header_offset else 0
        local, _ = query.files.read_range(query.file, member.header_offset, stop, prefetch_stop)
        tensor = locate(tensor.name, views[tensor.name], directory, member_data_start(local, member))
        yield TensorRequest(tensor, run_end, roles.of(tensor.name))


def _zip_directory(query: _Query) -> ZipDirectory:
    """The zip directory of a torch file, read from its end."""
    tail, size = query.files.read_range(query.file, -query.cache.tails.get(query.key, FIRST_TAIL_BYTES), None)
    for _ in range(MAX_TAIL_REQUESTS):
        try:
            directory = parse_zip_directory(tail, file=query.file, file_size=size)
        except NeedBytes as need:
            tail = query.files.read_range(query.file, need.start, need.stop)[0] + tail
        else:
            query.cache.tails[query.key] = size - max(member.limit for member in directory.members.values())
            return directory
    raise FormatError(f"{query.file}: there is no zip directory at its end; the file is damaged")


def _state_dict(directory: ZipDirectory, query: _Query) -> dict[str, PickledTensor]:
    """The tensors that the pickle of a torch file describes; a pickle with a known checksum is not read again."""
    member = directory.pickle
    known = (member.crc32, member.size) if member.crc32 is not None else None
    if known in query.cache.pickles:
        return query.cache.pickles[known]
    if member.size > MAX_PICKLE_BYTES:
        raise FormatError(f"{directory.file}: its data.pkl of {member.size} bytes is larger than any state dict's")
    start, stop = member.bounding_range()
    data, _ = query.files.read_range(directory.file, start, stop)
    begin = member_data_start(data, member) - start
    pickle = data[begin : begin + member.size]
    if member.crc32 is not None and crc32(pickle) != member.crc32:
        raise FormatError(f"{directory.file}: its data.pkl fails its checksum; the file is damaged")
    tensors = parse_state_dict(pickle, file=directory.file)
    if known is not None:
        query.cache.pickles[known] = tensors
    return tensors


def _bounding_range(approximate: TensorSlice, member: ZipMember) -> tuple[int, int]:
    """A range of the file that contains a tensor, and its local header where the tensor begins next to it.

    `approximate` is the tensor as if its storage, the member, had no local header.
    """
    start, stop = member.bounding_range()
    slack = (stop - start) - member.size
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
