"""Two steps compared passage by passage: by hand, against SciPy, and by how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import pythia_dynamics as pyd
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.paired import paired_difference


def result(nll: np.ndarray, tokens: np.ndarray | None = None, mode: str = "forward") -> xr.Dataset:
    tokens = np.ones_like(nll) if tokens is None else tokens
    variables = {"sentence_nll": (("step", "sentence"), nll), "sentence_tokens": (("step", "sentence"), tokens)}
    return xr.Dataset(variables, {"step": np.arange(len(nll)) * 1000}, {"mode": mode})


def test_a_difference_by_hand() -> None:
    # NLL per token 2, 3, 5 and then 1, 3, 3: differences −1, 0 and −2, standard deviation 1.
    nll, tokens = np.array([[2.0, 6, 20], [1, 6, 12]]), np.array([[1.0, 2, 4]] * 2)
    found = paired_difference(result(nll, tokens), 0, 1000)
    assert (found.first, found.second, found.sentences) == (0, 1000, 3)
    assert found.difference == -1
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.t_p == pytest.approx(2 * stats.t.sf(math.sqrt(3), df=2))
    back = paired_difference(result(nll, tokens), 1000, 0)
    assert (back.difference, back.t_p) == (1, found.t_p)
    words = paired_difference(result(nll, tokens, "last-word"), 0, 1000)  # the NLL of a word is not per token
    assert words.difference == pytest.approx(-3)
    assert pyd.paired_difference is paired_difference


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 40, size=(2, 60)).astype(float)
    per_token = rng.normal(3, 1, size=60) + rng.normal(0, 0.1, size=(2, 60))
    found = paired_difference(result(per_token * tokens, tokens), 0, 1000)
    assert found.t_p == pytest.approx(stats.ttest_rel(*per_token).pvalue, rel=1e-9)
    assert found.signed_rank_p == pytest.approx(stats.wilcoxon(*per_token).pvalue, rel=1e-9)


def test_passages_that_one_of_the_steps_did_not_score_are_left_out() -> None:
    nll = np.array([[2.0, np.nan, 4, 0, 1], [1.0, 3, np.inf, 0, 3]])
    found = paired_difference(result(nll, np.array([[1.0, 1, 1, 0, 1]] * 2)), 0, 1000)
    assert (found.sentences, found.difference) == (2, 0.5)
    with pytest.raises(PythiaDynError, match="no passage has an NLL at both of the steps 0 and 1000"):
        paired_difference(result(np.array([[np.nan, 1], [1, np.nan]])), 0, 1000)
    with pytest.raises(UnknownNameError, match="no step 7"):
        paired_difference(result(nll), 0, 7)


def test_steps_that_do_not_differ() -> None:
    nll = np.random.default_rng(1).normal(3, 1, size=20)
    same = paired_difference(result(np.stack([nll, nll])), 0, 1000)
    assert (same.difference, same.standard_error, same.signed_rank_p) == (0, 0, 1)
    assert math.isnan(same.t_p)
    single = paired_difference(result(np.array([[2.0], [1.0]])), 0, 1000)
    assert single.difference == -1
    assert math.isnan(single.standard_error)


def test_it_is_wrong_as_often_as_it_says_and_sees_what_the_means_hide() -> None:
    rng = np.random.default_rng(2)
    passages = rng.normal(3, 1, size=(400, 1, 50))  # they differ far more than the steps do
    noise = rng.normal(0, 0.1, size=(400, 2, 50))
    for shift, name, least, most in ((0.0, "t_p", 0.02, 0.08), (0.06, "t_p", 0.7, 1.0)):
        both = passages + noise + shift * np.arange(2)[:, None]
        found = [paired_difference(result(each), 0, 1000) for each in both]
        for test in (name, "signed_rank_p"):
            assert least <= np.mean([getattr(each, test) < 0.05 for each in found]) <= most
        unpaired = np.mean([stats.ttest_ind(*each).pvalue < 0.05 for each in both])
        assert unpaired < 0.02
