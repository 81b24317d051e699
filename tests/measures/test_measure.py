"""The parts of a measure as a value: its options, what its functions must return, progress over both passes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal, Optional

import numpy as np
import pytest
import xarray as xr
from support.walks import walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.catalogue import BUILT_IN
from pythia_dynamics.measures.measure import Measure, Option, compute_measures
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.frames import NonFiniteWarning

AB = Literal["a", "b"]


@pytest.mark.parametrize(
    ("default", "kind", "allowed", "refused"),
    [
        ("a", AB, ("a", "b"), ("c", None, 1)),
        (None, AB, ("a", None), ("c",)),
        ("a", Optional[AB], ("b", None), ("c",)),  # noqa: UP045  # both ways of writing it
        ("a", AB | None, ("b", None), ("c",)),
        ("a", Literal["a", None], ("a", None), ("b",)),
        (1, Literal[1, 2], (1, 2), (True, 1.0, 3, None)),
        (0, int, (1, "anything"), ()),
        (None, int, (None, 3), ()),
    ],
)
def test_values_of_an_option(default: Any, kind: Any, allowed: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    option = Option("x", default, kind, None)
    assert [value for value in (*allowed, *refused) if option.allows(value)] == list(allowed)


@pytest.mark.parametrize("answer", [("text", 3), (3, {}), ("text",), "text", ("text", {}, 1), None])
def test_a_summary_is_a_sentence_and_facts(answer: Any) -> None:
    measure = replace(BUILT_IN["density"], summarise=lambda dataset: answer)
    with pytest.raises(PythiaDynError, match="did not return a sentence and a mapping of facts"):
        measure.call("summarise", xr.Dataset())


@pytest.mark.parametrize(
    ("names", "shares"),
    [(("msd", "density"), [0, 1000]), (("spectrum",), [0, 1000]), (("msd", "rank"), [0, 500, 1000])],
)
def test_progress_counts_thousandths_over_all_passes(names: tuple[str, ...], shares: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    compute = Compute(threads=1, progress=lambda done, total: seen.append((done, total)))
    compute_measures(walk(6, 40, 8, np.float16), [BUILT_IN[name] for name in names], compute=compute)
    done = [count for count, _ in seen]
    assert {total for _, total in seen} == {1000}
    assert done == sorted(done)
    assert done[-1] == 1000
    assert set(shares) - {0} <= set(done)
    assert 0 <= done[0] <= 500


@pytest.mark.parametrize("names", [("msd",), ("spectrum",), ("msd", "spectrum"), ("spectrum", "rank", "density")])
def test_a_step_that_is_not_finite_is_named_once(names: tuple[str, ...]) -> None:
    frames = walk(4, 40, 8, np.float16)
    frames[2, 0, 0] = np.nan
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compute_measures(frames, [BUILT_IN[name] for name in names])
    (warning,) = seen
    assert issubclass(warning.category, NonFiniteWarning)
    assert "step 2" in str(warning.message)


def test_an_option_without_a_default_must_be_given() -> None:
    def finish(history: History, counts: Counts, *, factor: float) -> xr.Dataset:
        return step_dataset(history, {"scaled": Variable(factor * counts.moments.mean, "")}, at=counts.indices)

    scaled = Measure("scaled", "Scaled mean", "here", finish, (Counts,))
    frames = walk(3, 5, 4, np.float64)
    np.testing.assert_allclose(scaled(frames, factor=2)["scaled"], 2 * frames.mean(axis=(1, 2)))
    with pytest.raises(PythiaDynError, match="scaled needs the option factor"):
        scaled(frames)
