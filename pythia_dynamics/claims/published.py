"""The claims on EleutherAI's published LAMBADA results: 16 models at 27 steps each, with standard errors. No network.

The claims are two of "The Garden of Forking Paths" (perplexity drops after the bifurcation, towards zero), and what
Godey et al. (arXiv 2404.07647) say of late training. Perplexities are compared as logarithms. The standard errors are
those of two different sets of texts although all steps have the same texts: differences are known better than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.registry import SIZES, Architecture
from pythia_dynamics.claims.drops import LEAST_DROP
from pythia_dynamics.claims.evidence import LEVEL, Evidence
from pythia_dynamics.claims.lambada_curve import WINDOW, PublishedCurve, chosen_best_p, p_of, plateaus, scatter_of
from pythia_dynamics.claims.saved import paper_bifurcation
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Verdict, corrected, decision_of
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.levels import TWO_SIDED
from pythia_dynamics.results.published_lambada import published_models

__all__ = [
    "DROPS",
    "HURTS",
    "LITERATURE",
    "SMALL_MODELS",
    "TOWARDS_ZERO",
    "PublishedScorecard",
    "drops_after_bifurcation",
    "falls_below_one",
    "judge_published",
    "late_training_hurts",
    "small_models",
]

LITERATURE = (
    "Godey et al. (arXiv 2404.07647) explain it by a saturating LM head: models of less than 1,000 hidden dimensions "
    "get degenerate representations late in pretraining",
    "A study of 108 OLMo-style models (arXiv 2602.20433) finds that a low effective rank of the unembedding "
    "co-occurs with it and does not cause it",
)
"""What is known beside the verdicts."""

LEAST_FACTOR = 1.1
"""Least factor between two perplexities that counts: 10 %, as for the other claims on perplexities. It is two to four
standard errors of a published value, so that a single comparison can show it; less would not change a conclusion."""

SMALL_WIDTH = 1000
"""Hidden dimensions below which a model is small, from the abstract of arXiv 2404.07647."""

_BEFORE = 5
"""Steps before the bifurcation that give the slope: 40,000 steps of training, more than twice the window of a level."""

_PERSISTENCE = (0.0, 0.6)
"""Correlation of the noise at neighbouring steps in the null of a fall: none; and as much as 40,000 steps forget."""


@dataclass(frozen=True)
class PublishedScorecard:
    """The verdicts on the published table.

    Parameters
    ----------
    models
        The verdicts on each model, the smallest model first.
    over_models
        The verdicts on claims about all models.
    tests
        Number of p-values; each is corrected for all of them.
    """

    models: Mapping[str, tuple[Verdict, ...]]
    over_models: tuple[Verdict, ...]
    tests: int


HURTS = Claim(
    "published-late-training-hurts",
    "Late training hurts: the last checkpoint of this run is worse than an earlier one.",
    "§3",
    "Last-word perplexity on LAMBADA as EleutherAI published it: the last step against the best. p is the probability "
    "of such a factor on a plateau with the published standard errors, where the best step is chosen in the same way. "
    "It is open where the mean of the last three steps does not exceed the best mean of three neighbouring ones beyond "
    "the scatter between steps, and refuted where these means exclude the least factor.",
    "a factor of 1.1",
    "Why do small language models underperform?",
    remark="Only the errors of the sampled texts count, so this is about these checkpoints; whether other runs of the "
    "size do so as well is asked of all models. " + "; ".join(LITERATURE),
)
DROPS = Claim(
    "published-perplexity-drops",
    "The perplexity drops after the bifurcation.",
    "Fig 4",
    "Published last-word perplexity on LAMBADA: mean logarithm of the steps after the paper's bifurcation against the "
    "three before it, and against the continued slope of the five before it where that falls. p is of plateaus with "
    "independent and with persistent noise (correlation 0.6 between steps), whichever is larger.",
    f"a fall by {LEAST_DROP:.0%}",
    "The Garden of Forking Paths",
    bifurcation=True,
    remark="Another perplexity than the paper's: of the last word, on the whole test set.",
)
TOWARDS_ZERO = Claim(
    "published-perplexity-below-one",
    "Perplexity falls towards zero, far below 1 (the paper draws values down to 1e-18).",
    "Fig 4",
    "The least published perplexity. exp(mean NLL) of a probability is at least 1: this cannot be supported.",
    "1",
    "The Garden of Forking Paths",
    bifurcation=True,
)
SMALL_MODELS = Claim(
    "published-small-models",
    "Late training hurts small models, those of less than 1,000 hidden dimensions, more than larger ones.",
    "§3",
    "Geometric mean over the models of the factor from the best to the last published perplexity: small against larger "
    "ones. Exact permutation of the models.",
    "a factor of 1.1 between the two means",
    "Why do small language models underperform?",
    remark="; ".join(LITERATURE),
)


def judge_published() -> PublishedScorecard:
    """Test the claims on all models of the table; p-values are corrected for the number of all tests (Holm)."""
    curves = {
        name: PublishedCurve.of(name) for name in sorted(published_models(), key=lambda name: _shape(name).parameters)
    }
    tests = {HURTS: late_training_hurts, DROPS: drops_after_bifurcation, TOWARDS_ZERO: falls_below_one}
    asked = [(name, claim, decision_of(test, curve)) for name, curve in curves.items() for claim, test in tests.items()]
    *decisions, over = corrected([*(decision for *_, decision in asked), decision_of(small_models, [*curves.values()])])
    verdicts: dict[str, list[Verdict]] = {name: [] for name in curves}
    for (name, claim, _), decision in zip(asked, decisions, strict=True):
        verdicts[name].append(Verdict.of(claim, decision))
    count = sum(decision.p_corrected is not None for decision in (*decisions, over))
    return PublishedScorecard(
        {name: tuple(found) for name, found in verdicts.items()}, (Verdict.of(SMALL_MODELS, over),), count
    )


def late_training_hurts(curve: PublishedCurve) -> Decision:
    """The last step against the best one.

    Parameters
    ----------
    curve
        At least six late steps, two levels.

    Raises
    ------
    NotTestableError
        For fewer.
    """
    if len(curve.log[curve.late]) < 2 * WINDOW:
        raise NotTestableError(f"{curve.model} has fewer than {2 * WINDOW} late steps")
    best, rise = curve.best, float(curve.log[-1] - curve.log[curve.best])
    error = math.hypot(curve.error[-1], curve.error[best])
    level, level_p, level_high = _levels(curve)
    accuracy = float(curve.accuracy[0, -1] - curve.accuracy[0, best])
    tau, tau_p, half = _trend(curve)
    evidence = Evidence(
        "factor from the best to the last perplexity",
        math.exp(rise),
        LEAST_FACTOR,
        null="a plateau with the published standard errors, its best step chosen in the same way",
        p=chosen_best_p(curve, rise),
        power=_power(curve),
        low=math.exp(rise - TWO_SIDED * error),
        high=math.exp(rise + TWO_SIDED * error),
    )
    lasts, excluded = level_p <= LEVEL, level_high < LEAST_FACTOR
    last, first = (f"{math.exp(curve.log[i]):.4g} at {curve.steps[i]:,}" for i in (-1, best))
    reason = f"perplexity {last}, {first} at best: ×{math.exp(rise):.2f}, z {rise / error:.1f}"
    if best == len(curve.steps) - 1:
        reason = f"the last step is the best: perplexity {last}"
    if evidence.large_enough and not lasts:
        reason += "; the mean of the last three steps is not above the best three beyond the scatter of the steps"
    elif excluded and not evidence.large_enough:
        reason += f"; the last three steps are at most ×{level_high:.2f} above the best three (95 %)"
    numbers = {
        "best_step": int(curve.steps[best]),
        "best_ppl": math.exp(curve.log[best]),
        "last_step": int(curve.steps[-1]),
        "last_ppl": math.exp(curve.log[-1]),
        "factor": math.exp(rise),
        "z": rise / error if rise else 0.0,
        "accuracy_change": accuracy,
        "accuracy_z": accuracy / math.hypot(curve.accuracy[1, -1], curve.accuracy[1, best]),
        "level_factor": level,
        "level_p": level_p,
        "level_high": level_high,
        "scatter": curve.scatter,
        "trend_from": half,
        "trend_kendall_tau": tau,
        "trend_p": tau_p,
        "suspect_steps": len(curve.suspect),
    }
    return Decision(
        reason,
        numbers,
        evidence,
        refuted=excluded and not evidence.large_enough,
        open=evidence.large_enough and not lasts,
    )


def _power(curve: PublishedCurve) -> float:
    """Probability that the last step, worse than the plateau by the least factor, shows that factor and p ≤ 0.05."""
    from scipy.optimize import brentq

    least = math.log(LEAST_FACTOR)
    critical = brentq(lambda rise: chosen_best_p(curve, rise) - LEVEL, 1e-6, 10 * curve.error.max())
    return chosen_best_p(curve, max(least, critical), least)


def _levels(curve: PublishedCurve) -> tuple[float, float, float]:
    """The last three steps against the best three neighbouring ones: factor, its p-value, upper end of its interval.

    The statistic of p is the difference relative to the scatter, both of the same steps, so that the error of the
    scatter is part of its null: independent noise. In the interval the published errors are not reduced by the mean:
    steps that share their texts share much of their error.
    """

    def rises(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        means = np.lib.stride_tricks.sliding_window_view(logs, WINDOW, axis=-1).mean(axis=-1)
        return np.asarray(means[..., -1] - means.min(axis=-1))

    logs = curve.log[curve.late]
    found, drawn = float(rises(logs)), plateaus(logs.size)
    p = p_of(rises(drawn) / scatter_of(drawn), found / curve.scatter if found else 0.0)
    error = math.sqrt(2) * max(float(curve.error[-WINDOW:].mean()), curve.scatter / math.sqrt(WINDOW))
    return math.exp(found), p, math.exp(found + TWO_SIDED * error)


def _trend(curve: PublishedCurve) -> tuple[float, float, int]:
    """Kendall's rank correlation of the perplexity with the step in the last half of training; p; first step."""
    from scipy.stats import kendalltau

    half = curve.steps >= curve.steps[-1] / 2
    found = kendalltau(curve.steps[half], curve.log[half])
    return float(found.statistic), float(found.pvalue), int(curve.steps[half][0])


def drops_after_bifurcation(curve: PublishedCurve) -> Decision:
    """The level after the paper's bifurcation against that before it.

    Parameters
    ----------
    curve
        The published values.

    Raises
    ------
    NotTestableError
        Where the paper gives no step, or there are too few steps before or after it.
    """
    bifurcation = paper_bifurcation(curve.model)
    if bifurcation is None:
        raise NotTestableError(f"the paper gives no step of a bifurcation for {curve.model}")
    steps, logs, errors = curve.steps[curve.late], curve.log[curve.late], curve.error[curve.late]
    count = int(np.searchsorted(steps, bifurcation, side="right"))
    after, before = slice(count, None), slice(count - WINDOW, count)
    if count < _BEFORE or len(logs[after]) < WINDOW:
        raise NotTestableError(f"too few published steps before or after {bifurcation:,}")
    rise, expected = float(_rise(logs, count)), float(_expected(logs, steps, count))
    least, supported = -math.log(1 - LEAST_DROP), []
    shares = []
    for persistence in _PERSISTENCE:
        drawn = plateaus(logs.size, persistence)
        falls, scatter = _expected(drawn, steps, count) - _rise(drawn, count), scatter_of(drawn)
        shares.append(p_of(falls / scatter, (expected - rise) / curve.scatter))
        supported.append(np.quantile(falls / scatter, 1 - LEVEL))
        if not persistence:  # the noise of the interval, and of the planted fall that gives the power
            independent, relative = falls, least / curve.scatter
    seen = (independent >= 0) & ((independent + relative) / scatter_of(plateaus(logs.size)) >= max(supported))
    published = TWO_SIDED * math.hypot(errors[after].mean(), errors[before].mean())
    scattered = TWO_SIDED * curve.scatter * math.sqrt(1 / WINDOW + 1 / len(logs[after]))
    spread = float(np.quantile(np.abs(independent), 1 - LEVEL)) * curve.scatter
    evidence = Evidence(
        "fall of the perplexity after the bifurcation",
        1 - math.exp(rise - expected),
        LEAST_DROP,
        null="the level, or a falling slope, before the bifurcation goes on",
        p=max(shares),
        power=float(seen.mean()),
        low=1 - math.exp(rise - expected + max(spread, published)),
        # What a falling slope explains only lessens the fall, so the fall itself bounds it from above.
        high=1 - math.exp(rise - max(scattered, published)),
    )
    change = f"{math.exp(rise) - 1:+.0%}".replace("-", "−")
    reason = f"perplexity {change} after step {bifurcation:,}, mean of {len(logs[after])} steps against three"
    numbers = {
        "bifurcation": bifurcation,
        "ppl_before": math.exp(logs[before].mean()),
        "ppl_after": math.exp(logs[after].mean()),
        "fall": 1 - math.exp(rise),
        "z": -rise * TWO_SIDED / max(scattered, published),
        "expected_fall": 1 - math.exp(expected),
    }
    return Decision(reason, numbers, evidence)


def _rise(logs: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The mean of the steps from `count` on less that of the three before them, along the last axis."""
    return np.asarray(logs[..., count:].mean(axis=-1) - logs[..., count - WINDOW : count].mean(axis=-1))


def _expected(logs: NDArray[np.float64], steps: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """What the slope of the five steps before `count` adds from the one mean of `_rise` to the other, if it falls."""
    centred = steps[count - _BEFORE : count] - steps[count - _BEFORE : count].mean()
    slope = logs[..., count - _BEFORE : count] @ centred / (centred @ centred)
    return np.asarray(np.minimum(slope, 0.0) * (steps[count:].mean() - steps[count - WINDOW : count].mean()))


def falls_below_one(curve: PublishedCurve) -> Decision:
    """The least perplexity against 1.

    Parameters
    ----------
    curve
        The published values.
    """
    least, step = math.exp(curve.log.min()), int(curve.steps[curve.best])
    evidence = Evidence.exact("least perplexity", least, 1.0, at_most=True)
    return Decision(f"the least perplexity is {least:.4g}, at {step:,}", {"least": least, "step": step}, evidence)


def small_models(curves: Sequence[PublishedCurve]) -> Decision:
    """The factor from the best to the last perplexity: small models against larger ones.

    Parameters
    ----------
    curves
        The models: at least two of each kind, of sizes in the registry.

    Raises
    ------
    NotTestableError
        For fewer.
    """
    from scipy.stats import permutation_test, ttest_ind

    groups: tuple[list[float], list[float]] = ([], [])
    for curve in curves:
        groups[_shape(curve.model).d_model >= SMALL_WIDTH].append(float(curve.log[-1] - curve.log[curve.best]))
    small, large = (np.array(group) for group in groups)
    if min(small.size, large.size) < 2:
        raise NotTestableError("fewer than two small or two larger models")

    def statistic(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(x.mean(axis=axis) - y.mean(axis=axis))

    # Every permutation: there are 1,820 ways to choose 4 of 16 models.
    found = permutation_test((small, large), statistic, alternative="greater", n_resamples=np.inf, vectorized=True)
    welch = ttest_ind(small, large, equal_var=False)
    interval = welch.confidence_interval(0.95)
    evidence = Evidence(
        "mean factor of small models over that of larger ones",
        math.exp(float(found.statistic)),
        LEAST_FACTOR,
        null="which models are small does not matter",
        p=float(found.pvalue),
        low=math.exp(interval.low),
        high=math.exp(interval.high),
    )
    means = (math.exp(small.mean()), math.exp(large.mean()))
    reason = (
        f"from the best to the last step ×{means[0]:.2f} in {small.size} models below {SMALL_WIDTH:,} dimensions, "
        f"×{means[1]:.2f} in {large.size} larger ones"
    )
    numbers = {"small": small.size, "larger": large.size, "factor_small": means[0], "factor_larger": means[1]}
    return Decision(reason, numbers, evidence)


def _shape(model: str) -> Architecture:
    """The shape of a model of the table, from the registry."""
    size = model.removeprefix("pythia-").partition("-")[0]
    if size not in SIZES:
        raise PythiaDynError(f"no size of Pythia in the name {model}")
    return SIZES[size]
