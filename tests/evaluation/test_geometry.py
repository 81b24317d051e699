"""Statistics of spectra: analytic truth, and the formulas on random matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pythia_dynamics.evaluation.geometry import (
    decay_exponent,
    entropy_rank,
    gaussian_eigenvalues,
    mean_cosine,
    mean_cosine_sd,
    resolved,
)


def test_equal_values_have_their_number_as_rank() -> None:
    for count in (1, 2, 7, 500):
        assert entropy_rank(np.full(count, 0.3)) == pytest.approx(count, rel=1e-12)
    assert entropy_rank(np.array([5.0, 0.0, 0.0])) == 1
    assert entropy_rank(np.array([1.0, 1.0, 0.0])) == pytest.approx(2)
    assert math.isnan(entropy_rank(np.zeros(4)))
    assert math.isnan(entropy_rank(np.empty(0)))


def test_rankme_is_the_formula_of_garrido_but_for_its_epsilon() -> None:
    singular = np.linalg.svd(np.random.default_rng(0).normal(size=(90, 40)), compute_uv=False).astype(float)
    p = singular / singular.sum() + 1e-7
    printed = math.exp(-(p * np.log(p)).sum())
    assert entropy_rank(singular) == pytest.approx(printed, rel=2e-6 * 40)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("width", [40, 64, 150, 512, 2048])
def test_an_exact_power_law_gives_its_exponent(alpha: float, width: int) -> None:
    found, error = decay_exponent(7.0 * np.arange(1, width + 1.0) ** -alpha, width)
    assert found == pytest.approx(alpha, abs=1e-12)
    assert error == pytest.approx(0, abs=1e-7)


def test_the_fit_is_least_squares_with_weights_over_the_stated_ranks() -> None:
    rng = np.random.default_rng(1)
    for width, last in ((512, 100), (150, 75), (40, 20)):
        eigenvalues = np.sort(np.exp(rng.normal(size=width)))[::-1].copy()
        found, error = decay_exponent(eigenvalues, width)
        k = np.arange(11, last + 1)
        design, weights = np.stack([np.log(k), np.ones(len(k))], axis=1), np.diag(1 / k)
        inverse = np.linalg.inv(design.T @ weights @ design)
        slope = inverse @ design.T @ weights @ np.log(eigenvalues[10:last])
        residuals = np.log(eigenvalues[10:last]) - design @ slope
        variance = residuals @ weights @ residuals / (len(k) - 2)
        assert found == pytest.approx(-slope[0], rel=1e-9)
        assert error == pytest.approx(math.sqrt(variance * inverse[0, 0]), rel=1e-9)
        # What is outside the range does not count.
        eigenvalues[:10] *= 100
        eigenvalues[last:] = 0
        assert decay_exponent(eigenvalues, width) == pytest.approx((found, error), rel=1e-12)


def test_too_few_eigenvalues_have_no_exponent() -> None:
    law = 1 / np.arange(1, 513.0)
    assert np.isnan(decay_exponent(law, 39)).all()
    assert np.isfinite(decay_exponent(law, 40)).all()
    law[19:] = 0
    assert np.isnan(decay_exponent(law, 512)).all()
    assert np.isnan(decay_exponent(np.empty(0), 0)).all()


def directions(states: np.ndarray) -> np.ndarray:
    return np.asarray((states / np.linalg.norm(states, axis=1, keepdims=True)).mean(axis=0))


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(2)
    for count, width in ((2, 3), (30, 8), (25, 60)):
        states = rng.normal(size=(count, width)) + rng.normal(size=width)
        unit = states / np.linalg.norm(states, axis=1, keepdims=True)
        pairs = [unit[i] @ unit[j] for i in range(count) for j in range(count) if i != j]
        assert mean_cosine(directions(states), count) == pytest.approx(np.mean(pairs), abs=1e-14)


def test_identical_and_orthogonal_states() -> None:
    assert mean_cosine(directions(np.ones((9, 4))), 9) == pytest.approx(1)
    assert mean_cosine(directions(np.eye(9)), 9) == pytest.approx(0, abs=1e-15)
    assert mean_cosine(directions(np.stack([np.ones(4), -np.ones(4)])), 2) == pytest.approx(-1)
    assert math.isnan(mean_cosine(np.ones(4), 1))
    assert math.isnan(mean_cosine_sd(1, 4))


def test_isotropic_states_have_the_stated_deviation() -> None:
    rng = np.random.default_rng(3)
    found = [mean_cosine(directions(rng.normal(size=(12, 6))), 12) for _ in range(4000)]
    sd = mean_cosine_sd(12, 6)
    assert abs(np.mean(found)) < 4 * sd / math.sqrt(4000)
    assert np.std(found) == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize(("count", "width"), [(3000, 60), (300, 60), (60, 60), (41, 200), (1500, 300)])
def test_the_null_is_that_of_gaussian_samples(count: int, width: int) -> None:
    rng = np.random.default_rng(4)
    sampled = []
    for _ in range(10):
        eigenvalues = np.linalg.svd(rng.normal(size=(count, width)), compute_uv=False) ** 2
        padded = np.concatenate([eigenvalues, np.zeros(width - len(eigenvalues))])
        rank = min(count, width)
        sampled.append(
            (entropy_rank(np.sqrt(padded)), entropy_rank(padded), decay_exponent(padded, rank)[0], padded.sum())
        )
    null = gaussian_eigenvalues(count, width)
    assert null.shape == (width,)
    assert (np.diff(null) <= 0).all()
    assert np.count_nonzero(null) == min(count, width)
    rankme, effective, alpha, _ = np.mean(sampled, axis=0)
    assert entropy_rank(np.sqrt(null)) == pytest.approx(rankme, rel=0.01)
    assert entropy_rank(null) == pytest.approx(effective, rel=0.01)
    assert decay_exponent(null, min(count, width))[0] == pytest.approx(alpha, rel=0.1)


def test_the_null_without_states_or_with_one() -> None:
    assert gaussian_eigenvalues(0, 5).tolist() == [0] * 5
    assert entropy_rank(gaussian_eigenvalues(1, 5)) == 1
    assert entropy_rank(gaussian_eigenvalues(5, 1)) == 1


def test_rounding_errors_are_no_eigenvalues() -> None:
    found = resolved(np.array([1e-17, 4.0, -1e-16, 1e-12, 2.0]), 5, 6.0)
    assert found.tolist() == [4.0, 2.0, 1e-12, 0.0, 0.0]
    assert resolved(np.array([1.0, 4.0, 2.0]), 2, 7.0).tolist() == [4.0, 2.0, 0.0]
    assert resolved(np.array([1.0, 4.0]), 0, 5.0).tolist() == [0.0, 0.0]
