"""Which bytes to ask for: the layout of a checkpoint, found by asking for as little of it as possible. No I/O.

`find_tensors` is a generator that yields requests and is sent the answers, so that a test, a local directory and the
Hub can drive it alike. It speculates: what one revision looked like is tried on the next, in one request for header
and tensor, and every guess is checked against the header it brought before a byte of tensor is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast
from zlib import crc32

from pythia_dynamics.checkpoints.formats.pickles import MAX_PICKLE_BYTES
from pythia_dynamics.checkpoints.formats.safetensors import parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import NeedBytes, TensorSlice, parse_index, require_storable, select
from pythia_dynamics.checkpoints.formats.statedict import StorageView, locate, parse_state_dict
from pythia_dynamics.checkpoints.formats.torchzip import ZipDirectory, member_data_start, parse_zip_directory
from pythia_dynamics.checkpoints.source import FileMissingError
from pythia_dynamics.errors import CheckpointError, FormatError, PythiaDynError

__all__ = ["ENTRY_FILES", "NEAR", "Answer", "List", "Memory", "Piece", "Probe", "Request", "Take", "find_tensors"]

ENTRY_FILES = {
    "safetensors": "model.safetensors",
    "torch": "pytorch_model.bin",
    "safetensors shards": "model.safetensors.index.json",
    "torch shards": "pytorch_model.bin.index.json",
}
"""The file a checkpoint of each layout is recognised by, in order of preference."""

FIRST_HEADER = 24 * 1024
FIRST_TAIL = 48 * 1024
MAX_INDEX = 64 * 2**20
NEAR = 8 * 1024
GAPS = 16 * 1024
_MEMORY_LIMIT = 64
_LOCAL_HEADER = 30


@dataclass(frozen=True, slots=True)
class List:
    """Wanted: the files of the revision. Answer: a mapping of path → size, or None when that is not to be had."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Wanted: ``file[start:stop]``, as a Python slice. Answer: a `Piece`, or `FileMissingError` thrown in.

    What follows up to `ahead` is likely to be wanted next: it is worth one request with this.
    """

    file: str
    start: int
    stop: int | None
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Take:
    """Wanted: the tensor itself, to be kept. Answer: None. `ahead` as for `Probe`."""

    tensor: TensorSlice
    ahead: int


Request = List | Probe | Take


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes from `start` on, of a file of `size` bytes."""

    data: bytes
    start: int
    size: int


Answer = Piece | Mapping[str, int] | None
Plan = Generator[Request, Answer, None]


@dataclass
class Memory:
    """What earlier revisions of the same model looked like; guesses, never trusted.

    `layouts` have been met, latest first; `headers` are (stop of the header, tensors) of safetensors files and
    `tails` the bytes that held a zip directory, by file and the names said to be in it; `pickles` are state dicts by
    the (CRC-32, size) which the zip directory states for them; `indexes` those of shards, by revision and file.
    """

    layouts: tuple[str, ...] = ()
    headers: dict[object, tuple[int, dict[str, TensorSlice]]] = field(default_factory=dict)
    tails: dict[object, int] = field(default_factory=dict)
    pickles: dict[tuple[int, int], dict[str, StorageView]] = field(default_factory=dict)
    indexes: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def met(self, layout: str) -> None:
        self.layouts = (layout, *(other for other in self.layouts if other != layout))
        for held in cast("tuple[dict[object, object], ...]", (self.headers, self.tails, self.pickles, self.indexes)):
            while len(held) > _MEMORY_LIMIT:
                held.pop(next(iter(held)), None)


def find_tensors(patterns: Sequence[str], memory: Memory, *, where: str, held: Collection[str] = ()) -> Plan:
    """Find and take the tensors that `patterns` (names and globs) mean in one revision, but those `held` already.

    `where` names the revision in errors. Raises `CheckpointError`, `FormatError` or `UnknownNameError` when the
    revision cannot serve.
    """
    unlisted = True
    layouts = [*memory.layouts, *(layout for layout in ENTRY_FILES if layout not in memory.layouts)]
    while layouts:
        layout = layouts.pop(0)
        try:
            yield from _of_layout(layout, patterns, memory, where, held)
        except FileMissingError as error:
            if error.file != ENTRY_FILES[layout]:
                raise CheckpointError(
                    f"{where} is incomplete: its index names {error.file}, which is not there"
                ) from None
        else:
            memory.met(layout)
            return
        if unlisted:
            unlisted = False
            files = yield List()
            if not isinstance(files, Mapping):
                continue
            layouts = [known for known in ENTRY_FILES if ENTRY_FILES[known] in files]
            if not layouts:
                shown = ", ".join(sorted(files)[:6]) or "nothing"
                raise CheckpointError(f"{where} holds no weights that can be read (found: {shown})")
    raise CheckpointError(f"{where} holds no weights: it has none of {', '.join(ENTRY_FILES.values())}")


def _of_layout(layout: str, patterns: Sequence[str], memory: Memory, where: str, held: Collection[str]) -> Plan:
    read = _safetensors if layout.startswith("safetensors") else _torch
    entry = ENTRY_FILES[layout]
    if layout.endswith("shards"):
        shards = memory.indexes.get((where, entry))
        if shards is None:
            index = yield Probe(entry, 0, MAX_INDEX)
            assert isinstance(index, Piece)
            if index.size > MAX_INDEX:
                raise FormatError(f"{where}/{entry} has {index.size} bytes, which no index of shards needs")
            shards = memory.indexes[where, entry] = parse_index(index.data, file=entry)
        wanted = [name for name in select(shards, patterns, where=where) if name not in held]
        for shard in dict.fromkeys(shards[name] for name in wanted):
            inside = frozenset(name for name, file in shards.items() if file == shard)
            here = [name for name in wanted if shards[name] == shard]
            yield from read(shard, (shard, inside), here, memory, f"{where}/{shard}", held)
    else:
        yield from read(entry, entry, patterns, memory, where, held)


def _safetensors(
    file: str, key: object, patterns: Sequence[str], memory: Memory, where: str, held: Collection[str]
) -> Plan:
    stop, ahead = FIRST_HEADER, 0
    if key in memory.headers:
        stop, tensors = memory.headers[key]
        ahead = _speculate(stop, tensors, patterns, held)
    piece = yield Probe(file, 0, stop, ahead)
    assert isinstance(piece, Piece)
    header, size = piece.data, piece.size
    stop = safetensors_header_stop(header, file=file, file_size=size)
    if stop > len(header):
        piece = yield Probe(file, len(header), stop, ahead)
        assert isinstance(piece, Piece)
        header += piece.data
    tensors = parse_safetensors(header, file=file, file_size=size)
    memory.headers[key] = (stop, tensors)
    wanted = [tensors[name] for name in select(tensors, patterns, where=where) if name not in held]
    wanted.sort(key=lambda tensor: tensor.start)
    for tensor in wanted:
        require_storable(tensor)
    for tensor, end in zip(wanted, _run_ends([(t.start, t.stop) for t in wanted]), strict=True):
        yield Take(tensor, end)


def _speculate(stop: int, tensors: Mapping[str, TensorSlice], patterns: Sequence[str], held: Collection[str]) -> int:
    """The end of the wanted tensors that follow the header at once, if this file is like the last; else 0."""
    try:
        hoped = [tensors[name] for name in select(tensors, patterns, where="") if name not in held]
    except PythiaDynError:
        return 0
    ranges = sorted((tensor.start, tensor.stop) for tensor in hoped)
    return _run_ends(ranges)[0] if ranges and ranges[0][0] <= stop + NEAR else 0


def _torch(file: str, key: object, patterns: Sequence[str], memory: Memory, where: str, held: Collection[str]) -> Plan:
    directory = yield from _zip_directory(file, key, memory)
    views = yield from _state_dict(directory, memory)
    wanted = [views[name] for name in select(views, patterns, where=where) if name not in held]
    wanted.sort(key=lambda view: (directory.storage(view.key).header_offset, view.offset))
    rough = [locate(view, directory, directory.storage(view.key).reach()[0]) for view in wanted]
    for tensor in rough:
        require_storable(tensor)
    # Where the data begin is known from the local header only: until then, a range that surely holds them.
    likely = [_likely_range(view, directory, tensor) for view, tensor in zip(wanted, rough, strict=True)]
    for view, (start, _), end in zip(wanted, likely, _run_ends(likely), strict=True):
        member = directory.storage(view.key)
        length = _LOCAL_HEADER + len(member.name.encode())
        adjacent = start == member.header_offset
        local = yield Probe(file, member.header_offset, member.header_offset + length, end if adjacent else 0)
        assert isinstance(local, Piece)
        yield Take(locate(view, directory, member_data_start(local.data, member)), end)


def _zip_directory(file: str, key: object, memory: Memory) -> Generator[Request, Answer, ZipDirectory]:
    piece = yield Probe(file, -memory.tails.get(key, FIRST_TAIL), None)
    assert isinstance(piece, Piece)
    tail, size = piece.data, piece.size
    for _ in range(4):
        try:
            directory = parse_zip_directory(tail, file=file, file_size=size)
        except NeedBytes as need:
            piece = yield Probe(file, need.start, need.stop)
            assert isinstance(piece, Piece)
            tail = piece.data + tail
        else:
            last = max(member.limit for member in directory.members.values())
            memory.tails[key] = size - last
            return directory
    raise FormatError(f"{file}: the zip directory is not to be found at its end; the file is damaged")


def _state_dict(directory: ZipDirectory, memory: Memory) -> Generator[Request, Answer, dict[str, StorageView]]:
    member = directory.pickle
    known = (member.crc32, member.size) if member.crc32 is not None else None
    if known is not None and known in memory.pickles:
        return memory.pickles[known]
    if member.size > MAX_PICKLE_BYTES:
        raise FormatError(f"{directory.file}: its data.pkl of {member.size} bytes is larger than any state dict's")
    start, stop = member.reach()
    piece = yield Probe(directory.file, start, stop)
    assert isinstance(piece, Piece)
    begin = member_data_start(piece.data, member) - start
    pickle = piece.data[begin : begin + member.size]
    if member.crc32 is not None and crc32(pickle) != member.crc32:
        raise FormatError(f"{directory.file}: its data.pkl fails its checksum; the file is damaged")
    views = parse_state_dict(pickle, file=directory.file)
    if known is not None:
        memory.pickles[known] = views
    return views


def _likely_range(view: StorageView, directory: ZipDirectory, rough: TensorSlice) -> tuple[int, int]:
    """A range of the file that most probably contains the tensor; with its local header, when it begins there.

    `rough` is the tensor as if its storage had no local header.
    """
    start, stop = directory.storage(view.key).reach()
    slack = (stop - start) - directory.storage(view.key).size
    if rough.start > start + NEAR:
        start = rough.start
    return start, min(stop, rough.stop + slack)


def _run_ends(ranges: Sequence[tuple[int, int]]) -> list[int]:
    """For each of these sorted ranges: the end of the run of near ones it is part of, one request's worth."""
    joined, spent = [], 0
    for (_, stop), (start, _) in pairwise(ranges):
        gap = max(0, start - stop)
        joined.append(gap <= NEAR and spent + gap <= GAPS)
        spent += gap if joined[-1] else 0
    ends = [stop for _, stop in ranges]
    for i in reversed(range(len(joined))):
        if joined[i]:
            ends[i] = max(ends[i], ends[i + 1])
    return ends
