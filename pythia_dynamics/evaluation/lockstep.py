"""A key-value cache of rows that all have the same length, although they start at different positions.

The forward pass of the model fills and reads it, so that no arithmetic of the model is repeated here.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

__all__ = ["LockstepCache"]


class LockstepCache(Cache):
    """Preallocated keys and values of each layer, shape (capacity, heads, width, head size).

    The first rows are active; all of them hold the same number of positions. A row starts with the keys and values of
    a prefix of a sentence.

    Parameters
    ----------
    source
        Cache of one forward pass over the sentences, from which rows start.
    capacity
        Largest number of rows that are active at once.
    width
        Largest number of positions of a row.
    """

    def __init__(self, source: Cache, capacity: int, width: int) -> None:
        self._lockstep = [_LockstepLayer(layer, capacity, width) for layer in source.layers]
        super().__init__(layers=list(self._lockstep))

    def begin(self, position: int, sentences: torch.Tensor | None) -> None:
        """Set the common length, and add the rows that start at it.

        Parameters
        ----------
        position
            Number of positions that every active row holds from now on.
        sentences
            Index of the sentence of each new row, which starts with the first `position` tokens of it; None adds no
            row.
        """
        for layer in self._lockstep:
            layer.begin(position, sentences)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the other rows; `rows` are indices of active rows in increasing order."""
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

    def begin(self, position: int, sentences: torch.Tensor | None) -> None:
        if sentences is not None:
            end = self._rows + sentences.shape[0]
            for buffer, source in zip(self._buffers, self._sources, strict=True):
                buffer[self._rows : end, :, :position] = source[sentences, :, :position]
            self._rows = end
        self._length = position

    def keep(self, rows: torch.Tensor) -> None:
        self._rows = rows.shape[0]
        for buffer in self._buffers:
            # Up to the position that `update` wrote last, inclusive.
            buffer[: self._rows, :, : self._length + 1] = buffer[rows, :, : self._length + 1]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of the new position; return views of the states of all positions so far."""
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._length] = states[:, :, 0]
        keys, values = (buffer[: self._rows, :, : self._length + 1] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self._length
