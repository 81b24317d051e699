"""Fetching from a Hub that fails, in processes that are killed, beside others: the same bytes in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from support.checkpoints import HEAD, checkpoint, raw, state, suite
from support.hubserver import Fault, HubServer, Request, at_random, once

import pythia_dynamics.history.transfer as fetching
from pythia_dynamics.checkpoints.gate import RequestGate
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError
from pythia_dynamics.errors import CheckpointError, IntegrityError
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.report import FetchReport
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store

REPO = "org/tiny"
STEPS = tuple(range(1, 41))
SHAPE: dict[str, Any] = {"vocab": 1024, "d_model": 32, "layers": 1}
FAULTS = (
    Fault("status", 500),
    Fault("status", 502),
    Fault("status", 503, {"Retry-After": "0"}),
    Fault("status", 429, {"Retry-After": "0"}),
    Fault("cut"),
    Fault("cut", after=30_000),
    Fault("truncate", after=20_000),
)
FETCH = f"from pythia_dynamics.history.fetch import download; download({REPO!r}, workers=4)"


def impatient() -> HubSource:
    policy = RetryPolicy(max_attempts=40, max_invalid_responses=40, first_wait=0.001, max_wait=0.005)
    return HubSource(REPO, policy=policy)


def chunks(store: object) -> dict[str, bytes]:
    folder = Path(str(store))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("c/*/*/*"))}


def start(cache: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHIA_DYN_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", FETCH], env=environment, stderr=subprocess.PIPE)


def assert_true_weights(report: FetchReport) -> None:
    history = report.histories()[HEAD]
    for step in STEPS:
        assert history.at(step).tobytes() == raw(state(step, **SHAPE)[HEAD])


@pytest.fixture
def undisturbed(hub: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """The chunks of a fetch to which nothing happened, checked against the weights."""
    hub.add(REPO, suite(STEPS, **SHAPE))
    report = download(REPO, cache=tmp_path / "undisturbed")
    assert_true_weights(report)
    hub.reset()
    return chunks(report.path)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """All waits of gates, which take no time."""
    found: list[float] = []
    monkeypatch.setattr(RequestGate, "wait", lambda gate, seconds, why: found.append(seconds))
    return found


@pytest.mark.parametrize(
    ("fault", "kind", "why", "longest"),
    [
        (Fault("status", 503), "cdn", "the storage behind the Hub answered 503", 82),
        (Fault("status", 500), "resolve", "the Hub answered 500", 82),
        (Fault("cut"), "cdn", "the connection was lost", 82),
        (Fault("html"), "cdn", "the response is (not the requested range, but 200|of a file of 54 bytes, not .*)", 6),
    ],
)
@pytest.mark.parametrize("layout", ["safetensors", "torch shards"])
def test_an_outage_ends_a_fetch_after_three_revisions(
    hub: HubServer, tmp_path: Path, waits: list[float], layout: str, fault: Fault, kind: str, why: str, longest: float
) -> None:
    hub.add(REPO, suite(STEPS, layout, **SHAPE))
    hub.faults.append(lambda request: fault if request.kind == kind else None)
    with pytest.raises(
        AccessError, match=f"{why}, 2 times in . s, as the 2 steps before it; try again later"
    ) as caught:
        download(REPO, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert (
        hub.count(kind, status=fault.status if fault.kind == "status" else 200 if fault.kind == "html" else 206) <= 18
    )
    assert sum(waits) < longest


def test_an_outage_while_others_arrive_keeps_what_has_come(hub: HubServer, tmp_path: Path, waits: list[float]) -> None:
    hub.add(REPO, suite(STEPS, **SHAPE))
    hub.faults.append(lambda request: Fault("status", 503) if hub.count("cdn") > 20 and request.kind == "cdn" else None)
    with pytest.raises(AccessError, match=r"answered 503.* steps before it.*of 40 steps are in .*tiny\.zarr"):
        download(REPO, cache=tmp_path, workers=4)
    assert hub.count("cdn", status=503) < 4 * 14 + 8
    hub.faults.clear()
    report = download(REPO, cache=tmp_path)
    assert report.complete
    assert 10 <= len(report.present) <= 20


@pytest.mark.parametrize("stated", [True, False])
def test_a_rate_limit_is_used_to_the_full(hub: HubServer, tmp_path: Path, stated: bool) -> None:
    hub.add(REPO, suite(range(1, 7), **SHAPE))
    hub.limits, hub.states_limits = {"resolve": (2, 1.0)}, stated
    report = download(REPO, cache=tmp_path, workers=6)
    assert report.complete
    assert report.seconds < 12
    refused = hub.count("resolve", status=429)
    assert refused <= (1 if stated else 12)
    assert report.retries == refused


def test_one_refusal_is_of_one_revision(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS, **SHAPE))
    commit = hub.repositories[REPO].branches["step5"]
    hub.faults.append(lambda request: Fault("status", 403) if request.revision == commit else None)
    report = download(REPO, cache=tmp_path)
    assert tuple(report.missing) == (5,)
    assert "the Hub refuses org/tiny (403): check what your token may read" in report.missing[5]
    assert hub.file_requests()[commit] == 1


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("content", [b"<html><body>Log in</body></html>", b'{"metadata": {}, "weight_m'])
def test_a_damaged_index_is_read_again(hub: HubServer, tmp_path: Path, content: bytes, times: int) -> None:
    hub.add(REPO, suite([1, 2, 3, 4], "safetensors shards", **SHAPE))
    commit = hub.repositories[REPO].branches["step2"]
    damaged = Fault("json", headers={"X-Repo-Commit": commit}, content=content)
    hub.faults.append(once(damaged, "resolve", match=f"{commit}/model.safetensors.index", times=times))
    report = download(REPO, cache=tmp_path)
    assert tuple(report.missing) == ((2,) if times == 3 else ())


@pytest.mark.parametrize("grown", [300, 30_000, 3_000_000])
def test_a_header_that_is_longer_than_the_last_one(hub: HubServer, tmp_path: Path, grown: int) -> None:
    states = {step: state(step, vocab=64, d_model=8, layers=1) for step in (1, 2, 3)}
    files = {
        step: safetensors.torch.save(tensors, {"note": "x" * grown} if step == 2 else None)
        for step, tensors in states.items()
    }
    hub.add(REPO, {f"step{step}": {"model.safetensors": content} for step, content in files.items()})
    report = download(REPO, cache=tmp_path, workers=1)
    assert report.complete
    for step, tensors in states.items():
        assert report.histories()[HEAD].at(step).tobytes() == raw(tensors[HEAD])


@pytest.mark.parametrize("layout", ["safetensors", "torch shards"])
def test_a_third_of_the_requests_failing(hub: HubServer, tmp_path: Path, layout: str) -> None:
    hub.add(REPO, suite(STEPS, layout, **SHAPE))
    hub.faults.append(at_random(0.3, 1, FAULTS))
    report = download(REPO, source=impatient(), cache=tmp_path)
    assert report.complete
    assert_true_weights(report)
    assert report.retries >= 8


def test_wrong_answers_never_become_weights(hub: HubServer, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    wrong = tuple(Fault(kind) for kind in ("wrong_range", "ignore_range", "html", "expired", "moved", "gzip"))
    hub.faults.append(at_random(0.3, 2, wrong, ("resolve", "cdn")))
    report = download(REPO, source=impatient(), cache=tmp_path)
    assert report.complete
    assert chunks(report.path) == undisturbed


def test_one_bad_revision_does_not_stop_the_others(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS, **SHAPE))
    bad = {hub.repositories[REPO].branches[f"step{step}"]: step for step in (1, 7, 40)}
    moved = Fault("moved")
    hub.faults.append(lambda request: moved if request.revision in bad else None)
    source = HubSource(REPO, policy=RetryPolicy(first_wait=0.001, max_wait=0.01))
    report = download(REPO, source=source, cache=tmp_path)
    assert tuple(report.missing) == (1, 7, 40)
    assert len(report.fetched) == 37
    assert "instead of" in report.missing[7]
    hub.faults.clear()
    assert download(REPO, cache=tmp_path).fetched == (1, 7, 40)


def test_torch_slices_are_checked_end_to_end(hub: HubServer, tmp_path: Path) -> None:
    files = {step: bytearray(checkpoint(state(step, **SHAPE), "torch")["pytorch_model.bin"]) for step in (1, 2, 3)}
    weights = raw(state(2, **SHAPE)[HEAD])
    files[2][files[2].index(weights) + 1000] ^= 1
    hub.add(REPO, {f"step{step}": {"pytorch_model.bin": bytes(body)} for step, body in files.items()})
    report = download(REPO, cache=tmp_path)
    assert report.fetched == (1, 3)
    assert "fails the checksum of pytorch_model.bin" in report.missing[2]
    store = Store.open(report.path)
    with pytest.raises(IntegrityError):
        store.check(HEAD, 2)
    assert 2 not in step_states(store, HEAD).stored


def test_damage_on_the_way_is_fetched_again(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    hub.add(REPO, suite([1], "torch", **SHAPE))
    original, spoiled = zlib.crc32, []

    def flip_once(data: bytes, value: int = 0) -> int:
        spoiled.append(data)
        return original(data, value) ^ (len(spoiled) == 1)

    monkeypatch.setattr(fetching, "crc32", flip_once)
    report = download(REPO, cache=tmp_path)
    assert report.complete
    assert report.histories()[HEAD].at(1).tobytes() == raw(state(1, **SHAPE)[HEAD])
    assert hub.sent > 2 * 1024 * 32 * 2


def test_a_gated_repository_stops_at_once(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS, **SHAPE), gated=True, token="hf_secret")
    with pytest.raises(AccessError, match="gated"):
        download(REPO, cache=tmp_path)
    assert hub.count("resolve") == 1
    assert not list(tmp_path.glob("*.zarr"))


def test_a_network_that_goes_away_leaves_what_was_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS, **SHAPE))
    denied = Fault("status", 403)
    count = [0]

    def after_a_while(request: Request) -> Fault | None:
        count[0] += request.kind == "resolve"
        return denied if count[0] > 12 and request.kind == "resolve" else None

    hub.faults.append(after_a_while)
    with pytest.raises(AccessError, match=r"403.*of 40 steps are in .*tiny\.zarr, the same fetch goes on from there"):
        download(REPO, cache=tmp_path, workers=3)
    hub.faults.clear()
    report = download(REPO, cache=tmp_path)
    assert report.complete
    assert 10 <= len(report.present) <= 12  # two of the three workers may be stopped half-way


def test_killed_and_started_again(hub: HubServer, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    generator = random.Random(5)
    hub.bandwidth = 300_000
    held = []
    for _ in range(3):
        goal = hub.count("cdn") + generator.randint(2, 8)
        process = start(tmp_path)
        while hub.count("cdn") < goal and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        here = chunks(tmp_path / "tiny.zarr") if (tmp_path / "tiny.zarr").exists() else {}
        assert here.items() <= undisturbed.items()
        held.append(len(here))
    assert held == sorted(held)
    hub.bandwidth = None
    report = download(REPO, cache=tmp_path)
    assert report.complete
    assert 0 < len(report.present) < len(STEPS)
    assert chunks(report.path) == undisturbed
    leftovers = [path.name for path in tmp_path.rglob("*.partial") if path.is_file()]
    assert not leftovers


def test_two_processes_on_one_store(hub: HubServer, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    hub.latency = {"cdn": 0.01}
    processes = [start(tmp_path), start(tmp_path)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert chunks(tmp_path / "tiny.zarr") == undisturbed
    store = Store.open(tmp_path / "tiny.zarr")
    assert tuple(sorted(store.records(HEAD))) == STEPS
    for step in STEPS:
        store.check(HEAD, step)


def test_tokens_are_in_no_store_and_no_message(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add(REPO, suite([1, 2], **SHAPE) | {"step3": {}}, gated=True, token="hf_secret")
    hub.faults.append(once(Fault("status", 500), "resolve"))
    report = download(REPO, cache=tmp_path)
    assert report.fetched == (1, 2)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in content or b"Signature" in content for content in written)
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n and more")
    with pytest.raises((AccessError, CheckpointError)) as caught:
        download("org/none", cache=tmp_path)
    assert "hf_secret" not in str(caught.value)
