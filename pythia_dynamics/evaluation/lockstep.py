"""A key-value cache of rows that are all extended at the same position, although they start at different ones.

The forward pass of the model fills and reads it, so that no arithmetic of the model is repeated here. Its memory is
allocated once and stays where it is, for rows of any number and width that fit, so that a captured CUDA graph can read
and write it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

__all__ = ["LockstepCache"]


class LockstepCache(Cache):
    """Keys and values of each layer, shape (rows, heads, width, head size), in memory of a fixed size.

    Parameters
    ----------
    source
        Cache of a forward pass of the model, which gives the shapes.
    positions
        Largest number of rows times their width.
    """

    def __init__(self, source: Cache, positions: int) -> None:
        self._lockstep = [_LockstepLayer(layer, positions) for layer in source.layers]
        super().__init__(layers=list(self._lockstep))

    def fill(self, source: Cache, sentences: torch.Tensor, prefix: torch.Tensor, width: int) -> None:
        """Start rows with prefixes of sentences; what the cache held is lost.

        Parameters
        ----------
        source
            Cache of a forward pass over the sentences.
        sentences
            Index of the sentence of each row, int64, shape (rows,).
        prefix
            Number of positions that each row starts with, int64, shape (rows,). What follows them is 0, because a
            masked value that is not finite would spoil a row.
        width
            Positions of a row.
        """
        after = torch.arange(width, device=prefix.device) >= prefix[:, None]
        for layer, given in zip(self._lockstep, source.layers, strict=True):
            layer.fill(given, sentences, after[:, None, :, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the other rows; `rows` are indices of rows in increasing order, int64."""
        for layer in self._lockstep:
            layer.keep(rows)

    def select(self, count: int, length: int, slots: torch.Tensor | None) -> None:
        """Set what the next forward pass reads and writes.

        Parameters
        ----------
        count
            It extends the first `count` rows.
        length
            It reads the first `length` positions of them.
        slots
            The position that it writes of each row, int64, shape (count,); None writes the last that it reads.
        """
        for layer in self._lockstep:
            layer.select(count, length, None if slots is None else slots[:, None, None, None])


class _LockstepLayer(DynamicLayer):
    def __init__(self, source: Any, positions: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size = positions * source.keys.shape[1] * source.keys.shape[3]
        self._storage = (source.keys.new_empty(size), source.values.new_empty(size))
        self._rows: tuple[torch.Tensor, ...] = ()
        self._count = self._length = 0
        self._slots: torch.Tensor | None = None
        self.dtype, self.device = source.keys.dtype, source.keys.device
        self.is_initialized = True

    def fill(self, source: Any, sentences: torch.Tensor, after: torch.Tensor) -> None:
        count, _, width, _ = after.shape
        states = source.keys, source.values
        shapes = [(count, given.shape[1], width, given.shape[3]) for given in states]
        self._rows = tuple(
            storage[: torch.Size(shape).numel()].view(shape)
            for storage, shape in zip(self._storage, shapes, strict=True)
        )
        for rows, given in zip(self._rows, states, strict=True):
            known = min(width, given.shape[2])
            rows[:, :, :known] = given[sentences, :, :known]
            rows.masked_fill_(after, 0)

    def keep(self, rows: torch.Tensor) -> None:
        for states in self._rows:
            states[: rows.shape[0]] = states[rows]

    def select(self, count: int, length: int, slots: torch.Tensor | None) -> None:
        self._count, self._length, self._slots = count, length, slots

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of the new position; return views of the positions that are read."""
        keys, values = (states[: self._count] for states in self._rows)
        for states, new in ((keys, key_states), (values, value_states)):
            if self._slots is None:
                states[:, :, self._length - 1] = new[:, :, 0]
            else:
                states.scatter_(2, self._slots.expand_as(new), new)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self) -> int:
        """Positions before the one that the next forward pass computes, where it reads no more than it needs."""
        return self._length - 1
