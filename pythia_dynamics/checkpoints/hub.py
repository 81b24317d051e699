"""The Hugging Face Hub as a `Source`: branches, file lists, byte ranges and whole checkpoints of a repository."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pythia_dynamics.checkpoints.http import LIBRARY, HubClient
from pythia_dynamics.checkpoints.ranges import LinkCache, read_range
from pythia_dynamics.checkpoints.retry import Failure, RateLimitGate, RetryableError, RetryPolicy
from pythia_dynamics.checkpoints.source import (
    AccessError,
    ByteStream,
    Revision,
    Traffic,
    checkpoint_files,
    require_relative_path,
    revisions_by_step,
)
from pythia_dynamics.errors import CheckpointError, HubError

__all__ = ["HubSource"]

T = TypeVar("T")

_MAX_PAGES = 100
"""Pages of one listing, of 1,000 entries each: far more files than a checkpoint has, so that a loop of pages ends."""


class HubSource:
    """A `Source` that reads a repository's branches through the Hub. Threads may share one; it pickles.

    The token, if any, is the one that `huggingface_hub` finds.

    Parameters
    ----------
    repository
        The repository's id, ``owner/name``.
    name
        Short name, which names the store; by default that of the repository.
    pattern
        Regular expression with one group for the step, matched against whole branch names; None for the usual names.
    endpoint
        The Hub's address; by default that of ``HF_ENDPOINT``, else the public Hub.
    policy
        Timeout, and how often a request is repeated.

    Raises
    ------
    AccessError
        When `repository` is no repository id.
    """

    def __init__(
        self,
        repository: str,
        *,
        name: str | None = None,
        pattern: str | None = None,
        endpoint: str | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repository)
        except HFValidationError:
            raise AccessError(f"{repository!r} is not a repository id; the Hub's are owner/name") from None
        endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.location = repository
        self.name = name or repository.rpartition("/")[2]
        self._pattern = pattern
        self._client = HubClient(repository, endpoint, policy or RetryPolicy())
        self._links = LinkCache()
        self._revisions: dict[int, Revision] | None = None
        self._downloaded: set[str] = set()

    @property
    def traffic(self) -> Traffic:
        """The requests made and the bytes of content received so far; `snapshot` is not counted."""
        return self._client.traffic

    def revisions(self) -> Mapping[int, Revision]:
        """Every step branch with its commit, in increasing order of the step; requested once.

        Raises `CheckpointError` when no branch is a step or two are the same, `AccessError` or `HubError` when the list
        cannot be had.
        """
        if self._revisions is None:
            branches = [branch for page in self._listing("refs", _branches, "the list of branches") for branch in page]
            found = revisions_by_step(branches, self._pattern, where=self.location, kind="branch")
            if not found:
                names = ", ".join(name for name, _ in branches[:5]) or "none"
                hint = "check --revision-pattern" if self._pattern else "--revision-pattern reads other names"
                raise CheckpointError(f"{self.location} has no branch that is a step (found: {names}); {hint}")
            self._revisions = found
        return self._revisions

    def files(self, revision: Revision) -> Mapping[str, int]:
        """Size in bytes of every file of a revision by path; costs and errors as `entries`."""
        return {path: size for path, (size, _) in self.entries(revision).items()}

    def entries(self, revision: Revision) -> Mapping[str, tuple[int, str | None]]:
        """(size in bytes, sha256) of every file of a revision by path; the sha256 of LFS files only, else None.

        Costs one API request for every 1,000 files. Raises `AccessError` or `HubError` when the list cannot be had.
        """
        path = f"tree/{quote(revision.address, safe='')}?recursive=true&expand=false"
        pages = self._listing(path, _file_entries, f"the file list of {revision.ref}", ref=revision.ref)
        return {file: entry for page in pages for file, entry in page.items()}

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        """The bytes ``file[start:stop]`` of a revision; parameters and errors are those of `read_range`."""
        return read_range(self._client, self._links, revision, require_relative_path(file), start, stop)

    def snapshot(self, revision: Revision) -> Path:
        """The directory of a whole checkpoint in the Hugging Face cache, downloaded where it is not there yet.

        Raises `CheckpointError` when the revision has no model, `AccessError` or `HubError` when it cannot be had.
        """
        from huggingface_hub import HfApi, constants, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        class SilentProgress(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        client, commit = self._client, revision.address
        subject = f"{self.location}: the checkpoint {revision.ref}"
        offline = constants.is_offline_mode()
        wanted = None if offline else checkpoint_files(self.files(revision))
        if wanted is not None and "config.json" not in wanted:
            raise CheckpointError(f"{self.location} at {revision.ref} has no config.json, so no model to load")

        def download() -> str:
            client.gate.wait()
            try:
                with client.translated_errors(revision.ref):
                    return HfApi(endpoint=client.endpoint, library_name=LIBRARY).snapshot_download(
                        self.location,
                        revision=commit,
                        allow_patterns=wanted,
                        local_files_only=offline,
                        tqdm_class=SilentProgress,
                    )
            except LocalEntryNotFoundError:
                raise HubError(f"{subject} cannot be had from the Hub and is not in the Hugging Face cache") from None
            except (ValueError, KeyError, TypeError):
                raise RetryableError("the Hub sent an invalid response", Failure.INVALID_RESPONSE) from None

        cached = [try_to_load_from_cache(self.location, file, revision=commit) for file in wanted or ()]
        folder = Path(client.attempts(subject).run(download))
        if not all(isinstance(path, str) for path in cached):
            self._downloaded.add(commit)
        return folder

    def evict(self, revision: Revision) -> None:
        """Remove a revision from the Hugging Face cache, if `snapshot` had to download it."""
        from huggingface_hub import constants, scan_cache_dir

        if revision.address in self._downloaded:
            # The directory is given, because the library fixes its own default when it is imported.
            scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(revision.address).execute()
            self._downloaded.discard(revision.address)

    def with_own_traffic(self) -> HubSource:
        """The same source, counting into a new `Traffic`; what has been listed and `cancel` are shared."""
        twin = copy.copy(self)
        twin._client = replace(self._client, traffic=Traffic())
        return twin

    def cancel(self) -> None:
        """Make the waiting and the next requests of all twins end with a `HubError`; this source can be used again."""
        self._client.gate.cancel()
        self._client = replace(self._client, gate=RateLimitGate())

    def _listing(self, path: str, parse: Callable[[Any], T], subject: str, *, ref: str = "") -> Iterator[T]:
        """What `parse` makes of each page of a listing of the Hub's API."""
        client = self._client
        url = f"{client.endpoint}/api/models/{self.location}/{path}"
        for _ in range(_MAX_PAGES):
            request = partial(client.get_json, url, parse, ref=ref)
            page, following = client.attempts(f"{self.location}: {subject}").run(request)
            yield page
            if following is None:
                return
            url = following
        raise HubError(f"{self.location}: {subject} has more than {_MAX_PAGES} pages; it is not that of a checkpoint")


def _branches(page: Any) -> list[tuple[str, str]]:
    """(name, commit) of every branch, from the JSON of ``/refs``."""
    return [(_text(branch["name"]), _text(branch["targetCommit"])) for branch in page["branches"]]


def _file_entries(page: Any) -> dict[str, tuple[int, str | None]]:
    """(size, sha256) of every file by path, from one page of the JSON of ``/tree``."""
    found = {}
    for entry in page:
        if entry["type"] == "file":
            sha256 = _text(entry["lfs"]["oid"]) if entry.get("lfs") else None
            found[_text(entry["path"])] = (int(entry["size"]), sha256)
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
