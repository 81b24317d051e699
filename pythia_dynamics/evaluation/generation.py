"""Greedy completion of many rows in lockstep: at each position all rows that have begun get one token.

A step works on arrays whose memory stays where it is, and takes from them which rows have begun. On a GPU the number of
rows and the length that it reads are rounded up, so that few different steps are needed and each of them comes again:
these are captured as CUDA graphs. Elsewhere they are exact, and nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from pythia_dynamics.evaluation.graphs import StepGraphs, capture_on_cuda
from pythia_dynamics.evaluation.lockstep import LockstepCache
from pythia_dynamics.evaluation.memory import free_cached_memory
from pythia_dynamics.evaluation.scoring import head_of, head_statistics

__all__ = ["Completions", "Generator", "Rows", "Shapes", "computes_with_masks"]

_DEAD_SHARE = 4
"""Rows that have ended are dropped when they are one of this many: dropping copies the caches of all others, which
costs about as much as these rows cost in a few steps."""

_LENGTH_STEP = 16
"""Lengths are rounded up to multiples of this on a GPU. Fused attention takes masks of such widths as they are."""

_NEVER = torch.iinfo(torch.int64).max

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Differences of NLL (nats) that rounding can make in a few tokens; 0.1 in dtypes of 16 bits."""


@dataclass(frozen=True, slots=True)
class Completions:
    """Tokens, NLL and entropy (nats) on the host, of equal shape."""

    tokens: NDArray[np.int64]
    nll: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Self:
        """Zeros of a shape."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    @classmethod
    def concatenated(cls, parts: Sequence[Completions], width: int) -> Completions:
        """The rows of all parts, of this width."""
        if not parts:
            return Completions.empty((0, width))
        names = ("tokens", "nll", "entropy")
        return Completions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class Rows:
    """Completions to compute, in order of prefix length; each array is int64 of shape (rows,).

    Parameters
    ----------
    sentence
        Index of the sentence.
    prefix
        Number of its tokens that are given, at least 1.
    last
        Index of the last token that is computed.
    """

    sentence: NDArray[np.int64]
    prefix: NDArray[np.int64]
    last: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prefix)

    def __getitem__(self, part: slice) -> Self:
        """Some of the rows."""
        return type(self)(self.sentence[part], self.prefix[part], self.last[part])


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes that steps have.

    Parameters
    ----------
    rounded
        Whether they are rounded up, so that few are different.
    """

    rounded: bool

    def rows(self, count: int) -> int:
        """Rows of a step that needs `count`: rounded, four for each power of two (8, 10, 12, 14, 16, 20 …)."""
        if not self.rounded or count <= 8:
            return count
        step = 1 << ((count - 1).bit_length() - 3)
        return -(-count // step) * step

    def most_rows(self, count: int) -> int:
        """The largest number of rows of a step that is not above `count`, at least 1."""
        if not self.rounded or count <= 8:
            return max(1, count)
        step = 1 << (count.bit_length() - 3)
        return count // step * step

    def length(self, length: int) -> int:
        """Positions that a step reads which needs `length`."""
        return -(-length // _LENGTH_STEP) * _LENGTH_STEP if self.rounded else length

    def width(self, width: int) -> int:
        """Positions of a row of `width` tokens.

        Its last token is not read again. So there is one position beyond those that any step reads, into which the
        rows write that have not begun.
        """
        return self.length(width - 1) + 1


class _Memory:
    """What steps read and write on the device, for as many rows and positions as were needed so far."""

    def __init__(self, cache: LockstepCache, rows: int, positions: int, device: torch.device) -> None:
        def zeros(size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.cache, self.rows, self.positions, self.device = cache, rows, positions, device
        self.position = zeros(1)
        self.prefix, self.first, self.current, self.output = (zeros(rows) for _ in range(4))
        outputs = positions + 1  # into the last one, which is never read, rows write that have not begun
        self.tokens = zeros(outputs)
        self.nll, self.entropy = zeros(outputs, torch.float32), zeros(outputs, torch.float32)


class Generator:
    """Completes rows with one model; what it needs on the device is kept for further calls.

    Parameters
    ----------
    model
        A model in evaluation mode. Its weights may change between calls, but not their addresses.
    shapes
        Shapes of the steps.
    graphs
        Runs the steps; None calls them.
    """

    def __init__(self, model: PreTrainedModel, shapes: Shapes, graphs: StepGraphs | None = None) -> None:
        self._model = model
        self._memory: _Memory | None = None
        self._reserved = 0, 0
        self.shapes, self.graphs = shapes, graphs

    @classmethod
    def for_device(cls, model: PreTrainedModel) -> Self:
        """Rounded shapes and graphs on CUDA, if the model computes the same with masked positions; else exact ones."""
        if head_of(model).weight.device.type == "cuda" and computes_with_masks(model):
            return cls(model, Shapes(rounded=True), StepGraphs(partial(capture_on_cuda, head_of(model).weight.device)))
        return cls(model, Shapes(rounded=False))

    def reserve(self, rows: int, positions: int) -> None:
        """Take memory for this many rows and positions, rows times their width, at the next call that needs more.

        So the memory, and the graphs that use it, are those of the largest call from the first one on.
        """
        self._reserved = rows, positions

    def release(self) -> None:
        """Let go of the memory on the device, and of the graphs that use it."""
        self._memory = None
        if self.graphs is not None:
            self.graphs.clear()
            free_cached_memory(head_of(self._model).weight.device)  # that of their pool, which is not used again

    def complete(self, source: Cache, rows: Rows, width: int, top: torch.Tensor) -> Completions:
        """Complete all rows.

        Parameters
        ----------
        source
            Cache of a forward pass over the sentences.
        rows
            What is completed.
        width
            Tokens of the longest sentence.
        top
            The likeliest token after each prefix, int64, shape (sentences, width − 1); column k − 1 for k tokens.

        Returns
        -------
        Completions
            Shape (rows, width); column p belongs to the token at p. A row is valid from the column after the first that
            follows its prefix to its last.
        """
        total, stride = len(rows), self.shapes.width(width)
        memory = self._prepare(source, rows, stride, top)
        held = np.arange(total)  # the row in each slot
        for position in range(int(rows.prefix[0]), width - 1):
            begun = int(np.searchsorted(rows.prefix[held], position, side="right"))
            ended = rows.last[held] <= position
            dead = int(ended[:begun].sum())
            if dead == begun:
                continue
            if dead * _DEAD_SHARE >= begun:
                held, begun = held[~ended], begun - dead
                self._keep(memory, np.flatnonzero(~ended))
            memory.position.fill_(position)
            self._run(memory, self.shapes.rows(begun), self.shapes.length(position + 1), stride)
        tokens, nll, entropy = (
            values[: total * stride].view(total, stride)[:, :width].to("cpu", copy=True).numpy()
            for values in (memory.tokens, memory.nll, memory.entropy)
        )
        return Completions(tokens, nll, entropy)

    def _prepare(self, source: Cache, rows: Rows, stride: int, top: torch.Tensor) -> _Memory:
        """The memory, with the rows in it; slots that are left over hold rows that never begin."""
        count = self.shapes.rows(len(rows))
        memory = self._memory
        if memory is None or memory.rows < count or memory.positions < count * stride:
            held = (0, 0) if memory is None else (memory.rows, memory.positions)
            most_rows = max(count, held[0], self._reserved[0])
            most_positions = max(count * stride, held[1], self._reserved[1])
            del memory
            self.release()
            cache = LockstepCache(source, most_positions)
            memory = self._memory = _Memory(cache, most_rows, most_positions, top.device)
        sentence = np.zeros(count, np.int64)
        prefix = np.full(count, _NEVER)
        sentence[: len(rows)], prefix[: len(rows)] = rows.sentence, rows.prefix
        of, begins = (torch.from_numpy(values).to(top.device) for values in (sentence, prefix))
        memory.prefix[:count] = begins
        memory.first[:count] = top[of, begins.clamp(max=top.shape[1]) - 1]
        memory.current[:count] = 0
        memory.output[:count] = torch.arange(count, device=top.device)
        memory.cache.fill(source, of, begins, stride)
        return memory

    def _keep(self, memory: _Memory, slots: NDArray[np.int64]) -> None:
        kept = torch.from_numpy(slots).to(memory.device)
        memory.cache.keep(kept)
        for values in (memory.prefix, memory.first, memory.current, memory.output):
            values[: len(slots)] = values[kept]
        memory.prefix[len(slots) :] = _NEVER

    def _run(self, memory: _Memory, count: int, length: int, stride: int) -> None:
        def step() -> None:
            self._step(memory, count, length, stride)

        if self.graphs is None:
            step()
        else:
            self.graphs.run((count, length, stride), step)

    def _step(self, memory: _Memory, count: int, length: int, stride: int) -> None:
        """One token for the first `count` rows, of `stride` positions, of which the first `length` are read."""
        position, prefix = memory.position, memory.prefix[:count]
        current = torch.where(prefix == position, memory.first[:count], memory.current[:count])
        options: dict[str, Any] = {}
        at = memory.output[:count] * stride + position + 1
        if not self.shapes.rounded:  # all rows have begun, and they read the positions that they have
            memory.cache.select(count, length, None)
        else:
            # Numbers are arguments of kernels here, never tensors on the host: a capture allows no copy from there.
            waits = prefix > position
            at = at.masked_fill(waits, memory.positions)
            memory.cache.select(count, length, position.expand(count).masked_fill(waits, stride - 1))
            dtype = head_of(self._model).weight.dtype
            unread = torch.arange(length, device=memory.device) > position
            mask = torch.zeros(length, dtype=dtype, device=memory.device).masked_fill_(unread, -torch.inf)
            options = {"attention_mask": mask[None, None, None, :], "position_ids": position.expand(count, 1)}
        states = self._model.base_model(
            input_ids=current[:, None], past_key_values=memory.cache, use_cache=True, **options
        )
        statistics = head_statistics(self._model, states.last_hidden_state[:, 0])
        memory.current[:count] = statistics.top
        memory.tokens.scatter_(0, at, statistics.top)
        memory.nll.scatter_(0, at, statistics.nll)
        memory.entropy.scatter_(0, at, statistics.entropy)


def computes_with_masks(model: PreTrainedModel) -> bool:
    """Whether a model gives the same tokens where more positions are read, and masked, than there are.

    Architectures whose layers attend to a part of the context only do not: their masks would be replaced. Of the others
    it is tried on a short sequence, because there are some whose positions come from the mask (ALiBi).
    """
    if not _attends_to_all(model.config.get_text_config()):
        return False
    weight = head_of(model).weight
    probe = torch.arange(4, device=weight.device)[None] % model.config.vocab_size
    with torch.inference_mode():
        try:
            exact, masked = (_probe(model, probe, Shapes(rounded=rounded)) for rounded in (False, True))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a model raises that does not know such masks
            return False
    tolerance = _TOLERANCE.get(weight.dtype, 0.1)
    return bool(np.isfinite(exact).all() and np.allclose(exact, masked, rtol=tolerance, atol=tolerance))


def _attends_to_all(config: Any) -> bool:
    """Whether every layer attends to all positions before it, as a config says."""
    windows = ("sliding_window", "attention_chunk_size", "window_size")
    kinds = [*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())]
    whole = all(kind in ("full_attention", "global") for kind in kinds)
    return whole and (bool(kinds) or not any(getattr(config, name, None) for name in windows))


def _probe(model: PreTrainedModel, tokens: torch.Tensor, shapes: Shapes) -> NDArray[np.float32]:
    """NLL of five tokens that a model writes after one, two and three others."""
    cache = DynamicCache()
    hidden = model.base_model(input_ids=tokens, past_key_values=cache, use_cache=True).last_hidden_state
    top = head_statistics(model, hidden[0]).top[None]
    rows = Rows(np.zeros(3, np.int64), np.arange(1, 4), np.full(3, 8))
    return np.triu(Generator(model, shapes).complete(cache, rows, 9, top).nll, k=2)
