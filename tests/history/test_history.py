"""What becomes a history, and what is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
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
