"""The modes of a density: their number by its definition, positions, and what noise and grids make."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from scipy.signal import find_peaks

from pythia_dynamics.history.history import History
from pythia_dynamics.measures.density import density
from pythia_dynamics.measures.dip import dip_test, grid_spacing
from pythia_dynamics.measures.modes import (
    estimate_at,
    find_modes,
    independent_weights,
    modes_at,
    modes_of,
    onset_of_modes,
)
from pythia_dynamics.sweep.compute import Compute

ONE_MODE = {
    "gaussian": lambda rng, n: rng.normal(0, 0.02, n),
    "student": lambda rng, n: 0.02 * rng.standard_t(3, n),
    "uniform": lambda rng, n: rng.uniform(-0.03, 0.03, n),
    "low rank": lambda rng, n: 0.02 * rng.normal(size=(n, 3)) @ rng.normal(size=3),
    "far from zero": lambda rng, n: 1 + 0.01 * rng.normal(size=n),
    "grid": lambda rng, n: np.round(rng.normal(0, 5, n)) / 1000,
    "coarse grid": lambda rng, n: np.round(rng.normal(0, 2, n)) / 300,
}


def modes(weights, independent=None, dtype=np.float16):
    values, counts = np.unique(np.asarray(weights, dtype).astype(np.float64), return_counts=True)
    return find_modes(values, counts, independent, counted_as=np.dtype(dtype).name)


def kernel_estimate_modes(values, counts):
    """The modes by their definition: every value's own kernel, on a grid of 16 points a kernel width."""
    sample = np.repeat(values, counts)
    n = len(sample)
    q1, q3 = np.quantile(sample, [0.25, 0.75], method="inverted_cdf")
    width = 0.9 * min(sample.std(), (q3 - q1) / 1.34) * n**-0.2
    grid = np.arange(values[0] - 4 * width, values[-1] + 4 * width, width / 16)
    smooth = sum(
        count * np.exp(-(((grid - value) / width) ** 2) / 2) for value, count in zip(values, counts, strict=True)
    )
    smooth /= n * width * math.sqrt(2 * math.pi)
    peaks, found = find_peaks(smooth, prominence=0.05 * smooth.max())
    heights = smooth[peaks]
    noise = np.sqrt((2 * heights - found["prominences"]) / (2 * math.sqrt(math.pi) * n * width))
    return np.count_nonzero((found["prominences"] >= 4 * noise) | (heights == smooth.max()))


@pytest.mark.parametrize("shift", [-3.0, 0.0, 7.0])
@pytest.mark.parametrize(
    ("centres", "spread"), [((0,), 1.0), ((-1, 1), 0.3), ((-1, 0, 1), 0.12), ((0, 1), 0.45), ((0, 0, 0, 1), 0.2)]
)
def test_modes_are_those_of_a_kernel_estimate(centres, spread, shift):
    rng = np.random.default_rng(len(centres))
    sample = np.concatenate([rng.normal(centre + shift, spread, 3000) for centre in centres])
    values, counts = np.unique(np.round(sample, 2), return_counts=True)
    assert find_modes(values, counts).count == kernel_estimate_modes(values, counts)


@pytest.mark.parametrize("seed", [2, 4, 14, 22, 24, 27, 28, 37])
def test_modes_of_mixtures_with_heavy_tails_far_from_zero(seed):
    """In some the standard deviation decides the width of the kernel, in others the distance of the quartiles."""
    rng = np.random.default_rng(seed)
    count, centre = rng.integers(1, 4), rng.normal(0, 5)
    parts = [rng.normal(centre + rng.normal(0, 3), rng.uniform(0.2, 1), rng.integers(100, 400)) for _ in range(count)]
    parts.append(rng.standard_t(2, size=100) * 2 + centre)
    values, counts = np.unique(np.concatenate(parts).round(2).astype(np.float64), return_counts=True)
    assert find_modes(values, counts).count == kernel_estimate_modes(values, counts)


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([17, 23, 28], [29, 8, 11]),
        ([1, 4, 10, 19, 24], [6, 7, 13, 7, 28]),
        ([7, 11, 15, 24], [30, 26, 34, 39]),
        ([5, 13, 20], [34, 19, 38]),
    ],
)
@pytest.mark.parametrize("times", [1, 20])
def test_modes_of_few_values(values, counts, times):
    values, counts = np.array(values, dtype=np.float64), times * np.array(counts)
    assert find_modes(values, counts).count == kernel_estimate_modes(values, counts)


def test_three_narrow_modes_have_positions_and_heights():
    # weights that quantise themselves to −1, 0 and +1, half of them to 0
    values = np.arange(-1.2, 1.2001, 0.001)
    parts = {-1: 1000, 0: 2000, 1: 1000}
    counts = sum(n * np.exp(-(((values - centre) / 0.03) ** 2) / 2) for centre, n in parts.items()).astype(int)
    found = find_modes(values, counts)
    assert found.count == 3
    np.testing.assert_allclose(found.positions, [-1, 0, 1], atol=0.01)
    np.testing.assert_allclose(found.heights, [0.5, 1, 0.5], atol=0.02)
    assert -1 < found.basins[0] < 0 < found.basins[1] < 1
    assert found.prominence == pytest.approx(0.5, abs=0.02)
    assert found.p < 1e-9


def test_a_single_value_is_one_mode():
    found = find_modes(np.array([0.25, 0.5]), np.array([0, 7]))
    assert (found.count, found.positions.tolist(), found.prominence, found.p) == (1, [0.5], 0, 1)


def test_outliers_and_a_majority_of_one_value_leave_the_other_modes():
    rng = np.random.default_rng(1)
    narrow = np.concatenate([rng.normal(centre, 0.1, 4500) for centre in (0, 1)])
    values, counts = np.unique(np.round(np.concatenate([narrow, rng.normal(50, 0.1, 400)]), 2), return_counts=True)
    assert find_modes(values, counts).count == kernel_estimate_modes(values, counts) == 2 + 1
    assert find_modes(np.array([-1.0, 0, 1]), np.array([100, 800, 100])).count == 3  # quartiles are equal
    assert find_modes(np.array([-10.0, 0]), np.array([100, 3000])).count == 1  # below 5 % of the highest
    assert find_modes(np.array([-10.0, 0]), np.array([200, 3000])).count == 2
    assert find_modes(np.array([-10.0, 0]), np.array([2, 30])).count == 1  # two of 32 weights are within noise


def test_modes_beside_far_outliers():
    for far in (1352, 2704, 5089, 5407):
        assert find_modes(np.array([0.0, 1, far]), 50 * np.array([20, 20, 2])).count == 3
    # 1 % of the values at a distance of more widths than the grid has cells: one mode, for theirs is below 5 %
    values, counts = np.unique(np.round(np.random.default_rng(0).normal(size=2000), 2), return_counts=True)
    assert find_modes(np.append(values, 1e6), np.append(counts, 20)).count == 1


def test_many_narrow_modes_are_resolved():
    values = np.arange(-19.75, 19.75, 0.01)
    counts = np.round(1e7 * np.exp(-(((values + 0.25) % 0.5 - 0.25) ** 2) / 2 / 0.05**2)).astype(int)
    assert find_modes(values, counts).count == 79


@pytest.mark.parametrize("kind", ONE_MODE)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_noise_and_grids_are_no_modes(kind, dtype):
    rng = np.random.default_rng(0)
    for size, independent in ((2000, None), (8192, 2000), (40_000, None)):
        for _ in range(6):
            found = modes(ONE_MODE[kind](rng, size), independent, dtype)
            assert found.count == 1
            assert found.p > 0.05


@pytest.mark.parametrize(("share", "noise"), [(1, 0.05), (1, 0.15), (1, 0.3), (0.5, 0.05), (0.5, 0.15)])
def test_splits_are_seen_in_a_small_matrix(share, noise):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        chosen, sign = rng.random(8192) < share, rng.choice([-1, 1], 8192)
        weights = np.where(chosen, 0.06 * (sign + noise * rng.normal(size=8192)), rng.normal(0, 0.0224, 8192))
        found = modes(weights, 2000)
        assert found.count == (2 if share == 1 else 3)
        np.testing.assert_allclose(found.positions[[0, -1]], [-0.06, 0.06], atol=0.006)
        assert found.p < 1e-9


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        (50_304 * 512, (50_304, 512), 50_304),
        (128 * 64, (128, 64), 2000),
        (20 * 10, (20, 10), 200),
        (9000, (9000,), 9000),
        (40 * 10, (50, 10), 400),
    ],
)
def test_rows_are_independent_and_in_small_matrices_as_many_weights_as_the_dip_test_draws(size, shape, expected):
    assert independent_weights(size, shape) == expected


def test_a_dataset_has_the_modes_of_its_column():
    rng = np.random.default_rng(3)
    sign, noise = rng.choice([-1, 1], (128, 64)), rng.normal(0, 0.2, (30, 128, 64))
    fork = np.clip((np.arange(30) - 12) / 4, 0, 1)[:, None, None]
    found = density(History.from_array((noise + fork * sign).astype(np.float16), range(0, 3000, 100)))
    assert found.attrs["independent_weights"] == 2000
    assert [modes_at(found, t).count for t in range(30)] == found["modes"].values.tolist()
    onset = onset_of_modes(found)
    assert 1200 < onset <= 1600
    assert onset_of_modes(found.isel(step=slice(0, 13))) is None
    assert onset_of_modes(found.isel(step=slice(17, None))) == 1700
    estimate = estimate_at(found, 29)
    assert estimate is not None
    np.testing.assert_array_equal(modes_of(estimate).positions, modes_at(found, 29).positions)
    assert estimate.share.sum() == pytest.approx(1, abs=0.002)
    small = density(noise[:1, :40].astype(np.float32), compute=Compute(rows=20))
    assert small.attrs["independent_weights"] == 20 * 64


def test_steps_without_modes_do_not_end_a_second_mode():
    found = density(np.random.default_rng(0).normal(size=(12, 60, 4)).astype(np.float16))
    column = np.array([1, 1, 1, 2, 2, np.nan, 2, 3, 2, 2, 2, np.nan])
    assert onset_of_modes(found.assign(modes=("step", column))) == 3


def test_the_spacing_of_a_grid():
    rng = np.random.default_rng(0)
    coarse = np.round(rng.normal(0, 5, 4000)) * 0.25
    assert grid_spacing(*np.unique(coarse, return_counts=True)) == 0.25
    assert grid_spacing(*np.unique(rng.normal(size=4000), return_counts=True)) == 0
    assert grid_spacing(*np.unique(np.sign(coarse), return_counts=True)) == 0  # three values are quantised
    assert grid_spacing(np.array([1.0]), np.array([7])) == 0


def test_the_dip_test_takes_a_coarse_grid_as_rounding():
    rng = np.random.default_rng(0)
    weights = np.round(rng.normal(0, 4, (3, 100, 40))) / 64
    assert (dip_test(density(weights.astype(np.float16)))["dip_p"] > 0.5).all()
