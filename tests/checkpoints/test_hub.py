"""The Hub as a source: exact ranges and listings or an error, whatever the server does."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.hubserver import Fault, FaultKind, HubServer, at_random, once

from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError, FileMissingError, Revision
from pythia_dynamics.errors import CheckpointError, FormatError, HubError

REPO = "org/model"
BODY = os.urandom(700_000)
WEIGHTS = "model.safetensors"
QUICK = RetryPolicy(first_wait=0.001, max_wait=0.01, timeout=5)


@pytest.fixture
def source(hub: HubServer) -> HubSource:
    hub.add(REPO, {"step1": {WEIGHTS: BODY, "config.json": b'{"a": 1}', "empty.bin": b""}, "step20": {}})
    return HubSource(REPO, policy=QUICK)


def first(source: HubSource) -> Revision:
    return source.revisions()[1]


def read(source: HubSource, start: int = 0, stop: int | None = None, file: str = WEIGHTS) -> bytes:
    with source.read(first(source), file, start, stop) as stream:
        return stream.read(len(BODY) + 1)


# -- as it should be ------------------------------------------------------------------------------------------


def test_revisions_are_the_step_branches(hub: HubServer, source: HubSource) -> None:
    revisions = source.revisions()
    assert list(revisions) == [1, 20]
    assert revisions[20] == Revision(20, "step20", hub.repositories[REPO].branches["step20"])
    assert source.revisions() is revisions
    assert hub.count("api") == source.traffic.api == 1


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 1), (5, 70_000), (123_456, 700_000), (-1000, None), (0, 10**9), (-(10**9), None)]
)
def test_a_range_is_a_slice(hub: HubServer, source: HubSource, start: int, stop: int | None) -> None:
    with source.read(first(source), WEIGHTS, start, stop) as stream:
        begin, end, _ = slice(start, stop).indices(len(BODY))
        assert (stream.start, stream.stop, stream.size) == (begin, end, len(BODY))
        assert stream.sha256 == hub.repositories[REPO].commits[first(source).commit or ""][WEIGHTS].sha256
        assert stream.read(len(BODY)) == BODY[start:stop]
    assert source.traffic.bytes == hub.sent == end - begin


def test_one_request_resolves_a_file_once(hub: HubServer, source: HubSource) -> None:
    for start in (0, 10_000, 30_000):
        assert read(source, start, start + 5000) == BODY[start : start + 5000]
    assert (hub.count("resolve"), hub.count("cdn")) == (1, 3)
    assert source.traffic.requests == 1
    assert {request.encoding for request in hub.log if request.kind != "api"} == {"identity"}


def test_small_files_come_from_the_hub_itself(hub: HubServer, source: HubSource) -> None:
    assert read(source, 0, 10**6, "config.json") == b'{"a": 1}'
    assert read(source, file="config.json") == b'{"a": 1}'
    assert hub.count("cdn") == 0


def test_streams_can_be_left_and_used_again(source: HubSource) -> None:
    with source.read(first(source), WEIGHTS) as stream:
        assert stream.read(100) == BODY[:100]
        assert stream.read(50) == BODY[100:150]
        assert b"".join(stream.chunks(70_000)) == BODY[150:70_150]
        assert stream.position == 70_150
        with pytest.raises(FormatError, match="outside the requested range"):
            list(stream.chunks(len(BODY)))
    assert read(source, 0, 10) == BODY[:10]


def test_files_and_hashes_come_from_one_request(hub: HubServer, source: HubSource) -> None:
    files = source.files(first(source))
    assert {path: size for path, (size, _) in files.items()} == {WEIGHTS: len(BODY), "config.json": 8, "empty.bin": 0}
    size, sha256 = source.files(first(source))[WEIGHTS]
    assert (size, sha256) == (len(BODY), hub.repositories[REPO].commits[first(source).commit or ""][WEIGHTS].sha256)
    assert files["config.json"] == (8, None)
    assert hub.count("api") == 2


def test_a_source_travels_to_other_processes(source: HubSource) -> None:
    read(source, 0, 10)
    twin = pickle.loads(pickle.dumps(source))
    assert read(twin, 100, 200) == BODY[100:200]
    alone = source.with_own_traffic()
    read(alone, 0, 10)
    assert (alone.traffic.bytes, source.traffic.bytes) == (10, 10)


def test_snapshot_and_eviction(hub: HubServer, source: HubSource, tmp_path: Path) -> None:
    files = {
        WEIGHTS: BODY,
        "pytorch_model.bin": BODY[::-1],
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "a.md": b"#",
    }
    hub.commit(REPO, "step1", files)
    folder = source.snapshot(first(source))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert (folder / WEIGHTS).read_bytes() == BODY
    assert folder.is_relative_to(tmp_path / "huggingface")
    other = HubSource(REPO, policy=QUICK)
    assert other.snapshot(first(other)) == folder
    other.evict(first(other))  # was there before
    assert (folder / WEIGHTS).exists()
    source.evict(first(source))
    assert not folder.exists()
    assert not [path for path in tmp_path.rglob("blobs/*") if path.stat().st_size >= len(BODY)]
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        source.snapshot(source.revisions()[20])


def test_bad_snapshots_between_good_ones_are_no_outage(hub: HubServer) -> None:
    hub.add(REPO, {f"step{step}": {WEIGHTS: BODY[:99], "config.json": b"{}"} for step in range(1, 9)})
    source = HubSource(REPO, policy=QUICK)
    bad = {hub.repositories[REPO].branches[f"step{step}"] for step in (1, 3, 5, 6, 7)}
    hub.faults.append(lambda request: Fault("status", 418) if request.revision in bad else None)
    raised: dict[int, type[HubError]] = {}
    for step, revision in source.revisions().items():
        try:
            source.snapshot(revision)
        except HubError as error:
            raised[step] = type(error)
    assert raised == {1: HubError, 3: HubError, 5: HubError, 6: HubError, 7: AccessError}


def test_snapshot_shows_no_progress(source: HubSource, capfd: pytest.CaptureFixture[str]) -> None:
    source.snapshot(first(source))
    assert capfd.readouterr() == ("", "")


# -- faults ---------------------------------------------------------------------------------------------------

PASSING: dict[str, Any] = {
    "busy": (Fault("status", 503), "cdn", 1),
    "broken": (Fault("status", 500), "resolve", 3),
    "bad gateway": (Fault("status", 502), "cdn", 2),
    "cut at once": (Fault("cut"), "cdn", 1),
    "cut": (Fault("cut", after=300_000), "cdn", 2),
    "truncated": (Fault("truncate", after=300_000), "cdn", 1),
    "another range": (Fault("wrong_range"), "cdn", 1),
    "no range": (Fault("ignore_range"), "cdn", 1),
    "a page": (Fault("html"), "resolve", 1),
    "a page from the storage": (Fault("html"), "cdn", 1),
    "compressed": (Fault("gzip"), "cdn", 1),
    "expired": (Fault("expired"), "cdn", 1),
    "another commit": (Fault("moved"), "resolve", 1),
    "not found, says a proxy": (Fault("status", 404), "resolve", 1),
}


@pytest.mark.parametrize("name", list(PASSING))
def test_a_passing_fault_costs_nothing_but_a_retry(hub: HubServer, source: HubSource, name: str) -> None:
    fault, kind, times = PASSING[name]
    hub.faults.append(once(fault, kind, times=times))
    assert read(source, 1000, 650_000) == BODY[1000:650_000]
    assert source.traffic.retries >= 1
    assert source.traffic.bytes == 649_000


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault("wrong_range"), "cdn", "the response is bytes 1001–"),
        (Fault("ignore_range"), "cdn", "not the requested range, but 200"),
        (Fault("html"), "resolve", "instead of '[0-9a-f]{12}'"),
        (Fault("html"), "cdn", "not the requested range, but 200"),
        (Fault("moved"), "resolve", "commit 'f{12}' instead of"),
        (Fault("gzip"), "cdn", "compressed"),
        (Fault("truncate", after=400), "cdn", "400 bytes instead of 649000"),
        (Fault("cut"), "cdn", "connection was lost, 14 times"),
        (Fault("status", 503), "resolve", "the Hub answered 503, 14 times"),
        (Fault("status", 418), "resolve", "the Hub answered 418"),
        (Fault("expired"), "cdn", "the signed address answered 403"),
    ],
)
def test_a_lasting_fault_is_an_error_and_never_wrong_bytes(
    hub: HubServer, source: HubSource, fault: Fault, kind: str, message: str
) -> None:
    hub.faults.append(lambda request: fault if request.kind == kind else None)
    with pytest.raises(HubError, match=message) as caught:
        read(source, 1000, 650_000)
    assert str(caught.value).startswith(f"{REPO} step1/{WEIGHTS}: ")
    assert "\n" not in str(caught.value)


def test_a_cut_is_resumed_where_it_happened(hub: HubServer, source: HubSource) -> None:
    hub.faults.append(once(Fault("cut", after=200_000), "cdn", times=3))
    assert read(source) == BODY
    ranges = [request.range for request in hub.log if request.kind == "cdn"]
    assert ranges == ["bytes=0-", "bytes=200000-699999", "bytes=400000-699999", "bytes=600000-699999"]
    assert hub.sent == len(BODY)
    assert hub.count("resolve") == 1


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1', "RateLimit-Policy": '"w";"resolvers";q=3;w=9'}],
)
def test_a_rate_limit_holds_every_thread_back(hub: HubServer, source: HubSource, headers: dict[str, str]) -> None:
    hub.faults.append(once(Fault("status", 429, headers), "resolve"))
    revision = first(source)
    began, ends = time.monotonic(), []

    def one(start: int) -> None:
        with source.read(revision, WEIGHTS, start, start + 10) as stream:
            assert stream.read(10) == BODY[start : start + 10]
        ends.append(time.monotonic() - began)

    one_thread = threading.Thread(target=one, args=(0,))
    one_thread.start()
    time.sleep(0.3)
    one(50)
    one_thread.join()
    assert min(ends) >= 0.9


def test_too_long_a_wait_is_not_waited_for(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {WEIGHTS: BODY}})
    source = HubSource(REPO, policy=RetryPolicy(max_seconds=30))
    hub.faults.append(once(Fault("status", 429, {"Retry-After": "3600"}), "resolve"))
    with pytest.raises(HubError, match="429 and asks to wait 3600 s"):
        read(source)


def test_the_list_of_branches_is_asked_again(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {}})
    hub.faults += [once(Fault("status", 500), "api", times=2), once(Fault("html"), "api")]
    source = HubSource(REPO, policy=QUICK)
    assert list(source.revisions()) == [1]
    assert source.traffic.retries == 3


def test_a_hub_that_hangs_is_given_up(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {WEIGHTS: BODY}})
    source = HubSource(REPO, policy=RetryPolicy(max_attempts=2, first_wait=0.01, timeout=0.2))
    revision = source.revisions()[1]
    hub.latency = {"api": 1.0, "cdn": 1.0}
    with pytest.raises(HubError, match="the server stopped responding, 2 times"):
        HubSource(REPO, policy=RetryPolicy(max_attempts=2, first_wait=0.01, timeout=0.2)).revisions()
    with pytest.raises(HubError, match="the server stopped responding, 2 times"):
        source.read(revision, WEIGHTS)


def test_an_address_that_expires_is_asked_for_anew(hub: HubServer, source: HubSource) -> None:
    hub.link_uses = 1
    for start in range(0, 50_000, 10_000):
        assert read(source, start, start + 10_000) == BODY[start : start + 10_000]
    assert hub.count("cdn", status=403) == 4
    assert hub.count("resolve") == 5


def test_a_third_of_failures_is_got_over(hub: HubServer, source: HubSource) -> None:
    source.revisions()
    kinds = (Fault("status", 500), Fault("status", 503), Fault("cut", after=9000), Fault("truncate", after=5000))
    hub.faults.append(at_random(0.3, 7, kinds, ("resolve", "cdn")))
    for start in range(0, 600_000, 20_000):
        assert read(source, start, start + 20_000) == BODY[start : start + 20_000]
    assert source.traffic.retries > 5


# -- what is not there, and who may not see it ----------------------------------------------------------------


def test_missing_files_and_bytes(source: HubSource) -> None:
    with pytest.raises(FileMissingError, match=r"org/model has no nothing\.bin at step1") as caught:
        source.read(first(source), "nothing.bin")
    assert caught.value.file == "nothing.bin"
    assert pickle.loads(pickle.dumps(caught.value)).file == "nothing.bin"
    with pytest.raises(FormatError, match="has no byte 700000"):
        source.read(first(source), WEIGHTS, len(BODY), len(BODY) + 10)
    with pytest.raises(FormatError, match="has no byte"):
        source.read(first(source), "empty.bin", -100)
    for path in ("../x", "/etc/passwd", "a/../../b", "", "a\\b", "a\nb"):
        with pytest.raises(FormatError, match="not a path inside a checkpoint"):
            source.read(first(source), path)
    assert source.traffic.retries == 0


def test_a_branch_that_moved_is_read_as_it_was(hub: HubServer, source: HubSource) -> None:
    revision = first(source)
    hub.commit(REPO, "step1", {WEIGHTS: BODY[::-1]})
    with source.read(revision, WEIGHTS, 0, 100) as stream:
        assert stream.read(100) == BODY[:100]
    del hub.repositories[REPO].commits[revision.commit or ""]
    with pytest.raises(HubError, match="the commit of step1 is gone; run again"):
        HubSource(REPO).read(revision, WEIGHTS)


def test_gated_private_and_absent_repositories(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", {"step1": {WEIGHTS: BODY}}, gated=True, token="hf_right")
    hub.add("org/private", {"step1": {WEIGHTS: BODY}}, token="hf_right")
    for token in ("", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        gated = HubSource("org/gated", policy=QUICK)
        with pytest.raises(AccessError, match=r"gated: accept its licence at http.*/org/gated, then .*hf auth login"):
            gated.read(gated.revisions()[1], WEIGHTS)
        for repo in ("org/private", "org/absent"):
            with pytest.raises(AccessError, match=f"no repository {repo}, or it is private") as caught:
                HubSource(repo, policy=QUICK).revisions()
            assert "hf_" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    for repo in ("org/gated", "org/private"):
        source = HubSource(repo, policy=QUICK)
        assert read(source, 0, 10) == BODY[:10]
    assert all(request.authorized for request in hub.log[-2:] if request.kind == "resolve")
    assert not any(request.authorized for request in hub.log if request.kind == "cdn")
    with pytest.raises(AccessError, match="not a repository id"):
        HubSource("no/such/thing")


def test_no_network_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(AccessError, match=r"cannot be reached \(no network\?\), 5 times"):
            HubSource(REPO, policy=QUICK).revisions()


def test_offline_mode_is_named(hub: HubServer) -> None:
    code = f"from pythia_dynamics.checkpoints.hub import HubSource; HubSource({REPO!r}).revisions()"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "OfflineError: org/model cannot be reached: HF_HUB_OFFLINE is set" in run.stderr
    assert not hub.log


def test_waiting_ends_when_cancelled(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {WEIGHTS: BODY}})
    source = HubSource(REPO)
    revision = source.revisions()[1]
    hub.faults.append(once(Fault("status", 429, {"Retry-After": "300"}), "resolve"))
    twin = source.with_own_traffic()
    threading.Timer(0.3, source.cancel).start()
    with pytest.warns(UserWarning, match="429, 1 time; waiting 300 s"), pytest.raises(HubError, match="cancelled"):
        twin.read(revision, WEIGHTS)
    assert read(source, 0, 10) == BODY[:10]  # one that was cancelled can be used again


@pytest.mark.parametrize("kind", ["stall", "hang"])
def test_a_transfer_ends_when_cancelled(hub: HubServer, source: HubSource, kind: FaultKind) -> None:
    revision = first(source)
    read(source, 0, 10)  # so that one case has its connections from before
    hub.faults.append(lambda request: Fault(kind, after=1000) if request.kind == "cdn" else None)
    began: list[float] = []

    def cancel() -> None:
        began.append(time.monotonic())
        source.cancel()

    twin = source.with_own_traffic()
    threading.Timer(0.3, cancel).start()
    with pytest.raises(HubError, match="cancelled"), twin.read(revision, WEIGHTS) as stream:
        stream.read(len(BODY))
    assert time.monotonic() - began[0] < 1.0


def test_a_short_range_is_completed_by_the_next(hub: HubServer, source: HubSource) -> None:
    hub.faults.append(lambda request: Fault("short", after=300_000) if request.kind == "cdn" else None)
    assert read(source, 1000) == BODY[1000:]
    assert read(source, -400_000) == BODY[-400_000:]
    asked = [request.range for request in hub.log if request.kind == "cdn"]
    assert asked == [
        *("bytes=1000-", "bytes=301000-699999", "bytes=601000-699999"),
        *("bytes=-400000", "bytes=600000-699999"),
    ]
    assert source.traffic.retries == 0
    assert source.traffic.bytes == hub.sent == 699_000 + 400_000


def test_a_transfer_that_crawls_is_given_up(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {WEIGHTS: BODY}})
    source = HubSource(REPO, policy=RetryPolicy(first_wait=0.001, rate_seconds=0.2))
    hub.faults.append(lambda request: Fault("slow", after=500) if request.kind == "cdn" else None)
    message = r"org/model step1/model.safetensors: only \d+ bytes came in 0 s, 3 times"
    began = time.monotonic()
    with pytest.raises(HubError, match=message), source.read(first(source), WEIGHTS) as stream:
        stream.read(len(BODY))
    assert 0.6 <= time.monotonic() - began < 5
    hub.faults[:] = [once(Fault("slow", after=500), "cdn", times=2)]
    assert read(source) == BODY


def test_the_time_in_which_nobody_reads_is_not_slow(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {WEIGHTS: BODY * 20}})
    source = HubSource(REPO, policy=RetryPolicy(first_wait=0.001, min_rate=1e6, rate_seconds=0.1))
    with source.read(first(source), WEIGHTS) as stream:
        for at in range(0, 20 * len(BODY), 2_000_000):
            count = len(stream.read(2_000_000))
            assert count == min(2_000_000, 20 * len(BODY) - at)
            time.sleep(0.12)
    assert source.traffic.retries == 0


def test_an_address_that_is_refused_at_once_is_asked_for_anew_with_a_pause(hub: HubServer) -> None:
    hub.add(REPO, {"step1": {WEIGHTS: BODY}})
    source = HubSource(REPO, policy=RetryPolicy(first_wait=0.1))
    hub.faults.append(lambda request: Fault("expired") if request.kind == "cdn" else None)
    began = time.monotonic()
    with pytest.raises(HubError, match="the signed address answered 403, 4 times"):
        read(source, 0, 10)
    assert time.monotonic() - began > 0.75 * 0.7
    assert (hub.count("resolve"), hub.count("cdn")) == (4, 4)
