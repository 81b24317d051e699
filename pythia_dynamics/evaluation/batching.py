"""Batches of sequences, sorted by length and bounded by a cost, and halved when the device runs out of memory.

All modes use it. It knows the lengths of sequences only, no models and no tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pythia_dynamics.errors import PythiaDynError

__all__ = ["Batch", "Cost", "evaluate_in_batches", "no_report", "padded_tokens", "plan"]

Cost = Callable[[int, int], int]
"""``cost(count, width)``: units of memory of a batch of `count` sequences, the longest of `width` tokens."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that are evaluated together.

    Parameters
    ----------
    members
        Positions of the sequences in the caller's list, the longest first.
    width
        Length of the longest.
    """

    members: tuple[int, ...]
    width: int


def no_report(budget: int) -> None:
    """Do not report a smaller budget: the default of every `reduced` parameter."""


def padded_tokens(count: int, width: int) -> int:
    """Tokens of a right-padded rectangle: the cost of a batch that is read in one forward pass."""
    return count * width


def plan(lengths: Sequence[int], budget: int, cost: Cost = padded_tokens) -> list[Batch]:
    """Batches that cover all sequences, the longest first.

    The batch that is most likely to exceed the memory then comes at the start of a run, not at its end.

    Parameters
    ----------
    lengths
        Length of each sequence.
    budget
        Largest cost of a batch; only a batch of a single sequence may exceed it.
    cost
        The cost of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[Batch] = []
    start = 0
    while start < len(order):
        batch = _next_batch(order[start:], lengths, budget, cost)
        batches.append(batch)
        start += len(batch.members)
    return batches


def evaluate_in_batches(
    lengths: Sequence[int],
    budget: int,
    evaluate: Callable[[Batch, int], _Result],
    *,
    out_of_memory: Callable[[BaseException], bool],
    free: Callable[[], None],
    reduced: Callable[[int], None] = no_report,
    cost: Cost = padded_tokens,
    least: Callable[[int], int] | None = None,
) -> Iterator[tuple[Batch, _Result]]:
    """Evaluate every batch of the plan; where one does not fit in memory, begin again with half of it as the budget.

    All batches are evaluated again, so that the last result of each sequence is that of a run with the smaller budget
    from its beginning. Little is lost, because the longest sequences come first. A warning states the budget.

    Parameters
    ----------
    lengths, budget, cost
        As for `plan`.
    evaluate
        Computes the result of a batch within a budget; that of a single sequence may be less than its cost.
    out_of_memory
        Whether an exception of `evaluate` means that a smaller batch may fit; other exceptions are raised.
    free
        Returns cached memory to the device, before the smaller batch is tried.
    reduced
        Called with each smaller budget.
    least
        The least budget with which a single sequence of some width can be evaluated. Default: its cost.

    Yields
    ------
    tuple of Batch and result
        Those after the budget was reduced replace those before.

    Raises
    ------
    PythiaDynError
        When a single sequence does not fit with the least budget, or `budget` is below 1.
    """
    if budget < 1:
        raise PythiaDynError(f"the number of tokens held at once must be at least 1, not {budget}")
    order = whole_order = [i for batch in plan(lengths, budget, cost) for i in batch.members]
    while order:
        batch = _next_batch(order, lengths, budget, cost)
        fits = True
        try:
            result = evaluate(batch, budget)
        except Exception as error:
            if not out_of_memory(error):
                raise
            fits = False
        if not fits:
            # Outside the handler: its exception keeps frames alive, and the tensors in them.
            free()
            whole = cost(1, batch.width)
            smallest = whole if least is None else least(batch.width)
            if len(batch.members) > 1:
                budget = cost(len(batch.members) // 2, batch.width)
            elif min(budget, whole) > smallest:
                budget = max(min(budget, whole) // 2, smallest)
            else:
                raise PythiaDynError(
                    f"out of memory on a single sequence of {batch.width} tokens;"
                    " take a smaller dtype, shorter passages or a larger device"
                )
            warnings.warn(f"out of memory; goes on with --batch-tokens {budget}", stacklevel=2)
            reduced(budget)
            order = whole_order  # longest first, whatever the budget
            continue
        yield batch, result
        order = order[len(batch.members) :]


def _next_batch(order: Sequence[int], lengths: Sequence[int], budget: int, cost: Cost) -> Batch:
    """The first sequences of `order`, as many as the budget allows."""
    width = lengths[order[0]]
    count = 1
    while count < len(order) and cost(count + 1, width) <= budget:
        count += 1
    return Batch(tuple(order[:count]), width)
