"""The Hugging Face Hub as a `Source`: revisions, file lists, byte ranges and whole checkpoints of a repository."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from pythia_dynamics.checkpoints.gate import RequestGate
from pythia_dynamics.checkpoints.http import LIBRARY, HubClient
from pythia_dynamics.checkpoints.hub_cache import absent_files, cache_lock, remove_files
from pythia_dynamics.checkpoints.ranges import LinkCache, read_range
from pythia_dynamics.checkpoints.retry import API, Failure, RetryableError, RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError, ByteStream, Files, Revision, Traffic
from pythia_dynamics.checkpoints.suite import GENERIC, Reference, Suite, chosen_steps
from pythia_dynamics.checkpoints.tree import checkpoint_files, files_of, is_shared, revisions_in
from pythia_dynamics.checkpoints.view import as_checkpoint
from pythia_dynamics.errors import CheckpointError, HubError, UnknownNameError

__all__ = ["HubSource"]

T = TypeVar("T")

_COMMIT = re.compile(r"[0-9a-f]{40}")

_MAX_DOWNLOADS = 5
"""Downloads of a checkpoint, some of whose files are removed each time before it ends. Only a checkpoint of the same
content that is evicted in that moment does this, and there are few."""

_MAX_TREES = 8
"""File lists that are kept: those of the revisions that are looked at before all are fetched."""

_MAX_PAGES = 100
"""Pages of one listing, of 1,000 entries each: far more files than a checkpoint has, so that a loop of pages ends."""


class HubSource:
    """A `Source` that reads a repository, or one per step, through the Hub. Threads may share one; it pickles.

    The token, if any, is the one that `huggingface_hub` finds.

    Parameters
    ----------
    repository
        The repository's id, ``owner/name``; where each step is a repository, the common beginning of their ids.
    name
        Short name, which names the store; by default that of the repository.
    suite
        How its checkpoints are named and found. Default: the usual names, wherever they are.
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
        suite: Suite = GENERIC,
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
        self.suite = suite
        self._client = HubClient(repository, endpoint, policy or RetryPolicy())
        self._links = LinkCache()
        self._revisions: dict[int, Revision] | None = None
        self._names: dict[str, dict[str, str]] | None = None
        self._titles: dict[str, str] = {}
        self._trees: dict[tuple[str, str], Files] = {}
        self._downloaded: dict[tuple[str, str], tuple[Path, list[str]]] = {}

    @property
    def traffic(self) -> Traffic:
        """The requests made and the bytes of content received so far; `snapshot` is not counted."""
        return self._client.traffic

    def revisions(self) -> Mapping[int, Revision]:
        """Every checkpoint with its commit, in increasing order of the step; requested once.

        Costs one API request for branches and tags; where none is a step and the suite does not say that steps are
        branches or tags, one more for the files of the main branch and one for its commits.

        Raises `CheckpointError` when nothing is a step or two are the same, `AccessError` or `HubError` when a list
        cannot be had.
        """
        if self._revisions is None:
            seen: dict[Reference, list[str]] = {}
            found: dict[int, Revision] = {}
            for kind in self.suite.references:
                if not found:
                    found, seen[kind] = self._revisions_of(kind)
            if not found:
                raise CheckpointError(
                    f"{self.location} has no {_kinds(seen)}; --revision-pattern says how steps are named"
                )
            self._revisions = found
        return self._revisions

    def revision(self, ref: str) -> Revision:
        """The revision of a branch, a tag or a commit; or that of `revisions` with this name.

        Raises `UnknownNameError` when there is none of that name.
        """
        has_refs = self.suite.references != ("repository",)  # else there is no repository of this id
        names = self._refs() if has_refs else {"branches": {}, "tags": {}}
        commit = names["branches"].get(ref) or names["tags"].get(ref) or (ref if _COMMIT.fullmatch(ref) else None)
        if commit is None:
            by_ref: dict[str, Revision] = {}
            with suppress(CheckpointError):  # nothing is a step, or two are the same
                by_ref = {found.ref: found for found in self.revisions().values()}
            if ref in by_ref:
                return by_ref[ref]
            known = dict.fromkeys((*names["branches"], *names["tags"], *by_ref))
            raise UnknownNameError("revision", ref, known, where=self.location)
        named = self.suite.step_name(ref)
        kind: Reference = "tag" if ref in names["tags"] and ref not in names["branches"] else "branch"
        return Revision(named.step if named else 0, ref, commit, kind)

    def _revisions_of(self, kind: Reference) -> tuple[dict[int, Revision], list[str]]:
        """The checkpoints of a kind by step, and the names among which they were looked for."""
        if kind in ("folder", "file"):
            return self._revisions_on_main(kind)
        candidates: Mapping[str, str] = {
            "branch": lambda: self._refs()["branches"],
            "tag": lambda: self._refs()["tags"],
            "commit": self._commits,
            "repository": self._repositories,
        }[kind]()
        titles = self._titles if kind == "commit" else {}
        named = [(name, found) for name in candidates if (found := self.suite.step_name(titles.get(name, name), kind))]
        chosen = chosen_steps(self.suite, named, where=self.location, kind=kind)
        revisions = {
            step: Revision(
                step,
                name,
                candidates[name] or None,
                kind,
                self.suite.tokens_at(step, said.tokens),
                repository=name if kind == "repository" else "",
            )
            for step, (name, said) in chosen.items()
        }
        return revisions, [titles.get(name, name) for name in candidates if not (kind == "branch" and name == "main")]

    def _revisions_on_main(self, kind: Reference) -> tuple[dict[int, Revision], list[str]]:
        """The checkpoints that are folders or files of the suite's branch, and the paths of its files."""
        commit = self._refs()["branches"].get(self.suite.branch)
        if commit is None and not self.suite.is_generic:
            raise CheckpointError(f"{self.location} has no branch {self.suite.branch}, whose {kind}s are the steps")
        if commit is None:
            return {}, []
        files = self._tree(self.location, commit, self.suite.branch)
        folders = dict.fromkeys(str(parent) for path in files for parent in PurePosixPath(path).parents)
        folders.pop(".", None)
        found = revisions_in(replace(self.suite, references=(kind,)), folders, files, where=self.location)
        return {step: replace(revision, commit=commit) for step, revision in found.items()}, list(files)

    def files(self, revision: Revision) -> Files:
        """(size in bytes, sha256) of every file of a revision by path; the sha256 of LFS files only, else None.

        Costs one API request for every 1,000 files. Raises `AccessError` or `HubError` when the list cannot be had.
        """
        return files_of(revision, self._tree(revision.repository or self.location, revision.address, revision.ref))

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        """The bytes ``file[start:stop]`` of a revision; parameters and errors are those of `read_range`."""
        return read_range(self._client_of(revision), self._links, revision, revision.path(file), start, stop)

    def url(self, revision: Revision, file: str) -> str:
        """The address of a file of a revision; it redirects to the storage."""
        from huggingface_hub import hf_hub_url

        client = self._client_of(revision)
        return hf_hub_url(client.repository, revision.path(file), revision=revision.address, endpoint=client.endpoint)

    def _client_of(self, revision: Revision) -> HubClient:
        """The client for the repository of a revision."""
        return replace(self._client, repository=revision.repository) if revision.repository else self._client

    def snapshot(self, revision: Revision) -> Path:
        """The directory of a whole checkpoint in the Hugging Face cache, downloaded where it is not there yet.

        Threads and processes may take and evict several at once. Raises `CheckpointError` when the revision has no
        model, `AccessError` or `HubError` when it cannot be had.
        """
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import LocalEntryNotFoundError
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        class SilentProgress(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        client, commit = self._client_of(revision), revision.address
        repository = client.repository
        subject = f"{self.location}: the checkpoint {revision.ref}"
        offline = constants.is_offline_mode()
        wanted = None
        if not offline:
            files = checkpoint_files(self.files(revision))
            if "config.json" not in files and self.suite.config is None:
                raise CheckpointError(f"{repository} at {revision.ref} has no config.json; give one with --config DIR")
            wanted = [revision.path(file) for file in files]

        def download() -> str:
            try:
                with client.translated_errors(revision.ref):
                    return HfApi(endpoint=client.endpoint, library_name=LIBRARY).snapshot_download(
                        repository,
                        revision=commit,
                        allow_patterns=wanted,
                        local_files_only=offline,
                        tqdm_class=SilentProgress,
                    )
            except LocalEntryNotFoundError:
                what = "it cannot be had from the Hub and is not in the Hugging Face cache"
                if offline:  # whatever other steps are in the cache can be had
                    raise HubError(f"{subject}: {what}") from None
                raise RetryableError(what, Failure.REFUSED) from None  # the library has repeated the request
            except (ValueError, KeyError, TypeError):
                raise RetryableError("the Hub sent an invalid response", Failure.INVALID_RESPONSE) from None

        arrived: dict[str, None] = {}
        for _ in range(_MAX_DOWNLOADS):
            absent = absent_files(repository, commit, wanted or ())
            arrived |= dict.fromkeys(absent)
            attempts = client.attempts(subject, revision.ref)
            folder = Path(attempts.run(download))
            attempts.reset()
            if not absent:  # nothing was written, maybe nothing can be
                break
            with cache_lock(folder):
                if not absent_files(repository, commit, wanted or ()):
                    break
        else:
            raise HubError(f"{subject}: its files were removed from the Hugging Face cache while they were downloaded")
        if revision.path_of_all:  # other steps of the commit have the other files too
            arrived = {file: None for file in arrived if not is_shared(PurePosixPath(file).name)}
        if arrived:
            self._downloaded[commit, revision.path_of_all] = folder, list(arrived)
        return as_checkpoint(folder / revision.folder, revision, self.suite)

    def evict(self, revision: Revision) -> None:
        """Remove the files of a revision from the Hugging Face cache that `snapshot` had to download.

        Contents that another revision has too stay. Others may be downloaded meanwhile, in any process.
        """
        found = self._downloaded.pop((revision.address, revision.path_of_all), None)
        if found is not None:
            remove_files(*found, whole=not revision.path_of_all)

    def with_own_traffic(self) -> HubSource:
        """The same source, counting into a new `Traffic`; what has been listed and `cancel` are shared."""
        twin = copy.copy(self)
        twin._client = replace(self._client, traffic=Traffic())
        return twin

    def cancel(self) -> None:
        """Make the waiting and the next requests of all twins end with a `HubError`; this source can be used again."""
        cancelled = self._client
        self._client = replace(cancelled, gate=RequestGate())  # first: who is cancelled may go on with this source
        cancelled.cancel()

    # -- listings ---------------------------------------------------------------------------------------------

    def _refs(self) -> dict[str, dict[str, str]]:
        """The commits of all ``branches`` and ``tags`` by name, requested once."""
        if self._names is None:
            names: dict[str, dict[str, str]] = {"branches": {}, "tags": {}}
            for kind, name, commit in self._listing(f"{self.location}/refs", _refs, "the list of branches"):
                names[kind][name] = commit
            self._names = names
        return self._names

    def _commits(self) -> dict[str, str]:
        """The commits of the suite's branch by title, the latest first. Of one title, all but the latest have their
        hash in the name; `_titles` has the titles themselves."""
        branch = self.suite.branch
        if branch not in self._refs()["branches"]:
            raise CheckpointError(f"{self.location} has no branch {branch}, whose commits are the steps")
        found: dict[str, str] = {}
        path = f"{self.location}/commits/{quote(branch, safe='')}"
        for title, commit in self._listing(path, _commit_titles, "the list of commits"):
            name = f"{title} ({commit[:7]})" if title in found else title
            found[name], self._titles[name] = commit, title
        return found

    def _repositories(self) -> dict[str, str]:
        """The commits of the repositories whose ids begin with that of this source; empty where not stated."""
        author, _, beginning = self.location.partition("/")
        query = urlencode({"author": author, "search": beginning, "expand[]": "sha", "limit": 1000})
        found = self._listing(f"?{query}", _repository_ids, "the list of repositories")
        return {name: commit for name, commit in found if name.startswith(self.location)}

    def _tree(self, repository: str, commit: str, ref: str) -> Files:
        """(size, sha256) of every file of a commit by path."""
        key = (repository, commit)
        if (tree := self._trees.get(key)) is None:
            path = f"{repository}/tree/{quote(commit, safe='')}?recursive=true&expand=false"
            tree = dict(self._listing(path, _file_entries, f"the file list of {ref}", ref=ref))
            if _COMMIT.fullmatch(commit) and len(self._trees) < _MAX_TREES:  # a commit never changes
                self._trees[key] = tree
        return tree

    def _listing(self, path: str, parse: Callable[[Any], list[T]], subject: str, *, ref: str = "") -> Iterator[T]:
        """What `parse` finds in the pages of a listing of the Hub's API."""
        client = self._client
        url = f"{client.endpoint}/api/models{'' if path.startswith('?') else '/'}{path}"
        for _ in range(_MAX_PAGES):
            request = partial(client.get_json, url, parse, ref=ref)
            attempts = client.attempts(f"{self.location}: {subject}", ref)
            attempts.server = API
            page, following = attempts.run(request)
            attempts.reset()
            yield from page
            if following is None:
                return
            url = following
        raise HubError(f"{self.location}: {subject} has more than {_MAX_PAGES} pages; it is not that of a checkpoint")


def _kinds(seen: Mapping[Reference, list[str]]) -> str:
    """What was looked for, and the first names among which it was: ``branch that is a step (found: main, …)``."""
    names = list(dict.fromkeys(name for found in seen.values() for name in found))
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "none"
    *first, last = seen
    kinds = f"{', '.join(first)} or {last}" if first else last
    return f"{kinds} that is a step (found: {shown})"


def _refs(page: Any) -> list[tuple[str, str, str]]:
    """(kind, name, commit) of branches and tags, from the JSON of ``/refs``."""
    kinds = ("branches", "tags")
    return [(kind, _text(ref["name"]), _text(ref["targetCommit"])) for kind in kinds for ref in page.get(kind) or ()]


def _commit_titles(page: Any) -> list[tuple[str, str]]:
    """(title, commit) of every commit, from one page of the JSON of ``/commits``."""
    return [(_text(commit["title"]), _text(commit["id"])) for commit in page]


def _repository_ids(page: Any) -> list[tuple[str, str]]:
    """(id, commit) of every repository, empty where it is not stated, from one page of the JSON of a search."""
    return [(_text(model["id"]), _text(model.get("sha") or "")) for model in page]


def _file_entries(page: Any) -> list[tuple[str, tuple[int, str | None]]]:
    """(path, (size, sha256)) of every file, from one page of the JSON of ``/tree``."""
    files = [entry for entry in page if entry["type"] == "file"]
    sha256 = [_text(entry["lfs"]["oid"]) if entry.get("lfs") else None for entry in files]
    return [(_text(entry["path"]), (int(entry["size"]), known)) for entry, known in zip(files, sha256, strict=True)]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
