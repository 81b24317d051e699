"""When to stop training: the exit protocol of "The Garden of Forking Paths", made precise, and what it would cost.

The paper stops once the weights are stationary. Here that is a rule on a few curves which are known while training
goes on, so that it can stop a run (`StationarityStop`) or be replayed over any history (`replay`).

The MSD that is demeaned over *time* is no such curve: its mean is over steps still to come, and at whatever step one
takes it, it has passed a peak already, for a random walk as well. The rule uses Eq 4's, demeaned over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.stationarity import SCALE, motion
from pythia_dynamics.sweep.compute import Compute

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Replay", "Rule", "StationarityRule", "replay"]


Rule = Literal["displacement", "msd", "either"]


@dataclass(frozen=True, slots=True)
class StationarityRule:
    """Stop after `patience` records in a row that are stationary, none of them before step `after`.

    A record is stationary, by `kind`,

    * ``displacement``: when the displacement rate ‖w_t − w_{t−1}‖ / ‖w_t‖ / (steps between), per 1,000 steps, is below
      `threshold`. Per step *number*: on an uneven grid a long interval is not taken for a fast one;
    * ``msd``: when the MSD of Eq 4 and 5 has passed its peak beyond what the null shows: relative to its value at its
      peak so far it lies below that of a random walk with the same step sizes, by more than `sigmas` standard
      deviations of the walk;
    * ``either``: when one of both holds.

    A record with unknown curves is not stationary.
    """

    kind: Rule = "either"
    threshold: float = 0.01
    patience: int = 3
    after: int = 0
    sigmas: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Rule):
            raise UnknownNameError("rule", self.kind, get_args(Rule))
        if self.patience < 1:
            raise PythiaDynError(f"patience is a number of records, at least 1; got {self.patience}")
        if not self.threshold > 0:
            raise PythiaDynError(f"the threshold is a relative displacement per {SCALE} steps, above 0")

    def stationary(self, curves: xr.Dataset) -> NDArray[np.bool_]:
        """Which records are stationary, from `displacement_rate`, `msd`, `msd_null`, `msd_null_sd` over `step`.

        What is said of a record depends on it and earlier ones alone.
        """
        steps = curves["step"].to_numpy()
        found = np.zeros(len(steps), dtype=bool)
        if self.kind != "msd":
            with np.errstate(invalid="ignore"):
                found |= curves["displacement_rate"].to_numpy() < self.threshold
        if self.kind != "displacement":
            msd, null, spread = (curves[name].to_numpy() for name in ("msd", "msd_null", "msd_null_sd"))
            found |= _past_peak(msd, null, spread, self.sigmas)
        known = np.isfinite(curves["msd"].to_numpy())
        stationary: NDArray[np.bool_] = found & known & (steps >= self.after)
        return stationary

    def stop(self, curves: xr.Dataset) -> int | None:
        """The step at which the rule stops, None where it does not. Records that are missing are passed over."""
        known = np.isfinite(curves["msd"].to_numpy())
        run = 0
        for step, good in zip(curves["step"].to_numpy()[known], self.stationary(curves)[known], strict=True):
            run = run + 1 if good else 0
            if run == self.patience:
                return int(step)
        return None


def _past_peak(
    msd: NDArray[np.float64], null: NDArray[np.float64], spread: NDArray[np.float64], sigmas: float
) -> NDArray[np.bool_]:
    past = np.zeros(len(msd), dtype=bool)
    peak = -1
    for i, value in enumerate(msd):
        if not np.isfinite(value):
            continue
        if peak < 0 or value >= msd[peak]:
            peak = i
        elif null[peak] > 0 and null[i] > 0:
            # the walk's own value in units of the peak, and the relative error of that ratio
            expected = null[i] / null[peak]
            error = expected * np.hypot(spread[i] / null[i], spread[peak] / null[peak])
            past[i] = value / msd[peak] < expected - sigmas * error
    return past


@dataclass(frozen=True)
class Replay:
    """What a rule would have done: where it stops (None: nowhere), what that saves, what it costs in loss.

    `curves` are those it read, with `stationary` beside them. Losses are in the unit they were given in; NaN where not
    known. `loss_step` is the step whose loss stands for the stop: the last one known up to it.
    """

    rule: StationarityRule
    curves: xr.Dataset
    stopped_at: int | None
    last_step: int
    loss_at_stop: float = float("nan")
    loss_step: int | None = None
    loss_last: float = float("nan")
    loss_best_after: float = float("nan")
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def saved(self) -> float:
        """Share of the steps that are not trained; 0 where it does not stop."""
        return 0.0 if self.stopped_at is None or not self.last_step else 1 - self.stopped_at / self.last_step

    @property
    def loss_cost(self) -> float:
        """Loss at the stop minus that at the end: what the rest of training was worth; negative where it hurt."""
        return self.loss_at_stop - self.loss_last


def replay(
    history: Any,
    rule: StationarityRule | None = None,
    *,
    loss: Mapping[int, float] | None = None,
    compute: Compute | None = None,
) -> Replay:
    """Replay a rule over a history, or over curves that `motion` or a monitor's `results` made; `loss` is by step."""
    import xarray as xr

    rule = rule or StationarityRule()
    curves = history if isinstance(history, xr.Dataset) else motion(history, compute=compute)
    stopped = rule.stop(curves)
    curves = curves.assign(stationary=("step", rule.stationary(curves)))
    known = {int(step): float(value) for step, value in sorted((loss or {}).items()) if np.isfinite(value)}
    last = int(curves["step"].to_numpy()[-1])
    until = [step for step in known if stopped is not None and step <= stopped]
    rest = [step for step in known if stopped is not None and stopped <= step <= last]
    within = [step for step in known if step <= last]
    return Replay(
        rule,
        curves,
        stopped,
        last,
        loss_at_stop=known[until[-1]] if until else float("nan"),
        loss_step=until[-1] if until else None,
        loss_last=known[within[-1]] if within else float("nan"),
        loss_best_after=min((known[step] for step in rest), default=float("nan")),
        attributes=dict(curves.attrs),
    )
