"""The command representation: its files, what it tells, and what it does when a model fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from support.tiny_models import TEXTS, model, write_checkpoint

from pythia_dynamics.cli.app import main

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(TEXTS))

    def invoke(*arguments: object) -> Result:
        return CliRunner(env=environment).invoke(main, [*map(str, arguments), "--corpus", str(corpus)])

    return invoke


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for step in (1, 2):
        write_checkpoint(tmp_path / "one" / f"step{step}", model(step))
    return tmp_path / "one"


def test_table_figure_and_facts(run: Run, suite: Path, tmp_path: Path) -> None:
    command = ("representation", "--model", suite, "--device", "cpu")
    result = run(*command)
    assert result.exit_code == 0, (result.output, result.exception)
    out = tmp_path / "results" / "one"
    for suffix in ("csv", "png", "svg"):
        assert f"{out / 'representation'}.{suffix}" in result.stdout
    assert "RankMe " in result.stdout
    assert "KL(bigram ‖ model) " in result.stdout
    made = json.loads((out / "provenance.json").read_text())["representation"]
    assert made["command"].startswith("pythia-dyn representation")
    again = run(*command, "--json")
    (fact,) = json.loads(again.stdout)["representation"]
    assert fact["model"] == "one"
    assert (fact["dimensions"], fact["nonfinite"], fact["missing"]) == (32, 0, {})
    assert 1 < fact["rankme"][1] < 32


def test_few_positions_are_told(run: Run, suite: Path) -> None:
    result = run("representation", "--model", suite, "--device", "cpu", "--max-tokens", 4, "--limit", 2)
    assert result.exit_code == 0, result.output
    (note,) = [line for line in result.output.splitlines() if "note:" in line]
    assert note == (
        "  note: one: 6 positions in 32 dimensions: no rank can be more than 6, and alpha is of the text; "
        "take more passages"
    )


def test_gaps_and_states_that_are_not_finite_fail_at_the_end(run: Run, suite: Path) -> None:
    file = suite / "step2" / "model.safetensors"
    tensors = load_file(file)
    tensors["gpt_neox.final_layer_norm.bias"] = torch.full_like(tensors["gpt_neox.final_layer_norm.bias"], torch.nan)
    save_file(tensors, file, metadata={"format": "pt"})
    options = ("--model", suite, "--device", "cpu")
    result = run("representation", *options)
    assert result.exit_code == 1
    count = len(result.stderr.splitlines())
    assert "hidden states are not finite; the column nonfinite counts them by step" in result.stderr.splitlines()[-1]
    assert count <= 2
    result = run("representation", *options, "--steps", "1,5")
    assert "1 steps have no representation (see above); run the same command again to retry them" in result.stderr


def test_a_model_that_fails_keeps_no_other_from_being_evaluated(run: Run, suite: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "bare" / "step1", model())
    (tmp_path / "bare" / "step1" / "tokenizer.json").unlink()
    models = [word for name in ("70n", tmp_path / "bare", suite) for word in ("--model", name)]
    result = run("representation", *models, "--device", "cpu")
    assert result.exit_code == 1
    assert "no model '70n'" in result.stderr
    assert "gave a representation" in result.stderr
    assert (tmp_path / "results" / "one" / "representation.png").exists()


def test_another_head_has_a_folder_of_its_own(run: Run, suite: Path, tmp_path: Path) -> None:
    result = run("representation", "--model", suite, "--device", "cpu", "--head", "ternary")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "results" / "one" / "ternary" / "representation.csv").exists()
    assert not (tmp_path / "results" / "one" / "representation.csv").exists()


def test_the_report_shows_it(run: Run, suite: Path, tmp_path: Path) -> None:
    run("representation", "--model", suite, "--device", "cpu")
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    result = CliRunner(env=environment).invoke(main, ["report", "--model", "one"])
    assert result.exit_code == 0, (result.output, result.exception)
    page = next((tmp_path / "results").rglob("report.html")).read_text()
    assert "Representation: the last hidden states" in page
    assert "kl unigram se" in page
    assert "pythia-dyn representation" in page
