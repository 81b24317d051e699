"""When to stop training: the exit protocol of "The Garden of Forking Paths" as a rule, and what it saves and costs.

The paper stops training once the weights are stationary. The rule here reads curves that are known during training. It
can stop a run (`StationarityStop`) or be applied afterwards to any history (`replay`).

Stationary means that the displacement saturates, in the time in which the learning rate is taken out
(`pythia_dynamics.measures.rest`). At each record the rule looks for a rest in the records up to it, and asks
how often a random walk would show one.

The MSD demeaned over *time* is not such a curve. Its mean includes steps still to come, and its curve up to any step
has passed a peak, for a random walk as well. The rules ``msd`` and ``either`` read the
MSD of Eq 4, demeaned over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.rest import MIN_RECORDS, RestSearch, find_rest, rest_p_value, standstill
from pythia_dynamics.measures.stationarity import RATE_STEPS, motion
from pythia_dynamics.measures.walks import Motion
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.training.choices import RuleKind

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Replay", "StationarityRule", "replay"]

_MAX_P = 0.01
"""Largest p-value of a record's rest. The rule looks at every record, but the looks at one walk are alike: 1 % at each
keeps the walks that are ever stopped below 5 %."""

_CANDIDATES = 8
"""About as many first records of a rest are tried at each record."""


@dataclass(frozen=True, slots=True)
class StationarityRule:
    """Stop after `patience` stationary records in a row.

    Parameters
    ----------
    kind
        When a record is stationary.

        * ``stationary``: the records up to it have a rest (`find_rest`) that at most 1 % of random walks have. A rest
          in which the weights move has to be seen over as much as 16 records of equal distance: on an uneven grid,
          noise of records that lie close hides any walk. Where
          the learning rate is known, distances are in ∫η², and a motion that decays with η is none. Where it is not
          known, only a history in equilibrium from its first record is; a motion that stops could be the work of the
          schedule.
        * ``displacement``: the displacement rate ‖w_t − w_{t−1}‖ / ‖w_t‖ / (steps between), per 1,000 steps, is below
          `threshold`. The rate counts steps by their number, so a long interval of an uneven grid is not a fast one.
          A decaying learning rate makes it small by itself: the weights are then slow, not stationary.
        * ``msd``: the MSD of Eq 4 and 5 has passed its peak by more than its null explains. Its value relative to that
          at its peak so far lies below that of a random walk with the same step sizes, by more than `sigmas` standard
          deviations of the walk.
        * ``either``: one of the last two holds.

        A record with unknown curves is not stationary.
    threshold
        Relative displacement per 1,000 steps, above 0, for ``displacement``. The default is 1 %.
    patience
        Number of stationary records in a row that stop the training, at least 1. The default of three leaves out a
        single slow interval.
    after
        First step whose record counts.
    sigmas
        Standard deviations of the walk, for ``msd``. A Gaussian lies 3 σ below its mean in 0.1 % of cases.

    Raises
    ------
    UnknownNameError
        For a kind that is not known.
    PythiaDynError
        For a threshold or patience out of range.
    """

    kind: RuleKind = "stationary"
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

    def stationary(self, curves: xr.Dataset, *, last: int | None = None) -> NDArray[np.bool_]:
        """Which records are stationary.

        Parameters
        ----------
        curves
            A dataset over `step` with `displacement_rate`, `msd`, `msd_null` and `msd_null_sd`; for ``stationary`` with
            `squared_displacement` over (step, other_step), and the coordinate `learning_rate` where it is known.
        last
            Number of known records at the end that are looked at; the others are False. Default: all.

        Returns
        -------
        bool array of shape (records,)
            The value of a record depends on it and on earlier records only.

        Raises
        ------
        PythiaDynError
            The rule needs displacements between all pairs of records, and `curves` has none.
        """
        steps = curves["step"].to_numpy()
        found = np.zeros(len(steps), dtype=bool)
        known = np.isfinite(curves["msd"].to_numpy())
        if last is not None:
            known[np.flatnonzero(known)[:-last]] = False
        if self.kind == "stationary":
            return _at_rest(curves, known & (steps >= self.after))
        if self.kind != "msd":
            with np.errstate(invalid="ignore"):
                found |= curves["displacement_rate"].to_numpy() < self.threshold
        if self.kind != "displacement":
            msd, null, spread = (curves[name].to_numpy() for name in ("msd", "msd_null", "msd_null_sd"))
            found |= _past_peak(msd, null, spread, self.sigmas)
        stationary: NDArray[np.bool_] = found & known & (steps >= self.after)
        return stationary

    def stop(self, curves: xr.Dataset) -> int | None:
        """The step at which the rule stops on `curves`, None where it does not. Missing records are skipped."""
        return self.first_stop(curves, self.until_stop(curves))

    def until_stop(self, curves: xr.Dataset) -> NDArray[np.bool_]:
        """Which records are stationary, up to the stop. The rule ``stationary`` does not look at later ones: False."""
        if self.kind != "stationary":
            return self.stationary(curves)
        wanted = np.isfinite(curves["msd"].to_numpy()) & (curves["step"].to_numpy() >= self.after)
        return _at_rest(curves, wanted, enough=self.patience)

    def first_stop(self, curves: xr.Dataset, stationary: NDArray[np.bool_]) -> int | None:
        """The step of the first `patience` records in a row that are `stationary`, as `stationary` gives them."""
        known = np.isfinite(curves["msd"].to_numpy())
        run = 0
        for step, good in zip(curves["step"].to_numpy()[known], stationary[known], strict=True):
            run = run + 1 if good else 0
            if run == self.patience:
                return int(step)
        return None

    def stops_now(self, curves: xr.Dataset) -> bool:
        """Whether the last `patience` known records are stationary, as a run that is not stopped yet has to ask."""
        known = np.flatnonzero(np.isfinite(curves["msd"].to_numpy()))[-self.patience :]
        return len(known) == self.patience and bool(self.stationary(curves, last=self.patience)[known].all())


def _at_rest(curves: xr.Dataset, wanted: NDArray[np.bool_], enough: int | None = None) -> NDArray[np.bool_]:
    """Which of the `wanted` records have a rest in the records up to them that a walk would not show.

    After `enough` of them in a row the later ones are not looked at.
    """
    if "squared_displacement" not in curves:
        raise PythiaDynError(
            "the stationary rule needs the displacement between all pairs of records: monitor with with_gram=True"
        )
    found = np.zeros(len(wanted), dtype=bool)
    squared = curves["squared_displacement"].to_numpy()
    known = np.isfinite(np.diag(squared))
    present = np.flatnonzero(known)
    for count in range(MIN_RECORDS + 1, len(present) + 1):
        record = int(present[count - 1])
        if enough is not None and count > enough and found[present[count - 1 - enough : count - 1]].all():
            break
        if not wanted[record]:
            continue
        past = present[:count]
        between = squared[np.ix_(past, past)]
        if not between.max() > 0:
            continue  # weights that have never moved, such as frozen ones, come to no rest
        motion = _motion(curves.isel(step=slice(record + 1)), past, between)
        search = RestSearch.over(motion.time, _CANDIDATES)
        rest = find_rest(motion, search)
        if standstill(motion) is not None:
            found[record] = True
            continue
        if rest is None or not rest.found or (rest.record > 0 and not motion.rate_known):
            continue
        if _spread(motion.steps[rest.record :]) < MIN_RECORDS - 1:
            continue
        p, _ = rest_p_value(motion, np.random.default_rng(record), search, more=False)
        found[record] = p <= _MAX_P
    return found


def _spread(steps: NDArray[np.int64]) -> float:
    """How many equal intervals average as much as those between these records: (Σ d)² / Σ d².

    On a grid whose records lie closer at the beginning, noise of records hides a walk until the records are far enough
    apart, while the records so far look like an equilibrium. A few late intervals then make up most of the steps.
    """
    passed = np.diff(steps).astype(np.float64)
    return float(passed.sum() ** 2 / (passed**2).sum())


def _motion(curves: xr.Dataset, past: NDArray[np.intp], squared: NDArray[np.float64]) -> Motion:
    """The motion over the records `past` from their squared displacements; the direction of w_0 is not needed."""
    return Motion.from_squared(
        squared,
        curves["step"].to_numpy(),
        past,
        size=int(curves["squared_displacement"].attrs["weights"]),
        start=float(curves["frobenius_norm"].to_numpy()[past[0]]) ** 2,
        learning_rate=curves["learning_rate"].to_numpy() if "learning_rate" in curves.coords else None,
    )


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
    stationary = rule.until_stop(curves)
    stopped = rule.first_stop(curves, stationary)
    curves = curves.assign(stationary=("step", stationary))
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
