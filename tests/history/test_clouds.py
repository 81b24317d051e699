"""Stores, locks and results in S3, Google Cloud and Azure, which differ in how writes on a condition are made.

S3 is moto's server, Google Cloud one of these tests with Google's XML API; Azure is Microsoft's emulator, where
``azurite-blob`` is installed (CONTRIBUTING.md).
"""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import suite
from support.clouds import Cloud, GoogleCloud, amazon, azurite, google_cloud

import pythia_dynamics as pyd
from pythia_dynamics import objects
from pythia_dynamics.errors import StoreError
from pythia_dynamics.history import store
from pythia_dynamics.history.coordinates import write_coordinate
from pythia_dynamics.history.store import Store
from pythia_dynamics.mirror import locked, mirrored
from pythia_dynamics.objects import Lease, ObjectPath, as_place
from pythia_dynamics.shard import Shard
from pythia_dynamics.sweep.verify import verify_store

STEPS = tuple(range(0, 24, 3))


@pytest.fixture(scope="module", params=["amazon", "google", "azure"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    if request.param == "amazon":
        with amazon(tmp_path_factory.mktemp("s3")) as server:
            yield server
        return
    if request.param == "google":
        with google_cloud() as found:
            yield found
        return
    if shutil.which("azurite-blob") is None:
        pytest.skip("azurite-blob is not installed")
    with azurite(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator


@pytest.fixture
def cloud(servers: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    servers.use(monkeypatch)
    yield servers
    objects._open.cache_clear()


@pytest.fixture
def bucket(cloud: Cloud, request: pytest.FixtureRequest) -> str:
    return cloud.make(f"bucket-{abs(hash(request.node.name)) % 10**8}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "own"
    for name, files in suite(STEPS).items():
        (directory / name).mkdir(parents=True)
        for file, content in files.items():
            (directory / name / file).write_bytes(content)
    return directory


def test_a_store_is_that_in_a_directory(bucket: str, checkpoints: Path, tmp_path: Path) -> None:
    there = f"{bucket}/some/cache"
    for cache in (there, tmp_path):
        assert pyd.download(checkpoints, tensors="all", cache=cache).fetched == STEPS
        assert pyd.download(checkpoints, tensors="all", cache=cache).present == STEPS
    one, other = (pyd.open_history("own", cache=cache) for cache in (there, tmp_path))
    which = ("msd", "density", "spectrum", "rank")
    found, expected = pyd.analyse(one, which), pyd.analyse(other, which)
    for name in which:
        assert found[name].identical(expected[name]), name
    opened = Store.open(as_place(f"{there}/own.zarr"))
    assert len(as_place(there).sizes()) > 20  # several pages of a list
    for tensor in opened.tensors:
        assert verify_store(opened, tensor).findings == ()


def fetch_shard(cache: str, checkpoints: str, number: int) -> tuple[int, ...]:
    return pyd.download(checkpoints, tensors="all", cache=cache, shard=Shard(number, 2)).fetched


def test_processes_write_one_store(bucket: str, checkpoints: Path) -> None:
    cache = f"{bucket}/cache"
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(fetch_shard, cache, str(checkpoints), number) for number in (1, 2, 2)]
        assert {step for job in jobs for step in job.result()} == set(STEPS)
    opened = Store.open(as_place(f"{cache}/own.zarr"))
    assert sorted(opened.steps) == list(STEPS)
    for tensor in opened.tensors:
        assert sorted(opened.records(tensor)) == list(STEPS)


def test_a_large_object_is_sent_in_parts(bucket: str) -> None:
    place, content = as_place(f"{bucket}/large"), bytes(range(256)) * 60_000
    assert isinstance(place, ObjectPath)
    with place.new_file() as file:
        file.write(content)
    assert place.size() == len(content)
    assert place.read_bytes() == content
    assert [bytes(each) for each in place.read_ranges([(5, 9), (10**7, 10**7 + 3)])] == [
        content[5:9],
        content[10**7 : 10**7 + 3],
    ]


def test_one_at_a_time_has_the_lock(bucket: str) -> None:
    """And it is free at once after each: none waits for a lock that was not freed."""
    place, inside, most, began = ObjectPath(bucket, "a.lock"), [0], [0], time.monotonic()

    def enter(number: int) -> None:
        with Lease(place).held():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(8)))
    assert most == [1]
    assert time.monotonic() - began < objects._LEASE_SECONDS
    lease = Lease(place)
    with lease.held(), lease.held():  # of one holder as often as it likes
        pass
    with Lease(place).held():
        pass


def test_a_lock_that_is_held_for_long_is_not_taken_over(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_LEASE_SECONDS", 0.9)
    place, seen = ObjectPath(bucket, "a.lock"), []

    def wait_for_it() -> None:
        with Lease(place).held():
            seen.append(time.monotonic())

    with Lease(place).held():
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        time.sleep(3)
        ended = time.monotonic()
    waiting.join()
    assert seen[0] >= ended


def test_the_lock_of_a_process_that_was_killed_is_taken_over(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_LEASE_SECONDS", 1.0)
    place = ObjectPath(bucket, "a.lock")
    place.put(b'{"owner": "killed", "count": 0}')
    began = time.monotonic()
    with Lease(place).held():
        assert time.monotonic() - began >= 1.0
    place.put(b"no json")
    with Lease(place).held():
        pass


def test_who_has_slept_through_the_takeover_replaces_nothing(
    bucket: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"{bucket}/cache"
    pyd.fetch(checkpoints, cache=cache)
    sleeper, other = (Store.open(as_place(f"{cache}/own.zarr")) for _ in range(2))
    write, lock = write_coordinate, ObjectPath(bucket, "cache/.own.zarr.lock")

    def meanwhile(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(store, "write_coordinate", write)
        lock.put(b'{"owner": ""}')
        taking = threading.Thread(target=other.ensure, args=(list(other.tensors.values()), [100]))
        taking.start()
        taking.join()
        write(*arguments, **options)

    monkeypatch.setattr(store, "write_coordinate", meanwhile)
    with pytest.raises(StoreError, match=r"another process has changed .*; run the same command again"):
        sleeper.ensure(sleeper.tensors.values(), [200])
    assert Store.open(as_place(f"{cache}/own.zarr")).steps == (*STEPS, 100)
    sleeper.ensure(sleeper.tensors.values(), [200])
    assert Store.open(as_place(f"{cache}/own.zarr")).steps == (*STEPS, 100, 200)


def test_results_are_exchanged(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two folders, as of two machines; what a folder has sent, it does not get again."""
    place, got = f"{bucket}/results", []
    with mirrored(place) as one, mirrored(place) as other:
        for folder, text in ((one, "first\n"), (other, "second\n"), (one, "third\n")):
            (folder / "model").mkdir(exist_ok=True)
            with locked(folder / "model", "table"), (folder / "model" / "table.csv").open("a") as file:
                file.write(text)
        read = ObjectPath.read_bytes
        monkeypatch.setattr(ObjectPath, "read_bytes", lambda path: got.append(path.name) or read(path))
        with locked(one / "model", "table"):
            assert (one / "model" / "table.csv").read_text() == "first\nsecond\nthird\n"
        assert got == []
        with locked(other / "model", "table"):
            assert (other / "model" / "table.csv").read_text() == "first\nsecond\nthird\n"
        assert got == ["table.csv"]
        (one / "model" / "table.csv").unlink()
    with mirrored(place) as third:
        assert [path.name for path in (third / "model").glob("t*")] == []


def test_a_bucket_that_is_not_there(cloud: Cloud, bucket: str, checkpoints: Path) -> None:
    missing = f"{cloud.scheme}://no-such-bucket"
    with pytest.raises(StoreError, match=rf"^{missing}: there is no such bucket$"):
        pyd.fetch(checkpoints, cache=f"{missing}/cache")
    with pytest.raises(StoreError, match=rf"^{missing}: there is no such bucket$"), mirrored(f"{missing}/results"):
        pass
    history = pyd.fetch(checkpoints, cache=f"{bucket}/cache")
    cloud.remove(bucket.partition("://")[2])
    with pytest.raises(StoreError, match=rf"^{bucket}: there is no such bucket$"):
        pyd.msd(history)


@pytest.mark.parametrize("servers", ["google", "azure"], indirect=True)  # S3: test_objects.py
def test_wrong_credentials(cloud: Cloud, bucket: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(cloud, GoogleCloud):
        monkeypatch.setattr(cloud, "is_denied", True)
    else:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    objects._open.cache_clear()
    with pytest.raises(StoreError, match=r"access denied; check the credentials in the environment$"):
        pyd.fetch(checkpoints, cache=f"{bucket}/cache")
