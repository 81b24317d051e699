"""The largest rise of a loss along growing b, with its noise taken out."""

from __future__ import annotations

import numpy as np
import pytest

from pythia_dynamics.measures.kink import autoregressive
from pythia_dynamics.measures.rise import MAX_RISE, correlate_increments, largest_rise, loss_rise

B = np.linspace(0.05, 0.3, 60)
FALL = 2 + np.exp(-12 * B)


def test_the_rise_from_its_definition():
    rng = np.random.default_rng(0)
    b, loss = rng.uniform(0, 1, 40), rng.standard_normal((40, 3))
    for column in loss.T:
        pairs = [
            later - before
            for at, later in zip(b, column, strict=True)
            for other, before in zip(b, column, strict=True)
            if other < at - 0.01 * np.ptp(b)
        ]
        assert largest_rise(b, column) == pytest.approx(max([*pairs, 0]))
    np.testing.assert_allclose(largest_rise(b, loss), [largest_rise(b, column) for column in loss.T])
    assert largest_rise(B, FALL) == 0


def test_a_smooth_fall_has_no_rise():
    found = loss_rise(B, FALL)
    assert (found.measured, found.rise) == (0, 0)
    assert found.p < 0.01
    assert found.power == 1


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_noise_is_measured_and_adds_no_rise(phi):
    extent, sizes = np.ptp(FALL), []
    for seed in range(10):
        white = np.random.default_rng(seed).standard_normal((60, 1))
        found = loss_rise(B, FALL + 0.02 * extent * autoregressive(phi, white)[:, 0])
        assert found.rise < found.measured
        assert found.rise < MAX_RISE or found.low < MAX_RISE
        sizes.append(found.noise / extent)
    assert np.median(sizes) == pytest.approx(0.02, rel=0.4)


def test_a_rise_is_seen_through_noise_and_an_interval_holds_it():
    held = []
    for seed in range(20):
        loss = FALL + 0.2 * np.ptp(FALL) * np.maximum(np.arange(60) - 40, 0) / 20
        loss += 0.01 * np.ptp(FALL) * np.random.default_rng(seed).standard_normal(60)
        found = loss_rise(B, loss)
        assert found.low > MAX_RISE
        assert found.p > 0.5
        assert found.p_monotone < 0.05
        held.append(found.low <= float(largest_rise(B, FALL + 0.2 * np.ptp(FALL))) + 0.2 <= found.high + 0.1)
    assert np.mean(held) > 0.8


def test_much_noise_leaves_no_power():
    loss = FALL + 0.2 * np.ptp(FALL) * np.random.default_rng(0).standard_normal(60)
    found = loss_rise(B, loss)
    assert found.p > 0.05
    assert found.power < 0.5


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_increments_of_independent_series_do_not_correlate(decay):
    rng = np.random.default_rng(1)
    steps = np.arange(1, 61) * 1000
    size = np.arange(1.0, 61) ** -decay
    independent, together = [], []
    for _ in range(100):
        b = np.cumsum(size * rng.gamma(4, size=60))
        independent.append(correlate_increments(steps, b, -np.cumsum(size * rng.gamma(4, size=60)))[1])
        correlation, p = correlate_increments(steps, b, -2 * b + 0.3 * size * rng.standard_normal(60))
        assert correlation < 0
        together.append(p)
    assert np.mean(np.array(independent) <= 0.05) <= 0.1
    assert np.mean(np.array(together) <= 0.05) >= 0.95


def test_increments_without_variation_have_no_correlation():
    steps = np.arange(1, 31)
    assert np.isnan(correlate_increments(steps, np.full(30, 2.0), np.arange(30.0))).all()
