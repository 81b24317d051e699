"""Parsers of checkpoint files: the byte range of each tensor, from headers alone. No I/O.

- `safetensors`: `safetensors_header_stop`, then `parse_safetensors`.
- `torchzip` for torch zip files: `parse_zip_directory` (end of the file) and `member_data_start` (local header); then
  `parse_state_dict` (data.pkl) and `locate` of `statedict`.
- `slices`: the result, `TensorSlice`; `parse_index` reads an index of shards, `select` finds the requested names,
  `require_storable` checks the dtype.
"""

from __future__ import annotations

__all__: list[str] = []
