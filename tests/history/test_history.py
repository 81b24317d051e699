"""What becomes a history, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.measures.order import order_parameter
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning

WEIGHTS = np.random.default_rng(0).standard_normal((3, 20, 4)).astype(np.float32)


def test_a_masked_step_is_missing():
    masked = np.ma.masked_array(WEIGHTS.copy(), mask=np.zeros(WEIGHTS.shape, bool))
    masked.mask[1] = True
    masked.data[1] = 999
    history = as_history(masked)
    assert history.missing == {1: "masked"}
    with pytest.warns(MissingStepsWarning):
        assert np.isnan(msd(history)["displacement"].values).tolist() == [False, True, False]
    masked.mask[1, 0, 0] = False
    with pytest.raises(PythiaDynError, match="step 1 is masked in part"):
        as_history(masked)


def test_a_data_array_brings_its_steps():
    array = xr.DataArray(WEIGHTS, dims=("step", "token", "unit"), coords={"step": [0, 1000, 5000]})
    assert as_history(array).steps.tolist() == [0, 1000, 5000]
    turned = as_history(array.transpose("token", "unit", "step"))
    np.testing.assert_array_equal(turned.at(1000), WEIGHTS[1])
    assert History.from_array(array, [1, 2, 3]).steps.tolist() == [1, 2, 3]


def test_tensors_of_torch():
    tensor = torch.from_numpy(WEIGHTS)
    np.testing.assert_array_equal(as_history(tensor.clone().requires_grad_()).at(2), WEIGHTS[2])
    brain = as_history(tensor.bfloat16())
    assert brain.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(brain.at(2), WEIGHTS[2].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 4, 0), (0, 3, 4)])
def test_no_weights_are_no_history(shape):
    with pytest.raises(PythiaDynError, match="there are no weights"):
        as_history(np.zeros(shape))


@pytest.mark.parametrize("rows", [0, 21, 4.5, True, "tokenizer"])
def test_rows_to_keep_are_a_number_of_rows(rows):
    with pytest.raises(PythiaDynError, match="rows must be a whole number from 1 to 20"):
        msd(WEIGHTS, compute=Compute(rows=rows))


def test_a_loss_finds_its_steps():
    history = History.from_array(WEIGHTS, [0, 1000, 2000])
    for loss in (
        {2000: 3.0, 0: 1.0, 1000: None},
        pd.Series([3.0, 1.0], index=[2000, 0]),
        xr.DataArray([3.0, 1.0], dims="step", coords={"step": [2000, 0]}),
        [1.0, np.nan, 3.0],
    ):
        np.testing.assert_array_equal(order_parameter(history, loss=loss)["loss"], [1, np.nan, 3])  # type: ignore[arg-type]
    with pytest.raises(PythiaDynError, match="none of the 3 steps"):
        order_parameter(history, loss={"0": 1.0})  # type: ignore[dict-item]


def test_a_history_shows_itself_in_a_line_and_in_a_table() -> None:
    weights = np.zeros((143, 4, 2), np.float16)
    history = History.from_array(weights, range(1000, 143_001, 1000), name="a<b", missing={2000: "lost & found"})
    assert repr(history) == ("<History a<b weights: float16[4, 2], 143 steps 1000 … 143000, 1 missing, 2.3 kB>")
    html = history._repr_html_()
    assert "<caption>History a&lt;b</caption>" in html
    assert "2000: lost &amp; found" in html
    assert "143 steps (1000, 2000, 3000, 4000 … 143000)" in html
    many = History.from_array(weights, missing=dict.fromkeys(range(9), "gone"))
    assert "4: gone; and 4 more" in many._repr_html_()
    assert repr(History.from_array(weights[:1])) == "<History array weights: float16[4, 2], 1 step 0, 16 B>"


def test_a_history_is_indexed_by_position_and_by_step() -> None:
    weights = np.arange(48, dtype=np.float32).reshape(6, 4, 2)
    history = History.from_array(weights, [1, 2, 4, 8, 16, 32], missing={4: "gone"})
    assert len(history) == 6
    np.testing.assert_array_equal(history[-1], weights[5])
    np.testing.assert_array_equal(history.sel(step=8), weights[3])
    np.testing.assert_array_equal(history.sel(np.int64(8)), weights[3])
    for found, steps in (
        (history[1:3], [2, 4]),
        (history[::-2], [2, 8, 32]),
        (history.sel(slice(2, 8)), [2, 4, 8]),
        (history.sel(slice(None, None, 2)), [1, 4, 16]),
        (history.sel([32, 1]), [1, 32]),
        (history.sel(slice(40, None)), []),
    ):
        assert isinstance(found, History)
        assert found.steps.tolist() == steps
        assert list(found.missing) == [step for step in steps if step == 4]
    with pytest.raises(PythiaDynError, match="step 4 of array is missing: gone"):
        history[2]
    with pytest.raises(UnknownNameError, match="no step 5"):
        history.sel(5)
    with pytest.raises(IndexError):
        history[6]


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_weights_in_the_byte_order_of_another_machine_are_the_same_weights(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal((4, 10, 3)).astype(dtype)
    history, native = History.from_array(values), values.astype(values.dtype.newbyteorder("="))
    assert history.dtype == native.dtype
    assert history.dtype.isnative
    assert np.array_equal(np.asarray(history.weights), native)
    assert msd(values).identical(msd(native))
    assert values.dtype == dtype


def test_a_plain_array_has_the_steps_that_it_is_given() -> None:
    weights = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    assert msd(weights, steps=[1, 2, 4, 8])["step"].to_numpy().tolist() == [1, 2, 4, 8]
    assert analyse(weights, ["msd", "order"], steps=(5, 6, 7, 8))["order"]["step"].to_numpy().tolist() == [5, 6, 7, 8]
    history = History.from_array(weights, [1, 2, 4, 8])
    assert msd(history, steps=[2, 8])["step"].to_numpy().tolist() == [2, 8]
    with pytest.raises(PythiaDynError, match="steps must be 4 strictly increasing integers"):
        msd(weights, steps=[1, 2])


def test_a_result_is_no_weights() -> None:
    found = msd(np.zeros((3, 2, 2), np.float32))
    with pytest.raises(PythiaDynError, match=r"weights are a History, .* not a Dataset of msd, msd_null"):
        msd(found)
