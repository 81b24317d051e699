import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results import Results, results_directory

STEPS = np.array([3000, 1000, 2000])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results("suite", tmp_path)


def table(**columns: list[float]) -> xr.Dataset:
    return xr.Dataset({name: ("step", values) for name, values in columns.items()}, {"step": STEPS})


def test_a_table_has_the_promised_columns_in_step_order(results: Results) -> None:
    path = results.write_table("order", table(order_parameter=[3.5, 1.0, np.nan], frobenius_norm=[9.0, 7.0, 8.0]))
    assert path == results.path / "order.csv"
    assert path.read_text().splitlines() == [
        "step,frobenius_norm,order_parameter",
        "1000,7.0,1.0",
        "2000,8.0,",
        "3000,9.0,3.5",
    ]


def test_numbers_come_back_to_the_last_bit(results: Results) -> None:
    values = [0.1 + 0.2, 1e-300, np.nan]
    results.write_table("order", table(order_parameter=values))
    back = results.read_table("order")
    np.testing.assert_array_equal(back["order_parameter"].sel(step=STEPS), values)


def test_a_table_of_several_coordinates_is_long(results: Results) -> None:
    dataset = xr.Dataset(
        {"rank": (("step", "batch_size", "tolerance", "convention"), np.arange(12.0).reshape(3, 2, 1, 2))},
        {"step": STEPS, "batch_size": [16, 32], "tolerance": [0.5], "convention": ["absolute", "relative"]},
    )
    lines = results.write_table("rank", dataset).read_text().splitlines()
    assert lines[0] == "step,batch_size,tolerance,convention,rank"
    assert lines[1] == "1000,16,0.5,absolute,4.0"
    assert len(lines) == 13
    back = results.read_table("rank").transpose("step", "batch_size", "tolerance", "convention")
    np.testing.assert_array_equal(back["rank"].sel(step=STEPS), dataset["rank"])


def test_arrays_are_replaced_whole(results: Results) -> None:
    for value in (1.0, 2.0):
        results.write_zarr("density", table(counts=[value] * 3))
    assert results.read_zarr("density")["counts"].values.tolist() == [2.0] * 3
    assert [path.name for path in results.path.iterdir()] == ["density.zarr"]


def test_a_failed_write_leaves_the_old_result(results: Results) -> None:
    results.write_zarr("density", table(counts=[1.0] * 3))
    broken = xr.Dataset({"counts": ("step", np.array([object(), object()], dtype=object))})
    with pytest.raises(Exception, match="object"):
        results.write_zarr("density", broken)
    assert results.read_zarr("density")["counts"].values.tolist() == [1.0] * 3


def test_provenance_gathers_what_made_each_result(results: Results) -> None:
    results.record("msd", {"commits": {"1000": "abc"}})
    path = results.record("order", {"commits": {}})
    content = json.loads(path.read_text())
    assert set(content) == {"msd", "order"}
    assert content["msd"]["commits"] == {"1000": "abc"}
    assert {"torch", "numpy", "zarr"} <= set(content["msd"]["packages"])


def test_what_is_not_there_says_how_to_make_it(results: Results) -> None:
    with pytest.raises(PythiaDynError, match=r"run pythia-dyn msd --model suite"):
        results.read_table("msd")
    with pytest.raises(PythiaDynError, match=r"run pythia-dyn density --model suite"):
        results.read_zarr("density")


def test_the_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert results_directory() == Path("results")
    monkeypatch.setenv("PYTHIA_DYN_RESULTS", "elsewhere")
    assert results_directory() == Path("elsewhere")
    assert results_directory("here") == Path("here")
