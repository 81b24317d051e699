import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.saved_results import save_table

from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.results.losses import known_loss, read_losses

STEPS = np.array([3000, 1000, 2000])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results("suite", tmp_path)


def table(**columns: list[float]) -> xr.Dataset:
    return xr.Dataset({name: ("step", values) for name, values in columns.items()}, {"step": STEPS})


def test_a_table_has_the_promised_columns_in_step_order(results: Results) -> None:
    path = save_table(results, "order", table(order_parameter=[3.5, 1.0, np.nan], frobenius_norm=[9.0, 7.0, 8.0]))
    assert path == results.of(EMBED_OUT).path / "order.csv"
    assert path.read_text().splitlines() == [
        "step,frobenius_norm,order_parameter",
        "1000,7.0,1.0",
        "2000,8.0,",
        "3000,9.0,3.5",
    ]


def test_numbers_come_back_to_the_last_bit(results: Results) -> None:
    values = [0.1 + 0.2, 1e-300, np.nan]
    save_table(results, "order", table(order_parameter=values, frobenius_norm=values, rms=values))
    back = results.weights().read_table("order")
    np.testing.assert_array_equal(back["order_parameter"].sel(step=STEPS), values)


def test_a_table_of_several_coordinates_is_long(results: Results) -> None:
    dataset = xr.Dataset(
        {
            name: (("step", "batch_size", "tolerance", "convention"), np.arange(12.0).reshape(3, 2, 1, 2))
            for name in ("rank", "rank_se", "rank_difference")
        },
        {"step": STEPS, "batch_size": [16, 32], "tolerance": [0.5], "convention": ["absolute", "relative"]},
    )
    lines = save_table(results, "rank", dataset).read_text().splitlines()
    assert lines[0] == "step,batch_size,tolerance,convention,rank,rank_se,rank_difference"
    assert lines[1] == "1000,16,0.5,absolute,4.0,4.0,4.0"
    assert len(lines) == 13
    back = results.weights().read_table("rank").transpose("step", "batch_size", "tolerance", "convention")
    np.testing.assert_array_equal(back["rank"].sel(step=STEPS), dataset["rank"])


def test_arrays_are_replaced_whole(results: Results) -> None:
    for value in (1.0, 2.0):
        results.weights().write_zarr("density", table(counts=[value] * 3))
    assert results.weights().read_zarr("density")["counts"].values.tolist() == [2.0] * 3
    assert [path.name for path in results.weights().path.iterdir()] == ["density.zarr"]


def test_a_failed_write_leaves_the_old_result(results: Results) -> None:
    results.weights().write_zarr("density", table(counts=[1.0] * 3))
    broken = xr.Dataset({"counts": ("step", np.array([object(), object()], dtype=object))})
    with pytest.raises(Exception, match="object"):
        results.weights().write_zarr("density", broken)
    assert results.weights().read_zarr("density")["counts"].values.tolist() == [1.0] * 3


def test_provenance_gathers_what_made_each_result(results: Results) -> None:
    results.record("msd", {"commits": {"1000": "abc"}})
    path = results.record("order", {"commits": {}})
    content = json.loads(path.read_text())
    assert set(content) == {"msd", "order"}
    assert content["msd"]["commits"] == {"1000": "abc"}
    assert {"torch", "numpy", "zarr"} <= set(content["msd"]["packages"])


def test_what_is_not_there_says_how_to_make_it(results: Results) -> None:
    with pytest.raises(PythiaDynError, match=r"run pythia-dyn msd --model suite"):
        results.weights().read_table("msd")
    with pytest.raises(PythiaDynError, match=r"run pythia-dyn density --model suite"):
        results.weights().read_zarr("density")
    with pytest.raises(PythiaDynError, match=r"run pythia-dyn two-time --model suite"):
        results.weights().read_zarr("two_time")
    for kind, command in (
        ("moments", "density"),
        ("rank-infinite", "rank"),
        ("perplexity-last-word", "perplexity --mode last-word"),
    ):
        with pytest.raises(PythiaDynError, match=rf"run pythia-dyn {command} --model suite"):
            results.read_table(kind)


@pytest.mark.parametrize(
    ("name", "text", "losses"),
    [
        ("a.csv", "step,loss\n1,2.5\n2,\n3,1.5\n", {1: 2.5, 3: 1.5}),
        ("perplexity-forward.csv", "step,ppl_mean,nll_mean\n1,9,2.5\n", {1: 2.5}),
        ("losses.csv", "step,train_loss,validation_loss\n1,2.5,2.6\n", {1: 2.5}),
        ("twice.csv", "step,loss\n1,2.5\n1,2.25\n", {1: 2.25}),
        ("log.jsonl", '{"step": 1, "loss": 2.5}\n{"step": 1, "lr": 1}\n{"step": 2, "loss": 2}\n', {1: 2.5, 2: 2.0}),
        (
            "trainer_state.json",
            '{"log_history": [{"step": 10, "loss": 2.5}, {"step": 10, "eval_loss": 3}, {"step": 20, "loss": 2}]}',
            {10: 2.5, 20: 2.0},
        ),
        ("trainer_state.json", '{"log_history": [{"step": 10, "eval_loss": 3}]}', {10: 3.0}),
    ],
)
def test_losses_are_read_from_logs_of_every_kind(
    tmp_path: Path, name: str, text: str, losses: dict[int, float]
) -> None:
    (tmp_path / name).write_text(text)
    assert read_losses(tmp_path / name) == losses
    assert all(type(step) is int for step in read_losses(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "step,ppl\n1,2\n", "must have the columns step and loss"),
        ("a.csv", "loss\n1\n", "must have the columns step and loss"),
        ("a.csv", "step,loss\n1,much\n", "must have a number, or nothing, in the column loss of every row"),
        ("a.csv", "step,loss\nx,2\n", "must have a whole number in the column step of every row"),
        ("a.csv", "step,loss\n1.5,2\n", "whole number"),
        ("a.csv", "", "cannot read losses from .*: it is empty"),
        ("a.csv", "step,loss\n1,2,3\n1,2,3,4\n", "cannot read losses from .*: Error tokenizing"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{', "line 2 is no JSON object"),
        ("a.jsonl", "[1]", "line 1 is no JSON object"),
        ("a.jsonl", '{"step": 1, "loss": {"a": 2}}', "must have a number"),
        ("a.json", "{", r"it is no JSON \(line 1\)"),
        ("a.json", "{}", "is no trainer_state.json: it must have a list log_history"),
        ("a.json", "[1]", "is no trainer_state.json"),
        ("a.json", '{"log_history": 3}', "is no trainer_state.json: it must have a list log_history"),
        ("a.json", '{"log_history": [3]}', "is no trainer_state.json"),
        ("a.json", '{"log_history": []}', "must have the columns step and loss .*; it has none"),
    ],
)
def test_other_losses_are_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PythiaDynError, match=message) as caught:
        read_losses(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PythiaDynError, match="it is not text"):
        read_losses(tmp_path / name)
    with pytest.raises(PythiaDynError, match="cannot read losses"):
        read_losses(tmp_path / "absent.csv")


def test_the_forward_perplexity_goes_before_the_log_of_the_suite(results: Results, tmp_path: Path) -> None:
    suite = tmp_path / "directory"
    assert known_loss(results, str(suite)) is None
    suite.mkdir()
    (suite / "losses.csv").write_text("step,train_loss,validation_loss\n1,2.5,2.75\n")
    assert known_loss(results, str(suite)) == ({1: 2.75}, str(suite / "losses.csv"))
    (suite / "losses.csv").write_text("step,loss\n1,2.5\n")
    assert known_loss(results, str(suite)) == ({1: 2.5}, str(suite / "losses.csv"))
    results.path.mkdir()
    (results.path / "perplexity-forward.csv").write_text("step,nll_mean\n1,3.5\n")
    assert known_loss(results, str(suite)) == ({1: 3.5}, str(results.path / "perplexity-forward.csv"))


def test_the_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert results_directory() == Path("results")
    monkeypatch.setenv("PYTHIA_DYN_RESULTS", "elsewhere")
    assert results_directory() == Path("elsewhere")
    assert results_directory("here") == Path("here")


def test_a_folder_shows_its_files(results: Results) -> None:
    assert repr(results) == f"<Results {results.path}: no files yet>"
    save_table(results, "order", table(order_parameter=[3.5, 1.0, 2.0], frobenius_norm=[9.0, 7.0, 8.0]))
    assert "order.csv" in repr(results.of(EMBED_OUT))
    assert "<td>order.csv</td>" in results.of(EMBED_OUT)._repr_html_()
