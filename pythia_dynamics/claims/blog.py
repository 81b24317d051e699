"""Claims of "A Large Language Model Order Parameter", tested on training runs of its models.

The same tests on the blog's published numbers support all four claims.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.claims.statistics import MAX_B_FALL, MAX_BREAK_P, MAX_LOSS_RISE, SIGMAS, drawdown
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Verdict, decision_of
from pythia_dynamics.measures.order import break_in_line, derivative
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

_claim = partial(Claim, work="A Large Language Model Order Parameter")

_MIN_STEEPENING = 1.5
"""Least factor by which dL/db becomes steeper. The published curves give 4.6 and 2.6 for the two small models, for
which the blog claims it, and 1.4 and 1.0 for the other two."""

_MIN_B_DISTANCE = 0.01
"""Losses are compared where b differs by more than this share of its range: below it b may fall (`MAX_B_FALL`)."""

CLAIMS = (
    _claim(
        "b-initial",
        "b begins at 0.146 (10K), 0.072 (0.1M), 0.036 (1M) and 0.012 (10M).",
        "Fig 4",
        "b of the untrained model against √(v/3)/d, which follows from a head that is uniform on ±1/√d.",
        "4 standard deviations of b over random heads",
    ),
    _claim(
        "b-monotone",
        "b grows monotonically during training.",
        "Fig 4",
        "Largest fall of b below a value it had before, relative to its range; last value above the first.",
        "1 % of the range",
    ),
    _claim(
        "loss-falls-with-b",
        "The training loss falls monotonically with b.",
        "Fig 4",
        "Largest rise of the loss above its value at a smaller b, relative to its range; b that are less than 1 % of "
        "their range apart are not compared.",
        "5 % of the range",
    ),
    _claim(
        "slope-changes",
        "In the two small models dL/db changes: having flattened, the loss falls more steeply again.",
        "Fig 5",
        "Without the untrained model: how many times as steep dL/db becomes as it has been before, and a line with one "
        "break against one line (Monte-Carlo F test).",
        "1.5 times, p ≤ 0.01",
    ),
)
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
        One for each of `CLAIMS`, in their order.
    """
    begins = _b_initial(runs, initial, initialisations)
    decisions = (begins, _b_monotone(runs), _loss_falls(runs), decision_of(_slope_changes, runs))
    return tuple(map(Verdict.of, CLAIMS, decisions))


def _b_initial(runs: Runs, initial: Initial, initialisations: Mapping[str, str]) -> Decision:
    """The published, the measured and the trained runs' first b lie within 4 standard deviations of the expected b."""
    numbers: dict[str, float] = {}
    deviations, sentences = [], []
    for size, kinds in initial.items():
        reference, neox = kinds["pytorch"], kinds["neox"]["measured"]
        published = float(published_blog(size)["order_parameter"][0])
        first = float(runs[size][0]["order_parameter"][0])
        trained = kinds[initialisations[size]]
        known = {"published": published, "expected": reference["expected"], "trained": first, "neox": neox}
        numbers |= {f"{size} {name}": b for name, b in known.items()}
        pytorch = (published, reference["measured"])
        deviations += [abs(b - reference["expected"]) / reference["spread"] for b in pytorch]
        if int(runs[size][0]["step"][0]) == 0:
            deviations.append(abs(first - trained["expected"]) / trained["spread"])
        sentences.append(
            f"{size} {reference['expected']:.4g} expected, {published:.4g} published, {reference['measured']:.4g} "
            f"measured ({neox:.3g} with GPT-NeoX's normal(0, 0.02))"
        )
    numbers["largest_deviation"] = max(deviations)
    return Decision.of(max(deviations) <= SIGMAS, "; ".join(sentences), numbers)


def _b_monotone(runs: Runs) -> Decision:
    """In every run b ends above its start and falls by at most 1 % of its range."""
    falls = {size: max(_fall(run) for run in seeds) for size, seeds in runs.items()}
    published = max(_fall(published_blog(size)) for size in runs)
    listed = ", ".join(f"{size} {fall:.2%}" for size, fall in falls.items())
    reason = f"largest fall of b, relative to its range: {listed} (published: {published:.2%})"
    curves = [run["order_parameter"].to_numpy() for seeds in runs.values() for run in seeds]
    monotone = all(b[-1] > b[0] for b in curves) and max(falls.values()) <= MAX_B_FALL
    return Decision.of(monotone, reason, {**falls, "published": published})


def _fall(run: xr.Dataset) -> float:
    """The largest fall of b, relative to its range."""
    return drawdown(run["order_parameter"].dropna("step").to_numpy())


def _loss_falls(runs: Runs) -> Decision:
    """In every run the training loss rises by at most 5 % of its range along growing b."""
    rises = {size: max(_rise(run, "train_loss") for run in seeds) for size, seeds in runs.items()}
    validation = {size: max(_rise(run, "validation_loss") for run in seeds) for size, seeds in runs.items()}
    published = max(_rise(published_blog(size), "train_loss") for size in runs)
    listed = ", ".join(f"{size} {rise:.1%}" for size, rise in rises.items())
    listed_validation = ", ".join(f"{size} {rise:.1%}" for size, rise in validation.items())
    reason = (
        f"largest rise of the training loss along growing b, relative to its range: {listed} "
        f"(published: {published:.1%}); of the validation loss: {listed_validation}"
    )
    numbers = rises | {f"{size} validation": rise for size, rise in validation.items()} | {"published": published}
    return Decision.of(max(rises.values()) <= MAX_LOSS_RISE, reason, numbers)


def _rise(run: xr.Dataset, part: str) -> float:
    """The largest rise of a loss above its value at a smaller b, relative to its range."""
    known = run[["order_parameter", part]].dropna("step")
    b, loss = known["order_parameter"].to_numpy(), known[part].to_numpy()
    distance = _MIN_B_DISTANCE * np.ptp(b)
    rises = [
        max(float(value - loss[b < at - distance].min(initial=np.inf)), 0.0) for at, value in zip(b, loss, strict=True)
    ]
    return max(rises) / float(np.ptp(loss)) if np.ptp(loss) > 0 else 0.0


@dataclass(frozen=True)
class _Steepening:
    """Where dL/db has become steeper than before by the largest factor `ratio`: its b and step; the fitted break."""

    ratio: float
    b: float
    step: int
    break_b: float
    p: float


def _steepening(run: xr.Dataset) -> _Steepening | None:
    """The steepening of a curve without its first record; None where there are too few records."""
    known = run[["order_parameter", "train_loss"]].dropna("step").isel(step=slice(1, None))
    steps, b, loss = (known[name].to_numpy() for name in ("step", "order_parameter", "train_loss"))
    fit = break_in_line(b, loss)
    if fit is None:
        return None
    slope = -derivative(steps, b, loss)
    at, ratio, flattest = 0, 1.0, math.inf
    for i, value in enumerate(slope):
        if np.isfinite(value) and value > 0:
            flattest = min(flattest, float(value))
            if value / flattest > ratio:
                at, ratio = i, float(value) / flattest
    return _Steepening(ratio, float(b[at]), int(steps[at]), fit.at, fit.p)


def _slope_changes(runs: Runs) -> Decision:
    """dL/db of the two small models becomes 1.5 times as steep, with a break in the line L(b)."""
    numbers: dict[str, float] = {}
    sentences, changes, too_short = [], [], []
    for size, seeds in runs.items():
        published = _steepening(published_blog(size))
        known = [steepening for run in seeds if (steepening := _steepening(run)) is not None]
        if not known or published is None:
            raise NotTestableError(f"{size} has too few records")
        median = sorted(known, key=lambda steepening: steepening.ratio)[len(known) // 2]
        own = {"steeper": median.ratio, "b": median.b, "break b": median.break_b, "p": median.p}
        found = {**own, "published steeper": published.ratio, "published b": published.b}
        numbers |= {f"{size} {name}": value for name, value in found.items()}
        sentences.append(
            f"{size}: {median.ratio:.2g} times as steep at b = {median.b:.3g}, step {median.step:,} "
            f"(published: {published.ratio:.2g} times, {published.b:.3g}, {published.step:,})"
        )
        if size in SMALL:
            change = median.ratio >= _MIN_STEEPENING and median.p <= MAX_BREAK_P
            changes.append(change)
            too_short.append(not change and int(seeds[0]["step"][-1]) <= published.step)
    reason = "; ".join(sentences)
    if not changes:
        raise NotTestableError("neither of the two small models was trained", numbers)
    if any(too_short):
        raise NotTestableError(f"{reason}; a run that ends before the published change cannot decision_of", numbers)
    return Decision.of(all(changes), reason, numbers)
