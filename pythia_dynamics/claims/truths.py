"""Histories of known truth: weights that move in a known way, for the calibration of the claims and detectors.

A history is drawn from a seed. A `Truth` says which claims and detectors are true of it, and which are left open: those
are neither asserted to be true nor to be false, such as the peak of the MSD on a rotation, which does make it peak.

The grid has `records` steps from 1,000 to 143,000, as the papers have, and the learning rate of Pythia-70M unless a
truth says otherwise. Motions follow the learning rate: the size of a step of a walk is proportional to it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.learning_rate import LearningRate, LoggedLearningRate
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.errors import PythiaDynError, UnknownNameError

if TYPE_CHECKING:
    from pythia_dynamics.history.history import History

__all__ = [
    "BIFURCATION",
    "DETECTORS",
    "FIRST_STEP",
    "LAST_STEP",
    "TRUTHS",
    "Grid",
    "Schedule",
    "Truth",
    "grid_steps",
    "select_truths",
    "truth",
]

DETECTORS = ("bifurcation", "phases", "stop")
"""Detectors that are calibrated beside the claims: a step of the bifurcation is named, a change point is found, the
stopping rule stops."""

FIRST_STEP, LAST_STEP = 1_000, 143_000
"""First and last step of the papers."""

BIFURCATION = 80_000
"""The step of every planted event: that of "The Garden of Forking Paths" for 70M."""

SMALL, LARGE = "pythia-70m-deduped", "pythia-410m-deduped"

_START = 0.02
"""Standard deviation of the first weights: that of GPT-NeoX's initialisation."""

_TRAVEL = 0.04
"""Root mean square displacement of a weight over the whole training: twice the first weights."""

_FORK = 0.06
"""The distance a of the two modes ±a from zero: three times the first weights."""

_BACKGROUND = 0.1
"""Walk that is added to a motion without noise of its own, as a share of its displacement."""

_FORK_RECORDS = 10
"""Records of 143 over which weights move to ±a: 7 % of training, as sharp as the peaks of the paper's Fig 3."""

Array = NDArray[np.float64]
Schedule = LearningRate | LoggedLearningRate


def grid_steps(records: int) -> NDArray[np.int64]:
    """Evenly spaced steps from 1,000 to 143,000; int64 of shape (records,).

    Parameters
    ----------
    records
        Number of steps, at least 3. 143 are those of the papers.
    """
    if records < 3:
        raise PythiaDynError(f"a history of known truth has at least 3 records; got {records}")
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


@dataclass(frozen=True)
class Truth:
    """A kind of history, and what is true of it.

    Parameters
    ----------
    name
        Short name.
    description
        What moves, in words.
    motion
        Draws the weights: a function of a `Grid` that returns shape (T, N).
    effects
        Ids of the claims, and names of `DETECTORS`, that are true of it.
    open
        Those that are neither asserted to be true nor to be false. Everything else is false.
    model
        Name of the model as which the history is judged.
    schedule
        The learning rate of the history.
    extra
        Whether it is a further truth, which tests use and which is not part of the table of the calibration.
    curve
        Name of the `CurveTruth` whose tables stand beside those of the weights; empty for none.
    about
        Ids of the claims that are judged; empty for all of them, and the detectors.
    """

    name: str
    description: str
    motion: Motion
    effects: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    model: str = SMALL
    schedule: Schedule | None = None
    extra: bool = False
    curve: str = ""
    about: frozenset[str] = frozenset()

    def history(self, seed: int, records: int = 143, weights: int = 8192) -> History:
        """Draw one history.

        Parameters
        ----------
        seed
            Seed of the generator. The same seed gives the same history.
        records
            T, the number of steps.
        weights
            N, the number of weights at a step: v rows of d, where d is the greatest power of two up to √(N/2).

        Returns
        -------
        History
            float16, with the learning rate as a coordinate.

        Raises
        ------
        PythiaDynError
            Fewer than 3 records, or a number of weights that is no multiple of d.
        """
        from pythia_dynamics.history.history import History

        width = 2 ** int(math.log2(math.sqrt(weights / 2))) if weights >= 2 else 0
        if not width or weights % width:
            raise PythiaDynError(f"the number of weights must be a multiple of their width {width}; got {weights}")
        schedule = self.schedule or COSINE
        steps = grid_steps(records)
        walk, path = _times(schedule, records)
        frames = self.motion(Grid(steps, walk, path, weights, np.random.default_rng(seed)))
        array = frames.astype(np.float16).reshape(records, -1, width)
        return History.from_array(array, steps, name=self.model, tensor=EMBED_OUT, learning_rate=schedule)


@lru_cache(maxsize=32)
def _times(schedule: Schedule, records: int) -> tuple[Array, Array]:
    """`Grid.walk` and `Grid.path`, from the sums over all training steps."""
    steps = grid_steps(records)
    rate = np.nan_to_num(schedule.at(range(LAST_STEP + 1)))
    squared, linear = (np.concatenate([[0], np.cumsum(rate**power)])[steps] for power in (2, 1))
    walk = np.sqrt(np.diff(squared) / (squared[-1] - squared[0]))
    return walk, (linear - linear[0]) / (linear[-1] - linear[0])


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


def _walk(grid: Grid, *, travel: float = _TRAVEL, sizes: Array | None = None) -> Array:
    sizes = grid.walk if sizes is None else sizes
    return _from_start(grid, travel * sizes[:, None] * grid.normal(len(sizes)))


def _persistent(grid: Grid, *, memory: float) -> Array:
    """A walk whose increments, over η, are an AR(1) process with the autocorrelation `memory`."""
    from scipy.signal import lfilter

    noise = grid.normal(len(grid.walk))
    noise[1:] *= math.sqrt(1 - memory**2)
    increments: Array = lfilter([1], [1, -memory], noise, axis=0)
    travel = _TRAVEL * math.sqrt(
        (1 - memory) / (1 + memory)
    )  # persistence lengthens the way by the inverse of the root
    return _from_start(grid, travel * grid.walk[:, None] * increments)


def _low_rank(grid: Grid, *, rank: int) -> Array:
    """A walk in `rank` directions of the space of all weights."""
    steps = grid.rng.standard_normal((len(grid.walk), rank)) / math.sqrt(rank)
    return _from_start(grid, _TRAVEL * grid.walk[:, None] * (steps @ grid.normal(rank)))


def _heavy_tailed(grid: Grid) -> Array:
    """A walk whose increments have Student's t distribution with 3 degrees of freedom, of variance 3."""
    noise = grid.rng.standard_t(3, (len(grid.walk), grid.size)) / math.sqrt(3)
    return _from_start(grid, _TRAVEL * grid.walk[:, None] * noise)


def _ornstein_uhlenbeck(grid: Grid, *, time: float) -> Array:
    """A stationary AR(1) process with a correlation time of `time` records of 143, about first weights."""
    from scipy.signal import lfilter

    memory = math.exp(-142 / (time * len(grid.walk)))
    noise = grid.normal(len(grid.steps))
    noise[1:] *= math.sqrt(1 - memory**2)
    process: Array = lfilter([1], [1, -memory], noise, axis=0)
    return _START * (grid.normal() + process)


def _with_background(grid: Grid, frames: Array) -> Array:
    """A motion, with first weights and a walk of a tenth of its displacement."""
    return frames + _walk(grid, travel=_BACKGROUND * _TRAVEL)


def _drift(grid: Grid) -> Array:
    return _with_background(grid, _TRAVEL * grid.path[:, None] * grid.normal())


def _relaxation(grid: Grid) -> Array:
    """Towards a point in a random direction, exponentially in the integral of η: by 98 % over the training."""
    return _with_background(grid, _TRAVEL * (1 - np.exp(-4 * grid.path))[:, None] * grid.normal())


def _rotation(grid: Grid) -> Array:
    """By 270° in a plane: the MSD of Eq 4 is greatest after 180°."""
    angle = 1.5 * math.pi * grid.path
    first, second = grid.normal(2)
    turned = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
    frames: Array = _START * turned
    return frames


def _turn(grid: Grid) -> Array:
    """The vector of all weights turns round at the bifurcation, in a plane: its sum, and so the MSD, falls then."""
    record = (grid.steps[-1] - grid.steps[0]) / 142
    angle = math.pi * np.clip((grid.steps - BIFURCATION) / (_FORK_RECORDS * record) + 0.5, 0, 1)
    first, second = grid.normal(2)
    frames: Array = _START * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    background = _walk(grid, travel=_BACKGROUND * _TRAVEL)
    frames += background - background[0]
    return frames


def _noise(grid: Grid) -> Array:
    """Independent noise about zero at each record."""
    return _START * grid.normal(len(grid.steps))


def _return(grid: Grid) -> Array:
    """Along one direction and, from the middle of the path on, back to the start."""
    return _with_background(grid, _TRAVEL * (1 - np.abs(2 * grid.path - 1))[:, None] * grid.normal())


def _jittered(grid: Grid, *, jitter: float) -> Array:
    """A walk with independent noise at each record, `jitter` times the root mean square step."""
    step = _TRAVEL / math.sqrt(len(grid.walk))
    return _walk(grid) + jitter * step * grid.normal(len(grid.steps))


def _frozen(grid: Grid, *, jitter: float) -> Array:
    """A walk that stops at the bifurcation, with independent noise, relative to the mean step, from there on."""
    frames = _walk(grid)
    step = _TRAVEL / math.sqrt(len(grid.walk))
    frames[grid.event :] = frames[grid.event]
    if jitter:
        frames[grid.event :] += jitter * step * grid.normal(len(grid.steps) - grid.event)
    return frames


def _split(
    grid: Grid, *, jitter: float, share: float = 1.0, modes: tuple[float, float] = (-1, 1), travel: float = _TRAVEL / 4
) -> Array:
    """A walk until the bifurcation; then a share of the weights moves to one of two `modes`, in units of a.

    There is independent noise of `jitter` · a at each record about the modes. Other weights rest.
    """
    frames = _walk(grid, travel=travel)
    chosen = grid.rng.random(grid.size) < share
    first = frames[grid.event].copy()
    target = np.where(chosen, _FORK * np.where(grid.rng.random(grid.size) < 0.5, *modes), first)
    count = len(grid.steps) - grid.event
    duration = max(_FORK_RECORDS * len(grid.steps) / 143, 1)
    done = np.clip(np.arange(count) / duration, 0, 1)[:, None]
    frames[grid.event :] = (1 - done) * first + done * target
    frames[grid.event :] += jitter * _FORK * done * chosen * grid.normal(count)
    return frames


def _faster_end(grid: Grid) -> Array:
    """A walk whose steps, per learning rate, are twice as large over the last tenth of the training."""
    late = grid.steps[1:] > LAST_STEP - (LAST_STEP - FIRST_STEP) / 10
    return _walk(grid, sizes=grid.walk * np.where(late, 2.0, 1.0))


# -- what is true ---------------------------------------------------------------------------------------------

_GROWS = frozenset({"b-monotone"})
"""Open where the norm happens to grow, as that of a walk does: the claim is about a curve, and judged exactly."""

_FORKED = frozenset({"density-bimodal", "bifurcation", "phases", "stationary", "stop", "symmetric-modes"})
_FORKED_OPEN = _GROWS | {"msd-time-peak", "two-regimes", "ternary-density", "rank-shrinks", "quasi-linear-msd"}
_TURNS = frozenset({"msd-peak", "msd-time-peak", "rank-shrinks", "b-monotone"})
"""Open where the vector of all weights turns round. It may make the MSD peak, which is no bifurcation."""
_RESTS = frozenset({"stationary", "stop"})


def _walks() -> Sequence[Truth]:
    named: Mapping[str, tuple[str, Motion, Schedule | None, bool]] = {
        "walk-constant": ("random walk, constant learning rate", _walk, CONSTANT, False),
        "walk-cosine": ("random walk, cosine learning rate", _walk, None, False),
        "walk-warmup": ("random walk, learning rate that rises over half of the training", _walk, WARMUP, False),
        "walk-linear": ("random walk, linear decay of the learning rate", _walk, LINEAR, True),
        "walk-stepped": ("random walk, learning rate divided by 3 at two steps", _walk, STEPPED, True),
        "walk-stable": ("random walk, stable learning rate with a decay over the last fifth", _walk, STABLE, True),
        "walk-persistent": ("walk, increments with autocorrelation 0.9", _bind(_persistent, memory=0.9), None, False),
        "walk-persistent-95": (
            "walk, increments with autocorrelation 0.95",
            _bind(_persistent, memory=0.95),
            None,
            True,
        ),
        "walk-rank-3": ("walk in 3 directions", _bind(_low_rank, rank=3), None, False),
        "walk-rank-10": ("walk in 10 directions", _bind(_low_rank, rank=10), None, False),
        "walk-heavy-tailed": ("walk, increments with Student's t, 3 degrees of freedom", _heavy_tailed, None, False),
        "walk-jitter-2": ("walk, independent noise of 2 steps at each record", _bind(_jittered, jitter=2), None, False),
        "walk-jitter-5": ("walk, independent noise of 5 steps at each record", _bind(_jittered, jitter=5), None, False),
    }
    return [
        Truth(name, text, motion, open=_GROWS | {"quasi-linear-msd"}, schedule=schedule, extra=extra)
        for name, (text, motion, schedule, extra) in named.items()
    ]


def _bind(motion: Callable[..., Array], **settings: object) -> Motion:
    """A motion with its settings."""
    return lambda grid: motion(grid, **settings)


def _others() -> Sequence[Truth]:
    time = "stationary Ornstein–Uhlenbeck process, correlation time of {} records of 143"
    return [
        Truth("walk-410m", "random walk, cosine learning rate, judged as 410M", _walk, open=_GROWS, model=LARGE),
        Truth("ou-5", time.format(5), _bind(_ornstein_uhlenbeck, time=5), _RESTS, frozenset({"quasi-linear-msd"})),
        Truth("ou-20", time.format(20), _bind(_ornstein_uhlenbeck, time=20), frozenset(), _RESTS),
        Truth("ou-50", time.format(50), _bind(_ornstein_uhlenbeck, time=50), frozenset(), _RESTS),
        Truth(
            "drift", "steady drift in one direction, at a speed proportional to the learning rate", _drift, open=_GROWS
        ),
        Truth("relaxation", "relaxation towards a point, by 98 %", _relaxation, open=_GROWS | _RESTS),
        Truth("rotation", "rotation by 270° at constant norm", _rotation, open=_TURNS),
        Truth("return", "drift in one direction and back to the start", _return, open=_TURNS | {"phases"}),
        Truth(
            "turn",
            "the vector of all weights turns round at step 80,000",
            _turn,
            frozenset({"msd-peak"}),
            # a walk with such a leap has the same peak of the MSD demeaned over time
            frozenset({"msd-time-peak", "phases", "rank-shrinks", "b-monotone", "two-regimes"}) | _RESTS,
        ),
        Truth("noise", "independent noise about zero at each record", _noise, frozenset({"quasi-linear-msd"}) | _RESTS),
    ]


def _forks() -> Sequence[Truth]:
    found = []
    for share, part in ((1.0, "all"), (0.5, "half")):
        for percent in (5, 15, 30):
            text = f"split of {part} of the weights to ±a at step 80,000, noise of {percent} % of a"
            motion = _bind(_split, jitter=percent / 100, share=share)
            found.append(Truth(f"split-{part}-{percent}", text, motion, _FORKED, _FORKED_OPEN))
    asymmetric = _bind(_split, jitter=0.15, modes=(-0.5, 1.5))
    text = "split of all weights to −a/2 and 3a/2 at step 80,000, noise of 15 % of a"
    found.append(Truth("split-asymmetric", text, asymmetric, _FORKED - {"symmetric-modes"}, _FORKED_OPEN))
    text = "the paper's story: a random walk until step 80,000, then straight to ±a, and at rest"
    story = _bind(_split, jitter=0.0, travel=_TRAVEL)
    found.append(Truth("story", text, story, _FORKED | {"two-regimes"}, _FORKED_OPEN - {"two-regimes"}))
    return found


def _plateaus() -> Sequence[Truth]:
    still, noisy = _bind(_frozen, jitter=0.0), _bind(_frozen, jitter=1.0)
    effects, unclear = _RESTS | {"phases"}, _GROWS | {"two-regimes", "msd-time-peak", "bifurcation", "quasi-linear-msd"}
    end = "random walk, twice as fast per learning rate over the last tenth, judged as 410M"
    return [
        Truth("plateau", "random walk that stops at step 80,000", still, effects, unclear),
        Truth("plateau-jitter", "the same, with independent noise of one step after it", noisy, effects, unclear),
        *(
            Truth(
                f"plateau-{name}",
                f"random walk that stops at step 80,000; {text}",
                still,
                effect,
                curve=f"perplexity-{curve}",
                about=frozenset({"stop-when-stationary"}),
            )
            for name, text, curve, effect in (
                ("done", "the loss rests as well", "settled-ar6", frozenset({"stop-when-stationary"})),
                ("learning", "the loss goes on falling, by 3 %", "smooth-ar6", frozenset[str]()),
            )
        ),
        Truth("faster-end", end, _faster_end, frozenset({"changes-at-the-end", "phases"}), _GROWS, LARGE),
    ]


TRUTHS: Mapping[str, Truth] = {each.name: each for each in (*_walks(), *_others(), *_forks(), *_plateaus())}
"""All kinds of histories by name."""


def truth(name: str) -> Truth:
    """The kind of history of this name. Raises `UnknownNameError` where there is none."""
    if name not in TRUTHS:
        raise UnknownNameError("truth", name, TRUTHS)
    return TRUTHS[name]


def select_truths(patterns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The names that match one of the `patterns`, in their order.

    Parameters
    ----------
    patterns
        Names and globs.
    names
        All names.

    Raises
    ------
    UnknownNameError
        A pattern matches nothing.
    """
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError("truth", pattern, names)
    return tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
