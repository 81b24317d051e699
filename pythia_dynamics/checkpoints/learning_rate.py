"""Learning rates by step: a schedule, or what a training has logged.

The learning rate of step t is that of the update which follows the weights of step t, as GPT-NeoX logs it. The Trainer
of transformers 5 logs that of the update before: its log is later by one step, which is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.tables import read_by_step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_EXACT",
    "NOT_KNOWN",
    "Decay",
    "LearningRate",
    "LoggedLearningRate",
    "RateLike",
    "as_learning_rate",
    "rates_at",
    "read_learning_rate",
    "schedule_from_values",
]

Decay = Literal["cosine", "neox", "linear", "constant"]
"""How a learning rate falls after its peak; see `LearningRate`."""

DECAYS: tuple[Decay, ...] = get_args(Decay)

NOT_KNOWN = "not known"
"""What results say of a learning rate that is not known."""

_COLUMNS = ("learning_rate", "lr")
"""Columns that hold a learning rate, in order of preference."""


@dataclass(frozen=True, slots=True)
class LearningRate:
    """A learning-rate schedule: linear warmup from 0 to the peak, then a decay.

    Parameters
    ----------
    peak
        Largest learning rate.
    total_steps
        The step at which the decay ends.
    warmup_steps
        The step at which the peak is reached.
    decay_start
        The step at which the decay begins; by default that of the peak.
    final
        The learning rate at the end, as a fraction of the peak.
    decay
        ``cosine``, ``linear``, ``constant``; or ``neox``, the cosine of GPT-NeoX 1.0 and 2.0.
    origin
        Where it is from, in words. Two schedules with the same values are equal, whatever their origin.

    Raises
    ------
    PythiaDynError
        There is no such decay, or a number is out of range.
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    decay_start: int | None = None
    final: float = 0.0
    decay: Decay = "cosine"
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise UnknownNameError("decay of a learning rate", self.decay, DECAYS)
        numbers = (self.peak, self.total_steps, self.warmup_steps, self._decay_start, self.final)
        if not all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in numbers):
            raise PythiaDynError("a learning rate has peak, total_steps, warmup_steps and final, which are at least 0")
        if self.final > 1:
            raise PythiaDynError(f"the final learning rate is a fraction of the peak, not {self.final}")
        if not self.warmup_steps <= self._decay_start < self.total_steps:
            raise PythiaDynError("of a learning rate, warmup_steps ≤ decay_start < total_steps")

    @property
    def _decay_start(self) -> int:
        return self.warmup_steps if self.decay_start is None else self.decay_start

    def at(self, steps: Iterable[int]) -> NDArray[np.float64]:
        """The learning rate at some steps; float64 of shape (T,).

        The formulas are those of ``AnnealingLR`` in GPT-NeoX since pull request 1011 of August 2023: to `final` at
        `total_steps`, where it stays. ``neox`` is the formula before pull request 1008, in version 1.0, which trained
        Pythia: half a cosine over `total_steps` from the end of the warmup towards 0, but not below `final`, and no
        change in the last `warmup_steps`.

        Parameters
        ----------
        steps
            T step numbers.
        """
        import numpy as np

        step = np.asarray(tuple(steps), dtype=np.float64)
        done = np.clip((step - self._decay_start) / (self.total_steps - self._decay_start), 0, 1)
        if self.decay == "neox":
            since = np.minimum(step, self.total_steps - self.warmup_steps) - self._decay_start
            height = (1 + np.cos(np.pi * np.maximum(since, 0) / self.total_steps)) / 2
            rate = self.peak * np.maximum(height, self.final)
        else:
            height = {
                "cosine": (1 + np.cos(np.pi * done)) / 2,
                "linear": 1 - done,
                "constant": np.ones_like(done),
            }[self.decay]
            rate = self.peak * (self.final + (1 - self.final) * height)
        warm = step < self.warmup_steps
        return np.where(warm, self.peak * step / max(self.warmup_steps, 1), rate)


@dataclass(frozen=True, slots=True)
class LoggedLearningRate:
    """Learning rates at some steps, as a log or a table has them.

    Parameters
    ----------
    steps
        N step numbers, in increasing order.
    rates
        The learning rate at each of them.
    origin
        Where they are from, in words. Two logs with the same values are equal, whatever their origin.

    Raises
    ------
    PythiaDynError
        There is no step, the steps are not increasing whole numbers, or a learning rate is negative or not finite.
    """

    steps: tuple[int, ...]
    rates: tuple[float, ...]
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("steps", "rates"):
            if isinstance(getattr(self, name), (str, bytes)) or not isinstance(getattr(self, name), Iterable):
                raise PythiaDynError(f"the {name} of a learning rate must be a list of numbers")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        where = f"{self.origin}: " if self.origin else ""
        if not self.steps or len(self.steps) != len(self.rates):
            counts = f"{len(self.rates)} learning rates for {len(self.steps)} steps"
            raise PythiaDynError(f"{where}{counts if self.steps else 'no step has a learning rate'}")
        if not all(type(step) is int and 0 <= step < MAX_EXACT for step in self.steps):
            raise PythiaDynError(f"{where}the steps of a learning rate must be whole numbers, at least 0")
        if any(after <= before for before, after in zip(self.steps, self.steps[1:], strict=False)):
            raise PythiaDynError(f"{where}the steps of a learning rate must be in increasing order")
        for step, rate in zip(self.steps, self.rates, strict=True):
            if type(rate) not in (int, float) or not math.isfinite(rate) or rate < 0:
                wrong = f"the learning rate at step {step} is {rate}"
                raise PythiaDynError(f"{where}{wrong}; it must be finite and at least 0")

    def at(self, steps: Iterable[int]) -> NDArray[np.float64]:
        """The learning rate at some steps, interpolated linearly; float64 of shape (T,).

        Parameters
        ----------
        steps
            T step numbers. Before the first and after the last step of the log the result is NaN.
        """
        import numpy as np

        wanted = np.asarray(tuple(steps), dtype=np.float64)
        return np.interp(wanted, np.array(self.steps, np.float64), self.rates, left=np.nan, right=np.nan)


MAX_EXACT = 2**53
"""Steps and tokens are below this, so that a coordinate of floats holds them exactly. No run has so many tokens."""

RateLike = str | Path | Mapping[Any, Any] | LearningRate | LoggedLearningRate
"""What a learning rate may be given as; see `as_learning_rate`."""


def as_learning_rate(source: Any) -> LearningRate | LoggedLearningRate:
    """A learning rate from what a user gives.

    Parameters
    ----------
    source
        A file for `read_learning_rate`; a mapping of step to learning rate; a mapping with the values of a
        `LearningRate` by name; or a `LearningRate` or `LoggedLearningRate`, which is returned as it is.

    Raises
    ------
    PythiaDynError
        As `read_learning_rate`, `LearningRate` and `LoggedLearningRate`; or it is something else.
    """
    if isinstance(source, (LearningRate, LoggedLearningRate)):
        return source if source.origin else replace(source, origin="given as a value")
    if isinstance(source, (str, Path)):
        return read_learning_rate(source)
    if not isinstance(source, Mapping):
        kinds = "a file, a mapping of step to learning rate, or a LearningRate"
        raise PythiaDynError(f"a learning rate is {kinds}, not a {type(source).__name__}")
    if source and all(isinstance(key, str) for key in source):
        return schedule_from_values({"origin": "given as a value", **source})
    return _logged(source, "given as a mapping")


def rates_at(rate: LearningRate | LoggedLearningRate, steps: Sequence[int], *, where: str) -> NDArray[np.float64]:
    """The learning rate at some steps, one of which it must have.

    Parameters
    ----------
    rate
        The learning rate.
    steps
        T step numbers in increasing order.
    where
        Whose steps they are, for the message.

    Returns
    -------
    array of float64, shape (T,)
        NaN where it is not known.

    Raises
    ------
    PythiaDynError
        It is not known at any of these steps.
    """
    found = rate.at(steps)
    if len(steps) and isinstance(rate, LoggedLearningRate) and not (found == found).any():
        there = f"steps {rate.steps[0]} to {rate.steps[-1]}"
        own = f"{where} has steps {steps[0]} to {steps[-1]}"
        raise PythiaDynError(f"the learning rate ({rate.origin or 'given'}) is of {there}, but {own}; none is common")
    return found


def read_learning_rate(path: Path | str, origin: str | None = None) -> LoggedLearningRate:
    """The learning rates in a table or a log.

    Parameters
    ----------
    path
        A file for `pythia_dynamics.tables.read_by_step`, with the columns step and learning_rate (or lr).
    origin
        Where they are from, in words. Default: the path.

    Raises
    ------
    PythiaDynError
        The file cannot be read, lacks a column, has no learning rate, or one that is negative or not finite.
    """
    rates = read_by_step(path, _COLUMNS, what="learning rates", required="step and learning_rate (or lr)")
    return _logged(rates, str(path), origin)


def _logged(rates: Mapping[Any, Any], where: str, origin: str | None = None) -> LoggedLearningRate:
    """A log from learning rates by step. A message names the place `where`."""
    try:
        ordered = sorted((step.__index__(), float(rate)) for step, rate in rates.items())
    except (AttributeError, TypeError, ValueError):
        raise PythiaDynError(f"{where}: each step must be a whole number, and each learning rate a number") from None
    found = LoggedLearningRate(tuple(step for step, _ in ordered), tuple(rate for _, rate in ordered), where)
    return found if origin is None else replace(found, origin=origin)


def schedule_from_values(values: Mapping[str, Any]) -> LearningRate | LoggedLearningRate:
    """A learning rate from its values by name, as a suite in a file has them.

    Parameters
    ----------
    values
        The values of `LearningRate`, or those of `LoggedLearningRate`.

    Raises
    ------
    UnknownNameError
        There is no value of that name.
    PythiaDynError
        As the two classes; or a value is not there.
    """
    kind = LoggedLearningRate if "steps" in values or "rates" in values else LearningRate
    known = [each.name for each in fields(kind)]
    for name in values:
        if name not in known:
            raise UnknownNameError("key of a learning rate", name, known)
    try:
        return kind(**values)
    except TypeError:  # without a value that has no default
        needed = "steps and rates" if kind is LoggedLearningRate else "peak and total_steps"
        raise PythiaDynError(f"a learning rate has at least {needed}") from None
