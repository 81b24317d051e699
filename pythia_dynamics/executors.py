"""Pools of workers of other libraries as an `Executor` of `concurrent.futures`, the one interface that is used here."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from pythia_dynamics.errors import PythiaDynError, first_line, optional_import

__all__ = ["Pool", "as_executor", "connect", "workers_of"]

_POLL_SECONDS = 0.2
"""Time between two looks at jobs that do not report their end. A job of a cluster takes seconds to start."""


_CONNECT_SECONDS = 30
"""How long a cluster may take to answer, and to have its first worker."""

_RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*", re.M)
"""The line of a traceback that has the exception."""


@runtime_checkable
class Pool(Protocol):
    """What can run a function elsewhere.

    An `Executor`; a `distributed.Client`; or another object whose `submit` returns jobs with `done()`, `result()` and
    `cancel()`, such as an executor of submitit.
    """

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Any:
        """Start ``function(*arguments, **keywords)`` and return its job."""


def as_executor(pool: Pool | None) -> Executor | None:
    """An executor of `concurrent.futures` that runs its work in a pool.

    Parameters
    ----------
    pool
        An executor, which is returned as it is; a `distributed.Client`; an executor of submitit; or None.

    Returns
    -------
    Executor or None
        It does not own the pool, so shutting it down ends nothing.

    Raises
    ------
    PythiaDynError
        The object has no method `submit`.
    """
    if pool is None or isinstance(pool, Executor):
        return pool
    if hasattr(pool, "get_executor"):
        return _DaskExecutor(pool)
    if not isinstance(pool, Pool):
        raise PythiaDynError(f"an executor must have the method submit; got {type(pool).__name__}")
    return _JobExecutor(pool)


def workers_of(pool: Pool | None) -> int | None:
    """The number of tasks that a pool runs at once; None where it does not say so.

    Parameters
    ----------
    pool
        As for `as_executor`.
    """
    if pool is not None and hasattr(pool, "nthreads"):  # a distributed.Client: threads by worker
        return sum(pool.nthreads().values()) or None
    count = getattr(pool, "_max_workers", None)  # pools of concurrent.futures have no public name for it
    return count if isinstance(count, int) else None


@contextmanager
def connect(address: str) -> Iterator[Pool]:
    """A client of a Dask cluster.

    Parameters
    ----------
    address
        The address of its scheduler, ``tcp://host:8786``; or ``local`` for a cluster of this machine, which has a
        process for each core and ends with the ``with`` block.

    Raises
    ------
    PythiaDynError
        Dask is not installed, or there is no scheduler, or it has no workers.
    """
    with optional_import("a Dask cluster", "dask"):
        from distributed import Client, LocalCluster
    with ExitStack() as stack:
        stack.enter_context(_silent())
        given: Any = address
        if address == "local":
            local: Any = LocalCluster
            given = stack.enter_context(local(threads_per_worker=1, dashboard_address=None))
        try:
            make: Any = Client
            client = stack.enter_context(make(given, timeout=_CONNECT_SECONDS, set_as_default=False))
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            raise PythiaDynError(f"no Dask cluster with workers at {address}: {first_line(error)}") from None
        yield client


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Dask from printing tracebacks beside the one line that says what is wrong."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _DaskExecutor(Executor):
    """Runs jobs on a Dask cluster. Where all workers declare a resource GPU, a job has one of them for itself."""

    def __init__(self, client: Any) -> None:
        self._client = client
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        has_gpus = bool(workers) and all("GPU" in worker.get("resources", {}) for worker in workers)
        # Dask would run equal calls once (pure=True). Tasks here write files, so each call is its own.
        self._how = {"pure": False, **({"resources": {"GPU": 1}} if has_gpus else {})}

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job."""
        job = self._client.submit(fn, *args, **kwargs, **self._how)
        future: Future[Any] = Future()
        future.add_done_callback(lambda one: job.cancel() if one.cancelled() else None)
        job.add_done_callback(lambda one: _hand_over(one, future))
        return future


class _JobExecutor(Executor):
    """Runs jobs in a pool whose jobs do not report their end. A thread asks each of them until all have ended."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._running: dict[Future[Any], Any] = {}
        self._watcher: threading.Thread | None = None

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job."""
        job = self._pool.submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        future.add_done_callback(lambda one: job.cancel() if one.cancelled() else None)
        with self._lock:
            self._running[future] = job
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, name="jobs", daemon=True)
                self._watcher.start()
        return future

    def _watch(self) -> None:
        """Hand over the results of jobs that have ended, until none is running."""
        while True:
            with self._lock:
                jobs = dict(self._running)
                if not jobs:
                    self._watcher = None
                    return
            for future, job in jobs.items():
                if future.cancelled() or job.done():
                    with self._lock:
                        del self._running[future]
                    _hand_over(job, future)
            time.sleep(_POLL_SECONDS)


def _hand_over(job: Any, future: Future[Any]) -> None:
    """Set the result or the exception of a job that has ended."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = job.result()
    except PythiaDynError as error:
        future.set_exception(error)
    except Exception as error:
        future.set_exception(PythiaDynError(_why(error)))
    else:
        future.set_result(result)


def _why(error: Exception) -> str:
    """Why there is no result, in one line. Libraries wrap what a job raises, with a traceback in the message."""
    if isinstance(error, CancelledError) or type(error).__name__ == "CommClosedError":
        return "the cluster has lost a job: its scheduler ended, or started again"
    raised = _RAISED.findall(str(error))
    told = raised[-1] if raised else next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"a job of the executor failed: {told}"
