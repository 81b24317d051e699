"""Claims of "A Large Language Model Order Parameter", tested on training runs of its models.

The tests of b, of the loss and of its slope are those of `claims.order`, for each run, over seeds and over sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.claims.evidence import Evidence
from pythia_dynamics.claims.order import (
    B_MONOTONE,
    LOSS_FALLS,
    SLOPE_CHANGES,
    OrderCurve,
    judge_b_monotone,
    judge_loss_falls,
    judge_slope_changes,
)
from pythia_dynamics.claims.published_curves import PUBLISHED_CURVES, judge_published_curves
from pythia_dynamics.claims.seeds import over_models, over_seeds
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Verdict, corrected, decision_of
from pythia_dynamics.measures.levels import ONE_SIDED, TWO_SIDED, normal
from pythia_dynamics.results.published_blog import published_blog

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CLAIMS", "SMALL", "Initial", "Runs", "decide"]

SMALL = ("10k", "0.1m")
"""The models whose slope dL/db changes, according to the blog."""

Runs = Mapping[str, Sequence["xr.Dataset"]]
"""The curves of each size over `step`, one dataset per seed."""

Initial = Mapping[str, Mapping[str, Mapping[str, float]]]
"""b of the untrained models by size and initialisation: `expected`, its standard deviation `spread`, `measured`."""

_SIGMAS = 4.0
"""Standard deviations of b over random heads that a b may deviate by: one of twelve Gaussian values deviates by more in
0.08 % of cases."""

_MAX_INITIAL = 0.05
"""Largest relative difference of initial b that agree: the sizes' values differ by factors of two and three, and b over
random heads by 0.3 to 1 %."""

_LAST_KINK = 11_000
"""Step at which the later of the two published slopes becomes steeper again (10K). A run that ends before it cannot
have that change."""

B_INITIAL = Claim(
    "b-initial",
    "b begins at 0.146 (10K), 0.072 (0.1M), 0.036 (1M) and 0.012 (10M).",
    "Fig 4",
    "b of the untrained model against √(v/3)/d, which follows from a head that is uniform on ±1/√d. Two one-sided "
    "tests against a difference of 5 %, with the standard deviation of b over random heads; p is the largest of all "
    "values, each of which must agree. A value that a random head would not have refutes the agreement.",
    "at most 5 % for every value, and 4 standard deviations of b over random heads",
    "A Large Language Model Order Parameter",
)

CLAIMS = (B_INITIAL, B_MONOTONE, LOSS_FALLS, SLOPE_CHANGES, PUBLISHED_CURVES)
"""The blog's claims."""


def decide(runs: Runs, initial: Initial, initialisations: Mapping[str, str]) -> tuple[Verdict, ...]:
    """Test every claim on training runs.

    Parameters
    ----------
    runs
        The curves by size, one dataset per seed, with `order_parameter`, `train_loss` and `validation_loss` (nats per
        token) over `step`. NaN values are left out.
    initial
        b of the untrained models by size and initialisation.
    initialisations
        The initialisation of the runs by size.

    Returns
    -------
    tuple of Verdict
        One for each of `CLAIMS`, in their order, with p-values corrected for their number.
    """
    tests: tuple[Callable[[Runs], Decision], ...] = (
        partial(_b_initial, initial=initial, initialisations=initialisations),
        _b_monotone,
        _loss_falls,
        _slope_changes,
        judge_published_curves,
    )
    decisions = corrected([decision_of(test, runs) for test in tests])
    return tuple(Verdict.of(claim, decision) for claim, decision in zip(CLAIMS, decisions, strict=True))


def _b_initial(runs: Runs, *, initial: Initial, initialisations: Mapping[str, str]) -> Decision:
    """The published, the measured and the trained runs' first b agree with the expected b to 5 % and to its error."""
    numbers: dict[str, float] = {}
    compared: list[tuple[float, float, float]] = []  # b, expected, standard deviation
    sentences = []
    for size, kinds in initial.items():
        reference, neox = kinds["pytorch"], kinds["neox"]["measured"]
        published = float(published_blog(size)["order_parameter"][0])
        first = float(runs[size][0]["order_parameter"][0])
        trained = kinds[initialisations[size]]
        known = {"published": published, "expected": reference["expected"], "trained": first, "neox": neox}
        numbers |= {f"{size} {name}": b for name, b in known.items()}
        pytorch = (published, reference["measured"])
        compared += [(b, reference["expected"], reference["spread"]) for b in pytorch]
        if int(runs[size][0]["step"][0]) == 0:
            compared.append((first, trained["expected"], trained["spread"]))
        sentences.append(
            f"{size} {reference['expected']:.4g} expected, {published:.4g} published, {reference['measured']:.4g} "
            f"measured ({neox:.3g} with GPT-NeoX's normal(0, 0.02))"
        )
    b, expected, spread = np.array(compared).T
    differences, errors = np.abs(b - expected) / expected, spread / expected
    numbers["largest_deviation"] = float((differences / errors).max())
    # Of the two one-sided tests of a value that against the limit on the side of its difference has the larger p.
    p = max(normal((each - _MAX_INITIAL) / error) for each, error in zip(differences, errors, strict=True))
    seen = np.minimum(_MAX_INITIAL / errors - ONE_SIDED, _SIGMAS)  # in standard deviations, of a b that agrees
    missed = sum(min(2 * normal(-float(room)), 1.0) for room in seen)
    largest = int(np.argmax(differences))
    effect, half = float(differences[largest]), TWO_SIDED * float(errors[largest])
    evidence = Evidence(
        "largest relative difference of an initial b from the expected one",
        effect,
        _MAX_INITIAL,
        null=f"a difference of {_MAX_INITIAL:.0%}, and the spread of b over random heads",
        p=p,
        power=max(1 - missed, 0.0),
        low=max(effect - half, 0.0),
        high=effect + half,
        at_most=True,
    )
    return Decision("; ".join(sentences), numbers, evidence, refuted=numbers["largest_deviation"] > _SIGMAS)


def _b_monotone(runs: Runs) -> Decision:
    """`judge_b_monotone` on every run, over seeds and sizes."""

    def judge(run: xr.Dataset) -> Decision:
        known = run["order_parameter"].dropna("step")
        return judge_b_monotone(known["step"].to_numpy().astype(np.int64), known.to_numpy().astype(np.float64))

    return over_models({size: _over_seeds(judge, seeds) for size, seeds in runs.items()})


def _loss_falls(runs: Runs) -> Decision:
    """`judge_loss_falls` on the training loss of every run, over seeds and sizes; what the validation loss does beside.

    The claim is about the training loss.
    """
    judged = {size: _over_seeds(_judge_loss, seeds) for size, seeds in runs.items()}
    decision = over_models(judged)
    validation = {size: _over_seeds(_judge_validation, seeds) for size, seeds in runs.items()}
    listed = ", ".join(f"{size} {each.verdict}" for size, each in validation.items())
    beside = {
        f"{size} validation": each.evidence.effect for size, each in validation.items() if each.evidence is not None
    }
    numbers = {**decision.numbers, **beside}
    return replace(decision, reason=f"{decision.reason}; of the validation loss: {listed}", numbers=numbers)


def _judge_loss(run: xr.Dataset) -> Decision:
    return judge_loss_falls(OrderCurve.of(run, "train_loss"))


def _judge_validation(run: xr.Dataset) -> Decision:
    return judge_loss_falls(OrderCurve.of(run, "validation_loss"))


def _judge_slope(run: xr.Dataset) -> Decision:
    return judge_slope_changes(OrderCurve.of(run, "train_loss"))


def _slope_changes(runs: Runs) -> Decision:
    """`judge_slope_changes` on every run of the two small models, over seeds and sizes.

    Of the other models, for which the blog claims nothing, only the numbers are given.

    Raises
    ------
    NotTestableError
        Where neither small model has been trained for long enough.
    """
    small, other = {}, {}
    for size, seeds in runs.items():
        decision = _over_seeds(_judge_slope, seeds, logarithmic=True)
        ends = min(int(run["step"][-1]) for run in seeds)
        if size not in SMALL:
            other[size] = decision
        elif ends < _LAST_KINK and decision.verdict != "supported":
            reason = f"the run ends at step {ends:,}, before the published change"
            small[size] = Decision(reason, decision.numbers)
        else:
            small[size] = decision
    numbers = {f"{size} {name}": value for size, each in other.items() for name, value in each.numbers.items()}
    beside = "".join(f"; {size} (no claim): {each.verdict}, {each.reason}" for size, each in other.items())
    if not small:
        raise NotTestableError(f"neither of the two small models was trained{beside}", numbers)
    decision = over_models(small)
    return replace(decision, reason=decision.reason + beside, numbers={**decision.numbers, **numbers})


def _in_one_direction(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions on kinks in the direction of most seeds; of two that are as frequent, in that of the larger kinks.

    A kink of the other direction has the ratio 1/r in this one. Its p, of a kink of either direction, becomes 1 − p/2.
    """

    def logarithms(direction: object) -> list[float]:
        return [
            math.log(each.evidence.effect)
            for each in decisions
            if each.evidence is not None and each.numbers.get("direction") == direction
        ]

    steeper, flatter = logarithms("steeper"), logarithms("flatter")
    most = "steeper" if (len(steeper), sum(steeper)) >= (len(flatter), sum(flatter)) else "flatter"
    turned = []
    for each in decisions:
        evidence = each.evidence
        if evidence is not None and each.numbers.get("direction", most) != most:
            low, high = 1 / evidence.high, 1 / evidence.low
            opposite = replace(evidence, effect=1 / evidence.effect, low=low, high=high, p=1 - evidence.p / 2)
            turned.append(replace(each, evidence=opposite))
        else:
            turned.append(each)
    return turned


def _over_seeds(
    judge: Callable[[xr.Dataset], Decision], seeds: Sequence[xr.Dataset], *, logarithmic: bool = False
) -> Decision:
    """The decision over the seeds of one size. Where there is one, that on it; the direction of kinks is counted.

    Kinks are pooled in the direction of the majority: a kink of the other direction speaks against it.
    """
    decisions = _in_one_direction([decision_of(judge, run) for run in seeds])
    try:
        decision = over_seeds(decisions, logarithmic=logarithmic)
    except NotTestableError as error:
        return Decision(str(error), error.numbers)
    directions = [each.numbers.get("direction") for each in decisions]
    known = [direction for direction in directions if direction is not None]
    if len(decisions) == 1 or not known:
        return decision
    steeper = known.count("steeper")
    numbers = {**decision.numbers, "steeper": steeper}
    reason = f"{decision.reason}; steeper after the kink in {steeper} of {len(known)}"
    return replace(decision, reason=reason, numbers=numbers)
