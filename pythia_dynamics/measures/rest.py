"""Rest of the weights: from which record on their displacement no longer grows with the distance.

Stationary means that the displacement between two records saturates with their distance and does not depend on when it
is measured. Distances are in the time ∫η², in which a walk whose steps follow the learning rate η keeps its rate of
diffusion: steps that become small because η does are no rest.

Noise of single records, which a store of rounded or perturbed weights has, makes the displacement flat over short
distances, also that of a walk. So the rest after a record counts only if the diffusion, from which such noise is
removed, is small against that before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.measures.walks import Motion, batch_size, exceedance, simulate_walks, squared_displacements

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "MAX_GROWTH",
    "MIN_RECORDS",
    "Rest",
    "RestSearch",
    "find_rest",
    "growth_interval",
    "rest_p_value",
    "rest_power",
    "standstill",
]

MAX_GROWTH = 0.35
"""Largest growth of a rest, on a scale on which 0 is saturated and 1 is a random walk. An Ornstein-Uhlenbeck
process in equilibrium with a correlation time of 1/7 of the history has 0.30."""

MIN_RECORDS = 16
"""Fewest records of a rest: with fewer the six groups of distances hold a handful of pairs each."""

_LEAST_SHARE = 1 / 6
"""Least share of the records in a rest that is not the whole history: over a shorter one, noise of records hides more
diffusion than the rest may have."""

_BINS = 6
"""Groups of distances, in which they grow by a factor of 1.35."""

_SHORTEST, _LONGEST = 1 / 8, 3 / 4
"""Distances of the exponent as shares of the time that is left. Shorter ones show how a process sets off, longer ones
are averaged over less than a quarter of the time."""

_SHORT = 4
"""Records over which the diffusion is measured: Δ(t, t + 4) − Δ(t, t + 1), from which the noise of records cancels."""

_SIGMAS = 2.0
"""Standard errors that are added to the diffusion before a rest, so that none is not mistaken for some."""

_CANDIDATES = 32
"""About as many first records of a rest are tried: all of a short history, every fourth of 143."""

_CAUTION = 0.8
"""Factor of the number of directions of the null: it is estimated, and in fewer directions more walks seem to rest."""

_P_FACTOR = 2.0
"""Factor of the p-value: diffusion, noise of records and directions of the null are estimates from the same history. Of
60 walks each in 3 and 10 directions and with noise of 5 steps, 0, 0 and 1 then seem to rest at the level of 5 %."""

_ROUNDING = 1e-10
"""Squared displacements below this share of the largest are rounding of the sums that they are differences of."""

_WALKS = 200
"""Walks from which a power, and at first a p-value, is taken."""

_PASSING = 1e-6
"""Share of the median time between records below which none passes: weights of finite precision stand still under a
learning rate of a thousandth of the usual one, whatever they would do."""

_LAST_SHARE = 0.4
"""The rest of which `rest_power` states the power: the last 40 % of the steps (the plateau of the paper is 44 %)."""


@dataclass(frozen=True)
class Rest:
    """The part of a history, from some record to its end, that is most at rest.

    Parameters
    ----------
    step
        Its first step.
    record
        The index of that step among the present ones; 0 if the whole history is at rest.
    exponent
        Growth of the time-averaged displacement with the distance, as an exponent: 0 where it saturates, 1 for a walk.
        It also counts a fall at long distances, and a dependence on the waiting time.
    diffusion
        Diffusion per time over long distances, relative to that before the rest (of the whole history, to that over
        short distances): 0 where it saturates, 1 for a walk.
    moves
        Whether the weights move at all in it.
    """

    step: int
    record: int
    exponent: float
    diffusion: float
    moves: bool

    @property
    def growth(self) -> float:
        """The larger of exponent and diffusion."""
        return max(self.exponent, self.diffusion)

    @property
    def found(self) -> bool:
        """Whether it is at rest: the growth is at most `MAX_GROWTH`."""
        return self.growth <= MAX_GROWTH


@dataclass(frozen=True)
class RestSearch:
    """The search for a rest among records at given times, which are the same for a history and for walks like it.

    Parameters
    ----------
    time
        Times of the records, shape (n,), as `Motion.time`.
    starts
        First records of the rests that are tried, shape (c,).
    averages
        Weights of the pairs of records in each average, sparse, shape (c · 2 · bins, pairs): the first half of the
        waiting times, and the second.
    counts
        Number of pairs in each, shape (c, 2, bins).
    distances
        Mean distance of the groups, shape (c, bins); NaN without pairs.
    """

    time: NDArray[np.float64]
    starts: NDArray[np.intp]
    averages: csr_array
    counts: NDArray[np.float64]
    distances: NDArray[np.float64]

    @classmethod
    def over(cls, time: NDArray[np.float64], candidates: int = _CANDIDATES) -> Self:
        """Plan the search.

        Parameters
        ----------
        time
            Times of the records, shape (n,), not decreasing.
        candidates
            About how many first records of a rest are tried.
        """
        from scipy.sparse import csr_array

        n = len(time)
        first, second = np.triu_indices(n, 1)
        distance = time[second] - time[first]
        spacing = max(n // candidates, 1)
        tried = [0, *range(MIN_RECORDS, n - _fewest(n) + 1, spacing)] if n >= MIN_RECORDS else []
        starts, counts, distances = [], [], []
        members: list[NDArray[np.intp]] = []  # the pairs of each average, one average after the other
        for start in tried:
            left = time[-1] - time[start]
            if left <= 0:
                continue
            edges = np.geomspace(left * _SHORTEST, left * _LONGEST, _BINS + 1)
            group = np.where(first >= start, np.searchsorted(edges, distance, side="right") - 1, -1)
            own: list[list[NDArray[np.intp]]] = [[np.empty(0, dtype=np.intp)] * _BINS for _ in range(2)]
            means = np.full(_BINS, np.nan)
            for i in range(_BINS):
                pairs = np.flatnonzero(group == i)
                if not len(pairs):
                    continue
                late = time[first[pairs]] > np.median(time[first[pairs]])
                means[i] = distance[pairs].mean()
                own[0][i], own[1][i] = pairs[~late], pairs[late]
            if np.count_nonzero(np.isfinite(means)) < 3:
                continue
            starts.append(start)
            members += own[0] + own[1]
            counts.append([[len(pairs) for pairs in half] for half in own])
            distances.append(means)
        lengths = np.array([len(pairs) for pairs in members], dtype=np.intp)
        weights = np.repeat(1 / np.maximum(lengths, 1), lengths)
        columns = np.concatenate(members) if members else np.empty(0, dtype=np.intp)
        averages = csr_array(
            (weights, columns, np.concatenate([[0], np.cumsum(lengths)])), shape=(len(members), len(first))
        )
        return cls(
            time,
            np.array(starts, dtype=np.intp),
            averages,
            np.array(counts, dtype=np.float64).reshape(-1, 2, _BINS),
            np.array(distances).reshape(-1, _BINS),
        )

    def only(self, place: int) -> RestSearch:
        """The search of the first record `starts[place]` alone."""
        part, rows = [place], 2 * _BINS
        averages = self.averages[rows * place : rows * (place + 1)]
        return RestSearch(self.time, self.starts[part], averages, self.counts[part], self.distances[part])

    def growth(self, squared: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Exponent and relative diffusion of every rest that is tried (see `Rest`).

        Parameters
        ----------
        squared
            Squared displacements of every pair of records, shape (…, n, n).

        Returns
        -------
        tuple of array, shape (…, c)
        """
        n, many = len(self.time), squared.shape[:-2]
        first, second = np.triu_indices(n, 1)
        pairs = squared[..., first, second].reshape(-1, len(first))
        pairs = np.where(pairs > _ROUNDING * pairs.max(axis=1, keepdims=True), pairs, 0)
        halves = (self.averages @ pairs.T).T.reshape(-1, *self.counts.shape)
        known = np.isfinite(self.distances)
        share = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        means = (halves * share).sum(axis=2)
        moves = means.max(axis=2, initial=0) > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.where(known, np.log(means), np.nan)
            place = np.where(known, np.log(self.distances), np.nan)
            width = np.nanmax(place, axis=1) - np.nanmin(place, axis=1)
            exponent = np.abs(_slope(place, level))
            longest = known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
            end = np.take_along_axis(level, np.broadcast_to(longest[:, None], (*level.shape[:2], 1)), 2)[..., 0]
            fall = (np.nanmax(level, axis=2) - end) / width
            ageing = np.abs(np.log(halves[:, :, 1] / halves[:, :, 0]))
            ageing = np.where((self.counts > 0).all(axis=1), ageing, np.nan)
            unknown = np.isnan(ageing).all(axis=2, keepdims=True)  # nothing moves in it, or too few pairs
            ageing = np.nanmedian(np.where(unknown, 0, ageing), axis=2) / width
            exponent = np.fmax(np.fmax(exponent, fall), ageing)
        exponent = np.where(moves, np.where(np.isfinite(exponent), exponent, np.inf), 0)
        slope = np.abs(_slope(np.where(known, self.distances, np.nan), np.where(known, means, np.nan)))
        before = self.diffusion(squared.reshape(-1, n, n))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(slope > 0, np.where(before > 0, slope / before, np.inf), 0)
        return exponent.reshape(*many, -1), relative.reshape(*many, -1)

    def diffusion(self, squared: NDArray[np.float64], sigmas: float = _SIGMAS) -> NDArray[np.float64]:
        """Diffusion before every rest that is tried, `sigmas` standard errors up, in weight² per time; shape (…, c).

        0 where no time passes before the rest.
        """
        records = np.arange(len(self.time) - _SHORT)
        gained = squared[..., records, records + _SHORT] - squared[..., records, records + 1]
        lasted = self.time[records + _SHORT] - self.time[records + 1]
        found = np.empty((*squared.shape[:-2], len(self.starts)))
        for place, start in enumerate(self.starts):
            count = start - _SHORT if start else len(records)
            total, own = lasted[:count].sum(), gained[..., :count]
            if total <= 0:
                found[..., place] = 0
                continue
            rate = own.sum(axis=-1) / total
            # the squared deviations of windows that overlap by all but one of their records
            error = np.sqrt(((own - rate[..., None] * lasted[:count]) ** 2).sum(axis=-1) * _SHORT) / total
            found[..., place] = np.maximum(rate, 0) + sigmas * error
        return found


def _fewest(records: int) -> int:
    """The fewest records of a rest that is not the whole history."""
    return max(MIN_RECORDS, int(records * _LEAST_SHARE))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slopes of the lines of least squares along the last axis; `x` is NaN where there is no point."""
    centred = np.nan_to_num(x - np.nanmean(x, axis=-1, keepdims=True))
    found: NDArray[np.float64] = (centred * np.where(np.isfinite(x), y, 0)).sum(axis=-1) / (centred**2).sum(axis=-1)
    return found


def find_rest(motion: Motion, search: RestSearch | None = None) -> Rest | None:
    """The first record from which the weights are at rest, else that from which they are most nearly so.

    Parameters
    ----------
    motion
        The history.
    search
        The plan, if it is there already.

    Returns
    -------
    Rest or None
        None where there are fewer than `MIN_RECORDS` records, or time does not pass (a learning rate of 0).
    """
    search = search or RestSearch.over(motion.time)
    if not len(search.starts):
        return None
    exponents, diffusions = search.growth(motion.squared)
    growth = np.maximum(exponents, diffusions)
    place = int(np.argmax(growth <= MAX_GROWTH)) if (growth <= MAX_GROWTH).any() else int(np.argmin(growth))
    record = int(search.starts[place])
    moves = bool(motion.squared[record:, record:].max() > _ROUNDING * motion.squared.max())
    return Rest(int(motion.steps[record]), record, float(exponents[place]), float(diffusions[place]), moves)


def growth_interval(motion: Motion, rest: Rest, blocks: int = 8) -> tuple[float, float]:
    """95 % interval of the growth of a rest, from the jackknife over blocks of its waiting times.

    Parameters
    ----------
    motion
        The history.
    rest
        Its rest.
    blocks
        Number of blocks of records. The displacements from one of them to later ones are left out in turn.

    Returns
    -------
    tuple of float
        The limits; NaN for a rest that the search does not find at that record, and where the growth is not finite.
    """
    from scipy.stats import t as student

    search = RestSearch.over(motion.time)
    place = int(np.searchsorted(search.starts, rest.record))
    if place == len(search.starts) or search.starts[place] != rest.record:
        return np.nan, np.nan
    first, _ = np.triu_indices(len(motion.time), 1)
    chosen = search.only(place)
    edges = np.linspace(rest.record, len(motion.time), blocks + 1).astype(int)
    found = []
    for low, high in pairwise(edges.tolist()):
        kept = chosen.averages.toarray() * ((first < low) | (first >= high))
        share = kept.sum(axis=1, keepdims=True)
        if (share[chosen.counts.ravel() > 0] <= 0).any():
            continue  # a group of distances has waiting times in this block alone
        left = replace(chosen, averages=type(chosen.averages)(kept / np.where(share > 0, share, 1)))
        found.append(float(np.maximum(*left.growth(motion.squared))[0]))
    if len(found) < 3 or not np.isfinite([rest.growth, *found]).all():
        return np.nan, np.nan
    count = len(found)
    error = float(np.sqrt((count - 1) / count * ((np.array(found) - np.mean(found)) ** 2).sum()))
    margin = float(student.ppf(0.975, count - 1)) * error
    return max(rest.growth - margin, 0.0), rest.growth + margin


def standstill(motion: Motion) -> Rest | None:
    """The part at the end in which the weights do not move at all, though they moved before and time passes.

    A walk whose steps follow the learning rate does not stand still: it needs no simulation. None where the learning
    rate is not known, or where the part is shorter than a rest may be, counted in records between which the learning
    rate is above 0.

    Parameters
    ----------
    motion
        The history.
    """
    away = np.flatnonzero(motion.squared[:, -1] > _ROUNDING * motion.squared.max())
    record = int(away[-1]) + 1 if len(away) else 0
    passed = np.diff(motion.time)
    usual = np.median(passed[passed > 0]) if (passed > 0).any() else np.inf
    passing = int(np.count_nonzero(passed[record:] > _PASSING * usual))
    if record == 0 or not motion.rate_known or passing + 1 < _fewest(len(motion.steps)):
        return None
    return Rest(int(motion.steps[record]), record, 0.0, 0.0, moves=False)


class _SlowMotion(Motion):
    """A motion whose number of directions is that of its slow part, without the noise of single records."""

    @cached_property
    def dimensions(self) -> float:
        """The least number of directions of increments over 1, 5 and 10 records, without the noise, made smaller."""
        found = [Motion(self.steps, self.time, self.rate_known, self.products, self.size).dimensions]
        for length in (5, 10):
            count = (len(self.steps) - 1) // length
            if count < MIN_RECORDS // 2:
                continue
            blocks = self.increments[: count * length, : count * length].reshape(count, length, count, length)
            products = np.zeros((count + 1, count + 1))
            products[1:, 1:] = blocks.sum(axis=(1, 3))
            at = np.arange(count) + 1
            products[at, at] = np.maximum(products[at, at] - 2 * self.jitter, 0)
            part = slice(0, count * length + 1, length)
            coarse = Motion(self.steps[part], self.time[part], self.rate_known, products, self.size)
            found.append(coarse.dimensions)
        return max(_CAUTION * min(found), 1.0)


def _null_walks(
    motion: Motion,
    search: RestSearch,
    generator: np.random.Generator,
    *,
    rest_from: int | None = None,
) -> Iterator[NDArray[np.float64]]:
    """The least growth of any rest in walks like a history, in batches of `_WALKS` walks.

    Their diffusion per time is the same throughout: that before the rest. Of a rest that is the whole history it is
    that over short distances, two standard errors up: a motion that is noise of records alone has none. With
    `rest_from` the walks stop at that record. Noise of records is that of the history.
    """
    like = _SlowMotion(motion.steps, motion.time, motion.rate_known, motion.products, motion.size)
    rest = find_rest(motion, search)
    place = int(np.searchsorted(search.starts, rest.record if rest else 0))
    rate = float(search.diffusion(motion.squared, 0.0 if place else _SIGMAS)[place])
    moved = rate * np.diff(motion.time)
    if rest_from is not None:
        moved[rest_from:] = 0
    # Noise of records in many directions on top of a motion in few: the two are drawn apart.
    apart = motion.jitter > 0 and like.dimensions < motion.dimensions / 2
    most = batch_size(len(motion.steps))
    while True:
        found = []
        for done in range(0, _WALKS, most):
            size = min(most, _WALKS - done)
            products = simulate_walks(like, size, generator, moved=moved, jitter=0.0 if apart else motion.jitter)
            if apart:
                products += simulate_walks(motion, size, generator, moved=0 * moved, jitter=motion.jitter)
            found.append(np.maximum(*search.growth(squared_displacements(products))).min(axis=-1))
        yield np.concatenate(found)


def rest_p_value(
    motion: Motion, generator: np.random.Generator, search: RestSearch | None = None, *, more: bool = True
) -> tuple[float, NDArray[np.float64]]:
    """How often a walk has a rest as good as that of a history, from whatever first record.

    Parameters
    ----------
    motion
        The history.
    generator
        Source of the random numbers.
    search
        The plan, if it is there already.
    more
        Whether up to 1,200 walks are drawn where the p-value of the first 200 is small.

    Returns
    -------
    tuple
        The p-value, doubled because the null is estimated, and the least growth in each simulated walk.
    """
    search = search or RestSearch.over(motion.time)
    rest = find_rest(motion, search)
    observed = rest.growth if rest else np.inf
    batches = _null_walks(motion, search, generator)
    p, found = exceedance(-observed, (-batch for batch in (batches if more else [next(batches)])))
    return min(_P_FACTOR * p, 1.0), -found


def rest_power(
    motion: Motion, null: NDArray[np.float64], generator: np.random.Generator, search: RestSearch | None = None
) -> float:
    """How often a walk like a history that stops for the last 40 % of the steps is seen to rest.

    On a grid whose records lie closer at the beginning, few records may be in that part: the power is then small.

    Parameters
    ----------
    motion
        The history.
    null
        The least growth in walks without a rest, from `rest_p_value`.
    generator
        Source of the random numbers.
    search
        The plan, if it is there already.
    """
    search = search or RestSearch.over(motion.time)
    first, last = motion.steps[[0, -1]]
    stop = int(np.searchsorted(motion.steps, first + (1 - _LAST_SHARE) * (last - first)))
    planted = next(_null_walks(motion, search, generator, rest_from=stop))
    least = min(MAX_GROWTH, float(np.quantile(null, 0.05 / _P_FACTOR)))
    return float(np.mean(planted <= least))
