"""A Hub on the loopback: the part of the Hugging Face API that ``huggingface_hub`` uses to read models.

    with HubServer() as hub:
        hub.add("org/model", {"step0": {"model.safetensors": b"..."}, "step1": Path("checkpoint")})
        os.environ["HF_ENDPOINT"] = hub.url

As on the Hub, files kept in LFS are answered with a redirect to a signed address on another host (here another port),
which serves ranges and does not receive the token. Every request is recorded, and `faults` can break any of them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from support.hubrepos import LFS_SUFFIXES, File, Repository, entry_json, refs_json, tree_json

__all__ = ["Fault", "FaultKind", "HubServer", "Request", "at_random", "once"]

RequestKind = Literal["api", "resolve", "cdn"]

FaultKind = Literal[
    "status",  # answer with an error
    "cut",  # close the connection in the middle of the body
    "truncate",  # state and send a shorter body
    "wrong_range",  # state another range than the requested one
    "ignore_range",  # answer 200 with the whole file
    "html",  # answer with a page, as a captive portal does
    "json",  # answer with `Fault.content` as JSON
    "expired",  # refuse the signed address
    "moved",  # name another commit
    "gzip",  # state that the body is compressed
    "hang",  # never answer
    "slow",  # send one byte of the body every 20 ms; of a file, after `Fault.after` bytes
    "stall",  # send no more than `Fault.after` bytes, and keep the connection open
    "short",  # state and send only the first `Fault.after` bytes of the range, as a server may
]


@dataclass
class Request:
    """One request as the server saw it, and what came of it."""

    kind: RequestKind
    method: str
    path: str
    repo: str = ""
    revision: str = ""
    file: str = ""
    range: str | None = None
    authorized: bool = False
    encoding: str | None = None
    nth: int = 0
    """How many of this kind came before."""
    status: int = 0
    sent: int = 0
    """Bytes of body that left the server."""
    done: threading.Event = field(default_factory=threading.Event, repr=False)


@dataclass(frozen=True)
class Fault:
    """How to spoil one answer."""

    kind: FaultKind
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int = 0
    """Bytes of body to send before a cut or truncation."""
    content: bytes = b""


FaultPlan = Callable[[Request], Fault | None]


def once(fault: Fault, kind: RequestKind = "cdn", *, times: int = 1, match: str = "") -> FaultPlan:
    """Spoil the first `times` requests of a kind whose path contains `match`."""
    left = [times]
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            if left[0] and request.kind == kind and match in request.path:
                left[0] -= 1
                return fault
        return None

    return plan


def at_random(
    share: float, seed: int, faults: tuple[Fault, ...], kinds: tuple[RequestKind, ...] = ("api", "resolve", "cdn")
) -> FaultPlan:
    """Spoil a share of all requests of these kinds, with faults drawn at random."""
    generator = random.Random(seed)
    lock = threading.Lock()

    def plan(request: Request) -> Fault | None:
        with lock:
            if request.kind in kinds and generator.random() < share:
                return generator.choice(faults)
        return None

    return plan


class HubServer:
    """The server; a context manager.

    `latency` (seconds, by kind), `bandwidth` (bytes/s per connection) and `total` (bytes/s of all) slow it down; a
    latency is drawn at random, uniform within the share `jitter` of it below and above. A file
    list is sent in pages of `page_size` entries, whole where that is None. `limits` has (requests, seconds) by kind:
    more than so many requests in a window of so many seconds are answered 429. `states_limits` says whether every
    answer to such a request has the headers ``RateLimit`` and ``RateLimit-Policy``, or only a refusal ``Retry-After``.
    """

    def __init__(
        self,
        *,
        latency: Mapping[str, float] | None = None,
        jitter: float = 0.0,
        bandwidth: float | None = None,
        total: float | None = None,
        link_uses: int | None = None,
        page_size: int | None = None,
        limits: Mapping[str, tuple[int, float]] | None = None,
    ) -> None:
        self.limits = dict(limits or {})
        self.states_limits = True
        self._windows: dict[str, tuple[float, int]] = {}
        self.latency, self.jitter = dict(latency or {}), jitter
        self.bandwidth, self.total = bandwidth, total
        self._free = 0.0
        self.page_size = page_size
        self.link_uses = link_uses
        """How often a signed address can be used before it expires; None for no limit."""
        self.faults: list[FaultPlan] = []
        self.log: list[Request] = []
        self.repositories: dict[str, Repository] = {}
        self._links: dict[str, list[Any]] = {}
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # -- content ---------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        branches: Mapping[str, Path | Mapping[str, bytes | Path]],
        *,
        gated: bool = False,
        token: str | None = None,
    ) -> Repository:
        """A repository with these branches, each a directory of files or a mapping of name → content."""
        repository = self.repositories.setdefault(name, Repository(name, gated=gated, token=token))
        if "main" not in repository.branches and "main" not in branches:
            self.commit(name, "main", {".gitattributes": b"*.bin filter=lfs diff=lfs merge=lfs -text\n"})
        for branch, files in branches.items():
            self.commit(name, branch, files)
        return repository

    def commit(self, name: str, branch: str, files: Path | Mapping[str, bytes | Path], *, title: str = "Upload") -> str:
        """Move a branch to a new commit with these files; the commit's id."""
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path for path in sorted(files.rglob("*")) if path.is_file()}
        held = {path: File(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        repository = self.repositories[name]
        seed = f"{name} {branch} {len(repository.commits)} {sorted(held)}"
        commit = hashlib.sha1(seed.encode()).hexdigest()
        repository.commits[commit] = held
        repository.branches[branch] = commit
        repository.history.setdefault(branch, []).insert(0, (commit, title))
        return commit

    def tag(self, name: str, tags: Mapping[str, Path | Mapping[str, bytes | Path]]) -> None:
        """Tags with these files in a repository that `add` made."""
        for tag, files in tags.items():
            main = self.repositories[name].branches["main"]
            self.repositories[name].tags[tag] = self.commit(name, "main", files)
            self.repositories[name].branches["main"] = main

    # -- the log ---------------------------------------------------------------------------

    def count(self, kind: str, **where: Any) -> int:
        """How many requests of a kind came, of those whose fields equal `where`."""
        return sum(
            r.kind == kind and all(getattr(r, key) == value for key, value in where.items()) for r in list(self.log)
        )

    @property
    def sent(self) -> int:
        """Bytes of file content that left the server. Waits until all answers are finished."""
        for request in list(self.log):
            request.done.wait(5)
        return sum(request.sent for request in list(self.log) if request.kind != "api")

    def file_requests(self) -> Counter[str]:
        """Requests to ``resolve`` by revision."""
        return Counter(request.revision for request in list(self.log) if request.kind == "resolve")

    def reset(self) -> None:
        """Forget the log."""
        with self._lock:
            self.log.clear()
            self._counts.clear()

    # -- for the handler -------------------------------------------------------------------------------

    def record(self, request: Request) -> Fault | None:
        """Log a request; the fault that spoils its answer, if any."""
        with self._lock:
            request.nth = self._counts[request.kind]
            self._counts[request.kind] += 1
            self.log.append(request)
        for plan in self.faults:
            if (fault := plan(request)) is not None:
                return fault
        return None

    def limit(self, kind: str) -> tuple[bool, dict[str, str]]:
        """Count a request against its limit: whether it is refused, and the headers that say so."""
        if kind not in self.limits:
            return False, {}
        quota, seconds = self.limits[kind]
        with self._lock:
            began, used = self._windows.get(kind, (-seconds, 0))
            now = time.monotonic()
            began, used = (began, used + 1) if now < began + seconds else (now, 1)
            self._windows[kind] = began, used
        wait = math.ceil(began + seconds - now)
        if self.states_limits:
            policy = f'"fixed window";"{kind}";q={quota};w={seconds:g}'
            left = f'"{kind}";r={max(quota - used, 0)};t={wait}'
            return used > quota, {"RateLimit": left, "RateLimit-Policy": policy}
        return used > quota, {"Retry-After": str(wait)} if used > quota else {}

    def pace(self, count: int) -> None:
        """Wait until all connections together have had the time for so many more bytes."""
        if self.total:
            with self._lock:
                self._free = max(self._free, time.monotonic()) + count / self.total
            time.sleep(max(0.0, self._free - time.monotonic()))

    def sign(self, file: File) -> str:
        """A signed address for a file, as the Hub's redirects carry."""
        signature = secrets.token_hex(12)
        with self._lock:
            self._links[signature] = [file, self.link_uses]
        return f"{self.cdn_url}/cdn/{file.sha256}?Expires=3600&Signature={signature}"

    def signed_file(self, signature: str) -> File | None:
        """The file of a signed address, or None when it has expired."""
        with self._lock:
            link = self._links.get(signature)
            if link is None or link[1] == 0:
                return None
            if link[1] is not None:
                link[1] -= 1
            return link[0]

    def expire(self, signature: str) -> None:
        """Make a signed address expire now."""
        with self._lock:
            self._links.pop(signature, None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that close their connection."""


_PARTIAL = ("cut", "truncate", "slow", "stall")


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    _limits: Mapping[str, str] = {}
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._form = parse_qs(self.rfile.read(length).decode())
        self._serve()

    # -- routing ---------------------------------------------------------------------------------------

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        parts = [unquote(part) for part in path.strip("/").split("/")]
        kind: RequestKind = "api" if parts[0] == "api" else "cdn" if parts[0] == "cdn" else "resolve"
        self.request_ = Request(
            kind,
            self.command,
            self.path,
            range=self.headers.get("Range"),
            authorized="Authorization" in self.headers,
            encoding=self.headers.get("Accept-Encoding"),
        )
        if kind == "resolve" and "resolve" in parts:
            at = parts.index("resolve")
            self.request_.repo, self.request_.revision = "/".join(parts[:at]), parts[at + 1]
            self.request_.file = "/".join(parts[at + 2 :])
        try:
            fault = self.hub.record(self.request_)
            if delay := self.hub.latency.get(kind):
                time.sleep(delay * random.uniform(1 - self.hub.jitter, 1 + self.hub.jitter))
            refused, self._limits = self.hub.limit(kind)
            if refused:
                self._error(429, "", "too many requests")
            elif fault is not None and fault.kind == "status":
                self._error(fault.status, "", "a fault of the test", fault.headers)
            elif fault is not None and fault.kind == "hang":
                self.rfile.read(1)  # until the client closes the connection
            elif fault is not None and fault.kind == "html":
                self._answer(200, b"<html><body>Please log in to the network</body></html>", {}, "text/html")
            elif fault is not None and fault.kind == "json":
                self._answer(200, fault.content, fault.headers, "application/json")
            elif fault is not None and fault.kind == "slow" and kind == "api":
                self._head(200, 10_000, {}, "application/json")
                while self.wfile.write(b" "):
                    self.wfile.flush()
                    time.sleep(0.02)
            elif kind == "api":
                self._api(parts[1:])
            elif kind == "cdn":
                self._cdn(fault)
            elif self.request_.repo:
                self._resolve(fault)
            else:
                self._error(404, "", "Sorry, we can't find the page you are looking for.")
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        finally:
            self.request_.done.set()

    def _repository(self, name: str, files: bool) -> Repository | None:
        repository = self.hub.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is not None and repository.token is not None and token != repository.token:
            if repository.gated and files:
                status = 403 if token else 401
                message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
                self._error(status, "GatedRepo", message)
                return None
            if not repository.gated:
                repository = None
        if repository is None:
            if token:
                self._error(404, "RepoNotFound", "Repository not found")
            else:  # without a token, the Hub answers a private repository as one that does not exist
                self._error(401, "RepoNotFound", "Invalid username or password.")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.branches.get(revision) or repository.tags.get(revision) or revision
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    # -- the three kinds of request --------------------------------------------------------------------

    def _api(self, parts: list[str]) -> None:
        if parts == ["models"]:
            return self._search()
        verbs = ("refs", "tree", "paths-info", "revision", "commits")
        at = next((i for i, part in enumerate(parts) if i > 1 and part in verbs), len(parts))
        name, verb, rest = "/".join(parts[1:at]), parts[at : at + 1], parts[at + 1 :]
        self.request_.repo = name
        if parts[0] != "models" or (repository := self._repository(name, files=False)) is None:
            return None if parts[0] == "models" else self._error(404, "", "no such endpoint")
        if verb == ["refs"]:
            return self._json(
                {
                    "branches": refs_json("heads", repository.branches),
                    "converts": refs_json("convert", {}),
                    "tags": refs_json("tags", repository.tags),
                },
            )
        revision = rest[0] if rest else "main"
        self.request_.revision = revision
        if (commit := self._commit(repository, revision)) is None:
            return None
        files = repository.commits[commit]
        if verb == ["commits"]:
            made = {"message": "", "authors": [{"user": "publisher"}], "date": "2026-01-01T00:00:00.000Z"}
            commits = [{"id": id, "title": title, **made} for id, title in repository.history[revision]]
            return self._page(commits, urlsplit(self.path).path + "?")
        if verb == ["tree"]:
            return self._tree(files, "/".join(rest[1:]))
        if verb == ["paths-info"]:
            return self._json([entry_json(path, files[path]) for path in self._form.get("paths", []) if path in files])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._json({"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "siblings": siblings})

    def _tree(self, files: Mapping[str, File], under: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        entries = tree_json(files, under, query.get("recursive", ["false"])[0].lower() == "true")
        self._page(entries, f"{urlsplit(self.path).path}?recursive=true&")

    def _search(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        names = [name for name in sorted(self.hub.repositories) if name.startswith(f"{query['author']}/")]
        found = [self.hub.repositories[name] for name in names if query["search"].lower() in name.lower()]
        listed = [{"_id": each.name, "id": each.name, "sha": each.branches["main"]} for each in found]
        self._page(listed, f"/api/models?author={query['author']}&search={query['search']}&")

    def _page(self, entries: list[dict[str, Any]], address: str) -> None:
        """One page of a listing, with the address of the next one."""
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        stop = start + (self.hub.page_size or len(entries))
        following = f"{self.hub.url}{address}cursor={stop}"
        self._json(entries[start:stop], {"Link": f'<{following}>; rel="next"'} if stop < len(entries) else {})

    def _resolve(self, fault: Fault | None) -> None:
        request = self.request_
        if (repository := self._repository(request.repo, files=True)) is None:
            return
        if (commit := self._commit(repository, request.revision)) is None:
            return
        stated = "f" * 40 if fault is not None and fault.kind == "moved" else commit
        file = repository.commits[commit].get(request.file)
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": stated})
            return
        headers = {"X-Repo-Commit": stated, "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        if not file.lfs:
            self._content(file, headers, fault)
            return
        location = self.hub.sign(file)
        headers |= {
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": location,
        }
        headers["ETag"] = f'"{file.oid}"'
        self._answer(302, f"Found. Redirecting to {location}".encode(), headers, "text/plain")

    def _cdn(self, fault: Fault | None) -> None:
        signature = parse_qs(urlsplit(self.path).query).get("Signature", [""])[0]
        if fault is not None and fault.kind == "expired":
            self.hub.expire(signature)
        file = self.hub.signed_file(signature)
        if file is None:
            self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", {}, "application/xml")
            return
        self._content(file, {"Accept-Ranges": "bytes", "ETag": f'"{secrets.token_hex(16)}"'}, fault)

    # -- answers ---------------------------------------------------------------------------------------

    def _content(self, file: File, headers: dict[str, str], fault: Fault | None) -> None:
        kind = fault.kind if fault is not None else ""
        asked = None if kind == "ignore_range" else self.headers.get("Range")
        start, stop, status = 0, file.size, 200
        if asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(file.size - int(last), 0)
            stop = min(int(last) + 1, file.size) if first and last else file.size
            if start >= file.size or stop <= start:
                self._answer(416, b"", {"Content-Range": f"bytes */{file.size}"}, "text/plain")
                return
            status = 206
            shown = start + 1 if kind == "wrong_range" else start
            if kind == "short":
                stop = min(stop, start + (fault.after if fault is not None else 0))
            headers["Content-Range"] = f"bytes {shown}-{shown + stop - start - 1}/{file.size}"
        if kind == "gzip":
            headers["Content-Encoding"] = "gzip"
        sendable = min(stop - start, fault.after) if fault is not None and kind in _PARTIAL else stop - start
        length = sendable if kind == "truncate" else stop - start
        self._head(status, length, headers, "application/octet-stream")
        if self.command != "HEAD":
            self._send(file, start, start + sendable)
        if kind == "slow":
            for at in range(start + sendable, stop):
                self.wfile.write(file.read(at, at + 1))
                self.wfile.flush()
                time.sleep(0.02)
        elif kind == "stall":
            self.rfile.read(1)  # until the client closes the connection
        elif sendable < length:
            self._disconnect()

    def _send(self, file: File, start: int, stop: int) -> None:
        self.wfile.flush()
        began, rate = time.monotonic(), self.hub.bandwidth
        piece = (256 if self.hub.total else 64) * 1024 if rate else 1024 * 1024
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(file.content.open("rb")) if isinstance(file.content, Path) else None
            for at in range(start, stop, piece):
                end = min(at + piece, stop)
                if handle is not None:
                    self.connection.sendfile(handle, at, end - at)
                else:
                    self.connection.sendall(memoryview(file.content)[at:end])  # type: ignore[arg-type]
                self.request_.sent += end - at
                self.hub.pace(end - at)
                if rate:
                    time.sleep(max(0.0, (end - start) / rate - (time.monotonic() - began)))

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._answer(200, json.dumps(value).encode(), headers or {}, "application/json")

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
        self._answer(status, json.dumps({"error": message}).encode(), {**extra, **(headers or {})}, "application/json")

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], content_type: str) -> None:
        self._head(status, len(body), headers, content_type)
        if self.command != "HEAD":
            self.wfile.write(body)
            if self.request_.kind != "api" and status in (200, 206):
                self.request_.sent += len(body)
        self.wfile.flush()

    def _head(self, status: int, length: int, headers: Mapping[str, str], content_type: str) -> None:
        self.request_.status = status
        self.send_response(status)
        stated = {"Content-Type": content_type, "Content-Length": str(length), **self._limits, **headers}
        for name, value in stated.items():
            self.send_header(name, value)
        self.end_headers()

    def _disconnect(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve a directory of checkpoints as one repository until standard input closes. Prints the address."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("directory", type=Path, help="holds step1000/, step2000/ …, the branches")
    parser.add_argument("--repo", default="local/model")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer of the storage")
    parser.add_argument("--hub-latency", type=float, default=None, help="and of the Hub; by default the same")
    parser.add_argument("--jitter", type=float, default=0.0, help="share of a latency by which it varies at random")
    parser.add_argument("--bandwidth", type=float, default=None, help="bytes per second and connection")
    parser.add_argument("--total", type=float, default=None, help="bytes per second of all connections")
    parser.add_argument("--limit", type=int, default=None, help="file requests of a window; more are refused")
    parser.add_argument("--window", type=float, default=300.0, help="seconds of a window")
    options = parser.parse_args()
    limits = {"resolve": (options.limit, options.window)} if options.limit else None
    hub_latency = options.latency if options.hub_latency is None else options.hub_latency
    latency = {"api": hub_latency, "resolve": hub_latency, "cdn": options.latency}
    slow: dict[str, Any] = {"latency": latency, "jitter": options.jitter, "bandwidth": options.bandwidth}
    with HubServer(**slow, total=options.total, limits=limits) as hub:
        hub.add(options.repo, {path.name: path for path in sorted(options.directory.iterdir()) if path.is_dir()})
        for files in hub.repositories[options.repo].commits.values():
            for file in files.values():
                _ = file.etag  # so that the first request does not wait for the checksum
        print(hub.url, flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            import sys

            sys.stdin.read()


if __name__ == "__main__":
    main()
