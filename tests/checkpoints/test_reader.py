"""The reader of one revision: its budget of file lists."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

from pythia_dynamics.checkpoints.reader import ListingBudget


def test_a_listing_budget_is_shared_by_threads_and_copied_to_processes() -> None:
    budget = ListingBudget(100)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: budget.take(), range(90))) == 90
    copied = pickle.loads(pickle.dumps(budget))
    for each in (budget, copied):
        assert [each.take() for _ in range(12)] == [True] * 10 + [False] * 2
