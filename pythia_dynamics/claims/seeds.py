"""One decision over several seeds, and over several models, from the decisions on each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pythia_dynamics.claims.evidence import LEAST_POWER, LEVEL, VERDICTS, Evidence
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Number

__all__ = ["over_models", "over_seeds"]

_LEAST_P = 1e-6
"""A simulated p is never smaller than this, and 1 − p neither: one seed alone does not settle all of them."""

_SEVERITY = {"not supported": 0, "undecided": 1, "supported": 2, "not testable here": 3}
"""Order of the words: a claim about several models is as good as its worst model."""


def over_seeds(decisions: Sequence[Decision], *, logarithmic: bool = False) -> Decision:
    """The decision of one test over several seeds.

    The effect is the mean over seeds, its interval that of Student's distribution. The claim is about that mean, so p
    is the larger one of two (intersection–union test, Berger 1982): that of a t-test of the effects, against no effect
    or with `Evidence.at_most` against the least one; and that of the seeds' own p-values, combined by Stouffer's method
    (1949), because the largest kink of a curve without any is an effect as well. One seed with a small p among seeds
    without an effect thus decides nothing. Exact statistics that do not agree about the claim are a sample: p is that
    of a t-test of their mean against the least effect.

    Parameters
    ----------
    decisions
        One for each seed, of the same test. Those that are not testable are left out.
    logarithmic
        Whether effects are ratios, whose logarithms have the mean.

    Raises
    ------
    NotTestableError
        Where no seed can be tested.
    """
    known = [decision for decision in decisions if decision.evidence is not None]
    if not known:
        raise NotTestableError(decisions[0].reason, decisions[0].numbers)
    if len(known) == 1:
        return known[0]
    parts = [decision.evidence for decision in known if decision.evidence is not None]
    first, count = parts[0], len(parts)
    effects = np.array([part.effect for part in parts])
    scaled = np.log(effects) if logarithmic else effects
    mean, error = float(scaled.mean()), float(scaled.std(ddof=1) / math.sqrt(count))
    half = _student_quantile(count - 1) * error
    low, middle, high = np.exp([mean - half, mean, mean + half]) if logarithmic else (mean - half, mean, mean + half)
    words = [decision.verdict for decision in known]
    supported = words.count("supported")
    evidence = replace(first, effect=float(middle), low=float(low), high=float(high))
    if first.is_exact:
        if 0 < supported < count:
            limit = math.log(first.least) if logarithmic else first.least
            p = _t_test(mean - limit, error, count - 1, at_most=first.at_most)
            evidence = replace(evidence, p=p, power=math.nan)
    else:
        least = math.log(first.least) if logarithmic else first.least
        combined, power = _stouffer(parts)
        p = max(combined, _t_test(mean - (least if first.at_most else 0.0), error, count - 1, at_most=first.at_most))
        # at least the power of both: one of the two can fail where the other does not
        power = max(power + _t_power(least, error, count - 1, at_most=first.at_most) - 1, 0.0)
        evidence = replace(evidence, p=p, power=power)
        if not (p <= LEVEL or power >= LEAST_POWER):  # as each of the seeds, whose intervals are not known there
            evidence = replace(evidence, low=math.nan, high=math.nan)
    counts = ", ".join(f"{words.count(word)} {word}" for word in VERDICTS if word in words)
    spread = f"×/÷ {math.exp(error):.3g}" if logarithmic else f"± {error:.2g}"
    reason = f"{supported} of {count} seeds support it ({counts}); mean effect {middle:.3g} {spread} (standard error)"
    numbers: dict[str, Number] = {"seeds": count, "seeds_supported": supported, "mean": float(middle)}
    numbers |= {"standard_error": error, **{f"effect_{i}": float(effect) for i, effect in enumerate(effects)}}
    refuted, unclear = (sum(getattr(decision, name) for decision in known) for name in ("refuted", "open"))
    return Decision(reason, numbers, evidence, refuted=2 * refuted > count, open=2 * unclear > count)


def _student_quantile(freedom: int, level: float = 1 - LEVEL / 2) -> float:
    """A quantile of Student's distribution; by default that of a two-sided interval of 95 %."""
    from scipy.stats import t

    return float(t.ppf(level, freedom))


def _t_test(difference: float, error: float, freedom: int, *, at_most: bool) -> float:
    """p of a difference of means that is as favourable to the claim.

    Without `at_most` it is two-sided for a positive difference, so p ≤ 0.05 says that the 95 % interval excludes 0.
    """
    from scipy.stats import t

    value = difference / error if error > 0 else math.copysign(math.inf, difference)
    return float(t.cdf(value, freedom)) if at_most else float(min(2 * t.sf(value, freedom), 1.0))


def _t_power(least: float, error: float, freedom: int, *, at_most: bool) -> float:
    """Probability that the t-test has p ≤ 0.05: for a mean of `least` against 0; with `at_most`, of 0 against it."""
    from scipy.stats import nct

    if not error > 0:
        return 1.0
    level = LEVEL if at_most else LEVEL / 2
    return float(nct.sf(_student_quantile(freedom, 1 - level), freedom, abs(least) / error))


def _stouffer(parts: Sequence[Evidence]) -> tuple[float, float]:
    """The combined p, and the power of the combination where those of the seeds are known."""
    from scipy.stats import combine_pvalues, norm

    values = np.clip([part.p for part in parts], _LEAST_P, 1 - _LEAST_P)
    shifts = norm.ppf(np.clip([part.power for part in parts], _LEAST_P, 1 - _LEAST_P)) - norm.ppf(LEVEL)
    power = float(norm.cdf(shifts.sum() / math.sqrt(len(parts)) + norm.ppf(LEVEL)))
    return float(combine_pvalues(values, method="stouffer").pvalue), power


def over_models(decisions: Mapping[str, Decision]) -> Decision:
    """The decision on a claim about several models: that of the model which speaks most against it.

    A claim about all models is supported where it is for each of them (intersection–union test, Berger 1982), so p is
    the largest one and needs no correction for their number.

    Parameters
    ----------
    decisions
        The decision on each model. Models that cannot be tested are named and left out.

    Raises
    ------
    NotTestableError
        Where no model can be tested.
    """
    reason = "; ".join(f"{model}: {decision.reason}" for model, decision in decisions.items())
    numbers = {f"{model} {name}": value for model, each in decisions.items() for name, value in each.numbers.items()}
    known = [decision for decision in decisions.values() if decision.evidence is not None]
    if not known:
        raise NotTestableError(reason or "there is no model", numbers)

    def severity(decision: Decision) -> tuple[float, float]:
        p = math.nan if decision.evidence is None else decision.evidence.p
        return _SEVERITY[decision.verdict], 0.0 if math.isnan(p) else -p

    return replace(min(known, key=severity), reason=reason, numbers=numbers)
