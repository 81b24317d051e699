"""The comparison of two frames against plain NumPy and SciPy, on random, degenerate and adversarial weights."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import subspace_angles

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures import comparison
from pythia_dynamics.measures.comparison import (
    STATISTICS,
    Comparison,
    FrameSummary,
    compare_summaries,
    distances,
    independent,
    summarise_frame,
)

DTYPES = ("float16", "bfloat16", "float32", "float64")


def summary(weights: NDArray[Any], leading: int = 4) -> FrameSummary:
    found = summarise_frame(History.from_array(weights[None]), 0, leading=leading)
    assert found is not None
    return found


def compared(first: NDArray[Any], second: NDArray[Any], leading: int = 4) -> Comparison:
    return compare_summaries(summary(first, leading), summary(second, leading))


def normal(seed: int, *shape: int, dtype: str = "float32", scale: float = 0.1) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def oracle(first: NDArray[Any], second: NDArray[Any], leading: int) -> dict[str, float]:
    """Every statistic from its formula, with the whole matrices in float64."""
    u, v = (each.astype(np.float64) for each in (first, second))
    norms = np.linalg.norm(u), np.linalg.norm(v)
    typical = np.sqrt((norms[0] ** 2 + norms[1] ** 2) / 2)
    rows = [np.degrees(np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))) for x, y in zip(u, v, strict=True)]
    spectra = [np.linalg.svd(each, compute_uv=False) for each in (u, v)]
    bases = [np.linalg.svd(each)[2][:leading].T for each in (u, v)]
    counted = [each.astype(np.float16) if each.dtype in (np.float32, np.float64) else each for each in (first, second)]
    flat = [each.astype(np.float64).ravel() for each in counted]
    return {
        "angle": float(np.degrees(np.arccos((u * v).sum() / norms[0] / norms[1]))),
        "row_angle": float(np.median(rows)),
        "displacement": float(np.sqrt(((u - v) ** 2).mean())),
        "relative_displacement": float(np.linalg.norm(u - v) / typical),
        "norm_difference": float(abs(norms[0] - norms[1]) / typical),
        "ks": float(stats.ks_2samp(*flat).statistic),
        "wasserstein": float(stats.wasserstein_distance(*flat)),
        "spectrum_distance": float(np.linalg.norm(spectra[0] - spectra[1]) / typical),
        "overlap": float((np.cos(subspace_angles(*bases)) ** 2).mean()),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 12), (9, 40), (20, 20)])
def test_the_statistics_are_those_of_numpy(dtype: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_BLOCK", 64)  # several blocks, the last one smaller
    monkeypatch.setattr(comparison, "_GRAM_BLOCK", 100)
    first = normal(0, *shape, dtype=dtype)
    second = (first.astype(np.float64) + normal(1, *shape, scale=0.05)).astype(first.dtype)
    found = compared(first, second)
    assert dict(found.statistics) == pytest.approx(oracle(first, second, 4), rel=1e-9, abs=1e-12)
    assert list(found.statistics) == list(STATISTICS)
    assert found.row_angles.shape == shape[:1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(2, 9), exponent=st.integers(-6, 3))
def test_the_comparison_is_symmetric_and_bounded(seed: int, rows: int, columns: int, exponent: int) -> None:
    first = normal(seed, rows, columns, dtype="float64", scale=10.0**exponent)
    second = normal(seed + 1, rows, columns, dtype="float64")
    one, other = summary(first), summary(second)
    there, back = compare_summaries(one, other).statistics, compare_summaries(other, one).statistics
    for name in STATISTICS:
        assert there[name] == pytest.approx(back[name], nan_ok=True, rel=1e-12)
    assert 0 <= there["angle"] <= 180
    assert 0 <= there["ks"] <= 1
    assert there["spectrum_distance"] <= there["relative_displacement"] * (1 + 1e-9)  # Mirsky
    assert np.isnan(there["overlap"]) or -1e-12 <= there["overlap"] <= 1 + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_weights_differ_by_nothing(dtype: str) -> None:
    weights = normal(2, 50, 8, dtype=dtype)
    found = compared(weights, weights.copy()).statistics
    assert found["overlap"] == pytest.approx(1, abs=1e-12)
    assert {name: value for name, value in found.items() if name != "overlap"} == dict.fromkeys(
        [name for name in STATISTICS if name != "overlap"], 0.0
    )


def test_opposite_weights_are_half_a_turn_apart() -> None:
    weights = normal(3, 50, 8)
    found = compared(weights, -weights)
    assert found.statistics["angle"] == 180
    assert (found.row_angles == 180).all()
    assert found.statistics["relative_displacement"] == pytest.approx(2, rel=1e-12)
    assert found.statistics["overlap"] == pytest.approx(1, abs=1e-9)  # one subspace, whatever the sign


@pytest.mark.parametrize("angle", [1e-3, 1e-8, 1e-12])
def test_small_angles_keep_their_digits(angle: float) -> None:
    first = normal(4, 6, 50, dtype="float64")
    across = normal(5, 6, 50, dtype="float64")
    across -= first * ((first * across).sum() / (first**2).sum())
    across *= np.linalg.norm(first) / np.linalg.norm(across)
    second = 3 * (first + np.tan(angle) * across)
    assert compared(first, second).statistics["angle"] == pytest.approx(np.degrees(angle), rel=3e-4)
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    if angle < 1e-8:
        assert np.degrees(np.arccos(min(cosine, 1))) != pytest.approx(np.degrees(angle), rel=0.1)  # why not arccos


def test_weights_of_zeros_have_no_angle() -> None:
    weights = normal(6, 20, 5)
    weights[3] = 0
    zeros = np.zeros_like(weights)
    found = compared(weights, zeros)
    assert np.isnan([found.statistics[name] for name in ("angle", "row_angle", "overlap")]).all()
    assert found.statistics["relative_displacement"] == pytest.approx(np.sqrt(2))
    assert found.statistics["norm_difference"] == pytest.approx(np.sqrt(2))
    both = compared(zeros, zeros).statistics
    assert (both["displacement"], both["ks"]) == (0, 0)
    assert np.isnan(both["relative_displacement"])
    rows = compared(weights, weights).row_angles
    assert np.flatnonzero(np.isnan(rows)).tolist() == [3]
    assert compared(weights, weights).statistics["row_angle"] == 0  # of the other rows


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_have_no_summary(bad: float, dtype: str) -> None:
    weights = normal(7, 20, 5, dtype=dtype)
    weights[4, 1] = bad
    assert summarise_frame(History.from_array(weights[None]), 0) is None


def test_small_and_large_weights_do_not_leave_float64() -> None:
    first, second = normal(8, 30, 6, dtype="float64"), normal(9, 30, 6, dtype="float64")
    plain = compared(first, second).statistics
    for scale in (2.0**-1000, 2.0**400):
        found = compared(first * scale, second * scale).statistics
        for name in ("angle", "row_angle", "relative_displacement", "norm_difference", "spectrum_distance", "overlap"):
            assert found[name] == pytest.approx(plain[name], rel=1e-9)
        assert found["displacement"] == pytest.approx(plain["displacement"] * scale, rel=1e-9)
    apart = compared(first * 2.0**-500, second).statistics
    assert apart["angle"] == pytest.approx(plain["angle"], rel=1e-9)
    with pytest.raises(PythiaDynError, match="too large for their squares"):
        summary(first * 1e160)


def test_densities_beyond_float16_are_not_known() -> None:
    weights = normal(10, 10, 4)
    large = weights.copy()
    large[0, 0] = 1e6
    found = compared(weights, large).statistics
    assert np.isnan([found["ks"], found["wasserstein"]]).all()
    assert np.isfinite(found["angle"])


def test_distances_of_known_densities() -> None:
    first = np.repeat(np.array([[0.0, 1.0]], np.float16), 50, axis=0)
    assert distances(summary(first), summary(first + np.float16(0.25))) == (0.5, 0.25)
    assert distances(summary(first), summary(first + np.float16(4))) == (1, 4)
    signed = first.copy()
    signed[:, 0] = -0.0
    assert distances(summary(first), summary(signed)) == (0, 0)  # two codes, one number


def test_distances_take_two_dtypes_and_two_sizes() -> None:
    first, second = normal(11, 40, 5, dtype="float16"), normal(12, 30, 7, dtype="bfloat16")
    flat = [each.astype(np.float64).ravel() for each in (first, second)]
    expected = stats.ks_2samp(*flat).statistic, stats.wasserstein_distance(*flat)
    assert distances(summary(first), summary(second)) == pytest.approx(expected, rel=1e-12)


def test_two_shapes_have_densities_and_directions_only() -> None:
    first, second = normal(13, 40, 6), normal(14, 25, 6)
    found = compared(first, second)
    known = {name for name, value in found.statistics.items() if np.isfinite(value)}
    assert known == {"norm_difference", "ks", "wasserstein", "overlap"}
    assert len(found.row_angles) == 0
    rms = [np.sqrt((each.astype(np.float64) ** 2).mean()) for each in (first, second)]
    assert found.statistics["norm_difference"] == pytest.approx(abs(rms[0] - rms[1]) / np.sqrt(np.mean(np.square(rms))))
    assert np.isnan(compared(first, normal(15, 40, 7)).statistics["overlap"])


def test_a_subspace_that_rounding_decides_is_not_compared() -> None:
    weights = np.diag([4.0, 3.0, 2.0, 2.0, 1.0]).astype(np.float32)
    weights = np.vstack([weights, np.zeros((3, 5), np.float32)])
    for leading, known in ((2, True), (3, False), (4, True), (5, False)):  # 2 = 2; all five are the whole space
        assert np.isfinite(compared(weights, weights, leading).statistics["overlap"]) == known
    rank_two = (normal(16, 30, 2) @ normal(17, 2, 6)).astype(np.float32)
    assert np.isfinite(compared(rank_two, rank_two, 2).statistics["overlap"])
    assert np.isnan(compared(np.repeat(normal(18, 1, 6), 9, axis=0), rank_two, 2).statistics["overlap"])


def test_a_vector_is_one_row() -> None:
    first, second = normal(19, 40), normal(20, 40)
    found = compared(first, second)
    assert found.row_angles.tolist() == pytest.approx([found.statistics["angle"]])
    assert summary(first).singular_values.tolist() == pytest.approx([np.linalg.norm(first.astype(float))])


def test_independent_vectors_are_where_the_reference_says() -> None:
    angles, overlaps = [], []
    for seed in range(200):
        one, other = summary(normal(2 * seed, 40, 25), 5), summary(normal(2 * seed + 1, 40, 25), 5)
        found, reference = compare_summaries(one, other).statistics, independent(one, other)
        angles.append(found["angle"])
        overlaps.append(found["overlap"])
        assert found["displacement"] == pytest.approx(reference["displacement"], rel=0.1)
        assert found["relative_displacement"] == pytest.approx(reference["relative_displacement"], rel=0.1)
    assert reference["angle"] == 90
    assert np.mean(angles) == pytest.approx(90, abs=4 * reference["angle_sd"] / np.sqrt(200))
    assert np.std(angles) == pytest.approx(reference["angle_sd"], rel=0.2)
    assert reference["overlap"] == 5 / 25
    assert np.mean(overlaps) == pytest.approx(reference["overlap"], rel=0.1)
    assert independent(one, summary(normal(1, 40, 24), 5)) == {}
