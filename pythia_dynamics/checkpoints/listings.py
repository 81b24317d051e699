"""The files of all revisions of a repository, as the Hub lists them: one API request per revision, and each only once.

A commit never changes, so what was listed is kept in ``<cache>/listings/<owner>--<name>.json``. A second run requests
the revisions that are new, and a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.source import AccessError, Files, Revision
from pythia_dynamics.checkpoints.suite import Reference
from pythia_dynamics.checkpoints.tree import WeightFormat, is_index, weights_by_format
from pythia_dynamics.errors import HubError, PythiaDynError
from pythia_dynamics.files import atomic_file
from pythia_dynamics.progress import Progress, silent

__all__ = ["Listing", "list_repository", "listings_path", "weight_files"]

_CACHE_FORMAT = "pythia-dyn listings 1"
_SAVE_EVERY = 50
"""New listings between two writes of the cache file: an interruption loses 50 requests, a tenth of what the Hub allows
in 5 minutes, and 154 revisions cost four writes of at most 0.3 MB."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the Hub states of the revisions of one repository.

    Parameters
    ----------
    name
        Short name of the model.
    location
        The repository's id.
    kind
        What a checkpoint of it is: a branch, a folder, …
    branch
        The branch whose folders, files or commits they are.
    steps
        All steps that it has, in increasing order.
    asked
        The steps to which the listing was restricted; None if it was not.
    revisions
        The revisions that were listed, by step: those of `steps`, restricted to `asked`.
    files
        The files of each revision that could be listed.
    unreadable
        Why the files of each other revision could not be listed.
    listed
        When the checkpoints were listed, in UTC.
    requests
        How many file lists were requested; the others were in the cache.
    """

    name: str
    location: str
    kind: Reference
    branch: str
    steps: tuple[int, ...]
    asked: tuple[int, ...] | None
    revisions: Mapping[int, Revision]
    files: Mapping[int, Files]
    unreadable: Mapping[int, str]
    listed: datetime
    requests: int

    def weights(self, format: WeightFormat) -> dict[int, dict[str, str]]:
        """The SHA-256 of each weight file of one format, by step and name; steps without such files are left out."""
        found = {step: weight_files(self.files[step], format) for step in sorted(self.files)}
        return {
            step: {name: sha256 for name, (_, sha256) in files.items() if sha256}
            for step, files in found.items()
            if any(sha256 for _, sha256 in files.values())
        }

    def contents(self, format: WeightFormat) -> dict[int, tuple[str, ...]]:
        """What identifies the weights of each step in one format, whatever its files are called: sorted checksums."""
        return {step: tuple(sorted(files.values())) for step, files in self.weights(format).items()}


def weight_files(files: Files, format: WeightFormat) -> dict[str, tuple[int, str | None]]:
    """The weight files of one format among the files of a revision, without an index of shards, sorted by name.

    Parameters
    ----------
    files
        The files of a revision. Those in folders are not meant.
    format
        The format.
    """
    return {name: files[name] for name in weights_by_format(files)[format] if not is_index(name)}


def listings_path(location: str, cache: Path) -> Path:
    """The file in which the listings of a repository are kept.

    Parameters
    ----------
    location
        The repository's id, ``owner/name``.
    cache
        The cache directory.
    """
    return cache / "listings" / f"{location.replace('/', '--')}.json"


def list_repository(
    source: HubSource,
    steps: Iterable[int] | None = None,
    *,
    cache: Path | None = None,
    threads: int = 8,
    progress: Progress = silent,
) -> Listing:
    """List the files of every revision of a repository. Weights are not downloaded.

    Parameters
    ----------
    source
        The repository.
    steps
        The steps to list. Default: all.
    cache
        The cache directory, where listings are kept and looked up. Default: every revision is requested.
    threads
        Requests at once; the default is that of `download`.
    progress
        Called with the number of revisions that are done and of all.

    Raises
    ------
    AccessError
        The repository does not exist, is gated, or cannot be reached.
    CheckpointError
        The repository has nothing that is a step.
    StoreError
        The cache cannot be written.
    """
    revisions = source.revisions()
    listed = datetime.now(UTC)
    asked = None if steps is None else tuple(sorted(set(steps)))
    chosen = {step: revision for step, revision in revisions.items() if asked is None or step in asked}
    path = None if cache is None else listings_path(source.location, cache)
    known = {} if path is None else _load(path, source.location)
    files = {step: known[_key(revision)] for step, revision in chosen.items() if _key(revision) in known}
    wanted = [step for step in chosen if step not in files]
    unreadable: dict[int, str] = {}
    new: dict[str, Files] = {}
    closed = threading.Event()
    lister = copy.copy(source)  # `cancel` gives the source a new client, and leaves that of the threads cancelled

    def list_files(revision: Revision) -> Files:
        if closed.is_set():
            raise HubError("cancelled")
        try:
            return lister.files(revision)
        except AccessError:  # here, so that no thread begins another one
            closed.set()
            source.cancel()
            raise

    pool = ThreadPoolExecutor(threads)
    try:
        progress(len(files), len(chosen))
        tasks = {pool.submit(list_files, chosen[step]): step for step in wanted}
        for task in as_completed(tasks):
            step = tasks[task]
            try:
                files[step] = task.result()
            except AccessError:
                raise
            except PythiaDynError as error:
                unreadable[step] = str(error)
            else:
                if chosen[step].commit is not None:
                    new[_key(chosen[step])] = files[step]
            progress(len(files) + len(unreadable), len(chosen))
            if path is not None and len(new) >= _SAVE_EVERY:
                _save(path, source.location, new)
                new = {}
    except BaseException:
        source.cancel()  # so that the other threads do not wait for the Hub's rate limit
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if path is not None and new:
            _save(path, source.location, new)
    return Listing(
        name=source.name,
        location=source.location,
        kind=next(iter(revisions.values())).kind,
        branch=source.suite.branch,
        steps=tuple(revisions),
        asked=asked,
        revisions=chosen,
        files=dict(sorted(files.items())),
        unreadable=unreadable,
        listed=listed,
        requests=len(wanted),
    )


def _key(revision: Revision) -> str:
    """The key of a revision in the cache. The ref belongs to it, since two folders of one commit are two revisions."""
    return f"{revision.commit} {revision.ref}"


def _load(path: Path, location: str) -> dict[str, Files]:
    """The listings in a cache file. A file that is damaged, or not of this repository, counts as empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _CACHE_FORMAT or content["repository"] != location:
            return {}
        return {
            str(key): {str(file): (int(size), sha256 and str(sha256)) for file, (size, sha256) in files.items()}
            for key, files in content["revisions"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _save(path: Path, location: str, new: Mapping[str, Files]) -> None:
    """Add listings to a cache file, read again so that what another process has added is kept."""
    content = {"format": _CACHE_FORMAT, "repository": location, "revisions": {**_load(path, location), **new}}
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())
