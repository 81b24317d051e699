"""The learning rate of a history: from the store, a file, a mapping; what a fetch writes; what a directory states."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.checkpoints import HEAD, checkpoint, state, suite
from support.hubserver import HubServer

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.learning_rate import LearningRate
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import open_histories
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import Store

CSV = "step,lr\n1000,0.5\n3000,0.25\n"


def write(root: Path, *steps: int, logged: int | None = None) -> Path:
    for step in steps:
        folder = root / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name, content in checkpoint(state(step)).items():
            (folder / name).write_bytes(content)
        if logged:
            log = [{"step": at, "learning_rate": at / 1000} for at in range(logged, step + 1, logged)]
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return root


def rates(history: History) -> list[float]:
    return history.coordinates["learning_rate"].tolist()


def test_a_pythia_model_has_the_published_schedule_and_a_fetch_replaces_it(hub: HubServer, tmp_path: Path) -> None:
    hub.add("EleutherAI/pythia-70m-deduped", suite((1000, 2000, 3000)))
    cache = tmp_path / "cache"
    published = resolve("70m").suite.learning_rate
    assert published is not None
    history = pyd.fetch("70m", steps="1000,2000", cache=cache)
    np.testing.assert_array_equal(rates(history), published.at((1000, 2000)))
    assert history.provenance["learning_rate"] == "suite pythia: published configuration"

    (tmp_path / "lr.csv").write_text(CSV)
    once = pyd.open_history("70m", cache=cache, learning_rate=tmp_path / "lr.csv")
    assert rates(once) == [0.5, 0.375]
    assert once.provenance["learning_rate"] == str(tmp_path / "lr.csv")
    assert pyd.msd(once).attrs["learning_rate"] == str(tmp_path / "lr.csv")
    assert rates(open_histories("70m", cache=cache)[0]) == published.at((1000, 2000)).tolist()
    (chosen,) = open_histories("70m", cache=cache, steps="2000", learning_rate={1000: 1.0, 2000: 3.0})
    assert rates(chosen) == [3.0]

    served = hub.file_requests().total()
    kept = pyd.fetch("70m", steps="1000,2000", cache=cache, learning_rate=tmp_path / "lr.csv")
    assert hub.file_requests().total() == served, "the weights are there: no file is requested"
    assert rates(kept) == [0.5, 0.375]
    (tmp_path / "lr.csv").unlink()  # the store keeps the whole table, for steps that come later too
    assert rates(pyd.fetch("70m", steps="1000,2000,3000", cache=cache)) == [0.5, 0.375, 0.25]
    again = pyd.open_history("70m", cache=cache)
    assert rates(again) == [0.5, 0.375, 0.25]
    assert again.provenance["learning_rate"] == str(tmp_path / "lr.csv")
    stored = xr.open_zarr(cache / "pythia-70m-deduped.zarr", consolidated=False)["learning_rate"]
    assert stored.attrs["source"] == str(tmp_path / "lr.csv")


def test_the_published_schedule_does_not_replace_what_was_given(tmp_path: Path) -> None:
    """A fetch that names the suite by its alias, from a directory, after one with a file."""
    place, cache = write(tmp_path / "run", 1000, 2000), tmp_path / "cache"
    for step in (1000, 2000):
        (tmp_path / "run" / f"checkpoint-{step}").rename(tmp_path / "run" / f"step{step}")
    (tmp_path / "lr.csv").write_text(CSV)
    given = pyd.fetch("70m", source=str(place), steps="1000,2000", cache=cache, learning_rate=tmp_path / "lr.csv")
    assert rates(given) == [0.5, 0.375]
    assert rates(pyd.fetch("70m", source=str(place), steps="1000,2000", cache=cache)) == [0.5, 0.375]
    replaced = pyd.fetch("70m", source=str(place), steps="1000,2000", cache=cache, learning_rate={1000: 1.0, 2000: 2.0})
    assert rates(replaced) == [1.0, 2.0]


def test_outside_of_the_file_it_is_not_known(tmp_path: Path) -> None:
    place = write(tmp_path / "run", 500, 1000, 3000, 4000)
    (tmp_path / "lr.csv").write_text(CSV)
    history = pyd.fetch(place, cache=tmp_path / "cache", learning_rate=tmp_path / "lr.csv")
    np.testing.assert_array_equal(rates(history), [math.nan, 0.5, 0.25, math.nan])
    assert set(pyd.msd(history)) > {"displacement_per_learning_rate"}
    other = pyd.fetch(place, cache=tmp_path / "cache", learning_rate={500: 1.0})
    np.testing.assert_array_equal(rates(other), [1.0, math.nan, math.nan, math.nan])  # nothing of the former is left


def test_a_file_without_any_of_the_steps_changes_nothing(tmp_path: Path) -> None:
    place, cache = write(tmp_path / "run", 10, 20), tmp_path / "cache"
    (tmp_path / "lr.csv").write_text(CSV)
    with pytest.raises(PythiaDynError, match="of steps 1000 to 3000, but run has steps 10 to 20; none is common"):
        pyd.fetch(place, cache=cache, learning_rate=tmp_path / "lr.csv")
    history = pyd.fetch(place, cache=cache)
    assert history.coordinates == {}
    assert history.provenance["learning_rate"] == "not known"
    assert pyd.density(history).attrs["learning_rate"] == "not known"
    with pytest.raises(PythiaDynError, match="none is common"):
        pyd.open_history("run", cache=cache, learning_rate=tmp_path / "lr.csv")
    with pytest.raises(PythiaDynError, match="at least 0"):
        pyd.fetch(place, cache=cache, learning_rate={10: -1.0})


def test_a_trainer_states_it_and_later_checkpoints_renew_it(tmp_path: Path) -> None:
    place, cache = write(tmp_path / "run", 10, 20, logged=5), tmp_path / "cache"
    history = pyd.fetch(place, cache=cache)
    assert rates(history) == [0.01, 0.02]
    assert history.provenance["learning_rate"] == "trainer_state.json of checkpoint-20"
    write(place, 30, 40, logged=5)
    later = pyd.fetch(place, cache=cache)
    assert rates(later) == [0.01, 0.02, 0.03, 0.04]
    assert later.provenance["learning_rate"] == "trainer_state.json of checkpoint-40"
    given = pyd.fetch(place, cache=cache, suite={"learning_rate": {"peak": 1.0, "total_steps": 40, "decay": "linear"}})
    assert rates(given) == [0.75, 0.5, 0.25, 0.0]
    assert rates(pyd.fetch(place, cache=cache)) == [0.75, 0.5, 0.25, 0.0]


def test_before_the_first_record_of_a_trainer_it_is_not_known(tmp_path: Path) -> None:
    history = pyd.fetch(write(tmp_path / "run", 2, 7, 10, logged=5), cache=tmp_path / "cache")
    np.testing.assert_array_equal(rates(history), [math.nan, 0.007, 0.01])


def test_an_array_has_one_if_it_is_given() -> None:
    w = np.zeros((3, 2, 2), np.float32)
    assert rates(History.from_array(w, [0, 5, 10], learning_rate={0: 0.0, 10: 1.0})) == [0.0, 0.5, 1.0]
    schedule = LearningRate(1.0, 10, decay="linear")
    history = History.from_array(w, [0, 5, 10]).with_learning_rate(schedule)
    assert rates(history) == [1.0, 0.5, 0.0]
    assert history.with_learning_rate(None) is history
    assert pyd.order_parameter(history)["learning_rate"].values.tolist() == [1.0, 0.5, 0.0]


def test_a_store_says_where_it_is_from(tmp_path: Path) -> None:
    pyd.fetch(write(tmp_path / "run", 10, logged=5), cache=tmp_path / "cache")
    store = Store.open(tmp_path / "cache" / "run.zarr")
    assert store.learning_rate_from == "trainer_state.json of checkpoint-10"
    assert store.suite.learning_rate is None  # so that the next fetch reads it again
    assert store.coordinate("learning_rate") == {10: 0.01}
    assert HEAD in store.tensors
