"""Singular values through the Gram matrix, against their decomposition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracles
from support.walks import DTYPES, walk

import pythia_dynamics.sweep.frame_gram as frame_grams
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.rank import covariance_rank
from pythia_dynamics.measures.spectrum import frame_spectrum, power_law, spectrum
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frame_gram import FrameGram, frame_gram
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning

NAMES = ("entropy", "effective_rank", "stable_rank", "condition_number", "mean_row_fraction")


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 12),
    dtype=st.sampled_from(DTYPES),
    precision=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_measures_are_those_of_the_decomposition(rows, columns, dtype, precision, seed):
    w = walk(2, rows, columns, dtype, seed)
    result = spectrum(w, compute=Compute(precision=precision))
    for t in range(2):
        expected = oracles.spectrum(w[t].astype(np.float64))
        sigma = expected["singular_values"]
        exact = precision == "float64" or dtype == np.float64
        resolved = sigma > (1e-5 if exact else 3e-3) * sigma[0]
        rtol = 1e-5 if exact else 2e-2
        np.testing.assert_allclose(result["singular_values"][t, : len(sigma)][resolved], sigma[resolved], rtol=rtol)
        if resolved.all():
            for name in NAMES:
                assert float(result[name][t]) == pytest.approx(expected[name], rel=rtol), name


def test_an_orthogonal_matrix_has_full_effective_rank():
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 30)))
    result = spectrum(q[None], compute=Compute(precision="float64"))
    assert float(result["effective_rank"][0]) == pytest.approx(30)
    assert float(result["stable_rank"][0]) == pytest.approx(30)
    assert float(result["entropy"][0]) == pytest.approx(np.log(30))
    assert float(result["condition_number"][0]) == pytest.approx(1)


def test_equal_rows_are_one_direction():
    w = np.ones((1, 50, 1)) * np.arange(1.0, 9)
    result = spectrum(w)
    assert float(result["effective_rank"][0]) == pytest.approx(1, abs=1e-5)
    assert float(result["mean_row_fraction"][0]) == pytest.approx(1)
    assert np.isinf(result["condition_number"][0])
    centred = spectrum(np.concatenate([w, -w], axis=1))
    assert float(centred["mean_row_fraction"][0]) == pytest.approx(0, abs=1e-12)


def test_many_rows_are_added_in_blocks():
    w = walk(1, 10_000, 16, np.float16)
    gram = frame_gram(w[0])
    exact = w[0].astype(np.float64)
    np.testing.assert_allclose(gram.gram, exact.T @ exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gram.mean_row, exact.mean(axis=0), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 2500), (1, 40), (5, 6), (64, 1024), (64, 1025)])
def test_a_wide_matrix_has_the_gram_matrix_of_its_rows(shape, dtype):
    w = (np.random.default_rng(0).standard_normal(shape) + 0.3).astype(dtype)
    found, exact = frame_gram(w), w.astype(np.float64)
    assert (found.rows, found.columns) == shape
    np.testing.assert_allclose(found.gram, exact @ exact.T, rtol=1e-5, atol=1e-5 * np.trace(found.gram) / len(w))
    np.testing.assert_allclose(found.mean_row, exact.mean(axis=0), rtol=1e-12, atol=1e-15)
    transposed = frame_gram(np.ascontiguousarray(w.T))
    np.testing.assert_allclose(found.eigenvalues, transposed.eigenvalues, rtol=1e-4)
    batches = np.random.default_rng(1).standard_normal((3, 4, shape[1]))
    expected = batches @ exact.T @ exact @ batches.transpose(0, 2, 1)
    np.testing.assert_allclose(found.batch_gram(batches), expected, rtol=1e-9, atol=1e-9 * abs(expected).max())


def test_a_wide_matrix_with_a_value_that_is_not_finite_has_none():
    w = np.ones((3, 2000), np.float32)
    w[1, 1999] = np.inf
    assert frame_gram(w) is None


@pytest.mark.parametrize("shape", [(300, 7), (7, 300)])
def test_the_sums_of_a_device_are_those_of_the_processor(shape, monkeypatch):
    monkeypatch.setattr(frame_grams, "_DEVICE_ELEMENTS", 7 * 64)  # pieces of 64 rows or columns
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    gram, total = frame_grams._on_device(w, "cpu")
    expected, summed = frame_grams._on_cpu(w, "float64")
    np.testing.assert_allclose(gram, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total, summed, rtol=1e-12, atol=1e-12)


def test_a_power_law_with_an_exponent_below_two_is_found():
    for seed in range(3):
        values = (1 - np.random.default_rng(seed).uniform(size=400)) ** (-1 / 0.5)  # density ~ λ^−1.5
        assert power_law(values) == pytest.approx(1.5, abs=0.15)  # standard error 0.025 without the choice of a cut-off
        assert power_law(values) == pytest.approx(oracles.power_law(values), rel=1e-12)


def test_the_power_law_is_found():
    rng = np.random.default_rng(3)
    pareto = (1 - rng.uniform(size=3000)) ** (-1 / 1.5)  # density ~ λ^−2.5
    assert power_law(pareto) == pytest.approx(2.5, abs=0.15)
    for seed in range(5):
        values = np.random.default_rng(seed).lognormal(size=80)
        assert power_law(values) == pytest.approx(oracles.power_law(values), rel=1e-12)
        assert power_law(values * 1e-6) == pytest.approx(power_law(values), rel=1e-9)
    assert np.isnan(power_law(np.arange(1.0, 10)))
    assert np.isfinite(power_law(np.arange(1.0, 11)))
    assert np.isnan(power_law(np.ones(20)))


@pytest.mark.parametrize("count", [10, 65, 66, 67, 130])
def test_every_cut_off_is_tried(count):
    for seed in (31, 144, 279):  # for these the best cut-off is the last, with two eigenvalues above it
        values = np.sort(2 - np.random.default_rng(seed).uniform(size=10) ** 3)
        values = np.concatenate([np.full(count - 10, 1e-3), values])
        last = 1 + 2 / np.log(values[-1] / values[-2])
        assert power_law(values) == pytest.approx(last, rel=1e-9)
        assert oracles.power_law(values) == pytest.approx(last, rel=1e-9)
    for seed in range(20):
        values = np.random.default_rng(seed).uniform(1, 2, size=count) ** 3
        assert power_law(values) == pytest.approx(oracles.power_law(values), rel=1e-9)


def test_what_is_not_positive_and_equal_values_do_not_matter():
    values = np.random.default_rng(8).lognormal(size=30)
    alpha = power_law(values)
    assert power_law(np.concatenate([[0.0, -0.5, -3.0], values, [0.0]])) == alpha
    tied = np.append(values, [values.max(), values.max()])  # the last cut-offs have no fit
    with np.errstate(divide="ignore", invalid="ignore"):
        assert power_law(tied) == pytest.approx(oracles.power_law(tied), rel=1e-12)


def test_only_alpha_names_its_method():
    result = spectrum(walk(1, 30, 12, np.float32))
    assert [name for name, column in result.data_vars.items() if "method" in column.attrs] == ["alpha"]


def test_alpha_is_fitted_to_the_squared_singular_values():
    w = walk(1, 100, 20, np.float64)
    sigma = np.linalg.svd(w[0], compute_uv=False)
    assert float(spectrum(w)["alpha"][0]) == pytest.approx(oracles.power_law(sigma**2), rel=1e-6)


def test_gaps_bad_and_zero_weights_are_nan():
    w = walk(5, 40, 4, np.float32)
    w[1, 2, 3], w[4] = np.nan, 0
    history = History.from_array(w, missing={2: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 2"), pytest.warns(NonFiniteWarning, match="step 1"):
        result = spectrum(history)
    for name in NAMES:
        assert np.isnan(result[name].values).tolist() == [False, True, True, False, True], name
    assert np.isnan(result["singular_values"][1]).all()
    assert (result["singular_values"][4] == 0).all()


def test_padding_rows_can_be_left_out():
    w = walk(2, 30, 4, ml_dtypes.bfloat16)
    assert spectrum(w, compute=Compute(rows=20)).identical(spectrum(w[:, :20]))


def test_a_vector_is_one_column():
    w = walk(2, 30, 1, np.float16)
    assert spectrum(w[..., 0])["stable_rank"].values.tolist() == pytest.approx([1, 1])


def test_bad_options_and_sizes_are_refused():
    with pytest.raises(UnknownNameError, match="float32"):
        spectrum(np.ones((1, 3, 3)), compute=Compute(precision="float16"))  # type: ignore[arg-type]
    with pytest.raises(PythiaDynError, match="too large"):
        spectrum(np.full((1, 3, 3), 1e200))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_device_of_torch_gives_the_same(dtype):
    # "cpu:0" goes the way of a CUDA device, through torch and in float64
    w = walk(2, 40, 5, dtype)
    w[1, 0, 0] = np.nan
    with pytest.warns(NonFiniteWarning, match="step 1"):
        result = spectrum(w, compute=Compute(device="cpu:0"))
    sigma = np.linalg.svd(w[0].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(result["singular_values"][0], sigma, rtol=1e-9)
    assert np.isnan(result["singular_values"][1]).all()


def test_pieces_on_a_device_add_up(monkeypatch):
    w = walk(2, 40, 5, np.float16)
    whole = spectrum(w, compute=Compute(device="cpu:0"))
    monkeypatch.setattr(frame_grams, "_DEVICE_ELEMENTS", 35)  # seven rows
    np.testing.assert_allclose(
        spectrum(w, compute=Compute(device="cpu:0"))["singular_values"], whole["singular_values"], rtol=1e-12
    )


def test_a_history_without_any_weights_is_refused():
    history = History.from_array(np.zeros((1, 3, 2)), missing={0: "lost"})
    with pytest.warns(MissingStepsWarning), pytest.raises(PythiaDynError, match="no step of array has weights"):
        spectrum(history)


def test_the_numbers_are_those_of_weightwatcher():
    # what WeightWatcher 0.7.7 says of this matrix (analyze with max_N raised)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4000, 128)) * np.linspace(1, 0.1, 128) * 0.05 + 0.02 * rng.standard_normal(128)
    result = spectrum(w[None].astype(np.float32)).isel(step=0)
    assert float(result["alpha"]) == pytest.approx(3.128377, abs=1e-6)
    assert float(result["stable_rank"]) == pytest.approx(3.182883, abs=1e-6)
    assert float(result["singular_values"][0]) == pytest.approx(14.716612, abs=1e-6)
    assert float(result["singular_values"][-1]) == pytest.approx(0.328607, abs=1e-6)


@pytest.mark.parametrize("kind", ["one direction", "rank 8", "offset"])
def test_what_float32_does_not_resolve_is_computed_in_float64(kind):
    rng = np.random.default_rng(0)
    if kind == "offset":
        w = (100 + 0.1 * rng.standard_normal((300, 40))).astype(np.float16).astype(np.float32)
    else:
        rank = 1 if kind == "one direction" else 8
        w = (rng.standard_normal((300, rank)) @ rng.standard_normal((rank, 40))).astype(np.float32)
    result = spectrum(w[None])
    sigma = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum()
    entropy = -np.sum(p * np.log(p))
    assert float(result["entropy"][0]) == pytest.approx(entropy, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(result["singular_values"][0], sigma, rtol=1e-7, atol=3e-7 * sigma[0])
    tolerances = (1e-9, 1e-3, 0.5)
    ranks = covariance_rank(w[None], batch_sizes=(16,), tolerances=tolerances)["rank_infinite"][0]
    for tolerance in tolerances:
        for convention, level in (("absolute", tolerance), ("relative", tolerance * sigma[0] ** 2)):
            found = ranks.sel({"tolerance": tolerance, "convention": convention})
            assert float(found) == np.count_nonzero(sigma**2 > level)


def test_nothing_is_known_where_no_step_is_finite():
    with pytest.warns(NonFiniteWarning, match="steps 0, 1, 2"):
        result = spectrum(np.full((3, 6, 4), np.nan, np.float32))
    assert result["singular_values"].shape == (3, 0)  # no step has any
    assert all(np.isnan(result[name]).all() for name in (*NAMES, "alpha"))


@pytest.mark.parametrize("least", [1e-9, 1e-6])
def test_eigenvalues_below_a_share_of_the_largest_are_rounding_errors(least):
    eigenvalues = np.array([16.0, 4.0, 16 * least])
    found = frame_spectrum(
        FrameGram(np.zeros((10, 3)), np.diag(eigenvalues), np.zeros(3), eigenvalues, resolution=1e-7)
    )
    sigma = np.sqrt(eigenvalues[: 2 if least < 1e-7 else 3])
    p = sigma / sigma.sum()
    assert found.entropy == pytest.approx(-np.sum(p * np.log(p)), rel=1e-12)
    assert found.condition_number == (np.inf if least < 1e-7 else pytest.approx(least**-0.5))
    np.testing.assert_allclose(found.singular_values, np.sqrt(eigenvalues))
