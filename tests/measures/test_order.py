"""The order parameter, and the loss against it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from support.walks import DTYPES, walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.order import _PHI_GRID, backward_derivative, break_in_line, derivative, order_parameter
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


def test_the_break_of_two_lines_is_found():
    rng = np.random.default_rng(0)
    b = np.linspace(1, 3, 81)
    loss = np.where(b < 1.8, 5 - 2 * b, 1.4 - 0.25 * (b - 1.8)) + 0.01 * rng.standard_normal(81)
    result = order_parameter(scaled(b), loss=loss)
    found = result["loss"].attrs
    assert found["break_b"] == pytest.approx(1.8, abs=0.05)
    assert found["slope_before"] == pytest.approx(-2, abs=0.05)
    assert found["slope_after"] == pytest.approx(-0.25, abs=0.05)
    assert found["break_p"] == pytest.approx(0.001)
    # the F statistic by brute force over all breaks
    rest = [residual(b, loss, c) for c in b[2:-2]]
    line = residual(b, loss, None)
    assert found["break_f"] == pytest.approx((line - min(rest)) / 2 / (min(rest) / 77), rel=1e-6)


def residual(x, y, at):
    columns = [np.ones_like(x), x] + ([] if at is None else [np.maximum(x - at, 0)])
    design = np.column_stack(columns)
    return np.sum((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2)


def test_the_test_for_a_break_keeps_its_level():
    rng = np.random.default_rng(1)
    x = np.sort(rng.uniform(0, 1, 30))
    p = np.array([break_in_line(x, 2 - x + rng.standard_normal(30), draws=199).p for _ in range(300)])
    assert 0.02 <= np.mean(p <= 0.05) <= 0.09
    assert 0.4 <= np.mean(p <= 0.5) <= 0.6


def test_lines_without_a_break():
    x = np.arange(10.0)
    exact = break_in_line(x, 3 * x + 1)
    assert exact.f == 0
    assert exact.p == 1
    assert exact.slope_before == pytest.approx(3)
    assert break_in_line(x[:5], x[:5]) is None
    assert break_in_line(np.ones(10), x) is None
    kink = break_in_line(x, np.maximum(x - 4, 0))
    assert kink.at == 4
    assert kink.p == 0.001


def test_gaps_and_bad_weights_are_nan():
    w = walk(4, 6, 3, np.float16)
    w[2, 0, 0] = np.inf
    history = History.from_array(w, missing={1: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 1"), pytest.warns(NonFiniteWarning, match="step 2"):
        result = order_parameter(history, loss=[4.0, 3.0, 2.0, 1.0])
    assert np.isnan(result["order_parameter"].values).tolist() == [False, True, True, False]
    assert np.isfinite(result["dloss_db"].values).tolist() == [True, False, False, True]


@pytest.mark.parametrize(("dependence", "most"), [(0.0, 0.08), (0.5, 0.12), (0.9, 0.25)])
def test_dependent_noise_about_a_straight_line_is_no_break(dependence, most):
    rng = np.random.default_rng(0)
    x, found = np.linspace(0, 1, 60), 0
    for _ in range(100):
        noise = rng.standard_normal(60)
        for i in range(1, 60):
            noise[i] = dependence * noise[i - 1] + np.sqrt(1 - dependence**2) * noise[i]
        found += break_in_line(x, 2 * x + noise, draws=199).p < 0.05
    assert found / 100 <= most


def test_a_break_is_found_in_dependent_noise():
    rng = np.random.default_rng(1)
    x, noise = np.linspace(0, 1, 100), rng.standard_normal(100)
    for i in range(1, 100):
        noise[i] = 0.5 * noise[i - 1] + noise[i]
    fit = break_in_line(x, -6 * np.minimum(x, 0.5) + 0.2 * noise)
    assert fit.p < 0.01
    assert abs(fit.at - 0.5) < 0.1


def broken_line(x, y, draws, seed):
    """`break_in_line` from its definition: every break by least squares, and noise like that of the residuals."""
    usable = np.isfinite(x) & np.isfinite(y)
    x, y = x[usable], y[usable]
    breaks = np.unique(x)[2:-2]

    def fit(values, columns):
        design = np.column_stack(columns)
        coefficients = np.linalg.lstsq(design, values, rcond=None)[0]
        return coefficients, values - design @ coefficients

    def best(values):
        _, straight = fit(values, [np.ones_like(x), x])
        fits = [fit(values, [np.ones_like(x), x, np.maximum(x - at, 0)]) for at in breaks]
        chosen = int(np.argmin([np.sum(rest**2) for _, rest in fits]))
        coefficients, rest = fits[chosen]
        return (
            (np.sum(straight**2) - np.sum(rest**2)) / 2 / (np.sum(rest**2) / (len(x) - 4)),
            chosen,
            coefficients,
            rest,
        )

    def noise(phi, white):
        series = [white[0]]
        for value in white[1:]:
            series.append(phi * series[-1] + np.sqrt(1 - phi * phi) * value)
        return np.array(series)

    def dependence(rest):
        return np.sum(rest[1:] * rest[:-1]) / np.sum(rest**2)

    f, chosen, coefficients, rest = best(y)
    white = np.random.default_rng(seed).standard_normal((len(x), draws)).T
    grid = [0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]
    expected = [np.mean([dependence(best(noise(phi, row))[3]) for row in white[:200]]) for phi in grid]
    phi = np.interp(dependence(rest), expected, grid)
    null = [best(noise(phi, row))[0] for row in white]
    p = (1 + sum(value >= f for value in null)) / (draws + 1)
    return breaks[chosen], coefficients[1], coefficients[1] + coefficients[2], f, p


@pytest.mark.parametrize(("count", "dependence"), [(6, 0.0), (7, 0.5), (12, 0.0), (20, 0.9)])
def test_the_break_and_its_p_from_their_definition(count, dependence):
    rng = np.random.default_rng(count)
    x = np.sort(rng.uniform(-3, 7, count))
    y, noise = np.abs(x - 1.5) * 0.4, rng.standard_normal(count)
    for i in range(1, count):
        noise[i] = dependence * noise[i - 1] + np.sqrt(1 - dependence**2) * noise[i]
    x, y = np.append(x, [np.nan, 0]), np.append(y + noise, [1.0, np.inf])
    found = break_in_line(x, y, draws=230, seed=3)
    wanted = broken_line(x, y, 230, 3)
    assert (found.at, found.slope_before, found.slope_after, found.f) == pytest.approx(wanted[:4], rel=1e-9)
    assert found.p == wanted[4]
    assert break_in_line(x, y) == break_in_line(x, y, draws=999, seed=0)


def test_a_loss_that_does_not_change_has_no_break():
    fit = break_in_line(np.arange(10.0), np.full(10, 3.0), draws=99)
    assert (fit.f, fit.p, fit.slope_before, fit.slope_after) == pytest.approx((0, 1, 0, 0), abs=1e-12)


def test_the_grid_of_the_autocorrelations_rises_to_one():
    assert _PHI_GRID[0] == 0
    assert np.all(np.diff(_PHI_GRID) > 0)
    assert _PHI_GRID[-1] < 1


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e9])
def test_the_unit_of_the_loss_does_not_matter(unit):
    rng = np.random.default_rng(2)
    x = np.arange(20.0)
    y = np.maximum(x - 9, 0) + rng.standard_normal(20)
    one, other = break_in_line(x, y, draws=99), break_in_line(x, unit * y, draws=99)
    assert (other.at, other.p) == (one.at, one.p)
    assert other.f == pytest.approx(one.f, rel=1e-6)
    assert break_in_line(x, unit * x, draws=99).f == 0


@pytest.mark.parametrize("level", [1e4, -1e8, 1e12])
def test_the_level_of_the_loss_does_not_matter(level):
    rng = np.random.default_rng(2)
    x = np.arange(20.0)
    y = level + (np.maximum(x - 9, 0) + rng.standard_normal(20))
    found, expected = break_in_line(x, y, draws=99), break_in_line(x, y - level, draws=99)
    assert (found.at, found.p) == (expected.at, expected.p)
    assert found.f == pytest.approx(expected.f, rel=1e-3)
    assert found.f > 1


def test_a_break_needs_six_points_and_five_places():
    x = np.arange(6.0)
    assert break_in_line(x, x**2) is not None
    assert break_in_line(x[:5], x[:5] ** 2) is None
    five, four = np.array([0.0, 0, 1, 2, 3, 4]), np.array([0.0, 0, 1, 2, 3, 3])
    assert break_in_line(five, five**2).at == 2
    assert break_in_line(four, four**2) is None


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
