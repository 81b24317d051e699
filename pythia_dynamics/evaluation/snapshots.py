"""Whole checkpoints one after the other: the next one is downloaded while the current one is used.

Disk use stays bounded: checkpoints that were downloaded are removed when they are no longer needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from pythia_dynamics.checkpoints.open import HUB, SourceName, open_source
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import find_model

__all__ = ["checkpoint_source", "snapshots"]


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


def snapshots(
    source: Source, revisions: Sequence[Revision], *, disk_budget: int | None = None
) -> Generator[tuple[Revision, Path | Exception], None, None]:
    """Each revision with the directory of its checkpoint, or with the error that prevented the download.

    Parameters
    ----------
    source
        Where the checkpoints come from.
    revisions
        The revisions, in the order in which they are yielded. A thread fetches the next one while the caller works.
    disk_budget
        Bytes of checkpoints to keep. The oldest is removed first, and the next one is fetched ahead only where there
        is room for another of the largest size so far. None removes a checkpoint as soon as the next one is there and
        asked for, so that at most two are on disk.

    Raises
    ------
    AccessError
        When nothing of the repository can be read. Other errors belong to one revision and are yielded.
    """
    kept: deque[tuple[Revision, int]] = deque()
    largest = 0

    def kept_bytes() -> int:
        return sum(size for _, size in kept)

    def has_room() -> bool:
        return disk_budget is None or kept_bytes() + largest <= disk_budget

    def make_room(spare: int) -> None:
        while len(kept) > spare and not has_room():
            source.evict(kept.popleft()[0])

    def evict_excess() -> None:
        while kept and (disk_budget is None or kept_bytes() > disk_budget):
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
                # Not earlier: a download that is under way may share files with the checkpoint that is removed.
                evict_excess()
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
            evict_excess()


def _outcome(pending: Future[Path]) -> Path | Exception:
    try:
        return pending.result()
    except AccessError:
        raise
    except (PythiaDynError, OSError) as error:
        return error


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
