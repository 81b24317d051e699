"""The values behind the heat map tensor × step, as the script of the page expands them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.saved_populations import BIAS, GONE, MLP, NORM, STEPS, TENSORS, save_runs

from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.report.heatmap import HeatMap, decode_column, heat_map, read_step_tables
from pythia_dynamics.report.parts import heat_map_part
from pythia_dynamics.results.folder import Results


def tables(values: Any, name: str = "order", column: str = "rms") -> dict[str, xr.Dataset]:
    """One table with one column over tensors, runs and steps."""
    tensors, runs, steps = np.shape(values)
    return {
        name: xr.Dataset(
            {column: (("tensor", "run", "step"), np.asarray(values, float))},
            {
                "tensor": [f"t{i:02}" for i in range(tensors)],
                "run": [f"r{i}" for i in range(runs)],
                "step": np.arange(steps),
            },
        )
    }


def shown(map_: HeatMap | None, table: int = 0, column: int = 0) -> np.ndarray:
    """The values of a column as the page has them, over tensors, runs and steps."""
    assert map_ is not None
    content = json.loads(heat_map_part(map_)["content"])
    chosen = content["tables"][table]
    shape = len(content["tensors"]), len(content["runs"]), len(chosen["steps"])
    return decode_column(chosen["columns"][column], shape)


@example(np.array([[[1.79769e308, np.inf]]]))
@example(np.array([[[1.79769e308, 1.0, np.inf]]]))
@settings(max_examples=200, deadline=None)
@given(
    arrays(
        float,
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12)),
        elements=st.one_of(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(1e-9, 1e9),
            st.sampled_from([0.0, -0.0, 1.0, np.nan, 5e-324, 1.7e308, -1.7e308]),
        ),
    )
)
def test_a_value_is_exact_to_half_a_step_of_the_scale_of_its_row(values: np.ndarray) -> None:
    made = heat_map("map", tables(values))
    if not np.isfinite(values).any():
        assert made is None
        return
    found = shown(made)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(values))
    for row, wanted in zip(found, values, strict=True):
        known = np.isfinite(wanted)
        if not known.any():
            continue
        low, high = wanted[known].min(), wanted[known].max()
        if low > 0 and high / 10 >= low:
            allowed = wanted[known] * (np.exp((np.log(high) - np.log(low)) / 131_000) - 1)
        else:
            allowed = np.full(known.sum(), high / 131_000 - low / 131_000)
        rounding = 1e-12 * np.maximum(abs(low), abs(high)) + 5e-324
        assert (np.abs(row[known] / 2 - wanted[known] / 2) <= allowed / 2 + rounding).all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return save_runs(tmp_path_factory.mktemp("runs"))


def test_the_values_are_those_of_the_files_of_the_runs(runs: list[Results]) -> None:
    found, notes = read_step_tables(runs)
    assert notes == []
    made = heat_map("map", found)
    assert made is not None
    content = made.content
    assert [one["name"] for one in content["tensors"]] == [MLP, BIAS, NORM, EMBED_OUT]
    assert [one["label"] for one in content["tensors"]] == ["0 mlp-in", "0 mlp-in bias", "1 norm", "unembedding"]
    assert made.runs == tuple(run.name for run in runs)
    assert {table["name"] for table in content["tables"]} == {"msd", "order"}
    for number, table in enumerate(content["tables"]):
        assert table["steps"] == STEPS.tolist()
        for place, column in enumerate(table["columns"]):
            values = shown(made, number, place)
            for row, tensor in enumerate(TENSORS):
                saved = [run.of(tensor).read_table(table["name"])[column["name"]] for run in runs]
                wanted = np.stack([one.reindex(step=STEPS).to_numpy() for one in saved])
                np.testing.assert_array_equal(np.isnan(values[row]), ~np.isfinite(wanted))
                known = wanted[np.isfinite(wanted)]
                close = np.ptp(known) / 1e5 if known.size else 0
                ratio = np.log(known.max() / known.min()) / 1e5 if known.size and known.min() > 0 else 0
                np.testing.assert_allclose(
                    values[row], np.where(np.isfinite(wanted), wanted, np.nan), rtol=ratio, atol=close
                )
    gone = STEPS.tolist().index(GONE)
    rms = shown(made, *map(int, content["chosen"].split()))
    assert np.isnan(rms[0, :, gone]).all()
    assert np.isfinite(rms[1:]).all()


def test_a_run_and_a_tensor_that_lack_a_table_are_gaps(tmp_path: Path) -> None:
    made = save_runs(tmp_path, seeds=3)
    (made[1].of(NORM).path / "order.csv").unlink()
    for tensor in TENSORS:
        (made[2].of(tensor).path / "msd.csv").unlink()
    found, notes = read_step_tables(made)
    assert notes == []
    map_ = heat_map("map", found)
    assert map_ is not None
    names = [table["name"] for table in map_.content["tables"]]
    order, msd = shown(map_, names.index("order")), shown(map_, names.index("msd"))
    assert np.isnan(order[TENSORS.index(NORM), 1]).all()
    assert np.isfinite(order[TENSORS.index(NORM), [0, 2]]).all()
    assert np.isnan(msd[:, 2]).all()
    assert np.isfinite(msd[-1, :2]).all()


def test_runs_of_different_steps_are_over_all_of_them(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(1, 2, 6)
    one = tables(values)["order"]
    joined = xr.concat([one.isel(run=[0], step=[0, 1, 2]), one.isel(run=[1], step=[2, 3, 4])], "run", join="outer")
    found = shown(heat_map("map", {"order": joined}))
    assert np.isnan(found[0, 0]).tolist() == [False] * 3 + [True] * 2
    assert np.isnan(found[0, 1]).tolist() == [True] * 2 + [False] * 3


@pytest.mark.parametrize("most", [200_000, 20_000, 1])
def test_what_has_no_room_is_thinned_evenly_and_said(most: int) -> None:
    values = np.random.default_rng(0).normal(size=(20, 4, 143))
    made = heat_map("map", tables(values), most=most)
    assert made is not None
    steps = made.content["tables"][0]["steps"]
    assert steps[0] == 0
    assert steps[-1] == 142  # the last record stays
    assert len(set(np.diff(steps[:-1]))) <= 1
    size = len(made.content["tables"][0]["columns"][0]["codes"])
    if most == 1:
        assert len(steps) == 2
    else:
        assert size <= most
    assert ("one is shown" in made.caption) == (len(steps) < 143)
    np.testing.assert_allclose(shown(made), values[..., steps], atol=1e-4)


def test_nothing_to_show() -> None:
    assert heat_map("map", {}) is None
    assert heat_map("map", tables(np.full((2, 2, 3), np.nan))) is None


def test_names_cannot_end_the_script() -> None:
    table = tables(np.arange(4.0).reshape(1, 2, 2))["order"].assign_coords(run=["</script><b>", "a&b"])
    made = heat_map("map", {"order": table}, ["</script> is not shown"])
    assert made is not None
    content = heat_map_part(made)["content"]
    assert "<" not in content
    assert json.loads(content)["runs"] == ["</script><b>", "a&b"]
