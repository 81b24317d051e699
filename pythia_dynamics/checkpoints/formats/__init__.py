"""Parsers of checkpoint files: the byte range of each tensor, from headers alone. No I/O.

safetensors: `safetensors_header_stop`, `parse_safetensors`. Torch zip files: `parse_zip_directory` (end of the file),
`member_data_start` (local header) and `parse_state_dict` (data.pkl), then `locate`. Index of shards: `parse_index`.
The result is a `TensorSlice`; `select` finds the requested names, `require_storable` checks the dtype.
"""

from __future__ import annotations

from pythia_dynamics.checkpoints.formats.pickles import MAX_PICKLE_BYTES
from pythia_dynamics.checkpoints.formats.safetensors import HEADER_LENGTH, parse_safetensors, safetensors_header_stop
from pythia_dynamics.checkpoints.formats.slices import (
    STORABLE,
    NeedBytes,
    TensorSlice,
    parse_index,
    require_storable,
    select,
)
from pythia_dynamics.checkpoints.formats.statedict import StorageView, locate, parse_state_dict
from pythia_dynamics.checkpoints.formats.torchzip import ZipDirectory, ZipMember, member_data_start, parse_zip_directory

__all__ = [
    "HEADER_LENGTH",
    "MAX_PICKLE_BYTES",
    "STORABLE",
    "NeedBytes",
    "StorageView",
    "TensorSlice",
    "ZipDirectory",
    "ZipMember",
    "locate",
    "member_data_start",
    "parse_index",
    "parse_safetensors",
    "parse_state_dict",
    "parse_zip_directory",
    "require_storable",
    "safetensors_header_stop",
    "select",
]
