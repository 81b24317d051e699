"""Checkpoints one after the other: the next one is read and uploaded by a thread while the current one is evaluated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from pathlib import Path

from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation.checkpoint import Checkpoint
from pythia_dynamics.evaluation.evaluator import Prepared

__all__ = ["load_ahead"]

_CANCEL_SECONDS = 0.1
"""How often what the thread waits for is cancelled, until it ends: a download may start just after it was cancelled."""

Found = Generator[tuple[Revision, Path | Exception], None, None]


class _Upcoming:
    """A checkpoint that is ready to be loaded, or why it is not. It is loaded once."""

    def __init__(self, revision: Revision, ready: tuple[Checkpoint, Prepared] | Exception) -> None:
        self.revision = revision
        self.ready: tuple[Checkpoint, Prepared] | Exception | None = ready


def load_ahead(
    found: Found,
    read: Callable[[Revision, Path], Checkpoint],
    prepare: Callable[[Checkpoint, Callable[[], None]], Prepared],
    load: Callable[[Checkpoint, Prepared], None],
    *,
    cancel: Callable[[], None],
    stopped: threading.Event,
) -> Generator[tuple[Revision, Callable[[], None]], None, None]:
    """Each revision with a function that loads it.

    When that function has loaded a revision, a thread asks for the next one and prepares it. So the files of a revision
    stay until it is loaded, and at most one is prepared ahead. Where the function is not called, or raises, the next
    revision is prepared when it is asked for.

    Parameters
    ----------
    found
        From `snapshots`: each revision with its directory or an error. It is asked for the next revision in a thread,
        and closed at the end.
    read
        As `CheckpointReader.read`; called in the thread.
    prepare
        As `LoadedModel.prepare`; called in the thread, with a function that raises when the caller stops early.
    load
        As `LoadedModel.load`; called by the function that is yielded.
    cancel
        Makes the download end that `found` waits for; called when the caller stops early, until the thread has ended.
    stopped
        That of `found`; it is set at the end.

    Yields
    ------
    tuple of Revision and function
        The function takes nothing and raises as `load`, or the error that prevented the download or the reading.

    Raises
    ------
    PythiaDynError
        As `found`; what concerns one revision only is raised by its function.
    """
    pending: Future[_Upcoming | None] | None = None

    def check() -> None:
        if stopped.is_set():
            raise CancelledError

    def upcoming() -> _Upcoming | None:
        check()
        item = next(found, None)
        if item is None:
            return None
        check()
        revision, place = item
        if isinstance(place, Exception):
            return _Upcoming(revision, place)
        try:
            checkpoint = read(revision, place)
        except (PythiaDynError, OSError) as error:
            return _Upcoming(revision, error)
        return _Upcoming(revision, (checkpoint, prepare(checkpoint, check)))

    def start() -> Future[_Upcoming | None]:
        nonlocal pending
        if pending is None:
            pending = pool.submit(upcoming)
        return pending

    def load_now(current: _Upcoming) -> None:
        # The thread starts only when nothing holds the files of this revision any more; an error holds them.
        ready, current.ready = current.ready, None
        assert ready is not None, f"{current.revision.ref} has been loaded"
        if isinstance(ready, Exception):
            raise ready
        load(*ready)
        del ready
        start()

    with closing(found), ThreadPoolExecutor(1, thread_name_prefix="weights") as pool:
        try:
            while (current := start().result()) is not None:
                pending = None
                yield current.revision, partial(load_now, current)
                current.ready = None
        finally:
            stopped.set()
            while pending is not None and not pending.done():
                cancel()
                wait([pending], timeout=_CANCEL_SECONDS)
