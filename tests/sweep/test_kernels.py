"""The compiled loops by themselves, against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_dynamics.sweep import gram_kernels, kernels
from pythia_dynamics.sweep.intrinsics import workspace

CARRIERS = {np.float16: np.uint16, ml_dtypes.bfloat16: np.int16, np.float32: np.float32, np.float64: np.float64}


@settings(max_examples=50, deadline=None)
@given(size=st.integers(0, 70), start=st.integers(0, 9), seed=st.integers(0, 99))
def test_codes_are_counted_from_any_address(size, start, seed):
    codes = np.random.default_rng(seed).integers(0, 65536, size + start, dtype=np.uint16)
    table = np.ones(65536, np.uint32)
    kernels.count_codes(np.uint64(codes.ctypes.data + 2 * start), size, table)
    np.testing.assert_array_equal(table - 1, np.bincount(codes[start:], minlength=65536))


def test_narrowing_is_numpys():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        between = (halves[:-1] + halves[1:]) / 2  # ties
    values = np.concatenate([bits, halves, between, np.array([np.inf, -np.inf], np.float32)])
    values = values[~np.isnan(values)]
    codes = np.empty(len(values), np.uint16)
    kernels.narrow(values, codes)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(codes, values.astype(np.float16).view(np.uint16))
    codes = np.empty(1, np.uint16)
    kernels.narrow(np.array([np.nan], np.float32), codes)
    assert np.isnan(codes.view(np.float16)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_sums(dtype):
    x = np.random.default_rng(0).standard_normal(1001).astype(dtype)
    s1, s2, s3, s4, least, greatest, bad = kernels.power_sums(x, 0.25)
    y = x.astype(np.float64) - 0.25
    np.testing.assert_allclose([s1, s2, s3, s4], [np.sum(y**p) for p in (1, 2, 3, 4)], rtol=1e-12)
    assert (least, greatest, bad) == (x.min(), x.max(), 0)
    x[[3, 5]] = np.nan, np.inf
    assert kernels.power_sums(x, 0.0)[6] == 2


@pytest.mark.parametrize("dtype", list(CARRIERS))
@pytest.mark.parametrize("steps", [1, 4, 6])
def test_gram_is_that_of_the_increments(dtype, steps):
    size = 2 * gram_kernels.GRAM_BLOCK + 37
    w = np.cumsum(np.random.default_rng(steps).standard_normal((steps, size)), axis=0).astype(dtype)
    carrier = CARRIERS[dtype]
    addresses = np.array([row.ctypes.data for row in w], np.uint64)
    rows = -(-steps // kernels.TILE) * kernels.TILE
    kind = np.float64 if dtype == np.float64 else np.float32
    work = workspace(rows, gram_kernels.GRAM_BLOCK, kind)
    work[:] = np.nan
    out, sums = np.zeros((rows, rows)), np.zeros((steps, 2))
    start, stop = 5, size - 3
    gram_kernels.gram(addresses, np.zeros(1, carrier), start, stop, work, out, sums)
    x = w[:, start:stop].astype(np.float64)
    increments = np.diff(x, axis=0, prepend=0)
    expected = increments @ increments.T
    lower = np.tril_indices(steps)
    rtol = 1e-12 if dtype == np.float64 else 2e-6
    np.testing.assert_allclose(out[lower], expected[lower], rtol=rtol, atol=rtol * np.abs(expected).max())
    np.testing.assert_allclose(sums, np.stack([x.sum(axis=1), (x**2).sum(axis=1)], axis=1), rtol=100 * rtol)


@pytest.mark.parametrize("dtype", list(CARRIERS))
def test_the_running_integral_over_blocks_and_tiles(dtype):
    steps, size = 6, 2 * kernels.BLOCK + 11
    w = np.cumsum(np.random.default_rng(1).standard_normal((steps, size)), axis=0).astype(dtype)
    kind = np.float64 if dtype == np.float64 else np.float32
    addresses = np.array([w[min(t, steps - 1)].ctypes.data for t in range(8)], np.uint64)
    shift, keep = np.zeros(8, kind), np.zeros(8, kind)
    shift[:steps], keep[:steps] = np.linspace(0, 1, steps), 1
    out = np.zeros((8, 6))
    work = workspace(4, kernels.BLOCK, kind)
    work[:] = np.nan
    kernels.integrate(addresses, np.zeros(1, CARRIERS[dtype]), 3, size, shift, keep, work, out)
    x = w[:, 3:].astype(np.float64)
    y = x - shift[:steps, None].astype(np.float64)
    expected = [
        y,
        y**2,
        np.cumsum(y, axis=0) ** 2,
        (x - x[0]) ** 2,
        np.diff(x, axis=0, prepend=x[:1]) ** 2,
        np.cumsum(x - x.mean(axis=0), axis=0) ** 2,
    ]
    rtol = 1e-11 if dtype == np.float64 else 3e-5  # the bound of the module; values on a coarse grid come near it
    for column, values in enumerate(expected):
        total = values.sum(axis=1)
        np.testing.assert_allclose(out[:steps, column], total, rtol=rtol, atol=rtol * np.abs(values).sum(axis=1).max())


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 1000, 1024])
def test_rows_of_a_workspace_begin_on_cache_lines_of_different_sets(kind, columns):
    work = workspace(5, columns, kind)
    assert len(work) == 5
    assert columns <= work.shape[1] <= columns + 31
    assert work.flags.c_contiguous
    assert work.ctypes.data % 64 == 0
    assert work.strides[0] % 128 == 64


def test_moments_of_counted_values():
    rng = np.random.default_rng(0)
    values, counts = rng.standard_normal(1000) + 3, rng.integers(0, 4, 1000).astype(np.uint32)
    x = np.repeat(values, counts)
    y = x - x.mean()
    expected = [x.mean(), *(np.mean(y**p) for p in (2, 3, 4)), x.min(), x.max()]
    np.testing.assert_allclose(kernels.counted_moments(values, counts), expected, rtol=1e-12, atol=1e-14)
