"""The part of the work that one job of an array does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pythia_dynamics.errors import PythiaDynError

__all__ = ["Shard"]

T = TypeVar("T")

_TASK = "SLURM_ARRAY_TASK"
"""Begin of the names of the variables that Slurm sets in each job of an array (``sbatch --array``)."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several jobs that together do what a single run does.

    Parameters
    ----------
    index
        Number of the job, from 1.
    count
        Number of jobs.

    Raises
    ------
    PythiaDynError
        `index` is not from 1 to `count`.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise PythiaDynError(f"a shard is i/n with i from 1 to n, such as 2/4; got {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def label(self) -> str:
        """The shard in the name of a file: ``2-of-4``."""
        return f"{self.index}-of-{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether it is the only one."""
        return self.count == 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that ``i/n`` means. Raises `PythiaDynError`."""
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if found is None:
            raise PythiaDynError(f"a shard is i/n with i from 1 to n, such as 2/4; got {text!r}")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Shard | None:
        """The shard of a job of a Slurm array; None in any other process.

        Parameters
        ----------
        environment
            The variables. Default: those of this process. ``SLURM_ARRAY_TASK_ID`` is the number of the job,
            ``…_COUNT`` how many there are, ``…_MIN`` the first number (default 0 or 1) and ``…_STEP`` the distance of
            two (default 1).

        Raises
        ------
        PythiaDynError
            The numbers are not evenly spaced, so that the position of this one is not known, or no numbers at all.
        """
        values = os.environ if environment is None else environment
        given = {
            key: values[f"{_TASK}_{key}"] for key in ("ID", "COUNT", "MIN", "STEP") if values.get(f"{_TASK}_{key}")
        }
        if "ID" not in given or "COUNT" not in given:
            return None
        try:
            numbers = {key: int(value) for key, value in given.items()}
        except ValueError:
            raise PythiaDynError(f"{_TASK}_ID and _COUNT must be whole numbers; say --shard i/n") from None
        count, step = numbers["COUNT"], numbers.get("STEP", 1) or 1
        first = numbers.get("MIN", 0 if numbers["ID"] == 0 else 1)
        position, rest = divmod(numbers["ID"] - first, step)
        if rest or not 0 <= position < count:
            raise PythiaDynError(
                f"job {numbers['ID']} of an array of {count} from {first} by {step}: its position is not known; "
                "number the array evenly, as in --array=1-4, or say --shard i/n"
            )
        return cls(position + 1, count)

    def take(self, items: Sequence[T]) -> list[T]:
        """Every n-th of some items: those that are early and those that are late are spread over all shards."""
        return list(items[self.index - 1 :: self.count])

    def block(self, items: Sequence[T]) -> list[T]:
        """One of n runs of adjacent items whose lengths differ by one at most."""
        return list(items[(self.index - 1) * len(items) // self.count : self.index * len(items) // self.count])

    def balanced(self, items: Sequence[T], cost: Callable[[T], float]) -> list[T]:
        """Some of the items, in their order, so that all shards have about the same cost.

        The most expensive ones are given first, each to the shard that has the least so far. So the largest sum is at
        most 4/3 of the best possible one (Graham 1969).

        Parameters
        ----------
        items
            The items of all shards.
        cost
            What an item costs, in any unit.
        """
        sums = [0.0] * self.count
        owners: dict[int, int] = {}
        for position in sorted(range(len(items)), key=lambda position: (-cost(items[position]), position)):
            owner = min(range(self.count), key=lambda number: (sums[number], number))
            sums[owner] += cost(items[position])
            owners[position] = owner
        return [item for position, item in enumerate(items) if owners[position] == self.index - 1]
