"""The covariance rank against NumPy's `cov` and `matrix_rank` on a small vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from support import oracles
from support.walks import walk

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.rank import Projection, covariance_rank
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [50, 24, 9])  # more than columns, as many, fewer
def test_ranks_are_those_of_the_covariance_formed_in_full(rows, dtype, monkeypatch):
    monkeypatch.setattr("pythia_dynamics.sweep.frame_gram._PROJECTED_ELEMENTS", 24 * 4)  # blocks of four rows
    w = walk(3, rows, 24, dtype, scale=0.15 * (50 / rows) ** 0.5)
    sizes, tolerances = (4, 16, 40), (0.1, 0.35, 0.8)
    result = covariance_rank(w, batch_sizes=sizes, tolerances=tolerances, draws=3, seed=5)
    projection = Projection(sizes, tolerances, 3, 5)
    for t, size, tolerance, convention in np.ndindex(3, 3, 3, 2):
        ranks = [
            oracles.covariance_rank(
                w[t].astype(np.float64), batch, tolerances[tolerance], ("absolute", "relative")[convention]
            )
            for batch in projection.batches(sizes[size], 24)
        ]
        found = result.isel(step=t, batch_size=size, tolerance=tolerance, convention=convention)
        assert float(found["rank"]) == pytest.approx(np.mean(ranks))
        assert float(found["rank_se"]) == pytest.approx(np.std(ranks, ddof=1) / np.sqrt(3))
    np.testing.assert_allclose(result["rank_difference"][1:], np.diff(result["rank"], axis=0))
    assert np.isnan(result["rank_difference"][0]).all()
    assert len(np.unique(result["rank"])) > 5


def test_the_rank_tends_to_that_of_an_infinite_batch():
    w = walk(1, 50, 10, np.float64, scale=0.15)
    result = covariance_rank(w, batch_sizes=[1000], tolerances=[0.1, 0.5], draws=1)
    wanted = [
        [np.linalg.matrix_rank(w[0] @ w[0].T, tol=tol), np.linalg.matrix_rank(w[0] @ w[0].T, rtol=tol)]
        for tol in (0.1, 0.5)
    ]
    assert result["rank_infinite"][0].values.tolist() == wanted
    np.testing.assert_allclose(result["rank"][0, 0], wanted, atol=1)
    assert np.isnan(result["rank_se"]).all()


def test_the_same_batch_meets_every_step():
    w = np.broadcast_to(walk(1, 40, 12, np.float32), (4, 40, 12))
    result = covariance_rank(w, batch_sizes=(8,))
    assert (result["rank"] == result["rank"][0]).all()
    assert (result["rank_difference"][1:] == 0).all()
    assert not covariance_rank(w, batch_sizes=(8,), seed=1).identical(result)


def test_a_centred_batch_loses_one_rank():
    w = np.eye(30)[None] * 100
    result = covariance_rank(w, batch_sizes=(5,), tolerances=(0.1,))
    assert result["rank"].sel(convention="absolute").item() == 4


def test_gaps_are_nan_and_differences_reach_over_them():
    w = walk(4, 30, 8, np.float32, scale=0.2)
    w[1, 0, 0] = np.nan
    history = History.from_array(w, missing={2: "lost"})
    with pytest.warns(MissingStepsWarning), pytest.warns(NonFiniteWarning, match="step 1"):
        result = covariance_rank(history)
    assert result["rank"].isnull().all(("batch_size", "tolerance", "convention")).values.tolist() == [
        False,
        True,
        True,
        False,
    ]
    np.testing.assert_array_equal(result["rank_difference"][3], result["rank"][3] - result["rank"][0])


def test_the_smallest_batches_and_two_draws():
    result = covariance_rank(walk(2, 30, 8, np.float64), batch_sizes=(2, 3), tolerances=(1e-6,), draws=2)
    assert (result["rank"].max(("step", "tolerance", "convention")) <= [1, 2]).all()
    assert np.isfinite(result["rank_se"]).all()
    batches = Projection((2,), (0.1,), 2, 0).batches(2, 8)
    assert not batches.flags.writeable  # every step uses the same ones


def test_a_singular_value_at_the_tolerance_does_not_count():
    w = np.diag([1.0, 0.5, 0.25])[None]  # singular values of the limit of W Wᵀ: 1, 1/4, 1/16
    result = covariance_rank(w, tolerances=(0.25, 0.2, 1.0))["rank_infinite"][0]
    assert result.sel(convention="absolute").values.tolist() == [1, 2, 0]
    assert result.sel(convention="relative").values.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (1,)}, "at least 2"),
        ({"batch_sizes": ()}, "at least 2"),
        ({"tolerances": (0.0,)}, "positive"),
        ({"draws": 0}, "at least 1"),
        ({"seed": -1}, "negative"),
        ({"batch_sizes": (4, 4)}, "different"),
        ({"tolerances": (0.1, 0.1)}, "different"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(PythiaDynError, match=message):
        covariance_rank(np.ones((1, 3, 3)), **options)
