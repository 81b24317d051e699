"""Whole checkpoints one after the other: the next ones are downloaded while the current one is used.

Disk use stays bounded: checkpoints that were downloaded are removed when they are no longer needed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path

from pythia_dynamics.checkpoints.open import HUB, SourceName, open_source
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import find_model

__all__ = ["checkpoint_source", "checkpoints_on_disk", "snapshots"]

_MAX_AHEAD = 3
"""Downloads at once. One alone waits for the Hub between its files, while a small model is evaluated in less time than
its checkpoint takes to arrive. Each has connections of its own for several files, so that more would hardly be faster,
and would come nearer to the rate limit of the Hub."""

_AHEAD_BYTES = 16_000_000_000
"""Bytes of checkpoints up to which more than one is fetched ahead. Four of a 70m (0.3 GB each) or of a 1.4b (3 GB) have
less. Of a 12b (24 GB) there are two, without which nothing would be ahead: a laptop is not filled with five times the
memory it has."""


def checkpoint_source(model: str | Path | Model | Source, source: SourceName | str = HUB) -> Source:
    """The source that the checkpoints of a model are read from.

    Parameters
    ----------
    model
        An alias, a repository id, a directory of checkpoints, the name of a store, or a `Model`. A `Source` is returned
        as it is.
    source
        ``"hub"``, or a directory to read instead.

    Raises
    ------
    UnknownNameError
        For a name that stands for no model.
    CheckpointError
        For a directory that does not exist.
    """
    if isinstance(model, str | Path):
        model = find_model(model)
    return open_source(model, source) if isinstance(model, Model) else model


def checkpoints_on_disk(size: int) -> int:
    """Number of checkpoints of `size` bytes that `snapshots` has on disk at once, at most, without a `disk_budget`."""
    return 1 + min(_MAX_AHEAD, max(1, _AHEAD_BYTES // max(1, size) - 1))


def snapshots(
    source: Source,
    revisions: Sequence[Revision],
    *,
    disk_budget: int | None = None,
    stopped: threading.Event | None = None,
) -> Generator[tuple[Revision, Path | Exception], None, None]:
    """Each revision with the directory of its checkpoint, or with the error that prevented the download.

    Parameters
    ----------
    source
        Where the checkpoints come from.
    revisions
        The revisions, in the order in which they are yielded. Threads fetch up to three at once, in this order, while
        the caller works.
    disk_budget
        Bytes of checkpoints to keep. The oldest is removed first, and one is fetched ahead only where there is room for
        another of the largest size so far. None removes a checkpoint as soon as the next one is there and asked for:
        beside the current one there is one more, and there are up to three more as long as all of them, counted with
        the largest size so far, have no more than 16 GB.
    stopped
        Once it is set no download begins; the next one that is needed raises `CancelledError`.

    Raises
    ------
    AccessError
        When nothing of the repository can be read. Other errors belong to one revision and are yielded.
    """
    waiting = deque(revisions)
    ahead: deque[tuple[Revision, Future[Path]]] = deque()  # under way or finished, and not yielded yet
    kept: deque[tuple[Revision, int]] = deque()
    largest = 0

    def held_bytes(more: int = 0) -> int:
        """Bytes of what is kept and of what is expected, with `more` checkpoints."""
        return sum(size for _, size in kept) + (len(ahead) + more) * largest

    def evict_oldest() -> None:
        oldest, _ = kept.popleft()
        # Two steps may be one commit.
        if not any(_content(oldest) == _content(other) for other, _ in (*kept, *ahead)):
            source.evict(oldest)

    def evict_excess() -> None:
        while kept and (disk_budget is None or held_bytes() > disk_budget):
            evict_oldest()

    def has_room() -> bool:
        if not largest:  # no size is known yet
            return len(ahead) < (2 if disk_budget is None else 1)
        if disk_budget is None:
            return not ahead or held_bytes(1) <= _AHEAD_BYTES
        return held_bytes(1) <= disk_budget

    def download(revision: Revision) -> Path:
        check()
        return source.snapshot(revision)

    def check() -> None:
        if stopped is not None and stopped.is_set():
            raise CancelledError

    def fetch(pool: ThreadPoolExecutor) -> None:
        check()
        revision = waiting.popleft()
        ahead.append((revision, pool.submit(download, revision)))

    def fetch_ahead(pool: ThreadPoolExecutor, spare: int) -> None:
        """Fetch as many as there is room for, in the place of checkpoints that are kept but for the `spare` last."""
        while waiting and len(ahead) < _MAX_AHEAD:
            while len(kept) > spare and not has_room():
                evict_oldest()
            if not has_room():
                return
            fetch(pool)

    with ThreadPoolExecutor(_MAX_AHEAD, thread_name_prefix="snapshot") as pool:
        try:
            fetch_ahead(pool, spare=0)
            for revision in revisions:
                if not ahead:
                    while kept and not has_room():
                        evict_oldest()
                    fetch(pool)
                outcome = _outcome(ahead[0][1])
                # Not earlier: files that both have are then not downloaded a second time.
                evict_excess()
                ahead.popleft()
                if isinstance(outcome, Path):
                    kept.append((revision, _size(outcome)))
                    largest = max(largest, kept[-1][1])
                fetch_ahead(pool, spare=int(isinstance(outcome, Path)))
                yield revision, outcome
        finally:
            begun = [(revision, future) for revision, future in ahead if not future.cancel()]
            ahead.clear()
            if not all(future.done() for _, future in begun):
                source.cancel()
            wait([future for _, future in begun])
            # The next run would take them for files that were there before, and not remove them.
            kept += [(revision, _size(future.result())) for revision, future in begun if future.exception() is None]
            evict_excess()


def _content(revision: Revision) -> tuple[str, str, str]:
    """What stands for the files of a checkpoint."""
    return revision.repository, revision.address, revision.path_of_all


def _outcome(pending: Future[Path]) -> Path | Exception:
    try:
        return pending.result()
    except AccessError:
        raise
    except (PythiaDynError, OSError) as error:
        return error


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
