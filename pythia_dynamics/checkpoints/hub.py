"""The Hugging Face Hub as a `Source`: the only module that talks to the network.

A range is one GET of ``resolve/<commit>/<file>`` and one of the signed address it redirects to. The answer must be
206 with exactly the range that was asked for, of the commit that was asked for; whatever is cut, refused or wrong
is asked for again from the byte where it stopped. Signed addresses are kept in memory only, for the next range.
"""

from __future__ import annotations

import copy
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pythia_dynamics.checkpoints.retry import Again, Gate, Retry, Tries, within
from pythia_dynamics.checkpoints.source import (
    AccessError,
    ByteStream,
    FileMissingError,
    Revision,
    Traffic,
    by_step,
    checkpoint_files,
    require_plain_path,
)
from pythia_dynamics.errors import CheckpointError, FormatError, HubError

if TYPE_CHECKING:
    import httpx2

__all__ = ["HubSource"]

T = TypeVar("T")

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524, 529})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_LINKS_KEPT = 64
_PIECE = 1 << 18
_HOPS = 6


@dataclass(frozen=True, slots=True)
class _Link:
    """What the Hub said about a file in LFS: where its bytes are now, and its length and sha256 if it said."""

    url: str
    size: int | None
    sha256: str | None


class HubSource:
    """A `Source` that reads a repository's branches through the Hub. Threads may share one.

    The endpoint is that of ``HF_ENDPOINT``; the token, if any, is the one `huggingface_hub` finds.
    """

    def __init__(
        self,
        repo: str,
        *,
        name: str | None = None,
        pattern: str | None = None,
        endpoint: str | None = None,
        retry: Retry | None = None,
    ) -> None:
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repo)
        except HFValidationError:
            raise AccessError(f"{repo!r} is not a repository id; the Hub's are owner/name") from None
        self.location = repo
        self.name = name or repo.rpartition("/")[2]
        self.traffic = Traffic()
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._pattern = pattern
        self._retry = retry or Retry()
        self._gate = Gate()
        self._links: OrderedDict[tuple[str, str], _Link] = OrderedDict()
        self._revisions: dict[int, Revision] | None = None
        self._brought: set[str] = set()

    # -- the protocol -----------------------------------------------------------------------------------------

    def revisions(self) -> Mapping[int, Revision]:
        """Every step branch with its commit, from one request. Raises `AccessError`, `CheckpointError`."""
        if self._revisions is None:
            refs = self._ask(lambda api: api.list_repo_refs(self.location), "the list of branches")
            branches = [(str(ref.name), str(ref.target_commit)) for ref in refs.branches]
            found = by_step(branches, self._pattern, where=self.location, kind="branch")
            if not found:
                names = ", ".join(name for name, _ in branches[:5]) or "none"
                hint = "check --revision-pattern" if self._pattern else "--revision-pattern reads other names"
                raise CheckpointError(f"{self.location} has no branch that is a step (found: {names}); {hint}")
            self._revisions = found
        return self._revisions

    def files(self, revision: Revision) -> Mapping[str, int]:
        """Sizes by path: one request to the API. Raises `HubError`."""
        return {path: size for path, (size, _) in self.entries(revision).items()}

    def entries(self, revision: Revision) -> Mapping[str, tuple[int, str | None]]:
        """(size, sha256) of every file by path, as the tree API states them; the sha256 of LFS files only."""

        def listing(api: Any) -> dict[str, tuple[int, str | None]]:
            entries = api.list_repo_tree(self.location, revision=_address(revision), recursive=True)
            return {
                str(entry.path): (int(entry.size), str(entry.lfs.sha256) if entry.lfs else None)
                for entry in entries
                if hasattr(entry, "size")
            }

        return self._ask(listing, f"the file list of {revision.ref}")

    def read(self, revision: Revision, file: str, start: int = 0, stop: int | None = None) -> ByteStream:
        require_plain_path(file)
        reader = _RangeReader(self, revision, file, start, stop)
        reader.open()
        return ByteStream(
            reader.pieces(),
            start=reader.position,
            stop=reader.end,
            size=reader.size,
            sha256=reader.sha256,
            on_close=reader.close,
        )

    def snapshot(self, revision: Revision) -> Path:
        """The checkpoint in the Hugging Face cache. Raises `HubError`, `CheckpointError`."""
        from huggingface_hub import constants, try_to_load_from_cache
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        class Silent(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        commit = _address(revision)
        offline = constants.is_offline_mode()
        wanted = None if offline else checkpoint_files(self.files(revision))
        if wanted is not None and "config.json" not in wanted:
            raise CheckpointError(f"{self.location} at {revision.ref} has no config.json, so no model to load")

        def download(api: Any) -> Path:
            folder = api.snapshot_download(
                self.location,
                revision=commit,
                allow_patterns=wanted,
                local_files_only=offline,
                tqdm_class=Silent,
            )
            return Path(folder)

        cached = [try_to_load_from_cache(self.location, file, revision=commit) for file in wanted or ()]
        folder = self._ask(download, f"the checkpoint {revision.ref}", whole=True)
        if not all(isinstance(path, str) for path in cached):
            self._brought.add(commit)
        return folder

    def evict(self, revision: Revision) -> None:
        """Remove the revision from the Hugging Face cache, if `snapshot` had to download it."""
        from huggingface_hub import constants, scan_cache_dir

        commit = _address(revision)
        if commit in self._brought:
            # Named, because the library's own default is fixed when it is imported.
            scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(commit).execute()
            self._brought.discard(commit)

    def metered(self) -> HubSource:
        twin = copy.copy(self)
        twin.traffic = Traffic()
        return twin

    def cancel(self) -> None:
        self._gate.cancelled.set()
        self._gate = Gate()

    # -- the API ----------------------------------------------------------------------------------------------

    def _ask(self, call: Callable[[Any], T], what: str, *, whole: bool = False) -> T:
        """Call `huggingface_hub` until it answers; `whole` for its downloads, which mind the time themselves."""
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        api = HfApi(endpoint=self._endpoint, library_name="pythia-dynamics")
        tries = Tries(self._retry, self._gate, self.traffic, f"{self.location}: {what}")
        while True:
            self._gate.wait()
            self.traffic.add(api=int(not whole))
            try:
                return call(api) if whole else within(self._retry.timeout, lambda: call(api))
            except OfflineModeIsEnabled:
                raise self._offline() from None
            except LocalEntryNotFoundError:
                raise HubError(
                    f"{self.location}: {what} cannot be had from the Hub and is not in the Hugging Face cache"
                ) from None
            except HfHubHTTPError as error:
                again = self._refused(error.response, what)
            except httpx2.TransportError as error:
                again = _lost(error)
            except TimeoutError:
                again = Again("the server fell silent")
            except (ValueError, KeyError, TypeError):
                again = Again("the Hub's answer makes no sense", limit="senseless")
            tries.failed(again)

    # -- single requests --------------------------------------------------------------------------------------

    def _get(self, url: str, range_header: str | None) -> httpx2.Response:
        """One GET, its body not yet read. Raises `Again` when the connection fails."""
        import httpx2
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        ours = _origin(url) == _origin(self._endpoint)
        headers = build_hf_headers(library_name="pythia-dynamics", token=None if ours else False)
        headers["Accept-Encoding"] = "identity"
        if range_header is not None:
            headers["Range"] = range_header
        client = get_session()
        try:
            request = client.build_request("GET", url, headers=headers, timeout=self._retry.timeout)
            return client.send(request, stream=True, follow_redirects=False)
        except OfflineModeIsEnabled:
            raise self._offline() from None
        except httpx2.TransportError as error:
            raise _lost(error) from None
        except httpx2.InvalidURL:
            raise Again("the Hub's redirect makes no sense", limit="senseless") from None

    def _refused(self, response: httpx2.Response, what: str) -> Again:
        """Why the Hub refused, to try again. Raises `HubError` when that is of no use."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if status in _TRANSIENT:
            wait = _asked_wait(response.headers)
            if status == 429 and wait is not None:
                self._gate.hold(wait)
            return Again(f"the Hub answered {status}", wait=wait)
        if code == "GatedRepo":
            raise AccessError(
                f"{self.location} is gated: accept its licence at {self._endpoint}/{self.location}, then log in with "
                "`hf auth login`"
            )
        if code == "RepoNotFound" or status == 401:
            raise AccessError(
                f"the Hub has no repository {self.location}, or it is private: check the name, or log in with "
                "`hf auth login`"
            )
        if code == "RevisionNotFound":
            raise HubError(f"{self.location}: the commit of {what} is gone; run again to read the branch anew")
        if status == 403:
            raise AccessError(f"the Hub refuses {self.location} (403): check what your token may read")
        return Again(f"the Hub answered {status}", limit="senseless")

    def _offline(self) -> AccessError:
        return AccessError(f"{self.location} cannot be reached: HF_HUB_OFFLINE is set; unset it, or name --source DIR")


class _RangeReader:
    """``file[start:stop]`` of one revision, across as many connections as it takes."""

    def __init__(self, source: HubSource, revision: Revision, file: str, start: int, stop: int | None) -> None:
        self._source, self._revision, self._file = source, revision, file
        self._asked = (start, stop)
        self._what = f"{source.location} {revision.ref}/{file}"
        self._tries = Tries(source._retry, source._gate, source.traffic, self._what)
        self._response: httpx2.Response | None = None
        self.size = -1
        self.sha256: str | None = None
        self.position = self.end = 0

    def open(self) -> None:
        """Connect until the right answer begins to arrive."""
        while self._response is None:
            try:
                self._source._gate.wait()
                self._response = self._connect()
            except Again as error:
                self._tries.failed(error)

    def pieces(self) -> Generator[bytes, None, None]:
        import httpx2

        while True:
            assert self._response is not None
            gathered: list[bytes] = []
            count, failure = 0, None
            try:
                # The client hands out 64 KiB at a time: what comes after it is dearer by the piece than by the byte.
                for piece in self._response.iter_raw():
                    gathered.append(piece)
                    count += len(piece)
                    if count >= _PIECE:
                        yield self._received(gathered)
                        gathered, count = [], 0
            except httpx2.TransportError as error:
                failure = _lost(error)
            if gathered:
                yield self._received(gathered)
            if failure is None:
                if self.position == self.end:
                    return
                failure = Again(f"the answer ended {self.end - self.position} bytes early")
            self.close()
            self._tries.failed(failure)
            self.open()

    def _received(self, pieces: list[bytes]) -> bytes:
        """The pieces as one, counted."""
        joined = b"".join(pieces)
        if self.position + len(joined) > self.end:
            raise HubError(f"{self._what}: more bytes came than were asked for")
        self.position += len(joined)
        self._source.traffic.add(bytes=len(joined))
        self._tries.progress()
        return joined

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    # -- one connection ---------------------------------------------------------------------------------------

    def _connect(self) -> httpx2.Response:
        """The answer to one request for what is still wanted. Raises `Again`, or an error that will not pass."""
        source, key = self._source, (_address(self._revision), self._file)
        link = source._links.get(key)
        if link is None:
            return self._checked(self._resolve())
        response = source._get(link.url, self._range())
        if response.status_code in (200, 206, 416):
            return self._checked(response)
        raise self._failed(response)

    def _resolve(self) -> httpx2.Response:
        """Ask the Hub for the file and follow it to where the bytes are."""
        from huggingface_hub import hf_hub_url

        source, key = self._source, (_address(self._revision), self._file)
        endpoint = source._endpoint
        url = hf_hub_url(source.location, self._file, revision=key[0], endpoint=endpoint)
        source.traffic.add(requests=1)
        response = source._get(url, self._range())
        commit, size, sha256 = None, None, None
        for _ in range(_HOPS):
            headers = response.headers
            commit = commit or headers.get("X-Repo-Commit")
            size = size or _number(headers.get("X-Linked-Size"))
            tag = (headers.get("X-Linked-ETag") or "").removeprefix("W/").strip('"')
            sha256 = sha256 or (tag if _SHA256.fullmatch(tag) else None)
            if response.status_code not in _REDIRECTS:
                break
            response.close()
            url = urljoin(url, headers.get("Location", ""))
            if urlsplit(url).scheme not in ("http", "https"):
                raise Again("the Hub's redirect makes no sense", limit="senseless")
            if _origin(url) != _origin(endpoint):
                self._require_commit(commit)
                source._links[key] = _Link(url, size, sha256)
                while len(source._links) > _LINKS_KEPT:
                    source._links.popitem(last=False)
            response = source._get(url, self._range())
        if response.status_code not in (200, 206, 416):
            raise self._failed(response)
        try:
            self._require_commit(commit)
        except Again:
            response.close()
            raise
        return response

    def _failed(self, response: httpx2.Response) -> Again:
        """Why there is no content, to try again. Raises when that is of no use."""
        source, status = self._source, response.status_code
        elsewhere = _origin(str(response.request.url)) != _origin(source._endpoint)
        response.close()
        if not elsewhere:
            if response.headers.get("X-Error-Code") == "EntryNotFound":
                raise FileMissingError(f"{source.location} has no {self._file} at {self._revision.ref}", self._file)
            return source._refused(response, self._revision.ref)
        if status in _TRANSIENT:
            return Again(f"the storage behind the Hub answered {status}", wait=_asked_wait(response.headers))
        source._links.pop((_address(self._revision), self._file), None)  # the signed address has expired
        return Again(f"the signed address answered {status}", wait=0.0)

    def _require_commit(self, commit: str | None) -> None:
        pinned = self._revision.commit
        if pinned is not None and commit != pinned:
            said = f"commit {commit[:12]!r}" if commit else "no commit"
            raise Again(f"the Hub answered with {said} instead of {pinned[:12]!r}", limit="senseless")

    def _range(self) -> str | None:
        """The header for what is still wanted."""
        start, stop = self._asked
        if self.size >= 0:
            return f"bytes={self.position}-{self.end - 1}"
        if start < 0:
            assert stop is None, "a suffix has no end"
            return f"bytes={start}"
        return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"

    def _checked(self, response: httpx2.Response) -> httpx2.Response:
        """The answer, when it is exactly what was asked for; it tells the size of the file."""
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return response

    def _check(self, response: httpx2.Response) -> None:
        headers = response.headers
        link = self._source._links.get((_address(self._revision), self._file))
        if response.status_code == 416:
            raise FormatError(
                f"{self._what} has no byte {self._asked[0]} (the Hub says {headers.get('Content-Range')})"
            )
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Again("the answer is compressed", limit="senseless")
        length = _number(headers.get("Content-Length"))
        if response.status_code == 200:
            first, last, size = 0, (length or 0) - 1, length or 0
            # A small file may come whole, if whole is what was asked for; a page in its place has no commit.
            start, stop = self._asked
            if length is None or start != 0 or self.position != 0 or (stop is not None and size > stop):
                raise Again("the answer is not the range that was asked for, but 200", limit="senseless")
        else:
            match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
            if match is None:
                raise Again("the answer does not say which range it is", limit="senseless")
            first, last, size = (int(group) for group in match.groups())
        if link is not None and link.size is not None and size != link.size:
            raise Again(f"the answer is of a file of {size} bytes, not {link.size}", limit="senseless")
        if self.size >= 0:
            expected = (self.position, self.end, self.size)
        else:
            begin, end, _ = slice(*self._asked).indices(size)
            expected = (begin, end, size)
        if (first, last + 1, size) != expected or last < first:
            raise Again(
                f"the answer is bytes {first}–{last} of {size}, not {expected[0]}–{expected[1] - 1}", limit="senseless"
            )
        if length is not None and length != last + 1 - first:
            raise Again(f"the answer has {length} bytes instead of {last + 1 - first}")
        self.position, self.end, self.size = expected
        self.sha256 = link.sha256 if link is not None else None


def _address(revision: Revision) -> str:
    """What to ask the Hub for: the commit, so that a branch that moves changes nothing."""
    return revision.commit or revision.ref


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return (parts.scheme, parts.hostname, parts.port)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds the Hub asks to wait: its rate-limit headers when they are exhausted, else ``Retry-After``."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) + 0.5
    seconds = _number(headers.get("Retry-After"))
    return None if seconds is None else float(seconds)


def _lost(error: Exception) -> Again:
    """A connection that failed. Only the kind of failure is told: messages of the client may hold headers."""
    import httpx2

    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return Again("the Hub cannot be reached (no network?)", limit="unreachable")
    if isinstance(error, httpx2.TimeoutException):
        return Again("the server fell silent")
    if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
        return Again("the request cannot be made (check HF_ENDPOINT and the token)", limit="senseless")
    return Again("the connection was cut")
