"""``--learning-rate FILE`` and ``--axis`` on the command line, and what the results say of the learning rate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.project import Project, walk_project

from pythia_dynamics.cli import main

SHOWN = "cumulative learning rate Ση"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr.csv").write_text("step,lr\n0,1\n40,0.5\n")
    return walk_project(tmp_path)


def text_of(path: str) -> str:
    """All text of a figure."""
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", Path(path).read_text()))


def provenance(kind: str) -> Any:
    return json.loads(Path("results/walk/embed_out.weight/provenance.json").read_text())[kind]


def header(table: str) -> str:
    return Path(f"results/walk/embed_out.weight/{table}.csv").read_text().splitlines()[0]


def test_a_measure_takes_it_for_one_call(project: Project) -> None:
    project.fetch("walk")
    plain = project.facts("msd", "--model", "walk", "--no-two-time")
    assert "learning_rate" not in header("msd")
    assert provenance("msd")["learning_rate"] == "not known"
    before = Path("results/walk/embed_out.weight/msd.csv").read_text().splitlines()
    given = project.facts("msd", "--model", "walk", "--no-two-time", "--learning-rate", "lr.csv")
    assert [{**each, "files": []} for each in given] == [{**each, "files": []} for each in plain]
    assert header("msd").endswith(",displacement,displacement_per_learning_rate,squared_displacement_per_learning_rate")
    after = Path("results/walk/embed_out.weight/msd.csv").read_text().splitlines()
    assert [line.rsplit(",", 2)[0] for line in after] == before  # the other columns stay as they are
    assert provenance("msd")["learning_rate"] == "lr.csv"
    project.facts("msd", "--model", "walk", "--no-two-time")
    assert Path("results/walk/embed_out.weight/msd.csv").read_text().splitlines() == before


def test_a_fetch_keeps_it_and_every_figure_can_be_along_it(project: Project) -> None:
    project.fetch("walk", "--learning-rate", "lr.csv")
    Path("lr.csv").unlink()
    for command in ("density", "msd", "stop", "phases"):
        (facts,) = project.facts(command, "--model", "walk", "--axis", "learning-rate")
        (drawn, *_) = [path for path in facts["files"] if path.endswith(".svg")]
        assert SHOWN in text_of(drawn), command
        assert "training step" not in text_of(drawn).replace("colour", ""), command
        assert provenance(command.replace("-", "_"))["learning_rate"] == "lr.csv"
    (facts,) = project.facts("order", "--model", "walk")
    assert all("training step" in text_of(path) for path in facts["files"] if path.endswith(".svg"))
    drawn = [path for path in project.facts("figures", "--axis", "learning-rate")["walk"] if path.endswith(".svg")]
    assert len(drawn) >= 3
    assert all(SHOWN in text_of(path) for path in drawn)
    assert project.run("report", "--axis", "learning-rate").exit_code == 0
    page = Path("results/report.html").read_text()
    assert SHOWN in page


def test_what_cannot_be_is_one_line(project: Project) -> None:
    project.fetch("walk")
    failure = project.failure
    assert "the tokens of walk are not known" in failure("msd", "--model", "walk", "--axis", "tokens")
    line = failure("order", "--model", "walk", "--axis", "learning-rate")
    assert "the learning rate of walk is not known; give it with --learning-rate FILE" in line
    assert not Path("results").exists()
    assert project.run("order", "--model", "walk").exit_code == 0
    assert "the tokens of walk are not known" in failure("figures", "--axis", "tokens")
    assert "the tokens of walk are not known" in failure("report", "--axis", "tokens")
    for content, message in {
        "step,lr\n500,1\n": "is of steps 500 to 500, but walk has steps 10 to 40; none is common",
        "step,lr\n10,-1\n": "bad.csv: the learning rate at step 10 is -1.0; it must be finite and at least 0",
        "step,eta\n10,1\n": "must have the columns step and learning_rate (or lr); it has step, eta",
        "": "cannot read learning rates from bad.csv: it is empty",
    }.items():
        Path("bad.csv").write_text(content)
        for command in ("fetch", "density", "stop"):
            assert message in project.run(command, "--model", "walk", "--learning-rate", "bad.csv").stderr, command
    assert "does not exist" in failure("rank", "--learning-rate", "absent.csv", code=2)
    assert "is not one of" in failure("rank", "--axis", "time", code=2)


def test_models_with_different_learning_rates_side_by_side(project: Project) -> None:
    project.fetch("walk", "--learning-rate", "lr.csv")
    assert project.run("msd", "--model", "walk").exit_code == 0
    for path in Path("results/walk").rglob("*"):
        target = Path("results/other") / path.relative_to("results/walk")
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    result = project.run("figures", "--axis", "learning-rate")
    assert result.exit_code == 0
    assert "no common axis" not in result.output
    file = Path("results/other/embed_out.weight/provenance.json")
    made = json.loads(file.read_text())
    for entry in made.values():
        entry["coordinates"]["learning_rate"] = [1, 1, 1, 1]
    file.write_text(json.dumps(made))
    result = project.run("figures", "--axis", "learning-rate")
    assert result.exit_code == 0
    assert "models with a different learning rate at a step have no common axis" in result.output
    assert "training step" in text_of("results/figures/garden-msd.svg")


def test_the_options_are_on_every_command_of_weights() -> None:
    import click

    context = click.Context(main)
    measures = ("density", "msd", "order", "rank", "spectrum", "two-time", "angles", "tails", "rows")
    for command in (*measures, "stop", "phases"):
        found = main.get_command(context, command)
        assert found is not None
        assert {"learning_rate", "axis"} <= {parameter.name for parameter in found.get_params(context)}, command
