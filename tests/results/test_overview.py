"""All tensors of a model side by side, from their saved results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.overview import has_overview, overview, write_overview
from pythia_dynamics.studies.pipeline import measure

QUERY, LATE, HEAD = (
    "gpt_neox.layers.2.attention.query_key_value.weight",
    "gpt_neox.layers.10.attention.query_key_value.bias",
    "embed_out.weight",
)
STEPS = {HEAD: [0, 10, 20], QUERY: [0, 10, 20], LATE: [0, 20, 30]}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    found = Results("model", tmp_path)
    for seed, (tensor, steps) in enumerate(STEPS.items()):
        weights = np.random.default_rng(seed).standard_normal((3, 12, 4))
        measure(History.from_array(weights, steps, name="model", tensor=tensor), ["order"], found, draw=False)
    return found


def test_it_is_each_table_in_the_order_of_the_model(results: Results) -> None:
    found = overview(results, "order")
    assert found["tensor"].to_numpy().tolist() == [QUERY, LATE, HEAD]
    assert found["layer"].to_numpy().tolist() == [2, 10, -1]
    assert found["kind"].to_numpy().tolist() == ["query-key-value", "query-key-value", "unembedding"]
    assert found["is_bias"].to_numpy().tolist() == [False, True, False]
    assert found["step"].to_numpy().tolist() == [0, 10, 20, 30]
    for tensor, steps in STEPS.items():
        own, joined = results.of(tensor).read_table("order"), found.sel(tensor=tensor)
        for name in own.data_vars:
            np.testing.assert_array_equal(joined[name].sel(step=steps), own[name])
            assert np.isnan(joined[name].sel(step=sorted({0, 10, 20, 30} - set(steps)))).all()


def test_some_tensors_and_the_name_of_the_model(results: Results) -> None:
    root = results.path.parent
    assert overview("model", "order", tensors=["*.attention.*"], results=root).sizes["tensor"] == 2
    assert overview(results.of(QUERY), "order").sizes["tensor"] == 3
    with pytest.raises(UnknownNameError):
        overview(results, "order", tensors=["no.such.*"])


def test_what_has_not_been_measured_is_left_out_or_an_error(results: Results) -> None:
    weights = np.random.default_rng(0).standard_normal((3, 12, 4))
    measure(History.from_array(weights, name="model", tensor=HEAD), ["spectrum"], results, draw=False)
    assert overview(results, "spectrum")["tensor"].to_numpy().tolist() == [HEAD]
    with pytest.raises(PythiaDynError, match="run pythia-dyn msd --model model --tensor all"):
        overview(results, "msd")
    for measured in ("rank", "two_time"):
        assert not has_overview(measured)
        with pytest.raises(PythiaDynError, match="no table with one row per step"):
            overview(results, measured)
    with pytest.raises(UnknownNameError):
        overview(results, "sepctrum")
    (results.of(QUERY).path / "order.csv").write_text("step,b\n0,x\n")
    with pytest.raises(FormatError, match="damaged"):
        overview(results, "order")


def test_the_file_has_a_row_for_each_tensor_and_step(results: Results) -> None:
    path, dataset = write_overview(results.of(HEAD), "order")
    assert path == results.path / "overview-order.csv"
    table = pd.read_csv(path)
    assert table["tensor"].tolist() == [name for name in (QUERY, LATE, HEAD) for _ in range(4)]  # layer 2 before 10
    assert table["layer"].tolist() == [2] * 4 + [10] * 4 + [-1] * 4
    np.testing.assert_allclose(table["rms"], dataset["rms"].to_numpy().ravel(), rtol=1e-12)
    assert table["rms"].isna().sum() == 3
    assert results.tensors == tuple(sorted(STEPS))  # the files beside the folders are not taken for a tensor
