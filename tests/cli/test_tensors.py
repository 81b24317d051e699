"""Which tensor a command measures: the unembedding, the named ones, or an error, but never another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.checkpoints import checkpoint

from pythia_dynamics.cli.app import main
from pythia_dynamics.results.folder import Results

WTE, PROJECTIONS = "transformer.wte.weight", [f"transformer.h.{i}.attn.c_proj.weight" for i in range(3)]


def gpt2(step: int, **config: object) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(8, 8, generator=generator).half() for name in PROJECTIONS}
    tensors |= {
        WTE: torch.randn(40, 8, generator=generator).half(),
        "transformer.wpe.weight": torch.zeros(16, 8).half(),
    }
    settings: dict[str, Any] = {"model_type": "gpt2", "tie_word_embeddings": True, **config}
    return checkpoint(tensors, **settings)


def write(directory: Path, **config: object) -> Path:
    for step in (10, 20, 30, 40):
        folder = directory / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name, content in gpt2(step, **config).items():
            (folder / name).write_bytes(content)
    return directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHIA_DYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHIA_DYN_RESULTS", str(tmp_path / "results"))
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def measured(result: Result, command: str = "order") -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [fact["tensor"] for fact in json.loads(result.stdout)[command]]


def test_after_other_tensors_the_unembedding_is_still_measured(place: Path) -> None:
    suite = write(place / "mine")
    assert run("fetch", "--model", suite, "--tensor", "*.h.0.attn.c_proj.weight").exit_code == 0
    assert measured(run("order", "--json")) == PROJECTIONS[:1]  # the only one there is
    assert run("fetch", "--model", suite).exit_code == 0
    assert measured(run("order", "--json")) == [WTE]
    assert measured(run("order", "--tensor", "unembedding", "--json")) == [WTE]
    assert measured(run("order", "--tensor", "embedding", "--json")) == [WTE]
    assert run("fetch", "--model", suite, "--tensor", "all").exit_code == 0
    assert measured(run("order", "--json")) == [WTE]
    both = measured(run("order", "--tensor", "*.h.[12].attn.*", "--tensor", "unembedding", "--json"))
    assert both == [*PROJECTIONS[1:], WTE]
    assert len(measured(run("order", "--tensor", "all", "--json"))) == 5


def test_without_a_known_role_several_tensors_are_an_error_that_lists_them(place: Path) -> None:
    suite = write(place / "mine", tie_word_embeddings=False)
    missing = run("fetch", "--model", suite)
    assert missing.exit_code == 1
    assert (
        "no tensor known to be its unembedding; name one, with --tensor on the command line (it has transformer."
        in missing.stderr
    )
    assert run("fetch", "--model", suite, "--tensor", "*.c_proj.weight", "--tensor", WTE).exit_code == 0
    unknown = run("order")
    assert unknown.exit_code == 1
    (line,) = unknown.stderr.splitlines()
    assert all(name in line for name in [*PROJECTIONS, WTE])
    assert not (place / "results").exists()
    assert measured(run("order", "--tensor", "embedding", "--json")) == [WTE]
    assert run("order", "--tensor", "no.such.weight").exit_code == 1


def test_results_know_the_unembedding_by_its_role(place: Path) -> None:
    suite = write(place / "mine")
    assert run("fetch", "--model", suite, "--tensor", "all").exit_code == 0
    for command in ("msd", "density", "order", "stop", "phases"):
        result = run(command, "--tensor", WTE, "--tensor", PROJECTIONS[2], "--json")
        assert measured(result, command) == [WTE, PROJECTIONS[2]]
    results = Results("mine", place / "results")
    assert results.weights().tensor == WTE
    assert results.of(WTE).label == "mine"
    assert results.of(PROJECTIONS[2]).label == f"mine, {PROJECTIONS[2]}"
    claims = json.loads(run("claims", "--json", "--tensor", "*").stdout)["claims"]
    assert [Path(fact["file"]).parent.name for fact in claims] == [PROJECTIONS[2], WTE]
    report = run("report", "--tensor", "unembedding", "--tensor", PROJECTIONS[2])
    assert report.exit_code == 0, report.stderr
    assert f"mine, mine, {PROJECTIONS[2]}" in report.stdout
    assert run("figures").exit_code == 0


def test_models_are_named_by_globs(place: Path) -> None:
    for name in ("run-a", "run-b", "other"):
        write(place / name)
    assert run("fetch", *(f"--model={place / name}" for name in ("run-a", "run-b", "other"))).exit_code == 0
    facts = json.loads(run("order", "--model", "run-*", "--json").stdout)["order"]
    assert [fact["model"] for fact in facts] == ["run-a", "run-b"]
    nothing = run("order", "--model", "walk-*")
    assert nothing.exit_code == 1
    assert "no model 'walk-*'" in nothing.stderr
    shown = json.loads(run("plan", "--model", "160m-seed[12]", "--source", "registry", "--json").stdout)["plan"]
    assert [fact["model"] for fact in shown] == ["pythia-160m-seed1", "pythia-160m-seed2"]
