"""Cosine and CKA of two tensors against plain NumPy, their exact null against all permutations, known rotations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.project import Project
from support.walks import DTYPES, walk

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures import alignment as module
from pythia_dynamics.measures.alignment import COLUMNS, align_rows, alignment
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning


def oracle(e, u):
    """The cosine and the CKA, from the v × v matrices of inner products."""
    e, u = e.astype(np.float64), u.astype(np.float64)
    cosine = np.mean(np.sum(e * u, axis=1) / np.linalg.norm(e, axis=1) / np.linalg.norm(u, axis=1))
    e, u = e - e.mean(axis=0), u - u.mean(axis=0)
    k, m = e @ e.T, u @ u.T
    return cosine, np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_and_cka_are_those_of_numpy(dtype, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 64)
    e, u = walk(3, 50, 8, dtype, 0), walk(3, 50, 8, dtype, 1)
    result = alignment(u, e)
    for t in range(3):
        cosine, cka = oracle(e[t], u[t])
        assert float(result["cosine"][t]) == pytest.approx(cosine, abs=1e-6)
        assert float(result["cka"][t]) == pytest.approx(cka, rel=1e-4)


def test_the_null_is_the_mean_over_all_permutations():
    rng = np.random.default_rng(0)
    e, u = rng.standard_normal((6, 3)) + 0.5, rng.standard_normal((6, 3)) + 1
    all_of_them = np.array([oracle(e, u[list(order)]) for order in itertools.permutations(range(6))])
    _, null, spread, _, cka_null = align_rows(e, u)
    assert null == pytest.approx(all_of_them[:, 0].mean(), rel=1e-5)
    assert spread == pytest.approx(all_of_them[:, 0].std(), rel=1e-5)
    assert cka_null == pytest.approx(all_of_them[:, 1].mean(), rel=1e-5)


def test_equal_rotated_and_independent_tensors():
    rng = np.random.default_rng(1)
    e = rng.standard_normal((500, 12))
    q, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    cosine, null, spread, cka, cka_null = align_rows(e, 3 * e)
    assert cosine == pytest.approx(1)
    assert cka == pytest.approx(1)
    assert abs(null) < 0.01
    cosine, null, spread, cka, _ = align_rows(e, e @ q)
    assert cka == pytest.approx(1, rel=1e-5)
    assert abs(cosine) < 0.6
    other = rng.standard_normal((500, 12))
    cosine, null, spread, cka, cka_null = align_rows(e, other)
    assert abs(cosine - null) < 4 * spread
    assert spread == pytest.approx(1 / np.sqrt(500 * 12), rel=0.05)
    assert cka == pytest.approx(cka_null, rel=0.3)
    shared = align_rows(e + 10, other + 10)  # one mean row
    assert shared[0] > 0.9
    assert shared[1] > 0.9


def test_gaps_bad_and_zero_weights():
    e, u = walk(5, 30, 4, np.float32, 0), walk(5, 30, 4, np.float32, 1)
    u[1, 0, 0], e[2, :10], e[4] = np.nan, 0, 0
    inputs = History.from_array(e[[0, 1, 2, 4]], steps=[0, 10, 20, 40], tensor="in")
    heads = History.from_array(u, steps=[0, 10, 20, 30, 40], tensor="out", missing={0: "lost"})
    with pytest.warns(MissingStepsWarning, match="step 0"), pytest.warns(NonFiniteWarning, match="step 10"):
        result = alignment(heads, inputs)
    for name in COLUMNS:
        assert np.isnan(result[name].to_numpy()).tolist() == [True, True, False, True, True], name
    cosine, _ = oracle(e[2, 10:], u[2, 10:])  # of the tokens with two rows
    assert float(result["cosine"][2]) == pytest.approx(cosine, abs=1e-6)
    assert result.attrs["embedding"] == "in"
    rows = alignment(walk(1, 30, 4, np.float32), e[:1], rows=20)
    assert rows["cka"].values == pytest.approx(oracle(e[0, :20], walk(1, 30, 4, np.float32)[0, :20])[1], rel=1e-4)


def test_what_cannot_be_compared_is_refused():
    w = walk(2, 30, 4, np.float32)
    history = History.from_array(w)
    with pytest.raises(PythiaDynError, match="tied weights"):
        alignment(history, history)
    with pytest.raises(PythiaDynError, match="two matrices of one shape"):
        alignment(w, w[:, :20])
    with pytest.raises(PythiaDynError, match="give the embedding"):
        alignment(w)
    with pytest.raises(PythiaDynError, match="rows must be from 1 to 30"):
        alignment(w, w + 1, rows=31)


def test_the_figure_shows_the_null():
    result = alignment(walk(4, 50, 8, np.float32, 0), walk(4, 50, 8, np.float32, 1))
    with figures.sheet(columns=2) as (_, axes):
        figures.row_cosine(axes[0], result)
        figures.row_similarity(axes[1], result)
        np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), result["cosine"])
        np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), result["cka_null"])
        assert [ax.get_ylabel() for ax in axes] == ["mean cosine of embedding and unembedding", "linear CKA"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.tiny_models import write_suite

    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    write_suite(tmp_path / "suite", (1000, 2000))
    project.fetch("suite")
    assert "embedding" in project.failure("alignment", "--model", "suite")
    project.fetch("suite", "--tensor", "embedding")
    (facts,) = project.facts("alignment", "--model", "suite")
    assert {Path(path).name for path in facts["files"]} == {"alignment.csv", "alignment.png", "alignment.svg"}
    assert len(facts["cka"]) == 2
    again = project.facts("figures", "--model", "suite")["suite"]
    assert any(path.endswith("alignment.png") for path in again)
