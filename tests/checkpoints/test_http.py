"""Requests to the Hub: timeouts, redirects, pages, tokens and invalid answers of listings."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest
from support.hubserver import Fault, HubServer, once

import pythia_dynamics.checkpoints as room
from pythia_dynamics.checkpoints import http
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError
from pythia_dynamics.errors import HubError

REPO = "org/model"
FILES = {f"{k}.txt": bytes(k) for k in range(5)} | {"model.safetensors": b"12345"}
QUICK = RetryPolicy(first_wait=0.001, max_wait=0.01, timeout=5)
IMPATIENT = RetryPolicy(max_attempts=2, first_wait=0.001, timeout=0.2)


@pytest.fixture
def source(hub: HubServer) -> HubSource:
    hub.add(REPO, {"step1": FILES})
    return HubSource(REPO, policy=QUICK)


def test_one_module_sends_requests() -> None:
    (folder,) = room.__path__
    users = {
        path.name for path in Path(folder).rglob("*.py") if re.search(r"import httpx2|get_session", path.read_text())
    }
    assert users == {"http.py"}


# -- servers that do not answer -------------------------------------------------------------------------------


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(HubError, match="org/model: the list of branches: the server stopped responding, 2 times"):
            HubSource(REPO, endpoint=endpoint, policy=IMPATIENT).revisions()
        assert 0.4 <= time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("fault", "message"),
    [(Fault("hang"), "the server stopped responding"), (Fault("slow"), r"the response is not complete after 0\.2 s")],
)
def test_a_file_list_that_does_not_arrive(hub: HubServer, fault: Fault, message: str) -> None:
    hub.add(REPO, {"step1": FILES, "step2": FILES})
    source = HubSource(REPO, policy=IMPATIENT)
    first, second = source.revisions().values()
    hub.faults.append(once(fault, "api"))
    assert len(source.files(first)) == 6
    assert source.traffic.retries == 1
    hub.faults.append(lambda request: fault)
    with pytest.raises(HubError, match=f"org/model: the file list of step2: {message}, 2 times"):
        source.files(second)
    assert hub.count("api") == source.traffic.api == 1 + 2 + 2


@pytest.mark.parametrize("endpoint", ["nonsense", "localhost:8000", "ftp://hub", "http://hub:port", "http://["])
def test_endpoints_that_are_not_addresses(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(AccessError, match="is not an address of the Hub; check HF_ENDPOINT"):
        HubSource(REPO)


# -- answers that are not listings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"branches": 3}',
        b'{"branches": [null]}',
        b'{"branches": [{"name": "step1"}]}',
        b'{"branches": [{"name": "step1", "targetCommit": 1}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_an_invalid_list_of_branches(hub: HubServer, source: HubSource, content: bytes) -> None:
    hub.faults.append(lambda request: Fault("json", content=content))
    with pytest.raises(HubError, match="the list of branches: the Hub sent an invalid response, 4 times"):
        source.revisions()


@pytest.mark.parametrize(
    "content", [b"{}x", b"3", b'{"error": "x"}', b'[{"type": "file", "path": "a"}]', b'[{"type": "file", "size": 1}]']
)
def test_an_invalid_file_list(hub: HubServer, source: HubSource, content: bytes) -> None:
    revision = source.revisions()[1]
    hub.faults.append(lambda request: Fault("json", content=content))
    with pytest.raises(HubError, match="the file list of step1: the Hub sent an invalid response, 4 times"):
        source.files(revision)


def test_a_list_that_is_too_long(hub: HubServer, source: HubSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LISTING_BYTES", 100)
    with pytest.raises(HubError, match="the response exceeds 100 bytes, 4 times"):
        source.revisions()


# -- pages and redirects --------------------------------------------------------------------------------------


def test_all_pages_of_a_file_list(hub: HubServer, source: HubSource) -> None:
    revision = source.revisions()[1]
    whole = HubSource(REPO).files(revision)
    hub.reset()
    hub.page_size = 2
    hub.faults.append(once(Fault("status", 503), "api", match="cursor=2"))
    assert source.files(revision) == whole
    assert list(whole) == sorted(FILES)
    assert hub.count("api") == 3 + 1
    assert source.traffic.api == 1 + 4


def test_pages_without_an_end(hub: HubServer, source: HubSource) -> None:
    revision = source.revisions()[1]
    link = {"Link": f'<{hub.url}/api/models/{REPO}/tree/main>; rel="next"'}
    hub.faults.append(lambda request: Fault("json", headers=link, content=b"[]"))
    with pytest.raises(HubError, match="the file list of step1 has more than 100 pages"):
        source.files(revision)


@pytest.mark.parametrize("address", ["ftp://elsewhere/", "http://a:99999/", "http://["])
def test_addresses_that_are_invalid(hub: HubServer, source: HubSource, address: str) -> None:
    revision = source.revisions()[1]
    hub.faults.append(lambda request: Fault("json", headers={"Link": f'<{address}>; rel="next"'}, content=b"[]"))
    with pytest.raises(HubError, match="the Hub sent an invalid address, 4 times"):
        source.files(revision)


def test_the_token_stays_with_the_hub(hub: HubServer, source: HubSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    revision = source.revisions()[1]
    link = {"Link": f'<{hub.cdn_url}/api/models/{REPO}/tree/{revision.commit}>; rel="next"'}
    hub.faults.append(once(Fault("json", headers=link, content=b"[]"), "api"))
    assert len(source.files(revision)) == 6
    assert [request.authorized for request in hub.log] == [True, True, False]
    assert source.traffic.api == 2


def test_the_listing_of_a_renamed_repository_is_followed(hub: HubServer, source: HubSource) -> None:
    moved = Fault("status", 307, {"Location": f"/api/models/{REPO}/refs"})
    hub.faults.append(lambda request: moved if "org/old" in request.path else None)
    assert list(HubSource("org/old", policy=QUICK).revisions()) == [1]
    assert hub.count("api") == 2


@pytest.mark.parametrize("location", ["/api/models/org/model/refs", ""])
def test_redirects_without_an_end(hub: HubServer, source: HubSource, location: str) -> None:
    hub.faults.append(lambda request: Fault("status", 307, {"Location": location}))
    with pytest.raises(HubError, match="the Hub answered with more than 6 redirects, 4 times"):
        source.revisions()


def test_a_revision_that_is_gone_cannot_be_listed(hub: HubServer, source: HubSource) -> None:
    revision = source.revisions()[1]
    del hub.repositories[REPO].commits[revision.commit or ""]
    with pytest.raises(HubError, match="the commit of step1 is gone; run again"):
        source.files(revision)
    hub.faults.append(lambda request: Fault("status", 403))
    with pytest.raises(
        HubError, match=r"org/model: the file list of step1: the Hub refuses org/model \(403\)"
    ) as caught:
        source.files(revision)
    assert type(caught.value) is HubError
