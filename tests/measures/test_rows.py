"""Rows of W against plain NumPy and SciPy, planted relations with the frequency, and their nulls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.walks import DTYPES, walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures import rows as module
from pythia_dynamics.measures.rows import CORRELATIONS, UNIGRAM, read_frequencies, rows, unigram_direction
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning
from pythia_dynamics.sweep.row_sums import RowSums
from pythia_dynamics.sweep.sweep import sweep

KINDS = ("norm", "drift", "update")


def oracle(w):
    """The three lengths of each row, shape (T, v) each."""
    w = w.astype(np.float64)
    norm, drift = np.linalg.norm(w, axis=2), np.linalg.norm(w - w[0], axis=2)
    update = np.full_like(norm, np.nan)
    update[1:] = np.linalg.norm(np.diff(w, axis=0), axis=2)
    return {"norm": norm, "drift": drift, "update": update}


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 6),
    count=st.integers(1, 70),
    columns=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    slab=st.sampled_from([64, 128, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_the_rows_are_those_of_numpy(length, count, columns, dtype, slab, seed):
    w = walk(length, count, columns, dtype, seed)
    history = History.from_array(w)
    (sums,) = sweep(history, [RowSums()], Compute(threads=2), slab=slab)  # slabs that cut rows
    expected = oracle(w)
    found = np.sqrt(sums.total)
    np.testing.assert_allclose(found[:, :, 0], expected["norm"], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found[:, :, 1], expected["drift"], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found[1:, :, 2], expected["update"][1:], rtol=1e-5, atol=1e-12)
    result = rows(w)
    for kind in KINDS:
        np.testing.assert_allclose(result[f"row_{kind}"], expected[kind], rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(result[kind], expected[kind].mean(axis=1), rtol=1e-5, atol=1e-12)
        assert result[f"row_{kind}"].dtype == np.float32
    assert not {*CORRELATIONS, *UNIGRAM} & set(result.data_vars)


def test_correlations_and_deciles_are_those_of_scipy():
    w = walk(4, 200, 12, np.float32)
    counts = np.random.default_rng(0).integers(0, 30, size=200)  # with ties and zeros
    result, expected, seen = rows(w, frequencies=counts), oracle(w), counts > 0
    order = np.flatnonzero(seen)[np.argsort(counts[seen], kind="stable")]
    groups = [np.flatnonzero(~seen), *(order[np.arange(len(order)) * 10 // len(order) == k] for k in range(10))]
    for kind in KINDS:
        for t in range(1, 4):
            rho, p = stats.spearmanr(expected[kind][t][seen], counts[seen])
            assert float(result[f"spearman_{kind}"][t]) == pytest.approx(rho, abs=1e-6)
            assert float(result[f"spearman_{kind}_p"][t]) == pytest.approx(p, rel=1e-4)
            means = [expected[kind][t][group].mean() for group in groups]
            np.testing.assert_allclose(result[f"decile_{kind}"][t], means, rtol=1e-5)
    assert np.isnan(result["spearman_drift"][0])  # all zero


def test_rows_that_grow_with_the_frequency():
    rng = np.random.default_rng(1)
    counts = np.round(1e6 / np.arange(1, 501))  # Zipf
    start = rng.standard_normal((500, 20))
    start *= rng.uniform(0.99, 1.01, size=(500, 1)) / np.linalg.norm(start, axis=1, keepdims=True)
    w = np.array([start * (1 + 0.1 * t * np.log(counts)[:, None]) for t in range(3)])
    result = rows(w, frequencies=counts)
    assert float(result["spearman_norm"][2]) > 0.8
    assert float(result["spearman_norm_p"][2]) < 1e-50
    assert abs(float(result["spearman_norm"][0])) < 0.2
    assert (np.diff(result["decile_norm"][2][1:]) > 0).all()
    assert np.isnan(result["decile_norm"][2][0])  # all tokens occur


def test_a_planted_unigram_direction_is_found_and_noise_is_its_null():
    rng = np.random.default_rng(2)
    counts = np.round(1e6 / rng.permutation(np.arange(1, 2001)))
    log = np.log(counts) - np.log(counts).mean()
    noise, planted = rng.standard_normal((2000, 16)), rng.standard_normal(16)
    w = np.array([noise, noise + 3 * np.outer(log, planted), np.outer(log, planted) + 5])
    result = rows(w, frequencies=counts)
    assert float(result["unigram_r2"][0]) < 0.03
    np.testing.assert_allclose(result["unigram_r2_null"], 16 / 2000, atol=0.012)
    assert float(result["unigram_r2"][1]) > 0.98
    assert float(result["unigram_r2"][2]) == pytest.approx(1, abs=1e-5)
    u, explained, mean = unigram_direction(w[1], np.log(counts)[:, None], np.arange(2000))
    expected = (w[1] - w[1].mean(axis=0)).T @ log
    np.testing.assert_allclose(u[:, 0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    coordinate = (w[1] - w[1].mean(axis=0)) @ expected
    assert explained[0] == pytest.approx(np.corrcoef(coordinate, log)[0, 1] ** 2, rel=1e-5)
    np.testing.assert_allclose(mean, w[1].mean(axis=0), rtol=1e-6)
    cosine = expected @ mean / np.linalg.norm(expected) / np.linalg.norm(mean)
    assert float(result["unigram_mean_cosine"][1]) == pytest.approx(cosine, rel=1e-3)


def test_the_direction_does_not_depend_on_blocks(monkeypatch):
    w = walk(1, 300, 8, np.float16)[0]
    y, chosen = np.random.default_rng(0).standard_normal((150, 2)), np.arange(0, 300, 2)
    whole = unigram_direction(w, y, chosen)
    monkeypatch.setattr(module, "_BLOCK", 8 * 7)
    for one, other in zip(whole, unigram_direction(w, y, chosen), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_gaps_zeros_and_bad_weights():
    w = walk(7, 40, 4, np.float32)
    w[2, 0, 0], w[5] = np.nan, 0
    history = History.from_array(w, steps=[0, 1, 2, 4, 8, 16, 32], missing={1: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 1"), pytest.warns(NonFiniteWarning, match="step 2"):
        result = rows(history, frequencies=np.arange(40))
    assert result["row_step"].values.tolist() == [0, 4, 8, 16, 32]
    expected = oracle(w[[0, 3, 4, 5, 6]])
    for kind in KINDS:
        np.testing.assert_allclose(result[f"row_{kind}"], expected[kind], rtol=1e-5)
        assert np.isnan(result[kind][[1, 2]]).all()
        assert np.isnan(result[f"decile_{kind}"][[1, 2]]).all()
    for name in ("spearman_norm", "unigram_r2", "unigram_mean_cosine"):
        assert np.isnan(result[name].to_numpy()).tolist() == [False, True, True, False, False, True, False], name
    with pytest.warns(NonFiniteWarning):
        nothing = rows(np.full((2, 30, 2), np.inf, np.float32), frequencies=np.arange(30))
    assert np.isnan(nothing["norm"]).all()
    assert np.isnan(nothing["unigram_r2"]).all()
    with pytest.raises(PythiaDynError, match="too large"):
        rows(1e200 * walk(2, 3, 3, np.float64))


def test_constant_weights_one_step_and_vectors():
    w = np.repeat(walk(1, 30, 3, np.float16), 3, axis=0)
    result = rows(w, frequencies=np.arange(30))
    assert (result["drift"] == 0).all()
    assert np.isnan(result["spearman_drift"]).all()
    assert np.isfinite(result["spearman_norm"]).all()
    assert np.isnan(rows(w[:1])["update"]).all()
    vector = rows(walk(3, 50, 1, np.float32)[..., 0])
    assert vector.sizes["row"] == 50


def test_long_histories_keep_evenly_spaced_rows(monkeypatch):
    monkeypatch.setattr(module, "MOST_VALUES", 100)
    w = walk(9, 20, 3, np.float32)
    result = rows(w)
    assert result["row_step"].values.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(result["row_norm"][1], oracle(w)["norm"][2], rtol=1e-5)
    assert result.sizes["step"] == 9
    assert np.isfinite(result["norm"]).all()


def test_padding_can_be_left_out():
    w = walk(3, 30, 4, np.float16)
    counts = np.arange(20)
    one = rows(w, frequencies=counts, compute=Compute(rows=20))
    assert one.identical(rows(w[:, :20], frequencies=counts))


def test_frequencies_of_every_kind(tmp_path: Path):
    counts = {token: 3.0 * token for token in range(1, 15)}
    file = tmp_path / "counts.csv"
    file.write_text("token_id,count\n" + "".join(f"{token},{count}\n" for token, count in counts.items()))
    expected = np.append(3.0 * np.arange(15), np.zeros(5))
    for given_ in (counts, file, str(file), expected, expected[:15].tolist()):
        np.testing.assert_array_equal(read_frequencies(given_, 20), expected)


@pytest.mark.parametrize(
    ("frequencies", "said"),
    [
        (np.ones((2, 3)), "one value per row"),
        ({0: -1.0}, "the count of token 0 is -1"),
        ({0: np.inf}, "the count of token 0 is inf"),
        ({20: 1.0}, "token 20 has no row; there are 20"),
        (np.ones(9), "only 9 tokens occur; 10 are needed"),
    ],
)
def test_bad_frequencies_are_refused(frequencies, said):
    with pytest.raises(PythiaDynError, match=said):
        rows(walk(2, 20, 3, np.float32), frequencies=frequencies)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "token_id,count\nx,2\n", "token_id,count\n1\n"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str):
    file = tmp_path / "counts.csv"
    file.write_text(text)
    with pytest.raises(PythiaDynError, match=r"counts\.csv"):
        rows(walk(2, 20, 3, np.float32), frequencies=file)
    with pytest.raises(PythiaDynError, match="no table of token_id and count"):
        rows(walk(2, 20, 3, np.float32), frequencies=tmp_path / "none.csv")
