from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation.batching import Batch, evaluate_in_batches, padded_tokens, plan

LENGTHS = st.lists(st.integers(1, 60), max_size=60)


@given(LENGTHS, st.integers(1, 300))
def test_a_plan_covers_all_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch.members) == list(range(len(lengths)))
    in_order = [lengths[i] for batch in batches for i in batch.members]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches:
        assert batch.width == max(lengths[i] for i in batch.members)
        assert len(batch.members) == 1 or len(batch.members) * batch.width <= budget
    for one, following in itertools.pairwise(batches):  # none could have taken one more
        assert (len(one.members) + 1) * one.width > budget, following


@pytest.mark.filterwarnings("ignore:out of memory")
@given(LENGTHS, st.integers(1, 1000), st.integers(60, 400))
def test_out_of_memory_makes_batches_smaller_and_loses_nothing(lengths: list[int], budget: int, memory: int) -> None:
    tried: list[int] = []
    freed = []
    budgets = [budget]

    def evaluate(batch: Batch, budget: int) -> tuple[int, ...]:
        assert budget == budgets[-1]
        tried.append(padded_tokens(len(batch.members), batch.width))
        if tried[-1] > memory:
            raise MemoryError
        return batch.members

    results = list(
        evaluate_in_batches(
            lengths,
            budget,
            evaluate,
            out_of_memory=lambda error: isinstance(error, MemoryError),
            free=lambda: freed.append(1),
            reduced=budgets.append,
        )
    )
    assert all(batch.members == members for batch, members in results)
    # The last result of every sequence is that of a run with the last budget.
    expected = plan(lengths, budgets[-1])
    assert [batch for batch, _ in results[len(results) - len(expected) :]] == expected
    assert budgets == sorted(set(budgets), reverse=True)
    assert len(budgets) == 1 + len(freed)
    failures = sum(size > memory for size in tried)
    assert len(freed) == failures
    assert failures <= 10  # 1000 tokens halve to 60 in five steps; the new budget holds for what follows


def test_a_single_sequence_that_does_not_fit_is_an_error() -> None:
    def evaluate(batch: Batch, budget: int) -> None:
        raise MemoryError

    with (
        pytest.warns(UserWarning, match="--batch-tokens 7"),
        pytest.raises(PythiaDynError, match="single sequence of 7 tokens"),
    ):
        list(
            evaluate_in_batches([7, 3], 100, evaluate, out_of_memory=lambda _: True, free=lambda: None),
        )


def test_a_single_sequence_is_tried_with_less_where_that_is_possible() -> None:
    tried: list[int] = []

    def evaluate(batch: Batch, budget: int) -> int:
        tried.append(budget)
        if budget > 30:
            raise MemoryError
        return budget

    options: dict[str, Any] = {"out_of_memory": lambda _: True, "free": lambda: None, "least": lambda width: width}
    options["cost"] = lambda count, width: count * width**2
    with pytest.warns(UserWarning, match="out of memory; goes on with --batch-tokens") as warned:
        ((_, used),) = evaluate_in_batches([10], 1000, evaluate, **options)
    assert (tried, used) == ([1000, 50, 25], 25)
    assert [str(one.message).rpartition(" ")[2] for one in warned] == ["50", "25"]
    tried.clear()

    def never(batch: Batch, budget: int) -> None:
        tried.append(budget)
        raise MemoryError

    with (
        pytest.warns(UserWarning, match=r"--batch-tokens \d+"),
        pytest.raises(PythiaDynError, match="single sequence of 10 tokens"),
    ):
        list(evaluate_in_batches([10], 1000, never, **options))
    assert tried == [1000, 50, 25, 12, 10]


@pytest.mark.parametrize("budget", [0, -5])
def test_no_tokens_at_once_are_refused(budget: int) -> None:
    with pytest.raises(PythiaDynError, match=f"at least 1, not {budget}"):
        list(evaluate_in_batches([7], budget, lambda *_: None, out_of_memory=lambda _: False, free=lambda: None))


def test_other_errors_are_not_swallowed() -> None:
    def evaluate(batch: Batch, budget: int) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        list(evaluate_in_batches([7], 100, evaluate, out_of_memory=lambda _: False, free=lambda: None))
