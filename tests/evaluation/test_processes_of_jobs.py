"""Processes of one job each: what comes back, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support import jobs

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation.processes import Processes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals")

ENDS_EARLY = """
import os, sys, time
sys.path[:0] = sys.argv[1:2]
from support import jobs
from pythia_dynamics.evaluation.processes import Processes
if __name__ == "__main__":
    Processes(1).submit(jobs.sleep, sys.argv[2])
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the processes then need not import torch
    made = Processes(2)
    yield made
    made.stop(0)


def is_alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:1]
    return False


def started(file: Path) -> int:
    """The id of the process of a job that has written it."""
    end = time.monotonic() + 30
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(file.read_text())


def test_jobs_run_in_processes_of_their_own(pool: Processes) -> None:
    futures = [pool.submit(os.getpid) for _ in range(2)]
    assert len({os.getpid(), *(future.result() for future in futures)}) == 3
    assert pool.submit(divmod, 7, 2).result() == (3, 1)


def test_an_exception_comes_back_with_its_traceback(pool: Processes) -> None:
    with pytest.raises(ZeroDivisionError, match="division") as error:
        pool.submit(divmod, 1, 0).result()
    assert "Traceback" in error.value.__notes__[0]


def test_what_cannot_be_sent_back_is_an_error(pool: Processes) -> None:
    with pytest.raises(PythiaDynError, match="lock: cannot pickle"):
        pool.submit(threading.Lock).result()


@pytest.mark.parametrize(("number", "words"), [(9, "SIGKILL, as when memory runs short"), (6, "SIGABRT")])
def test_a_process_that_is_killed_fails_its_own_job_only(pool: Processes, number: int, words: str) -> None:
    killed, other = pool.submit(jobs.kill_itself, number), pool.submit(divmod, 7, 2)
    with pytest.raises(PythiaDynError, match=rf"^a process has ended \({words}\)$"):
        killed.result()
    assert other.result() == (3, 1)


def test_a_process_that_ends_by_itself_is_no_result(pool: Processes) -> None:
    with pytest.raises(PythiaDynError, match=r"^a process has ended \(exit status 3\)$"):
        pool.submit(os._exit, 3).result()


def test_stopping_interrupts_jobs(pool: Processes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    future = pool.submit(jobs.sleep, tmp_path / "started")
    process = started(tmp_path / "started")
    began = time.monotonic()
    pool.stop(20)
    assert time.monotonic() - began < 10
    assert not is_alive(process)
    assert (tmp_path / "started.interrupted").exists()
    with pytest.raises(PythiaDynError, match="a process has ended"):
        future.result()
    with pytest.raises((PythiaDynError, RuntimeError)):
        pool.submit(os.getpid).result()
    assert capfd.readouterr() == ("", "")


def test_a_job_that_does_not_end_is_killed(pool: Processes, tmp_path: Path) -> None:
    pool.submit(jobs.sleep_on, tmp_path / "started")
    process = started(tmp_path / "started")
    pool.stop(0.2)
    assert not is_alive(process)


def test_the_keyboard_does_not_reach_them(pool: Processes, tmp_path: Path) -> None:
    future = pool.submit(jobs.sleep, tmp_path / "started", 0.5)
    os.kill(started(tmp_path / "started"), signal.SIGINT)
    assert future.result() is None
    assert not (tmp_path / "started.interrupted").exists()


def test_they_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ENDS_EARLY)
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "script.py"), tests, str(tmp_path / "started")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-9, "", "")
    process, end = started(tmp_path / "started"), time.monotonic() + 10
    while is_alive(process):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (tmp_path / "started.interrupted").exists()


def test_the_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        pool = Processes(3)
    assert pool.submit(torch.get_num_threads).result() == 2
    pool.stop(1)
