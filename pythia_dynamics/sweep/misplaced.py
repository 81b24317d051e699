"""Steps whose weights belong elsewhere, from the distances between all pairs of steps.

The path through the steps in their order is short: training moves on from where it was. Weights under the wrong step
make it longer, in one of three ways.

* Two near steps that are exchanged: the path is shorter with the two where they belong.
* A stretch of steps with weights from elsewhere: the path jumps there and back, and its two ends are nearer to each
  other than to the stretch.
* A first or last step with weights from elsewhere: it is nearer to a step in the middle than to its neighbour, or it
  has no direction in common with any other step.

A jump or a detour counts if it is large beside those around it, by the scatter that they have in the same history, so
that a path that oscillates, returns or moves in few directions is not blamed for it. What is found is repaired, and the
rest is searched again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["Misplaced", "find_misplaced"]

_REACH = 3
"""Steps that are exchanged lie at most this far apart. Those farther apart are two stretches of one step."""

_LEAST = np.log(1.1)
"""Least excess of the logarithm of a ratio. Independent frames all have the same distance, with a scatter of 1/√N."""

_LEAST_JUMP = np.log(1.25)
"""Least excess of the logarithm of a jump over those around it."""

_DEVIATIONS = 6
"""Least excess in standard deviations of the scatter. With 143 steps, a history has 10⁴ stretches."""

_LEAST_COSINE = 0.3
"""Least excess of the cosine between the jump there and the jump back."""

_NEAR = 4
"""Jumps on either side that a jump is compared with."""

_AROUND = 10
"""Exchanges, or pairs of jumps, on either side that others are compared with."""

_TINY = 1e-9
"""Least scatter that is divided by: a path of equal jumps has none."""

_UNRELATED = 0.1
"""Largest cosine of an end that has nothing in common with the others. Weights of another run share a little."""

_RELATED = 0.5
"""Least cosine of the other neighbours, so that an end can be unrelated to them."""

_NINTH_DECILE = 1.2816
"""Ninth decile of standard normal numbers, and eighth of their absolute values."""

_NORMAL = 1.4826
"""Standard deviation of normal numbers over their median absolute deviation."""

Kind = Literal["exchanged", "stretch", "end", "unrelated"]


@dataclass(frozen=True)
class Misplaced:
    """Steps whose weights seem to belong elsewhere.

    Attributes
    ----------
    kind
        ``exchanged``: two steps. ``stretch``: consecutive steps. ``end``: the first or last step, nearer to another
        than to its neighbour. ``unrelated``: the first or last step, orthogonal to all others.
    places
        Indices of the steps, ascending.
    beside
        Indices of the steps that `distances` refer to.
    distances
        Of exchanged steps, the length of the path around them as it is and with the two exchanged. Of a stretch, the
        distances to it, from it and across it. Of an end, the distances to its neighbour and to the nearest step. Of
        an unrelated end, its distance to its neighbour and that of independent weights.
    """

    kind: Kind
    places: tuple[int, ...]
    beside: tuple[int, ...]
    distances: tuple[float, ...]


def find_misplaced(squared: NDArray[np.float64], norms: NDArray[np.float64], weights: int) -> list[Misplaced]:
    """Find steps whose weights belong elsewhere.

    Parameters
    ----------
    squared
        Squared distances Σ_k (w_tk − w_sk)² of every pair of steps, shape (T, T), in weight². Steps with the weights of
        another are left out: which of them is in its place cannot be seen.
    norms
        Σ_k (w_tk − w̄_t)² of each step, shape (T,), in weight².
    weights
        N, the number of weights of a step.

    Returns
    -------
    list of Misplaced
        By the first index. Nothing for fewer than five steps.
    """
    distance = np.sqrt(squared)
    order = np.flatnonzero(np.count_nonzero(distance == 0, axis=1) == 1)
    found: list[Misplaced] = []
    while len(order) >= 5:
        path = _Path(distance[np.ix_(order, order)], norms[order], weights)
        best = max(path.candidates(), key=lambda candidate: candidate[0], default=None)
        if best is None:
            break
        _, item = best
        places = [int(order[place]) for place in item.places]
        found.append(
            Misplaced(item.kind, tuple(sorted(places)), tuple(int(order[at]) for at in item.beside), item.distances)
        )
        order = np.delete(order, item.places)
    return sorted(found, key=lambda item: item.places)


class _Path:
    """The distances of the steps of one path, in its order."""

    def __init__(self, distance: NDArray[np.float64], norms: NDArray[np.float64], weights: int) -> None:
        self.distance = distance
        self.norms = norms
        self.weights = weights
        self.jumps = np.diagonal(distance, 1)
        self.excess = _above_both_sides(np.log(self.jumps))
        self.scatter = _scatter(self.excess)
        squared = distance**2
        inner = (squared[1:, :-1] + squared[:-1, 1:] - squared[1:, 1:] - squared[:-1, :-1]) / 2
        self.cosines = inner / self.jumps / self.jumps[:, None]
        self.noise = self._noise()

    def _noise(self) -> float:
        """Standard deviation of the cosines between jumps that are not long, about what is usual at their distance."""
        usual = np.where(self.excess > _LEAST_JUMP, np.nan, 1.0)
        cosines = self.cosines * usual * usual[:, None]
        changes = (cosines[1:, 1:] - cosines[:-1, :-1])[np.triu_indices(len(cosines) - 1, 1)] / np.sqrt(2)
        if np.isfinite(changes).sum() < _AROUND:  # a short path, where few jumps are left
            cosines = cosines[np.triu_indices(len(cosines), 1)]
            changes = cosines - np.nanmedian(cosines) if np.isfinite(cosines).any() else np.ones(1)
        return float(np.nanquantile(np.abs(changes), 0.8) / _NINTH_DECILE)

    def candidates(self) -> Iterator[tuple[float, Misplaced]]:
        """What seems misplaced, each with what the path is longer by for it, per step of a stretch."""
        yield from self.exchanges()
        yield from self.stretches()
        yield from self.ends()

    def exchanges(self) -> Iterator[tuple[float, Misplaced]]:
        """Pairs of steps that shorten the path if they are exchanged, by more than those around them."""
        count = len(self.distance)
        for reach in range(1, min(_REACH, count - 2) + 1):
            lengths = np.array([self._lengths(first, first + reach) for first in range(count - reach)])
            ratios = np.log(lengths[:, 0] / lengths[:, 1])
            excess = ratios - np.maximum(_median_around(ratios), 0)
            least = max(_LEAST, _DEVIATIONS * _upper_scatter(excess), 1.5 * self.noise)
            for first in np.flatnonzero(excess > least).tolist():
                before, after = lengths[first].tolist()
                yield before - after, Misplaced("exchanged", (first, first + reach), (), (before, after))

    def _lengths(self, first: int, second: int) -> tuple[float, float]:
        """The length of the path around two steps, and what it is with the two exchanged."""
        part = np.arange(max(first - 1, 0), min(second + 2, len(self.distance)))
        other = part.copy()
        other[[first - part[0], second - part[0]]] = second, first
        return float(self.distance[part[:-1], part[1:]].sum()), float(self.distance[other[:-1], other[1:]].sum())

    def stretches(self) -> Iterator[tuple[float, Misplaced]]:
        """Stretches that the path jumps to, and back from in the opposite direction."""
        for to, back in combinations(np.flatnonzero(self.excess > _LEAST_JUMP).tolist(), 2):
            there, again, across = float(self.jumps[to]), float(self.jumps[back]), float(self.distance[to, back + 1])
            others = self._cosines_around(to, back)
            against = min(float(np.median(others)), 0.0) - float(self.cosines[to, back])
            if against < _LEAST_COSINE or across > np.hypot(there, again):
                continue
            jump = min(self.excess[to], self.excess[back]) / max(self.scatter, _TINY)
            if np.hypot(jump, against / max(_scatter(others), self.noise, _TINY)) > _DEVIATIONS:
                item = Misplaced("stretch", tuple(range(to + 1, back + 1)), (to, back + 1), (there, again, across))
                yield (there + again - across) / (back - to), item

    def _cosines_around(self, first: int, second: int) -> NDArray[np.float64]:
        """The cosines of other pairs of jumps that are as far apart, near these two."""
        shifts = np.array([k for k in range(-_AROUND, _AROUND + 1) if k])
        shifts = shifts[(first + shifts >= 0) & (second + shifts < len(self.jumps))]
        found: NDArray[np.float64] = self.cosines[first + shifts, second + shifts]
        if len(found) >= _AROUND:
            return found
        rows, columns = (np.arange(max(at - _NEAR, 0), min(at + _NEAR + 1, len(self.jumps))) for at in (first, second))
        more = self.cosines[np.ix_(rows[rows != first], columns[columns != second])]
        return np.concatenate([found, more[np.less.outer(rows[rows != first], columns[columns != second])]])

    def ends(self) -> Iterator[tuple[float, Misplaced]]:
        """The first and the last step, if they do not belong to their neighbours."""
        last = len(self.distance) - 1
        usual = float(np.median(self.jumps))
        nearer = self._nearer()
        least = max(_LEAST, _DEVIATIONS * _upper_scatter(nearer), 1.5 * self.noise)
        for end, neighbour, jump in ((0, 1, 0), (last, last - 1, last - 1)):
            to = float(self.jumps[jump])
            if self.excess[jump] > _LEAST_JUMP and nearer[end] > least:
                others = np.delete(self.distance[end], [end, neighbour])
                nearest = int(np.delete(np.arange(last + 1), [end, neighbour])[np.argmin(others)])
                yield to - usual, Misplaced("end", (end,), (neighbour, nearest), (to, float(others.min())))
            elif self._unrelated(end, neighbour):
                apart = float(np.sqrt(self.norms[end] + self.norms[neighbour]))
                yield to - usual, Misplaced("unrelated", (end,), (neighbour,), (to, apart))

    def _nearer(self) -> NDArray[np.float64]:
        """By how much each step is nearer to another than to its neighbours, as a logarithm."""
        count = len(self.distance)
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        neighbours = np.where(apart == 1, self.distance, np.inf).min(axis=1)
        others: NDArray[np.float64] = np.where(apart > 1, self.distance, np.inf).min(axis=1)
        nearer: NDArray[np.float64] = np.log(neighbours / others)
        return nearer

    def _unrelated(self, end: int, neighbour: int) -> bool:
        """Whether a first or last step is orthogonal to all others, which are not so to each other."""
        sizes = np.sqrt(self.norms)
        if not (sizes > 0).all():
            return False
        cosines = (self.norms + self.norms[:, None] - self.distance**2) / (2 * sizes * sizes[:, None])
        others = np.delete(np.arange(len(sizes)), end)
        if np.diagonal(cosines[np.ix_(others, others)], 1).min() < _RELATED:
            return False
        most = float(np.abs(cosines[end, others]).max())
        grown = end > 0 or sizes[end] > sizes[neighbour]
        return most < (_UNRELATED if grown else min(_DEVIATIONS / np.sqrt(self.weights), _UNRELATED))


def _above_both_sides(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values minus the median of those before and the median of those after, whichever is larger."""
    found = np.empty(len(values))
    for place, value in enumerate(values):
        sides = (values[max(place - _NEAR, 0) : place], values[place + 1 : place + 1 + _NEAR])
        found[place] = value - max(float(np.median(side)) for side in sides if len(side))
    return found


def _median_around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of the values around each; at the ends, of as many on one side."""
    width = min(2 * _AROUND + 1, len(values))
    medians = np.median(sliding_window_view(values, width), axis=1)
    return medians[np.clip(np.arange(len(values)) - width // 2, 0, len(medians) - 1)]


def _scatter(values: NDArray[np.float64]) -> float:
    """Standard deviation from the median absolute deviation."""
    return float(_NORMAL * np.median(np.abs(values - np.median(values))))


def _upper_scatter(excess: NDArray[np.float64]) -> float:
    """Standard deviation from the ninth decile of what is above 0."""
    return float(np.quantile(np.maximum(excess, 0), 0.9) / _NINTH_DECILE)
