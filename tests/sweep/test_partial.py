"""Parts of a pass: together they are one pass, to the last bit, and nothing else is taken for one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.walks import walk

from pythia_dynamics.errors import FormatError, PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.shard import Shard
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, step_dataset
from pythia_dynamics.sweep.partial import PartialSums, PartSavedError
from pythia_dynamics.sweep.sweep import SlabSums, sweep

EVERY = ("density", "msd", "two_time", "angles", "order", "rank", "spectrum", "tails", "rows")


def part_of(folder: Path, number: int, count: int, *, merges: bool = False) -> PartialSums:
    return PartialSums(folder, "it", Shard(number, count), merges)


def save_all(history: History, which: Sequence[Any], folder: Path, count: int, **how: Any) -> None:
    for number in range(1, count + 1):
        with pytest.raises(PartSavedError, match=f"part {number}/{count} of it is saved; pythia-dyn merge puts"):
            analyse(history, which, compute=Compute(partial=part_of(folder, number, count), **how))


def together(history: History, which: Sequence[Any], folder: Path, count: int, **how: Any) -> dict[str, Any]:
    return analyse(history, which, compute=Compute(partial=part_of(folder, count, count, merges=True), **how))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("count", "threads"), [(4, 2), (40, 1)])
def test_all_measures_from_parts_are_those_of_one_process(dtype: Any, count: int, threads: int, tmp_path: Path) -> None:
    """With more jobs than steps or slabs, too."""
    history = History.from_array(walk(9, 300, 64, dtype))
    save_all(history, EVERY, tmp_path, count, threads=threads)
    found, whole = together(history, EVERY, tmp_path, count), analyse(history, EVERY)
    for name in EVERY:
        assert found[name].identical(whole[name]), name


@pytest.mark.filterwarnings("ignore::pythia_dynamics.sweep.frames.NonFiniteWarning")
def test_passes_that_follow_are_made_where_the_parts_are_put_together(tmp_path: Path) -> None:
    """Steps that are not finite are left out in a second pass; small displacements are repeated in float64."""
    weights = np.repeat(walk(1, 200, 32, np.float32), 8, axis=0)
    weights[1:] += np.float32(1e-6) * walk(7, 200, 32, np.float32)
    weights[5, 3, 3] = np.nan
    history = History.from_array(weights)
    which = ("msd", "two_time", "density", "spectrum")
    save_all(history, which, tmp_path, 3)
    found, whole = together(history, which, tmp_path, 3), analyse(history, which)
    for name in which:
        assert found[name].identical(whole[name]), name


def test_a_part_that_is_there_is_not_computed_again(tmp_path: Path) -> None:
    history = History.from_array(walk(5, 64, 16, np.float16))
    save_all(history, ["msd"], tmp_path, 2)
    paths = sorted(tmp_path.iterdir())
    before = [path.stat().st_mtime_ns for path in paths]
    save_all(history, ["msd"], tmp_path, 2)  # two jobs of one number, one after the other
    assert [path.stat().st_mtime_ns for path in paths] == before
    save_all(history.select([0, 1, 2, 3]), ["msd"], tmp_path, 2)
    assert [path.stat().st_mtime_ns for path in paths] != before


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    history = History.from_array(walk(5, 64, 16, np.float16))
    save_all(history, ["msd"], tmp_path, 3)
    for part, changed in (
        ("commits", replace(history, provenance={**history.provenance, "commits": {"0": "abc"}})),
        ("steps", history.select([0, 1, 2])),
        ("tensor", replace(history, tensor="another")),
    ):
        with pytest.raises(PartSavedError):
            analyse(changed, ["msd"], compute=Compute(partial=part_of(tmp_path, 2, 3)))
        with pytest.raises(PythiaDynError, match=rf"part 2/3 of it is of other weights or options \({part} differs\)"):
            together(history, ["msd"], tmp_path, 3)
    save_all(history, ["msd"], tmp_path, 3)
    with pytest.raises(PythiaDynError, match=r"\(rows differs\); run it again with --shard 1/3"):
        together(history, ["msd"], tmp_path, 3, rows=10)
    with pytest.raises(PythiaDynError, match=r"\(measures differs\)"):
        together(history, ["density"], tmp_path, 3)
    (tmp_path / "it.sums.2-of-3").unlink()
    with pytest.raises(PythiaDynError, match=r"it lacks the part 2/3: run it with --shard 2/3"):
        together(history, ["msd"], tmp_path, 3)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"tensor": 1})[:-3]])
def test_a_damaged_part_is_said(content: bytes, tmp_path: Path) -> None:
    history = History.from_array(walk(5, 64, 16, np.float16))
    save_all(history, ["msd"], tmp_path, 2)
    path = tmp_path / "it.sums.2-of-2"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"it\.sums\.2-of-2 is damaged .*; remove it and run its shard again"):
        together(history, ["msd"], tmp_path, 2)
    with pytest.raises(PartSavedError):  # or run it again without removing it
        analyse(history, ["msd"], compute=Compute(partial=part_of(tmp_path, 2, 2)))
    together(history, ["msd"], tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FormatError, match="is damaged"):
        together(history, ["msd"], tmp_path, 2)


class Command:
    """What runs a command where it is unpickled."""

    def __init__(self, *words: Any) -> None:
        self.words = words

    def __reduce__(self) -> Any:
        return self.words[0], self.words[1:]


@pytest.mark.parametrize("function", [os.system, eval, np.save, np.memmap, pickle.loads])
def test_a_part_runs_no_code(function: Any, tmp_path: Path) -> None:
    history = History.from_array(walk(5, 64, 16, np.float16))
    save_all(history, ["msd"], tmp_path, 2)
    path = tmp_path / "it.sums.1-of-2"
    about, made = pickle.dumps(pickle.loads(path.read_bytes())), tmp_path / "made"
    path.write_bytes(about + pickle.dumps(Command(function, f"touch {made}")))
    with pytest.raises(FormatError, match="is not allowed"):
        together(history, ["msd"], tmp_path, 2)
    assert not made.exists()


def cubes(values: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return ((values.astype(np.float64) ** 3).sum(),)


def finish(history: History, sums: SlabSums) -> Any:
    variable = Variable(sums.total[:, 0], "sum of cubes")
    return step_dataset(history, {"cubes": variable}, at=sums.indices)


def test_a_measure_of_the_user(tmp_path: Path) -> None:
    def own(function: Any) -> Measure:
        return Measure("own", "", "", finish=finish, accumulators=(lambda: SlabSums(function=function),))

    history = History.from_array(walk(5, 64, 16, np.float16))
    save_all(history, [own(cubes)], tmp_path, 2)
    found = together(history, [own(cubes)], tmp_path, 2)["own"]
    assert found.identical(analyse(history, [own(cubes)])["own"])
    with pytest.raises(PythiaDynError, match=r"\(measures differs\)"):
        together(history, [own(np.sum)], tmp_path, 2)
    with pytest.raises(PythiaDynError, match=r"the sums of it cannot be saved: .*lambda"):
        analyse(history, [own(lambda values: (0,))], compute=Compute(partial=part_of(tmp_path, 1, 2)))


def test_the_jobs_divide_the_weights(tmp_path: Path) -> None:
    """Each weight is read once, by one job."""
    history = History.from_array(walk(3, 1 << 10, 64, np.float16))
    seen = []
    for number in (1, 2, 3):
        partial = part_of(tmp_path, number, 3)
        with pytest.raises(PartSavedError):
            sweep(history, [SlabSums(function=cubes)], Compute(partial=partial), slab=1 << 13)
        content = (tmp_path / f"it.sums.{number}-of-3").read_bytes()
        sums = pickle.loads(content[content.index(pickle.dumps(0, 5)[:2], 2) :])[0][0].sums
        seen += [(number, start) for start in sums]
    starts = [start for _, start in sorted(seen)]
    assert starts == sorted(starts) == list(range(0, 1 << 16, 1 << 13))
