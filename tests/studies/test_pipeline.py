"""From a history to result files: what is written, what is said, and where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.walks import walk

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies import pipeline
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning

STEPS = [0, 1, 2, 4, 8, *range(1000, 16_000, 1000)]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
    return Results("walk", tmp_path / "results")


def history(seed: int = 0, steps: list[int] = STEPS, source: str = "walk") -> History:
    return History.from_array(walk(len(steps), 40, 8, np.float16, seed), steps, name=source)


def by_kind(outcomes: list[pipeline.Outcome]) -> dict[str, pipeline.Outcome]:
    return {outcome.kind: outcome for outcome in outcomes}


def test_one_call_writes_everything(results: Results) -> None:
    outcomes = by_kind(measure(history(), tuple(MEASURES), results))
    assert list(outcomes) == [*MEASURES, "bifurcation"]
    folder = results.of("weights").path
    assert [path.name for path in results.path.iterdir()] == ["weights"]
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {
        *("moments.csv", "density.zarr", "msd.csv", "order.csv", "rank.csv", "rank-infinite.csv", "spectrum.csv"),
        *("angles.csv", "tails.csv", "rows.csv", "rows.zarr"),
        *("spectrum.zarr", "two_time.zarr", "bifurcation.json", "provenance.json"),
    }
    made = json.loads((folder / "provenance.json").read_text())
    assert set(made) == set(MEASURES)
    for kind, details in made.items():
        assert details["facts"] == json.loads(json.dumps(outcomes[kind].facts)), kind
        assert details["source"] == "walk"
    assert not any("nan" in outcome.summary for outcome in outcomes.values())


def test_every_two_steps_come_with_exponent_interval_and_null(results: Results) -> None:
    steps = list(range(0, 60_000, 1000))
    (outcome,) = measure(history(steps=steps), ["two_time"], results)
    saved = results.weights().read_zarr("two_time")
    fit = saved["displacement_by_lag"].attrs
    assert fit["exponent_low"] < fit["exponent"] < fit["exponent_high"]
    facts = outcome.facts
    assert {name: facts[name] for name in fit if "exponent" in name} == {
        n: v for n, v in fit.items() if "exponent" in n
    }
    assert (
        f"lag^{fit['exponent']:.3g} (95 %: {fit['exponent_low']:.3g} to {fit['exponent_high']:.3g})" in outcome.summary
    )
    assert facts["explained_null"] == saved["explained_null"].values[:1].tolist()
    assert "random walk" in outcome.summary
    assert facts["cosine_of_ends"] == float(saved["cosine"][0, -1])


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (
            np.arange(1.0, 10),
            "rises to the last step, as a random walk's does; demeaned over time it peaks at step 3, the walk at 4",
        ),
        (np.array([9.0, -1, -2, -1, -1, -1, -1, -1, -1]), "falls from the first step on; that of a random walk rises"),
        (np.array([1.0, 1, 1, 1, -1, -1, -1, -1, -1]), "peaks at step 3; that of a random walk rises to the last step"),
    ],
)
def test_where_the_displacement_is_greatest(results: Results, frames: np.ndarray, said: str) -> None:
    direction = np.random.default_rng(0).standard_normal((1, 30, 4))
    (outcome, *_) = measure(History.from_array(frames[:, None, None] * direction), ["msd"], results)
    assert outcome.summary.startswith(f"MSD (Eq. 4) {said}")


def test_weights_that_do_not_move_are_said_not_to(results: Results) -> None:
    direction = np.random.default_rng(0).standard_normal((1, 30, 4)).astype(np.float32)
    still = History.from_array(np.repeat(direction, 5, axis=0))
    assert measure(still, "msd", results)[0].summary == "the weights do not move"
    assert measure(History.from_array(direction), "msd", results)[0].summary == "only one step is known"


def test_all_rows_are_recorded_alike(results: Results) -> None:
    measure(history(), ["msd"], results)
    measure(history(), ["order"], results, compute=Compute(rows=40))  # the frames have 40 rows
    measure(history(), ["spectrum"], results, compute=Compute(rows=30))
    made = results.weights().provenance()
    assert [made[name]["drop_padding"] for name in ("msd", "order", "spectrum")] == [None, None, 30]
    results.weights().require_same_weights(("msd", "order"))


def test_nothing_known_is_said_in_words_and_null_in_json(results: Results) -> None:
    frames = np.full((4, 20, 4), np.nan, np.float16)
    with pytest.warns(NonFiniteWarning, match="steps 0, 1, 2, 3"):
        outcomes = measure(History.from_array(frames), tuple(MEASURES), results)
    for outcome in outcomes:
        assert "nan" not in outcome.summary, outcome.kind
        assert "NaN" not in json.dumps(outcome.facts), outcome.kind
    assert "NaN" not in json.dumps(results.weights().provenance())
    assert by_kind(outcomes)["two_time"].summary == "no step is known"


@pytest.mark.parametrize("kind", list(MEASURES))
def test_a_history_without_weights_writes_nothing(results: Results, kind: str) -> None:
    gone = History.from_array(np.zeros((2, 3, 4)), missing={0: "lost", 1: "lost"})
    with pytest.warns(MissingStepsWarning), pytest.raises(PythiaDynError, match="no step of array has weights"):
        measure(gone, [kind], results)
    assert not results.path.exists()


def test_the_loss_is_the_one_that_is_there(results: Results, tmp_path: Path) -> None:
    def known() -> tuple[object, list[float]]:
        outcome = by_kind(measure(history(source=str(tmp_path)), ["order"], results))["order"]
        saved = results.weights().read_table("order")
        return outcome.facts.get("loss_from"), saved["loss"].values.tolist() if "loss" in saved else []

    assert known() == (None, [])
    suite = tmp_path / "losses.csv"
    rows = [f"{step},{9.5 - i},{9 - i / 3}" for i, step in enumerate(STEPS)]
    suite.write_text("\n".join(["step,train_loss,validation_loss", *rows]))
    where, loss = known()
    assert where == str(suite)
    np.testing.assert_allclose(loss, [9 - i / 3 for i in range(len(STEPS))])
    forward = results.path / "perplexity-forward.csv"
    forward.write_text("step,ppl_mean,nll_mean\n1000,20,3\n2000,,\n")
    where, loss = known()
    assert where == str(forward)
    np.testing.assert_array_equal(loss, [3.0 if step == 1000 else np.nan for step in STEPS])
    made = results.weights().provenance()["order"]
    assert made["facts"]["loss_from"] == str(forward)


def test_a_loss_may_be_a_file_and_says_where_the_slope_changes(results: Results, tmp_path: Path) -> None:
    b = np.linspace(1, 3, 41)
    steps = (np.arange(41) * 100).tolist()
    loss = np.where(b < 1.8, 5 - 2 * b, 1.4 - 0.25 * (b - 1.8)) + 0.01 * np.random.default_rng(0).standard_normal(41)
    log = [{"step": step, "loss": value, "epoch": 0.1} for step, value in zip(steps, loss.tolist(), strict=True)]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [*log, {"step": 4000, "train_runtime": 5.0}]}))
    order = {"order": {"loss": path}}
    (outcome,) = measure(History.from_array(b[:, None, None], steps), ["order"], results, options=order)
    fit = outcome.facts["fit"]
    assert fit["kink_b"] == pytest.approx(1.8, abs=0.06)
    assert f"at b = {fit['kink_b']:.4g}" in outcome.summary
    assert outcome.summary.endswith(f"(loss from {path})")
    np.testing.assert_allclose(results.weights().read_table("order")["loss"], loss)


def test_both_detectors_are_asked_once_both_are_there(results: Results) -> None:
    path = results.of("weights").path / "bifurcation.json"
    assert list(by_kind(measure(history(), ["density"], results))) == ["density"]
    assert not path.exists()
    found = by_kind(measure(history(), ["msd", "two_time"], results))["bifurcation"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.facts))
    assert set(found.facts["detectors"]) == {*found.facts["displacement"], *found.facts["density"]}
    # of other weights or steps: what was found of the old ones is gone
    assert "bifurcation" not in by_kind(measure(history(), ["msd"], results, compute=Compute(rows=30)))
    assert not path.exists()
    assert "bifurcation" in by_kind(measure(history(), ["density"], results, compute=Compute(rows=30)))
    assert "bifurcation" not in by_kind(measure(history(steps=STEPS[1:]), ["msd"], results, compute=Compute(rows=30)))


def test_a_planted_bifurcation_is_said(results: Results) -> None:
    rng = np.random.default_rng(0)
    side = np.where(rng.random((60, 40)) < 0.5, 1.0, -1.0)
    apart = np.clip(np.arange(30) - 14, 0, None)[:, None, None] * 0.06
    frames = (walk(30, 60, 40, np.float32) + apart * side).astype(np.float16)
    found = by_kind(measure(History.from_array(frames, np.arange(30) * 1000), ["density", "msd"], results))
    assert found["bifurcation"].summary.startswith("bifurcation at step 1")


def test_a_device_of_torch_gives_the_same_files(results: Results, tmp_path: Path) -> None:
    kinds = ("rank", "spectrum", "two_time")
    measure(history(), kinds, results)
    other = Results("other", tmp_path)
    measure(
        history(), kinds, other, compute=Compute(device="cpu:0")
    )  # the way of a CUDA device, through torch and in float64
    for kind in ("rank", "spectrum"):
        ours, theirs = results.weights().read_table(kind), other.weights().read_table(kind)
        for name in ours.data_vars:
            np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-9, err_msg=f"{kind} {name}")
    pairs, others = results.weights().read_zarr("two_time"), other.weights().read_zarr("two_time")
    np.testing.assert_allclose(others["displacement"], pairs["displacement"], rtol=1e-5)
    with pytest.raises(PythiaDynError, match="no device 'nonsense'"):
        measure(history(), ["two_time"], results, compute=Compute(device="nonsense"))


def test_gaps_reach_every_file(results: Results) -> None:
    frames = walk(len(STEPS), 40, 8, np.float16)
    frames[6, 3, 2] = np.inf
    gappy = History.from_array(frames, STEPS, missing={4: "lost", 3000: "not on the Hub"})
    with (
        pytest.warns(MissingStepsWarning, match="lacks steps 4, 3000"),
        pytest.warns(NonFiniteWarning, match="at step 2000"),
    ):
        measure(gappy, tuple(MEASURES), results)
    bad = [4, 2000, 3000]
    good = [step for step in STEPS if step not in bad]
    columns = {"msd": "msd", "moments": "mean", "order": "order_parameter", "rank": "rank", "spectrum": "entropy"}
    columns |= {"angles": "norm"}
    for table, column in columns.items():
        saved = results.weights().read_table(table)
        assert saved["step"].values.tolist() == STEPS
        assert np.isnan(saved[column].sel(step=bad)).all(), table
        assert np.isfinite(saved[column].sel(step=good)).all(), table
    assert results.weights().read_table("moments")["nonfinite"].sel(step=2000) == 1
    for kind, column in {"density": "weight_quantile", "spectrum": "singular_values", "two_time": "cosine"}.items():
        saved = results.weights().read_zarr(kind)
        assert np.isnan(saved[column].sel(step=bad)).all(), kind
        kept = saved[column].sel(step=good)
        kept = kept.sel(other_step=good) if kind == "two_time" else kept
        assert np.isfinite(kept).all(), kind


def test_uneven_steps_count_as_steps(results: Results) -> None:
    """Ballistic in the step number: the exponent is 2 on a grid of any kind, dL/db that of the law."""
    steps = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 21_000, 1000)])
    direction = np.random.default_rng(0).standard_normal((200, 5))
    frames = steps[:, None, None] * direction * 1e-4
    uneven = History.from_array(1 + frames, steps)
    measure(uneven, ["two_time", "order"], results, options={"order": {"loss": 3 - 1e-4 * steps}})
    assert results.weights().read_zarr("two_time")["displacement_by_lag"].attrs["exponent"] == pytest.approx(
        2, abs=1e-6
    )
    saved = results.weights().read_table("order")
    b = np.linalg.norm((1 + frames).reshape(len(steps), -1), axis=1) / 5
    want = np.gradient(3 - 1e-4 * steps, steps) / np.gradient(b, steps)
    np.testing.assert_allclose(saved["dloss_db"], want, rtol=1e-6)


def test_perplexities_are_drawn_with_their_facts(results: Results) -> None:
    table = xr.Dataset(
        {
            "ppl_mean": ("step", [9.0, np.nan, 5.0]),
            "ppl_median": ("step", [8.0, np.nan, 4.0]),
            "ppl_corpus": ("step", [7.0, np.nan, 3.0]),
            "nll_mean": ("step", [2.0, np.nan, 1.0]),
            "sentences": ("step", [20.0, np.nan, 18.0]),
            "nonfinite": ("step", [0.0, np.nan, 2.0]),
            "overflow": ("step", [1.0, np.nan, 0.0]),
        },
        {"step": [1, 2, 3]},
        {"missing": {"2": "lost"}},
    )
    results.path.mkdir(parents=True)
    (results.path / "perplexity-forward.csv").write_text(table.to_dataframe().to_csv())
    (outcome,) = pipeline.draw_perplexity(results, {"forward": table})
    assert [outcome.facts[name] for name in ("first", "last", "nonfinite", "overflow")] == [7, 3, 2, 1]
    assert outcome.summary == "forward perplexity 7 → 3; 3 sentences over all steps had none"
