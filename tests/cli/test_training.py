"""train, stop, phases and reproduce as a person meets them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.cli.app import main

Run = Callable[..., Result]
TINY = ("--context", 32, "--batch", 2, "--max-steps", 8, "--every", 2, "--eval-batches", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "in", "mind"]
    speeches = [f"WHO:\n{' '.join(rng.choice(words, size=20))}.\n\n" for _ in range(80)]
    path = tmp_path_factory.mktemp("corpus") / "play.txt"
    path.write_text("".join(speeches))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(place / "cache"), "PYTHIA_DYN_RESULTS": str(place / "results")}

    def invoke(*arguments: object) -> Result:
        return CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments])

    return invoke


def succeeds(result: Result) -> str:
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stderr == ""
    return result.stdout


def fails(result: Result) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("pythia-dyn: ")
    return line


@pytest.fixture(scope="module")
def suite(run: Run, place: Path, corpus: Path) -> Path:
    out = succeeds(run("train", "--size", "10k", "--corpus", corpus, "--out", place / "own", *TINY))
    assert f"{place / 'own'}: 5 checkpoints to step 8; training loss" in out
    assert f"pythia-dyn fetch --model {place / 'own'}" in out
    return place / "own"


def test_a_suite_of_ones_own_is_a_suite_like_any_other(run: Run, place: Path, suite: Path, corpus: Path) -> None:
    assert "(already there)" in succeeds(run("train", "--size", "10k", "--corpus", corpus, "--out", suite, *TINY))
    assert "5 steps fetched" in succeeds(run("fetch", "--model", suite))
    for kind in ("density", "msd", "rank", "spectrum"):
        succeeds(run(kind, "--model", "own"))
    assert "loss" in succeeds(run("order", "--model", "own", "--loss", suite / "losses.csv"))
    arguments = ("--corpus", suite / "heldout.jsonl", "--limit", 2, "--device", "cpu")
    modes = ("--mode", "forward", "--mode", "unmask", "--mode", "last-word")
    succeeds(run("perplexity", "--model", suite, *modes, *arguments))
    with (place / "results" / "own" / "perplexity-forward.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 2, 4, 6, 8]
    vocab = len(set(corpus.read_text()))
    assert float(rows[0]["ppl_corpus"]) == pytest.approx(vocab, rel=0.2)  # an untrained model guesses


def test_a_suite_of_the_blogs_model_is_a_suite_like_any_other(run: Run, place: Path, corpus: Path) -> None:
    train = ("train", "--arch", "nanogpt", "--size", "10k", "--corpus", corpus, "--out", place / "nano", *TINY)
    succeeds(run(*train))
    plan = json.loads((place / "nano" / "suite.json").read_text())["plan"]
    assert (plan["arch"], plan["initialisation"]) == ("nanogpt", "pytorch")
    succeeds(run("fetch", "--model", place / "nano"))
    succeeds(run("order", "--model", "nano"))
    assert (place / "results" / "nano" / "lm_head.weight" / "order.csv").is_file()
    arguments = ("--corpus", place / "nano" / "heldout.jsonl", "--limit", 2, "--device", "cpu")
    modes = ("--mode", "forward", "--mode", "unmask", "--mode", "last-word")
    succeeds(run("perplexity", "--model", place / "nano", *modes, *arguments))
    vocab = len(set(corpus.read_text()))
    for mode in ("forward", "unmask"):
        with (place / "results" / "nano" / f"perplexity-{mode}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == [0, 2, 4, 6, 8]
        assert float(rows[0]["ppl_corpus"]) < 2 * vocab
    succeeds(run("portrait", "--model", place / "nano", "--device", "cpu"))
    assert plan["arch"] in succeeds(run("train", "--help"))


def test_every_number_can_be_set(run: Run, tmp_path: Path, corpus: Path) -> None:
    numbers = {
        "d_model": 8, "layers": 2, "heads": 2, "context": 12, "batch": 3, "max_steps": 6, "checkpoints": 2,
        "learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 1, "dropout": 0.1, "weight_decay": 0.3,
        "adam_beta2": 0.9, "max_grad_norm": 0.5, "tokenizer": "bpe", "vocab": 270, "held_out": 0.2, "eval_batches": 3,
        "dtype": "float16",
    }  # fmt: skip
    options = [item for name, value in numbers.items() for item in (f"--{name.replace('_', '-')}", value)]
    arguments = ("train", "--size", "1m", "--corpus", corpus, "--out", tmp_path / "s", "--seed", 3, "--init", "pytorch")
    facts = json.loads(succeeds(run(*arguments, "--log-spaced", *options, "--json")))["train"]
    assert [(fact["seed"], fact["steps"], fact["trained"]) for fact in facts] == [(3, [0, 1, 2, 3, 4, 6], True)]
    plan = json.loads((tmp_path / "s" / "suite.json").read_text())["plan"]
    assert plan | numbers | {"seed": 3, "initialisation": "pytorch", "log_spaced": True} == plan


def test_seeds_make_suites_side_by_side(run: Run, tmp_path: Path, corpus: Path) -> None:
    arguments = ("train", "--size", "10k", "--corpus", corpus, "--out", tmp_path / "s", *TINY, "--max-steps", 2)
    facts = json.loads(succeeds(run(*arguments, "--seeds", 2, "--json")))["train"]
    assert [Path(fact["suite"]).name for fact in facts] == ["s-seed0", "s-seed1"]
    assert facts[0]["train_loss"] != facts[1]["train_loss"]


def test_trainings_that_cannot_be(run: Run, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ("train", "--corpus", corpus, "--out", tmp_path / "s")
    assert "no size '10kk'; did you mean 10k" in fails(run(*train, "--size", "10kk"))
    assert "d_model 32 is not a multiple of the 3 heads" in fails(run(*train, "--size", "10k", "--heads", 3))
    (tmp_path / "short.txt").write_text("hello")
    assert "training needs at least" in fails(
        run("train", "--size", "10k", "--corpus", tmp_path / "short.txt", "--out", tmp_path / "s")
    )
    assert not (tmp_path / "s").exists()
    assert run("train", "--size", "10k").exit_code == 2
    assert run(*train, "--size", "10k", "--dropout", 2).exit_code == 2
    import datasets

    def offline(name: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    line = fails(run("train", "--size", "10k", "--out", tmp_path / "s"))
    assert "cannot load karpathy/tiny_shakespeare: no route to host; give a text of your own with --corpus" in line


# -- stop and phases ------------------------------------------------------------------------------------------


def write_history(directory: Path, sizes: list[float]) -> Path:
    """Checkpoints every 1,000 steps whose W_U moves by these relative sizes."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 30, generator=generator)
    for i, size in enumerate([0.0, *sizes]):
        weights = weights + size * torch.randn(40, 30, generator=generator)
        folder = directory / f"step{1000 * i}"
        folder.mkdir(parents=True)
        save_file({"embed_out.weight": weights}, folder / "model.safetensors")
    return directory


def test_stop_says_where_what_it_saves_and_what_it_costs(run: Run, place: Path, tmp_path: Path) -> None:
    model = write_history(tmp_path / "resting", [0.1] * 5 + [0.001] * 5)
    succeeds(run("fetch", "--model", model))
    assert "not seen to be stationary up to step 10,000" in succeeds(run("stop", "--model", "resting"))
    slow = ("stop", "--model", "resting", "--rule", "displacement")
    out = succeeds(run(*slow))
    assert "stops at step 8,000 of 10,000 and saves 20.0% of the steps; what it costs in loss is not known" in out
    (tmp_path / "loss.csv").write_text("step,loss\n1000,3.0\n7500,2.5\n10000,2.25\n")
    out = succeeds(run(*slow, "--loss", tmp_path / "loss.csv", "--patience", 2))
    assert "stops at step 7,000 of 10,000" in out
    assert "costs 0.75 nats per token: 3 at step 1,000, 2.25 at the end" in out
    (fact,) = json.loads(succeeds(run(*slow, "--threshold", 1e-6, "--json")))["stop"]
    assert (fact["stopped_at"], fact["saved"], fact["loss_cost"]) == (None, 0.0, None)
    assert "does not stop" in succeeds(run("stop", "--model", "resting", "--rule", "msd"))
    out_directory = place / "results" / "resting" / EMBED_OUT
    with (out_directory / "stop.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "displacement_rate", "msd", "msd_null", "msd_null_sd", "stationary"]
    assert float(rows[6]["displacement_rate"]) == pytest.approx(0.001, rel=0.1)
    assert (out_directory / "stop.png").stat().st_size > 5000
    assert json.loads((out_directory / "provenance.json").read_text())["stop"]["kind"] == "msd"


def test_stop_knows_the_loss_of_a_suite(run: Run, suite: Path, tmp_path: Path) -> None:
    succeeds(run("fetch", "--model", suite))
    arguments = (
        "stop",
        "--model",
        "own",
        "--rule",
        "displacement",
        "--threshold",
        1e6,
        "--results",
        tmp_path,
        "--json",
    )
    (fact,) = json.loads(succeeds(run(*arguments)))["stop"]
    with (suite / "losses.csv").open(newline="") as file:
        losses = {int(row["step"]): float(row["validation_loss"]) for row in csv.DictReader(file)}
    assert (fact["stopped_at"], fact["loss_from"]) == (6, str(suite / "losses.csv"))
    assert fact["loss_cost"] == pytest.approx(losses[6] - losses[8])
    (tmp_path / "own" / "perplexity-forward.csv").write_text("step,nll_mean\n6,3.0\n8,2.5\n")
    (fact,) = json.loads(succeeds(run(*arguments)))["stop"]
    assert fact["loss_from"].endswith("perplexity-forward.csv")
    assert fact["loss_cost"] == pytest.approx(0.5)


def test_phases_of_one_model_and_of_two(run: Run, place: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        succeeds(run("fetch", "--model", write_history(tmp_path / name, [0.1] * 20 + [0.3] * 20)))
    out = succeeds(run("phases", "--model", "one"))
    assert "undecided: the displacement rate changes at 21,000, but the learning rate is not known" in out
    (tmp_path / "rate.csv").write_text("step,learning_rate\n0,0.001\n40000,0.001\n")
    known = ("--learning-rate", tmp_path / "rate.csv")
    out = succeeds(run("phases", "--model", "one", *known))
    assert "displacement rate: 21,000; direction: no change" in out
    assert "undecided" not in out
    facts = json.loads(succeeds(run("phases", "--model", "one", "--model", "two", *known, "--json")))["phases"]
    assert [fact["model"] for fact in facts] == ["one", "two"]
    assert facts[0]["changes"]["displacement_rate"] == [21_000]
    assert facts[0]["rows"][0]["models"] == 1
    with (place / "results" / "one" / EMBED_OUT / "phases.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["detector"], row["step"], row["models"]) == ("one", "displacement_rate", "21000", "1")
    assert float(row["after"]) == pytest.approx(9 * float(row["before"]), rel=0.1)
    assert (place / "results" / "one" / EMBED_OUT / "phases.svg").is_file()
    assert "no weights" in fails(run("phases", "--cache", tmp_path / "empty"))


# -- reproduce ------------------------------------------------------------------------------------------------


def test_reproduce_prints_a_verdict_per_claim(run: Run, place: Path, corpus: Path) -> None:
    arguments = ("reproduce", "order-parameter", "--quick", "--size", "10k", "--corpus", corpus, *TINY)
    out = succeeds(run(*arguments, "--out", place / "suites"))
    for said in ("SUPPORTED: b begins at 0.146", " grows monotonically during", "NOT TESTABLE HERE: The slope dL/db"):
        assert said in out
    assert (place / "suites" / "order-quick-10k" / "step8").is_dir()
    assert "no size '2k'" in fails(run("reproduce", "order-parameter", "--size", "2k", "--corpus", corpus))


def test_suites_that_were_trained_alone_are_those_of_reproduce(
    run: Run, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process for each size and seed, then one that measures and compares them all."""
    numbers = ("--corpus", corpus, *TINY, "--max-steps", 4)
    places = ("--cache", tmp_path, "--results", tmp_path / "results")
    for seed in (0, 1):
        out = tmp_path / f"order-10k-seed{seed}"
        succeeds(run("train", "--arch", "nanogpt", "--size", "10k", "--seed", seed, "--out", out, *numbers))
    monkeypatch.setattr("pythia_dynamics.training.loop._train", lambda *_: pytest.fail("trained again"))
    said = succeeds(run("reproduce", "order-parameter", "--size", "10k", "--seeds", 2, *numbers, *places))
    assert "SUPPORTED: b begins at 0.146" in said
    with (tmp_path / "results" / "order-parameter" / "runs.csv").open(newline="") as file:
        rows = [(row["seed"], row["step"]) for row in csv.DictReader(file)]
    assert rows == [(seed, step) for seed in "01" for step in "024"]


def test_help_names_every_command(run: Run) -> None:
    text = succeeds(run("--help"))
    for name in ("train", "stop", "phases", "reproduce"):
        assert f"  {name} " in text
    assert "order-parameter" in succeeds(run("reproduce", "--help"))
