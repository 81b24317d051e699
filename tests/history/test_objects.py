"""Stores that are no directories, held to an S3 on the loopback and to stores in a directory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from support.checkpoints import checkpoint, state, suite
from support.objectstore import S3, s3_server, web_server

import pythia_dynamics as pyd
from pythia_dynamics import objects
from pythia_dynamics.errors import IntegrityError, PythiaDynError, StoreError
from pythia_dynamics.history import parted
from pythia_dynamics.history.cache import cached, open_histories, open_history
from pythia_dynamics.history.store import Store
from pythia_dynamics.objects import ObjectPath, as_place
from pythia_dynamics.shard import Shard
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import Frames
from pythia_dynamics.sweep.partial import PartialSums, PartSavedError
from pythia_dynamics.sweep.verify import verify_store

STEPS = (0, 5, 10, 20, 40)
HEAD = "embed_out.weight"
CONFIG: dict[str, Any] = {"num_attention_heads": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def bucket(server: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    server.use(monkeypatch)
    number = abs(hash(request.node.name)) % 10**8
    return server.make(f"bucket-{number}")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "own"
    for step in STEPS:
        (directory / f"step{step}").mkdir(parents=True)
        for file, content in checkpoint(state(step), **CONFIG).items():
            (directory / f"step{step}" / file).write_bytes(content)
    return directory


def same(one: pyd.History, other: pyd.History) -> None:
    assert (one.tensor, one.steps.tolist()) == (other.tensor, other.steps.tolist())
    for step in one.steps.tolist():
        np.testing.assert_array_equal(one.at(step), other.at(step))


def test_places_are_read_from_text() -> None:
    place = as_place("s3://bucket//some/cache/")
    assert isinstance(place, ObjectPath)
    assert (place.root, place.key, str(place)) == ("s3://bucket", "some/cache", "s3://bucket/some/cache")
    assert str(place / "a.zarr" / "b") == "s3://bucket/some/cache/a.zarr/b"
    assert (place.name, str(place.parent), str(place.with_name("x"))) == (
        "cache",
        "s3://bucket/some",
        "s3://bucket/some/x",
    )
    assert str(ObjectPath.parse("gs://bucket")) == "gs://bucket"
    assert as_place("cache/x") == Path("cache/x")
    assert as_place(place) is place
    with pytest.raises(PythiaDynError, match=r"ftp://x/y: a place is a directory, or begins with s3://, gs://, az://"):
        as_place("ftp://x/y")
    with pytest.raises(PythiaDynError, match=r"s3:///x names no bucket; a place is s3://bucket/folder"):
        as_place("s3:///x")


def test_a_store_in_s3_is_that_in_a_directory(
    bucket: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = f"s3://{bucket}/some/cache", tmp_path / "cache"
    for cache in (there, here):
        report = pyd.download(checkpoints, tensors="all", cache=cache)
        assert report.fetched == STEPS
        assert pyd.download(checkpoints, tensors="all", cache=cache).present == STEPS
    assert cached(there) == cached(here) == ("own",)
    stores = [Store.open(as_place(f"{cache}/own.zarr")) for cache in (there, here)]
    assert stores[0].tensors == stores[1].tensors
    assert stores[0].roles == stores[1].roles
    monkeypatch.setattr(parted, "_PIECE", 1000)  # several requests a step
    pairs = list(
        zip(open_histories("own", ["all"], cache=there), open_histories("own", ["all"], cache=here), strict=True)
    )
    assert any(one.within for one, _ in pairs)  # parts of fused tensors
    for one, other in pairs:
        assert isinstance(one.frames[0], ObjectPath)
        same(one, other)
    name = f"{HEAD.replace('embed_out', 'gpt_neox.layers.0.attention.query_key_value')}.query.head1"
    same(open_history("own", name, cache=there), open_history("own", name, cache=here))


@pytest.mark.parametrize("scratch", [10**9, 40_000])
def test_measures_of_a_store_in_s3(
    bucket: str, checkpoints: Path, tmp_path: Path, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one part, and from several: a slab of 512 weights of five steps is 5 KB."""
    monkeypatch.setattr(parted, "_SCRATCH", scratch)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pythia_dynamics.sweep.frames._SMALLEST_SLAB", 512)
    pyd.download(checkpoints, tensors="all", cache=f"s3://{bucket}/cache")
    pyd.download(checkpoints, tensors="all", cache=tmp_path)
    which = ("msd", "density", "order", "two_time", "spectrum", "rank", "rows")
    tensors = [HEAD, "gpt_neox.layers.0.attention.query_key_value.weight.query", "gpt_neox.final_layer_norm.weight"]
    for tensor in tensors:
        one, other = (open_history("own", tensor, cache=cache) for cache in (f"s3://{bucket}/cache", tmp_path))
        found, expected = pyd.analyse(one, which), pyd.analyse(other, which)
        for name in which:
            assert found[name].identical(expected[name]), (tensor, name)
    assert list((tmp_path / "pythia-dyn").iterdir()) == []


def test_tasks_read_for_themselves(bucket: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another process, which is sent no weights and no files of this machine."""
    history = pyd.fetch(checkpoints, cache=f"s3://{bucket}/cache")
    whole = pyd.analyse(history, ["msd", "spectrum"])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        compute = Compute(executor=pool)
        monkeypatch.setattr(Frames, "loaded", lambda *arguments: pytest.fail("read here"))
        monkeypatch.setattr(parted.StoredWeights, "frame", lambda *arguments: pytest.fail("read here"))
        found = pyd.analyse(history, ["msd", "spectrum"], compute=compute)
    for name in whole:
        assert found[name].identical(whole[name])


def fetch_shard(cache: str, checkpoints: str, number: int, count: int) -> tuple[int, ...]:
    from pythia_dynamics.shard import Shard

    return pyd.download(checkpoints, tensors="all", cache=cache, shard=Shard(number, count)).fetched


def test_several_processes_write_one_store(bucket: str, tmp_path: Path) -> None:
    steps = tuple(range(0, 36, 3))
    for name, files in suite(steps).items():
        (tmp_path / "many" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "many" / name / file).write_bytes(content)
    cache = f"s3://{bucket}/cache"
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(fetch_shard, cache, str(tmp_path / "many"), n, 4) for n in (1, 2, 3, 4, 2)]
        fetched = [step for job in jobs[:4] for step in job.result()] + list(jobs[4].result())
    assert set(fetched) == set(steps)
    opened = Store.open(as_place(f"{cache}/many.zarr"))
    assert sorted(opened.steps) == list(steps)
    for tensor in opened.tensors:
        assert sorted(opened.records(tensor)) == list(steps)
    pyd.download(tmp_path / "many", tensors="all", cache=tmp_path / "cache")
    for one, other in zip(
        open_histories("many", ["all"], cache=cache),
        open_histories("many", ["all"], cache=tmp_path / "cache"),
        strict=True,
    ):
        same(one, other)


def test_xarray_reads_it(bucket: str, checkpoints: Path) -> None:
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    history = pyd.fetch(checkpoints, cache=f"s3://{bucket}/cache")
    store = S3Store(bucket, prefix="cache/own.zarr", client_options={"allow_http": True})
    dataset = xr.open_zarr(ObjectStore(store, read_only=True), consolidated=False)
    found = dataset.set_coords("step").sortby("step")[HEAD].to_numpy()
    np.testing.assert_array_equal(found, history.weights[:])


def test_damage_is_found_on_reading(
    bucket: str, server: S3, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"s3://{bucket}/cache"
    history = pyd.fetch(checkpoints, cache=cache)
    opened = Store.open(as_place(f"{cache}/own.zarr"))
    chunk = opened.chunk_path(HEAD, 10)
    assert isinstance(chunk, ObjectPath)
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.put(bytes(content))
    for read in (lambda: history.at(10), lambda: pyd.msd(history), lambda: pyd.spectrum(history)):
        with pytest.raises(
            IntegrityError, match=r"step 10 of embed_out.weight \(s3://.*\) fails its checksum; fetch it"
        ):
            read()
    monkeypatch.setattr("pythia_dynamics.sweep.frames._SMALLEST_SLAB", 512)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes, ThreadPoolExecutor(2) as threads:
        for executor in (processes, threads):  # no task reads the whole chunk
            with pytest.raises(IntegrityError, match=r"step 10 .* fails its checksum"):
                pyd.msd(history, compute=Compute(executor=executor))
    history.at(5)
    (finding,) = verify_store(opened, HEAD).findings
    assert (finding.kind, finding.steps) == ("damaged", (10,))
    assert pyd.download(checkpoints, cache=cache).fetched == (10,)
    assert verify_store(opened, HEAD).findings == ()
    chunk.put(bytes(content[:-10]))  # cut short
    assert pyd.download(checkpoints, cache=cache).fetched == (10,)
    server.client().delete_object(Bucket=bucket, Key=chunk.key)
    with pytest.raises(IntegrityError, match=r"step 10 .* is missing"):
        history.at(10)
    assert pyd.download(checkpoints, cache=cache).fetched == (10,)


def test_damage_is_found_when_parts_are_put_together(
    bucket: str, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job of an array reads the whole chunk."""
    cache = f"s3://{bucket}/cache"
    history = pyd.fetch(checkpoints, cache=cache)
    monkeypatch.setattr("pythia_dynamics.sweep.frames._SMALLEST_SLAB", 512)
    chunk = Store.open(as_place(f"{cache}/own.zarr")).chunk_path(HEAD, 10)
    content = bytearray(chunk.read_bytes())
    whole = bytes(content)

    def measured() -> xr.Dataset:
        for number in (1, 2, 3):
            with pytest.raises(PartSavedError):
                pyd.msd(history, compute=Compute(partial=PartialSums(tmp_path, "it", Shard(number, 3))))
        assert len(list(tmp_path.iterdir())) == 3
        return pyd.msd(history, compute=Compute(partial=PartialSums(tmp_path, "it", Shard(3, 3), merges=True)))

    content[100] ^= 1
    chunk.put(bytes(content))
    with pytest.raises(IntegrityError, match=r"step 10 .* fails its checksum; .* its parts of it are removed, run all"):
        measured()
    assert list(tmp_path.iterdir()) == []
    chunk.put(whole)
    assert measured().identical(pyd.msd(history))


def test_a_write_that_fails_leaves_what_was_there(bucket: str, checkpoints: Path) -> None:
    cache = f"s3://{bucket}/cache"
    history = pyd.fetch(checkpoints, cache=cache)
    opened = Store.open(as_place(f"{cache}/own.zarr"))
    before = history.at(10)
    with (
        pytest.raises(IntegrityError, match="5 of the tensor's 3072 bytes arrived"),
        opened.writer(HEAD, 10, {}) as writer,
    ):
        writer.write(b"short")
    np.testing.assert_array_equal(history.at(10), before)


def test_an_upload_that_is_killed(bucket: str, server: S3, checkpoints: Path, tmp_path: Path) -> None:
    """A killed fetch leaves whole chunks or none, and keeps others waiting for its lock only for its time."""
    cache = f"s3://{bucket}/cache"
    script = (
        "import pythia_dynamics as pyd, pythia_dynamics.objects as objects, time, sys\n"
        "put, objects._LEASE_SECONDS = objects.ObjectPath.put, 1.0\n"
        "def slow(path, content, **how):\n"
        "    if path.key.endswith('.lock') and b'\"owner\": \"\"' not in content: done = put(path, content, **how); "
        "print('locked', flush=True); time.sleep(0.2); return done\n"
        "    return put(path, content, **how)\n"
        "objects.ObjectPath.put = slow\n"
        f"pyd.download({str(checkpoints)!r}, tensors='all', cache={cache!r}, workers=2)\n"
    )
    for count in (1, 3):
        environment = {**os.environ, **server.environment()}
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            for _ in range(count):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    upload = server.client().create_multipart_upload(Bucket=bucket, Key="cache/own.zarr/embed_out.weight/c/0/0/0")
    server.client().upload_part(
        Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 100
    )
    script = (
        "import pythia_dynamics as pyd, pythia_dynamics.objects as objects\n"
        "objects._LEASE_SECONDS = 1.0\n"
        f"print(pyd.download({str(checkpoints)!r}, tensors='all', cache={cache!r}).complete)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "True"
    opened = Store.open(as_place(f"{cache}/own.zarr"))
    for tensor in opened.tensors:
        assert [finding for finding in verify_store(opened, tensor).findings if finding.kind == "damaged"] == []


def test_a_bucket_that_is_not_there(bucket: str, server: S3, checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket: there is no such bucket$"):
        pyd.fetch(checkpoints, cache="s3://no-such-bucket/cache")
    history = pyd.fetch(checkpoints, cache=f"s3://{bucket}/cache")
    server.remove(bucket)
    for read in (
        lambda: history.at(5),
        lambda: pyd.msd(history),
        lambda: open_history("own", cache=f"s3://{bucket}/cache"),
    ):
        with pytest.raises(StoreError, match=rf"^s3://{bucket}: there is no such bucket$"):
            read()


def test_a_bucket_that_vanishes_during_a_fetch(bucket: str, server: S3, checkpoints: Path, monkeypatch: Any) -> None:
    new_file, written = ObjectPath.new_file, []

    def vanishing(path: ObjectPath) -> Any:
        written.append(path)
        if len(written) == 3:
            server.remove(bucket)
        return new_file(path)

    monkeypatch.setattr(ObjectPath, "new_file", vanishing)
    with pytest.raises(StoreError, match=rf"s3://{bucket}: there is no such bucket"):
        pyd.fetch(checkpoints, cache=f"s3://{bucket}/cache", workers=1)


def test_wrong_credentials(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="1") as server:
        server.use(monkeypatch)
        server.make("private")
        with pytest.raises(
            StoreError, match=r"^s3://private/cache: access denied; check the credentials in the environment$"
        ):
            pyd.fetch(checkpoints, cache="s3://private/cache")
    objects._open.cache_clear()


def test_a_server_that_is_not_there(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    S3("http://127.0.0.1:9").use(monkeypatch)
    monkeypatch.setattr(objects, "_RETRY", {"max_retries": 1})
    with pytest.raises(StoreError, match=r"^s3://bucket/cache: HTTP error: [^\n]*$"):
        pyd.fetch(checkpoints, cache="s3://bucket/cache")
    objects._open.cache_clear()


def test_a_web_server_is_read(checkpoints: Path, tmp_path: Path) -> None:
    pyd.download(checkpoints, tensors="all", cache=tmp_path / "cache")
    with web_server(tmp_path) as url:
        one, other = (open_history("own", HEAD, cache=cache) for cache in (f"{url}/cache", tmp_path / "cache"))
        same(one, other)
        assert pyd.msd(one).identical(pyd.msd(other))
        assert pyd.spectrum(one).identical(pyd.spectrum(other))
        assert len(open_histories("own", ["all"], cache=f"{url}/cache")) > 3
        assert len(open_history(f"{url}/cache/own.zarr")) == len(STEPS)
        with pytest.raises(StoreError, match="web server, which can only be read; name another --cache"):
            pyd.download(checkpoints, cache=f"{url}/cache", steps="40", refresh=True, learning_rate={0: 1.0, 40: 0.5})
        with pytest.raises(PythiaDynError, match="nothing"):
            open_history("nothing", cache=f"{url}/cache")
