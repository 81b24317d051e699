"""One batching layer for every engine: sequences sorted by length, batches bounded by what they hold, and smaller
batches when the device runs out of memory. Pure: knows lengths, not models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pythia_dynamics.errors import PythiaDynError

__all__ = ["Batch", "Cost", "evaluate_in_batches", "padded_tokens", "plan"]

Cost = Callable[[int, int], int]
"""``cost(count, width)``: what a batch of `count` sequences, the longest of `width` tokens, holds at once."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Batch:
    """Which sequences go together: their positions in the caller's list, longest first, and the longest's length."""

    members: tuple[int, ...]
    width: int


def padded_tokens(count: int, width: int) -> int:
    """Tokens of a right-padded rectangle; the cost of a batch that is only read forward."""
    return count * width


def plan(lengths: Sequence[int], budget: int, cost: Cost = padded_tokens) -> list[Batch]:
    """Batches that cover all sequences, longest first, each within `budget` or of a single sequence.

    Longest first because the batch that may not fit in memory then comes at once, not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        batch = _take(order[start:], lengths, budget, cost)
        batches.append(batch)
        start += len(batch.members)
    return batches


def evaluate_in_batches(
    lengths: Sequence[int],
    budget: int,
    evaluate: Callable[[Batch], _Result],
    *,
    out_of_memory: Callable[[BaseException], bool],
    free: Callable[[], None],
    cost: Cost = padded_tokens,
) -> Iterator[tuple[Batch, _Result]]:
    """Evaluate every batch of the plan; when one does not fit in memory, halve it, and the budget from there on.

    `out_of_memory` tells such an error from others, `free` returns cached memory to the device. Raises
    `PythiaDynError` when a single sequence does not fit.
    """
    order = [i for batch in plan(lengths, budget, cost) for i in batch.members]
    while order:
        batch = _take(order, lengths, budget, cost)
        fits = True
        try:
            result = evaluate(batch)
        except Exception as error:
            if not out_of_memory(error):
                raise
            fits = False
        if not fits:
            # Outside the handler: the exception's frames hold the tensors that have to go first.
            free()
            if len(batch.members) == 1:
                raise PythiaDynError(
                    f"out of memory on a single sequence of {batch.width} tokens;"
                    " take a smaller dtype, shorter passages or a larger device"
                )
            budget = cost(len(batch.members) // 2, batch.width)
            continue
        yield batch, result
        order = order[len(batch.members) :]


def _take(order: Sequence[int], lengths: Sequence[int], budget: int, cost: Cost) -> Batch:
    width = lengths[order[0]]
    count = 1
    while count < len(order) and cost(count + 1, width) <= budget:
        count += 1
    return Batch(tuple(order[:count]), width)
