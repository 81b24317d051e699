"""Saved results of several runs as one dataset: names, steps, coordinates, and what cannot be joined."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from support.populations import STEPS, save_order
from support.saved_results import STEPS as SAVED_STEPS
from support.saved_results import save_results

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.results.curves import curve_of, per_parameter, replicates
from pythia_dynamics.results.runs import find_runs, measured_models, seed_of


def rising(seed: int, steps: np.ndarray = STEPS) -> np.ndarray:
    return np.sqrt(steps) * np.exp(0.1 * np.random.default_rng(seed).normal())


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Seeds 2, 3 and 10 of a local suite; the second lacks two steps, the third has one more."""
    save_order(tmp_path, "tiny-seed2", rising(2))
    kept = np.delete(STEPS, [3, 39])
    save_order(tmp_path, "tiny-seed3", rising(3, kept), kept)
    longer = np.append(STEPS, 41_000)
    save_order(tmp_path, "tiny-seed10", rising(10, longer), longer)
    return tmp_path


def test_steps_are_joined_and_gaps_are_nan(seeds: Path) -> None:
    found = pyd.gather("tiny-*", measure="order", results=seeds)
    assert found["run"].to_numpy().tolist() == ["tiny-seed2", "tiny-seed3", "tiny-seed10"]  # by number
    assert found["step"].to_numpy().tolist() == [*STEPS, 41_000]
    for run in found["run"].to_numpy():
        table = pd.read_csv(seeds / run / "embed_out.weight" / "order.csv").set_index("step")
        for step in found["step"].to_numpy():  # each value is that of its file, or a gap
            value = float(found["order_parameter"].sel(run=run, step=step))
            wanted = table["order_parameter"].get(step, np.nan)
            np.testing.assert_equal(value, wanted)
    assert int(np.isnan(found["order_parameter"]).sum()) == 1 + 3
    assert found["seed"].to_numpy().tolist() == [2, 3, 10]
    assert set(found["seed_kind"].to_numpy()) == {"seed"}
    assert set(found["family"].to_numpy()) == {"tiny"}
    assert np.isnan(found["parameters"]).all()
    assert found.attrs["left_out"] == {}
    assert found.attrs["sources"]["tiny-seed3"]["source"] == "tiny-seed3"


@pytest.fixture(scope="module")
def pythia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pythia")
    for seed, steps in ((1, SAVED_STEPS), (2, SAVED_STEPS[:-2])):
        save_results(directory, f"pythia-160m-seed{seed}", seed, steps)
    save_results(directory, "pythia-70m-deduped", 9, only=("msd",))
    return directory


def gathered(models: str | list[str], measure: str, results: Path) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # seeds 3 to 9 are left out
        return pyd.gather(models, measure=measure, results=results)


@pytest.mark.parametrize(
    ("measure", "dims"),
    [
        ("msd", {"run", "step"}),
        ("moments", {"run", "step"}),
        ("density", {"run", "step"}),
        ("rank", {"run", "step", "batch_size", "tolerance", "convention"}),
        ("rank-infinite", {"run", "step", "tolerance", "convention"}),
        ("spectrum.zarr", {"run", "step", "index"}),
        ("two-time", {"run", "step", "other_step", "lag", "component"}),
        ("perplexity-forward", {"run", "step"}),
        ("perplexity-last-word", {"run", "step"}),
    ],
)
def test_every_kind_of_result_is_gathered(measure: str, dims: set[str], pythia: Path) -> None:
    found = gathered("160m-seed*", measure, pythia)
    assert set(found.dims) == dims
    assert found.sizes["run"] == 2
    assert found["step"].to_numpy().tolist() == SAVED_STEPS.tolist()
    assert found["parameters"].to_numpy().tolist() == [SIZES["160m"].parameters] * 2
    one = pyd.gather("160m-seed1", measure=measure, results=pythia)
    xr.testing.assert_equal(one.isel(run=0), found.isel(run=0).reindex_like(one.isel(run=0)))
    last = [column.isel(run=1, step=-1) for column in found.data_vars.values() if "step" in column.dims]
    assert last
    assert all(np.isnan(column).all() for column in last)


def test_globs_mean_folders_or_else_aliases(pythia: Path) -> None:
    with pytest.warns(UserWarning, match=r"^left out: pythia-160m-seed3, .* and 4 more \(.*msd --model 160m-seed3\)$"):
        found = pyd.gather("160m-seed*", results=pythia)
    assert len(found.attrs["left_out"]) == 7
    assert found["run"].to_numpy().tolist() == ["pythia-160m-seed1", "pythia-160m-seed2"]
    names = [run.name for run in find_runs(["70m", "pythia-*", "EleutherAI/pythia-160m-seed1"], pythia)]
    assert names == ["pythia-70m-deduped", "pythia-160m-seed1", "pythia-160m-seed2"]
    both = pyd.gather(["pythia-160m-seed?", "70m"], results=pythia)
    assert replicates(curve_of(both)).keys() == {"pythia-160m", "pythia-70m-deduped"}
    assert measured_models(pythia) == ("pythia-160m-seed1", "pythia-160m-seed2", "pythia-70m-deduped")


@pytest.mark.parametrize(
    ("models", "options", "error", "message"),
    [
        ("160m-sed3", {}, UnknownNameError, "did you mean 160m-seed3"),
        ("nothing*", {}, UnknownNameError, "no run 'nothing\\*' in .*known: pythia-160m-seed1"),
        ([], {}, PythiaDynError, "no run is named"),
        ("160m-seed1", {"measure": "msdd"}, UnknownNameError, "no measure or table 'msdd'; did you mean msd"),
        (
            ["160m-seed1", "160m-seed9"],
            {},
            PythiaDynError,
            r"msd.csv is missing: run pythia-dyn msd --model 160m-seed9",
        ),
        ("31m-seed*", {}, PythiaDynError, r"is missing: run pythia-dyn msd --model 31m-seed1"),
        ("70m", {"measure": "rank"}, PythiaDynError, r"run pythia-dyn rank --model 70m"),
        ("160m-seed1", {"measure": "perplexity-forward", "tensor": "x"}, PythiaDynError, "leave out the tensor x"),
        ("160m-seed1", {"tensor": "nope"}, UnknownNameError, "known: embed_out.weight|did you mean"),
        ("pythia-160m-*", {"measure": "density.zarr"}, PythiaDynError, "different values of weight"),
    ],
)
def test_what_is_not_there_is_one_line(
    models: str | list[str], options: dict[str, str], error: type[Exception], message: str, pythia: Path
) -> None:
    with pytest.raises(error, match=message) as raised:
        pyd.gather(models, **options, results=pythia)
    assert "\n" not in str(raised.value)


def test_a_damaged_result_is_not_left_out(seeds: Path) -> None:
    path = seeds / "tiny-seed3" / "embed_out.weight" / "order.csv"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"order.csv is damaged .*run pythia-dyn order --model tiny-seed3"):
        pyd.gather("tiny-*", measure="order", results=seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_padding": 50_277}, "another drop padding: None of tiny-seed2, 50277 of odd; .*order --model odd"),
        ({"tensor": "h.0.weight"}, "different tensors: embed_out.weight of tiny-seed2, h.0.weight of odd"),
    ],
)
def test_other_options_and_tensors_are_errors(change: dict[str, object], message: str, seeds: Path) -> None:
    save_order(seeds, "odd", rising(1), **change)  # type: ignore[arg-type]
    with pytest.raises(PythiaDynError, match=message):
        pyd.gather(["tiny-*", "odd"], measure="order", results=seeds)


def test_runs_of_one_family_have_one_shape(seeds: Path) -> None:
    save_order(seeds, "tiny-seed4", rising(4), shape=[304, 32])
    save_order(seeds, "tiny-seed5", rising(5), shape=[304, 64])
    with pytest.raises(PythiaDynError, match=r"runs of tiny have another shape: \[304, 32\] of tiny-seed4"):
        pyd.gather("tiny-*", measure="order", results=seeds)
    save_order(seeds, "large-seed5", rising(5), shape=[304, 64])  # another family may be of another size
    assert pyd.gather(["tiny-seed4", "large-seed5"], measure="order", results=seeds).sizes["run"] == 2


def test_another_version_is_a_warning(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pythia_dynamics.results.folder.__version__", "0.0.9")
    save_order(seeds, "tiny-seed4", rising(4))
    with pytest.warns(UserWarning, match=r"different versions of pythia-dynamics: 0.0.9, "):
        pyd.gather("tiny-*", measure="order", results=seeds)


def test_a_name_means_one_tensor_and_a_glob_several(seeds: Path) -> None:
    for place, tensor in enumerate(("h.10.weight", "h.2.weight")):
        save_order(seeds, "tiny-seed2", rising(20 + place), tensor=tensor)
    save_order(seeds, "tiny-seed1", rising(9)[:20], STEPS[:20], tensor="h.2.weight")
    found = pyd.gather("tiny-seed2", measure="order", tensor="h.10.weight", results=seeds)
    assert (found.attrs["tensor"], found.attrs["is_unembedding"]) == ("h.10.weight", False)
    np.testing.assert_array_equal(found["order_parameter"][0], rising(20))
    unembedding = pyd.gather("tiny-seed2", measure="order", tensor="unembedding", results=seeds)
    assert unembedding["order_parameter"].dims == ("run", "step")

    several = pyd.gather(["tiny-seed2", "tiny-seed1"], measure="order", tensor="h.*", results=seeds)
    assert several["tensor"].to_numpy().tolist() == ["h.2.weight", "h.10.weight"]  # by layer, not by name
    assert several["layer"].to_numpy().tolist() == [2, 10]
    assert several["run"].to_numpy().tolist() == ["tiny-seed2", "tiny-seed1"]
    assert several["seed"].to_numpy().tolist() == [2, 1]
    assert (several.attrs["tensor"], several.attrs["left_out"]) == ("h.*", {})
    b = several["order_parameter"].transpose("tensor", "run", "step")
    np.testing.assert_array_equal(b[1, 0], rising(20))
    np.testing.assert_array_equal(b[0, 0], rising(21))
    np.testing.assert_array_equal(b[0, 1], [*rising(9)[:20], *[np.nan] * 20])
    assert np.isnan(b[1, 1]).all()  # the run has no such tensor


def test_all_tensors_of_runs_that_lack_some(seeds: Path) -> None:
    save_order(seeds, "tiny-seed9", rising(9))
    next((seeds / "tiny-seed9").rglob("order.csv")).unlink()
    with pytest.warns(UserWarning, match="left out: tiny-seed9"):
        found = pyd.gather("tiny-*", measure="order", tensor="all", results=seeds)
    assert dict(found.sizes) == {"tensor": 1, "run": 3, "step": 41}
    with pytest.raises(PythiaDynError, match=r"order.csv is missing: run pythia-dyn order --model tiny-seed9"):
        pyd.gather(["tiny-seed2", "tiny-seed9"], measure="order", tensor="all", results=seeds)
    with pytest.raises(PythiaDynError, match=r"msd.csv is missing: run pythia-dyn msd"):
        pyd.gather("tiny-*", measure="msd", tensor="all", results=seeds)
    with pytest.raises(PythiaDynError, match="array; of several tensors gather a table"):
        pyd.gather("tiny-*", measure="density.zarr", tensor="all", results=seeds)
    with pytest.raises(PythiaDynError, match="whole models; leave out the tensor all"):
        pyd.gather("tiny-seed2", measure="perplexity-forward", tensor="all", results=seeds)


def test_tokens_and_learning_rates_are_over_the_step_where_they_agree(tmp_path: Path) -> None:
    rates = {"a-seed1": 1e-3, "a-seed2": 1e-3, "b-seed1": 2e-3}
    for number, (name, rate) in enumerate(rates.items()):
        known = {"tokens": (STEPS * 8).tolist(), "learning_rate": [None, *[rate] * (len(STEPS) - 1)]}
        save_order(tmp_path, name, rising(number), coordinates=known)
    same = pyd.gather("a-*", measure="order", results=tmp_path)
    assert (same["tokens"].dims, same["learning_rate"].dims) == (("step",), ("step",))
    np.testing.assert_array_equal(same["tokens"], STEPS * 8)
    assert np.isnan(same["learning_rate"][0])
    assert np.all(same["learning_rate"][1:] == 1e-3)
    apart = pyd.gather("*", measure="order", results=tmp_path)
    assert (apart["tokens"].dims, apart["learning_rate"].dims) == (("step",), ("run", "step"))
    assert apart["learning_rate"][:, 5].to_numpy().tolist() == list(rates.values())
    save_order(tmp_path, "c", rising(0))
    assert "tokens" not in pyd.gather("c", measure="order", results=tmp_path).coords


def test_a_column_that_some_runs_lack_is_a_gap_there(seeds: Path) -> None:
    path = seeds / "tiny-seed2" / "embed_out.weight" / "order.csv"
    frame = pd.read_csv(path)
    frame.assign(loss=5.0, dloss_db=0.5, dloss_db_backward=0.5).to_csv(path, index=False)
    found = pyd.gather("tiny-*", measure="order", results=seeds)
    assert np.isfinite(found["loss"].to_numpy()).sum(axis=1).tolist() == [40, 0, 0]


@pytest.mark.parametrize(
    ("name", "family", "kind", "number"),
    [
        ("pythia-160m-seed3", "pythia-160m", "seed", 3),
        ("pythia-160m-data-seed1", "pythia-160m", "data", 1),
        ("pythia-160m-weight-seed12", "pythia-160m", "weight", 12),
        ("multiberts-seed_4", "multiberts", "seed", 4),
        ("order-10k-seed0", "order-10k", "seed", 0),
        ("mine-seed2-stage1", "mine-stage1", "seed", 2),
        ("pythia-70m-deduped", "pythia-70m-deduped", "", np.nan),
        ("seedling-3", "seedling-3", "", np.nan),
    ],
)
def test_seeds_are_read_from_names(name: str, family: str, kind: str, number: float) -> None:
    found = seed_of(name)
    assert (found.family, found.kind) == (family, kind)
    np.testing.assert_equal(found.number, float(number))


def test_replicates_differ_in_one_kind_of_seed(tmp_path: Path) -> None:
    names = [
        "pythia-160m",
        "pythia-160m-seed1",
        "pythia-160m-data-seed1",
        "pythia-160m-weight-seed1",
        "pythia-70m-seed1",
    ]
    for number, name in enumerate(names):
        save_order(tmp_path, name, rising(number))
    found = replicates(curve_of(pyd.gather("pythia-*", measure="order", results=tmp_path)))
    assert {group: runs["run"].to_numpy().tolist() for group, runs in found.items()} == {
        "pythia-160m": names[:2],
        "pythia-160m, data seeds": [names[2]],
        "pythia-160m, weight seeds": [names[3]],
        "pythia-70m": [names[4]],
    }


def test_a_curve_is_chosen_by_name(pythia: Path) -> None:
    order = gathered("160m-seed*", "order", pythia)
    assert curve_of(order).name == "order_parameter"
    assert curve_of(order, "rms").name == "rms"
    with pytest.raises(UnknownNameError, match="did you mean rms"):
        curve_of(order, "rmss")
    rank = gathered("160m-seed*", "rank", pythia)
    chosen = curve_of(rank)
    assert chosen.attrs["selected"] == "B = 64, absolute tolerance 0.5"
    wanted = rank["rank"].sel({"batch_size": 64, "tolerance": 0.5, "convention": "absolute"})
    np.testing.assert_array_equal(chosen, wanted.transpose("run", "step"))
    values = gathered("160m-seed*", "spectrum.zarr", pythia)
    with pytest.raises(PythiaDynError, match="singular_values is over run, step, index, so it is no curve over steps"):
        curve_of(values, "singular_values")
    pairs = gathered("160m-seed*", "two_time", pythia)
    with pytest.raises(PythiaDynError, match="two_time has no curve over steps"):
        curve_of(pairs)


def test_values_per_parameter(pythia: Path) -> None:
    curve = curve_of(pyd.gather(["160m-seed1", "70m"], results=pythia))
    divided = per_parameter(curve)
    np.testing.assert_allclose(divided[1], curve[1] / SIZES["70m"].parameters)
    np.testing.assert_allclose(divided[0], curve[0] / SIZES["160m"].parameters)
    with pytest.raises(PythiaDynError, match="parameters of pythia-70m-deduped is not known"):
        per_parameter(curve.assign_coords(parameters=("run", [1.0, np.nan])))
