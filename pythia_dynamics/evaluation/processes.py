"""Processes of one job each, which end with the process that started them.

`concurrent.futures.ProcessPoolExecutor` ends all its processes when one is killed, and has no way to interrupt a job.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import ParamSpec, TypeVar

from pythia_dynamics.errors import PythiaDynError, first_line

__all__ = ["Processes"]

P = ParamSpec("P")
T = TypeVar("T")

_STOP = "stop"


class Processes(Executor):
    """An executor that starts a process for every job, by spawn, which CUDA needs.

    A signal of the keyboard does not reach the processes: `stop` interrupts their jobs with a `KeyboardInterrupt`. The
    end of this process, even a kill, does so too.

    Parameters
    ----------
    count
        Number of jobs at a time. Each process has this part of the threads that torch has here, unless the environment
        variable ``OMP_NUM_THREADS`` states their number. The number of threads changes results by rounding only.
    """

    def __init__(self, count: int) -> None:
        import torch

        own = "OMP_NUM_THREADS" in os.environ
        self._torch_threads = None if own else max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="process")
        self._changed = threading.Condition()
        self._running: dict[SpawnProcess, Connection] = {}
        self._stopped = False

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function of a module in a process of its own; what it takes and returns must be picklable.

        Raises
        ------
        PythiaDynError
            From the future: the process has ended without a result.
        """
        return self._pool.submit(self._run, partial(function, *args, **kwargs))

    def _run(self, job: Callable[[], T]) -> T:
        """Start a process, wait for its result, and return it or raise its exception."""
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            # The new process inherits it from this thread, so that no signal interrupts its imports. Starting the
            # resource tracker, which the first process needs, would let the signal through again.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, job, self._torch_threads), daemon=True)
        with ours:
            with self._changed:
                if self._stopped:
                    raise PythiaDynError("stopped")
                try:
                    process.start()
                except OSError as error:  # it has ended before it had read the job
                    raise PythiaDynError(f"a process could not be started ({first_line(error)})") from None
                finally:
                    theirs.close()
                self._running[process] = ours
            try:
                succeeded, outcome = ours.recv()
            except (EOFError, OSError):
                process.join()
                raise PythiaDynError(f"a process has ended ({_manner(process.exitcode)})") from None
            finally:
                process.join()
                with self._changed:
                    del self._running[process]
                    self._changed.notify_all()
        if not succeeded:
            raise outcome
        result: T = outcome
        return result

    def stop(self, grace: float) -> None:
        """Interrupt the jobs that run, wait until their processes have ended, and start no other.

        Parameters
        ----------
        grace
            Seconds after which a process is killed.
        """
        with self._changed:
            self._stopped = True
            for connection in self._running.values():
                with suppress(OSError):
                    connection.send(_STOP)
            if not self._changed.wait_for(lambda: not self._running, grace):
                for process in self._running:
                    process.kill()
        self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `Executor.shutdown`."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _manner(exit_code: int | None) -> str:
    """How a process has ended, for a message."""
    if exit_code is not None and exit_code < 0:
        with suppress(ValueError):
            name = signal.Signals(-exit_code).name
            return f"{name}, as when memory runs short" if name == "SIGKILL" else name
    return f"exit status {exit_code}"


def _serve(connection: Connection, job: Callable[[], object], torch_threads: int | None) -> None:
    """What a process does: run the job and send its result or exception, unless it is interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _without_interrupts
    try:
        threading.Thread(target=_interrupt_when_told, args=(connection,), daemon=True).start()
        outcome = _outcome(job, torch_threads)
        try:
            connection.send(outcome)
        except OSError:
            raise
        except Exception as error:  # pickle has no class of its own for what it cannot do
            connection.send((False, PythiaDynError(f"{type(outcome[1]).__name__}: {first_line(error)}")))
    except OSError:
        pass  # nobody waits for the result
    except KeyboardInterrupt:
        # The job has ended, its `finally` included. What was broken off would complain while it is torn down.
        os._exit(130)


def _without_interrupts(error: sys.UnraisableHookArgs) -> None:
    """Print an exception that nobody can catch, but not an interruption in the destructor of an object."""
    if error.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(error)


def _outcome(job: Callable[[], object], torch_threads: int | None) -> tuple[bool, object]:
    """Whether the job has succeeded, and its result or exception."""
    try:
        if torch_threads is not None:
            import torch

            torch.set_num_threads(torch_threads)
        return True, job()
    except Exception as error:
        error.add_note(traceback.format_exc())  # the exception arrives without its traceback
        return False, error


def _interrupt_when_told(connection: Connection) -> None:
    """Interrupt the job when the process that waits for it says so, or has ended."""
    with suppress(EOFError, OSError):
        connection.recv()
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)
