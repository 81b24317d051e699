"""Object stores on the loopback: moto's S3, a server with Google's XML API, and Azurite where it is installed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from support.objectstore import S3, s3_server

__all__ = ["Cloud", "GoogleCloud", "amazon", "azurite", "google_cloud"]


@dataclass
class Cloud(ABC):
    """A store: the scheme of its URLs, what obstore reads from the environment, and its buckets."""

    scheme: str
    environment: dict[str, str]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the environment of this process, and forget connections to other servers."""
        from pythia_dynamics import objects

        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        objects._open.cache_clear()

    @abstractmethod
    def make(self, bucket: str) -> str:
        """Make a bucket, and return its URL."""

    @abstractmethod
    def remove(self, bucket: str) -> None:
        """Remove a bucket with all that is in it."""


# -- S3 -------------------------------------------------------------------------------------------------------


@dataclass
class Amazon(Cloud):
    """Buckets of moto's server."""

    server: S3

    def make(self, bucket: str) -> str:
        return f"s3://{self.server.make(bucket)}"

    def remove(self, bucket: str) -> None:
        self.server.remove(bucket)


@contextmanager
def amazon(folder: Path) -> Iterator[Amazon]:
    """Start moto's server in a process of its own.

    Parameters
    ----------
    folder
        For its log.
    """
    with s3_server(folder) as server:
        yield Amazon("s3", server.environment(), server)


# -- Google Cloud Storage: https://cloud.google.com/storage/docs/xml-api/overview ------------------------------


@dataclass
class _Bucket:
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # content and generation
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)


@dataclass
class GoogleCloud(Cloud):
    """Buckets in memory. A write is conditional on the generation only, as with Google, not on ``If-Match``."""

    buckets: dict[str, _Bucket] = field(default_factory=dict)
    is_denied: bool = False

    def make(self, bucket: str) -> str:
        self.buckets[bucket] = _Bucket()
        return f"gs://{bucket}"

    def remove(self, bucket: str) -> None:
        del self.buckets[bucket]


@contextmanager
def google_cloud() -> Iterator[GoogleCloud]:
    """Serve buckets, to everybody unless `is_denied`."""
    cloud, lock, count = GoogleCloud("gs", {}), threading.Lock(), iter(range(1, 10**9))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def fail(self, status: int, code: str, message: str) -> None:
            text = (
                f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            )
            self.answer(status, text.encode(), Content_Type="application/xml; charset=UTF-8")

        def stored(self, content: bytes, generation: int) -> dict[str, str]:
            return {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "x-goog-generation": str(generation)}

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            name, _, key = unquote(parts.path).lstrip("/").partition("/")
            query = {word: values[0] for word, values in parse_qs(parts.query, keep_blank_values=True).items()}
            if cloud.is_denied:
                return self.fail(403, "AccessDenied", "Access denied.")
            with lock:
                bucket = cloud.buckets.get(name)
                if bucket is None:
                    return self.fail(404, "NoSuchBucket", "The specified bucket does not exist.")
                if not key:
                    return self.list(name, bucket, query)
                return getattr(self, f"serve_{self.command.lower()}")(bucket, key, query, body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

        def serve_get(self, bucket: _Bucket, key: str, query: dict[str, str], body: bytes) -> None:
            if key not in bucket.objects:
                return self.fail(404, "NoSuchKey", "The specified key does not exist.")
            content, generation = bucket.objects[key]
            headers = {**self.stored(content, generation), "Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if asked is None:
                return self.answer(200, content, **headers)
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
            if start >= len(content):
                return self.fail(416, "InvalidRange", "The requested range cannot be satisfied.")
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            return self.answer(206, content[start:stop], **headers)

        serve_head = serve_get

        def serve_put(self, bucket: _Bucket, key: str, query: dict[str, str], body: bytes) -> None:
            if "uploadId" in query:
                bucket.uploads[query["uploadId"]][int(query["partNumber"])] = body
                return self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
            expected = self.headers.get("x-goog-if-generation-match")
            if expected is not None and int(expected) != bucket.objects.get(key, (b"", 0))[1]:
                message = "At least one of the pre-conditions you specified did not hold."
                return self.fail(412, "PreconditionFailed", message)
            bucket.objects[key] = (body, next(count))
            return self.answer(200, b"", **self.stored(*bucket.objects[key]))

        def serve_post(self, bucket: _Bucket, key: str, query: dict[str, str], body: bytes) -> None:
            if "uploads" in query:
                bucket.uploads[found := f"upload{next(count)}"] = {}
                text = f"<InitiateMultipartUploadResult><UploadId>{found}</UploadId></InitiateMultipartUploadResult>"
                return self.answer(200, text.encode())
            parts = bucket.uploads.pop(query["uploadId"])
            content = b"".join(parts[number] for number in sorted(parts))
            bucket.objects[key] = (content, next(count))
            headers = self.stored(*bucket.objects[key])
            text = f"<CompleteMultipartUploadResult><ETag>{headers['ETag']}</ETag></CompleteMultipartUploadResult>"
            return self.answer(200, text.encode(), **headers)

        def serve_delete(self, bucket: _Bucket, key: str, query: dict[str, str], body: bytes) -> None:
            if bucket.objects.pop(key, None) is None and key in bucket.uploads:
                bucket.uploads.pop(query["uploadId"], None)
            return self.answer(204)

        def list(self, name: str, bucket: _Bucket, query: dict[str, str]) -> None:
            """Pages of 20, so that several are needed."""
            prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
            entries: dict[str, str] = {}
            for key in sorted(key for key in bucket.objects if key.startswith(prefix)):
                inside, slash, _ = key[len(prefix) :].partition("/")
                if slash and query.get("delimiter") == "/":
                    folder = f"{prefix}{inside}/"
                    entries[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
                else:
                    content, generation = bucket.objects[key]
                    entries[key] = (
                        f"<Contents><Key>{escape(key)}</Key><Generation>{generation}</Generation>"
                        f"<LastModified>2026-11-23T10:00:00.000Z</LastModified><Size>{len(content)}</Size>"
                        f"<ETag>{self.stored(content, generation)['ETag']}</ETag></Contents>"
                    )
            names = [key for key in sorted(entries) if key > after]
            text = "".join(entries[key] for key in names[:20])
            if len(names) > 20:
                text += (
                    f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(names[19])}</NextContinuationToken>"
                )
            self.answer(200, f"<ListBucketResult><Name>{name}</Name>{text}</ListBucketResult>".encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        url = f"http://127.0.0.1:{server.server_port}"
        key = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        cloud.environment = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield cloud
        finally:
            server.shutdown()
            thread.join()


# -- Azure ----------------------------------------------------------------------------------------------------

_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite: https://learn.microsoft.com/azure/storage/common/storage-use-azurite"""


@dataclass
class Azure(Cloud):
    """Containers of an Azurite."""

    def client(self) -> Any:
        """Microsoft's client, which makes containers; obstore does not."""
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(self.environment["AZURE_STORAGE_ENDPOINT"], credential=_KEY)

    def make(self, bucket: str) -> str:
        self.client().create_container(bucket)
        return f"az://{bucket}"

    def remove(self, bucket: str) -> None:
        self.client().delete_container(bucket)


@contextmanager
def azurite(folder: Path) -> Iterator[Azure]:
    """Start Microsoft's emulator in a process of its own.

    Parameters
    ----------
    folder
        For its log.
    """
    program = shutil.which("azurite-blob")
    assert program is not None
    command = [program, "--inMemoryPersistence", "--blobPort", "0", "--skipApiVersionCheck", "--disableTelemetry"]
    log = folder / "azurite.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"successfully listens on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
            "AZURE_STORAGE_ENDPOINT": f"{found[1]}/{_ACCOUNT}",
        }
        yield Azure("az", environment)
    finally:
        process.kill()
        process.wait()
