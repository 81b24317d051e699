"""Claims about the displacement of the weights: its peaks, its growth before S, its regimes, its end.

Each claim is a function of `saved`, the `SavedResults` of one model, that returns a `Decision` or raises
`NotTestableError`. Its docstring states the test.
"""

from __future__ import annotations

import re
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.bifurcation_step import motion_of, peaks_of, reference_step
from pythia_dynamics.claims.end_change import EndNull, end_change, is_jittery, tenths
from pythia_dynamics.claims.evidence import LEVEL, Evidence
from pythia_dynamics.claims.regimes import Regimes, compare_regimes
from pythia_dynamics.claims.saved import SavedResults, paper_bifurcation
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Number
from pythia_dynamics.measures.levels import ONE_SIDED, TWO_SIDED, normal
from pythia_dynamics.measures.peak import LEAST_PROMINENCE, SAME_STEP, STRICT, PeakTest, p_limit
from pythia_dynamics.measures.walks import exceedance

__all__ = ["changes_at_the_end", "msd_peak", "msd_time_peak", "quasi_linear_msd", "two_regimes"]

_MIN_RETURN = 0.1
"""Least fall of the displacement from the first step that is named a return: that of a peak that counts."""

_MAX_FROM_LINEAR = 0.25
"""Largest difference of an exponent from 1 that is quasi-linear: half-way to 1.5, nearer to linear than to it."""

_MIN_STEPS_BEFORE = 16
"""Fewest steps before S for the exponent of the MSD: four doublings of the record number."""

_LEAST_FACTOR = 1.5
"""Least measured factor of a change at the end, so that a factor of 2, the least that counts, is seen in spite of its
error: about half of it in logarithms."""

_TRUE_FACTOR = 2.0
"""The factor that is planted for the power: the least that counts."""

_CHANGING_MODEL = re.compile(r"pythia-410m(-deduped)?")
"""The model of which the paper says that it changes at the end."""


def msd_peak(saved: SavedResults) -> Decision:
    """The MSD of Eq 4 has an interior peak, more prominent than those of random walks like the history.

    The prominence is the smaller of its rise and its fall, relative to it. For 70M and 160M a peak at another step than
    the paper's refutes the claim.
    """
    test = peaks_of(saved)["msd"]
    decision = _peak_decision(test, "prominence of the MSD's peak, beyond the median of random walks")
    if not test.found:
        where = "its end" if test.peak.fall < LEAST_PROMINENCE else "its start"
        finding = (
            f"no interior peak: the greatest MSD (step {test.peak.step:,}) is {test.prominence:.0%} above that at "
            f"{where}; 5 % of random walks exceed {test.critical:.0%}"
        )
        return Decision(finding, decision.numbers, decision.evidence)
    finding = (
        f"the MSD peaks at step {test.peak.step:,} and falls by {test.peak.fall:.0%} until the end; "
        f"5 % of random walks have a prominence of {test.critical:.0%} or more; the peak is {_cause(test)}"
    )
    paper, span = paper_bifurcation(saved.name), _span(saved)
    elsewhere = paper is not None and abs(test.peak.step - paper) > SAME_STEP * span
    if elsewhere:
        finding = f"{finding}; but the paper's peak is at about {paper:,}"
    return Decision(finding, {**decision.numbers, "paper_step": paper}, decision.evidence, refuted=elsewhere)


def msd_time_peak(saved: SavedResults) -> Decision:
    """The ratio of the MSD demeaned over time to the mean of random walks has an interior peak above 1.

    It must be where the curve has its own peak. The walks have the measured sizes, directions and persistence of steps.
    """
    test = peaks_of(saved)["msd_time_over_null"]
    decision = _peak_decision(
        test, "prominence of the peak of the MSD demeaned over time relative to random walks, beyond their median"
    )
    ratio = f"the MSD demeaned over time is {test.height:.3g} times the mean of random walks at step {test.peak.step:,}"
    if test.reason:
        finding = f"the MSD demeaned over time is {test.reason}"
    elif not test.found:
        finding = (
            f"{ratio}, a peak with a prominence of {test.prominence:.0%}; 5 % of random walks have "
            f"{test.critical:.0%} or more"
        )
    else:
        finding = (
            f"{ratio}, a peak with a prominence of {test.prominence:.0%}, which 5 % of random walks have at "
            f"{test.critical:.0%} or more; it is {_cause(test)}"
        )
    return Decision(finding, decision.numbers, decision.evidence)


def _peak_decision(test: PeakTest, statistic: str) -> Decision:
    """Numbers and evidence of a peak."""
    numbers: dict[str, Number] = {"peak_step": test.peak.step, "rise": test.peak.rise, "fall": test.peak.fall}
    numbers |= {"height": test.height, "walks_median": test.typical, "walks_95": test.critical}
    numbers |= {"angle": test.turn.angle, "return": test.turn.returns, "dimensions": test.turn.dimensions}
    null = "random walks with the measured sizes, number of directions and persistence of steps"
    return Decision("", numbers, Evidence(statistic, test.effect, LEAST_PROMINENCE, null, test.p, test.power))


def _cause(test: PeakTest) -> str:
    """What makes a peak: a turn of the weight vector, a return to the first weights, motion in few directions."""
    turn, causes = test.turn, []
    if turn.cosine < 0:
        causes.append(f"a turn of the weight vector (by {turn.angle:.0f}° between the sums before and after it)")
    if turn.returns >= _MIN_RETURN:
        causes.append(f"a return (the displacement from the first step falls by {turn.returns:.0%} until the end)")
    if test.critical >= LEAST_PROMINENCE:
        causes.append(f"of a motion in few directions ({turn.dimensions:.3g}), whose random walks peak as well")
    return " and ".join(causes) or "without a turn of the weight vector or a return"


def _span(saved: SavedResults) -> int:
    """Number of training steps between the first and the last present one."""
    steps = motion_of(saved).steps
    return int(steps[-1] - steps[0])


def quasi_linear_msd(saved: SavedResults) -> Decision:
    """Before S the MSD of Eq 4 is a power of the record number with an exponent near 1.

    The fit is by least squares in logarithms, with equal weight for equal intervals of the logarithm. Its standard
    deviation is that of an integral with the exponent in as many independent directions as the motion has (delta
    method; fractional Brownian motion). The null are the exponents 0.75 and 1.25, the nearest that are not quasi-linear
    (two one-sided tests).
    """
    reference = reference_step(saved)
    (table,) = saved.read("msd.csv")
    motion = motion_of(saved)
    values, steps = table["msd"].to_numpy().astype(np.float64), table["step"].to_numpy()
    before = np.isfinite(values) & (steps <= reference.step)
    curve = values[before]
    if len(curve) < _MIN_STEPS_BEFORE:
        raise NotTestableError(f"{len(curve)} steps before {reference.description} are too few")
    if not (curve > 0).all():
        raise NotTestableError("the MSD is zero at some steps")
    record = np.arange(1, len(curve) + 1, dtype=np.float64)
    slope = _log_slope(record)
    exponent = float(slope @ np.log(curve))

    def deviation(at: float) -> float:
        return _exponent_deviation(record, slope, at, motion.dimensions)

    low, high = 1 - _MAX_FROM_LINEAR, 1 + _MAX_FROM_LINEAR
    p = max(normal((exponent - high) / deviation(high)), normal((low - exponent) / deviation(low)))
    reached = high - ONE_SIDED * deviation(high), low + ONE_SIDED * deviation(low)
    error = deviation(1.0)
    power = max(normal((reached[0] - 1) / error) - normal((reached[1] - 1) / error), 0.0)
    own = TWO_SIDED * deviation(float(np.clip(exponent, 0.05, 1.95)))
    ends = sorted((abs(exponent - own - 1), abs(exponent + own - 1)))
    effect = abs(exponent - 1)
    finding = (
        f"before {reference.description} the MSD grows as the power {exponent:.2f} ± {own:.2g} of the record number; "
        "1 is linear, 2 to 3 what weights that hardly move or walk have"
    )
    numbers: dict[str, Number] = {"bifurcation_step": reference.step, "exponent": exponent, "records": len(curve)}
    evidence = Evidence(
        "difference of the log-log exponent of the MSD from 1",
        effect,
        _MAX_FROM_LINEAR,
        f"exponents that differ by {_MAX_FROM_LINEAR:g} from 1",
        p,
        power,
        low=0.0 if effect <= own else ends[0],
        high=ends[1],
        at_most=True,
    )
    return Decision(finding, numbers, evidence)


def _log_slope(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors a (n,) with which a·y is the slope of y over log x, with equal weight for equal intervals of log x."""
    log = np.log(x)
    weight = np.gradient(log)
    centred = log - np.average(log, weights=weight)
    factors: NDArray[np.float64] = weight * centred / np.sum(weight * centred**2)
    return factors


def _exponent_deviation(
    record: NDArray[np.float64], slope: NDArray[np.float64], exponent: float, dimensions: float
) -> float:
    """Standard deviation of the fitted exponent of an integral that grows with this exponent.

    In r directions, log MSD has the covariance 2 ρ²/r, where ρ is the correlation of fractional Brownian motion with
    the Hurst exponent ``exponent / 2``.
    """
    power = record**exponent
    shared = (power[:, None] + power - np.abs(record[:, None] - record) ** exponent) / 2
    squared = shared**2 / power[:, None] / power
    variance = max(2 / dimensions * float(slope @ squared @ slope), float(np.finfo(float).tiny))
    return float(np.sqrt(variance))


def two_regimes(saved: SavedResults) -> Decision:
    """Before S the displacement between two steps grows diffusively with the lag; after it ballistically or not at all.

    The exponent is that of the displacement over the lag, measured as ∫η² so that a decaying learning rate alone is no
    rest (`compare_regimes`). The nulls are random walks with the measured sizes, directions and persistence of steps;
    and walks that go on after S as before it, with the noise of single records that is measured before and after it.
    """
    reference = reference_step(saved)
    motion = motion_of(saved)
    found: Regimes = compare_regimes(motion, reference.step)
    kind = "ballistically" if found.after >= 1 else "towards rest"
    finding = (
        f"up to {reference.description} the displacement grows as lag^{found.before:.2f} "
        f"(halves of it: {found.halves[0]:.2f} and {found.halves[1]:.2f}), after it {kind} as lag^{found.after:.2f}; "
        f"of random walks, with noise of single records or without, after it as lag^{found.walk_after:.2f}"
    )
    if not motion.rate_known:
        finding = f"{finding}; without a known learning rate, its decay may look like rest: undecided"
    numbers: dict[str, Number] = {"bifurcation_step": reference.step, "exponent_before": found.before}
    numbers |= {"exponent_after": found.after, "exponent_early": found.halves[0], "exponent_late": found.halves[1]}
    evidence = Evidence(
        "difference of the exponent after S from 1, beyond that before it and beyond random walks",
        found.effect,
        found.least,
        "random walks with the measured steps; walks that go on after S, with noise of single records",
        found.p,
        found.power,
    )
    return Decision(finding, numbers, evidence, open=not motion.rate_known)


def changes_at_the_end(saved: SavedResults) -> Decision:
    """The squared displacement per ∫η² in the last tenth of the steps differs from that before it by a factor.

    It is compared with all steps before, with the two tenths before, and with the trend of the three tenths before; the
    factor is the smallest of the three, and 1 where they differ in direction. Noise of single records is taken off with
    the products of neighbouring increments. The null are random walks whose displacement per ∫η² is the same
    throughout, with the measured scatter of the steps, directions and persistence, and that noise.
    """
    if not _CHANGING_MODEL.fullmatch(saved.name):
        raise NotTestableError("the paper says this of the 410M model only")
    motion = motion_of(saved)
    blocks = tenths(motion)
    jittery = is_jittery(motion)
    observed = end_change(motion.products[None, 1:, 1:], motion, blocks, jittery)[0]
    kinds = (EndNull(motion, blocks, jittery, slow) for slow in ((False, True) if jittery else (False,)))
    large = bool(abs(observed) >= np.log(_LEAST_FACTOR))
    tested = [(*exceedance(abs(observed), (np.abs(kind.draw()) for _ in count()), more=large), kind) for kind in kinds]
    p, drawn, null = max(tested, key=lambda test: test[0])
    critical, needed = (float(np.quantile(drawn, 1 - level)) for level in (LEVEL, STRICT))
    planted = null.draw(_TRUE_FACTOR)
    power = float(np.mean(np.abs(planted) > max(needed, np.log(_LEAST_FACTOR))))
    factor, ends = float(np.exp(abs(observed))), (abs(observed) - critical, abs(observed) + critical)
    direction = "more" if observed > 0 else "less"
    finding = (
        f"over the last tenth of the steps the weights move {factor:.2f} times {direction} per ∫η² (squared) than "
        f"before it; 5 % of random walks differ by a factor of {np.exp(critical):.2f} or more"
    )
    if not motion.rate_known:
        finding = f"{finding}; without a known learning rate this may be its schedule: undecided"
    numbers: dict[str, Number] = {"log_ratio": float(observed), "since": int(motion.steps[blocks[-1][0]])}
    numbers |= {"walks_95": float(np.exp(critical)), "noise_of_records": jittery}
    evidence = Evidence(
        "factor of the squared displacement per ∫η² in the last tenth, either way",
        factor,
        _LEAST_FACTOR,
        "random walks whose squared displacement per ∫η² is the same throughout, with noise of single records",
        p_limit(p, len(drawn)),
        power,
        low=float(np.exp(max(ends[0], 0.0))),
        high=float(np.exp(ends[1])),
    )
    return Decision(finding, numbers, evidence, open=not motion.rate_known)
