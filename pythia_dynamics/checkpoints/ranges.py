"""Byte ranges of files on the Hub, exact or an error.

A range is one GET of ``resolve/<commit>/<file>`` and one of the signed address it redirects to. The answer must be 206
with a range of the requested commit that begins at the requested byte; what it lacks at its end is requested next.
Whatever is incomplete, refused or wrong is requested again, from the byte where the last answer stopped. Signed
addresses are kept in memory only, for the next range of the file.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass

from pythia_dynamics.checkpoints.http import HubClient, Response, parse_count
from pythia_dynamics.checkpoints.retry import HUB, STORAGE, Failure, RetryableError
from pythia_dynamics.checkpoints.source import ByteStream, FileMissingError, Revision
from pythia_dynamics.errors import FormatError, HubError

__all__ = ["LinkCache", "SignedLink", "read_range"]

MAX_LINKS = 64
"""Signed addresses that are kept: those of 16 workers with four shards each."""

_CONTENT = (200, 206, 416)
_EXPIRED = (400, 401, 403, 404, 410)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


@dataclass(frozen=True, slots=True)
class SignedLink:
    """Where the bytes of an LFS file are for now, and its length and sha256 where the Hub stated them."""

    url: str
    size: int | None
    sha256: str | None


LinkCache = OrderedDict[tuple[str, str], SignedLink]
"""Signed addresses by ``repository@commit`` and file, the latest `MAX_LINKS`. Threads may share one."""


def read_range(
    client: HubClient, links: LinkCache, revision: Revision, file: str, start: int = 0, stop: int | None = None
) -> ByteStream:
    """The bytes ``file[start:stop]`` of one revision, across as many connections as it takes.

    Parameters
    ----------
    client
        Sends the requests.
    links
        Signed addresses of earlier reads; those of this one are added.
    revision
        The revision, whose commit every answer must name.
    file
        Path of the file in the repository.
    start, stop
        The range in bytes, with the meaning of a Python slice; a negative `start` needs `stop` to be None.

    Returns
    -------
    ByteStream
        Connected: its size and position are known, the first bytes are about to arrive.

    Raises
    ------
    FileMissingError
        When the revision has no such file.
    FormatError
        When the file has no byte in the range.
    AccessError, HubError
        When the bytes cannot be had, also while they are read from the stream.
    """
    found = _RangeReader(client, links, revision, file, start, stop)
    found.open()
    return ByteStream(
        found.chunks(), start=found.position, stop=found.end, size=found.size, sha256=found.sha256, on_close=found.close
    )


class _RangeReader:
    """The state of one range: what was requested, what has arrived, and the open connection."""

    def __init__(
        self, client: HubClient, links: LinkCache, revision: Revision, file: str, start: int, stop: int | None
    ) -> None:
        self._client, self._links = client, links
        self._revision, self._file = revision, file
        self._start, self._stop = start, stop
        self._link_key = (f"{client.repository}@{revision.address}", file)
        self._subject = f"{client.repository} {revision.ref}/{file}"
        self._attempts = client.attempts(self._subject, revision.ref)
        self._response: Response | None = None
        self.size = -1
        self.sha256: str | None = None
        self.position = self.end = self._answered = 0

    def open(self) -> None:
        """Connect until the right answer begins to arrive."""
        self._response = self._attempts.run(self._connect)

    def chunks(self) -> Generator[bytes, None, None]:
        """The bytes of the range as they arrive."""
        while True:
            assert self._response is not None
            try:
                for chunk in self._response.chunks():
                    if self.position + len(chunk) > self._answered:
                        raise HubError(f"{self._subject}: more bytes came than were requested")
                    self.position += len(chunk)
                    self._attempts.reset()
                    yield chunk
                if self.position < self._answered:
                    raise RetryableError(f"the response ended {self._answered - self.position} bytes early")
            except RetryableError as error:
                self.close()
                self._attempts.wait_after(error)
            if self.position == self.end:
                return
            self.open()

    def close(self) -> None:
        """Release the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None

    # -- one connection ---------------------------------------------------------------------------------------

    def _connect(self) -> Response:
        """The answer to one request for what is still missing. Raises `RetryableError`, or an error that is final."""
        link = self._links.get(self._link_key)
        response, commit = None, self._revision.commit  # a link is kept only where the Hub named this commit
        if link is not None:
            self._attempts.server = STORAGE
            response = self._client.get(link.url, byte_range=self._range_header())
            if response.status in _EXPIRED:
                response.close()
                self._links.pop(self._link_key, None)
                response = None
        if response is None:
            response, commit = self._resolve()
        try:
            if response.status not in _CONTENT:
                raise self._refusal(response)
            self._require_commit(commit)
            self._check(response)
        except BaseException:
            response.close()
            raise
        return response

    def _resolve(self) -> tuple[Response, str | None]:
        """Request the file from the Hub and follow the redirects to its bytes; the answer, and the commit it names."""
        from huggingface_hub import hf_hub_url

        client = self._client
        url = hf_hub_url(client.repository, self._file, revision=self._revision.address, endpoint=client.endpoint)
        commit, size, sha256 = None, None, None
        self._attempts.server = HUB
        for response in client.follow(url, byte_range=self._range_header()):
            headers = response.headers
            commit = commit or headers.get("X-Repo-Commit")
            size = size or parse_count(headers.get("X-Linked-Size"))
            tag = (headers.get("X-Linked-ETag") or "").removeprefix("W/").strip('"')
            sha256 = sha256 or (tag if _SHA256.fullmatch(tag) else None)
            if response.is_redirect and not client.is_hub(target := response.redirect_target()):
                self._require_commit(commit)
                self._links[self._link_key] = SignedLink(target, size, sha256)
                while len(self._links) > MAX_LINKS:
                    self._links.popitem(last=False)
                self._attempts.server = STORAGE
        return response, commit

    def _refusal(self, response: Response) -> RetryableError:
        """Why there is no content, for another attempt. Raises an error when another attempt is of no use."""
        server = HUB if self._client.is_hub(response.url) else STORAGE
        if server == HUB and response.headers.get("X-Error-Code") == "EntryNotFound":
            message = f"{self._client.repository} has no {self._file} at {self._revision.ref}"
            raise FileMissingError(message, self._file)
        failure = self._client.refusal(response.status, response.headers, self._revision.ref, server)
        if failure.failure is Failure.INVALID_RESPONSE:
            self._links.pop(self._link_key, None)
        return failure

    def _require_commit(self, commit: str | None) -> None:
        pinned = self._revision.commit
        if pinned is not None and commit != pinned:
            named = f"commit {commit[:12]!r}" if commit else "no commit"
            raise _invalid(f"the Hub answered with {named} instead of {pinned[:12]!r}")

    def _range_header(self) -> str | None:
        """The ``Range`` header for what is still missing."""
        if self.size >= 0:
            return f"bytes={self.position}-{self.end - 1}"
        if self._start < 0:
            assert self._stop is None, "a suffix has no end"
            return f"bytes={self._start}"
        return f"bytes={self._start}-" if self._stop is None else f"bytes={self._start}-{self._stop - 1}"

    def _check(self, response: Response) -> None:
        """Compare the answer's headers with the request; take over the file's size and the range in bytes."""
        headers = response.headers
        link = self._links.get(self._link_key)
        if response.status == 416:
            raise FormatError(f"{self._subject} has no byte {self._start} (the Hub: {headers.get('Content-Range')})")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _invalid("the response is compressed")
        length = parse_count(headers.get("Content-Length"))
        first, last, size = self._stated_range(response, length)
        if link is not None and link.size is not None and size != link.size:
            raise _invalid(f"the response is of a file of {size} bytes, not {link.size}")
        begin, end, _ = slice(self._start, self._stop).indices(size)
        expected = (self.position, self.end, self.size) if self.size >= 0 else (begin, end, size)
        if (first, size) != (expected[0], expected[2]) or not first <= last < expected[1]:
            raise _invalid(f"the response is bytes {first}–{last} of {size}, not {expected[0]}–{expected[1] - 1}")
        if length is not None and length != last + 1 - first:
            raise RetryableError(f"the response has {length} bytes instead of {last + 1 - first}")
        self.position, self.end, self.size = expected
        self._answered = last + 1
        self.sha256 = link.sha256 if link is not None else None

    def _stated_range(self, response: Response, length: int | None) -> tuple[int, int, int]:
        """First byte, last byte and size of the file, as the answer states them."""
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None:
                raise _invalid("the response does not state its range")
            return int(match[1]), int(match[2]), int(match[3])
        # A small file may come whole, if it was requested whole; a page in its place has no commit.
        too_long = self._stop is not None and length is not None and length > self._stop
        if length is None or self._start != 0 or self.position != 0 or too_long:
            raise _invalid("the response is not the requested range, but 200")
        return 0, length - 1, length


def _invalid(reason: str) -> RetryableError:
    return RetryableError(reason, Failure.INVALID_RESPONSE)
