"""Regimes of a motion before and after a step: diffusive, ballistic, or at rest.

The displacement between two steps grows with the lag x as x^α: α = 1 for a random walk, 2 for motion in one direction,
0 at rest. The lag is measured as ∫η², in which a walk whose steps are proportional to the learning rate has α = 1
under any schedule. Pairs of steps are compared only with pairs of the same middle, so that a speed that changes in
time is no exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.measures.peak import SAME_STEP, STRICT, p_limit
from pythia_dynamics.measures.walks import Motion, batch_size, exceedance, simulate_walks, squared_displacements

__all__ = ["Regimes", "compare_regimes"]

_NEAR = 0.25
"""Largest difference from 1 of the exponent of diffusive motion, and the least by which that after S must differ more:
half-way to 0.5 and 1.5, the exponents from which on motion is at rest or ballistic."""

_FAR = 0.5
"""Least difference from 1 of an exponent that is ballistic or at rest: half-way to 2 and 0."""

_SHORTEST, _LONGEST = 1 / 8, 1 / 2
"""Lags of the exponent as shares of the records before or after S. Shorter ones show the noise of single records;
longer ones have few pairs."""

_MIN_RECORDS = 16
"""Fewest records before and after S: their lags are then 2 to 8."""

_LEAST_STEP = 1e-6
"""Least squared size of a step of the null walks, relative to the mean. A walk has its exponent however short its steps
are; steps of size 0 have none."""

_REST = 1e-9
"""Displacement, relative to the greatest, that is rounding: the weights are at rest."""

_ROOM = 0.5
"""Share of the least margin that noise before S may take in the power: the planted exponent is at its limit, 0.5."""

_SEED = 1_803
"""Seed of the walks, so that a verdict is the same in every run."""


@dataclass(frozen=True)
class Regimes:
    """Exponents before and after a step, and how they compare with random walks.

    Parameters
    ----------
    before, after
        Exponents of the displacement over the lag.
    halves
        Exponents in the first and the second half of the time before the step.
    effect
        The least of three margins that must be 0.25: by how much more the exponent after differs from 1 than that
        before it, beyond the median of the walks; its difference from 1 less 0.25; 0.5 less the difference of the
        exponent before from 1, where the half with the greater difference counts.
    least
        0.25.
    p
        The greater of the p-values against the two kinds of walks.
    power
        Probability that p ≤ 0.05 and the effect counts where the exponent after is 0.5 or 1.5.
    walk_after
        Median exponent after the step of the kind of walks that is more like the history.
    """

    before: float
    after: float
    halves: tuple[float, float]
    effect: float
    least: float
    p: float
    power: float
    walk_after: float


@dataclass(frozen=True)
class _Fit:
    """A linear function of the logarithms of displacements: an exponent over centred pairs of records."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    factors: NDArray[np.float64]

    @classmethod
    def of(cls, motion: Motion, records: NDArray[np.intp], shortest: int, longest: int) -> _Fit:
        """The fit over the pairs within `records` at these lags.

        Within each middle the logarithms are centred (fixed effects). A pair has the weight 1/lag, which is equal
        weight for equal intervals of the logarithm.
        """
        low, high = int(records[0]), int(records[-1])
        first, second = (np.array(found) for found in np.triu_indices(high - low + 1, shortest))
        first, second = first + low, second + low
        kept = second - first <= longest
        first, second = first[kept], second[kept]
        time = motion.time[second] - motion.time[first]
        usable = time > 0
        first, second, time = first[usable], second[usable], time[usable]
        lag, middle = second - first, first + second
        weight, x = 1 / lag, np.log(time)
        _, group = np.unique(middle, return_inverse=True)
        total = np.bincount(group, weight)
        centred = x - (np.bincount(group, weight * x) / total)[group]
        scatter = float(np.sum(weight * centred**2))
        if not scatter > 0:
            raise NotTestableError("the steps before and after S give no exponents")
        return cls(first, second, weight * centred / scatter)

    def __call__(self, squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Exponents, shape (count,), from squared displacements, shape (count, n, n)."""
        chosen = squared[:, self.first, self.second]
        least = _REST * squared.max(axis=(1, 2))[:, None]
        found: NDArray[np.float64] = np.log(np.maximum(chosen, least)) @ self.factors
        return found


@dataclass(frozen=True)
class _Exponents:
    """Fits before, in the halves before, and after a step."""

    before: _Fit
    early: _Fit
    late: _Fit
    after: _Fit

    @classmethod
    def of(cls, motion: Motion, step: int) -> _Exponents:
        """The fits; a tenth of the span on each side of the step is left out, because it is known to that only."""
        apart = SAME_STEP * float(motion.steps[-1] - motion.steps[0])
        before, after = np.flatnonzero(motion.steps <= step - apart), np.flatnonzero(motion.steps >= step + apart)
        if min(len(before), len(after)) < _MIN_RECORDS:
            raise NotTestableError(
                f"{len(before)} steps up to a tenth of training before step {step:,}, and {len(after)} from a tenth "
                f"after it on, are too few: {_MIN_RECORDS} are needed"
            )
        lags = [(max(round(len(side) * _SHORTEST), 1), round(len(side) * _LONGEST)) for side in (before, after)]
        half = len(before) // 2
        short, long = lags[0][0], max(half // 2, lags[0][0] + 2)
        return cls(
            _Fit.of(motion, before, *lags[0]),
            _Fit.of(motion, before[:half], short, long),
            _Fit.of(motion, before[half:], short, long),
            _Fit.of(motion, after, *lags[1]),
        )

    def of_walks(self, squared: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The difference from 1 before (its greatest: whole and halves), and the exponent after; shape (count,)."""
        apart = [np.abs(fit(squared) - 1) for fit in (self.before, self.early, self.late)]
        return np.max(apart, axis=0), self.after(squared)


_Draw = Callable[[], NDArray[np.float64]]
"""Gives squared displacements of walks, shape (count, n, n)."""


def compare_regimes(motion: Motion, step: int) -> Regimes:
    """Compare the exponents before and after a step with those of random walks.

    Parameters
    ----------
    motion
        The motion.
    step
        The step.

    Raises
    ------
    NotTestableError
        Too few records before or after the step.
    """
    fits = _Exponents.of(motion, step)
    squared = motion.squared[None]
    apart, after = (float(found[0]) for found in fits.of_walks(squared))
    contrast = abs(after - 1) - apart
    possible = min(contrast, abs(after - 1) - _NEAR, _FAR - apart) >= _NEAR  # else no p-value supports the claim
    ps, medians, drawn_all, afters = [], [], [], []
    for draw in (_measured(motion), _going_on(motion, step)):
        seen: list[NDArray[np.float64]] = []
        p, drawn = exceedance(contrast, _contrasts(draw, fits, seen), more=possible)
        ps.append(p_limit(p, len(drawn)))
        medians.append(float(np.median(drawn)))
        drawn_all.append(drawn)
        afters.append(float(np.median(np.concatenate(seen))))
    like = int(np.argmax(medians))
    effect = min(contrast - medians[like], abs(after - 1) - _NEAR, _FAR - apart)
    critical = max(float(np.quantile(drawn, 1 - STRICT)) for drawn in drawn_all)
    walked = fits.of_walks(_measured(motion)())[0]
    planted = _FAR - walked
    power = float(np.mean((planted > critical) & (planted - medians[like] >= _NEAR * (1 - _ROOM))))
    halves = (float(fits.early(squared)[0]), float(fits.late(squared)[0]))
    before = float(fits.before(squared)[0])
    return Regimes(before, after, halves, effect, _NEAR, max(ps), power, afters[like])


def _contrasts(draw: _Draw, fits: _Exponents, seen: list[NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
    """The contrasts of one batch of walks after the other; their exponents after the step go to `seen`."""
    while True:
        apart, after = fits.of_walks(draw())
        seen.append(after)
        yield np.abs(after - 1) - apart


def _measured(motion: Motion) -> _Draw:
    """Walks with the measured sizes of steps."""
    generator = np.random.default_rng(_SEED)
    moved = np.maximum(motion.moved, _LEAST_STEP * motion.moved.mean())
    return lambda: squared_displacements(simulate_walks(motion, batch_size(len(motion.steps)), generator, moved=moved))


def _going_on(motion: Motion, step: int) -> _Draw:
    """Walks with the squared displacement per ∫η² that is measured before the step, also after it.

    Each record has noise of its own. Its squared size before the step is minus the mean product of neighbouring
    increments (as `Motion.jitter`), separately before and after the step.
    """
    generator = np.random.default_rng(_SEED + 1)
    beside, time = np.diag(motion.increments, 1), np.diff(motion.time)
    is_before = motion.steps <= step
    old, new = is_before[1:], ~is_before[:-1]
    noise = [max(-float(beside[side[:-1] & side[1:]].mean()), 0.0) for side in (old, new)]
    walked = max(float((motion.moved[old] - 2 * noise[0]).sum() / time[old].sum()), 0.0)
    per_record = np.where(is_before, *noise)
    own = per_record[:, None] + per_record
    np.fill_diagonal(own, 0)
    moved = np.maximum(walked * time, _LEAST_STEP * motion.moved.mean())
    return lambda: (
        squared_displacements(simulate_walks(motion, batch_size(len(motion.steps)), generator, moved=moved)) + own
    )
