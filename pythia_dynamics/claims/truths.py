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

from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.claims import motions
from pythia_dynamics.claims.motions import LAST_STEP, Array, Grid, Motion, Schedule, grid_steps
from pythia_dynamics.errors import PythiaDynError, UnknownNameError

if TYPE_CHECKING:
    from pythia_dynamics.history.history import History

__all__ = [
    "DETECTORS",
    "TRUTHS",
    "Truth",
    "select_truths",
    "truth",
]

DETECTORS = ("bifurcation", "phases", "stop")
"""Detectors that are calibrated beside the claims: a step of the bifurcation is named, a change point is found, the
stopping rule stops."""

SMALL, LARGE = "pythia-70m-deduped", "pythia-410m-deduped"


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
    uneven
        Whether the first steps are 1, 2, 4 … 512.
    tells_rate
        Whether the learning rate is part of the history.
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
    uneven: bool = False
    tells_rate: bool = True

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
        schedule = self.schedule or motions.COSINE
        steps = grid_steps(records, uneven=self.uneven)
        walk, path = _times(schedule, records, self.uneven)
        frames = self.motion(Grid(steps, walk, path, weights, np.random.default_rng(seed)))
        array = frames.astype(np.float16).reshape(records, -1, width)
        rate = schedule if self.tells_rate else None
        return History.from_array(array, steps, name=self.model, tensor=EMBED_OUT, learning_rate=rate)


@lru_cache(maxsize=32)
def _times(schedule: Schedule, records: int, uneven: bool) -> tuple[Array, Array]:
    """`Grid.walk` and `Grid.path`, from the sums over all training steps."""
    steps = grid_steps(records, uneven=uneven)
    rate = np.nan_to_num(schedule.at(range(LAST_STEP + 1)))
    squared, linear = (np.concatenate([[0], np.cumsum(rate**power)])[steps] for power in (2, 1))
    walk = np.sqrt(np.diff(squared) / (squared[-1] - squared[0]))
    return walk, (linear - linear[0]) / (linear[-1] - linear[0])


# -- what is true ---------------------------------------------------------------------------------------------

_GROWS = frozenset({"b-monotone"})
"""Open where the norm happens to grow, as that of a walk does: the claim is about a curve, and judged exactly."""

_FORKED = frozenset({"density-bimodal", "bifurcation", "phases", "stationary", "stop", "symmetric-modes"})
_FORKED_OPEN = _GROWS | {"msd-time-peak", "two-regimes", "ternary-density"}
_TURNS = frozenset({"msd-peak", "msd-time-peak", "b-monotone"})
"""Open where the vector of all weights turns round. It may make the MSD peak, which is no bifurcation."""
_RESTS = frozenset({"stationary", "stop"})


def _walks() -> Sequence[Truth]:
    named: Mapping[str, tuple[str, Motion, Schedule | None, bool]] = {
        "walk-constant": ("random walk, constant learning rate", motions.walk, motions.CONSTANT, False),
        "walk-cosine": ("random walk, cosine learning rate", motions.walk, None, False),
        "walk-warmup": (
            "random walk, learning rate that rises over half of the training",
            motions.walk,
            motions.WARMUP,
            False,
        ),
        "walk-linear": ("random walk, linear decay of the learning rate", motions.walk, motions.LINEAR, True),
        "walk-stepped": ("random walk, learning rate divided by 3 at two steps", motions.walk, motions.STEPPED, True),
        "walk-stable": (
            "random walk, stable learning rate with a decay over the last fifth",
            motions.walk,
            motions.STABLE,
            True,
        ),
        "walk-persistent": (
            "walk, increments with autocorrelation 0.9",
            _bind(motions.persistent, memory=0.9),
            None,
            False,
        ),
        "walk-persistent-95": (
            "walk, increments with autocorrelation 0.95",
            _bind(motions.persistent, memory=0.95),
            None,
            True,
        ),
        "walk-rank-3": ("walk in 3 directions", _bind(motions.low_rank, rank=3), None, False),
        "walk-rank-10": ("walk in 10 directions", _bind(motions.low_rank, rank=10), None, False),
        "walk-heavy-tailed": (
            "walk, increments with Student's t, 3 degrees of freedom",
            motions.heavy_tailed,
            None,
            False,
        ),
        "walk-jitter-2": (
            "walk, independent noise of 2 steps at each record",
            _bind(motions.jittered, jitter=2),
            None,
            False,
        ),
        "walk-jitter-5": (
            "walk, independent noise of 5 steps at each record",
            _bind(motions.jittered, jitter=5),
            None,
            False,
        ),
    }
    return [
        Truth(name, text, motion, open=_GROWS, schedule=schedule, extra=extra)
        for name, (text, motion, schedule, extra) in named.items()
    ]


def _bind(motion: Callable[..., Array], **settings: object) -> Motion:
    """A motion with its settings."""
    return lambda grid: motion(grid, **settings)


def _grids() -> Sequence[Truth]:
    """Histories with early steps as Pythia has them, or without a learning rate."""
    early = "first steps 1, 2, 4 … 512"
    jitter = _bind(motions.jittered, jitter=2)
    return [
        Truth("walk-early", f"random walk, {early}", motions.walk, open=_GROWS, uneven=True, extra=True),
        Truth(
            "walk-early-jitter",
            f"random walk, {early}, independent noise of 2 steps",
            jitter,
            open=_GROWS,
            uneven=True,
            extra=True,
        ),
        Truth(
            "walk-unknown",
            "random walk, cosine learning rate that is not known",
            motions.walk,
            open=_GROWS,
            tells_rate=False,
        ),
    ]


def _others() -> Sequence[Truth]:
    time = "stationary Ornstein–Uhlenbeck process, correlation time of {} records of 143"
    return [
        Truth("walk-410m", "random walk, cosine learning rate, judged as 410M", motions.walk, open=_GROWS, model=LARGE),
        Truth(
            "ou-5", time.format(5), _bind(motions.ornstein_uhlenbeck, time=5), _RESTS, frozenset({"quasi-linear-msd"})
        ),
        Truth("ou-20", time.format(20), _bind(motions.ornstein_uhlenbeck, time=20), _RESTS),
        Truth(
            "ou-50",
            time.format(50),
            _bind(motions.ornstein_uhlenbeck, time=50),
            frozenset({"stationary"}),
            frozenset({"stop"}),  # half of the training is too short to see that it is no walk
        ),
        Truth(
            "drift",
            "steady drift in one direction, at a speed proportional to the learning rate",
            motions.drift,
            open=_GROWS,
        ),
        Truth("relaxation", "relaxation towards a point, by 98 %", motions.relaxation, open=_GROWS | _RESTS),
        Truth("rotation", "rotation by 270° at constant norm", motions.rotation, open=_TURNS),
        Truth(
            "return", "drift in one direction and back to the start", motions.there_and_back, open=_TURNS | {"phases"}
        ),
        Truth(
            "turn",
            "the vector of all weights turns round at step 80,000",
            motions.turn,
            frozenset({"msd-peak"}),
            # a walk with such a leap has the same peak of the MSD demeaned over time
            frozenset({"msd-time-peak", "phases", "b-monotone", "two-regimes"}),
        ),
        Truth(
            "noise",
            "independent noise about zero at each record",
            motions.noise,
            frozenset({"quasi-linear-msd"}) | _RESTS,
        ),
    ]


def _forks() -> Sequence[Truth]:
    found = []
    for share, part in ((1.0, "all"), (0.5, "half")):
        for percent in (5, 15, 30):
            text = f"split of {part} of the weights to ±a at step 80,000, noise of {percent} % of a"
            motion = _bind(motions.split, jitter=percent / 100, share=share)
            found.append(Truth(f"split-{part}-{percent}", text, motion, _FORKED, _FORKED_OPEN))
    asymmetric = _bind(motions.split, jitter=0.15, modes=(-0.5, 1.5))
    text = "split of all weights to −a/2 and 3a/2 at step 80,000, noise of 15 % of a"
    found.append(Truth("split-asymmetric", text, asymmetric, _FORKED - {"symmetric-modes"}, _FORKED_OPEN))
    text = "the paper's story: a random walk until step 80,000, then straight to ±a, and at rest"
    story = _bind(motions.split, jitter=0.0, travel=motions.TRAVEL)
    found.append(Truth("story", text, story, _FORKED | {"two-regimes"}, _FORKED_OPEN - {"two-regimes"}))
    return found


def _plateaus() -> Sequence[Truth]:
    still, noisy = _bind(motions.frozen, jitter=0.0), _bind(motions.frozen, jitter=1.0)
    effects, unclear = _RESTS | {"phases"}, _GROWS | {"msd-time-peak"}
    regimes = frozenset({"two-regimes"})
    end = "random walk, twice as fast per learning rate over the last tenth, judged as 410M"
    return [
        Truth("plateau", "random walk that stops at step 80,000", still, effects | regimes, unclear),
        Truth(
            "plateau-jitter",
            "the same, with independent noise of one step after it",
            noisy,
            effects,
            unclear | regimes,
        ),
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
        Truth("faster-end", end, motions.faster_end, frozenset({"changes-at-the-end", "phases"}), _GROWS, LARGE),
    ]


TRUTHS: Mapping[str, Truth] = {each.name: each for each in (*_walks(), *_grids(), *_others(), *_forks(), *_plateaus())}
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
