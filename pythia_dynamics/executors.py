"""Pools of workers of other libraries as an `Executor` of `concurrent.futures`, the one interface that is used here."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import Executor, Future
from typing import Any, Protocol, cast, runtime_checkable

from pythia_dynamics.errors import PythiaDynError

__all__ = ["Pool", "as_executor", "workers_of"]

_POLL_SECONDS = 0.2
"""Time between two looks at jobs that do not report their end. A job of a cluster takes seconds to start."""


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
        # Dask would run equal calls once (pure=True). Tasks here write files, so each call is its own.
        return cast("Executor", pool.get_executor(pure=False))
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
    except Exception as error:  # libraries wrap what a job raises in exceptions of their own, with a traceback in them
        raised = _RAISED.findall(str(error))
        told = raised[-1] if raised else next(iter(str(error).splitlines()), "") or type(error).__name__
        future.set_exception(PythiaDynError(f"a job of the executor failed: {told}"))
    else:
        future.set_result(result)
