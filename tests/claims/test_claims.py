"""Verdicts on histories whose truth is known, put through the real measurements."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.saved_results import save_table

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.claims import saved, statistics
from pythia_dynamics.claims import scorecard as claims
from pythia_dynamics.claims.verdict import VERDICTS, Verdict
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.bifurcation import first_lasting
from pythia_dynamics.measures.rank import covariance_rank
from pythia_dynamics.measures.two_time import two_time
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure

LENGTH, ROWS, WIDTH = 60, 500, 12
STEPS = np.arange(1, LENGTH + 1) * 1000
AT = 33  # index of what is planted
BIFURCATION = {claim.id for claim in claims.CLAIMS if claim.bifurcation}

Frames = Callable[[np.random.Generator], np.ndarray]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured as always; drawing it takes ten times as long and is tested elsewhere."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [])


def walk(generator: np.random.Generator) -> np.ndarray:
    return np.cumsum(generator.normal(size=(LENGTH, ROWS, WIDTH)), axis=0)


def noisy(generator: np.random.Generator, path: np.ndarray, sd: float = 0.02) -> np.ndarray:
    return path + sd * generator.normal(size=path.shape)


def ballistic(generator: np.random.Generator) -> np.ndarray:
    start, velocity = generator.normal(size=(2, 1, ROWS, WIDTH))
    return noisy(generator, start + 0.1 * velocity * np.arange(LENGTH)[:, None, None])


def pulled_back(generator: np.random.Generator) -> np.ndarray:
    """Ornstein-Uhlenbeck, in its stationary state from the start."""
    frames = [generator.normal(size=(ROWS, WIDTH))]
    for _ in range(LENGTH - 1):
        frames.append(0.8 * frames[-1] + 0.6 * generator.normal(size=(ROWS, WIDTH)))
    return np.array(frames)


def flip(generator: np.random.Generator, *, bimodal: bool = True) -> np.ndarray:
    """Every weight crosses zero around `AT`, in five steps, and stays at ±1 after it (or at the size it had)."""
    start = generator.normal(size=(1, ROWS, WIDTH))
    gone = 1 / (1 + np.exp(-(np.arange(LENGTH) - AT)[:, None, None]))
    target = -np.sign(start) if bimodal else -start
    return noisy(generator, (1 - gone) * start + gone * target, 0.05)


def jump(generator: np.random.Generator) -> np.ndarray:
    """One leap in a direction of its own, far longer than all other steps: what a walk with such a step would do."""
    frames = np.repeat(generator.normal(size=(1, ROWS, WIDTH)), LENGTH, axis=0)
    frames[AT:] += 3 * generator.normal(size=(ROWS, WIDTH))
    return noisy(generator, frames)


def verdicts(directory: Path, frames: np.ndarray, name: str = "suite", **tables: xr.Dataset) -> Mapping[str, str]:
    results = Results(name, directory)
    history = History.from_array(frames.astype(np.float32), STEPS, name=name, tensor=EMBED_OUT)
    measure(history, ("density", "msd", "order"), results)
    results.weights().write_zarr("two_time", two_time(history))
    for kind, table in tables.items():
        write(results, f"perplexity-{kind.replace('_', '-')}", table)
    return {verdict.claim: verdict.verdict for verdict in claims.judge(results)}


def write(results: Results, kind: str, table: xr.Dataset) -> None:
    folder = results.path if kind.startswith("perplexity") else results.weights().path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.csv").write_text(table.to_dataframe().to_csv())


def scores(ppl: np.ndarray, steps: np.ndarray = STEPS) -> xr.Dataset:
    columns = {"ppl_corpus": ppl, "ppl_mean": ppl, "ppl_median": ppl, "nll_mean": np.log(ppl)}
    columns |= {"sentences": np.full(len(ppl), 9), "nonfinite": np.zeros(len(ppl)), "overflow": np.zeros(len(ppl))}
    return xr.Dataset({name: ("step", values) for name, values in columns.items()}, {"step": steps})


def curve(drop: float = 0.0, *, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """A perplexity that falls smoothly, with a sudden drop at `AT` on top."""
    smooth = 4 * np.exp(-np.arange(LENGTH) / 20) + 3
    return np.exp(smooth - drop * (np.arange(LENGTH) >= AT) + noise * np.random.default_rng(seed).normal(size=LENGTH))


# -- histories of known truth ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_supports_no_claim_about_a_bifurcation(tmp_path: Path, seed: int) -> None:
    found = verdicts(
        tmp_path,
        walk(np.random.default_rng(seed)),
        forward=scores(curve(0.5 * (seed % 2))),
        unmask=scores(curve(0.5 * (seed % 2))),
    )
    assert {claim for claim in BIFURCATION if found[claim] == "supported"} == set()
    assert [found[claim] for claim in ("msd-peak", "msd-time-peak", "density-bimodal")] == ["not supported"] * 3
    assert found["stationary"] == "not testable here"
    assert found["ternary-density"] == "not supported"


@pytest.mark.parametrize("frames", [ballistic, pulled_back, jump])
def test_drift_pull_and_a_single_leap_are_no_bifurcation(tmp_path: Path, frames: Frames) -> None:
    found = verdicts(tmp_path, frames(np.random.default_rng(0)), forward=scores(curve(0.5)))
    assert found["msd-peak"] == found["msd-time-peak"] == "not supported"
    assert {claim for claim in BIFURCATION if found[claim] == "supported"} == set()


def test_a_planted_bifurcation_is_found_where_it_is(tmp_path: Path) -> None:
    found = verdicts(
        tmp_path, flip(np.random.default_rng(0)), forward=scores(curve(0.5)), unmask=scores(curve(noise=0.02))
    )
    assert found["msd-peak"] == "supported"
    assert found["density-bimodal"] == "supported"
    assert found["stationary"] == "supported"
    assert found["perplexity-drops"] == "supported"
    assert found["unmasking-drops"] == "not supported"  # none was planted there
    assert found["perplexity-below-one"] == "not supported"
    assert found["ternary-density"] == "supported"
    assert found["stop-when-stationary"] == "not supported"  # the loss goes on falling
    by_name = {verdict.claim: verdict for verdict in claims.judge(Results("suite", tmp_path))}
    for claim, number in (("msd-peak", "peak_step"), ("density-bimodal", "bimodal_since")):
        assert by_name[claim].numbers[number] == pytest.approx(STEPS[AT], abs=3000)
    assert by_name["density-bimodal"].numbers["dip_p_last"] < 0.01
    assert by_name["perplexity-drops"].numbers["change"] == pytest.approx(np.exp(-0.5) - 1, abs=0.05)


def test_a_peak_alone_does_not_make_the_density_bimodal(tmp_path: Path) -> None:
    found = verdicts(tmp_path, flip(np.random.default_rng(1), bimodal=False), forward=scores(curve()))
    assert found["msd-peak"] == "supported"
    assert found["density-bimodal"] == found["perplexity-drops"] == found["ternary-density"] == "not supported"


def test_the_weights_may_go_on_moving_after_the_peak(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    moving = flip(generator)
    moving[AT:] += 0.05 * np.cumsum(generator.normal(size=moving[AT:].shape), axis=0)
    found = verdicts(tmp_path, moving, forward=scores(curve()))
    assert found["msd-peak"] == "supported"
    assert found["stationary"] == "not supported"
    assert found["stop-when-stationary"] == "not testable here"


def test_the_paper_s_step_is_looked_at_where_there_is_no_peak(tmp_path: Path) -> None:
    results = Results("pythia-70m-deduped", tmp_path)
    steps = np.arange(1000, 143_001, 1000)
    rising = np.arange(1.0, 144.0) ** 2
    save_table(
        results,
        "msd",
        xr.Dataset(
            dict.fromkeys(("msd", "msd_null", "msd_time", "msd_time_null", "displacement"), ("step", rising)),
            {"step": steps},
        ),
    )
    norm = np.linspace(100, 200, 143)
    order = {"frobenius_norm": norm, "order_parameter": norm / 512, "rms": norm / np.sqrt(512 * 50304)}
    save_table(results, "order", xr.Dataset({name: ("step", v) for name, v in order.items()}, {"step": steps}))
    smooth = 50 * np.exp(-steps / 30_000) + 80
    write(results, "perplexity-forward", scores(np.where(steps > 80_000, smooth * 0.7, smooth), steps))
    found = {verdict.claim: verdict for verdict in claims.judge(results)}
    assert saved.SavedResults(results).shape == saved.Shape(rows=50304, width=512)
    assert found["msd-peak"].verdict == "not supported"
    assert found["perplexity-drops"].verdict == "supported"
    numbers = found["perplexity-drops"].numbers
    assert numbers["bifurcation_step"] == 80_000
    assert numbers["steps"] == 143
    assert "steps of perplexity-forward.csv" not in found["perplexity-drops"].reason
    few = steps % 2000 == 0
    write(results, "perplexity-forward", scores(np.where(steps > 80_000, smooth * 0.7, smooth)[few], steps[few]))
    found = {verdict.claim: verdict for verdict in claims.judge(results)}
    assert found["perplexity-drops"].numbers["steps"] == 71
    assert "; 71 steps of perplexity-forward.csv, 143 of the weights" in found["perplexity-drops"].reason
    assert numbers["published_before_step"] <= 80_000
    assert numbers["published_last"] > numbers["published_best"]  # EleutherAI's own: late training hurts


def test_a_peak_elsewhere_than_in_the_paper_is_not_the_paper_s(tmp_path: Path) -> None:
    history = History.from_array(flip(np.random.default_rng(0)).astype(np.float32), STEPS)
    for name, expected in (("suite", "supported"), ("pythia-160m-deduped", "not supported")):
        measure(history, ("msd", "order"), Results(name, tmp_path))
        by_id = {verdict.claim: verdict.verdict for verdict in claims.judge(Results(name, tmp_path))}
        assert by_id["msd-peak"] == expected


# -- perplexity and loss --------------------------------------------------------------------------------------


def judge_one(directory: Path, claim: str, **tables: xr.Dataset) -> Verdict:
    results = Results("suite", directory)
    for kind, table in tables.items():
        write(results, kind.replace("_", "-"), table)
    return next(verdict for verdict in claims.judge(results) if verdict.claim == claim)


def test_values_below_one_are_named_as_errors_never_as_support(tmp_path: Path) -> None:
    spoilt = scores(np.r_[curve()[:-1], 1e-18])
    found = judge_one(tmp_path, "perplexity-below-one", perplexity_forward=spoilt)
    assert found.verdict == "not supported"
    assert "forward 1e-18" in found.reason
    assert found.numbers["least_forward"] == 1e-18
    # Nor do they make a drop.
    assert judge_one(tmp_path, "perplexity-drops").verdict == "not testable here"


def order_table(b: np.ndarray, loss: np.ndarray) -> xr.Dataset:
    return xr.Dataset(
        {
            "frobenius_norm": ("step", b * WIDTH),
            "order_parameter": ("step", b),
            "rms": ("step", b * WIDTH / np.sqrt(ROWS * WIDTH)),
            "loss": ("step", loss),
        },
        {"step": np.arange(1, len(b) + 1)},
    )


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (np.linspace(0.1, 1, 40), "supported"),
        (np.linspace(1, 0.1, 40), "not supported"),
        (np.r_[np.linspace(0.1, 1, 30), np.linspace(1, 0.9, 10)], "not supported"),
    ],
)
def test_b_must_not_fall(tmp_path: Path, b: np.ndarray, expected: str) -> None:
    assert judge_one(tmp_path, "b-monotone", order=order_table(b, 5 - b)).verdict == expected


def test_loss_against_b(tmp_path: Path) -> None:
    b, noise = np.linspace(0.1, 1, 80), 0.01 * np.random.default_rng(0).normal(size=80)
    straight, smooth = 5 - 2 * b, 3 + 2 * np.exp(-3 * b)
    kinked = 5 - 6 * np.minimum(b, 0.5) - 0.5 * np.maximum(b - 0.5, 0)
    turned = 5 - 6 * np.minimum(b, 0.5) + 3 * np.maximum(b - 0.5, 0)
    for loss, falls, changes in (
        (straight, "supported", "not supported"),
        (smooth, "supported", "not supported"),  # bends everywhere, breaks nowhere
        (kinked, "supported", "supported"),
        (turned, "not supported", "supported"),
    ):
        table = order_table(b, loss + noise)
        assert judge_one(tmp_path, "loss-falls-with-b", order=table).verdict == falls
        assert judge_one(tmp_path, "slope-changes", order=table).verdict == changes


def test_a_rank_that_drops_with_the_peak(tmp_path: Path) -> None:
    history = History.from_array(flip(np.random.default_rng(0)).astype(np.float32), STEPS)
    results = Results("suite", tmp_path)
    measure(history, ("msd", "order"), results)
    save_table(results, "rank", covariance_rank(history, batch_sizes=(16, 32), draws=2))
    table = results.weights().read_table("rank")
    for drop, expected in ((5.0, "supported"), (0.0, "not supported")):
        level = xr.DataArray(12.0 - drop * (STEPS[AT] <= STEPS), dims="step", coords={"step": STEPS})
        save_table(results, "rank", table.assign(rank=level.broadcast_like(table["rank"])))
        found = next(verdict for verdict in claims.judge(results) if verdict.claim == "rank-shrinks")
        assert found.verdict == expected
    save_table(results, "rank", table.assign(rank=xr.full_like(table["rank"], 63)))
    full = next(verdict for verdict in claims.judge(results) if verdict.claim == "rank-shrinks")
    assert full.verdict == "not testable here"
    assert "ceiling" in full.reason


def test_three_valued_heads(tmp_path: Path) -> None:
    results, steps = Results("suite", tmp_path), np.array([STEPS[-1]])
    write(results, "perplexity-forward", scores(curve()))
    assert judge_one(tmp_path, "ternary-function").verdict == "not testable here"
    for factor, expected in ((1.02, "supported"), (1.5, "not supported")):
        write(Results("ternary", results.path), "perplexity-forward", scores(curve()[-1:] * factor, steps))
        (results.path / "ternary" / "perplexity-forward.json").write_text('{"settings": {"head": "ternary"}}')
        assert judge_one(tmp_path, "ternary-function").verdict == expected


# -- the file -------------------------------------------------------------------------------------------------


def test_claims_json_comes_back(tmp_path: Path) -> None:
    results = Results("suite", tmp_path)
    with pytest.raises(PythiaDynError, match="no results in"):
        claims.judge(results)
    assert claims.read(results) is None
    write(results, "perplexity-forward", scores(curve()))
    made = claims.judge(results)
    path = claims.save(results, made)
    assert claims.read(results) == made
    entries = json.loads(path.read_text())["claims"]
    assert [entry["claim"] for entry in entries] == [claim.id for claim in claims.CLAIMS]
    assert all(entry["test"] and entry["tolerance"] and entry["figure"] and entry["reason"] for entry in entries)
    assert {entry["verdict"] for entry in entries} <= set(VERDICTS)


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    results = Results("suite", tmp_path)
    columns = ("msd", "msd_null", "msd_time", "msd_time_null", "displacement")
    write(results, "msd", xr.Dataset(dict.fromkeys(columns, ("step", np.ones(60))), {"step": STEPS}))
    reasons = {verdict.claim: verdict.reason for verdict in claims.judge(results)}
    no_order = "order.csv is missing: run pythia-dyn order --model suite"
    no_density = "density.zarr is missing: run pythia-dyn density --model suite"
    no_perplexity = "perplexity-forward.csv is missing: run pythia-dyn perplexity --mode forward --model suite"
    assert reasons["msd-peak"] == reasons["msd-time-peak"] == reasons["stationary"] == no_order
    assert reasons["b-monotone"] == reasons["loss-falls-with-b"] == reasons["slope-changes"] == no_order
    assert reasons["stop-when-stationary"] == no_order
    assert reasons["density-bimodal"] == f"{no_density}; {no_order}"
    assert reasons["ternary-density"] == no_density
    assert reasons["perplexity-drops"] == reasons["perplexity-below-one"] == no_perplexity
    assert reasons["ternary-function"].startswith(f"{no_perplexity}; ternary/perplexity-forward.csv is missing: run ")
    assert reasons["rank-shrinks"] == "rank.csv is missing: run pythia-dyn rank --model suite"
    assert all("is missing" in reason for reason in reasons.values())
    history = History.from_array(flip(np.random.default_rng(0)).astype(np.float32), STEPS, tensor=EMBED_OUT)
    measure(history, ("msd", "order"), results)
    reasons = {verdict.claim: verdict.reason for verdict in claims.judge(results)}
    no_pairs = "two_time.zarr is missing: run pythia-dyn two-time --model suite"
    assert reasons["stationary"] == reasons["stop-when-stationary"] == no_pairs
    assert reasons["slope-changes"].startswith(
        "order.csv has no loss at six steps of different b: run pythia-dyn order"
    )


def test_the_commands_that_make_the_files_exist(tmp_path: Path) -> None:
    read = saved.SavedResults(Results("suite", tmp_path))
    files = ("density.zarr", "msd.csv", "order.csv", "rank.csv", "two_time.zarr", "ternary/perplexity-forward.csv")
    for file in (*files, "perplexity-forward.csv", "perplexity-unmask.csv"):
        assert read.command_for(file).split()[1] in main.commands, file


def test_missing_steps_leave_the_verdicts_as_they_are(tmp_path: Path) -> None:
    frames = flip(np.random.default_rng(0)).astype(np.float32)
    gone = {int(step): "lost" for step in STEPS[[4, 20, AT + 6]]}
    results = Results("suite", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = History.from_array(frames, STEPS, missing=gone)
        measure(history, ("density", "msd", "order"), results)
    found = {verdict.claim: verdict.verdict for verdict in claims.judge(results)}
    assert found["msd-peak"] == found["density-bimodal"] == "supported"


# -- statistics against analytic truth ------------------------------------------------------------------------


def test_rounding_to_three_values_costs_what_it_should() -> None:
    generator = np.random.default_rng(0)
    for sample, expected in (
        (generator.normal(size=200_000), 0.190),
        (generator.uniform(-1, 1, 200_000), 1 / 9),
        (generator.choice([-2.0, 0.0, 2.0], 1000), 0.0),
        (generator.choice([-0.5, 0.5], 1000), 0.0),
        (np.zeros(10), 0.0),
    ):
        values, counts = np.unique(sample, return_counts=True)
        assert statistics.ternary_error(values, counts.astype(float))[1] == pytest.approx(expected, abs=0.002)


def test_second_modes_are_told_from_noise() -> None:
    generator = np.random.default_rng(0)
    for n in (400, 50_000):
        for _ in range(20):
            values, counts = np.unique(generator.normal(size=n).round(3), return_counts=True)
            assert statistics.second_mode(values, counts.astype(float), n) < 1
    apart = np.r_[generator.normal(-1, 0.3, 5000), generator.normal(1, 0.3, 5000)]
    values, counts = np.unique(apart.round(3), return_counts=True)
    assert statistics.second_mode(values, counts.astype(float), 500) > 1
    assert statistics.second_mode(np.array([1.0]), np.array([7.0]), 500) == 0


def test_a_change_is_measured_beyond_the_trend() -> None:
    steps = np.arange(100) * 10
    trend = 3.0 - 0.02 * np.arange(100, dtype=np.float64)
    assert statistics.level_shift_at(saved.Curve(steps, trend), 500, within=100).value == pytest.approx(0, abs=1e-12)
    dropped = saved.Curve(steps, trend - 2.0 * (steps >= 480))
    found = statistics.level_shift_at(dropped, 500, within=100)
    assert found.step == 480
    assert found.value == pytest.approx(-2.0, rel=0.15)
    assert found.elsewhere == pytest.approx(0, abs=1e-9)
    assert statistics.level_shift_at(saved.Curve(steps[:8], trend[:8]), 40, within=10) is None


def test_lasting_means_to_the_end() -> None:
    steps = np.arange(10)
    holds = np.array([0, 1, 0, 0, 1, 1, 1, 1, 1, 1], bool)
    assert first_lasting(steps, holds) == 4
    assert first_lasting(steps, ~holds) is None
    assert first_lasting(steps, holds | True) == 0
    assert statistics.drawdown(np.array([0.0, 4, 3, 5])) == pytest.approx(0.2)
    assert statistics.drawdown(np.ones(3)) == 0
