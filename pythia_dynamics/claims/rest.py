"""The claims about rest: the weights become stationary, and training may stop once they are.

Each claim is a function of `saved`, the `SavedResults` of one model, that returns a `Decision` or raises
`NotTestableError`. Its docstring states the test.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.evidence import LEAST_POWER, LEVEL, Evidence
from pythia_dynamics.claims.saved import Curve, SavedResults
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Number, decision_of
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.rest import (
    MAX_GROWTH,
    MIN_RECORDS,
    RestSearch,
    find_rest,
    growth_interval,
    rest_p_value,
    rest_power,
    standstill,
)
from pythia_dynamics.measures.walks import Motion

__all__ = ["MAX_GAIN", "stationary", "stop_when_stationary"]

MAX_GAIN = 0.01
"""Largest relative fall of the loss during the rest that counts as "nothing to gain"."""

_MIN_LOSSES = 8
"""Fewest losses in the rest: a parabola and the correlation of its residuals leave four degrees of freedom."""

_MAX_CORRELATION = 0.98
"""Largest correlation of neighbouring residuals that is assumed; at 1 the error of a level is not known at all."""

_SEED = 0
"""The simulated walks are the same at each run, so that a verdict is."""


def stationary(saved: SavedResults) -> Decision:
    """From some record to the end, the displacement between two records does not grow with their distance.

    The rest and its growth are those of `find_rest`: distances are in ∫η², the search for the first record is repeated
    in walks with steps proportional to the learning rate η, with the measured number of directions, persistence and
    noise of records. Weights that moved and then do not move at all while η is above 0 are at rest without walks: no
    walk stands still. Where η is not known, a motion that stops could be the work of the schedule; only a history that
    is in equilibrium as a whole can then support the claim.
    """
    return saved.once("stationary", lambda: _stationary(saved))


def _stationary(saved: SavedResults) -> Decision:
    """The decision of `stationary`, which two claims need."""
    (pairs,) = saved.read("two_time.zarr")
    try:
        motion = Motion.of(pairs)
    except PythiaDynError as error:
        raise NotTestableError(str(error)) from None
    search = RestSearch.over(motion.time)
    rest = find_rest(motion, search)
    if rest is None:
        raise NotTestableError(
            f"{len(motion.steps)} steps, or none at which the learning rate is above 0: too few for a rest of at least "
            f"{MIN_RECORDS} records"
        )
    generator = np.random.default_rng(_SEED)
    # more walks than 200 make a p-value small, which only a rest that is found needs
    p, null = rest_p_value(motion, generator, search, more=rest.found)
    power = rest_power(motion, null, generator, search)
    still = standstill(motion)
    if still is not None and (rest.record > 0 or not rest.found or p > LEVEL):
        rest, p, power, (low, high) = still, 0.0, 1.0, (0.0, 0.0)
    else:
        low, high = growth_interval(motion, rest)
        if not rest.found and power < LEAST_POWER:
            low = 0.0  # the interval is of this rest; a later one has too few records to be seen
    numbers: dict[str, Number] = {"since": rest.step, "last_step": int(motion.steps[-1]), "growth": rest.growth}
    numbers |= {"exponent": rest.exponent, "diffusion": rest.diffusion, "whole_history": rest.record == 0}
    numbers |= {"moves": rest.moves, "learning_rate_known": motion.rate_known, "directions": motion.dimensions}
    if motion.rate_note:
        numbers["learning_rate"] = motion.rate_note
    evidence = Evidence(
        "growth of the displacement with the distance (0 saturated, 1 a random walk), least over first records",
        rest.growth,
        MAX_GROWTH,
        "walks whose steps follow the learning rate" if motion.rate_known else "walks with equal steps",
        p,
        power,
        low,
        high,
        at_most=True,
    )
    where = "from the first record" if rest.record == 0 else f"from step {rest.step:,} on"
    if not rest.found:
        finding = "the weights are at rest from no step on"
        if math.isfinite(rest.growth):
            finding += (
                f"; most nearly {where}, where the displacement grows with an exponent of {rest.exponent:.2f} and the "
                f"diffusion is {rest.diffusion:.2g} of that before (at most {MAX_GROWTH:g} of both)"
            )
        else:
            finding += ": nowhere are the growth of the displacement with the distance and the diffusion before known"
        # neither a walk nor saturated: a longer history could show either
        return Decision(finding, numbers, evidence, open=p <= LEVEL)
    finding = f"{where} the displacement no longer grows with the distance (exponent {rest.exponent:.2f})"
    if not rest.moves:
        finding = f"{where} the weights do not move at all"
    if rest.record == 0:
        return Decision(finding, numbers, evidence)
    if not motion.rate_known:
        why = f" ({motion.rate_note})" if motion.rate_note else ""
        finding += (
            f"; the learning rate is not known{why}, and one that falls to 0 would do the same: give it with "
            "--learning-rate"
        )
        return Decision(finding, numbers, evidence, open=True)
    finding += f", and the diffusion per squared learning rate is {rest.diffusion:.2g} of that before"
    return Decision(finding, numbers, evidence)


def stop_when_stationary(saved: SavedResults) -> Decision:
    """Where the weights come to rest, the loss falls by at most 1 % from the beginning of the rest to the end.

    The fall is that of a parabola fitted to the losses in the rest. Its error follows from their scatter about it, with
    the correlation of neighbouring losses. The standard error over sentences is no such error: the sentences are the
    same at each step.

    The claim asks for both, a rest and a loss that stays: p is the larger of the two, so that a correction for several
    tests that leaves the rest undecided leaves this undecided as well.
    """
    rest = decision_of(stationary, saved)
    if rest.evidence is None:
        raise NotTestableError(rest.reason, rest.numbers)
    if not rest.evidence.large_enough:
        raise NotTestableError(f"the protocol does not stop: {rest.reason}", rest.numbers)
    (table,) = saved.read("perplexity-forward.csv")
    curve, since = Curve.of(table["nll_mean"]), rest.numbers["since"]
    assert isinstance(since, int)
    inside = curve.steps >= since
    steps, values = curve.steps[inside], curve.values[inside]
    if len(steps) < _MIN_LOSSES:
        raise NotTestableError(f"{len(steps)} losses from step {since:,} on are too few", rest.numbers)
    first, last, error = _ends(steps.astype(np.float64), values)
    gain, spread = (first - last) / first, error / first
    low, high = gain - 1.96 * spread, gain + 1.96 * spread
    numbers: dict[str, Number] = {"since": since, "loss_at_rest": first, "loss_last": last, "gain": gain}
    numbers |= {"gain_error": spread, "steps": len(steps)}
    finding = (
        f"from step {since:,}, where the weights come to rest, to the end the loss goes from {first:.4g} to "
        f"{last:.4g} nats per token: a gain of {gain:.2%} ± {spread:.2%}"
    )
    p_loss = _normal((gain - MAX_GAIN) / spread) if spread > 0 else float(gain > MAX_GAIN)
    numbers |= {"p_rest": rest.evidence.p, "p_loss": p_loss}
    sure = not rest.open and rest.evidence.p <= LEVEL
    if not sure:
        finding += f"; whether they do come to rest is not decided: {rest.reason}"
    evidence = Evidence(
        "relative fall of the loss during the rest",
        gain,
        MAX_GAIN,
        "no rest; or a fall by 1 %, with the scatter of the losses about a parabola and their correlation",
        max(rest.evidence.p, p_loss),
        _normal(MAX_GAIN / spread - 1.645) if spread > 0 else 1.0,
        low,
        high,
        at_most=True,
    )
    return Decision(finding + saved.fewer_steps("perplexity-forward", len(curve)), numbers, evidence, open=not sure)


def _normal(z: float) -> float:
    """The distribution function of the standard normal distribution."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _ends(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float, float]:
    """First and last value of a parabola through a curve, and the standard error of their difference.

    The residuals are taken as a first-order autoregression. Its coefficient, which a fit of three parameters to n
    values underestimates, is corrected as by Kendall (1954): (1 + 3 φ)/n for the mean, and once more for each of the
    two other parameters.
    """
    u = (steps - steps[0]) / (steps[-1] - steps[0])
    design = np.vander(u, 3)
    solve = np.linalg.pinv(design)
    fitted = design @ (solve @ values)
    residual, n = values - fitted, len(values)
    square = float(residual @ residual)
    if square <= (1e-12 * np.abs(values).max()) ** 2 * n:
        return float(fitted[0]), float(fitted[-1]), 0.0
    phi = float(residual[1:] @ residual[:-1]) / square
    phi = min(max(phi + 3 * (1 + 3 * phi) / n, 0.0), _MAX_CORRELATION)
    correlation = phi ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    # the variance that leaves such residuals after the fit
    remain = np.eye(n) - design @ solve
    variance = square / float(np.sum(remain * (remain @ correlation)))
    weights = (design[0] - design[-1]) @ solve
    return float(fitted[0]), float(fitted[-1]), math.sqrt(variance * float(weights @ correlation @ weights))
