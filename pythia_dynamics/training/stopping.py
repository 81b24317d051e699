"""When to stop training: the exit protocol of "The Garden of Forking Paths" as a rule, and what it saves and costs.

The paper stops training once the weights are stationary. The rule here reads curves that are known during training. It
can stop a run (`StationarityStop`) or be applied afterwards to any history (`replay`).

The MSD demeaned over *time* is not such a curve. Its mean includes steps still to come, and its curve up to any step
has passed a peak, for a random walk as well. The rule reads the MSD of Eq 4, demeaned over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.stationarity import RATE_STEPS, motion
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.training.choices import RuleKind

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Replay", "StationarityRule", "replay"]


@dataclass(frozen=True, slots=True)
class StationarityRule:
    """Stop after `patience` stationary records in a row.

    Parameters
    ----------
    kind
        When a record is stationary.

        * ``displacement``: the displacement rate ‖w_t − w_{t−1}‖ / ‖w_t‖ / (steps between), per 1,000 steps, is below
          `threshold`. The rate counts steps by their number, so a long interval of an uneven grid is not a fast one.
        * ``msd``: the MSD of Eq 4 and 5 has passed its peak by more than its null explains. Its value relative to that
          at its peak so far lies below that of a random walk with the same step sizes, by more than `sigmas` standard
          deviations of the walk.
        * ``either``: one of both holds.

        A record with unknown curves is not stationary.
    threshold
        Relative displacement per 1,000 steps, above 0. The default is 1 %.
    patience
        Number of stationary records in a row that stop the training, at least 1. The default of three leaves out a
        single slow interval.
    after
        First step whose record counts.
    sigmas
        Standard deviations of the walk. A Gaussian lies 3 σ below its mean in 0.1 % of cases.

    Raises
    ------
    UnknownNameError
        For a kind that is not known.
    PythiaDynError
        For a threshold or patience out of range.
    """

    kind: RuleKind = "either"
    threshold: float = 0.01
    patience: int = 3
    after: int = 0
    sigmas: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(RuleKind):
            raise UnknownNameError("rule", self.kind, get_args(RuleKind))
        if self.patience < 1:
            raise PythiaDynError(f"patience is a number of records, at least 1; got {self.patience}")
        if not self.threshold > 0:
            raise PythiaDynError(f"the threshold is a relative displacement per {RATE_STEPS} steps, above 0")

    def stationary(self, curves: xr.Dataset) -> NDArray[np.bool_]:
        """Which records are stationary.

        Parameters
        ----------
        curves
            A dataset over `step` with `displacement_rate`, `msd`, `msd_null` and `msd_null_sd`.

        Returns
        -------
        bool array of shape (records,)
            The value of a record depends on it and on earlier records only.
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
        """The step at which the rule stops on `curves`, None where it does not. Missing records are skipped."""
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
    """Which records of the MSD lie beyond its peak so far, by more than the null and its spread explain."""
    past = np.zeros(len(msd), dtype=bool)
    peak = -1
    for i, value in enumerate(msd):
        if not np.isfinite(value):
            continue
        if peak < 0 or value >= msd[peak]:
            peak = i
        elif null[peak] > 0 and null[i] > 0:
            # the value of the walk relative to that at the peak, and the standard deviation of that ratio
            expected = null[i] / null[peak]
            error = expected * np.hypot(spread[i] / null[i], spread[peak] / null[peak])
            past[i] = value / msd[peak] < expected - sigmas * error
    return past


@dataclass(frozen=True)
class Replay:
    """What a rule would have done, what that saves, and what it costs in loss.

    Losses are in the unit they were given in, and NaN where they are not known.

    Parameters
    ----------
    rule
        The rule.
    curves
        The curves it read, with `stationary` beside them, over `step`.
    stopped_at
        The step at which it stops, None where it does not.
    last_step
        The last step of the history.
    loss_at_stop
        The loss at the last step up to the stop at which one is known.
    loss_step
        That step.
    loss_last
        The last known loss.
    loss_best_after
        The least loss from the stop to the end.
    attributes
        The attributes of the curves.
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
        """Share of the steps that the rule saves; 0 where it does not stop."""
        return 0.0 if self.stopped_at is None or not self.last_step else 1 - self.stopped_at / self.last_step

    @property
    def loss_cost(self) -> float:
        """Loss at the stop minus the last loss; negative where training on raised the loss."""
        return self.loss_at_stop - self.loss_last


def replay(
    history: Any,
    rule: StationarityRule | None = None,
    *,
    loss: Mapping[int, float] | None = None,
    compute: Compute | None = None,
) -> Replay:
    """Apply a rule to a finished training.

    Parameters
    ----------
    history
        A history, or the dataset of curves that `motion` or a monitor's `results` gives.
    rule
        The rule; by default one with default values.
    loss
        The loss by step.
    compute
        How to compute the curves of a history.
    """
    import xarray as xr

    rule = rule or StationarityRule()
    curves = history if isinstance(history, xr.Dataset) else motion(history, compute=compute)
    stopped = rule.stop(curves)
    curves = curves.assign(stationary=("step", rule.stationary(curves)))
    last = int(curves["step"].to_numpy()[-1])
    known = {int(step): float(value) for step, value in sorted((loss or {}).items()) if np.isfinite(value)}
    known = {step: value for step, value in known.items() if step <= last}
    found: dict[str, Any] = {"loss_last": list(known.values())[-1]} if known else {}
    if stopped is not None:
        rest = [value for step, value in known.items() if step >= stopped]
        found["loss_best_after"] = min(rest, default=float("nan"))
        if until := [step for step in known if step <= stopped]:
            found |= {"loss_step": until[-1], "loss_at_stop": known[until[-1]]}
    return Replay(rule, curves, stopped, last, attributes=dict(curves.attrs), **found)
