"""What a store knows of its suite: how checkpoints are named, tokens and learning rates, and where they are."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from support.checkpoints import HEAD, checkpoint, raw, state
from support.hubserver import HubServer

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.learning_rate import LearningRate
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.errors import PythiaDynError, StoreError
from pythia_dynamics.files import portable
from pythia_dynamics.history.cache import choose_model, find_model, open_history
from pythia_dynamics.history.history import History
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.results.folder import Results

W_U = TensorSpec(HEAD, "float16", (7, 3))
RATE = LearningRate(1.0, 100, 10, final=0.1)
SUITE = Suite(
    pattern=(r"^run-(?P<step>\d+)$",), part={"stage": "2"}, learning_rate=RATE, unembedding=("a", "b"), tokenizer="o/t"
)
COORDINATES = ("tokens", "learning_rate")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def project(root: Path, *steps: int, name: str = "runs", folder: str = "step{}") -> Path:
    for step in steps:
        write(root / name / folder.format(step), checkpoint(state(step)))
    return root / name


def filled(path: Path, steps: tuple[int, ...], tokens: dict[int, int | None], suite: Suite = SUITE) -> Store:
    store = Store.create(path, source="owner/suite", suite=suite)
    store.ensure([W_U], steps, tokens)
    for step in steps:
        store.write(HEAD, step, np.full(W_U.shape, step, np.float16), {"commit": f"c{step}"})
    return store


# -- the suite ------------------------------------------------------------------------------------------------


def test_a_store_keeps_its_suite(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "m.zarr"
    Store.create(path, source="owner/suite", suite=SUITE)
    assert Store.open(path).suite == SUITE
    assert Store.create(path, source="owner/suite").suite == SUITE
    assert Store.open(path).suite == SUITE
    changed = SUITE.changed({"tokenizer": "other/t"})
    Store.create(path, source="owner/suite", suite=changed)
    assert Store.open(path).suite == changed
    plain = tmp_path / "cache" / "plain.zarr"
    Store.create(plain, source="owner/suite")
    assert Store.open(plain).suite == Suite()
    recorded: Any = zarr.open_group(plain, mode="r").attrs["pythia_dynamics"]
    assert recorded["suite"] == {}


def test_a_store_of_another_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.zarr"
    Store.create(path, source="owner/suite", suite=SUITE)
    for values in ({"stage": "3"}, {"seed": "1"}, {"stage": "none"}):
        with pytest.raises(
            StoreError, match=r"holds the weights of owner/suite stage 2, not of owner/suite "
        ) as caught:
            Store.create(path, source="owner/suite", suite=SUITE.changed(values))
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="owner/suite stage 2, not of other/suite stage 2; name another --cache"):
        Store.create(path, source="other/suite", suite=SUITE)
    assert Store.create(path, source="owner/suite", suite=SUITE.changed({"stage": "stage2"})).suite == SUITE


def test_a_store_of_an_older_version_has_no_suite(tmp_path: Path) -> None:
    path = tmp_path / "m.zarr"
    zarr.create_group(path, attributes={"pythia_dynamics": {"format": 1, "source": "/somewhere", "version": "0.1"}})
    store = Store.open(path)
    assert (store.source, store.suite) == ("/somewhere", Suite())


# -- coordinates ----------------------------------------------------------------------------------------------


def test_coordinates_of_the_steps(tmp_path: Path) -> None:
    store = filled(tmp_path / "m.zarr", (20, 5), {5: 500, 20: None})
    assert list(store.steps) == [5, 20]
    assert store.coordinate("tokens") == {5: 500.0}
    assert store.coordinate("learning_rate") == dict(zip((5, 20), RATE.at((5, 20)), strict=True))
    store.ensure([W_U], (50, 1), {1: 100, 5: None})
    assert list(store.steps) == [5, 20, 1, 50]
    assert store.coordinate("tokens") == {5: 500.0, 1: 100.0}
    history = History.from_store(store)
    assert history.steps.tolist() == [1, 5, 20, 50]
    np.testing.assert_array_equal(history.coordinates["tokens"], [100, 500, math.nan, math.nan])
    np.testing.assert_array_equal(history.coordinates["learning_rate"], RATE.at((1, 5, 20, 50)))
    fewer = history.select([50, 5])
    np.testing.assert_array_equal(fewer.coordinates["tokens"], [500, math.nan])
    np.testing.assert_array_equal(fewer.coordinates["learning_rate"], RATE.at((5, 50)))
    assert set(store.tensors) == {HEAD}


def test_xarray_reads_them_too(tmp_path: Path) -> None:
    store = filled(tmp_path / "m.zarr", (5, 20), {5: 500, 20: 2**53})
    dataset = xr.open_zarr(store.path, consolidated=False)
    assert dataset["tokens"].dims == dataset["learning_rate"].dims == ("step",)
    assert dataset["tokens"].values.tolist() == [500, 2**53]
    assert dataset["tokens"].attrs["long_name"] == "tokens seen"
    np.testing.assert_array_equal(dataset["learning_rate"], RATE.at((5, 20)))


def test_nothing_known_is_no_coordinate(tmp_path: Path) -> None:
    store = filled(tmp_path / "m.zarr", (5, 20), {5: None}, Suite())
    assert [store.coordinate(name) for name in COORDINATES] == [None, None]
    assert History.from_store(store).coordinates == {}
    assert History.from_array(np.zeros((2, 3, 2), np.float32)).coordinates == {}


def test_coordinates_have_the_length_of_the_steps_whatever_the_suite(tmp_path: Path) -> None:
    """A writer that does not know the schedule any more leaves a store that xarray can open."""
    filled(tmp_path / "m.zarr", (5, 20), {5: 500})
    store = Store.create(tmp_path / "m.zarr", source="owner/suite", suite=SUITE.changed({"learning_rate": None}))
    store.ensure([W_U], (50,))
    dataset = xr.open_zarr(store.path, consolidated=False)
    assert {name: dataset[name].shape for name in ("step", *COORDINATES)} == dict.fromkeys(("step", *COORDINATES), (3,))
    np.testing.assert_array_equal(History.from_store(store).coordinates["learning_rate"], [*RATE.at((5, 20)), np.nan])


def test_a_suite_that_is_learned_later_changes_the_coordinates(tmp_path: Path) -> None:
    place = project(tmp_path, 5, 20)
    cache = tmp_path / "cache"
    assert pyd.fetch(place, cache=cache).coordinates == {}
    values = {"tokens_per_step": 512, "learning_rate": {"peak": 1.0, "total_steps": 100, "warmup_steps": 10}}
    assert choose_model("runs", cache, values).suite.tokens_per_step == 512
    history = open_history("runs", cache=cache)
    assert history.coordinates["tokens"].tolist() == [5 * 512, 20 * 512]
    np.testing.assert_allclose(history.coordinates["learning_rate"], LearningRate(1.0, 100, 10).at((5, 20)))


def test_datasets_have_them(tmp_path: Path) -> None:
    steps = tuple(range(0, 100, 10))
    store = filled(tmp_path / "m.zarr", steps, {step: 7 * step for step in steps})
    rng = np.random.default_rng(1)
    for step in steps:
        store.write(HEAD, step, rng.normal(size=W_U.shape).astype(np.float16), {})
    history = History.from_store(store)
    dataset = pyd.msd(history)
    assert dataset["tokens"].values.tolist() == [7 * step for step in steps]
    np.testing.assert_array_equal(dataset["learning_rate"], RATE.at(steps))
    assert dataset["tokens"].dims == ("step",)
    less = pyd.msd(history.select(steps[2:]))
    assert less["tokens"].values.tolist() == [7 * step for step in steps[2:]]


def test_tokens_of_names_and_of_the_suite(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/m", {f"step{step}-tokens{step}B": checkpoint(state(step)) for step in (1, 2)})
    named = pyd.fetch("org/m", cache=tmp_path / "named")
    assert named.coordinates["tokens"].tolist() == [10**9, 2 * 10**9]
    exact = pyd.fetch("org/m", cache=tmp_path / "exact", suite={"tokens_per_step": 999})
    assert exact.coordinates["tokens"].tolist() == [999, 1998]


# -- what was fetched needs no word again ---------------------------------------------------------------------


def test_a_fetched_suite_needs_no_word_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, cache = project(tmp_path, 1, 2, folder="my-{}-run"), tmp_path / "cache"
    with pytest.raises(PythiaDynError, match="--revision-pattern"):
        pyd.fetch(place, cache=cache)
    suite = {"pattern": r"^my-(\d+)-run$"}
    assert pyd.fetch(place, steps="1", cache=cache, suite=suite).steps.tolist() == [1]
    for again in (place, str(place), "runs"):
        assert find_model(again, cache).suite.pattern == (r"^my-(\d+)-run$",)
        assert pyd.fetch(again, cache=cache).steps.tolist() == [1, 2]
    other = project(tmp_path / "elsewhere", 3)  # of the same name, but another directory
    assert find_model(other, cache).suite == Suite()
    with pytest.raises(StoreError, match="holds the weights of"):
        pyd.fetch(other, cache=cache)


# -- where the weights are ------------------------------------------------------------------------------------


def test_a_copy_of_the_project_is_its_own_source(tmp_path: Path) -> None:
    root = tmp_path / "project"
    place = project(root, 1, 2)
    tokenizer = write(root / "tok", {"tokenizer.json": b"{}"})
    pyd.fetch(place, cache=root / "cache", suite={"tokenizer": str(tokenizer)})
    content: Any = zarr.open_group(root / "cache" / "runs.zarr", mode="r").attrs["pythia_dynamics"]
    assert content["source"] == "../runs"
    assert str(tmp_path) not in json.dumps(content)
    assert Store.open(root / "cache" / "runs.zarr").source == str(place)

    copy = tmp_path / "deeper" / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(root)
    store = Store.open(copy / "cache" / "runs.zarr")
    assert store.source == str(copy / "runs")
    assert store.suite.tokenizer == str(copy / "tok")
    write(copy / "runs" / "step3", checkpoint(state(3)))
    for model in ("runs", copy / "runs"):
        history = pyd.fetch(model, cache=copy / "cache")
        assert history.steps.tolist() == [1, 2, 3]
        assert history.at(3).tobytes() == raw(state(3)[HEAD])
    assert Store.open(store.path).records(HEAD)[3]["repo"] == "../runs"
    assert str(tmp_path) not in (store.path / "zarr.json").read_text()


def test_a_source_outside_of_the_project_stays_absolute(tmp_path: Path) -> None:
    place, cache = project(tmp_path / "data", 1), tmp_path / "project" / "cache"
    pyd.fetch(place, cache=cache)
    content: Any = zarr.open_group(cache / "runs.zarr", mode="r").attrs["pythia_dynamics"]
    assert content["source"] == str(place)
    shutil.copytree(tmp_path / "project", tmp_path / "copy")
    assert Store.open(tmp_path / "copy" / "cache" / "runs.zarr").source == str(place)


def test_a_project_behind_a_link(tmp_path: Path) -> None:
    place = project(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pyd.fetch(tmp_path / "link" / "runs", cache=tmp_path / "link" / "cache")
    store = Store.open(tmp_path / "real" / "cache" / "runs.zarr")
    assert (store.source, store.recorded_source) == (str(place), "../runs")


@pytest.mark.parametrize(
    ("place", "folder", "project_directory", "recorded"),
    [
        ("owner/name", "/p/cache", "/p", "owner/name"),
        ("/p/runs", "/p/cache", "/p", "../runs"),
        ("/p/cache/m/runs", "/p/cache", "/p", "m/runs"),
        ("/p", "/p/cache", "/p", ".."),
        ("/pp/runs", "/p/cache", "/p", "/pp/runs"),
        ("/data/runs", "/cache", "/", "/data/runs"),
    ],
)
def test_portable_names(place: str, folder: str, project_directory: str, recorded: str) -> None:
    assert portable(place, Path(folder), Path(project_directory)) == recorded


def test_results_name_a_relative_source(tmp_path: Path) -> None:
    steps = tuple(range(1, 9))
    history = pyd.fetch(project(tmp_path, *steps), cache=tmp_path / "cache")
    results = Results("runs", tmp_path / "results")
    dataset = pyd.msd(history)
    results.write_zarr("msd", dataset)
    results.record("msd", dataset.attrs)
    assert json.loads((results.path / "provenance.json").read_text())["msd"]["source"] == "../../runs"
    assert str(tmp_path) not in (results.path / "provenance.json").read_text()
    assert str(tmp_path) not in (results.path / "msd.zarr" / "zarr.json").read_text()
