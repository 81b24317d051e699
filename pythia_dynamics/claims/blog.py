"""What the blog says, and a stated test of each sentence, put to its own numbers and to ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.claims.statistics import drawdown
from pythia_dynamics.claims.verdict import Claim, Decision, Verdict, no, untestable, yes
from pythia_dynamics.measures.order import break_in_line, derivative
from pythia_dynamics.results.published_blog import published_blog

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CLAIMS", "SMALL", "Initial", "decide"]

SMALL = ("10k", "0.1m")
"""The models whose slope dL/db changes, by the blog."""

Runs = Mapping[str, Sequence["xr.Dataset"]]
Initial = Mapping[str, Mapping[str, Mapping[str, float]]]
"""b of the untrained models by size and initialisation: `expected`, its `spread`, `measured`."""
Numbers = dict[str, float | int | str | bool | None]

_WORK = "A Large Language Model Order Parameter"
_STEEPER = 1.5
_FALL, _RISE, _BREAK_P = 0.01, 0.05, 0.01
_SIGMAS = 4.0

CLAIMS = {
    "b-initial": Claim(
        "b-initial",
        _WORK,
        "b begins at 0.146 (10K), 0.072 (0.1M), 0.036 (1M) and 0.012 (10M).",
        "Fig 4",
        "b of the untrained model against √(v/3)/d, which follows from a head that is uniform on ±1/√d.",
        "4 standard deviations of b over random heads",
    ),
    "b-monotone": Claim(
        "b-monotone",
        _WORK,
        "b grows monotonically during training.",
        "Fig 4",
        "Largest fall of b below a value it had before, relative to its range; last value above the first.",
        "1 % of the range",
    ),
    "loss-falls-with-b": Claim(
        "loss-falls-with-b",
        _WORK,
        "The training loss falls monotonically with b.",
        "Fig 4",
        "Largest rise of the loss above its value at a smaller b, relative to its range; b that are less than 1 % of "
        "their range apart are not compared.",
        "5 % of the range",
    ),
    "slope-changes": Claim(
        "slope-changes",
        _WORK,
        "In the two small models dL/db changes: having flattened, the loss falls more steeply again.",
        "Fig 5",
        "Without the untrained model: how many times as steep dL/db becomes as it has been before, and a line with one "
        "break against one line (Monte-Carlo F test).",
        "1.5 times, p ≤ 0.01",
    ),
}
"""What the blog says, and how it is tested, on its own numbers as on ours."""


def decide(runs: Runs, initial: Initial, initialisations: Mapping[str, str]) -> tuple[Verdict, ...]:
    """The verdict on every claim, from the curves by size (one dataset per seed) and b of the untrained models.

    A run has `order_parameter`, `train_loss` and `validation_loss` over `step`; `initialisations` says how its model
    began.
    """
    decisions = {
        "b-initial": _b_initial(runs, initial, initialisations),
        "b-monotone": _b_monotone(runs),
        "loss-falls-with-b": _loss_falls(runs),
        "slope-changes": _slope_changes(runs),
    }
    return tuple(Verdict.of(CLAIMS[key], decision) for key, decision in decisions.items())


def _b_initial(runs: Runs, initial: Initial, initialisations: Mapping[str, str]) -> Decision:
    numbers: Numbers = {}
    off, said = [], []
    for size, kinds in initial.items():
        reference = kinds["pytorch"]
        theirs = float(published_blog(size)["order_parameter"][0])
        ours = float(runs[size][0]["order_parameter"][0])
        trained = kinds[initialisations[size]]
        numbers |= {f"{size} published": theirs, f"{size} expected": reference["expected"], f"{size} trained": ours}
        numbers |= {f"{size} neox": kinds["neox"]["measured"]}
        off += [
            abs(theirs - reference["expected"]) / reference["spread"],
            abs(reference["measured"] - reference["expected"]) / reference["spread"],
        ]
        if int(runs[size][0]["step"][0]) == 0:
            off.append(abs(ours - trained["expected"]) / trained["spread"])
        said.append(
            f"{size} {reference['expected']:.4g} expected, {theirs:.4g} published, {reference['measured']:.4g} ours "
            f"({kinds['neox']['measured']:.3g} with GPT-NeoX's normal(0, 0.02))"
        )
    return (yes if max(off) <= _SIGMAS else no)("; ".join(said), **numbers, largest_deviation=max(off))


def _b_monotone(runs: Runs) -> Decision:
    falls = {size: max(_fall(run) for run in several) for size, several in runs.items()}
    theirs = max(_fall(published_blog(size)) for size in runs)
    listed = ", ".join(f"{size} {fall:.2%}" for size, fall in falls.items())
    reason = f"largest fall of b, relative to its range: {listed} (published: {theirs:.2%})"
    grew = all(float(run["order_parameter"][-1]) > float(run["order_parameter"][0]) for r in runs.values() for run in r)
    return (yes if grew and max(falls.values()) <= _FALL else no)(reason, **falls, published=theirs)


def _fall(run: xr.Dataset) -> float:
    return drawdown(run["order_parameter"].dropna("step").to_numpy())


def _loss_falls(runs: Runs) -> Decision:
    rises = {size: max(_rise(run, "train_loss") for run in several) for size, several in runs.items()}
    held_out = {size: max(_rise(run, "validation_loss") for run in several) for size, several in runs.items()}
    theirs = max(_rise(published_blog(size), "train_loss") for size in runs)
    listed = ", ".join(f"{size} {rise:.1%}" for size, rise in rises.items())
    other = ", ".join(f"{size} {rise:.1%}" for size, rise in held_out.items())
    reason = (
        f"largest rise of the training loss along growing b, relative to its range: {listed} "
        f"(published: {theirs:.1%}); of the validation loss: {other}"
    )
    numbers = rises | {f"{size} validation": rise for size, rise in held_out.items()} | {"published": theirs}
    return (yes if max(rises.values()) <= _RISE else no)(reason, **numbers)


def _rise(run: xr.Dataset, part: str) -> float:
    known = run[["order_parameter", part]].dropna("step")
    b, loss = known["order_parameter"].to_numpy(), known[part].to_numpy()
    apart = _FALL * np.ptp(b)
    rises = [max(float(here - loss[b < at - apart].min(initial=np.inf)), 0.0) for at, here in zip(b, loss, strict=True)]
    return max(rises) / float(np.ptp(loss)) if np.ptp(loss) > 0 else 0.0


@dataclass(frozen=True)
class _Bend:
    """Where dL/db is steepest after it has been flattest: how many times as steep, at which b and step; the break."""

    steeper: float
    b: float
    step: int
    break_b: float
    p: float


def _bend(run: xr.Dataset) -> _Bend | None:
    """The bend of a curve without its first record, None where there are too few."""
    known = run[["order_parameter", "train_loss"]].dropna("step").isel(step=slice(1, None))
    steps, b, loss = (known[name].to_numpy() for name in ("step", "order_parameter", "train_loss"))
    fit = break_in_line(b, loss)
    if fit is None:
        return None
    slope = -derivative(steps, b, loss)
    at, steeper, flattest = 0, 1.0, math.inf
    for i, value in enumerate(slope):
        if np.isfinite(value) and value > 0:
            flattest = min(flattest, float(value))
            if value / flattest > steeper:
                at, steeper = i, float(value) / flattest
    return _Bend(steeper, float(b[at]), int(steps[at]), fit.at, fit.p)


def _slope_changes(runs: Runs) -> Decision:
    numbers: Numbers = {}
    said, found, early = [], [], []
    for size, several in runs.items():
        theirs = _bend(published_blog(size))
        bends = [_bend(run) for run in several]
        known = [bend for bend in bends if bend is not None]
        if not known or theirs is None:
            return untestable(f"{size} has too few records")
        ours = sorted(known, key=lambda bend: bend.steeper)[len(known) // 2]
        numbers |= {
            f"{size} steeper": ours.steeper,
            f"{size} b": ours.b,
            f"{size} break b": ours.break_b,
            f"{size} p": ours.p,
            f"{size} published steeper": theirs.steeper,
            f"{size} published b": theirs.b,
        }
        said.append(
            f"{size}: {ours.steeper:.2g} times as steep at b = {ours.b:.3g}, step {ours.step:,} "
            f"(published: {theirs.steeper:.2g} times, {theirs.b:.3g}, {theirs.step:,})"
        )
        if size in SMALL:
            bent = ours.steeper >= _STEEPER and ours.p <= _BREAK_P
            found.append(bent)
            early.append(not bent and int(several[0]["step"][-1]) <= theirs.step)
    reason = "; ".join(said)
    if not found:
        return untestable("neither of the two small models was trained", **numbers)
    if any(early):
        return untestable(f"{reason}; a run that ends before the blog's bend cannot tell", **numbers)
    return (yes if all(found) else no)(reason, **numbers)
