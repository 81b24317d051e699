"""Pools of other libraries: Dask, submitit, and what is neither."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import suite
from support.walks import walk

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.executors import as_executor, workers_of
from pythia_dynamics.sweep.compute import Compute

W = walk(4, 500, 24, np.float16)  # type: ignore[no-untyped-call]


class Job:
    """A job as that of a cluster: it does not report its end."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future
        self.was_cancelled = False

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        return self._future.result()

    def cancel(self) -> None:
        self.was_cancelled = True
        self._future.cancel()


class Cluster:
    """Jobs that run in threads."""

    def __init__(self, pool: Executor) -> None:
        self.pool = pool
        self.jobs: list[Job] = []

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Job:
        self.jobs.append(Job(self.pool.submit(function, *arguments, **keywords)))
        return self.jobs[-1]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ThreadPoolExecutor(1) as pool:
        yield Cluster(pool)


@pytest.fixture(scope="module")
def own_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints in a directory."""
    directory = tmp_path_factory.mktemp("checkpoints") / "own"
    for name, files in suite((0, 5, 10)).items():
        (directory / name).mkdir(parents=True)
        for file, content in files.items():
            (directory / name / file).write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A client of two worker processes."""
    from distributed import Client, LocalCluster

    local = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
    with local, Client(local) as client:  # type: ignore[no-untyped-call]
        yield client


def test_an_executor_is_taken_as_it_is() -> None:
    assert as_executor(None) is None
    assert workers_of(None) is None
    with ThreadPoolExecutor(3) as pool:
        assert as_executor(pool) is pool
        assert workers_of(pool) == 3
        assert Compute(executor=pool).workers == 3
        assert Compute(executor=pool, threads=2).workers == 2
    with pytest.raises(PythiaDynError, match="an executor must have the method submit; got int"):
        pyd.msd(W, compute=Compute(executor=3))  # type: ignore[arg-type]


def test_jobs_that_do_not_report_their_end(cluster: Cluster) -> None:
    executor = as_executor(cluster)
    assert executor is not None
    futures = [executor.submit(pow, number, 2) for number in range(5)]
    assert [future.result(timeout=20) for future in futures] == [0, 1, 4, 9, 16]
    assert executor.submit(pow, 3, 3).result(timeout=20) == 27  # after all others have ended


def test_a_job_that_fails_says_why_in_one_line(cluster: Cluster) -> None:
    executor = as_executor(cluster)
    assert executor is not None

    def fails(error: Exception) -> None:
        raise error

    trace = "Traceback (most recent call last):\n  …\nValueError: no room"
    wrapped = RuntimeError(f"Job 12 failed\n\n{trace}\n-----\nlogs: /a/b\n")
    with pytest.raises(PythiaDynError, match=r"^a job of the executor failed: ValueError: no room$"):
        executor.submit(fails, wrapped).result(timeout=20)
    with pytest.raises(PythiaDynError, match=r"^a job of the executor failed: KeyboardError$"):
        executor.submit(fails, type("KeyboardError", (Exception,), {})()).result(timeout=20)
    with pytest.raises(PythiaDynError, match=r"^the disk is full$"):
        executor.submit(fails, PythiaDynError("the disk is full")).result(timeout=20)


def test_a_job_that_is_cancelled_is_cancelled_there(cluster: Cluster) -> None:
    executor, gate = as_executor(cluster), threading.Event()
    assert executor is not None
    first: Future[Any] = executor.submit(gate.wait, 20)
    second: Future[Any] = executor.submit(pow, 2, 2)
    assert second.cancel()
    gate.set()
    wait([first, second], timeout=20)
    assert cluster.jobs[1].was_cancelled
    assert not cluster.jobs[0].was_cancelled


def test_measures_on_dask_are_those_of_one_process(dask: Any) -> None:
    compute = Compute(executor=dask)
    assert compute.workers == 2
    assert pyd.msd(W, compute=compute).identical(pyd.msd(W))
    assert pyd.density(W, compute=compute).identical(pyd.density(W))
    assert pyd.spectrum(W, compute=compute).identical(pyd.spectrum(W))
    by_executor = Compute(executor=dask.get_executor(), threads=2)
    assert pyd.order_parameter(W, compute=by_executor).identical(pyd.order_parameter(W))


def test_a_fetch_on_dask(dask: Any, own_checkpoints: Path, tmp_path: Path) -> None:
    one = pyd.fetch(own_checkpoints, cache=tmp_path / "one")
    several = pyd.fetch(own_checkpoints, cache=tmp_path / "several", executor=dask)
    assert several.steps.tolist() == one.steps.tolist()
    for step in one.steps.tolist():
        np.testing.assert_array_equal(several.at(step), one.at(step))


def test_submitit_runs_a_measure_and_tells_of_a_failure(tmp_path: Path) -> None:
    import submitit

    pool = submitit.AutoExecutor(folder=tmp_path / "log", cluster="local")
    pool.update_parameters(timeout_min=5)
    compute = Compute(executor=pool, threads=1)
    assert pyd.msd(W[:2], compute=compute).identical(pyd.msd(W[:2]))
    executor = as_executor(pool)
    assert executor is not None
    with pytest.raises(PythiaDynError, match=r"a job of the executor failed: .*ZeroDivisionError"):
        executor.submit(divmod, 1, 0).result(timeout=120)


def test_the_source_of_a_fetch_is_sent_whole(own_checkpoints: Path) -> None:
    """What a fetch sends to other processes survives the pickles of Dask and submitit, those of cloudpickle."""
    import cloudpickle  # type: ignore[import-untyped]

    source = LocalSource(own_checkpoints)
    again = cloudpickle.loads(cloudpickle.dumps(source))
    assert sorted(again.revisions()) == sorted(source.revisions())
