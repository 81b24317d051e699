"""The claims about the order parameter, on curves of known truth and on saved results."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.claims.order import (
    ORDER_CLAIMS,
    OrderCurve,
    judge_b_monotone,
    judge_loss_falls,
    judge_slope_changes,
    loss_falls_with_b,
    slope_changes,
)
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import NotTestableError, decision_of

STEPS = np.arange(1, 61, dtype=np.int64) * 1000
B = np.linspace(0.05, 0.3, 60)


def curve(loss, b=B, steps=STEPS):
    return OrderCurve(steps, b, np.asarray(loss, dtype=np.float64))


def saved(**columns):
    data = {name: ("step", values) for name, values in columns.items()}
    return SavedResults.in_memory("suite", {"order.csv": xr.Dataset(data, {"step": STEPS})})


def test_b_that_grows_and_b_that_falls():
    assert judge_b_monotone(STEPS, B).verdict == "supported"
    dip = B.copy()
    dip[30] -= 0.008 * np.ptp(B)
    assert judge_b_monotone(STEPS, dip).verdict == "supported"
    dip[30] -= 0.05 * np.ptp(B)
    decision = judge_b_monotone(STEPS, dip)
    assert decision.verdict == "not supported"
    assert decision.evidence.is_exact
    assert "random walk" in decision.reason
    assert judge_b_monotone(STEPS, B[::-1]).verdict == "not supported"
    assert judge_b_monotone(STEPS, np.full(60, 0.1)).verdict == "not supported"
    with pytest.raises(NotTestableError, match="2 steps are too few"):
        judge_b_monotone(STEPS[:2], B[:2])


def test_a_loss_that_falls_rises_or_is_too_noisy():
    rng = np.random.default_rng(0)
    fall = 2 + np.exp(-10 * B)
    assert judge_loss_falls(curve(fall + 0.003 * rng.standard_normal(60))).verdict == "supported"
    noisy = [judge_loss_falls(curve(fall + 0.15 * rng.standard_normal(60))).verdict for _ in range(10)]
    assert "not supported" not in noisy
    assert noisy.count("undecided") >= 8
    rising = fall + 0.3 * np.maximum(B - 0.2, 0) / 0.1 + 0.003 * rng.standard_normal(60)
    assert judge_loss_falls(curve(rising)).verdict == "not supported"


def test_two_independent_monotone_series_pass_and_the_verdict_says_so():
    rng = np.random.default_rng(1)
    moved = 0
    for _ in range(10):
        b, loss = np.cumsum(rng.gamma(3, size=60)), 4 - 0.01 * np.cumsum(rng.gamma(3, size=60))
        decision = judge_loss_falls(curve(loss, b))
        assert decision.verdict == "supported"
        assert "two independent monotone series pass this test as well" in decision.reason
        moved += "so they move together" in decision.reason
    assert moved <= 2
    b = np.cumsum(rng.gamma(3, size=60))
    assert "so they move together" in judge_loss_falls(curve(4 - 0.01 * b, b)).reason


def test_a_small_dip_of_b_does_not_order_the_loss():
    """b falls by 0.15 % of its range at first, while the loss falls by half."""
    b, loss = B.copy(), 2 + np.exp(-10 * B)
    b[1], loss[0] = b[0] - 0.0015 * np.ptp(b), 6.0
    assert judge_loss_falls(curve(loss, b)).verdict == "supported"


def test_kinks_and_smooth_curves():
    rng = np.random.default_rng(2)
    u = (B - B[0]) / np.ptp(B)
    for after, word in ((0.25, "flatter"), (4.0, "steeper")):
        loss = 3 - np.minimum(u, 0.5) - after * np.maximum(u - 0.5, 0) + 0.003 * rng.standard_normal(60)
        decision = judge_slope_changes(curve(loss))
        assert decision.verdict == "supported"
        assert word in decision.reason
        assert decision.numbers["direction"] == word
    verdicts = [
        judge_slope_changes(curve(1 + 0.1 / B + size * rng.standard_normal(60))).verdict
        for size in (0.001, 0.003, 0.03)
        for _ in range(4)
    ]
    assert verdicts.count("supported") <= 1
    assert verdicts[:4].count("not supported") >= 3
    assert verdicts[-4:].count("undecided") >= 3


def test_the_untrained_model_is_no_kink():
    steps = np.append(0, STEPS[:-1])
    loss = 2 + np.exp(-10 * B) + 0.002 * np.random.default_rng(3).standard_normal(60)
    loss[0] = 10.0
    assert judge_slope_changes(curve(loss, steps=steps)).numbers["steps"] == 59


def test_saved_results_have_the_same_tests():
    rng = np.random.default_rng(4)
    loss = 2 + np.exp(-10 * B) + 0.003 * rng.standard_normal(60)
    results = saved(order_parameter=B, loss=loss)
    found = [decision_of(test, results) for test in ORDER_CLAIMS.values()]
    assert [claim.id for claim in ORDER_CLAIMS] == ["b-monotone", "loss-falls-with-b", "slope-changes"]
    wanted = judge_b_monotone(STEPS, B), judge_loss_falls(curve(loss)), judge_slope_changes(curve(loss))
    assert [decision.reason for decision in found] == [decision.reason for decision in wanted]


def test_without_a_loss_nothing_is_judged():
    results = saved(order_parameter=B)
    for test in (loss_falls_with_b, slope_changes):
        with pytest.raises(NotTestableError, match=r"order.csv has no loss: run .*--loss FILE"):
            test(results)
    few = curve(np.ones(5), B[:5], STEPS[:5])
    for judge in (judge_loss_falls, judge_slope_changes):
        with pytest.raises(NotTestableError, match="5 steps"):
            judge(few)
    with pytest.raises(NotTestableError, match="does not change"):
        judge_loss_falls(curve(np.ones(60)))
