"""Band, components of variance, and data against weights: against plain loops, and on truths that are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from support.populations import curves, positive

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.spread import CENTRAL, WINDOW, band, data_or_weights, variances


def test_the_band_is_that_of_each_step_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 40))
    values[rng.random(values.shape) < 0.3] = np.nan
    values[:, 5] = np.nan
    values[1:, 6] = np.nan
    values[0, 6], values[0, 7] = 3.0, np.inf
    found = band(curves(values))
    for step in range(40):
        known = [value for value in values[:, step] if np.isfinite(value)]
        assert int(found["runs"][step]) == len(known)
        wanted = [np.percentile(known, 100 * q) if known else np.nan for q in (CENTRAL[0], 0.5, CENTRAL[1])]
        got = [float(found[name][step]) for name in ("low", "median", "high")]
        np.testing.assert_allclose(got, wanted)
    assert float(found["median"][6]) == float(found["low"][6]) == 3.0


def test_a_curve_is_over_run_and_step() -> None:
    with pytest.raises(PythiaDynError, match="over run and step, not run, lag"):
        band(xr.DataArray(np.ones((2, 3)), dims=("run", "lag")))
    turned = curves(np.arange(80.0).reshape(2, 40)).transpose("step", "run")
    np.testing.assert_array_equal(band(turned)["median"], np.arange(40) + 20.0)


def plain_variances(values: np.ndarray) -> tuple[float, float]:
    """The definition in loops: parabolas through the nearest records; the share of noise by unit vectors."""

    def smooth(y: np.ndarray) -> np.ndarray:
        out = np.empty(len(y))
        for t in range(len(y)):
            first = min(max(t - WINDOW // 2, 0), len(y) - WINDOW)
            at = np.arange(first, first + WINDOW)
            out[t] = np.polyval(np.polyfit(at - t, y[at], 2), 0)
        return out

    fits = np.full(values.shape, np.nan)
    shares = np.full(values.shape, np.nan)
    squares = freedom = 0.0
    for run, y in enumerate(values):
        at = np.flatnonzero(np.isfinite(y))
        fits[run, at] = smooth(y[at])
        responses = np.column_stack([smooth(unit) for unit in np.eye(len(at))])
        shares[run, at] = [sum(entry**2 for entry in row) for row in responses]
        squares += ((y[at] - fits[run, at]) ** 2).sum()
        freedom += sum((np.eye(len(at)) - responses).ravel() ** 2)
    within = squares / freedom
    steps = [t for t in range(values.shape[1]) if np.isfinite(fits[:, t]).sum() > 1]
    spreads = [np.nanvar(fits[:, t], ddof=1) - within * np.nanmean(shares[:, t]) for t in steps]
    return max(np.mean(spreads), 0.0), within


def test_variances_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 1)) + 0.4 * rng.normal(size=(4, 20)) - 5
    values[1, [3, 4, 17]] = np.nan
    found = variances(curves(values, np.arange(20)))
    between, within = plain_variances(values)
    assert not found.logarithmic
    assert found.between == pytest.approx(between, rel=1e-9)
    assert found.within == pytest.approx(within, rel=1e-9)
    assert found.icc == pytest.approx(between / (between + within), rel=1e-9)
    logarithms = variances(curves(np.exp(values), np.arange(20)))
    assert logarithms.logarithmic
    assert logarithms.within == pytest.approx(within, rel=1e-9)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.5), (0.2, 1.0), (0.0, 1.0)])
def test_variances_are_the_true_ones_on_average(between: float, within: float) -> None:
    """A common curve that bends, an offset per run, noise per record: the bend is no variance."""
    rng = np.random.default_rng(2)
    common = 5 * np.exp(-np.arange(40) / 15)
    drawn = [between * rng.normal(size=(8, 1)) + within * rng.normal(size=(8, 40)) + common - 50 for _ in range(100)]
    found = [variances(curves(values)) for values in drawn]
    assert np.mean([one.within for one in found]) == pytest.approx(within**2, rel=0.03)
    assert np.mean([one.between for one in found]) == pytest.approx(between**2, rel=0.1, abs=0.03)


def test_variances_of_little() -> None:
    values = np.random.default_rng(3).normal(size=(3, 40))
    assert variances(curves(values[:1])).reason == f"1 of 1 runs have {WINDOW} records or more; two are needed"
    short = values.copy()
    short[1:, WINDOW - 1 :] = np.nan
    assert variances(curves(short)).runs == 1
    apart = values[:2].copy()
    apart[0, 20:], apart[1, :20] = np.nan, np.nan
    assert variances(curves(apart)).reason == "no two runs have a step in common"
    equal = variances(curves(np.repeat(np.arange(40.0)[None] + 1, 3, axis=0)))
    assert (np.isnan(equal.icc), equal.reason) == (True, "the runs are equal")
    assert np.isnan(variances(curves(np.full((3, 40), np.nan))).icc)


def plain_permutation(one: np.ndarray, other: np.ndarray) -> float:
    left = [*(one - one.mean()), *(other - other.mean())]

    def size(first: tuple[int, ...]) -> float:
        a = [left[i] for i in first]
        b = [left[i] for i in range(len(left)) if i not in first]
        return abs(np.log(np.var(a, ddof=1) / np.var(b, ddof=1)))

    own = size(tuple(range(len(one))))
    sizes = [size(first) for first in itertools.combinations(range(len(left)), len(one))]
    return sum(each >= own - 1e-9 for each in sizes) / len(sizes)


def ends(data: np.ndarray, weights: np.ndarray) -> tuple[xr.DataArray, list[str]]:
    values = np.repeat(np.concatenate([data, weights])[:, None], 40, axis=1)
    return curves(values - 100), ["data"] * len(data) + ["weight"] * len(weights)


def test_the_permutation_test_is_that_of_all_divisions() -> None:
    rng = np.random.default_rng(4)
    for count in (3, 4, 5):
        data, weights = 3 * rng.normal(size=count), rng.normal(size=count + 1)
        found = data_or_weights(*ends(data, weights))
        assert found.p == pytest.approx(plain_permutation(data, weights))
        assert found.ratio == pytest.approx(data.var(ddof=1) / weights.var(ddof=1))
        assert (found.data, found.weights) == (count, count + 1)
        assert found.low < found.ratio < found.high


def test_three_runs_of_each_are_undecided_whatever_the_ratio() -> None:
    found = data_or_weights(*ends(np.array([-9.0, 0.0, 8.0]), np.array([0.0, 0.001, -0.0013])))
    assert found.answer == "undecided"
    assert found.p == pytest.approx(0.1)
    assert found.ratio > 1e6
    assert found.low > 1  # an interval alone would have decided


def test_the_interval_holds_the_true_ratio_and_decisions_are_right() -> None:
    rng = np.random.default_rng(5)
    held = [data_or_weights(*ends(2 * rng.normal(size=6), rng.normal(size=6))) for _ in range(200)]
    assert np.mean([one.low <= 4 <= one.high for one in held]) == pytest.approx(0.95, abs=0.04)
    alike = [data_or_weights(*ends(rng.normal(size=5), rng.normal(size=5))).answer for _ in range(200)]
    assert np.mean([answer != "undecided" for answer in alike]) <= 0.05
    for scale, right in ((20.0, "data"), (0.05, "weights")):
        drawn = [str(data_or_weights(*ends(scale * rng.normal(size=6), rng.normal(size=6))).answer) for _ in range(50)]
        assert drawn.count(right) >= 40
        assert set(drawn) <= {right, "undecided"}


def test_data_or_weights_of_little() -> None:
    values, kinds = ends(np.arange(4.0), np.arange(4.0) ** 2)
    with pytest.raises(PythiaDynError, match="a kind for each run; got 2 for 8 runs"):
        data_or_weights(values, kinds[:2])
    few = data_or_weights(values, ["data", "data", "", "seed", *kinds[4:]])
    assert few.reason == "2 data seeds and 4 weight seeds; 3 of each are needed"
    empty = values.copy()
    empty[:2] = np.nan
    assert data_or_weights(empty, kinds).data == 2
    apart = values.copy()
    apart[:4, :20], apart[4:, 20:] = np.nan, np.nan
    assert data_or_weights(apart, kinds).reason == "no step is common to the data seeds and the weight seeds"
    early = values.copy()
    early[0, 30:] = np.nan
    assert data_or_weights(early, kinds).steps == (28_000, 29_000, 30_000)
    assert data_or_weights(*ends(np.full(4, 2.0), np.arange(4.0))).reason == "the data seeds are equal"
    assert data_or_weights(*ends(np.arange(4.0), np.full(4, 2.0))).reason == "the weight seeds are equal"


def test_many_runs_are_compared_with_random_divisions() -> None:
    ends_of_runs = np.random.default_rng(6).normal(size=(20, 1))
    values, kinds = positive(np.repeat(ends_of_runs, 40, axis=1)), ["data", "weight"] * 10
    found = data_or_weights(values, kinds)
    assert 0.05 < found.p <= 1
    assert found == data_or_weights(values, kinds)  # the seed of the divisions is fixed
    shrunk = np.where(np.arange(20)[:, None] % 2, 0.1, 1.0) * ends_of_runs
    assert data_or_weights(positive(np.repeat(shrunk, 40, axis=1)), kinds).answer == "data"
