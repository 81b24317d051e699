"""The order parameter, and the loss against it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from support.walks import DTYPES, walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.order import backward_derivative, derivative, order_parameter
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_numpys(dtype):
    w = walk(4, 30, 8, dtype)
    result = order_parameter(w)
    norm = np.linalg.norm(w.reshape(4, -1).astype(np.float64), axis=1)
    np.testing.assert_allclose(result["frobenius_norm"], norm, rtol=1e-12)
    np.testing.assert_allclose(result["order_parameter"], norm / 8, rtol=1e-12)
    np.testing.assert_allclose(result["rms"], norm / np.sqrt(240), rtol=1e-12)
    assert "loss" not in result


def scaled(b):
    """Weights whose order parameter is b: one weight per step, d_model 1."""
    return np.asarray(b, dtype=np.float64)[:, None, None]


def test_dl_db_is_that_of_a_known_law_on_uneven_steps():
    steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 100, 150, 200, 300, 400])
    b = 1 + steps / 100
    history = History.from_array(scaled(b), steps)
    result = order_parameter(history, loss=3 - 2 * b)
    np.testing.assert_allclose(result["dloss_db"], -2, rtol=1e-9)
    quadratic = order_parameter(history, loss=dict(zip(steps.tolist(), (b - 2) ** 2, strict=True)))
    np.testing.assert_allclose(quadratic["dloss_db"][1:-1], 2 * (b[1:-1] - 2), rtol=1e-9, atol=1e-12)


def test_dl_db_is_nan_where_b_stalls_or_something_is_missing():
    steps = np.arange(7)
    b = np.array([1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0])
    slope = derivative(steps, b, np.arange(7.0))
    assert np.isnan(slope).tolist() == [False, False, False, True, False, False, False]
    loss = np.array([1, np.nan, 3, 4, 5, 6, 7])
    assert np.isnan(derivative(steps, b, loss)).tolist() == [False, True, False, True, False, False, False]
    assert np.isnan(derivative(steps[:1], b[:1], loss[:1])).all()


def test_the_backward_difference_is_the_mean_slope_since_the_step_before() -> None:
    b, loss = np.array([1.0, 2.0, 4.0, 4.0, 3.0]), np.array([5.0, 3.0, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(backward_derivative(b, loss), [np.nan, -2, -0.5, np.nan, 1])
    gap = np.array([5.0, np.nan, 2.0, 1.0, 0.0])
    np.testing.assert_array_equal(backward_derivative(b, gap), [np.nan, np.nan, -1, np.nan, 1])
    assert np.isnan(backward_derivative(b[:1], loss[:1])).all()
    assert np.isnan(backward_derivative(b, np.full(5, np.nan))).all()
    frames = np.array([1.0, 2.0, 4.0])[:, None, None] * np.ones((3, 2, 2))
    result = order_parameter(frames, loss=[5.0, 3.0, 2.0])
    np.testing.assert_allclose(result["dloss_db_backward"], [np.nan, -2, -0.5])
    np.testing.assert_allclose(result["dloss_db"][[0, 2]], [-2, -0.5])  # first order at both ends
    assert float(result["dloss_db"][1]) == -1


def test_a_loss_may_cover_a_part_of_the_steps():
    history = History.from_array(scaled([1.0, 2.0, 3.0, 4.0]), [10, 20, 30, 40])
    array = xr.DataArray([3.0, 2.0, 1.0], dims="step", coords={"step": [20, 30, 99]})
    for loss in ({20: 3.0, 30: 2.0, 99: 1.0}, array):
        result = order_parameter(history, loss=loss)
        np.testing.assert_array_equal(result["loss"], [np.nan, 3, 2, np.nan])
        np.testing.assert_allclose(result["dloss_db"], [np.nan, -1, -1, np.nan])
    with pytest.raises(PythiaDynError, match="4 steps"):
        order_parameter(history, loss=[1.0, 2.0])
    with pytest.raises(PythiaDynError, match="of none of the 4 steps"):
        order_parameter(history, loss={99: 1.0})
    assert np.isnan(order_parameter(history, loss={})["loss"]).all()


def test_the_kink_of_the_loss_is_an_attribute_without_the_untrained_model() -> None:
    b = np.linspace(1, 3, 81)
    loss = np.where(b < 1.8, 5 - 2 * b, 1.4 - 0.25 * (b - 1.8)) + 0.003 * np.random.default_rng(0).standard_normal(81)
    loss[0] = 20.0  # the untrained model, step 0
    found = order_parameter(History.from_array(scaled(b), np.arange(81)), loss=loss)["loss"].attrs
    assert found["kink_b"] == pytest.approx(1.8, abs=0.05)
    assert found["slope_before"] == pytest.approx(-2, abs=0.1)
    assert found["slope_after"] == pytest.approx(-0.25, abs=0.1)
    assert found["kink_ratio"] == pytest.approx(found["slope_before"] / found["slope_after"])
    assert found["kink_p"] < 0.01
    short = order_parameter(scaled(b[:11]), loss=loss[:11])["loss"].attrs
    assert not any(name.startswith(("kink", "slope")) for name in short)


def test_gaps_and_bad_weights_are_nan():
    w = walk(4, 6, 3, np.float16)
    w[2, 0, 0] = np.inf
    history = History.from_array(w, missing={1: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 1"), pytest.warns(NonFiniteWarning, match="step 2"):
        result = order_parameter(history, loss=[4.0, 3.0, 2.0, 1.0])
    assert np.isnan(result["order_parameter"].values).tolist() == [False, True, True, False]
    assert np.isfinite(result["dloss_db"].values).tolist() == [True, False, False, True]


def test_a_change_of_b_below_rounding_is_none():
    steps = np.array([0, 10, 30, 60])
    for scale in (1.0, 1e-6, 1e6):  # relative to b, per difference and not per step
        for change, known in ((1e-8, True), (1e-10, False)):
            b = scale * (1 + change * np.array([0.0, 1, 2, 3]))
            assert np.isfinite(derivative(steps, b, np.arange(4.0))).tolist() == [known] * 4
    assert np.isnan(derivative(steps, np.zeros(4), np.arange(4.0))).all()


def test_the_width_is_the_last_axis():
    w = walk(3, 10, 24, np.float64).reshape(3, 10, 4, 6)
    result = order_parameter(w)
    np.testing.assert_allclose(result["order_parameter"], result["frobenius_norm"] / 6, rtol=1e-15)
