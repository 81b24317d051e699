"""Histograms from exact counts: against NumPy, at the limits of the formats, and as the trackers get them."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.trainers import neox, trainer

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.training.callback import WeightDynamicsCallback
from pythia_dynamics.training.histograms import (
    HistogramNotLoggedWarning,
    HistogramTrackers,
    weight_histogram,
)

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [1, 7, 512])
@pytest.mark.parametrize("scale", [1e-7, 0.02, 3e4])
def test_the_bins_are_those_of_numpy(dtype: Any, bins: int, scale: float) -> None:
    weights = np.random.default_rng(3).normal(0, scale, (37, 91)).clip(-6e4, 6e4).astype(dtype)
    found = weight_histogram(weights, bins)
    rounded = weights if weights.dtype.itemsize == 2 else weights.astype(np.float16)
    values = rounded.astype(np.float64).reshape(-1)
    np.testing.assert_array_equal(found.counts, np.histogram(values, found.edges)[0])
    assert found.counts.sum() == weights.size
    assert found.nonfinite == found.outside == 0
    assert 1 <= len(found.counts) <= bins
    assert not np.isin(found.edges, values).any()
    assert np.all(np.diff(found.edges) > 0)


def test_the_bins_are_equal_where_the_values_are_dense() -> None:
    weights = np.random.default_rng(0).uniform(1, 2, 20_000).astype(np.float16)
    found = weight_histogram(weights, 32)
    assert len(found.counts) == 32
    np.testing.assert_allclose(np.diff(found.edges), 1 / 32, atol=2**-10)


def test_weights_that_are_in_no_bin_are_reported() -> None:
    found = weight_histogram(np.array([1, np.nan, np.inf, -np.inf, 1e6, 2], np.float32))
    assert (found.counts.sum(), found.nonfinite, found.outside) == (2, 3, 1)
    half = weight_histogram(np.array([1, np.nan, np.inf, 65504, -65504, 0.0, -0.0], np.float16))
    assert (half.counts.sum(), half.nonfinite, half.outside) == (5, 2, 0)
    empty = weight_histogram(np.full(9, np.nan, np.float64))
    assert (len(empty.counts), len(empty.edges), empty.nonfinite) == (0, 0, 9)


def test_equal_weights_are_one_bin() -> None:
    found = weight_histogram(np.array([0.0, -0.0, 0.0], np.float16))
    assert found.counts.tolist() == [3]
    assert found.edges[0] < 0 < found.edges[1]


@pytest.mark.parametrize("bins", [0, 513])
def test_a_number_of_bins_that_no_tracker_takes(bins: int) -> None:
    with pytest.raises(PythiaDynError, match="1 to 512 bins"):
        weight_histogram(np.ones(3, np.float16), bins)


class Logged(list[dict[str, Any]]):
    """A tracker's `log` that keeps its rows, or fails."""

    fails = False

    def __call__(self, values: dict[str, Any]) -> None:
        if self.fails:
            raise OSError("the disk is full")
        self.append(values)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("wandb")
    module.run, module.log = object(), Logged()
    module.Histogram = lambda np_histogram: np_histogram
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_trainer_logs_to_an_active_run(tmp_path: Path, wandb: Any) -> None:
    watch = WeightDynamicsCallback(tmp_path / "run", tensors="all", histograms="embed*")
    run = trainer(tmp_path / "out", neox(), [])
    watch.attach(run)
    run.train()
    assert [row["train/global_step"] for row in wandb.log] == [3, 6, 9, 12]
    assert [key for key in wandb.log[-1] if key.endswith("/histogram")] == ["weights/embed_out.weight/histogram"]
    counts, edges = wandb.log[-1]["weights/embed_out.weight/histogram"]
    weights = run.model.get_output_embeddings().weight.detach().numpy().astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(counts, np.histogram(weights, edges)[0])
    assert counts.sum() == weights.size


def test_a_tracker_that_fails_is_one_warning(tmp_path: Path, wandb: Any) -> None:
    wandb.log.fails = True
    run = trainer(tmp_path / "out", neox(), [WeightDynamicsCallback(tmp_path / "run", histograms="all")])
    with pytest.warns(HistogramNotLoggedWarning, match="step 3, the training goes on: the disk is full") as caught:
        run.train()
    assert sum(item.category is HistogramNotLoggedWarning for item in caught) == 1
    assert run.state.global_step == 12


def test_without_a_run_nothing_is_logged(wandb: Any) -> None:
    wandb.run = None
    histograms = {"weights/histogram": weight_histogram(np.ones(4, np.float16))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HistogramTrackers().log(histograms, 1)
    with pytest.warns(HistogramNotLoggedWarning, match="no run is active"):
        HistogramTrackers(["wandb"]).log(histograms, 1)
    assert not wandb.log


def test_names_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = ["wandbb"]
    with pytest.raises(UnknownNameError, match="wandb"):
        HistogramTrackers(wrong)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(PythiaDynError, match=r"needs trackio: pip install 'pythia-dynamics\[trackers\]'"):
        WeightDynamicsCallback(tmp_path / "run", trackers=["trackio"])
    run = trainer(tmp_path / "out", neox(), [WeightDynamicsCallback(tmp_path / "run", histograms="lm_haed*")])
    with pytest.raises(UnknownNameError, match="lm_haed"):
        run.train()


def test_the_real_weights_and_biases_reads_back_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = library.init(project="test", dir=str(tmp_path))
    weights = np.random.default_rng(0).normal(size=5000).astype(np.float16)
    found = weight_histogram(weights)
    HistogramTrackers(["wandb"]).log({"weights/histogram": found}, 7)
    summary = dict(run.summary)
    library.finish()
    logged = summary["weights/histogram"]
    assert logged["values"] == found.counts.tolist()
    assert logged["bins"] == found.edges.tolist()
    assert summary["train/global_step"] == 7


def test_the_real_trackio_reads_back_the_counts() -> None:
    library: Any = pytest.importorskip("trackio")
    found = weight_histogram(np.random.default_rng(0).normal(size=5000).astype(np.float16))
    logged = library.Histogram(np_histogram=(found.counts, found.edges))._to_dict()
    assert logged["values"] == found.counts.tolist()
    assert logged["bins"] == found.edges.tolist()
