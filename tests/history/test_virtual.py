"""Virtual histories: from the loopback Hub, held to the same weights in a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from support.checkpoints import HEAD, LAYOUTS, checkpoint, state, suite
from support.hubserver import HubServer
from support.objectstore import s3_server

import pythia_dynamics as pyd
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history import parted
from pythia_dynamics.history.cache import open_histories, open_history
from pythia_dynamics.history.states import step_states
from pythia_dynamics.history.store import Store
from pythia_dynamics.sweep.verify import verify_store

REPO = "org/model"
STEPS = (0, 5, 10, 20, 40)
WHICH = ("msd", "density", "spectrum", "rows")


def same(one: pyd.History, other: pyd.History) -> None:
    assert (one.tensor, one.steps.tolist()) == (other.tensor, other.steps.tolist())
    for step in one.steps.tolist():
        np.testing.assert_array_equal(one.at(step), other.at(step))


def store_of(cache: Path) -> Store:
    return Store.open(cache / "model.zarr")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_virtual_history_is_the_history(
    layout: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors, torch zips, and shards of both; in parts of 40 KB, of which each has several requests."""
    hub.add(REPO, suite(STEPS, layout))
    monkeypatch.setattr(parted, "_SCRATCH", 40_000)
    monkeypatch.setattr("pythia_dynamics.sweep.frames._SMALLEST_SLAB", 512)
    report = pyd.download(REPO, tensors="all", cache=tmp_path / "virtual", virtual=True)
    assert report.fetched == STEPS
    assert set(report.checks.values()) == {"virtual"}
    weights = sum(state(0)[name].nbytes for name in store_of(tmp_path / "virtual").tensors)
    assert not list((tmp_path / "virtual").rglob(f"{HEAD}/c/*/*/*"))
    assert report.bytes < 4 * len(STEPS) * weights  # headers, which are larger than these tensors
    pyd.download(REPO, tensors="all", cache=tmp_path / "stored")
    pairs = zip(
        open_histories("model", ["all"], cache=tmp_path / "virtual"),
        open_histories("model", ["all"], cache=tmp_path / "stored"),
        strict=True,
    )
    for one, other in pairs:
        same(one, other)
        if one.tensor in (HEAD, "gpt_neox.final_layer_norm.weight"):
            found, expected = pyd.analyse(one, WHICH), pyd.analyse(other, WHICH)
            for name in WHICH:
                xr.testing.assert_equal(found[name], expected[name])
    assert pyd.download(REPO, tensors="all", cache=tmp_path / "virtual", virtual=True).present == STEPS


def test_it_becomes_a_history_that_is_stored(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS))
    pyd.fetch(REPO, cache=tmp_path, steps="5,10", virtual=False)
    assert pyd.download(REPO, cache=tmp_path, virtual=True).fetched == (0, 20, 40)
    states = step_states(store_of(tmp_path), HEAD)
    assert (states.stored, sorted(states.virtual)) == (STEPS, [0, 20, 40])
    mixed = open_history("model", cache=tmp_path)
    expected = {step: state(step)[HEAD].numpy() for step in STEPS}
    for step in STEPS:
        np.testing.assert_array_equal(mixed.at(step), expected[step])
    whole = pyd.msd(np.stack([expected[step] for step in STEPS]), steps=STEPS)
    np.testing.assert_array_equal(pyd.msd(mixed)["msd"], whole["msd"])
    assert pyd.download(REPO, cache=tmp_path).fetched == (0, 20, 40)  # now the bytes
    assert not step_states(store_of(tmp_path), HEAD).virtual
    assert verify_store(store_of(tmp_path), HEAD).findings == ()
    hub.reset()
    assert len(open_history("model", cache=tmp_path).weights[:]) == 5
    assert hub.count("cdn") == 0


def test_it_is_pinned_to_commits(hub: HubServer, tmp_path: Path) -> None:
    """A branch that moves changes nothing, until the place is recorded again."""
    hub.add(REPO, suite(STEPS))
    history = pyd.fetch(REPO, cache=tmp_path, virtual=True)
    before = history.at(10)
    hub.commit(REPO, "step10", checkpoint(state(99)))
    np.testing.assert_array_equal(open_history("model", cache=tmp_path).at(10), before)
    report = pyd.download(REPO, cache=tmp_path, virtual=True)
    assert list(report.superseded) == [10]
    np.testing.assert_array_equal(open_history("model", cache=tmp_path).at(10), before)
    assert pyd.download(REPO, cache=tmp_path, virtual=True, refresh=True).fetched == (10,)
    np.testing.assert_array_equal(open_history("model", cache=tmp_path).at(10), state(99)[HEAD].numpy())


def test_each_range_is_checked(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CRC-32 of a torch file is compared for whole steps, and for passes in parts."""
    hub.add(REPO, suite(STEPS, "torch"))
    history = pyd.fetch(REPO, cache=tmp_path, virtual=True)
    path = tmp_path / "model.zarr" / HEAD / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["provenance"]["20"]["virtual"]["crc32"] ^= 1
    path.write_text(json.dumps(content))
    history = open_history("model", cache=tmp_path)
    monkeypatch.setattr("pythia_dynamics.sweep.frames._SMALLEST_SLAB", 512)
    for scratch in (10**9, 40_000):
        monkeypatch.setattr(parted, "_SCRATCH", scratch)
        history = open_history("model", cache=tmp_path)
        for read in (lambda one: one.at(20), pyd.msd, pyd.spectrum):
            with pytest.raises(
                PythiaDynError, match=r"embed_out.weight of step20 fails the checksum of pytorch_model.bin"
            ):
                read(history)
    history.at(10)
    (finding,) = [found for found in verify_store(store_of(tmp_path), HEAD).findings if found.kind == "damaged"]
    assert finding.steps == (20,)
    assert pyd.download(REPO, cache=tmp_path, virtual=True).fetched == (20,)
    assert verify_store(store_of(tmp_path), HEAD).findings == ()


def test_xarray_opens_the_references(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS))
    stored = pyd.fetch(REPO, cache=tmp_path, steps="5,10")
    history = pyd.fetch(REPO, cache=tmp_path, virtual=True)
    references = tmp_path / "model.zarr" / "references.json"
    assert len(references.read_bytes()) < 10_000
    remote = {"asynchronous": True}
    options = {"fo": str(references), "remote_protocol": "http", "remote_options": remote, **remote}
    only = references.read_text()
    refs = json.loads(only)["refs"]
    here = [key for key, place in refs.items() if isinstance(place, list) and place[0].startswith("/")]
    assert len(here) == len(stored) == 2  # of two protocols, which fsspec reads one at a time
    references.write_text(json.dumps({"version": 1, "refs": {key: refs[key] for key in refs if key not in here}}))
    dataset = xr.open_zarr("reference://", storage_options=options, consolidated=False, zarr_format=3)
    hub.reset()
    steps = dataset["step"].to_numpy().tolist()
    lazy = dataset[HEAD].isel(step=steps.index(20))
    assert hub.count("cdn") == 0
    np.testing.assert_array_equal(lazy.to_numpy(), history.at(20))


def test_a_directory_and_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, files in suite(STEPS).items():
        (tmp_path / "own" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "own" / name / file).write_bytes(content)
    with s3_server(tmp_path) as server:
        server.use(monkeypatch)
        bucket = server.make("bucket")
        for cache in (tmp_path / "cache", f"s3://{bucket}/cache"):
            history = pyd.fetch(tmp_path / "own", cache=cache, virtual=True)
            np.testing.assert_array_equal(history.at(40), state(40)[HEAD].numpy())
            pyd.fetch(tmp_path / "own", cache=cache, steps="40")
            np.testing.assert_array_equal(pyd.msd(open_history("own", cache=cache))["msd"], pyd.msd(history)["msd"])
        assert "cache/own.zarr/references.json" in server.keys(bucket)


def test_a_step_that_is_gone(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS))
    history = pyd.fetch(REPO, cache=tmp_path, virtual=True)
    hub.repositories.pop(REPO)
    with pytest.raises(PythiaDynError, match=REPO):
        history.at(10)
    with pytest.raises(PythiaDynError, match=REPO):
        pyd.msd(history)


def test_the_command(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(STEPS))
    asked = ["--model", REPO, "--cache", str(tmp_path)]

    def run(*words: str) -> Any:
        return CliRunner().invoke(main, list(words))

    result = run("fetch", *asked, "--virtual")
    assert result.exit_code == 0, result.stderr
    assert "5 steps fetched" in result.stdout
    assert "not stored: read when they are measured" in result.stdout
    assert "not stored" in run("ls", "--cache", str(tmp_path)).stdout
    result = run("msd", "--model", "model", "--cache", str(tmp_path), "--results", str(tmp_path / "results"), "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["msd"][0]["missing"] == {}
    assert "not with virtual" in run("fetch", *asked, "--virtual", "--verify-whole").stderr
    assert "--virtual keeps only their places" in run("fetch", *asked, "--virtual", "--measure", "msd").stderr
