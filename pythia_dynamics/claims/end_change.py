"""How much faster or slower weights move over the last tenth of the steps, per ∫η², and the same of random walks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.verdict import NotTestableError
from pythia_dynamics.measures.walks import Motion, batch_size, simulate_walks

__all__ = ["EndNull", "end_change", "is_jittery", "tenths"]

_BLOCKS = 10
"""Tenths of the steps: the last one is the end."""

_FLOOR = 0.01
"""Least displacement of a tenth relative to that of all before the end: without a floor, rest against rest has no
ratio, and a difference of noise no logarithm."""

_JITTERY = -3.0
"""Standard errors below 0 at which the products of neighbouring increments show noise of single records."""

_SEED = 11_870
"""Seed of the walks of these tests, so that a verdict is the same in every run."""


def tenths(motion: Motion) -> list[NDArray[np.intp]]:
    """Indices of the increments in each tenth of the training steps, by the middle of the increment."""
    steps = motion.steps.astype(np.float64)
    middle = (steps[1:] + steps[:-1]) / 2
    edges = np.linspace(steps[0], steps[-1], _BLOCKS + 1)
    found = [np.flatnonzero((middle > low) & (middle <= high)) for low, high in pairwise(edges)]
    if min(len(block) for block in found) < 3:
        raise NotTestableError("fewer than three increments in a tenth of the steps are too few")
    return found


def is_jittery(motion: Motion) -> bool:
    """Whether neighbouring increments oppose each other, as noise of single records makes them."""
    along = np.diag(motion.cosines, 1)
    along = along[np.isfinite(along)]
    return bool(len(along) and along.mean() < _JITTERY / np.sqrt(len(along) * motion.dimensions))


def end_change(
    products: NDArray[np.float64], motion: Motion, blocks: list[NDArray[np.intp]], jittery: bool
) -> NDArray[np.float64]:
    """Logarithm of the factor by which weights move farther at the end (squared, per ∫η²) than before it.

    The smallest of three: against all steps before, against the two tenths before, and against the trend of the three
    tenths before. 0 where they differ in direction.

    Parameters
    ----------
    products
        Inner products of increments, shape (count, n − 1, n − 1), in weight².
    motion
        Gives the time ∫η² of each step.
    blocks
        Result of `tenths`.
    jittery
        Whether noise of single records is taken off, with the products of neighbouring increments.

    Returns
    -------
    array, shape (count,)
    """
    sizes = np.diagonal(products, axis1=1, axis2=2)
    if jittery:  # ε_t is in two increments with opposite signs: with both neighbours it cancels
        beside = np.diagonal(products, offset=1, axis1=1, axis2=2)
        sizes = sizes.copy()
        sizes[:, :-1] += beside
        sizes[:, 1:] += beside
        sizes[:, -1] += beside[:, -1]  # the last record has one neighbour
    time = np.diff(motion.time)
    rates = np.stack([sizes[:, block].sum(axis=1) / max(time[block].sum(), 1e-300) for block in blocks], axis=1)
    end = blocks[-1][0]
    before = sizes[:, :end].sum(axis=1) / time[:end].sum()
    floor = np.maximum(_FLOOR * before, np.finfo(float).tiny)
    log = np.log(np.maximum(rates, floor[:, None]))
    last = log[:, -1]
    trend = log[:, -4:-1] @ np.array([-2, 1, 4]) / 3  # the line through three values, one place further
    changes = np.stack(
        [last - np.log(np.maximum(before, floor)), last - log[:, -3:-1].mean(axis=1), last - trend], axis=1
    )
    same = np.all(changes > 0, axis=1) | np.all(changes < 0, axis=1)
    return np.where(same, np.sign(changes[:, 0]) * np.abs(changes).min(axis=1), 0.0)


class EndNull:
    """Changes at the end of walks whose squared displacement per ∫η² is the same throughout, or rests before the end.

    With noise of single records it matters how fast the walk is that it hides: one as fast as that of all steps before
    the end, or (`slow`) one that has come to rest.
    """

    def __init__(self, motion: Motion, blocks: list[NDArray[np.intp]], jittery: bool, slow: bool) -> None:
        self._motion, self._blocks, self._jittery = motion, blocks, jittery
        self._generator = np.random.default_rng(_SEED)
        beside = np.diag(motion.increments, 1)
        late = np.concatenate(blocks[-4:-1])
        # of the tenths before the end, which decide: there a step is small against the noise
        self._jitter = max(-float(beside[late].mean()), 0.0) if jittery else 0.0
        end, time = blocks[-1][0], np.diff(motion.time)
        sizes = motion.moved
        if jittery:
            own = sizes[:end].sum() + 2 * beside[: end - 1].sum()
            self._even, self._scatter = max(float(own), 0.0) / time[:end].sum() * time, np.ones(1)
            if slow:
                self._even[late[0] :] *= _FLOOR
        else:
            rate = sizes[:end].sum() / time[:end].sum()
            smooth = np.concatenate([np.full(len(b), sizes[b].sum() / time[b].sum()) for b in blocks[:-1]])
            local = np.maximum(smooth * time[:end], np.finfo(float).tiny)
            self._even, self._scatter = rate * time, sizes[:end] / local

    def draw(self, factor: float = 1.0) -> NDArray[np.float64]:
        """Changes of one batch of walks, where the end moves `factor` times as far (squared)."""
        many = batch_size(len(self._motion.steps))
        faster = np.ones(len(self._even))
        faster[self._blocks[-1]] = factor
        if self._jittery:
            moved = self._even * faster
            walks = simulate_walks(self._motion, many, self._generator, moved=moved, jitter=self._jitter)
            return end_change(walks[:, 1:, 1:], self._motion, self._blocks, self._jittery)
        # Without noise of single records only the sizes of the steps matter. Those near each other stay together.
        count, run = len(self._even), len(self._motion.persistence) + 1
        starts = self._generator.integers(0, len(self._scatter), (many, -(-count // run)))
        chosen = (starts[:, :, None] + np.arange(run)).reshape(many, -1)[:, :count] % len(self._scatter)
        sizes = np.zeros((many, count, count))
        at = np.arange(count)
        sizes[:, at, at] = self._even * faster * self._scatter[chosen]
        return end_change(sizes, self._motion, self._blocks, self._jittery)
