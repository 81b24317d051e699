"""Misplaced steps are found by their distances; paths that oscillate, turn or move in few directions are not blamed.

`benchmarks/misplaced.py` does the same on many more paths, and on models that are trained.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pythia_dynamics.sweep.misplaced import Misplaced, find_misplaced

Frames = NDArray[np.float64]
STEPS, WEIGHTS = 60, 1024


def search(frames: Frames) -> list[Misplaced]:
    """The finding by the formula: the distance of every pair, one by one."""
    squared = np.array([[((one - other) ** 2).sum() for other in frames] for one in frames])
    return find_misplaced(squared, ((frames - frames.mean(axis=1, keepdims=True)) ** 2).sum(axis=1), frames.shape[1])


def places(frames: Frames) -> list[tuple[int, ...]]:
    return [item.places for item in search(frames)]


def walk(seed: int, steps: int = STEPS) -> Frames:
    generator = np.random.default_rng(seed)
    sizes = 0.55 + 0.45 * np.cos(np.pi * np.arange(steps) / steps)
    return 5 * generator.standard_normal(WEIGHTS) + np.cumsum(
        sizes[:, None] * generator.standard_normal((steps, WEIGHTS)), axis=0
    )


def ballistic(seed: int, steps: int = STEPS) -> Frames:
    generator = np.random.default_rng(seed)
    start, velocity = generator.standard_normal((2, WEIGHTS))
    noise = 0.02 * generator.standard_normal((steps, WEIGHTS))
    return start + 0.1 * np.arange(steps)[:, None] * velocity + noise


def uneven(seed: int, steps: int = STEPS) -> Frames:
    """At 0, 1, 2, 4 … and then evenly."""
    generator = np.random.default_rng(seed)
    at = np.concatenate([[0], 2.0 ** np.arange(8), 256 * np.arange(1, steps - 8)])
    moves = np.sqrt(np.diff(at, prepend=0))[:, None] * generator.standard_normal((steps, WEIGHTS))
    return 40 * generator.standard_normal(WEIGHTS) + np.cumsum(moves, axis=0)


def opposed(seed: int, *, stationary: bool, steps: int = STEPS) -> Frames:
    generator = np.random.default_rng(seed)
    moves = generator.standard_normal((steps, WEIGHTS))
    for step in range(1, steps):
        moves[step] = 0.6 * moves[step] - 0.8 * moves[step - 1]
    return moves if stationary else 3 * generator.standard_normal(WEIGHTS) + np.cumsum(moves, axis=0)


def few_directions(seed: int, rank: int) -> Frames:
    generator = np.random.default_rng(seed)
    return np.cumsum(generator.standard_normal((STEPS, rank)), axis=0) @ generator.standard_normal((rank, WEIGHTS))


def rotation(seed: int) -> Frames:
    angle = np.linspace(0, 5 * np.pi, STEPS)[:, None]
    one, other = np.random.default_rng(seed).standard_normal((2, WEIGHTS))
    made: Frames = np.cos(angle) * one + np.sin(angle) * other
    return made


def late_oscillation(seed: int) -> Frames:
    frames = walk(seed)
    frames[STEPS // 2 :] += 2 * opposed(seed + 100, stationary=True, steps=STEPS - STEPS // 2)
    return frames


CLEAN: dict[str, Callable[[int], Frames]] = {
    "walk": walk,
    "ballistic": ballistic,
    "uneven": uneven,
    "anti-correlated walk": lambda seed: opposed(seed, stationary=False),
    "anti-correlated, stationary": lambda seed: opposed(seed, stationary=True),
    "one direction": lambda seed: few_directions(seed, 1),
    "three directions": lambda seed: few_directions(seed, 3),
    "ten directions": lambda seed: few_directions(seed, 10),
    "rotation": rotation,
    "noise": lambda seed: np.random.default_rng(seed).standard_normal((STEPS, WEIGHTS)),
    "late oscillation": late_oscillation,
    "five steps": lambda seed: walk(seed, 5),
}


@pytest.mark.parametrize("name", CLEAN)
def test_a_path_as_it_should_be_is_not_blamed(name: str) -> None:
    assert [places(CLEAN[name](seed)) for seed in range(5)] == [[]] * 5


@pytest.mark.parametrize("path", [walk, ballistic, uneven])
@pytest.mark.parametrize("apart", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 5, 30])
def test_near_steps_that_are_exchanged(path: Callable[[int], Frames], apart: int, first: int) -> None:
    frames = path(first)
    frames[[first, first + apart]] = frames[[first + apart, first]]
    (found,) = search(frames)
    assert (found.kind, found.places) == ("exchanged", (first, first + apart))
    now, repaired = found.distances
    assert now > 1.1 * repaired


@pytest.mark.parametrize("path", [walk, ballistic, uneven])
def test_the_last_two_steps_exchanged(path: Callable[[int], Frames]) -> None:
    frames = path(1)
    frames[[-2, -1]] = frames[[-1, -2]]
    assert places(frames) == [(STEPS - 2, STEPS - 1)]


@pytest.mark.parametrize("path", [walk, ballistic, uneven])
@pytest.mark.parametrize("length", [1, 5, 8, 12])
def test_runs_of_the_last_steps(path: Callable[[int], Frames], length: int) -> None:
    frames = path(length)
    made = frames[: STEPS - length].copy()
    made[20 : 20 + length] = frames[STEPS - length :]
    (found,) = search(made)
    assert (found.kind, found.places) == ("stretch", tuple(range(20, 20 + length)))
    assert found.beside == (19, 20 + length)
    expected = [np.linalg.norm(made[i] - made[j]) for i, j in ((19, 20), (19 + length, 20 + length), (19, 20 + length))]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-9)


@pytest.mark.parametrize("path", [walk, ballistic, uneven])
@pytest.mark.parametrize("place", [0, 25, STEPS - 1])
def test_a_step_of_another_training(path: Callable[[int], Frames], place: int) -> None:
    frames = path(1)
    frames[place] = path(2)[place]
    assert places(frames) == [(place,)]


@pytest.mark.parametrize("path", [walk, ballistic, uneven])
@pytest.mark.parametrize(("place", "source"), [(0, 40), (STEPS - 1, 15)])
def test_an_end_from_the_middle(path: Callable[[int], Frames], place: int, source: int) -> None:
    frames = path(3)
    frames[place] = frames[source]
    made = np.delete(frames, source, axis=0)
    (found,) = search(made)
    assert (found.kind, found.places) == ("end", (place if place == 0 else STEPS - 2,))


def test_several_faults_at_once() -> None:
    frames = walk(4)
    frames[[10, 11]] = frames[[11, 10]]
    frames[25] = walk(5)[25]
    frames[[40, 42]] = frames[[42, 40]]
    assert places(frames) == [(10, 11), (25,), (40, 42)]


def test_equal_steps_are_left_out() -> None:
    frames = walk(6)
    frames[12] = frames[10]
    frames[30] = frames[50]
    assert places(frames) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_too_few_steps_say_nothing(count: int) -> None:
    assert search(np.random.default_rng(0).standard_normal((count, 8))) == []


def test_weights_that_never_change_say_nothing() -> None:
    assert search(np.ones((10, 8))) == []
