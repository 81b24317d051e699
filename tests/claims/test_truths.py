"""Histories and curves of known truth are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pythia_dynamics.claims import scorecard
from pythia_dynamics.claims.curve_truths import CURVE_TRUTHS, Noise, noise
from pythia_dynamics.claims.motions import BIFURCATION, grid_steps
from pythia_dynamics.claims.truths import DETECTORS, TRUTHS, Truth, select_truths, truth
from pythia_dynamics.errors import PythiaDynError, UnknownNameError


def drawn(name: str, records: int = 143, weights: int = 8192, seed: int = 1) -> np.ndarray:
    """The weights (T, N) of a history, as float64."""
    history = truth(name).history(seed, records, weights)
    return np.asarray(history.weights, dtype=np.float64).reshape(records, -1)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sum(first * second) / math.sqrt(np.sum(first**2) * np.sum(second**2)))


@pytest.mark.parametrize("name", TRUTHS)
def test_a_history_follows_from_its_seed(name: str) -> None:
    kind = truth(name)
    history, same, other = (kind.history(seed, 30, 512) for seed in (1, 1, 2))
    assert history.shape == (30, 32, 16)
    assert history.name == kind.model
    assert history.dtype == np.float16
    rate = history.coordinates.get("learning_rate")
    assert (rate is not None and bool(np.isfinite(rate).all())) == kind.tells_rate
    assert np.array_equal(history.weights, same.weights)
    assert not np.array_equal(history.weights, other.weights)
    assert (history.steps[0], history.steps[-1]) == (1 if kind.uneven else 1000, 143_000)


def test_the_steps_are_those_of_the_papers() -> None:
    assert grid_steps(143).tolist() == list(range(1000, 143_001, 1000))
    assert grid_steps(153, uneven=True).tolist() == [2**k for k in range(10)] + list(range(1000, 143_001, 1000))
    assert truth("walk-cosine").history(0).shape == (143, 128, 64)


@pytest.mark.parametrize("kinds", [TRUTHS, CURVE_TRUTHS])
def test_what_is_true_is_a_claim_or_a_detector(kinds: dict) -> None:
    known = {claim.id for claim in scorecard.CLAIMS} | set(DETECTORS)
    for kind in kinds.values():
        about: frozenset[str] = getattr(kind, "about", frozenset())
        assert not kind.effects & kind.open, kind.name
        assert kind.effects | kind.open | about <= known, kind.name


def test_every_bifurcation_claim_is_false_of_a_walk() -> None:
    walk = truth("walk-cosine")
    for claim in scorecard.CLAIMS:
        if claim.bifurcation:
            assert claim.id not in walk.effects


# -- motions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["walk-constant", "walk-cosine", "walk-warmup", "walk-rank-10", "walk-heavy-tailed"])
def test_a_walk_moves_in_proportion_to_the_learning_rate(name: str) -> None:
    w, rate = drawn(name), truth(name).history(1).coordinates["learning_rate"]
    moved = np.sum(np.diff(w, axis=0)[5:] ** 2, axis=1)
    square = (rate[5:-1] ** 2 + rate[6:] ** 2) / 2
    ratio = moved / square / np.mean(moved / square)
    tolerance = {"walk-rank-10": 7, "walk-heavy-tailed": 3}.get(name, 0.3)  # of a mean over few or heavy-tailed values
    assert ratio.min() > 1 / (1 + tolerance)
    assert ratio.max() < 1 + tolerance
    assert np.sum(np.diff(w, axis=0) ** 2) / w.shape[1] == pytest.approx(0.04**2, rel=0.35)


@pytest.mark.parametrize(
    ("name", "expected"), [("walk-cosine", 0), ("walk-persistent", 0.9), ("walk-persistent-95", 0.95)]
)
def test_the_memory_of_increments(name: str, expected: float) -> None:
    moves = np.diff(drawn(name), axis=0)
    found = [correlation(moves[i], moves[i + 1]) for i in range(len(moves) - 1)]
    assert np.median(found) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("rank", [3, 10])
def test_the_rank_of_a_walk(rank: int) -> None:
    values = np.linalg.svd(np.diff(drawn(f"walk-rank-{rank}"), axis=0), compute_uv=False)
    assert values[rank - 1] > 20 * values[rank]  # the rest is rounding to float16


def test_heavy_tails() -> None:
    moves = np.diff(drawn("walk-heavy-tailed"), axis=0)
    scaled = moves / moves.std(axis=1, keepdims=True)
    assert np.mean(np.abs(scaled) > 5) > 1e-3  # a Gaussian has 6e-7


@pytest.mark.parametrize("time", [5, 20, 50])
def test_the_equilibrium(time: int) -> None:
    w = drawn(f"ou-{time}")
    assert np.ptp(w.std(axis=1)) < 0.1 * w.std()
    growth = [np.mean([np.mean((w[i] - w[i + lag]) ** 2) for i in range(143 - lag)]) for lag in (time, 1)]
    assert growth[0] / growth[1] == pytest.approx((1 - math.exp(-1)) / (1 - math.exp(-1 / time)), rel=0.05)


def test_drift_relaxation_and_return() -> None:
    for name in ("drift", "relaxation"):
        w = drawn(name)
        assert correlation(w[40] - w[0], w[140] - w[0]) > 0.95
    relaxed, drifted = drawn("relaxation"), drawn("drift")
    assert np.linalg.norm(relaxed[142] - relaxed[100]) < 0.15 * np.linalg.norm(relaxed[142] - relaxed[0])
    assert np.linalg.norm(drifted[60] - drifted[0]) > 0.5 * np.linalg.norm(drifted[142] - drifted[0])
    w = drawn("return")
    away = np.linalg.norm(w - w[0], axis=1)
    assert away[-1] < 0.2 * away.max()


def test_a_rotation_keeps_its_norm_and_turns_by_three_quarters() -> None:
    w = drawn("rotation")
    norm = np.linalg.norm(w, axis=1)
    assert np.ptp(norm) < 0.03 * norm[0]
    cosine = w @ w[0] / norm / norm[0]
    assert cosine.min() < -0.99
    assert cosine[-1] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("jitter", [2, 5])
def test_noise_of_single_records(jitter: int) -> None:
    plain, noisy = (np.diff(drawn(name), axis=0) for name in ("walk-constant", f"walk-jitter-{jitter}"))
    added = np.mean(noisy**2) - np.mean(plain**2)
    assert added / np.mean(plain**2) == pytest.approx(2 * jitter**2, rel=0.05)


@pytest.mark.parametrize("percent", [5, 15, 30])
@pytest.mark.parametrize("part", ["all", "half"])
def test_a_split_has_two_modes_after_it(part: str, percent: int) -> None:
    w, before = drawn(f"split-{part}-{percent}"), np.flatnonzero(grid_steps(143) < BIFURCATION)[-1]
    assert w[before].std() < 0.03
    end = w[-1] / 0.06
    near = np.abs(np.abs(end) - 1) < 3.5 * percent / 100
    if part == "all":
        assert near.mean() > 0.99
        assert np.mean(end[near] > 0) == pytest.approx(0.5, abs=0.03)
        assert (np.abs(end[near]) - 1).std() == pytest.approx(percent / 100, rel=0.1)
    else:
        assert np.mean(np.abs(end) > 0.75) == pytest.approx(0.47, abs=0.06)


def test_the_asymmetric_split_and_the_story() -> None:
    w = drawn("split-asymmetric")
    assert np.median(w[-1][w[-1] > 0.04]) == pytest.approx(0.09, rel=0.02)
    assert np.median(w[-1][w[-1] < 0]) == pytest.approx(-0.03, rel=0.05)
    story = drawn("story")
    assert np.allclose(np.abs(story[-1]), 0.06, rtol=1e-3)
    assert np.array_equal(story[-1], story[110])
    assert correlation(story[82] - story[80], story[86] - story[84]) > 0.99


def test_a_plateau_is_at_rest() -> None:
    still, noisy = drawn("plateau"), drawn("plateau-jitter")
    assert (still[79:] == still[79]).all()
    assert not (still[78] == still[79]).all()
    step = 0.04 / math.sqrt(142)
    assert np.std(noisy[100] - noisy[140]) == pytest.approx(math.sqrt(2) * step, rel=0.05)


def test_the_faster_end() -> None:
    moves = [np.sum(np.diff(drawn(name), axis=0) ** 2, axis=1) for name in ("faster-end", "walk-cosine")]
    ratio = moves[0] / moves[1]
    assert ratio[:127] == pytest.approx(1, abs=0.01)
    assert ratio[128:] == pytest.approx(4, rel=0.05)
    assert truth("faster-end").model == "pythia-410m-deduped"


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(UnknownNameError, match="walk-cosin"):
        truth("walk-cosin")
    with pytest.raises(PythiaDynError, match="at least 3 records"):
        truth("drift").history(0, 2)
    with pytest.raises(PythiaDynError, match="multiple of their width 16; got 1001"):
        truth("drift").history(0, 5, 1001)
    with pytest.raises(PythiaDynError, match="multiple of their width"):
        truth("drift").history(0, 5, 1)


def test_truths_by_glob() -> None:
    assert select_truths(["ou-*", "drift"], list(TRUTHS)) == ("ou-5", "ou-20", "ou-50", "drift")
    with pytest.raises(UnknownNameError, match="oo-"):
        select_truths(["drift", "oo-*"], list(TRUTHS))
    assert isinstance(TRUTHS["drift"], Truth)


# -- curves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CURVE_TRUTHS)
@pytest.mark.parametrize("records", [41, 143])
def test_a_curve_follows_from_its_seed(name: str, records: int) -> None:
    kind = CURVE_TRUTHS[name]
    tables, same, other = (kind.tables(seed, records) for seed in (1, 1, 2))
    for file, table in tables.items():
        assert table.equals(same[file])
        assert not table.equals(other[file])
        assert table.sizes["step"] == records
    assert kind.effects | kind.open <= kind.about


@pytest.mark.parametrize(("kind", "expected"), [("white", 0), ("ar6", 0.6), ("ar9", 0.9)])
def test_noise(kind: str, expected: float) -> None:
    values = Noise(kind, 3).draw(np.random.default_rng(0), 100_000)  # type: ignore[arg-type]
    assert values.std() == pytest.approx(3, rel=0.02)
    assert np.corrcoef(values[1:], values[:-1])[0, 1] == pytest.approx(expected, abs=0.01)


def test_a_walk_as_noise_moves_by_its_size_in_ten_records() -> None:
    walks = np.array([noise(np.random.default_rng(seed), 50, "walk") for seed in range(2000)])
    assert np.std(walks[:, 30] - walks[:, 20]) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("share", [20, 40])
@pytest.mark.parametrize("width", [1, 5, 20, 40])
@pytest.mark.parametrize("records", [41, 143])
def test_a_drop(share: int, width: int, records: int) -> None:
    dropped = CURVE_TRUTHS[f"perplexity-drop-{share}-over-{width}-ar6"].tables(3, records)
    smooth = CURVE_TRUTHS["perplexity-smooth-ar6"].tables(3, records)
    for file, table in dropped.items():
        ratio = (table["ppl_corpus"] / smooth[file]["ppl_corpus"]).to_numpy()
        steps = table["step"].to_numpy()
        assert ratio[steps < BIFURCATION - 500 * width] == pytest.approx(1)
        assert ratio[steps >= BIFURCATION + 500 * (width - (width == 1))] == pytest.approx(1 - share / 100)
        assert np.log(table["ppl_corpus"].to_numpy()) == pytest.approx(table["nll_mean"].to_numpy())
    names = ("rank-drop-40-over-5-ar6", "rank-smooth-ar6")
    rank, before = (CURVE_TRUTHS[name].tables(3)["rank.csv"]["rank"].to_numpy()[-1] for name in names)
    assert rank / before == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("factor", [2, 4, 10])
@pytest.mark.parametrize("kind", ["steeper", "flatter"])
def test_a_kink(kind: str, factor: int) -> None:
    table = CURVE_TRUTHS[f"loss-{kind}-{factor}-white"].tables(4)["order.csv"]
    b, loss = table["order_parameter"].to_numpy(), table["loss"].to_numpy()
    first, second = (np.polyfit(b[at], loss[at], 1)[0] for at in (b < 0.17, b > 0.18))
    assert second / first == pytest.approx(factor if kind == "steeper" else 1 / factor, rel=0.15)
    assert loss[0] - loss[-1] == pytest.approx(2.6, abs=0.1)


@pytest.mark.parametrize("shape", ["exponential", "power", "quadratic", "logistic"])
def test_a_smooth_loss_is_convex_and_falls(shape: str) -> None:
    curves = [CURVE_TRUTHS[f"loss-{shape}-white-0.003"].tables(seed)["order.csv"] for seed in range(200)]
    b, loss = curves[0]["order_parameter"].to_numpy(), np.mean([each["loss"] for each in curves], axis=0)
    slope = np.diff(loss[::10]) / np.diff(b[::10])
    assert (slope < 0.03).all()
    assert (np.diff(slope) > -0.03).all()


@pytest.mark.parametrize("percent", [10, 20])
def test_a_loss_that_rises(percent: int) -> None:
    loss = CURVE_TRUTHS[f"loss-rises-{percent}"].tables(0)["order.csv"]["loss"].to_numpy()
    assert (loss[-1] - loss.min()) / (4.2 - 1.6) == pytest.approx(percent / 100, abs=0.02)
