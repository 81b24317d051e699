"""The scorecard of a model on disk: histories of known truth through the real measurements, and the file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from support.saved_results import save_table

from pythia_dynamics import figures
from pythia_dynamics.claims import saved, scorecard
from pythia_dynamics.claims.truths import truth
from pythia_dynamics.claims.verdict import VERDICTS, Verdict
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure

MODEL, RECORDS, WEIGHTS = "pythia-70m-deduped", 143, 8192
STEPS = np.arange(1, RECORDS + 1) * 1000
ABOUT_S = {claim.id for claim in scorecard.CLAIMS if claim.bifurcation}
MEASURES = ("density", "msd", "order", "two_time")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured as always; drawing it takes ten times as long and is tested elsewhere."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [])


def scores(ppl: np.ndarray, steps: np.ndarray = STEPS) -> xr.Dataset:
    columns = {"ppl_corpus": ppl, "ppl_mean": ppl, "ppl_median": ppl, "nll_mean": np.log(ppl)}
    columns |= {"sentences": np.full(len(ppl), 9), "nonfinite": np.zeros(len(ppl)), "overflow": np.zeros(len(ppl))}
    return xr.Dataset({name: ("step", values) for name, values in columns.items()}, {"step": steps})


def curve(drop: float = 0.0, *, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """A perplexity that falls smoothly, with a sudden drop at S on top."""
    smooth = 4 * np.exp(-np.arange(RECORDS) / 40) + 3
    return np.exp(smooth - drop * (STEPS >= 80_000) + noise * np.random.default_rng(seed).normal(size=RECORDS))


def write(results: Results, kind: str, table: xr.Dataset) -> None:
    results.path.mkdir(parents=True, exist_ok=True)
    (results.path / f"{kind}.csv").write_text(table.to_dataframe().to_csv())


def judged(results: Results) -> Mapping[str, Verdict]:
    return {verdict.claim: verdict for verdict in scorecard.judge(results)}


def measured(directory: Path, name: str, model: str = MODEL, **tables: xr.Dataset) -> Results:
    """Results of a history of known truth, as the commands write them."""
    results = Results(model, directory)
    measure(replace(truth(name).history(1, RECORDS, WEIGHTS), name=model), MEASURES, results)
    for kind, table in tables.items():
        write(results, f"perplexity-{kind.replace('_', '-')}", table)
    return results


@pytest.mark.parametrize("name", ["walk-cosine", "walk-rank-3", "drift"])
def test_a_history_without_an_event_supports_no_claim_about_one(tmp_path: Path, name: str) -> None:
    found = judged(measured(tmp_path, name, forward=scores(curve())))
    assert {claim for claim in ABOUT_S if found[claim].verdict == "supported"} == set()
    assert found["ternary-density"].verdict == "not supported"
    assert found["stop-when-stationary"].verdict == "not testable here"


def test_a_planted_bifurcation_is_found_where_it_is(tmp_path: Path) -> None:
    results = measured(tmp_path, "story", forward=scores(curve(0.5)), unmask=scores(curve(noise=0.005)))
    found = judged(results)
    for claim in ("density-bimodal", "symmetric-modes", "two-regimes", "stationary", "perplexity-drops"):
        assert found[claim].verdict == "supported", found[claim].reason
    assert found["unmasking-drops"].verdict == "not supported", found["unmasking-drops"].reason
    assert found["perplexity-below-one"].verdict == "not supported"
    assert found["density-bimodal"].numbers["bimodal_since"] == pytest.approx(80_000, abs=10_000)
    tests = [verdict for verdict in found.values() if verdict.p_corrected is not None]
    assert len(tests) >= 7
    assert all(verdict.p_corrected >= verdict.evidence["p"] for verdict in tests)


def test_the_paper_s_step_is_looked_at_where_there_is_no_other(tmp_path: Path) -> None:
    results = measured(tmp_path, "walk-cosine")
    smooth = 50 * np.exp(-STEPS / 30_000) + 80
    write(results, "perplexity-forward", scores(np.where(STEPS > 80_000, smooth * 0.7, smooth)))
    found = judged(results)["perplexity-drops"]
    assert found.verdict == "supported", found.reason
    assert found.numbers["bifurcation_step"] == 80_000
    few = STEPS % 2000 == 0
    write(results, "perplexity-forward", scores(np.where(STEPS > 80_000, smooth * 0.7, smooth)[few], STEPS[few]))
    found = judged(results)["perplexity-drops"]
    assert "; 71 steps of perplexity-forward.csv, 143 of the weights" in found.reason
    assert found.numbers["published_last"] > found.numbers["published_best"]  # EleutherAI's own: late training hurts
    other = judged(measured(tmp_path, "walk-cosine", "suite", forward=scores(curve(0.5))))["perplexity-drops"]
    assert other.verdict == "not testable here"


def test_missing_steps_leave_the_verdicts_as_they_are(tmp_path: Path) -> None:
    history = truth("story").history(1, RECORDS, WEIGHTS)
    gone = {int(step): "lost" for step in STEPS[[4, 20, 100]]}
    results = Results("suite", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        measure(replace(history, name="suite", missing=gone), MEASURES, results)
    found = judged(results)
    for claim in ("density-bimodal", "two-regimes", "stationary"):
        assert found[claim].verdict == "supported", found[claim].reason


def test_claims_json_comes_back(tmp_path: Path) -> None:
    results = Results("suite", tmp_path)
    with pytest.raises(PythiaDynError, match="no results in"):
        scorecard.judge(results)
    assert scorecard.read(results) is None
    order = {"frobenius_norm": 8.0, "order_parameter": 1.0, "rms": 0.1}
    rising = np.linspace(1, 2, RECORDS)
    save_table(
        results, "order", xr.Dataset({name: ("step", value * rising) for name, value in order.items()}, {"step": STEPS})
    )
    write(results, "perplexity-forward", scores(curve()))
    made = scorecard.judge(results)
    path = scorecard.save(results, made)
    again = scorecard.read(results)
    assert again is not None
    assert [verdict.verdict for verdict in again] == [verdict.verdict for verdict in made]
    entries = json.loads(path.read_text())["claims"]
    assert [entry["claim"] for entry in entries] == [claim.id for claim in scorecard.CLAIMS]
    assert all(entry["test"] and entry["tolerance"] and entry["figure"] and entry["reason"] for entry in entries)
    assert {entry["verdict"] for entry in entries} <= set(VERDICTS)
    exact = next(entry for entry in entries if entry["claim"] == "b-monotone")
    assert exact["verdict"] == "supported"
    assert exact["evidence"]["p"] is None  # no number, and JSON has no NaN


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    results = Results("suite", tmp_path)
    columns = ("msd", "msd_null", "msd_time", "msd_time_null", "displacement")
    save_table(results, "msd", xr.Dataset(dict.fromkeys(columns, ("step", np.ones(RECORDS))), {"step": STEPS}))
    found = judged(results)
    assert {verdict.verdict for verdict in found.values()} == {"not testable here"}
    assert all(
        "is missing: run pythia-dyn" in verdict.reason
        for verdict in found.values()
        if verdict.claim != "changes-at-the-end"
    )
    for claim, command in (
        ("stationary", "two_time.zarr is missing: run pythia-dyn two-time --model suite"),
        ("b-monotone", "order.csv is missing: run pythia-dyn order --model suite"),
        ("ternary-density", "density.zarr is missing: run pythia-dyn density --model suite"),
        (
            "perplexity-drops",
            "perplexity-forward.csv is missing: run pythia-dyn perplexity --mode forward --model suite",
        ),
        ("sharper-at-the-end", "run pythia-dyn perplexity --mode unmask --model suite"),
        ("rank-shrinks", "rank.csv is missing: run pythia-dyn rank --model suite"),
    ):
        assert command in found[claim].reason


def test_the_commands_that_make_the_files_exist(tmp_path: Path) -> None:
    read = saved.SavedResults(Results("suite", tmp_path))
    files = ("density.zarr", "msd.csv", "order.csv", "rank.csv", "two_time.zarr", "ternary/perplexity-forward.csv")
    for file in (*files, "perplexity-forward.csv", "perplexity-unmask.csv"):
        assert read.command_for(file).split()[1] in main.commands, file


def test_each_claim_has_one_place() -> None:
    ids = [claim.id for claim in scorecard.CLAIMS]
    assert len(set(ids)) == len(ids) == 19
    assert all(claim.statement and claim.test and claim.tolerance and claim.figure for claim in scorecard.CLAIMS)
    assert len(set(scorecard.CLAIMS.values())) == len(ids)
