"""The command perplexity: what it passes on, and what it does when a model fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.tiny_models import TEXTS, encode, model, write_checkpoint

from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation import corpus, portrait, runner
from pythia_dynamics.evaluation.corpus import load_corpus
from pythia_dynamics.evaluation.settings import EvaluationSettings

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: drawing takes time."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(TEXTS))

    def invoke(*arguments: object) -> Result:
        words = ["perplexity", "--device", "cpu", "--corpus", str(corpus), *map(str, arguments)]
        return CliRunner(env=environment).invoke(main, words)

    return invoke


@pytest.fixture
def suites(tmp_path: Path) -> dict[str, Path]:
    """Two suites that can be evaluated, and between them one without a tokenizer."""
    for seed, name in enumerate(("one", "bare", "two")):
        write_checkpoint(tmp_path / name / "step1", model(seed))
    (tmp_path / "bare" / "step1" / "tokenizer.json").unlink()
    return {name: tmp_path / name for name in ("one", "bare", "two")}


def failure(result: Result) -> str:
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def test_a_model_that_fails_keeps_no_other_from_being_evaluated(
    run: Run, suites: dict[str, Path], tmp_path: Path
) -> None:
    models = [word for name in ("70n", *suites.values()) for word in ("--model", name)]
    result = run(*models)
    line = failure(result)
    assert line.startswith("pythia-dyn: no model '70n'; did you mean 70m")
    assert f"; none of 1 revisions of {suites['bare']} gave a perplexity" in line
    assert line.count("tokenizer.json") == 1
    assert str(suites["one"]) not in line
    for name in ("one", "two"):
        assert len((tmp_path / "results" / name / "perplexity-forward.csv").read_text().splitlines()) == 2
        assert str(tmp_path / "results" / name / "perplexity-forward.csv") in result.stdout
    result = run(*models, "--json")
    assert failure(result) == line
    assert [fact["model"] for fact in json.loads(result.stdout)["perplexity"]] == ["one", "two"]


@pytest.mark.parametrize(("name", "reason"), [("70n", "no model '70n'"), ("demo", "`pythia-dyn demo` makes it")])
def test_names_are_checked_before_the_corpus_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(corpus, "load_corpus", lambda *arguments, **options: pytest.fail("loaded"))
    assert reason in failure(run("--model", name))


def test_completions_go_on_past_a_model_that_fails(run: Run, suites: dict[str, Path]) -> None:
    models = [word for path in suites.values() for word in ("--model", path)]
    result = run(*models, "--show", "the cat sat", "--json")
    assert "tokenizer.json" in failure(result)
    told = json.loads(result.stdout)["perplexity"]
    assert [fact["model"] for fact in told] == ["one", "two"]
    assert all(len(fact["completions"]) == len(encode("the cat sat")) - 1 for fact in told)


def test_a_step_without_a_perplexity_is_told_beside_a_model_that_fails(run: Run, suites: dict[str, Path]) -> None:
    line = failure(run("--model", suites["one"], "--model", "70n", "--steps", "1,5"))
    assert line.startswith("pythia-dyn: no model '70n'")
    assert line.endswith("; 1 steps have no perplexity (see above); run the same command again to retry them")


def test_steps_with_a_tokenizer_of_their_own_are_told_in_one_line(run: Run, tmp_path: Path) -> None:
    for step in (1000, 3000, 4000):
        write_checkpoint(tmp_path / "own" / f"step{step}", model(step))
    for step in (3000, 4000):
        file = tmp_path / "own" / f"step{step}" / "tokenizer.json"
        content = json.loads(file.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["o"], vocabulary["z"] = vocabulary["z"], vocabulary["o"]
        file.write_text(json.dumps(content))
    note = "steps 3000, 4000 have another tokenizer than step 1000; each was evaluated with its own"
    for _ in range(2):  # the second run takes up the rows of the first
        result = run("--model", tmp_path / "own")
        assert result.exit_code == 0, result.stderr
        assert [line for line in result.output.splitlines() if "note:" in line] == [f"  note: own: {note}"]
    (tmp_path / "own" / "step4000" / "tokenizer.json").unlink()
    result = run("--model", tmp_path / "own", "--show", "the cat sat")
    assert result.exit_code == 0, (result.output, result.exception)
    (line,) = [line for line in result.output.splitlines() if "note:" in line]
    assert line == "  note: own: step 4000 has no tokenizer and was evaluated with that of step 3000"


def test_every_option_reaches_the_settings(
    run: Run, suites: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def evaluate(model: Any, modes: Any, settings: EvaluationSettings, *, out: Path, **how: Any) -> Any:
        seen.append((model.name, modes, settings, out))
        raise PythiaDynError("seen")

    def complete(model: Any, phrase: str, settings: EvaluationSettings, *, step: int | None) -> Any:
        seen.append((phrase, settings.head, step))
        raise PythiaDynError("seen")

    monkeypatch.setattr(runner, "evaluate", evaluate)
    monkeypatch.setattr(portrait, "completions", complete)
    options = ["--mode", "unmask", "--mode", "forward", "--limit", 3, "--steps", "1,2", "--source", tmp_path]
    options += ["--dtype", "bfloat16", "--tf32", "--head", "ternary", "--batch-tokens", 99, "--disk-budget", 1.5]
    options += ["--max-tokens", 7]
    run("--model", suites["one"], *options)
    run("--model", suites["one"], *options, "--show", "a phrase")
    settings = EvaluationSettings(
        corpus=load_corpus(tmp_path / "texts.txt", limit=3), limit=3, steps="1,2", device="cpu", dtype="bfloat16",
        head="ternary", tf32=True, source=str(tmp_path), batch_tokens=99, disk_budget=1_500_000_000,
        max_tokens=7,
    )  # fmt: skip
    assert seen == [
        ("one", ("unmask", "forward"), settings, tmp_path / "results" / "one" / "ternary"),
        ("a phrase", "ternary", 2),
    ]


def test_passages_are_cut_after_so_many_tokens(run: Run, suites: dict[str, Path], tmp_path: Path) -> None:
    assert run("--model", suites["one"], "--max-tokens", 4).exit_code == 0
    found = json.loads((tmp_path / "results" / "one" / "perplexity-forward.json").read_text())
    assert found["settings"]["max_tokens"] == found["notes"]["context"] == 4
    assert run("--model", suites["one"], "--max-tokens", 1).exit_code == 2


@pytest.mark.parametrize("command", [["portrait"], ["reproduce", "garden"], ["train"]])
def test_other_commands_refuse_several_devices(command: list[str]) -> None:
    line = failure(CliRunner().invoke(main, [*command, "--device", "cuda:0,cuda:1"]))
    assert line.startswith("pythia-dyn: --device cuda:0,cuda:1 names several devices; only")


def test_completions_take_one_device(run: Run, suites: dict[str, Path]) -> None:
    line = failure(run("--model", suites["one"], "--show", "the cat sat", "--device", "cpu,cpu"))
    assert line == "pythia-dyn: --device cpu,cpu names several devices; only evaluations are computed on several"
    assert "names several devices" not in failure(run("--model", suites["one"], "--device", "cpu,gpu"))


def test_settings_that_are_wrong_are_told_once(run: Run, suites: dict[str, Path]) -> None:
    models = [word for path in suites.values() for word in ("--model", path)]
    assert failure(run(*models, "--device", "gpu")).count("no device 'gpu'") == 1
    assert failure(run(*models, "--steps", "some")).count("cannot read steps") == 1
    assert failure(run(*models, "--corpus", "absent.txt")).count("no corpus file absent.txt") == 1


def test_a_rounded_head_has_results_of_its_own(run: Run, suites: dict[str, Path], tmp_path: Path) -> None:
    for options in ([], ["--head", "ternary"]):
        done = run("--model", suites["one"], *options)
        assert done.exit_code == 0, done.stderr
    plain, rounded = (tmp_path / "results" / "one" / part / "perplexity-forward.csv" for part in ("", "ternary"))
    assert plain.read_text() != rounded.read_text()
    settings = json.loads(rounded.with_suffix(".json").read_text())["settings"]
    assert settings["head"] == "ternary"


# -- results that are there stay ---------------------------------------------------------------------------------


@pytest.fixture
def long(tmp_path: Path) -> Path:
    for step in (10, 20, 30, 40):
        write_checkpoint(tmp_path / "long" / f"step{step}", model(step))
    return tmp_path / "long"


def table(tmp_path: Path) -> list[str]:
    return (tmp_path / "results" / "long" / "perplexity-forward.csv").read_text().splitlines()


def test_a_short_try_replaces_no_table(run: Run, long: Path, tmp_path: Path) -> None:
    assert run("--model", long).exit_code == 0
    before = table(tmp_path)
    assert len(before) == 5
    line = failure(run("--model", long, "--limit", 2, "--steps", "10,20"))
    assert "perplexity-forward.csv has 4 rows of other settings (" in line
    assert "passages: 6 → 2" in line
    assert "--overwrite replaces them" in line
    assert table(tmp_path) == before
    assert run("--model", long, "--limit", 2, "--steps", "10,20", "--overwrite").exit_code == 0
    assert len(table(tmp_path)) == 3


def test_steps_that_are_asked_for_one_after_the_other_add_up(run: Run, long: Path, tmp_path: Path) -> None:
    for steps in ("20,40", "10", "20,30"):
        assert run("--model", long, "--steps", steps).exit_code == 0
    whole = table(tmp_path)
    assert [line.split(",")[0] for line in whole[1:]] == ["10", "20", "30", "40"]
    assert run("--model", long, "--overwrite").exit_code == 0  # of the same settings: nothing to replace
    assert table(tmp_path) == whole


@pytest.mark.parametrize(("gain", "said"), [(1.9, True), (1.1, False), (0.2, False)])
def test_a_processor_that_is_faster_in_bfloat16_is_told_of(
    gain: float, said: bool, run: Run, suites: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pythia_dynamics.evaluation.products.bfloat16_gain", lambda: gain)
    result = run("--model", suites["one"])
    assert ("--dtype bfloat16" in result.stdout + result.stderr) == said
    again = run("--model", suites["one"], "--dtype", "bfloat16", "--overwrite")
    assert "1.9 times" not in again.stdout + again.stderr


def test_two_processes_write_the_rows_of_one(run: Run, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path / "three" / f"step{step}", model(step))
    one = run("--model", tmp_path / "three")
    assert one.exit_code == 0, one.stderr
    table = tmp_path / "results" / "three" / "perplexity-forward.csv"
    expected = table.read_text()
    for path in [*table.parent.glob("perplexity-forward.json"), table]:
        path.unlink()
    two = run("--model", tmp_path / "three", "--device", "cpu,cpu")
    assert two.exit_code == 0, two.stderr
    assert table.read_text() == expected
