"""Motions of known truth: weights that walk, drift, turn, split or rest, on a grid of steps.

Each motion is a function of a `Grid` that returns the weights at each of its T steps, shape (T, N).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.learning_rate import LearningRate, LoggedLearningRate
from pythia_dynamics.errors import PythiaDynError

__all__ = [
    "BIFURCATION",
    "CONSTANT",
    "COSINE",
    "FIRST_STEP",
    "LAST_STEP",
    "LINEAR",
    "STABLE",
    "STEPPED",
    "TRAVEL",
    "WARMUP",
    "Array",
    "Grid",
    "Motion",
    "Schedule",
    "drift",
    "faster_end",
    "frozen",
    "grid_steps",
    "heavy_tailed",
    "jittered",
    "low_rank",
    "noise",
    "ornstein_uhlenbeck",
    "persistent",
    "relaxation",
    "rotation",
    "split",
    "there_and_back",
    "turn",
    "walk",
]

FIRST_STEP, LAST_STEP = 1_000, 143_000
"""First and last step of the papers."""

BIFURCATION = 80_000
"""The step of every planted event: that of "The Garden of Forking Paths" for 70M."""

_START = 0.02
"""Standard deviation of the first weights: that of GPT-NeoX's initialisation."""

TRAVEL = 0.04
"""Root mean square displacement of a weight over the whole training: twice the first weights."""

_FORK = 0.06
"""The distance a of the two modes ±a from zero: three times the first weights."""

_BACKGROUND = 0.1
"""Walk that is added to a motion without noise of its own, as a share of its displacement."""

_FORK_RECORDS = 10
"""Records of 143 over which weights move to ±a: 7 % of training, as sharp as the peaks of the paper's Fig 3."""

Array = NDArray[np.float64]
Schedule = LearningRate | LoggedLearningRate


def grid_steps(records: int, *, uneven: bool = False) -> NDArray[np.int64]:
    """Evenly spaced steps from 1,000 to 143,000; int64 of shape (records,).

    Parameters
    ----------
    records
        Number of steps, at least 3. 143 are those of the papers.
    uneven
        Whether the first ten are 1, 2, 4 … 512, which Pythia publishes too.
    """
    if records < 3:
        raise PythiaDynError(f"a history of known truth has at least 3 records; got {records}")
    if uneven and records > 13:
        return np.concatenate([2 ** np.arange(10), grid_steps(records - 10)])
    return np.round(np.linspace(FIRST_STEP, LAST_STEP, records)).astype(np.int64)


@dataclass(frozen=True)
class Grid:
    """The times of a history, on which its weights are drawn.

    Parameters
    ----------
    steps
        int64, shape (T,).
    walk
        Shape (T − 1,). Root of the integral of η² between neighbouring steps, divided by that over the whole training:
        the sizes of the steps of a walk, whose squares sum to 1.
    path
        Shape (T,). Integral of η from the first step, from 0 to 1: the distance along a motion in one direction.
    size
        N, the number of weights.
    rng
        The generator.
    """

    steps: NDArray[np.int64]
    walk: Array
    path: Array
    size: int
    rng: np.random.Generator

    @property
    def event(self) -> int:
        """Index of the first step at or after `BIFURCATION`."""
        return int(np.searchsorted(self.steps, BIFURCATION))

    def normal(self, *count: int) -> Array:
        """Standard normal values of shape (*count, N)."""
        return self.rng.standard_normal((*count, self.size))


Motion = Callable[[Grid], Array]
"""Draws the weights, shape (T, N)."""


# -- learning rates -------------------------------------------------------------------------------------------

_PEAK, _WARMUP = 1e-3, 1430
COSINE = LearningRate(_PEAK, LAST_STEP, _WARMUP, final=0.1, decay="neox", origin="Pythia-70M")
CONSTANT = LearningRate(_PEAK, LAST_STEP, decay="constant", origin="constant")
WARMUP = LearningRate(_PEAK, LAST_STEP, 71_500, decay="constant", origin="warm-up over half of training")
LINEAR = LearningRate(_PEAK, LAST_STEP, _WARMUP, decay="linear", final=0.01, origin="linear")
STABLE = LearningRate(_PEAK, LAST_STEP, _WARMUP, 114_400, 0.01, "linear", "warm-up, stable, decay")
STEPPED = LoggedLearningRate(
    (0, 47_500, 47_501, 95_000, 95_001, LAST_STEP), (1e-3, 1e-3, 3e-4, 3e-4, 1e-4, 1e-4), "a third at two steps"
)


# -- motions --------------------------------------------------------------------------------------------------


def _from_start(grid: Grid, increments: Array) -> Array:
    """First weights, moved by `increments` of shape (T − 1, N)."""
    return np.concatenate([np.zeros((1, grid.size)), np.cumsum(increments, axis=0)]) + _START * grid.normal()


def walk(grid: Grid, *, travel: float = TRAVEL, sizes: Array | None = None) -> Array:
    """A random walk of this root mean square displacement, with these sizes of its steps (T − 1,) or those of η."""
    sizes = grid.walk if sizes is None else sizes
    return _from_start(grid, travel * sizes[:, None] * grid.normal(len(sizes)))


def persistent(grid: Grid, *, memory: float) -> Array:
    """A walk whose increments, over η, are an AR(1) process with the autocorrelation `memory`."""
    from scipy.signal import lfilter

    noise = grid.normal(len(grid.walk))
    noise[1:] *= math.sqrt(1 - memory**2)
    increments: Array = lfilter([1], [1, -memory], noise, axis=0)
    travel = TRAVEL * math.sqrt((1 - memory) / (1 + memory))  # persistence lengthens the way by the inverse of the root
    return _from_start(grid, travel * grid.walk[:, None] * increments)


def low_rank(grid: Grid, *, rank: int) -> Array:
    """A walk in `rank` directions of the space of all weights."""
    steps = grid.rng.standard_normal((len(grid.walk), rank)) / math.sqrt(rank)
    return _from_start(grid, TRAVEL * grid.walk[:, None] * (steps @ grid.normal(rank)))


def heavy_tailed(grid: Grid) -> Array:
    """A walk whose increments have Student's t distribution with 3 degrees of freedom, of variance 3."""
    noise = grid.rng.standard_t(3, (len(grid.walk), grid.size)) / math.sqrt(3)
    return _from_start(grid, TRAVEL * grid.walk[:, None] * noise)


def ornstein_uhlenbeck(grid: Grid, *, time: float) -> Array:
    """A stationary AR(1) process with a correlation time of `time` records of 143, about first weights."""
    from scipy.signal import lfilter

    memory = math.exp(-142 / (time * len(grid.walk)))
    noise = grid.normal(len(grid.steps))
    noise[1:] *= math.sqrt(1 - memory**2)
    process: Array = lfilter([1], [1, -memory], noise, axis=0)
    return _START * (grid.normal() + process)


def _with_background(grid: Grid, frames: Array) -> Array:
    """A motion, with first weights and a walk of a tenth of its displacement."""
    return frames + walk(grid, travel=_BACKGROUND * TRAVEL)


def drift(grid: Grid) -> Array:
    """In one direction, at a speed proportional to η."""
    return _with_background(grid, TRAVEL * grid.path[:, None] * grid.normal())


def relaxation(grid: Grid) -> Array:
    """Towards a point in a random direction, exponentially in the integral of η: by 98 % over the training."""
    return _with_background(grid, TRAVEL * (1 - np.exp(-4 * grid.path))[:, None] * grid.normal())


def rotation(grid: Grid) -> Array:
    """By 270° in a plane: the MSD of Eq 4 is greatest after 180°."""
    angle = 1.5 * math.pi * grid.path
    first, second = grid.normal(2)
    turned = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
    frames: Array = _START * turned
    return frames


def turn(grid: Grid) -> Array:
    """The vector of all weights turns round at the bifurcation, in a plane: its sum, and so the MSD, falls then."""
    record = (grid.steps[-1] - grid.steps[0]) / 142
    angle = math.pi * np.clip((grid.steps - BIFURCATION) / (_FORK_RECORDS * record) + 0.5, 0, 1)
    first, second = grid.normal(2)
    frames: Array = _START * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    background = walk(grid, travel=_BACKGROUND * TRAVEL)
    frames += background - background[0]
    return frames


def noise(grid: Grid) -> Array:
    """Independent noise about zero at each record."""
    return _START * grid.normal(len(grid.steps))


def there_and_back(grid: Grid) -> Array:
    """Along one direction and, from the middle of the path on, back to the start."""
    return _with_background(grid, TRAVEL * (1 - np.abs(2 * grid.path - 1))[:, None] * grid.normal())


def jittered(grid: Grid, *, jitter: float) -> Array:
    """A walk with independent noise at each record, `jitter` times the root mean square step."""
    step = TRAVEL / math.sqrt(len(grid.walk))
    return walk(grid) + jitter * step * grid.normal(len(grid.steps))


def frozen(grid: Grid, *, jitter: float) -> Array:
    """A walk that stops at the bifurcation, with independent noise, relative to the mean step, from there on."""
    frames = walk(grid)
    step = TRAVEL / math.sqrt(len(grid.walk))
    frames[grid.event :] = frames[grid.event]
    if jitter:
        frames[grid.event :] += jitter * step * grid.normal(len(grid.steps) - grid.event)
    return frames


def split(
    grid: Grid, *, jitter: float, share: float = 1.0, modes: tuple[float, float] = (-1, 1), travel: float = TRAVEL / 4
) -> Array:
    """A walk until the bifurcation; then a share of the weights moves to one of two `modes`, in units of a.

    There is independent noise of `jitter` · a at each record about the modes. Other weights rest.
    """
    frames = walk(grid, travel=travel)
    chosen = grid.rng.random(grid.size) < share
    first = frames[grid.event].copy()
    target = np.where(chosen, _FORK * np.where(grid.rng.random(grid.size) < 0.5, *modes), first)
    count = len(grid.steps) - grid.event
    duration = max(_FORK_RECORDS * len(grid.steps) / 143, 1)
    done = np.clip(np.arange(count) / duration, 0, 1)[:, None]
    frames[grid.event :] = (1 - done) * first + done * target
    frames[grid.event :] += jitter * _FORK * done * chosen * grid.normal(count)
    return frames


def faster_end(grid: Grid) -> Array:
    """A walk whose steps, per learning rate, are twice as large over the last tenth of the training."""
    late = grid.steps[1:] > LAST_STEP - (LAST_STEP - FIRST_STEP) / 10
    return walk(grid, sizes=grid.walk * np.where(late, 2.0, 1.0))
