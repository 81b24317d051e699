"""Whole checkpoints one after the other: the next one comes while the current one is used, and disk stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import PythiaDynError

__all__ = ["snapshots"]


def snapshots(
    source: Source, revisions: Sequence[Revision], *, disk_budget: int | None = None
) -> Iterator[tuple[Revision, Path | Exception]]:
    """Each revision with the directory of its checkpoint, or with the error that stands in its way.

    While the caller works with one, a thread fetches the next. Without a `disk_budget` (bytes) a checkpoint is evicted
    when the next one is there and asked for, so that two are on disk at most; with one, checkpoints stay as long as
    they fit, oldest evicted first, and the next is fetched ahead only where there is room for it.
    `AccessError` (nothing of the repository can be had) is raised, not handed over.
    """
    kept: deque[tuple[Revision, int]] = deque()
    largest = 0

    def held() -> int:
        return sum(size for _, size in kept)

    def has_room() -> bool:
        return disk_budget is None or held() + largest <= disk_budget

    def make_room(spare: int) -> None:
        while len(kept) > spare and not has_room():
            source.evict(kept.popleft()[0])

    def free() -> None:
        while kept and (disk_budget is None or held() > disk_budget):
            source.evict(kept.popleft()[0])

    with ThreadPoolExecutor(1, thread_name_prefix="snapshot") as pool:
        pending: Future[Path] | None = None
        try:
            for number, revision in enumerate(revisions):
                if pending is None:
                    make_room(spare=0)
                    pending = pool.submit(source.snapshot, revision)
                outcome = _outcome(pending)
                pending = None
                # Only now, with no download under way: it may share files with what is evicted.
                free()
                if isinstance(outcome, Path):
                    kept.append((revision, _size(outcome)))
                    largest = max(largest, kept[-1][1])
                if number + 1 < len(revisions):
                    make_room(spare=int(isinstance(outcome, Path)))
                    if has_room():
                        pending = pool.submit(source.snapshot, revisions[number + 1])
                yield revision, outcome
        finally:
            if pending is not None and not pending.cancel():
                source.cancel()
                wait([pending])
            free()


def _outcome(pending: Future[Path]) -> Path | Exception:
    try:
        return pending.result()
    except AccessError:
        raise
    except (PythiaDynError, OSError) as error:
        return error


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
