"""Angles, norms and the equilibrium of AdamW against plain NumPy, known rotations and a simulated optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.walks import DTYPES, walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.angles import EQUILIBRIUM, angle_from_lengths, angles, equilibrium_angle
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning

PLAIN = ("norm", "norm_null", "norm_growth", "relative_update", "angle", "angle_null", "interval")


def oracle(w, steps):
    """Everything of present steps, one pair at a time; the angle by Kahan's formula, 2 atan2(‖u − v‖, ‖u + v‖)."""
    w = np.array([frame.ravel() for frame in w.astype(np.float64)])
    norm = np.linalg.norm(w, axis=1)
    found = {"norm": norm, **{name: np.full(len(w), np.nan) for name in PLAIN if name != "norm"}}
    found["norm_null"][0] = norm[0]
    squares = norm[0] ** 2
    for t in range(1, len(w)):
        s, n = t - 1, steps[t] - steps[t - 1]
        moved = np.linalg.norm(w[t] - w[s])
        squares += moved**2
        u, v = w[s] / norm[s], w[t] / norm[t]
        found["interval"][t] = n
        found["norm_null"][t] = np.sqrt(squares)
        found["norm_growth"][t] = np.log(norm[t] / norm[s]) / n
        found["relative_update"][t] = moved / norm[s]
        found["angle"][t] = np.degrees(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))
        found["angle_null"][t] = np.degrees(np.arctan2(moved, norm[s]))
    return found


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 7),
    rows=st.integers(1, 70),
    columns=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1.0]),
)
def test_the_curves_are_those_of_the_formulas(length, rows, columns, dtype, seed, offset):
    w = (walk(length, rows, columns, np.float64, seed) + offset).astype(dtype)
    steps = np.cumsum(np.arange(1, length + 1) * 10)
    result, expected = angles(w, steps=steps.tolist()), oracle(w, steps)
    for name in PLAIN:
        # Norms have an error of 1e-7. A difference of two norms has it of the norms, and where the vectors differ
        # mostly in length, the angle has its square root.
        slack = 0.05 if name == "angle" else 1e-7 if name == "norm_growth" else 1e-12
        np.testing.assert_allclose(result[name], expected[name], rtol=2e-5, atol=slack, err_msg=name)


@pytest.mark.parametrize("degrees", [1e-9, 1e-5, 1e-3, 0.1, 30.0, 90.0, 150.0, 179.9])
def test_a_rotation_by_a_known_angle(degrees):
    turn = np.radians(degrees)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4000, 2)))
    w = np.array([np.cos(k * turn) * q[:, 0] + np.sin(k * turn) * q[:, 1] for k in range(4)]).reshape(4, 80, 50)
    result = angles(w)
    np.testing.assert_allclose(result["angle"][1:], degrees, rtol=2e-6)
    np.testing.assert_allclose(result["norm"], 1)
    np.testing.assert_allclose(result["norm_growth"][1:], 0, atol=1e-12)
    np.testing.assert_allclose(result["relative_update"][1:], 2 * np.sin(turn / 2), rtol=1e-6)


def test_float32_resolves_small_angles():
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((40_000, 2)))
    w = np.array([q[:, 0], q[:, 0] + np.tan(np.radians(0.002)) * q[:, 1]]).astype(np.float32)
    exact = oracle(w, [0, 1])["angle"][1]  # of the rounded weights
    assert exact == pytest.approx(0.002, rel=0.01)
    assert float(angles(w)["angle"][1]) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_growth_along_the_weights_has_no_angle(dtype):
    w = np.random.default_rng(0).standard_normal((200, 30))
    result = angles(np.array([w, 1.01 * w, 1.01**2 * w]).astype(dtype), steps=[0, 10, 20])
    assert (result["angle"][1:] < (3e-3 if dtype == np.float32 else 1e-6)).all()
    np.testing.assert_allclose(result["norm_growth"][1:], np.log(1.01) / 10, rtol=1e-5)
    np.testing.assert_allclose(result["angle_null"][1:], np.degrees(np.arctan(0.01)), rtol=1e-5)


def test_a_reversal_is_180_degrees_and_a_constant_0():
    w = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    result = angles(np.array([w, -w, -w]))
    np.testing.assert_allclose(result["angle"][1:], [180, 0], atol=1e-9)
    assert result["relative_update"][1:].values.tolist() == [pytest.approx(2), 0]
    assert result["norm_growth"][1:].values.tolist() == [0, 0]


def test_a_random_walk_is_its_null():
    rng = np.random.default_rng(1)
    w = np.cumsum(rng.standard_normal((20, 40_000, 4)) * np.linspace(1, 0.1, 20)[:, None, None], axis=0)
    result = angles(w)
    np.testing.assert_allclose(result["angle"][1:], result["angle_null"][1:], rtol=0.02)
    np.testing.assert_allclose(result["norm"], result["norm_null"], rtol=0.01)


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e20, 1e150])
def test_lengths_of_any_size_have_an_angle(scale):
    assert float(angle_from_lengths(3 * scale, 4 * scale, 5 * scale)) == pytest.approx(np.pi / 2)
    assert float(angle_from_lengths(scale, 2 * scale, scale)) == pytest.approx(0, abs=1e-7)
    assert np.isnan(angle_from_lengths([0, scale, 0], [scale, 0, 0], [scale, scale, 0])).all()


def test_gaps_zeros_and_bad_weights():
    w = walk(7, 40, 4, np.float32)
    w[2, 0, 0], w[5] = np.nan, 0
    history = History.from_array(w, steps=[0, 1, 2, 4, 8, 16, 32], missing={1: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 1"), pytest.warns(NonFiniteWarning, match="step 2"):
        result = angles(history)
    known = oracle(w[[0, 3, 4]], [0, 4, 8])
    for name in PLAIN:
        np.testing.assert_allclose(result[name][[0, 3, 4]], known[name], rtol=1e-4, err_msg=name)
        assert np.isnan(result[name][[1, 2]]).all()
    assert result["interval"][3:].values.tolist() == [4, 4, 8, 16]
    assert float(result["norm"][5]) == 0
    assert float(result["relative_update"][5]) == pytest.approx(1)
    for name in ("angle", "norm_growth"):
        assert np.isnan(result[name][5:]).all()
    assert np.isnan(result["relative_update"][6])


def test_one_step_has_a_norm_only():
    w = walk(1, 20, 3, np.float16)
    result = angles(w)
    assert float(result["norm"][0]) == pytest.approx(np.linalg.norm(w[0].astype(float)))
    assert all(np.isnan(result[name]).all() for name in PLAIN if not name.startswith("norm") or "growth" in name)
    with pytest.warns(NonFiniteWarning):
        nothing = angles(np.full((2, 3, 2), np.inf, np.float32))
    assert all(np.isnan(nothing[name]).all() for name in PLAIN)


def test_it_shares_the_pass_of_msd():
    w = walk(6, 40, 5, np.float16)
    passes = []
    analyse(w, ["msd", "angles"], compute=Compute(progress=lambda done, total: passes.append(done)))
    alone = []
    analyse(w, ["msd"], compute=Compute(progress=lambda done, total: alone.append(done)))
    assert passes == alone


def adamw(rate, decay, steps, beta1=0.9, size=20_000, every=1):
    """AdamW of random gradients from its equilibrium norm; the weights after each `every` steps."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(size) * np.sqrt(rate / (2 * decay))
    m, v, beta2, kept = np.zeros(size), np.ones(size), 0.999, []
    for step in range(-60, steps):
        g = rng.standard_normal(size)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w * (1 - rate * decay) - rate * m / np.sqrt(v)
        if step >= 0 and step % every == 0:
            kept.append(w)
    return np.array(kept)


@pytest.mark.parametrize(("every", "beta1"), [(1, 0.0), (1, 0.9), (5, 0.9), (100, 0.9)])
def test_the_equilibrium_is_that_of_a_simulated_adamw(every, beta1):
    rate, decay = 0.01, 0.1
    w = adamw(rate, decay, 8 * every, beta1, every=every)
    steps = np.arange(len(w)) * every
    history = History.from_array(w[:, :, None], steps, learning_rate=dict.fromkeys(steps.tolist(), rate))
    result = angles(history, weight_decay=decay, beta1=beta1)
    np.testing.assert_allclose(result["angle"][1:], result["equilibrium_angle"][1:], rtol=0.03)
    np.testing.assert_allclose(result["relative_update"][1:], result["equilibrium_update"][1:], rtol=0.03)
    np.testing.assert_allclose(result["norm"], result["equilibrium_norm"], rtol=0.03)


def test_the_equilibrium_angle_is_a_root_and_then_a_right_angle():
    assert float(equilibrium_angle(1e-4, 0.1, 1, beta1=0)) == pytest.approx(np.sqrt(2 * 1e-4 * 0.1), rel=1e-4)
    kosson = np.sqrt(2 * 1e-4 * 0.1 * 0.1 / 1.9)
    assert float(equilibrium_angle(1e-4, 0.1, 1)) == pytest.approx(kosson, rel=1e-4)
    short, long = equilibrium_angle(1e-6, 0.1, np.array([1000, 4000]))
    assert long / short == pytest.approx(2, rel=0.01)
    assert float(equilibrium_angle(1.0, 1.0, 1e9)) == pytest.approx(np.pi / 2)
    assert np.cos(equilibrium_angle(1e-3, 0.1, 5000, beta1=0)) == pytest.approx(np.exp(-0.5))


def test_the_equilibrium_uses_the_mean_rate_over_a_gap():
    w = walk(4, 30, 4, np.float32)
    history = History.from_array(w, [0, 10, 20, 30], missing={10: "lost"}, learning_rate={0: 0.4, 30: 0.1})
    with pytest.warns(MissingStepsWarning):
        result = angles(history, weight_decay=0.1)
    assert float(result["equilibrium_angle"][2]) == pytest.approx(np.degrees(equilibrium_angle(0.3, 0.1, 20)))
    assert float(result["equilibrium_norm"][3]) == pytest.approx(np.sqrt(0.1 * 120 / 0.2))
    assert np.isnan(result["equilibrium_norm"][1])
    assert result["equilibrium_angle"].attrs["weight_decay"] == 0.1


def test_bad_options_and_an_unknown_rate_are_refused():
    w = walk(3, 9, 2, np.float32)
    rated = History.from_array(w, learning_rate={0: 0.1, 2: 0.1})
    assert not set(EQUILIBRIUM) & set(angles(rated).data_vars)
    for decay in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(PythiaDynError, match="weight decay must be positive"):
            angles(rated, weight_decay=decay)
    for beta1 in (-0.1, 1.0):
        with pytest.raises(PythiaDynError, match="beta1"):
            angles(rated, weight_decay=0.1, beta1=beta1)
    with pytest.raises(PythiaDynError, match="needs the learning rate of array"):
        angles(w, weight_decay=0.1)
    with pytest.raises(PythiaDynError, match="too large"):
        angles(1e200 * walk(2, 3, 3, np.float64))


def test_equal_weights_of_any_size_have_a_norm():
    result = angles(np.full((2, 3, 3), 1e200))
    np.testing.assert_allclose(result["norm"], 3e200)
    assert result["angle"].values.tolist() == [pytest.approx(np.nan, nan_ok=True), 0]
