"""A kink is found where there is one, and a smooth curve has none."""

from __future__ import annotations

import numpy as np
import pytest

from pythia_dynamics.measures.kink import LEAST_RATIO, MIN_POINTS, autoregressive, find_kink
from pythia_dynamics.measures.smooth_curves import FAMILIES, fit_smooth

SMOOTH = {
    "exponential": lambda b: 2 + 2 * np.exp(-15 * b),
    "inverse": lambda b: 1 + 0.1 / b,
    "logistic": lambda b: 2 + 1 / (1 + np.exp((b - 0.2) / 0.05)),
    "quadratic": lambda b: 2 + 8 * (b - 0.45) ** 2,
}


def noise(rng, count, phi, size):
    return size * autoregressive(phi, rng.standard_normal((count, 1)))[:, 0]


def lines(b, ratio, at=0.5):
    """Two lines over b; the second has a slope `ratio` times less steep."""
    u = (b - b[0]) / np.ptp(b)
    return 3 - np.minimum(u, at) - np.maximum(u - at, 0) / ratio


@pytest.mark.parametrize(("phi", "size"), [(0.0, 0.003), (0.0, 0.03), (0.6, 0.01), (0.9, 0.01)])
def test_smooth_curves_have_no_kink(phi, size):
    rng = np.random.default_rng(0)
    b, supported = np.linspace(0.05, 0.4, 41), 0
    for shape in SMOOTH.values():
        for _ in range(5):
            found = find_kink(b, shape(b) + noise(rng, 41, phi, size))
            supported += found.p <= 0.05 and found.ratio >= LEAST_RATIO
    assert supported <= 3  # 20 curves: with 5 % each, four or more happen in 1.6 % of cases


@pytest.mark.parametrize("count", [41, 143])
@pytest.mark.parametrize("ratio", [2.0, 4.0, 10.0, 0.25])
def test_kinks_are_found(count, ratio):
    rng = np.random.default_rng(1)
    b, seen = np.linspace(0.05, 0.4, count), 0
    for _ in range(5):
        found = find_kink(b, lines(b, ratio) + noise(rng, count, 0, 0.003))
        seen += found.p <= 0.05 and found.ratio >= LEAST_RATIO
        assert found.at == pytest.approx(b.mean(), abs=0.02)
        assert found.steeper == (ratio < 1)
        assert found.low <= found.ratio <= found.high or found.ratio == pytest.approx(max(ratio, 1 / ratio), rel=0.2)
    assert seen >= 4


def test_a_kink_in_units_and_slopes():
    b = np.linspace(0.05, 0.4, 41)
    loss = lines(b, 4) + noise(np.random.default_rng(2), 41, 0, 0.003)
    found = find_kink(b, loss)
    assert found.slope_before == pytest.approx(-1 / 0.35, rel=0.1)
    assert found.slope_after == pytest.approx(-0.25 / 0.35, rel=0.2)
    assert found.noise == pytest.approx(0.003, rel=0.5)
    scaled = find_kink(10 * b, 1e6 * loss - 5)
    assert (scaled.p, scaled.at) == pytest.approx((found.p, 10 * found.at))
    assert scaled.ratio == pytest.approx(found.ratio, rel=1e-4)
    assert scaled.slope_before == pytest.approx(1e5 * found.slope_before, rel=1e-4)


def test_the_power_falls_with_the_noise():
    rng = np.random.default_rng(3)
    b = np.linspace(0.05, 0.4, 143)
    powers = [find_kink(b, SMOOTH["inverse"](b) + noise(rng, 143, 0, size)).power for size in (0.001, 0.003, 0.1)]
    assert powers[0] == 1
    assert powers[-1] < 0.3


def test_too_few_points_and_constant_curves():
    b = np.linspace(1, 2, MIN_POINTS)
    assert find_kink(b, lines(b, 4)) is not None
    assert find_kink(b[1:], lines(b, 4)[1:]) is None
    assert find_kink(b, np.ones(MIN_POINTS)) is None
    assert find_kink(np.ones(40), np.arange(40.0)) is None
    gap = np.append(lines(b, 4), [np.nan, np.inf])
    assert find_kink(np.append(b, [3, 4]), gap) == find_kink(b, lines(b, 4))


def test_a_turn_of_the_slope_is_a_ratio_above_two():
    b = np.linspace(0, 1, 60)
    found = find_kink(b, np.abs(b - 0.5) + noise(np.random.default_rng(4), 60, 0, 0.003))
    assert found.ratio == pytest.approx(3, rel=0.1)
    assert found.p <= 0.01


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_fit_their_own_curves(family):
    u = np.linspace(0, 1, 80)
    theta = np.array([axis[len(axis) // 2] + 0.1 for axis in family.grid])
    columns = family.columns(u, theta)
    y = columns @ np.arange(1.0, 1 + columns.shape[1])
    fit = fit_smooth(family, u, y)
    assert np.linalg.norm(y - fit.basis @ (fit.basis.T @ y)) < 1e-3 * np.linalg.norm(y - y.mean())
    np.testing.assert_allclose(fit.basis.T @ fit.basis, np.eye(fit.parameters), atol=1e-9)
    for move, tangent in zip(np.eye(len(theta)) * 1e-5, family.tangents(u, theta).T, strict=True):
        change = family.shape(u, theta + move) - family.shape(u, theta - move)
        np.testing.assert_allclose(tangent, change / 2e-5, atol=1e-5)


def test_autoregressive_noise():
    noise = autoregressive(0.8, np.random.default_rng(0).standard_normal((4000, 20)))
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert np.mean(noise[1:] * noise[:-1]) == pytest.approx(0.8, abs=0.03)
