"""The commands of the page make the same results again, as they are typed in a shell."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from support.tiny_models import TEXTS, model, write_checkpoint

from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.report.commands import commands
from pythia_dynamics.results.commands import running, steps_option, typed_command
from pythia_dynamics.results.folder import Results

DENSE = "gpt_neox.layers.0.attention.dense.weight"
CACHE, RESULTS = ("--cache", "a cache"), ("--results", "the results")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a suite and a text, whose names have spaces. Drawing takes time and is tested elsewhere."""
    place = tmp_path / "my project"
    for seed, step in enumerate((0, 10, 20, 30, 50)):
        write_checkpoint(place / "my suites" / "tiny one" / f"step{step}", model(seed))
    (place / "texts").mkdir()
    (place / "texts" / "it's mine.txt").write_text("\n\n".join(TEXTS[:2]))
    (place / "rate.csv").write_text("step,learning_rate\n0,0.001\n50,0.0001\n")
    monkeypatch.chdir(place)
    monkeypatch.setattr(figures, "save", lambda figure, path: [])
    return place


def run(*words: object) -> None:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, (words, result.output, result.exception)


def shown_on(page: Path) -> list[str]:
    """The commands under "To do it again"."""
    (block,) = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page.read_text(), re.DOTALL)
    return html.unescape(block).splitlines()


def content(folder: Path) -> dict[str, bytes]:
    """The tables and verdicts of a directory of results."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.csv")}


def make_results(*, tensor: str | None) -> None:
    model_, chosen = ("--model", "my suites/tiny one"), () if tensor is None else ("--tensor", tensor)
    text = ("--corpus", "texts/it's mine.txt", "--limit", 2, "--device", "cpu", "--max-tokens", 20)
    run("fetch", *model_, *chosen, "--steps", "0:30:10,50", *CACHE)
    run("perplexity", *model_, "--mode", "forward", "--mode", "last-word", *text, *CACHE, *RESULTS)
    run("perplexity", *model_, "--head", "ternary", "--steps", "50", *text, *CACHE, *RESULTS)
    run("verify", *model_, *CACHE, *RESULTS, "--json")
    run("msd", *chosen, "--axis", "log-step", "--learning-rate", "rate.csv", *CACHE, *RESULTS)
    run("stop", *chosen, "--rule", "displacement", "--threshold", 2.5, "--learning-rate", "rate.csv", *CACHE, *RESULTS)
    run("phases", *chosen, "--strength", 4, "--learning-rate", "rate.csv", *CACHE, *RESULTS)


@pytest.mark.parametrize("tensor", [None, DENSE])
def test_the_commands_work_as_typed(project: Path, tensor: str | None) -> None:
    chosen = () if tensor is None else ("--tensor", tensor)
    make_results(tensor=tensor)
    run("rank", *chosen, "--draws", 2, "--drop-padding", 20, "--steps", "0,10,20", *CACHE, *RESULTS)
    results = Results("tiny one", "the results")
    lines = commands(results if tensor is None else results.of(tensor))
    (project / "the results").rename(project / "first")
    shutil.rmtree(project / "a cache")
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "pythia-dyn"
        run(*words)
    again, first = content(project / "the results"), content(project / "first")
    assert set(again) == set(first)
    assert again == first
    assert len(first) >= 8
    assert set(lines) == set(commands(results if tensor is None else results.of(tensor)))


def test_a_measure_of_all_tensors_is_fetched_with_all_of_them(project: Path) -> None:
    model_ = ("--model", "my suites/tiny one")
    run("fetch", *model_, "--tensor", "all", *CACHE)
    run("msd", *model_, "--no-two-time", *CACHE, *RESULTS)
    run("order", "--tensor", "*.attention.*", f"--tensor={DENSE}", "--tensor", "embedding", *CACHE, *RESULTS)
    fetched, *others = commands(Results("tiny one", "the results"))
    assert fetched == (
        f"pythia-dyn fetch --model 'my suites/tiny one' --tensor '*.attention.*' --tensor {DENSE} --tensor embedding "
        "--tensor unembedding --steps 0:30:10,50 --cache 'a cache'"
    )
    before = content(Path("the results"))
    assert any("overview-order" in name for name in before)
    shutil.rmtree("a cache")
    shutil.rmtree("the results")
    for line in (fetched, *others):
        run(*shlex.split(line)[1:])
    assert content(Path("the results")) == before
    run("order", "--tensor", "all", *CACHE, *RESULTS)
    fetched, *_ = commands(Results("tiny one", "the results"))
    assert fetched == "pythia-dyn fetch --model 'my suites/tiny one' --tensor all --steps 0:30:10,50 --cache 'a cache'"


def test_the_options_of_a_suite_are_fetched_with_again(project: Path) -> None:
    suite = project / "my suites" / "tiny one"
    for step in (10, 20):
        (suite / f"step{step}").rename(suite / f"after {step} of B")
    own = (
        "--revision-pattern",
        r"^after (?P<step>\d+) of (?P<stage>\w)$",
        "--stage",
        "B",
        "--config",
        "my suites/tiny one/step0",
    )
    run("fetch", "--model", "my suites/tiny one", *own, *CACHE)
    run("order", *CACHE, *RESULTS)
    (name,) = (folder.name for folder in Path("the results").iterdir())
    fetched, *_ = lines = commands(Results(name, "the results"))
    words = ["fetch", "--model", "my suites/tiny one", *own, "--steps", "10,20", *CACHE]
    assert fetched == shlex.join(["pythia-dyn", *map(str, words)])
    before = content(Path("the results"))
    shutil.rmtree("a cache")
    shutil.rmtree("the results")
    for line in lines:
        run(*shlex.split(line)[1:])
    assert content(Path("the results")) == before


def test_the_page_has_them_with_its_own(project: Path) -> None:
    make_results(tensor=DENSE)
    own = ("report", "--tensor", DENSE, "--out", "the pages/a page.html", "--axis", "log-step", *CACHE, *RESULTS)
    run(*own)
    page = project / "the pages" / "a page.html"
    lines = shown_on(page)
    assert lines[0] == (
        f"pythia-dyn fetch --model 'my suites/tiny one' --tensor {DENSE} --steps 0:30:10,50 --cache 'a cache'"
    )
    assert lines[-1] == shlex.join(["pythia-dyn", *own])
    assert html.escape(lines[-1]).replace("&#x27;", "&#39;") in page.read_text().split("<nav")[0]
    for words in (
        *("--corpus 'texts/it'\"'\"'s mine.txt' --limit 2", f"--tensor {DENSE} --axis log-step", "--head ternary"),
        *("--threshold 2.5", "--strength 4", "verify --model 'my suites/tiny one'"),
    ):
        assert any(words in line for line in lines), words
    page.unlink()
    run(*shlex.split(lines[-1])[1:])
    assert shown_on(page) == lines


def test_the_environment_and_a_missing_model_are_written_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHIA_DYN_CACHE", str(project / "a cache"))
    monkeypatch.setenv("PYTHIA_DYN_RESULTS", "the results")
    run("fetch", "--model", "my suites/tiny one")
    run("-q", "order", f"--results={project}/elsewhere", "--json")
    made = Results("tiny one", "elsewhere").weights().provenance()["order"]
    # Paths inside the working directory are relative: the command works in a copy of the project, too.
    assert made["command"] == "pythia-dyn order --results=elsewhere --cache 'a cache' --model 'tiny one'"
    for variable in ("PYTHIA_DYN_CACHE", "PYTHIA_DYN_RESULTS"):
        monkeypatch.delenv(variable)
    shutil.rmtree(project / "elsewhere")
    run(*shlex.split(made["command"])[1:])
    assert (project / "elsewhere" / "tiny one" / "embed_out.weight" / "order.csv").is_file()


def test_results_of_python_have_commands_that_can_be_read(models: list[Results]) -> None:
    for results in models:
        for line in commands(results):
            program, name, *words = shlex.split(line)
            command = main.get_command(click.Context(main), name)
            assert (program, command is None) == ("pythia-dyn", False), line
            command.make_context(name, words).close()  # every option is known, and every value is allowed
    lines = commands(models[0])
    assert "pythia-dyn portrait --model walk --phrase 'a cat sat'" in lines
    assert not any("None" in line for line in lines)


def test_a_whole_command_fetches_itself(tmp_path: Path) -> None:
    results = Results("demo", tmp_path)
    with running(["demo", "--seed", "3"], lacks_model=False):
        results.of("embed_out.weight").record("msd", {"source": "../../../cache/demo", "tensor": "embed_out.weight"})
    assert commands(results) == ("pythia-dyn demo --seed 3",)
    with running(["msd", "--tensor", "norm"], lacks_model=True):
        assert typed_command("demo") == "pythia-dyn msd --tensor norm --model demo"
        made = {"source": str(tmp_path), "tensor": "norm", "steps": [1, 2]}
        results.of("norm").record("msd", made)
    results.record("perplexity-forward", {"command": "pythia-dyn demo --seed 3"})
    assert commands(results.of("norm")) == (
        "pythia-dyn demo --seed 3",
        f"pythia-dyn fetch --model {tmp_path} --tensor norm --steps 1,2",
        "pythia-dyn msd --tensor norm --model demo",
    )
    assert typed_command() is None


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        *(([5], "5"), ([1, 2], "1,2"), ([1, 2, 3], "1:3:1"), ([0, 1, 2, 4, 8], "0:2:1,4,8")),
        ([0, 1, 2, 4, 1000, 2000, 3000, 3500], "0:2:1,4,1000:3000:1000,3500"),
        ([10, 20, 30, 50, 70, 90], "10:30:10,50:90:20"),
    ],
)
def test_steps_are_an_option(steps: list[int], text: str) -> None:
    from pythia_dynamics.checkpoints.registry import parse_steps

    assert steps_option(steps) == f" --steps {text}"
    assert parse_steps(text) == tuple(steps)
