"""An S3 on the loopback (moto's server), and a web server that answers ranges."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

__all__ = ["S3", "s3_server", "web_server"]

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


class S3:
    """The address of the server, and what a test does behind the back of the package."""

    def __init__(self, url: str) -> None:
        self.url = url

    def environment(self) -> dict[str, str]:
        """What obstore reads."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the environment of this process, and forget connections to other servers."""
        from pythia_dynamics import objects

        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)
        objects._open.cache_clear()

    def client(self) -> Any:
        import boto3  # type: ignore[import-untyped]

        return boto3.client(
            "s3", endpoint_url=self.url, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )

    def make(self, bucket: str) -> str:
        """Make a bucket, and return its name."""
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def remove(self, bucket: str) -> None:
        """Remove a bucket with all that is in it."""
        client = self.client()
        for key in self.keys(bucket):
            client.delete_object(Bucket=bucket, Key=key)
        client.delete_bucket(Bucket=bucket)


@contextmanager
def s3_server(folder: Path, **environment: str) -> Iterator[S3]:
    """Start a server in a process of its own.

    Parameters
    ----------
    folder
        For its log.
    environment
        Variables for it: ``INITIAL_NO_AUTH_ACTION_COUNT="0"`` makes it check credentials.
    """
    log = folder / "moto.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield S3(found[1])
    finally:
        process.kill()
        process.wait()


class _Handler(SimpleHTTPRequestHandler):
    """Files of a directory, and ranges of them."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path, asked = (
            Path(self.translate_path(self.path)),
            re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or ""),
        )
        if not path.is_file() or asked is None:
            return super().do_GET() if path.is_file() else self.send_error(404)
        start, stop = int(asked[1]), int(asked[2]) + 1
        content = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content[start:stop])))
        self.end_headers()
        self.wfile.write(content[start:stop])
        return None


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    """Serve a directory; yields its address."""

    def handler(*arguments: Any) -> _Handler:
        return _Handler(*arguments, directory=str(directory))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
