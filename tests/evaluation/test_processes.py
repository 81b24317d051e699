"""Several processes that write rows of one table, and are killed while they do."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pythia_dynamics.evaluation.records import Records
from pythia_dynamics.evaluation.rows import Row
from pythia_dynamics.evaluation.scoring import Sentences
from pythia_dynamics.tables import read_csv

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SETTINGS = {"corpus": "text", "dtype": "float32"}
STEPS = tuple(range(24))
PASSAGES = 20


def row(step: int) -> Row:
    """The row of a step, which nobody else would write."""
    rng = np.random.default_rng(step)
    nll, entropy = rng.gamma(3, 4, PASSAGES), rng.gamma(2, 5, PASSAGES)
    curves = {name: rng.gamma(3, 1, 5 + step) for name in ("nll_mean", "entropy", "sentences")}
    return Row(Sentences(nll, entropy, rng.integers(1, 9, PASSAGES), rng.random(PASSAGES) < 0.5), curves)


def write(folder: Path, steps: Sequence[int]) -> None:
    """What a run does with the steps that have no row yet, without a pause between two writes."""
    made = Records("unmask", folder, SETTINGS)
    for step in steps:
        made.refresh()
        if not made.has(step, "commit"):
            made.add(step, "commit", row(step), {"step": step})
            made.flush(force=True)
    made.flush(force=True)


def start(task: Callable[[], None]) -> int:
    """Run a task in a process of its own; its id."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            task()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return process


def held(folder: Path) -> set[int]:
    """The steps that have a row. The file that says so is never torn."""
    path = folder / "perplexity-unmask.json"
    return {int(step) for step in json.loads(path.read_text())["indices"]} if path.exists() else set()


def check(folder: Path) -> None:
    """Every step has its own row once, in each of the files."""
    table = read_csv(folder / "perplexity-unmask.csv")
    assert [int(line["step"]) for line in table] == list(STEPS)
    sidecar = json.loads((folder / "perplexity-unmask.json").read_text())
    assert len(set(sidecar["indices"].values())) == len(STEPS)
    found = Records("unmask", folder, SETTINGS)
    for line in table:
        step = int(line["step"])
        expected = row(step).values("unmask")
        assert {name: float(value) for name, value in line.items() if name != "step"} == expected
        assert found.has(step, "commit")
        assert found.notes(step) == {"step": step}
    dataset = found.dataset(STEPS, {})
    for step in STEPS:
        for name, values in row(step).fields("unmask").items():
            np.testing.assert_array_equal(dataset[name].sel(step=step).values[: len(values)], values)
    curves = read_csv(folder / "perplexity-unmask-prefix.csv")
    assert len(curves) == sum(5 + step for step in STEPS)


@pytest.mark.parametrize("overlap", [False, True], ids=["disjoint", "overlapping"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_that_are_killed_lose_nothing(tmp_path: Path, count: int, overlap: bool) -> None:
    """25 kills at random moments; the rows of those that are killed stay, as do those of the others."""
    rng = random.Random(f"{count} {overlap}")
    folder, kills, seen = tmp_path / "results", 0, set[int]()

    def begin(folder: Path, worker: int) -> int:
        steps = rng.sample(STEPS, len(STEPS)) if overlap else list(STEPS[worker::count])
        return start(partial(write, folder, steps))

    running = {begin(folder, worker): worker for worker in range(count)}
    while kills < 25:
        time.sleep(rng.uniform(0, 0.08))
        process = rng.choice(list(running))
        worker = running.pop(process)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        kills += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        now = held(folder)
        assert seen <= now
        seen = now
        if len(now) == len(STEPS):  # begin again, so that there is something to kill
            check_after(running, folder)
            folder, seen = folder.with_name(f"results{kills}"), set()
            running = {begin(folder, worker): worker for worker in range(count)}
        else:
            running[begin(folder, worker)] = worker
    check_after(running, folder)


def check_after(running: dict[int, int], folder: Path) -> None:
    """Let the processes end, complete what those that were killed left, and check it."""
    for process in running:
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    write(folder, STEPS)
    check(folder)


def test_a_run_goes_on_from_every_point_of_an_interruption(tmp_path: Path) -> None:
    """Interrupted before every single file that appears, from the first row to the second."""
    whole = tmp_path / "whole"
    write(whole, STEPS[:2])
    expected = {path.name: path.read_bytes() for path in whole.glob("*.[cj]s*")}
    assert len(expected) == 3
    held_before = []
    for number in range(1000):
        folder = tmp_path / str(number)
        _, status = os.waitpid(start(partial(write_some_files, folder, number)), 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        before = held(folder)
        held_before.append(len(before))
        write(folder, STEPS[:2])
        assert before <= held(folder)
        assert {path.name: path.read_bytes() for path in folder.glob("*.[cj]s*")} == expected
    assert held_before == sorted(held_before)
    assert set(held_before) == {0, 1, 2}


def write_some_files(folder: Path, count: int) -> None:
    """Write rows, and end without a word in the place of the file after `count` of them."""
    replace, left = Path.replace, count

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            os._exit(3)
        left -= 1
        return replace(self, target)

    Path.replace = interrupted  # type: ignore[method-assign, assignment]
    write(folder, STEPS[:2])
