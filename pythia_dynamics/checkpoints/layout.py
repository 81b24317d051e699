"""How the weights of a checkpoint are stored, and what is remembered of it from one revision to the next. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pythia_dynamics.checkpoints.formats.pickles import PickledTensor
from pythia_dynamics.checkpoints.formats.slices import TensorSlice
from pythia_dynamics.checkpoints.roles import Role, Roles
from pythia_dynamics.checkpoints.tree import WeightFormat, is_index, weight_files

__all__ = ["FIRST_HEADER_BYTES", "FIRST_TAIL_BYTES", "LAYOUTS", "MAX_LISTINGS", "CacheKey", "Layout", "LayoutCache"]

FIRST_HEADER_BYTES = 24 * 1024
"""First guess at the header of a safetensors file. Pythia's take 10 KB (70m) to 65 KB (12b); up to 160m (21 KB) the
guess saves a request, above that the first revision costs a second one. Later revisions use the length of the first."""

FIRST_TAIL_BYTES = 48 * 1024
"""First guess at the directory of a torch zip, at the end of the file. Pythia's take 6 KB (70m) to 34 KB (12b)."""

MAX_LISTINGS = 16
"""File lists that a fetch may request. One is needed only where a revision has none of the layouts found so far, or no
weights; 16 of the Hub's 500 API requests in 5 minutes leave room for parallel fetches."""

MAX_CACHED = 64
"""Entries of each table of `LayoutCache`. For Pythia 12b, with 544 tensors, a full one takes about 20 MB."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the weights of a checkpoint are stored.

    Parameters
    ----------
    format
        The format of its weight files.
    entry_file
        The file by which the layout is recognised: the weights, or the index of shards; empty for shards without one.
    shards
        The files, where there are several without an index.
    """

    format: WeightFormat
    entry_file: str
    shards: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, file: str) -> Layout:
        """The layout of a checkpoint in one file, or of the index of one in several."""
        return cls("safetensors" if ".safetensors" in file else "torch", file)

    @classmethod
    def among(cls, files: Iterable[str]) -> list[Layout]:
        """The layouts that a checkpoint with these files may have, the preferred one first.

        Parameters
        ----------
        files
            Paths of all files of the checkpoint.
        """
        files = list(files)
        if usual := [layout for layout in LAYOUTS if layout.entry_file in files]:
            return usual
        weights = [file for file in weight_files(files) if not is_index(file)]
        if len(weights) > 1:
            return [cls(cls.of_file(weights[0]).format, "", tuple(weights))]
        return [cls.of_file(file) for file in weights]

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return self.entry_file or f"{len(self.shards)} {self.format} shards"

    @property
    def has_index(self) -> bool:
        """Whether the weights are spread over several files, which an index lists."""
        return is_index(self.entry_file)

    @property
    def files_read(self) -> int:
        """Files that are read for one tensor: the weights, and the index where there is one, or every shard."""
        return 2 if self.has_index else max(1, len(self.shards))

    @property
    def first_read_bytes(self) -> int:
        """Bytes that are read first of a weight file whose layout is not known yet."""
        return FIRST_HEADER_BYTES if self.format == "safetensors" else FIRST_TAIL_BYTES


LAYOUTS = tuple(
    Layout.of_file(file)
    for file in (
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    )
)
"""The layouts of transformers, in order of preference."""

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
    rule
        The names of the tensors that have a role in this suite.
    tickets
        One for each file list that may still be requested.
    """

    layouts: tuple[Layout, ...] = ()
    headers: dict[CacheKey, tuple[int, dict[str, TensorSlice]]] = field(default_factory=dict)
    tails: dict[CacheKey, int] = field(default_factory=dict)
    pickles: dict[tuple[int, int], dict[str, PickledTensor]] = field(default_factory=dict)
    indexes: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    roles: dict[frozenset[str], Roles] = field(default_factory=dict)
    rule: Mapping[Role, Sequence[str]] = field(default_factory=dict)
    tickets: Iterator[int] = field(default_factory=lambda: iter(range(MAX_LISTINGS)))

    def may_list(self) -> bool:
        """Whether a file list may be requested; if so, it counts as requested."""
        return next(self.tickets, None) is not None

    def add(self, layout: Layout) -> None:
        """Put a layout first, and drop the oldest entries of tables that have grown beyond `MAX_CACHED`."""
        self.layouts = (layout, *(other for other in self.layouts if other != layout))
        tables: tuple[dict[Any, Any], ...] = (self.headers, self.tails, self.pickles, self.indexes, self.roles)
        for table in tables:
            while len(table) > MAX_CACHED:
                table.pop(next(iter(table)), None)
