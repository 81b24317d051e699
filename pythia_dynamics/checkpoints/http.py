"""HTTP requests to the Hub: the one module that sends them, through the one method `HubClient.get`.

The token goes to the Hub alone, never to the storage it redirects to. Error messages never quote those of the HTTP
client, which may hold headers.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from pythia_dynamics.checkpoints.gate import RateLimit, RequestGate
from pythia_dynamics.checkpoints.retry import HUB, STORAGE, AttemptCounter, Failure, RetryableError, RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError, OfflineError, Traffic
from pythia_dynamics.errors import HubError

if TYPE_CHECKING:
    import httpx2

__all__ = ["CHUNK_BYTES", "LIBRARY", "HubClient", "Response", "parse_count"]

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

LIBRARY = "pythia-dynamics"
"""The name requests carry in their User-Agent."""

CHUNK_BYTES = 256 * 1024
"""Content is passed on in chunks of at least this size. The HTTP client delivers 64 KiB at a time; checksum and file
write were measured 1.2 times faster for 256 KiB, and not reliably faster for more."""

MAX_REDIRECTS = 6
"""A file on the Hub needs one redirect, in a renamed repository two, through a mirror one or two more."""

MAX_LISTING_BYTES = 16 * 2**20
"""Longest accepted page of a listing. A page of 1,000 files has about 0.3 MB, a list of 154 branches 0.02 MB."""

_OVERLOADED = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 524, 529})
"""Statuses after which a server may answer later: those `huggingface_hub` repeats, 425, and those of CDNs (52x)."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_INVALID_ADDRESS = "the Hub sent an invalid address"


class Response:
    """The answer to one GET, whose body has not been read yet.

    Parameters
    ----------
    response
        The answer of the HTTP client, opened as a stream.
    client
        Counts the bytes of `chunks`, and has the clock and the limits of time.
    """

    def __init__(self, response: httpx2.Response, client: HubClient) -> None:
        self._response, self._client = response, client
        self.url = str(response.request.url)
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    @property
    def is_redirect(self) -> bool:
        """Whether the content is at another address."""
        return self.status in _REDIRECTS

    @property
    def next_page(self) -> str | None:
        """The address of the next page of a listing, from the ``Link`` header; None on the last page.

        Raises `RetryableError` for an invalid address.
        """
        url = self._response.links.get("next", {}).get("url")
        return _absolute(self.url, url) if url else None

    def redirect_target(self) -> str:
        """The address of the content. Raises `RetryableError` for an invalid one."""
        return _absolute(self.url, self.headers.get("Location", ""))

    def chunks(self) -> Iterator[bytes]:
        """The body as it was sent, in chunks of at least `CHUNK_BYTES` (the last may be smaller), counted as content.

        Raises `RetryableError` when the connection fails or is too slow, after what had arrived until then.
        """
        parts: list[bytes] = []
        try:
            for part in self._parts():
                self._client.traffic.add(bytes=len(part))
                parts.append(part)
                if sum(map(len, parts)) >= CHUNK_BYTES:
                    yield b"".join(parts)
                    parts = []
        except RetryableError:
            if parts:
                yield b"".join(parts)
            raise
        if parts:
            yield b"".join(parts)

    def _parts(self) -> Iterator[bytes]:
        """The body as it arrives. Raises `RetryableError` when the connection fails or is too slow."""
        policy, now = self._client.policy, self._client.gate.now
        size, seconds, began = 0, 0.0, now()
        with self._client.translated_errors():
            for part in self._response.iter_raw():
                size += len(part)
                seconds += now() - began
                yield part
                if seconds >= policy.rate_seconds:
                    if size < policy.min_rate * seconds:
                        raise RetryableError(f"only {size} bytes came in {seconds:.0f} s", Failure.SLOW)
                    size, seconds = 0, 0.0
                began = now()

    def body(self, max_bytes: int) -> bytes:
        """The whole body, not counted as content.

        Raises `RetryableError` when it is longer than `max_bytes`, takes longer than the timeout, or the connection
        fails.
        """
        now, timeout = self._client.gate.now, self._client.policy.timeout
        end = now() + timeout
        body = bytearray()
        try:
            for part in self._parts():
                body += part
                if len(body) > max_bytes:
                    raise RetryableError(f"the response exceeds {max_bytes} bytes", Failure.INVALID_RESPONSE)
                if now() > end:
                    raise RetryableError(f"the response is not complete after {timeout:g} s")
        finally:
            self.close()
        return bytes(body)

    def close(self) -> None:
        """Release the connection; what has not been read is not transferred."""
        self._response.close()


@dataclass(frozen=True)
class HubClient:
    """Sends the requests for one repository. Threads may share one; it pickles.

    Parameters
    ----------
    repository
        The repository's id, ``owner/name``.
    endpoint
        The Hub's address, without a slash at its end.
    policy
        Timeout, and how often a request is repeated.
    traffic
        Where requests, bytes and retries are counted.
    gate
        Where requests wait, and learn of the failures of others.

    Raises
    ------
    AccessError
        When the endpoint is not an address of HTTP.
    """

    repository: str
    endpoint: str
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    traffic: Traffic = field(default_factory=Traffic)
    gate: RequestGate = field(default_factory=RequestGate)

    def __post_init__(self) -> None:
        if not _is_http(self.endpoint):
            raise AccessError(f"{self.endpoint!r} is not an address of the Hub; check HF_ENDPOINT")

    def get(self, url: str, *, byte_range: str | None = None) -> Response:
        """Send one GET, once the rate limit allows it, and return the answer, whatever its status.

        A request to the Hub is counted (as `api` or `requests`) and carries the token; one to another host is not
        and does not.

        Parameters
        ----------
        url
            The address. Redirects are not followed; see `follow`.
        byte_range
            The value of the ``Range`` header, None for the whole.

        Raises
        ------
        RetryableError
            When there is no connection, or no answer within the policy's timeout.
        AccessError
            In the offline mode of `huggingface_hub`, or when the rate limit is used up for longer than the policy
            waits.
        HubError
            When the gate was cancelled.
        """
        from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

        to_hub = self.is_hub(url)
        kind = STORAGE if not to_hub else "api" if url.startswith(f"{self.endpoint}/api/") else "requests"
        headers = build_hf_headers(library_name=LIBRARY, token=None if to_hub else False)
        headers["Accept-Encoding"] = "identity"  # byte ranges of a compressed file mean nothing
        if byte_range is not None:
            headers["Range"] = byte_range
        session, limit = get_session(), None
        self.gate.enter(kind, self.policy.max_seconds)
        try:
            with self.translated_errors():
                request = session.build_request(
                    "GET", url, headers=headers, timeout=self.policy.timeout, extensions={"trace": self._note_socket}
                )
                if to_hub:
                    self.traffic.add(**{kind: 1})
                answer = session.send(request, stream=True, follow_redirects=False)
            limit = _stated_limit(answer.status_code, answer.headers)
        finally:
            self.gate.leave(kind, limit)
        parts = urlsplit(url)  # without the query, which holds the signature of an address of the storage
        _LOG.debug("%s %s%s %s", answer.status_code, parts.netloc, parts.path, byte_range or "")
        self._note_socket("", {"return_value": answer.extensions.get("network_stream")})
        return Response(answer, self)

    def cancel(self) -> None:
        """End the waits and the requests of all threads, in the middle of a transfer, too, with a `HubError`."""
        for each in self.gate.cancel():
            _shut_down(each)

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember the connection that a request has opened or used."""
        stream = info.get("return_value")
        get = getattr(stream, "get_extra_info", None)
        if get is not None and (found := get("socket")) is not None and not self.gate.add_socket(found):
            _shut_down(found)

    def follow(self, url: str, *, byte_range: str | None = None) -> Generator[Response, None, None]:
        """Send a GET and follow its redirects: yield each answer, the last being that without a redirect.

        Redirects are closed; only the last answer has a body to read. Parameters and errors are those of `get`, and
        `RetryableError` for an endless chain.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = self.get(url, byte_range=byte_range)
            if response.is_redirect:
                response.close()
            yield response
            if not response.is_redirect:
                return
            url = response.redirect_target()
        raise RetryableError(f"the Hub answered with more than {MAX_REDIRECTS} redirects", Failure.INVALID_RESPONSE)

    def get_json(self, url: str, parse: Callable[[Any], T], *, ref: str = "") -> tuple[T, str | None]:
        """One page of a listing of the Hub's API: what `parse` makes of its JSON, and the address of the next page.

        Parameters
        ----------
        url
            The address of the page.
        parse
            Takes the decoded JSON. Its `KeyError`, `TypeError`, `ValueError` and `AttributeError` mean that the
            response is invalid.
        ref
            The revision that is listed, for the message that it is gone.

        Raises
        ------
        RetryableError
            As `get`, and for an invalid response.
        HubError, AccessError
            As `refusal`.
        """
        *_, response = self.follow(url)
        if response.status != 200:
            response.close()
            raise self.refusal(response.status, response.headers, ref)
        try:
            return parse(json.loads(response.body(MAX_LISTING_BYTES))), response.next_page
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise RetryableError("the Hub sent an invalid response", Failure.INVALID_RESPONSE) from None

    def attempts(self, subject: str, revision: str) -> AttemptCounter:
        """A counter for the attempts of one request; `subject` (file, listing) is named in its final error."""
        return AttemptCounter(self.policy, self.gate, self.traffic, subject, revision)

    def is_hub(self, url: str) -> bool:
        """Whether an address is of the Hub itself: the same scheme, host and port as the endpoint."""
        return _origin(url) == _origin(self.endpoint)

    def refusal(self, status: int, headers: Mapping[str, str], ref: str, server: str = HUB) -> RetryableError:
        """Why the Hub or its storage sent no content, for another attempt.

        Parameters
        ----------
        status
            The HTTP status, not 200.
        headers
            The answer's headers.
        ref
            The revision that was requested, for the message that it is gone.
        server
            Which of the two answered.

        Raises
        ------
        AccessError
            When the repository is gated, private or does not exist.
        HubError
            When the revision does not exist.
        """
        if status in _OVERLOADED:
            stated = _stated_limit(status, headers)
            wait = stated.seconds if stated and stated.left == 0 else parse_count(headers.get("Retry-After"))
            limited = status == 429 and wait is not None
            kind = Failure.LIMITED if limited else Failure.TRANSIENT
            return RetryableError(f"{server} answered {status}", kind, wait=wait)
        if server == STORAGE:
            return RetryableError(f"the signed address answered {status}", Failure.INVALID_RESPONSE)
        code = headers.get("X-Error-Code", "")
        log_in = "log in with `hf auth login`"
        if code == "GatedRepo":
            page = f"{self.endpoint}/{self.repository}"
            raise AccessError(f"{self.repository} is gated: accept its licence at {page}, then {log_in}")
        if code == "RepoNotFound" or status == 401:
            which = f"the Hub has no repository {self.repository}, or it is private"
            raise AccessError(f"{which}: check the name, or {log_in}")
        if code == "RevisionNotFound":
            raise HubError(f"{self.repository}: the commit of {ref} is gone; run again to read the branch anew")
        if status == 403:
            what = f"the Hub refuses {self.repository} (403): check what your token may read"
            return RetryableError(what, Failure.REFUSED)
        return RetryableError(f"the Hub answered {status}", Failure.INVALID_RESPONSE)

    @contextmanager
    def translated_errors(self, ref: str = "") -> Iterator[None]:
        """Turn errors of `huggingface_hub` and of its HTTP client into `RetryableError`, `HubError` or `AccessError`.

        Their own messages are left out, since they may hold headers. `ref` is the revision that is requested, for the
        message that it is gone.
        """
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            yield
        except OfflineModeIsEnabled:
            why = "HF_HUB_OFFLINE is set; unset it, or name --source DIR"
            raise OfflineError(f"{self.repository} cannot be reached: {why}") from None
        except HfHubHTTPError as error:
            raise self.refusal(error.response.status_code, error.response.headers, ref) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError):
            raise RetryableError("the Hub cannot be reached (no network?)", Failure.UNREACHABLE) from None
        except httpx2.TimeoutException:
            raise RetryableError("the server stopped responding") from None
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol):
            what = "the request cannot be made (check HF_ENDPOINT and the token)"
            raise RetryableError(what, Failure.INVALID_RESPONSE) from None
        except httpx2.TransportError:
            raise RetryableError("the connection was lost") from None
        except httpx2.InvalidURL:
            raise RetryableError(_INVALID_ADDRESS, Failure.INVALID_RESPONSE) from None


def _shut_down(connection: socket.socket) -> None:
    """End the reads of a connection in all threads, which closing it does not."""
    with suppress(OSError):  # it is closed
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def parse_count(text: str | None) -> int | None:
    """The non-negative integer that a header's `text` states; None where it states none, or one beyond 63 bits."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


def _absolute(base: str, address: str) -> str:
    """An address found in an answer of `base`, made absolute. Raises `RetryableError` for an invalid one."""
    with suppress(ValueError):
        url = urljoin(base, address)
        if _is_http(url):
            return url
    raise RetryableError(_INVALID_ADDRESS, Failure.INVALID_RESPONSE)


def _is_http(url: str) -> bool:
    """Whether this is a valid address of HTTP or HTTPS."""
    with suppress(ValueError):
        scheme, host, _ = _origin(url)
        return scheme in ("http", "https") and bool(host)
    return False


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address. Raises `ValueError` for an invalid one."""
    parts = urlsplit(url)
    return (parts.scheme, parts.hostname, parts.port)


def _stated_limit(status: int, headers: Mapping[str, str]) -> RateLimit | None:
    """The rate limit that an answer states, or that its refusal means; None without any."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if stated := parse_ratelimit_headers(headers):  # in whole seconds, which may be rounded down
        return RateLimit(stated.remaining, stated.reset_in_seconds + 0.5, stated.limit)
    wait = parse_count(headers.get("Retry-After")) if status == 429 else None
    return None if wait is None else RateLimit(0, wait, None)
