"""A key-value cache for rows that all have the same length, whenever each of them was born.

The model's own forward pass fills and reads it, so that nothing of the model's arithmetic is rewritten here.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

__all__ = ["LockstepCache"]


class LockstepCache(Cache):
    """Preallocated keys and values, (capacity, heads, width, head size) a layer; the first `rows` rows are alive.

    Every live row holds `length` positions. A row is born with the keys and values of a prefix of a sentence, out of
    `source`, the cache of one forward pass over the sentences; rows that are done are dropped by `keep`.
    """

    def __init__(self, source: Cache, capacity: int, width: int) -> None:
        self._lockstep = [_LockstepLayer(layer, capacity, width) for layer in source.layers]
        super().__init__(layers=list(self._lockstep))

    def begin(self, position: int, born: torch.Tensor | None) -> None:
        """Set the common length to `position`, after adding a row for the prefix of each sentence in `born`."""
        for layer in self._lockstep:
            layer.begin(position, born)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these; `rows` are ascending indices of live ones."""
        for layer in self._lockstep:
            layer.keep(rows)


class _LockstepLayer(DynamicLayer):
    def __init__(self, source: Any, capacity: int, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sources: tuple[torch.Tensor, torch.Tensor] = (source.keys, source.values)
        self._buffers = tuple(
            states.new_empty((capacity, states.shape[1], width, states.shape[3])) for states in self._sources
        )
        self._rows = self._length = 0
        self.dtype, self.device = source.keys.dtype, source.keys.device
        self.is_initialized = True

    def begin(self, position: int, born: torch.Tensor | None) -> None:
        if born is not None:
            end = self._rows + born.shape[0]
            for buffer, source in zip(self._buffers, self._sources, strict=True):
                buffer[self._rows : end, :, :position] = source[born, :, :position]
            self._rows = end
        self._length = position

    def keep(self, rows: torch.Tensor) -> None:
        self._rows = rows.shape[0]
        for buffer in self._buffers:
            # Up to and with the position that `update` wrote last.
            buffer[: self._rows, :, : self._length + 1] = buffer[rows, :, : self._length + 1]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of the one new position; return views of those of all positions so far."""
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._length] = states[:, :, 0]
        keys, values = (buffer[: self._rows, :, : self._length + 1] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self._length
