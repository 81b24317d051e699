"""Exact counts, moments, quantiles and modes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracles
from support.walks import DTYPES, walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.density import density
from pythia_dynamics.measures.modes import _spacing
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning


def tally(values):
    return dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))


def counted(result, t):
    """The exact counts of one step as a dict; −0 and 0 are one value."""
    found: dict[float, int] = {}
    for value, count in zip(result["value"].values.tolist(), result["counts"].values[t].tolist(), strict=True):
        if count:
            found[value] = found.get(value, 0) + count
    return found


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 5),
    rows=st.integers(1, 40),
    columns=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
    bins=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_everything_is_as_counted_one_by_one(steps, rows, columns, dtype, threads, bins, seed):
    w = walk(steps, rows, columns, dtype, seed)
    result = density(w, bins=bins, compute=Compute(threads=threads))
    flat = w.reshape(steps, -1).astype(np.float64)
    coded = w if w.dtype.itemsize == 2 else w.astype(np.float16)
    coded = coded.reshape(steps, -1).astype(np.float64)
    edges = np.append(result["weight_low"], result["weight_high"][-1])
    for t in range(steps):
        np.testing.assert_array_equal(result["histogram"][t], np.histogram(coded[t], bins=edges)[0])
        assert counted(result, t) == tally(coded[t])
        wanted = np.quantile(coded[t], result["quantile"], method="inverted_cdf")
        np.testing.assert_array_equal(result["weight_quantile"][t], wanted)
    assert float((result["density"] * (result["weight_high"] - result["weight_low"])).sum("weight")[0]) == (
        pytest.approx(1)
    )
    expected = oracles.moments(flat)
    for name in ("mean", "std"):
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-9, atol=1e-12)
    if flat.shape[1] > 20:
        for name in ("skewness", "kurtosis", "bimodality"):
            np.testing.assert_allclose(result[name], expected[name], rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(result["min"], flat.min(axis=1))
    np.testing.assert_array_equal(result["max"], flat.max(axis=1))
    assert (result["nonfinite"] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_is_counted_as_itself(dtype):
    kind = ml_dtypes.bfloat16 if dtype == ml_dtypes.bfloat16 else np.float16
    codes = np.arange(65536, dtype=np.uint16).view(kind)
    with np.errstate(invalid="ignore"):
        finite = codes[np.isfinite(codes)]
    w = np.repeat(finite, 3)[None, :].astype(dtype)
    result = density(w)
    assert counted(result, 0) == tally(np.repeat(finite, 3).astype(np.float64))


def test_float32_rounds_to_the_nearest_even_float16():
    rng = np.random.default_rng(1)
    w = (rng.standard_normal((1, 5000)) * 10.0 ** rng.uniform(-9, 4, 5000)).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = w.astype(np.float16)
    assert counted(density(w), 0) == tally(expected[np.isfinite(expected)].astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_has_no_spread(dtype):
    result = density(np.full((2, 30, 3), 0.1, dtype=dtype))
    assert result["std"].values.tolist() == [0, 0]
    assert result["mean"].values.tolist() == [float(dtype(0.1))] * 2
    assert np.isnan(result["kurtosis"]).all()
    assert result["modes"].values.tolist() == [1, 1]


def test_sarle_and_modes_tell_one_mode_from_two():
    rng = np.random.default_rng(2)
    one = rng.standard_normal(40000)
    two = np.concatenate([one[:20000] - 3, one[20000:] + 3])
    result = density(np.stack([one, two]).astype(np.float32))
    assert result["modes"].values.tolist() == [1, 2]
    assert result["bimodality"][0] == pytest.approx(1 / 3, abs=0.01)
    assert result["bimodality"][1] > 5 / 9
    uniform = density(rng.uniform(-1, 1, (1, 100000)).astype(np.float32))
    assert float(uniform["bimodality"][0]) == pytest.approx(5 / 9, abs=0.005)


def test_bin_edges_may_be_given():
    w = np.array([[0.0, 0.25, 0.5, 1.0, 2.0]], dtype=np.float16)
    result = density(w, bins=[0, 0.5, 1.0])
    assert result["histogram"][0].values.tolist() == [2, 2]
    assert result["density"][0].values.tolist() == [0.8, 0.8]


def test_a_missing_step_is_nan_and_named():
    w = walk(3, 20, 2, np.float16)
    history = History.from_array(w, [10, 20, 30], missing={20: "not on the Hub"})
    with pytest.warns(MissingStepsWarning, match="step 20"):
        result = density(history)
    assert result["step"].values.tolist() == [10, 20, 30]
    for name in ("histogram", "density", "mean", "std", "min", "nonfinite", "modes", "weight_quantile"):
        assert np.isnan(result[name][1]).all(), name
        assert np.isfinite(result[name][[0, 2]]).all(), name
    assert result["counts"][1].values.tolist() == [0] * result.sizes["value"]
    assert np.issubdtype(result["counts"].dtype, np.integer)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_poison_their_own_step_only(dtype):
    w = walk(3, 20, 4, dtype)
    clean = density(w)
    w[1, 3, 1], w[1, 7, 2], w[1, 9, 0] = np.nan, np.inf, -np.inf
    with pytest.warns(NonFiniteWarning, match="step 1"):
        result = density(w)
    assert result["nonfinite"].values.tolist() == [0, 3, 0]
    for name in ("mean", "std", "skewness", "kurtosis", "bimodality", "min", "max", "modes"):
        assert np.isnan(result[name][1]), name
        np.testing.assert_array_equal(result[name][[0, 2]], clean[name][[0, 2]])
    assert result["histogram"][1].sum() == 77


def test_padding_rows_can_be_left_out():
    w = walk(2, 10, 4, np.float16)
    xr_equal(density(w, compute=Compute(rows=7)), density(w[:, :7]))
    with pytest.raises(PythiaDynError, match="1 to 10"):
        density(w, compute=Compute(rows=11))


def xr_equal(a, b):
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 0}, "at least 1"),
        ({"bins": [1, 0]}, "increasing"),
        ({"bins": [1, 0.5]}, "increasing"),
        ({"bins": [0, 0, 1]}, "increasing"),
        ({"bins": [1]}, "increasing"),
        ({"bins": [[0, 1], [2, 3]]}, "increasing"),
        ({"quantiles": [2]}, "between 0 and 1"),
        ({"quantiles": [-0.5, 0.5]}, "between 0 and 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(PythiaDynError, match=message):
        density(np.zeros((1, 4), np.float16), **options)


def test_weights_beyond_float16_have_moments_but_no_counts():
    w = np.array([[1e6, 1.0, 2.0, 3.0], [1e6, 2e6, 3e6, 4e6]], dtype=np.float32)
    result = density(w)
    assert result["max"].values.tolist() == [1e6, 4e6]
    assert result["nonfinite"].values.tolist() == [0, 0]
    assert result["counts"].sum("value").values.tolist() == [3, 0]
    assert np.isnan(result["weight_quantile"][1]).all()
    assert float(result["mean"][1]) == 2.5e6


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("scale", [0.001, 0.003, 0.01, 0.1])
def test_codes_are_no_modes(dtype, scale):
    weights = 1 + scale * np.random.default_rng(0).standard_normal((3, 500, 64))
    assert density(weights.astype(dtype))["modes"].values.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_weights_at_the_top_of_the_range_have_modes(dtype):
    largest = float(ml_dtypes.finfo(dtype).max) if dtype != np.float32 else 65504.0
    w = walk(3, 40, 8, np.float64).astype(dtype)
    w[1] = largest
    w[2, ::2], w[2, 1::2] = largest, -largest
    with np.errstate(over="ignore"):
        found = density(w)
    assert found["modes"].values.tolist()[1:] == [1, 2]
    assert float(found["weight_quantile"].sel(quantile=0.5)[1]) == pytest.approx(largest)


def test_the_axis_of_the_density_is_the_middle_of_each_bin():
    result = density(walk(2, 50, 3, np.float16), bins=7)
    low, high = result["weight_low"].values, result["weight_high"].values
    np.testing.assert_allclose(result["weight"], (low + high) / 2, rtol=1e-15)
    np.testing.assert_array_equal(low[1:], high[:-1])
    assert (low[0], high[-1]) == (result["min"].min(), result["max"].max())
    np.testing.assert_allclose((result["density"] * (high - low)).sum("weight"), 1)


def test_the_ends_are_the_quantiles_0_and_1():
    w = np.array([[1.0, 2, 3], [2, 3, 4], [-1, 2, 2]], np.float16)
    found = density(w, quantiles=[0, 1])["weight_quantile"].values.tolist()
    assert found == [[1, 3], [2, 4], [-1, 2]]


def test_bins_of_a_constant_and_a_single_bin():
    one = density(np.full((1, 4), 2.0, np.float16), bins=4)
    assert np.append(one["weight_low"], one["weight_high"][-1]).tolist() == [1.5, 1.75, 2, 2.25, 2.5]
    assert density(np.array([[0.0, 0.5, 3]], np.float16), bins=[0, 1])["histogram"].values.tolist() == [[2]]


def test_spacing_and_rounding_of_16_bit_values():
    assert (_spacing(1.0, "bfloat16"), _spacing(3.0, "bfloat16")) == (2.0**-7, 2.0**-6)
    with np.errstate(over="ignore", invalid="ignore"):
        assert (_spacing(1.0, "float16"), _spacing(65504.0, "float16")) == (2.0**-10, 32)
    kinds = {np.float16: "none", ml_dtypes.bfloat16: "none", np.float32: "float16", np.float64: "float16"}
    for dtype, rounding in kinds.items():
        assert density(walk(1, 4, 2, dtype)).attrs["rounding_before_counting"] == rounding


def test_a_history_without_finite_weights_has_bins_from_0_to_1():
    with pytest.warns(NonFiniteWarning):
        result = density(np.full((2, 4, 3), np.nan, np.float16), bins=2)
    assert (result["weight_low"].values.tolist(), result["weight_high"].values.tolist()) == ([0, 0.5], [0.5, 1])
