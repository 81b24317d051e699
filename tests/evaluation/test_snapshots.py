"""Checkpoints that are downloaded ahead: their order, what is on disk at once, and what is left after an end."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pythia_dynamics.checkpoints.source import AccessError, Revision
from pythia_dynamics.errors import CheckpointError
from pythia_dynamics.evaluation import snapshots as module
from pythia_dynamics.evaluation.snapshots import checkpoints_on_disk, snapshots

SIZE = 100
Outcome = tuple[int, Path | Exception]


class Downloads:
    """A source whose snapshots are downloads of 100 bytes: it notes what happens, and can wait, and fail.

    `waits` are the steps whose downloads do not end before `go_on` or `cancel` is called.
    """

    location = name = "somebody/model"

    def __init__(self, root: Path, failing: Mapping[int, Exception] | None = None, waits: set[int] | None = None):
        self.root = root
        self.failing, self.waits = failing or {}, waits or set()
        self.log: list[tuple[str, int]] = []
        self.under_way: set[int] = set()
        self.most_at_once = self.most_on_disk = 0
        self.cancelled = False
        self._goes_on = threading.Event()
        self._lock = threading.Lock()

    def revisions(self) -> dict[int, Revision]:
        return {step: Revision(step, f"step{step}", f"commit{step}") for step in range(1, 9)}

    def note(self, what: str, step: int) -> None:
        with self._lock:
            self.log.append((what, step))

    def steps(self, what: str) -> list[int]:
        return [step for each, step in list(self.log) if each == what]

    def begun(self) -> list[int]:
        """The steps whose downloads began, sorted. Three threads begin in any order what is to be fetched at once: a
        step begins after all those that are three or more before it, which must have been taken."""
        steps = self.steps("get")
        for place, step in enumerate(steps):
            assert set(range(1, step - 2)) <= set(steps[:place]), steps
        return sorted(steps)

    def on_disk(self) -> list[int]:
        return sorted(int(path.name.removeprefix("commit")) for path in self.root.iterdir())

    def snapshot(self, revision: Revision) -> Path:
        with self._lock:
            self.log.append(("get", revision.step))
            self.under_way.add(revision.step)
            self.most_at_once = max(self.most_at_once, len(self.under_way))
            directory = self.root / str(revision.commit)
            directory.mkdir(parents=True, exist_ok=True)
            self.most_on_disk = max(self.most_on_disk, len(self.on_disk()))
        try:
            if revision.step in self.waits:
                assert self._goes_on.wait(10)
                if self.cancelled:
                    raise CheckpointError("cancelled")
            if error := self.failing.get(revision.step):
                raise error
            (directory / "file").write_bytes(bytes(SIZE))
        except Exception:
            directory.rmdir()
            raise
        finally:
            with self._lock:
                self.under_way.remove(revision.step)
        return directory

    def evict(self, revision: Revision) -> None:
        self.note("evict", revision.step)
        shutil.rmtree(self.root / str(revision.commit))

    def go_on(self) -> None:
        self._goes_on.set()

    def cancel(self) -> None:
        self.cancelled = True
        self._goes_on.set()

    def use(self, **options: Any) -> Iterator[Outcome]:
        for revision, outcome in snapshots(self, list(self.revisions().values()), **options):  # type: ignore[arg-type]
            self.note("use", revision.step)
            yield revision.step, outcome


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def settled(source: Downloads) -> None:
    """Wait until no download is under way or begins."""
    until(lambda: not source.under_way)
    time.sleep(0.02)
    assert not source.under_way


def test_three_come_at_once_while_one_is_used(tmp_path: Path) -> None:
    source = Downloads(tmp_path, waits={2, 3, 4})
    found = source.use()
    assert next(found)[0] == 1
    until(lambda: len(source.under_way) == 3)
    assert source.under_way == {2, 3, 4}
    source.go_on()
    for step, outcome in found:
        assert isinstance(outcome, Path)
        assert (outcome / "file").is_file()
        settled(source)
        assert source.on_disk() == list(range(step, min(step + 3, 8) + 1))
    assert source.begun() == source.steps("use") == source.steps("evict") == list(range(1, 9))
    assert (source.most_at_once, source.most_on_disk) == (3, 4)
    assert source.on_disk() == []
    assert not source.cancelled


def test_the_next_one_is_not_kept_waiting_by_later_ones(tmp_path: Path) -> None:
    """In order of need: those that are there already are yielded when it is their turn."""
    source = Downloads(tmp_path, waits={2})
    found = source.use()
    next(found)
    until(lambda: len(source.on_disk()) == 4 and source.under_way == {2})
    assert source.begun() == [1, 2, 3, 4]
    threading.Timer(0.05, source.go_on).start()
    assert [step for step, _ in found] == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("bound", "ahead"), [(0, 1), (199, 1), (299, 1), (300, 2), (399, 2), (400, 3), (10_000, 3)])
def test_without_a_budget_one_is_ahead_always_and_more_where_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, ahead: int
) -> None:
    monkeypatch.setattr(module, "_AHEAD_BYTES", bound)
    source = Downloads(tmp_path)
    for step, _ in source.use():
        settled(source)
        assert source.on_disk() == list(range(step, min(step + ahead, 8) + 1))
    assert source.most_on_disk == ahead + 1 == checkpoints_on_disk(SIZE)
    assert source.on_disk() == []


def test_before_a_size_is_known_there_are_two(tmp_path: Path) -> None:
    source = Downloads(tmp_path, waits={1, 2, 3})
    found = source.use()
    threading.Timer(0.1, source.go_on).start()
    next(found)
    assert source.log.index(("use", 1)) >= 2
    assert source.steps("get")[:2] == [1, 2]
    found.close()  # type: ignore[attr-defined]
    budgeted = Downloads(tmp_path / "other", waits={1})
    found = budgeted.use(disk_budget=10_000)
    threading.Timer(0.1, budgeted.go_on).start()
    next(found)
    assert budgeted.most_at_once == 1 or budgeted.steps("get")[0] == 1
    found.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [170_000_000, 3_000_000_000, 24_000_000_000])
def test_real_checkpoints(size: int) -> None:
    assert checkpoints_on_disk(size) == {170_000_000: 4, 3_000_000_000: 4, 24_000_000_000: 2}[size]


@pytest.mark.parametrize(("budget", "at_most"), [(0, 1), (100, 1), (250, 2), (350, 3), (450, 4), (550, 5), (9999, 8)])
def test_checkpoints_stay_while_they_fit(tmp_path: Path, budget: int, at_most: int) -> None:
    source = Downloads(tmp_path)
    for step, outcome in source.use(disk_budget=budget):
        assert isinstance(outcome, Path)
        settled(source)
        assert step in source.on_disk()
        assert len(source.on_disk()) <= at_most
    assert source.most_on_disk == at_most
    assert source.begun() == list(range(1, 9))
    assert source.on_disk() == list(range(1, 9))[8 - min(8, budget // SIZE) :]


def test_what_is_kept_makes_room_for_what_comes(tmp_path: Path) -> None:
    """A budget of four: one in use and three ahead, not one in use and three that are done with."""
    source = Downloads(tmp_path)
    for step, _ in source.use(disk_budget=450):
        settled(source)
        assert source.on_disk() == list(range(min(step, 5), min(step, 5) + 4))


def test_an_error_of_one_checkpoint_does_not_stop_the_others(tmp_path: Path) -> None:
    source = Downloads(
        tmp_path, {1: CheckpointError("no weights"), 2: OSError("disk full"), 6: CheckpointError("gone")}
    )
    outcomes = dict(source.use())
    assert list(outcomes) == list(range(1, 9))
    assert {step: str(outcome) for step, outcome in outcomes.items() if isinstance(outcome, Exception)} == {
        1: "no weights",
        2: "disk full",
        6: "gone",
    }
    assert source.on_disk() == []


@pytest.mark.parametrize("step", [1, 3])
def test_a_repository_that_cannot_be_read_ends_it_when_it_is_needed(tmp_path: Path, step: int) -> None:
    source = Downloads(tmp_path, {step: AccessError("gated")})
    with pytest.raises(AccessError, match="gated"):
        list(source.use())
    assert source.steps("use") == list(range(1, step))
    assert source.on_disk() == []


def test_defects_are_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        list(Downloads(tmp_path, {2: ZeroDivisionError()}).use())


def test_closing_early_cancels_what_is_under_way_and_removes_what_came(tmp_path: Path) -> None:
    source = Downloads(tmp_path, waits={4})
    found = source.use()
    next(found)
    until(lambda: source.on_disk() == [1, 2, 3, 4] and source.under_way == {4})
    found.close()  # type: ignore[attr-defined]
    assert source.cancelled
    assert source.begun() == [1, 2, 3, 4]
    assert source.on_disk() == []


def test_no_download_begins_after_a_stop(tmp_path: Path) -> None:
    """The one that was waited for ends; those that would come next do not begin, and nothing stays."""
    source, stopped = Downloads(tmp_path, waits={2, 3, 4}), threading.Event()
    found = source.use(stopped=stopped)
    next(found)
    until(lambda: source.under_way == {2, 3, 4})
    stopped.set()
    source.go_on()
    with pytest.raises(CancelledError):
        next(found)
    assert source.begun() == [1, 2, 3, 4]
    assert source.on_disk() == []


def test_closing_early_keeps_what_fits(tmp_path: Path) -> None:
    source = Downloads(tmp_path)
    found = source.use(disk_budget=350)
    next(found)
    settled(source)
    found.close()  # type: ignore[attr-defined]
    assert not source.cancelled  # nothing was under way
    assert source.on_disk() == [1, 2, 3]


class OneCommit(Downloads):
    """Steps 1 to 4 are names of one commit."""

    def revisions(self) -> dict[int, Revision]:
        return {
            step: replace(revision, commit="commit1" if step <= 4 else revision.commit)
            for step, revision in super().revisions().items()
        }


@pytest.mark.parametrize("budget", [None, 100, 450])
def test_steps_of_one_commit_do_not_lose_its_files(tmp_path: Path, budget: int | None) -> None:
    source = OneCommit(tmp_path)
    for _, outcome in source.use(disk_budget=budget):
        assert isinstance(outcome, Path)
        assert (outcome / "file").is_file()
        time.sleep(0.01)
        assert (outcome / "file").is_file()


def test_no_checkpoints_are_no_work(tmp_path: Path) -> None:
    assert list(snapshots(Downloads(tmp_path), [])) == []  # type: ignore[arg-type]
