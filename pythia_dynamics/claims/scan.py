"""The statistic "a change at S": a drop of a curve near a step, of any width, against its trend and its noise.

The curve y is a smooth trend, plus A times a ramp from 0 to 1 over a few records, plus autocorrelated noise. A place
and a width are scored by twice the gain in log likelihood from A < 0, for the noise and the trend that fit best with it
and without it:

* The trend is a cubic spline in the logarithm of the training time. On that axis exponential and power-law decays are
  smooth and a steep early fall is as wide as a slow late one, but a drop of any of the widths late in training is
  sharp. Where the data ask for it, a random function that is smooth on the scale of 15 % of training is added
  (a Gaussian process). A slow logistic fall is held against a drop in the same way.
* The noise is an AR(1) process in continuous time, from white noise to a random walk, so uneven steps are no special
  case. Its parameters are those of the greatest likelihood of the data without their trend. This restricted likelihood
  (REML; Patterson & Thompson 1971) has no bias from the coefficients of the trend, which would make noise look whiter
  than it is.

The score does not depend on the size of the noise. So its distribution without a drop depends on the steps and the
noise model alone: it is drawn once for each and kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.evidence import LEVEL
from pythia_dynamics.claims.saved import Curve
from pythia_dynamics.claims.scan_design import SIDE, Design, design_of
from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.measures.peak import SAME_STEP

__all__ = ["MIN_RECORDS", "Change", "scan"]

MIN_RECORDS = 16
"""Fewest records: the trend has up to eight coefficients, and as many records must be left for the noise."""

_WARM_UP = 0.005
"""Share of training at its start that is left out: warm-up of the learning rate, where the loss falls to a half and
log-spaced records (step 1, 2, 4 … 512) would stretch the logarithm of time. Pythia's warm-up is 1 % of training, and
its first even record, step 1,000, is at 0.7 %."""

_DRAWS, _POWER_DRAWS = 1999, 199
"""Simulated curves of one noise model: p down to 0.0005, which is below 0.05 after a correction for ten tests; and of
one size of a planted drop."""

_PLANTED = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0)
"""Planted drops in standard errors."""

_LEAST_WEIGHT = 0.02
"""Least weight of a noise model, relative to the likeliest, that enters p and power."""

_CERTAIN, _PLACE = 20.0, 3.84
"""Score of another change that is there for certain, twice what 5 % of the curves without a drop reach at all places;
and by how much it must exceed that near the step, the 95 % point of χ² with one degree of freedom."""

_WALK_SHARE = 0.04
"""Share of the innovations in the variance of noise with a persistence of 0.98."""

_TINY = float(np.finfo(np.float32).tiny)
"""Least noise of a curve of zeros."""

_ROUNDING = 1e-7
"""Least noise relative to the greatest absolute value: below it, a difference may be the rounding of float32."""


@dataclass(frozen=True)
class Change:
    """The likeliest drop near a step.

    Parameters
    ----------
    start, end
        The last step before the drop and the first step after it.
    change
        A, the change beyond the trend, in units of the curve; negative for a drop.
    low, high
        95 % interval of A, over all places near the step, widths and noise models (profile likelihood).
    score
        Twice the gain in log likelihood; 0 where the curve drops nowhere near the step.
    p
        Probability of such a score near the step without a drop.
    power
        Probability of p ≤ 0.05 for a drop of the least size that counts, over the widest ramp, in this noise.
    elsewhere, elsewhere_start, elsewhere_end, elsewhere_score
        The likeliest drop that is not near the step: its A, its ends and its score; NaN and −1 without any place.
    rise_score
        The greatest score of a rise, A > 0, at any place.
    persistence, noise
        Autocorrelation of the noise over the median distance of records, and the size of one innovation, in units of
        the curve, without a drop.
    records
        Number of records used.
    """

    start: int
    end: int
    change: float
    low: float
    high: float
    score: float
    p: float
    power: float
    elsewhere: float
    elsewhere_start: int
    elsewhere_end: int
    elsewhere_score: float
    rise_score: float
    persistence: float
    noise: float
    records: int

    @property
    def rival(self) -> float:
        """The score of the likeliest other change: a drop elsewhere, or a rise."""
        return max(self.rise_score, self.elsewhere_score if self.elsewhere_start >= 0 else 0.0)

    @property
    def greatest(self) -> bool:
        """Whether no other change scores as much."""
        return self.score > self.rival

    @property
    def is_other(self) -> bool:
        """Whether the curve has another change for certain, and more likely so than this drop."""
        return self.rival > max(_CERTAIN, self.score + _PLACE)


@dataclass(frozen=True)
class _Null:
    """Scores near the step of curves without a drop, sorted; and the power for drops of `_PLANTED` standard errors."""

    scores: NDArray[np.float64]
    power: NDArray[np.float64]


def scan(curve: Curve, step: int, *, least: float, error: float = 0.0) -> Change:
    """The likeliest drop of a curve near a step, and how it compares with its noise and with every other place.

    A ramp is near the step where the part from its start to its middle comes within `SAME_STEP` of it, so a gradual
    drop may begin at the step or be centred on it.

    Parameters
    ----------
    curve
        The curve; its steps need not be even.
    step
        S, the step to look at.
    least
        The least drop that counts, positive, in units of the curve.
    error
        Standard deviation of a known error of every value, which the noise cannot be smaller than.

    Returns
    -------
    Change
        The drop.

    Raises
    ------
    NotTestableError
        Fewer than `MIN_RECORDS` records, or none on one side of the step.
    """
    kept = curve.steps >= _WARM_UP * curve.steps[-1] if len(curve) else np.zeros(0, bool)
    steps, values = curve.steps[kept], curve.values[kept]
    if len(steps) < MIN_RECORDS:
        raise NotTestableError(
            f"{len(steps)} records are too few to tell a drop from a trend; {MIN_RECORDS} are needed"
        )
    key = tuple(map(int, steps))
    design, near = design_of(key), _near(key, int(step))
    if not near.any():
        raise NotTestableError(f"too few records around step {step:,}")
    fit = _fit(design, design.contrasts @ values, error, _ROUNDING * float(np.abs(values).max()))
    best = _likeliest(fit, near)
    p, power = _chance(fit, design, near, key, int(step), float(fit.scores[best]), least)
    low, high = _interval(fit, near)
    far = _likeliest(fit, ~near) if not near.all() else None
    model = int(np.argmin(fit.without))
    return Change(
        start=key[design.start[best]],
        end=key[design.end[best]],
        change=fit.size(best),
        low=low,
        high=high,
        score=float(fit.scores[best]),
        p=p,
        power=power,
        elsewhere=float("nan") if far is None else fit.size(far),
        elsewhere_start=-1 if far is None else key[design.start[far]],
        elsewhere_end=-1 if far is None else key[design.end[far]],
        elsewhere_score=float("nan") if far is None else float(fit.scores[far]),
        rise_score=max(float(fit.without.min() - np.where(fit.sizes > 0, fit.free, np.inf).min()), 0.0),
        persistence=design.models[model].persistence,
        noise=float(np.sqrt(fit.rss[model] / len(design.contrasts))),
        records=len(steps),
    )


@dataclass(frozen=True)
class _Fit:
    """All noise models (k) and ramps (c) fitted to one curve.

    `rss` (k,) and `rest` (k, c) are the residual sums of squares of the trend, and with a ramp; `without` (k,) and
    `free` (k, c) −2 log likelihood; `falling` (k, c) that with A < 0; `sizes` (k, c) is A; `length` (k, c) its inverse
    standard error in units of the noise; `constant` (k,) the part of −2 log likelihood that is no residual.
    """

    rss: NDArray[np.float64]
    rest: NDArray[np.float64]
    without: NDArray[np.float64]
    free: NDArray[np.float64]
    falling: NDArray[np.float64]
    sizes: NDArray[np.float64]
    length: NDArray[np.float64]
    constant: NDArray[np.float64]
    left: int

    @functools.cached_property
    def scores(self) -> NDArray[np.float64]:
        """The score of every ramp (c,)."""
        found: NDArray[np.float64] = np.maximum(self.without.min() - self.falling.min(axis=0), 0)
        return found

    def size(self, ramp: int) -> float:
        """A of a ramp with the noise model that fits best: with A < 0 where the ramp has a score."""
        fits = self.falling if self.scores[ramp] > 0 else self.free
        return float(self.sizes[np.argmin(fits[:, ramp]), ramp])


def _fit(design: Design, reduced: NDArray[np.float64], error: float, rounding: float) -> _Fit:
    """Fit all noise models and ramps to a curve without its trend (m,), with a known `error` and `rounding` of it."""
    m, models = len(reduced), design.models
    # An error bounds the variance of the noise from below. That of its innovations is 1 − persistence² of it. The
    # variance of a random walk has no bound: it counts as the most persistent of the others.
    share = np.array([max(1 - model.persistence**2, _WALK_SHARE) for model in models])
    floor = m * (share * error**2 + max(rounding, _TINY) ** 2)
    whitened = [model.whiten @ reduced for model in models]
    rss = np.maximum([each @ each for each in whitened], floor)
    along = np.array([each @ model.ramps for each, model in zip(whitened, models, strict=True)])
    rest = np.maximum(rss[:, None] - along**2, floor[:, None])
    smooth = [model.smooth_rss(each, np.array(r)) for r, model, each in zip(rss, models, whitened, strict=True)]
    constant = np.array([model.log_determinant for model in models])
    without = m * np.log(np.maximum(smooth, floor) / m) + constant
    free = m * np.log(rest / m) + constant[:, None]
    length = np.array([model.length for model in models])
    falling = np.where(along < 0, free, np.inf)
    return _Fit(rss, rest, without, free, falling, along / length, length, constant, m)


def _likeliest(fit: _Fit, among: NDArray[np.bool_]) -> int:
    """The index of the likeliest drop `among` some ramps; where there is none, of the likeliest change."""
    best = int(np.argmax(np.where(among, fit.scores, -1)))
    return best if fit.scores[best] > 0 else int(np.argmin(np.where(among, fit.free.min(axis=0), np.inf)))


def _chance(
    fit: _Fit, design: Design, near: NDArray[np.bool_], steps: tuple[int, ...], step: int, score: float, least: float
) -> tuple[float, float]:
    """p of a score and the power for a drop of the least size, over the noise models by their likelihood."""
    weight = np.exp((fit.without.min() - fit.without) / 2)
    used = np.flatnonzero(weight >= _LEAST_WEIGHT)
    weight = weight[used] / weight[used].sum()
    nulls = [_null(steps, step, int(k)) for k in used]
    draws = 1 + _DRAWS
    p = [(draws - np.searchsorted(null.scores, score)) / draws for null in nulls]
    widest = _widest(design, near, steps, step)
    planted = least * fit.length[used, widest] / np.sqrt(fit.rss[used] / fit.left)
    power = [np.interp(each, (0.0, *_PLANTED), (0.0, *null.power)) for each, null in zip(planted, nulls, strict=True)]
    p_value, chance = (min(float(weight @ np.array(each)), 1.0) for each in (p, power))  # a sum of weights may round up
    return p_value, chance


def _interval(fit: _Fit, near: NDArray[np.bool_]) -> tuple[float, float]:
    """The 95 % interval of A near the step: all sizes that some place, width and noise model fit nearly as well."""
    m = fit.left
    top = m * np.exp((fit.free[:, near].min() + _allowance(m) - fit.constant) / m)
    spread = top[:, None] - fit.rest[:, near]
    half = np.sqrt(np.maximum(spread, 0)) / fit.length[:, near]
    sizes, inside = fit.sizes[:, near], spread >= 0
    return float(np.min((sizes - half)[inside])), float(np.max((sizes + half)[inside]))


def _allowance(m: int) -> float:
    """Rise of −2 log likelihood at the ends of the interval: the F distribution, as the size of the noise is fitted."""
    from scipy.stats import f

    return float(m * np.log1p(f.ppf(1 - LEVEL, 1, m - 1) / (m - 1)))


def _near(steps: Sequence[int], step: int) -> NDArray[np.bool_]:
    """Which ramps of `design_of` are near the step (c,)."""
    design, time = design_of(tuple(steps)), np.array(steps, np.float64)
    within = SAME_STEP * (time[-1] - time[0])
    start, middle = time[design.start], (time[design.start] + time[design.end]) / 2
    inside = time[SIDE - 1] <= step <= time[-SIDE]
    near: NDArray[np.bool_] = (start <= step + within) & (middle >= step - within) & inside
    return near


def _widest(design: Design, near: NDArray[np.bool_], steps: Sequence[int], step: int) -> int:
    """The widest ramp whose middle is nearest to the step: of all widths, the trend hides it most."""
    time = np.array(steps, np.float64)
    middle = (time[design.start] + time[design.end]) / 2
    width = design.end - design.start
    return int(np.lexsort((np.abs(middle - step), -width, ~near))[0])


def _scores(design: Design, near: NDArray[np.bool_], reduced: NDArray[np.float64]) -> NDArray[np.float64]:
    """The greatest score near the step of many curves without their trend, shape (m, curves)."""
    m, curves = reduced.shape
    without, with_drop = np.full(curves, np.inf), np.full(curves, np.inf)
    for model in design.models:
        whitened = model.whiten @ reduced
        rss = np.einsum("ij,ij->j", whitened, whitened)
        gain = np.maximum(-(model.ramps[:, near].T @ whitened).min(axis=0), 0) ** 2
        without = np.minimum(without, m * np.log(model.smooth_rss(whitened, rss) / m) + model.log_determinant)
        with_drop = np.minimum(with_drop, m * np.log((rss - gain) / m) + model.log_determinant)
    scores: NDArray[np.float64] = np.maximum(without - with_drop, 0)
    return scores


@functools.lru_cache(maxsize=512)
def _null(steps: tuple[int, ...], step: int, index: int) -> _Null:
    """The null of one noise model, and the power in it. The seed is fixed: the same curve has the same p."""
    design, near = design_of(steps), _near(steps, step)
    model = design.models[index]
    generator = np.random.default_rng([index, len(steps)])
    curves = model.factor @ generator.standard_normal((len(model.factor), _DRAWS))
    scores = np.sort(_scores(design, near, curves))
    critical = scores[-int(LEVEL * (_DRAWS + 1))]
    widest = _widest(design, near, steps, step)
    ramp = model.factor @ model.ramps[:, widest]  # of one standard error
    planted = np.concatenate([curves[:, :_POWER_DRAWS] - size * ramp[:, None] for size in _PLANTED], axis=1)
    seen = (_scores(design, near, planted) >= critical).reshape(len(_PLANTED), _POWER_DRAWS)
    return _Null(scores, seen.mean(axis=1))
