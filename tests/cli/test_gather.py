"""The command gather: what it says, what it writes, and that no other command takes a population for a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from support.populations import STEPS, save_order
from support.saved_results import perplexity_table

from pythia_dynamics.cli.app import main
from pythia_dynamics.results.folder import Results

RNG = np.random.default_rng(0)


def values(level: float = 1.0) -> np.ndarray:
    return level * np.exp(0.05 * RNG.normal() + 0.005 * RNG.normal(size=40)) * (1 + STEPS / 1e4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    for seed in range(1, 10):
        run = values()
        if seed == 3:
            run *= np.exp(0.9 * np.clip((np.arange(40) - 20) / 10, 0, 1))
        save_order(directory, f"pythia-160m-seed{seed}", run, coordinates={"tokens": (STEPS * 8).tolist()})
    for kind in ("data", "weight"):
        for seed in range(1, 4):
            save_order(directory, f"pythia-160m-{kind}-seed{seed}", values())
    for seed in (1, 2):
        save_order(directory, f"tiny-seed{seed}", values(3.0))
    return directory


def run(*arguments: str, results: Path, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, [*arguments, "--results", str(results)])
    assert result.exit_code == int(fails), result.output
    return result


def test_one_line_for_each_finding(saved: Path) -> None:
    said = run("gather", "--model", "160m-seed*", "--measure", "order", results=saved).stdout.splitlines()
    assert said[0] == "pythia-160m: 9 runs, 40 steps (1000 … 40000)"
    assert said[1].startswith("  at the end: median ")
    assert "% within; intraclass correlation 1.00" in said[2]
    assert said[3].startswith("  pythia-160m-seed3 leaves the others at step 2")
    assert said[4] == "  order_parameter of 9 runs"
    folder = saved / "runs" / "160m-seed+" / "order"
    written = [folder / f"order_parameter{end}" for end in (".csv", "-band.csv", ".png", ".svg")]
    assert said[5:9] == [f"  {path}" for path in written]
    assert all(path.is_file() for path in written)
    assert said[9] == "next: pythia-dyn claims --model '160m-seed*'"


def test_the_files_hold_the_runs_and_the_band(saved: Path) -> None:
    run("gather", "--model", "pythia-160m-seed*", "--measure", "order", "--variable", "rms", results=saved)
    folder = saved / "runs" / "pythia-160m-seed+" / "order"
    runs, band = pd.read_csv(folder / "rms.csv"), pd.read_csv(folder / "rms-band.csv")
    assert runs.columns.tolist() == ["step", "run", "seed", "seed_kind", "family", "parameters", "rms"]
    for seed in (1, 9):
        table = pd.read_csv(saved / f"pythia-160m-seed{seed}" / "embed_out.weight" / "order.csv")
        own = runs[runs["run"] == f"pythia-160m-seed{seed}"]
        assert own["step"].tolist() == table["step"].tolist()
        assert own["rms"].tolist() == table["rms"].tolist()
        assert set(own["seed"]) == {seed}
    by_step = runs.groupby("step")["rms"]
    np.testing.assert_allclose(band["median"], by_step.median())
    np.testing.assert_allclose(band["low"], by_step.quantile(0.1))
    np.testing.assert_allclose(band["high"], by_step.quantile(0.9))
    assert set(band["runs"]) == {9}
    made = json.loads((folder / "provenance.json").read_text())["rms"]
    assert made["patterns"] == ["pythia-160m-seed*"]
    assert made["command"].startswith("pythia-dyn gather --model 'pythia-160m-seed*' --measure order --variable rms")
    assert made["runs"]["pythia-160m-seed9"]["source"] == "pythia-160m-seed9"
    assert made["facts"]["groups"][0]["departures"]["found"][0]["run"] == "pythia-160m-seed3"


def test_data_against_weights_and_facts_for_programs(saved: Path) -> None:
    unknown = ("--model", "pythia-160m-*", "--measure", "order", "--axis", "tokens", "--json")
    assert (
        "the tokens of pythia-160m, data seeds are not known"
        in run("gather", *unknown, results=saved, fails=True).stderr
    )
    options = ("--model", "pythia-160m-*", "--model", "tiny-*", "--measure", "order")
    said = run("gather", *options, results=saved).stdout
    assert "pythia-160m, data or weights: undecided (ratio of variances " in said
    assert "3 data seeds, 3 weight seeds)" in said
    assert "  leaving runs: undecided (2 runs; 5 are needed)" in said
    facts = json.loads(run("gather", *options, "--json", results=saved).stdout)["gather"]
    assert [group["name"] for group in facts["groups"]] == [
        "pythia-160m, data seeds",
        "pythia-160m",
        "pythia-160m, weight seeds",
        "tiny",
    ]
    assert facts["data_or_weights"]["pythia-160m"]["answer"] == "undecided"
    assert facts["data_or_weights"]["pythia-160m"]["p"] >= 0.1
    assert "tiny" not in facts["data_or_weights"]


def test_sizes_per_parameter(saved: Path) -> None:
    options = ("--measure", "order", "--per-parameter", "--width", "column")
    run("gather", "--model", "160m-seed?", *options, results=saved)
    folder = saved / "runs" / "160m-seed=" / "order"
    divided = pd.read_csv(folder / "order_parameter-per-parameter.csv")
    whole = pd.read_csv(saved / "pythia-160m-seed1" / "embed_out.weight" / "order.csv")
    own = divided[divided["run"] == "pythia-160m-seed1"]
    np.testing.assert_allclose(own["order_parameter"] * own["parameters"], whole["order_parameter"])
    assert (folder / "order_parameter-per-parameter.pdf").is_file()
    said = run("gather", "--model", "tiny-*", *options, results=saved, fails=True).stderr
    assert said == (
        "pythia-dyn: the number of parameters of tiny-seed1 is not known: the registry has that of Pythia\n"
    )
    assert not (saved / "runs" / "tiny-+").exists()  # nothing was written


def test_perplexities_and_one_run(tmp_path: Path) -> None:
    for seed in (1, 2):
        results = Results(f"pythia-70m-seed{seed}", tmp_path)
        results.path.mkdir(parents=True)
        (results.path / "perplexity-forward.csv").write_text(perplexity_table(seed).to_dataframe().to_csv())
        results.record("perplexity-forward", {"location": "x", "corpus": "a.jsonl"})
    said = run("gather", "--model", "70m-seed[12]", "--measure", "perplexity-forward", results=tmp_path).stdout
    assert said.startswith("pythia-70m: 2 runs, 9 steps (0 … 6000)\n")
    assert (tmp_path / "runs" / "70m-seed(12)" / "perplexity-forward" / "ppl_corpus.csv").is_file()
    said = run("gather", "--model", "70m-seed2", "--measure", "perplexity-forward", results=tmp_path).stdout
    assert said.startswith("pythia-70m: 1 run, 9 steps (0 … 6000)\n  at the end: ")
    assert "leav" not in said


def test_runs_without_the_result_are_named(saved: Path) -> None:
    said = run("gather", "--model", "tiny-*", "--measure", "rank", results=saved, fails=True)
    assert said.stderr.startswith("pythia-dyn: ")
    assert said.stderr.endswith("rank.csv is missing: run pythia-dyn rank --model tiny-seed1\n")
    assert said.stderr.count("\n") == 1
    save_order(saved, "tiny-seed9", values(), tensor="other.weight")
    said = run("gather", "--model", "tiny-*", "--measure", "order", "--tensor", "unembedding", results=saved)
    assert "note: left out: tiny-seed9 (" in said.stdout


@pytest.mark.parametrize("command", ["figures", "claims", "report"])
def test_no_command_takes_a_population_for_a_model(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        save_order(tmp_path, f"tiny-seed{seed}", values())
    run("gather", "--model", "tiny-*", "--measure", "order", results=tmp_path)
    assert (tmp_path / "runs" / "tiny-+" / "order" / "provenance.json").is_file()
    named = json.loads(run(command, "--cache", str(tmp_path), "--json", results=tmp_path).stdout)[command]
    found = named if command == "report" else json.dumps(named)
    assert "runs" not in _models(named, command), found


def _models(named: Any, command: str) -> list[str]:
    if command == "figures":
        return list(named)
    return [entry["model"] for entry in named] if command == "claims" else [str(named)]


def test_a_long_list_of_runs_has_a_folder_of_its_own(saved: Path) -> None:
    names = [part for seed in range(1, 10) for part in ("--model", f"pythia-160m-seed{seed}")]
    run("gather", *names, "--measure", "order", results=saved)
    others = [part for seed in range(1, 9) for part in ("--model", f"pythia-160m-seed{seed}")]
    run("gather", *others, "--measure", "order", results=saved)
    long = [path.name for path in (saved / "runs").iterdir() if path.name.startswith("pythia-160m-seed1,")]
    assert len(long) == 2
    assert all(len(name) < 100 for name in long)


def test_a_glob_of_aliases_means_results_in_other_commands_too(saved: Path) -> None:
    said = run("claims", "--model", "160m-seed*", "--cache", str(saved), "--json", results=saved).stdout
    assert [entry["model"] for entry in json.loads(said)["claims"]] == [f"pythia-160m-seed{k}" for k in range(1, 10)]


def test_all_tensors_of_a_population(tmp_path: Path) -> None:
    for seed in (1, 2):
        for layer in (0, 1):
            save_order(tmp_path, f"tiny-seed{seed}", np.sqrt(STEPS) + seed, tensor=f"layers.{layer}.mlp.up_proj.weight")
    options = ("--model", "tiny-seed*", "--measure", "order", "--tensor")
    said = run("gather", *options, "all", results=tmp_path).stdout
    assert "tiny: rms of 2 tensors, 2 runs, 40 steps (1000 … 40000)" in said
    assert (tmp_path / "runs" / "tiny-seed+" / "order,all" / "rms-tensors.csv").exists()
    facts = json.loads(run("gather", *options, "*.1.*", "--json", results=tmp_path).stdout)["gather"]
    assert facts["variable"] == "order_parameter"  # one tensor
    usage = CliRunner().invoke(main, ["gather", *options, "all", "--axis", "tokens", "--results", str(tmp_path)])
    assert usage.exit_code == 2
    assert "--axis and --per-parameter are for one tensor" in usage.stderr
