"""Claims about the order parameter: b grows, the loss falls with b, the slope of the loss over b has a kink.

Each test is a function of an `OrderCurve`. The scorecard applies it to the saved results of a model, and the study of
the blog to each of its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.evidence import LEAST_POWER, LEVEL, Evidence
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Number
from pythia_dynamics.measures.kink import LEAST_RATIO, MIN_POINTS, find_kink
from pythia_dynamics.measures.rise import LEAST_POINTS, MAX_RISE, correlate_increments, loss_rise

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "B_MONOTONE",
    "LOSS_FALLS",
    "ORDER_CLAIMS",
    "SLOPE_CHANGES",
    "OrderCurve",
    "b_monotone",
    "judge_b_monotone",
    "judge_loss_falls",
    "judge_slope_changes",
    "loss_falls_with_b",
    "slope_changes",
]

_MAX_FALL = 0.01
"""Largest fall of b, relative to its range, that still counts as growth.

The blog's published b never falls; 1 % allows for weights that are rounded and for the first steps of a training.
"""

_MIN_STEPS = 3
"""Fewest steps of b: one between its two ends."""

_claim = partial(Claim, work="A Large Language Model Order Parameter")

B_MONOTONE = _claim(
    "b-monotone",
    "The order parameter b = ‖W‖/d_model grows monotonically during training.",
    "Fig 4",
    "Largest fall of b below a value it had before, relative to its range. It is exact: all weights are read.",
    "1 % of the range at most",
    remark="The norm of a random walk grows as well: growth of b alone says nothing about learning.",
)

LOSS_FALLS = _claim(
    "loss-falls-with-b",
    "The training loss falls monotonically with b.",
    "Fig 4",
    "Largest rise of the loss along growing b, relative to its range, without what noise adds; b that are less than "
    "1 % of their range apart are not compared. p is the probability of such a small rise where the best monotone "
    "curve, with noise like that of the data, rises by 5 %.",
    "5 % of the range at most",
    remark="Two series that are monotone for reasons of their own pass this test too. The rank correlation of the "
    "increments of loss and b, without their smooth trends in the step, says whether they move together.",
)

SLOPE_CHANGES = _claim(
    "slope-changes",
    "The slope dL/db changes: the loss over b has a kink. (The blog: in the two small models, having flattened, the "
    "loss falls more steeply again.)",
    "Fig 5",
    "Without the untrained model: gain of the likelihood by a kink over smooth curves (cubic, exponential, power law, "
    "logistic, each with a parabola), with autoregressive noise. p is the largest over these families, from simulated "
    "curves without a kink; the effect is the ratio of the slopes on both sides.",
    "slopes that differ by 1.5 times",
    remark="A kink may make the loss steeper or flatter; the blog's is a steeper one.",
)


@dataclass(frozen=True)
class OrderCurve:
    """b and the loss at the steps at which both are known.

    Parameters
    ----------
    steps
        int64, shape (n,), increasing.
    b
        Order parameter, finite, shape (n,).
    loss
        Loss in nats per token, finite, shape (n,).
    """

    steps: NDArray[np.int64]
    b: NDArray[np.float64]
    loss: NDArray[np.float64]

    @classmethod
    def of(cls, table: xr.Dataset, loss: str = "loss") -> OrderCurve:
        """The curve of a table over `step` with `order_parameter` and the column `loss`; empty without that column."""
        b = table["order_parameter"].to_numpy().astype(np.float64)
        values = table[loss].to_numpy().astype(np.float64) if loss in table else np.full(len(b), np.nan)
        known = np.isfinite(b) & np.isfinite(values)
        return cls(table["step"].to_numpy().astype(np.int64)[known], b[known], values[known])

    def __len__(self) -> int:
        return len(self.steps)

    def trained(self) -> OrderCurve:
        """The curve without the untrained model, from which the loss falls at once by most of its range."""
        later = self.steps > 0
        return OrderCurve(self.steps[later], self.b[later], self.loss[later])


# -- the tests ------------------------------------------------------------------------------------------------


def judge_b_monotone(steps: NDArray[np.int64], b: NDArray[np.float64]) -> Decision:
    """b never falls below an earlier value by more than 1 % of its range.

    Such a b also ends above its start.

    Parameters
    ----------
    steps, b
        Steps and order parameter, finite, shape (n,).

    Raises
    ------
    NotTestableError
        For fewer than three steps.
    """
    if len(b) < _MIN_STEPS:
        raise NotTestableError(f"{len(b)} steps are too few")
    extent = float(np.ptp(b))
    fall = float(np.max(np.maximum.accumulate(b) - b)) / extent if extent > 0 else 0.0
    top = int(steps[int(np.argmax(b))])
    numbers = {"first": float(b[0]), "last": float(b[-1]), "largest_fall": fall, "greatest_at": top, "steps": len(b)}
    reason = (
        f"b goes from {b[0]:.4g} to {b[-1]:.4g}; its largest fall is {fall:.2%} of its range (greatest at {top:,})"
        "; the norm of a random walk grows as well"
    )
    evidence = Evidence.exact("largest fall of b, relative to its range", fall, _MAX_FALL, at_most=True)
    return Decision(reason, numbers, evidence, refuted=extent == 0)


def judge_loss_falls(curve: OrderCurve) -> Decision:
    """Along growing b the loss rises by at most 5 % of its range, beyond what its noise explains.

    Parameters
    ----------
    curve
        b and the loss.

    Raises
    ------
    NotTestableError
        For fewer than `LEAST_POINTS` steps, and where b or the loss does not change.
    """
    if len(curve) < LEAST_POINTS:
        raise NotTestableError(f"{len(curve)} steps with b and a loss are too few: {LEAST_POINTS} are needed")
    if np.ptp(curve.b) == 0 or np.ptp(curve.loss) == 0:
        raise NotTestableError("b or the loss does not change")
    found = loss_rise(curve.b, curve.loss)
    correlation, p = _increments(curve.trained())
    numbers: dict[str, Number] = {"largest_rise": found.measured, "rise_beyond_noise": found.rise}
    numbers |= {"p_monotone": found.p_monotone, "noise": found.noise, "autocorrelation": found.autocorrelation}
    numbers |= {"increments_correlation": correlation, "increments_p": p, "steps": found.points}
    reason = (
        f"along growing b the loss rises by {found.measured:.1%} of its range at most, {found.rise:.1%} beyond its "
        f"noise of {found.noise:.2g} nats ({found.points} steps); two independent monotone series pass this test as "
        "well: "
    )
    if np.isfinite(correlation):
        together = "move together" if p <= LEVEL and correlation < 0 else "are not seen to move together"
        reason += (
            f"without their trends in the step, the increments of loss and b correlate by rank with {correlation:+.2f} "
            f"(p = {p:.2g}), so they {together}"
        )
    else:
        reason += "their increments have no variation beside the trend that could correlate"
    evidence = Evidence(
        "largest rise of the loss along growing b beyond noise, relative to its range",
        found.rise,
        MAX_RISE,
        null="the best monotone curve with a rise by 5 % of the range, and the noise of the data",
        p=found.p,
        power=found.power,
        low=found.low,
        high=found.high,
        at_most=True,
    )
    return Decision(reason, numbers, evidence)


def judge_slope_changes(curve: OrderCurve) -> Decision:
    """The loss over b has a kink at which its slope changes by 1.5 times, which no smooth curve explains.

    Parameters
    ----------
    curve
        b and the loss. The untrained model is left out.

    Raises
    ------
    NotTestableError
        For fewer than `MIN_POINTS` steps with different b, and where the loss does not change.
    """
    curve = curve.trained()
    kink = find_kink(curve.b, curve.loss)
    if kink is None:
        raise NotTestableError(
            f"{len(curve)} steps with b and a loss: {MIN_POINTS} of different b are needed, and a loss that changes"
        )
    step = int(curve.steps[int(np.argmin(np.abs(curve.b - kink.at)))])
    direction = "steeper" if kink.steeper else "flatter"
    numbers: dict[str, Number] = {"kink_b": kink.at, "kink_step": step, "direction": direction}
    numbers |= {"slope_before": kink.slope_before, "slope_after": kink.slope_after, "ratio": kink.ratio}
    numbers |= {"ratio_low": kink.low, "ratio_high": kink.high, "p": kink.p, "gain": kink.gain, "null": kink.null}
    numbers |= {"noise": kink.noise, "autocorrelation": kink.autocorrelation, "steps": kink.points}
    reason = (
        f"the best kink is at b = {kink.at:.4g} (step {step:,}), where dL/db goes from {kink.slope_before:.3g} to "
        f"{kink.slope_after:.3g}, {direction} ({kink.ratio:.2g} times); p = {kink.p:.2g} against a smooth curve "
        f"({kink.null}) with noise of {kink.noise:.2g} nats, {kink.points} steps"
    )
    # The interval is that of the kink which was found. A larger one elsewhere may be hidden where the power is low, so
    # the interval must not refute the claim there.
    placed = kink.power >= LEAST_POWER or (kink.p <= LEVEL and kink.ratio >= LEAST_RATIO)
    evidence = Evidence(
        "ratio of the slopes of the loss over b on both sides of its best kink",
        kink.ratio,
        LEAST_RATIO,
        null="smooth curves of four families with autoregressive noise",
        p=kink.p,
        power=kink.power,
        low=kink.low if placed else float("nan"),
        high=kink.high if placed else float("nan"),
    )
    return Decision(reason, numbers, evidence)


def _increments(curve: OrderCurve) -> tuple[float, float]:
    """`correlate_increments`, NaN for too few steps."""
    if len(curve) < LEAST_POINTS:
        return float("nan"), float("nan")
    return correlate_increments(curve.steps, curve.b, curve.loss)


# -- on the saved results of a model --------------------------------------------------------------------------


def b_monotone(saved: SavedResults) -> Decision:
    """`judge_b_monotone` on ``order.csv``. Raises `NotTestableError` where it is missing or too short."""
    (table,) = saved.read("order.csv")
    b = table["order_parameter"].to_numpy().astype(np.float64)
    known = np.isfinite(b)
    return judge_b_monotone(table["step"].to_numpy().astype(np.int64)[known], b[known])


def loss_falls_with_b(saved: SavedResults) -> Decision:
    """`judge_loss_falls` on ``order.csv``. Raises `NotTestableError` where it is missing, too short or has no loss."""
    return judge_loss_falls(_saved_curve(saved))


def slope_changes(saved: SavedResults) -> Decision:
    """`judge_slope_changes` on ``order.csv``. Raises as `loss_falls_with_b`."""
    return judge_slope_changes(_saved_curve(saved))


def _saved_curve(saved: SavedResults) -> OrderCurve:
    (table,) = saved.read("order.csv")
    curve = OrderCurve.of(table)
    if not len(curve):
        raise NotTestableError(f"order.csv has no loss: run {saved.command_for('order.csv')} --loss FILE")
    return curve


ORDER_CLAIMS: Mapping[Claim, Callable[[SavedResults], Decision]] = {
    B_MONOTONE: b_monotone,
    LOSS_FALLS: loss_falls_with_b,
    SLOPE_CHANGES: slope_changes,
}
"""The claims about the order parameter, and the functions that test them on saved results."""
