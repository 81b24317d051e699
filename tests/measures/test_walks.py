"""Random walks like a history, held to walks of weights and to the formulas written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.measures.two_time import two_time
from pythia_dynamics.measures.walks import (
    Motion,
    batch_size,
    exceedance,
    integrated,
    integrated_over_time,
    simulate_walks,
    squared_displacements,
)

LENGTH, SIZE = 80, 3000


def increments(kind: str, generator: np.random.Generator) -> np.ndarray:
    moves = generator.standard_normal((LENGTH, SIZE))
    if kind == "persistent":
        for step in range(1, LENGTH):
            moves[step] = 0.9 * moves[step - 1] + np.sqrt(1 - 0.9**2) * moves[step]
    if kind.startswith("rank"):
        rank = int(kind[4:])
        moves = generator.standard_normal((LENGTH, rank)) @ generator.standard_normal((rank, SIZE)) / np.sqrt(rank)
    return moves


def frames(kind: str = "walk", seed: int = 0, jitter: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    path = 3 * generator.standard_normal(SIZE) + np.cumsum(increments(kind, generator), axis=0)
    return path + jitter * generator.standard_normal(path.shape)


def motion(weights: np.ndarray) -> Motion:
    return Motion.of(two_time(weights))


def test_the_inner_products_are_those_of_the_increments() -> None:
    weights = frames()
    found = motion(weights)
    vectors = np.concatenate([weights[:1], np.diff(weights, axis=0)])
    expected = vectors @ vectors.T
    assert found.size == SIZE
    np.testing.assert_allclose(found.products, expected, rtol=1e-4, atol=1e-5 * expected.max())
    apart = ((weights[:, None, ::50] - weights[None, :, ::50]) ** 2).shape
    assert apart == (LENGTH, LENGTH, SIZE // 50)
    for first, last in ((0, LENGTH - 1), (3, 4), (10, 40)):
        own = np.sum((weights[last] - weights[first]) ** 2)
        assert found.squared[first, last] == pytest.approx(own, rel=1e-4)


def test_both_displacements_are_those_of_the_measure() -> None:
    weights = frames()
    weights -= weights.mean(axis=1, keepdims=True)  # the null leaves out demeaning over the weights
    found, curves = motion(weights), msd(weights)
    np.testing.assert_allclose(integrated(found.products, SIZE), curves["msd"], rtol=1e-4)
    time = curves["msd_time"].to_numpy()
    np.testing.assert_allclose(integrated_over_time(found.products, SIZE), time, rtol=1e-3, atol=1e-6 * time.max())


def test_batches_give_what_single_walks_give() -> None:
    walks = simulate_walks(motion(frames()), 3, np.random.default_rng(1))
    for function in (lambda products: integrated(products, SIZE), squared_displacements):
        np.testing.assert_allclose(function(walks)[1], function(walks[1]), rtol=1e-9)


@pytest.mark.parametrize(("kind", "low", "high"), [("walk", 2000, 3000), ("rank3", 2.2, 4), ("rank10", 8, 12.5)])
def test_the_number_of_directions_is_found(kind: str, low: float, high: float) -> None:
    for seed in range(5):
        assert low <= motion(frames(kind, seed)).dimensions <= high


def test_one_direction_and_a_turn_of_one_part() -> None:
    direction = np.random.default_rng(0).standard_normal(SIZE)
    straight = np.arange(LENGTH)[:, None] * direction
    assert motion(straight).dimensions == pytest.approx(1, abs=0.05)
    half = frames()
    half[50:] = half[50] + straight[: LENGTH - 50]  # the last 30 increments have one direction
    assert motion(half).dimensions > 500


def test_persistence_and_jitter_are_measured() -> None:
    found = motion(frames("persistent"))
    np.testing.assert_allclose(found.persistence[:5], 0.9 ** np.arange(1, 6), atol=0.03)
    assert not len(motion(frames()).persistence) or motion(frames()).persistence[0] < 0.02
    noisy = motion(frames(jitter=3.0))
    assert noisy.jitter == pytest.approx(9 * SIZE, rel=0.1)
    assert not len(noisy.persistence)
    assert motion(frames("persistent")).jitter == 0


@pytest.mark.parametrize("kind", ["walk", "rank3", "persistent"])
def test_simulated_walks_are_like_the_weights(kind: str) -> None:
    """Their final displacement has the mean and the spread of many walks of weights."""
    walks = simulate_walks(motion(frames(kind)), 400, np.random.default_rng(2))
    ends = squared_displacements(walks)[:, 0, -1] / SIZE
    own = [np.mean(np.sum(increments(kind, np.random.default_rng(seed)), axis=0) ** 2) for seed in range(60)]
    assert ends.mean() == pytest.approx(np.mean(own), rel=0.25)
    # Persistent increments make fewer of the cosines small, so that the walks are drawn in fewer directions: the spread
    # is then greater than it should be, never smaller.
    assert 0.6 < np.log(ends).std() / np.log(own).std() < 2.5


def test_sizes_are_exact_and_can_be_given() -> None:
    found = motion(frames("rank3"))
    walks = simulate_walks(found, 4, np.random.default_rng(0))
    np.testing.assert_allclose(
        np.diagonal(walks, axis1=1, axis2=2), np.broadcast_to(np.diag(found.products), (4, LENGTH))
    )
    sizes = np.linspace(0, 2, LENGTH - 1)
    walks = simulate_walks(found, 4, np.random.default_rng(0), moved=sizes)
    np.testing.assert_allclose(
        np.diagonal(walks, axis1=1, axis2=2)[:, 1:], np.broadcast_to(sizes, (4, LENGTH - 1)), atol=1e-12
    )


def test_jitter_of_simulated_walks_does_not_add_up() -> None:
    found = motion(frames())
    walks = simulate_walks(found, 200, np.random.default_rng(0), moved=np.zeros(LENGTH - 1), jitter=5.0)
    apart = squared_displacements(walks).mean(axis=0)
    np.testing.assert_allclose(apart[0, 1:], 10, rtol=0.1)
    assert walks[:, 1:, 1:].diagonal(1, 1, 2).mean() == pytest.approx(-5, rel=0.05)


def test_time_is_the_integral_of_the_squared_learning_rate_where_it_is_known() -> None:
    steps = np.arange(1, LENGTH + 1) * 1000
    pairs = two_time(History.from_array(frames().astype(np.float32), steps))
    assert not Motion.of(pairs).rate_known
    np.testing.assert_array_equal(Motion.of(pairs).time, steps - 1000)
    known = Motion.of(pairs.assign_coords(learning_rate=("step", np.full(LENGTH, 2.0))))
    assert known.rate_known
    np.testing.assert_allclose(known.time, 4.0 * (steps - 1000))
    gap = np.full(LENGTH, 2.0)
    gap[[0, -1]] = np.nan  # a log that begins after the first checkpoint and ends before the last
    held = Motion.of(pairs.assign_coords(learning_rate=("step", gap)))
    assert held.rate_known
    assert held.rate_note == "the learning rate is taken from the nearest step at steps 1,000, 80,000"
    np.testing.assert_allclose(held.time, known.time)
    gap[-2] = np.nan
    found = Motion.of(pairs.assign_coords(learning_rate=("step", gap)))
    assert not found.rate_known
    assert "missing at steps 1,000, 79,000, 80,000" in found.rate_note


def test_missing_steps_are_left_out() -> None:
    weights = frames()
    pairs, present = two_time(weights), np.setdiff1d(np.arange(LENGTH), [5, 40])
    for name in ("displacement", "gram"):
        pairs[name][{"step": [5, 40]}] = np.nan
        pairs[name][{"other_step": [5, 40]}] = np.nan
    found, expected = Motion.of(pairs), Motion.of(two_time(weights[present]))
    np.testing.assert_allclose(found.products, expected.products, atol=1e-4 * expected.products.max())
    np.testing.assert_array_equal(found.steps, present)


def test_too_little_motion_is_an_error() -> None:
    with pytest.raises(PythiaDynError, match="2 steps are too few"):
        motion(frames()[:2])
    with pytest.raises(PythiaDynError, match="never move"):
        motion(np.ones((5, 7)))


def test_a_weight_that_rests_for_a_while_has_no_direction_then() -> None:
    weights = frames()
    weights[30:50] = weights[30]
    found = motion(weights)
    assert np.isnan(found.cosines[35]).all()
    assert found.dimensions > 2000
    assert np.isfinite(simulate_walks(found, 2, np.random.default_rng(0))).all()


def test_a_p_value_counts_the_walks_that_are_as_extreme() -> None:
    def draws(value: float, batch: int = 199):
        return repeat(np.full(batch, value))

    assert exceedance(1.0, draws(2.0))[0] == 1
    p, found = exceedance(3.0, draws(2.0))
    assert len(found) >= 1199
    assert p == pytest.approx(1 / (1 + len(found)))
    assert len(exceedance(1.0, draws(2.0))[1]) == 199
    assert exceedance(np.nan, draws(2.0))[0] == 1
    mixed = iter([np.r_[np.full(3, 9.0), np.zeros(196)], np.zeros(5000)])
    assert exceedance(5.0, mixed)[0] == pytest.approx(4 / 200)
    assert exceedance(5.0, iter([np.full(10, np.nan)]))[0] == pytest.approx(1 / 11)


def test_uniform_p_values_where_the_history_is_a_walk() -> None:
    values = []
    for seed in range(40):
        found = motion(frames("rank10", seed))
        walks = simulate_walks(found, 99, np.random.default_rng(seed))
        own, drawn = found.squared[0, -1], squared_displacements(walks)[:, 0, -1]
        values.append(np.mean(drawn >= own))
    assert 0.3 < np.mean(values) < 0.7
    assert min(values) < 0.2 < 0.8 < max(values)


def test_the_parts_of_a_motion_are_frozen() -> None:
    found = motion(frames())
    with pytest.raises(AttributeError):
        found.size = 3  # type: ignore[misc]
    assert replace(found, size=5).size == 5
    assert isinstance(two_time(frames()), xr.Dataset)


def test_batches_become_smaller_where_there_are_many_records() -> None:
    assert batch_size(143) == batch_size(3) == 200
    assert batch_size(10**5) == 1
    for records in (200, 400, 700, 1500):
        assert 0.5 * 64e6 < batch_size(records) * records**2 * 8 <= 64e6
