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

Another change that is likelier than the drop, such as an earlier rise, is fitted beside it: a trend without it follows
the curve badly, and a drop would be fitted to make up for that. A few records that are off and come back are left out.

The score does not depend on the size of the noise. So its distribution without a drop depends on the steps and the
noise model alone: it is drawn once for each and kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.evidence import LEVEL
from pythia_dynamics.claims.saved import Curve
from pythia_dynamics.claims.scan_design import SIDE, Design, Fit, design_of, fit_of, likeliest, likeliest_spike
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

_MOST_OTHERS = 5
"""Most other changes that are fitted beside the drop. With more of them any curve is made of changes."""

_LEAST_FREEDOM = 0.75
"""Least share of the degrees of freedom that other changes leave, so that the null, drawn without them, still holds."""

_ROUNDING = 1e-7
"""Least noise relative to the greatest absolute value: below it, a difference may be the rounding of float32."""


@dataclass(frozen=True)
class Change:
    """The likeliest drop near a step, beside the changes of the curve that are likelier (`others`).

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
        Probability of p ≤ 0.05 for a drop of the least size that counts, over the widest ramp, in this noise. Where a
        drop is found (p ≤ 0.05), the noise is what it leaves.
    elsewhere, elsewhere_start, elsewhere_end, elsewhere_score
        The likeliest drop that is not near the step: its A, its ends and its score; NaN and −1 without any place.
    rise_score
        The greatest score of a rise, A > 0, at any place.
    rival
        The greatest score of a drop elsewhere, or of a rise that is not fitted beside the drop.
    others, removed
        Number of changes that are fitted beside the drop, and of records that are left out as spikes.
    is_other
        Whether the curve has, for certain and likelier than a drop near the step, one elsewhere or a rise near it.
    rises_there
        Whether it has a rise near the step that is likelier than the drop, or at least as large: what falls there is
        back soon, or above where it was.
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
    rival: float
    others: int
    removed: int
    is_other: bool
    rises_there: bool
    persistence: float
    noise: float
    records: int

    @property
    def greatest(self) -> bool:
        """Whether no other change scores as much."""
        return self.score > self.rival


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
    least_noise = (error, _ROUNDING * float(np.abs(values).max()))
    found = _others(design, near, design.contrasts @ values, least_noise)
    design, near, fit = found.design, found.near, found.fit
    if not near.any():
        raise NotTestableError(f"the other changes of this curve hide a drop around step {step:,}")
    best = likeliest(fit, near)
    p, power = _chance(fit, design, near, key, int(step), best, least)
    low, high = _interval(fit, near)
    far, rival = _elsewhere(found, best, design_of(key), design.contrasts @ values, least_noise)
    model = int(np.argmin(fit.without))
    rise = float(fit.rises.max())
    return Change(
        start=key[design.start[best]],
        end=key[design.end[best]],
        change=fit.size(best),
        low=low,
        high=high,
        score=float(fit.scores[best]),
        p=p,
        power=power,
        elsewhere=float("nan") if far is None else far.size,
        elsewhere_start=-1 if far is None else key[far.start],
        elsewhere_end=-1 if far is None else key[far.end],
        elsewhere_score=float("nan") if far is None else far.score,
        rise_score=max([rise, *(each.score for each in found.others if each.kind == "rise")]),
        rival=max(rise, rival),
        others=sum(each.kind != "spike" for each in found.others),
        removed=sum(each.columns.shape[1] for each in found.others if each.kind == "spike"),
        is_other=any(each.contradicts for each in found.others),
        rises_there=any(
            each.kind == "rise" and each.near and (each.contradicts or each.size >= -fit.size(best))
            for each in found.others
        ),
        persistence=design.models[model].persistence,
        noise=float(np.sqrt(fit.rss[model] / design.freedom)),
        records=len(steps),
    )


@dataclass(frozen=True)
class _Other:
    """Another change: its score, its A (NaN for a spike), the indices of its ends, and its columns of a fit (n, q).

    `near` says whether it is a rise near the step, and `contradicts` whether it speaks against a drop there: a drop
    elsewhere, or a rise near the step, that is likelier.
    """

    kind: Literal["drop", "rise", "spike"]
    score: float
    size: float
    start: int
    end: int
    columns: NDArray[np.float64]
    near: bool = False
    contradicts: bool = False


@dataclass(frozen=True)
class _Found:
    """The other changes, and the design and the fit given them; `near` says which of its ramps are near the step."""

    others: tuple[_Other, ...]
    design: Design
    near: NDArray[np.bool_]
    fit: Fit


def _others(
    base: Design, near: NDArray[np.bool_], reduced: NDArray[np.float64], least_noise: tuple[float, float]
) -> _Found:
    """Find one after the other the changes that are likelier than a drop near the step, each given those before it.

    A change is taken where it is there for certain and likelier than the drop: a drop elsewhere by `_PLACE`, as it may
    be the same one. Once the drop is likelier than all others, they are looked for given the drop.
    """
    found: list[_Other] = []
    design, among = base, near
    while True:
        fit = fit_of(design, reduced, *least_noise)
        if len(found) == _MOST_OTHERS or not among.any():
            break
        removed = {i for each in found for i in _spiked(each)}
        best = likeliest(fit, among)
        own = float(fit.scores[best])
        other = _likeliest_other(fit, design, among, reduced, removed)
        if design.freedom - other.columns.shape[1] < _LEAST_FREEDOM * base.freedom:
            break
        if other.score > max(_CERTAIN, own + _PLACE * (other.kind == "drop")):
            against = other.kind == "drop" or (other.near and other.score > own + _PLACE)
            found.append(replace(other, contradicts=against))
        elif own > max(_CERTAIN, other.score + _PLACE):
            beside, kept = base.given(np.hstack([*(each.columns for each in found), design.shapes[:, [best]]]))
            other = _likeliest_other(fit_of(beside, reduced, *least_noise), beside, near[kept], reduced, removed)
            if other.score <= _CERTAIN or beside.freedom - other.columns.shape[1] < _LEAST_FREEDOM * base.freedom:
                break
            found.append(other)
        else:
            break
        design, kept = base.given(np.hstack([each.columns for each in found]))
        among = near[kept]
    return _Found(tuple(found), design, among, fit)


def _spiked(other: _Other) -> range:
    """The indices of the records that a spike leaves out."""
    return range(other.start, other.end) if other.kind == "spike" else range(0)


def _likeliest_other(
    fit: Fit, design: Design, near: NDArray[np.bool_], reduced: NDArray[np.float64], removed: set[int]
) -> _Other:
    """The likeliest of all rises, all drops that are not near the step and all spikes."""
    score, start, end = likeliest_spike(fit, design, reduced)
    records = [i for i in range(start, end) if i not in removed]
    spike = _Other("spike", score, float("nan"), start, end, np.eye(design.shapes.shape[0])[:, records])
    up, down = int(np.argmax(fit.rises)), int(np.argmax(np.where(near, -1, fit.scores)))
    rise = replace(_ramp(fit, design, up, "rise"), near=bool(near[up]))
    drop = _ramp(fit, design, down, "drop")
    return max(spike, rise, *(() if near.all() else (drop,)), key=lambda each: each.score)


def _ramp(fit: Fit, design: Design, ramp: int, kind: Literal["drop", "rise"]) -> _Other:
    """A ramp of a fit as another change."""
    score, size = (fit.rises[ramp], fit.rise(ramp)) if kind == "rise" else (fit.scores[ramp], fit.size(ramp))
    start, end = int(design.start[ramp]), int(design.end[ramp])
    return _Other(kind, float(score), size, start, end, design.shapes[:, [ramp]])


def _elsewhere(
    found: _Found, best: int, base: Design, reduced: NDArray[np.float64], least_noise: tuple[float, float]
) -> tuple[_Other | None, float]:
    """The likeliest drop that is not near the step, and the score with which it competes with the one that is.

    One that was found as another change is scored given all others. Where the drop near the step is likelier than the
    rest, the one elsewhere is given that drop, but competes without it: it may be the same one.
    """
    drops, rival = [], 0.0
    own = float(found.fit.scores[best])
    here = [found.design.shapes[:, [best]]] if own > 0 else []
    if not found.near.all():
        far = _ramp(found.fit, found.design, likeliest(found.fit, ~found.near), "drop")
        rival = far.score
        if own > max(_CERTAIN, rival + _PLACE):
            design, fit = _given(base, [*(each.columns for each in found.others), *here], reduced, least_noise)
            inside = {*zip(found.design.start[found.near], found.design.end[found.near], strict=True)}
            outside = np.array([ends not in inside for ends in zip(design.start, design.end, strict=True)], bool)
            far = _ramp(fit, design, likeliest(fit, outside), "drop") if outside.any() else far
        drops.append(far)
    for each in found.others:
        if each.kind == "drop":
            rest = [*(other.columns for other in found.others if other is not each), *here]
            design, fit = _given(base, rest, reduced, least_noise)
            place = np.flatnonzero((design.start == each.start) & (design.end == each.end))
            drops.append(_ramp(fit, design, int(place[0]), "drop") if len(place) else each)
            rival = max(rival, drops[-1].score)
    return max(drops, key=lambda each: each.score, default=None), rival


def _given(
    base: Design, columns: list[NDArray[np.float64]], reduced: NDArray[np.float64], least_noise: tuple[float, float]
) -> tuple[Design, Fit]:
    """The design with other changes in the trend, where there are any, and the fit of it."""
    design = base.given(np.hstack(columns))[0] if columns else base
    return design, fit_of(design, reduced, *least_noise)


def _chance(
    fit: Fit, design: Design, near: NDArray[np.bool_], steps: tuple[int, ...], step: int, best: int, least: float
) -> tuple[float, float]:
    """p of the likeliest drop and the power for a drop of the least size, over the noise models by their likelihood.

    Other changes in the trend hardly alter the distribution of the scores: it is drawn without them.
    """
    draws = 1 + _DRAWS
    weight, used = _weights(fit.without)
    score = fit.scores[best]
    p = weight @ [(draws - np.searchsorted(_null(steps, step, int(k)).scores, score)) / draws for k in used]
    rss = fit.rss
    if p <= LEVEL:  # what the drop explains is no noise
        (weight, used), rss = _weights(fit.free[:, best]), fit.rest[:, best]
    widest = _widest(design, near, steps, step)
    planted = least * fit.length[used, widest] / np.sqrt(rss[used] / fit.left)
    sizes = (0.0, *_PLANTED)
    power = weight @ [
        np.interp(each, sizes, (0.0, *_null(steps, step, int(k)).power)) for each, k in zip(planted, used, strict=True)
    ]
    return min(float(p), 1.0), min(float(power), 1.0)  # a sum of weights may round up


def _weights(fits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Weights of the noise models from −2 log likelihoods, and the models that have one."""
    weight = np.exp((fits.min() - fits) / 2)
    used = np.flatnonzero(weight >= _LEAST_WEIGHT)
    return weight[used] / weight[used].sum(), used


def _interval(fit: Fit, near: NDArray[np.bool_]) -> tuple[float, float]:
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
