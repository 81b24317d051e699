"""The part of a job of an array: all jobs together have every item once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.shard import Shard


def all_of(count: int) -> list[Shard]:
    return [Shard(number + 1, count) for number in range(count)]


@given(st.integers(1, 9), st.lists(st.integers(), unique=True))
def test_every_item_is_in_one_shard(count: int, items: list[int]) -> None:
    for divide in (Shard.take, Shard.block, lambda shard, of: shard.balanced(of, abs)):
        parts = [divide(shard, items) for shard in all_of(count)]
        assert sorted(itertools.chain(*parts)) == sorted(items)
    blocks = [shard.block(items) for shard in all_of(count)]
    assert list(itertools.chain(*blocks)) == items
    lengths = [len(block) for block in blocks]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 3), st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_balanced_shards_are_within_the_bound_of_graham(count: int, costs: list[int]) -> None:
    items = list(enumerate(costs))
    parts = [shard.balanced(items, lambda item: item[1]) for shard in all_of(count)]
    longest = max(sum(cost for _, cost in part) for part in parts)
    best = min(
        max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == number) for number in range(count))
        for owners in itertools.product(range(count), repeat=len(costs))
    )
    assert longest <= (4 / 3 - 1 / (3 * count)) * best + 1e-9
    for part in parts:
        assert part == sorted(part)  # in the order of the items


def test_a_shard_is_read_from_text() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert Shard.parse(" 12 / 40 ").label == "12-of-40"
    assert str(Shard(2, 4)) == "2/4"
    assert Shard.parse("1/1").is_whole
    for wrong in ("", "2", "0/4", "5/4", "a/b", "1/0", "-1/4", "1/4/2"):
        with pytest.raises(PythiaDynError, match="a shard is i/n with i from 1 to n, such as 2/4"):
            Shard.parse(wrong)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"ID": "3"}, None),  # Slurm sets both
        ({"ID": "1", "COUNT": "4", "MIN": "1"}, Shard(1, 4)),
        ({"ID": "4", "COUNT": "4", "MIN": "1"}, Shard(4, 4)),
        ({"ID": "0", "COUNT": "4", "MIN": "0"}, Shard(1, 4)),
        ({"ID": "3", "COUNT": "4", "MIN": "0"}, Shard(4, 4)),
        ({"ID": "17", "COUNT": "4", "MIN": "14"}, Shard(4, 4)),
        ({"ID": "20", "COUNT": "4", "MIN": "10", "STEP": "5"}, Shard(3, 4)),
        ({"ID": "2", "COUNT": "4"}, Shard(2, 4)),
        ({"ID": "0", "COUNT": "4"}, Shard(1, 4)),
    ],
)
def test_a_shard_of_an_array_of_slurm(given: dict[str, str], expected: Shard | None) -> None:
    environment = {f"SLURM_ARRAY_TASK_{key}": value for key, value in given.items()}
    assert Shard.from_environment(environment) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"ID": "7", "COUNT": "3", "MIN": "1"},  # --array=1,3,7
        {"ID": "3", "COUNT": "3", "MIN": "1", "STEP": "4"},
        {"ID": "1", "COUNT": "3", "MIN": "2"},
    ],
)
def test_an_uneven_array_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(PythiaDynError, match=r"position is not known; number the array evenly, as in --array=1-4"):
        Shard.from_environment({f"SLURM_ARRAY_TASK_{key}": value for key, value in given.items()})


def test_numbers_of_an_array_are_numbers() -> None:
    with pytest.raises(PythiaDynError, match="must be whole numbers; say --shard i/n"):
        Shard.from_environment({"SLURM_ARRAY_TASK_ID": "one", "SLURM_ARRAY_TASK_COUNT": "4"})
