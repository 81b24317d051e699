"""``--width`` on the command line: every command that writes figures has it and draws at that width."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from support.project import Project, walk_project

from pythia_dynamics.cli import main
from pythia_dynamics.cli.garden import garden
from pythia_dynamics.cli.reproduce import order_parameter


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return walk_project(tmp_path)


def inches(paths: list[str]) -> set[float]:
    """The widths of the figures among some files."""
    texts = [Path(path).read_text() for path in paths if path.endswith(".svg")]
    return {float(found[1]) / 72 for text in texts if (found := re.search(r'width="([\d.]+)pt"', text))}


def test_the_option_is_on_every_command_that_draws() -> None:
    context = click.Context(main)
    measures = ("density", "msd", "order", "rank", "spectrum", "two-time", "angles", "tails", "rows", "alignment")
    names = (*measures, "stop", "phases", "perplexity", "representation", "figures")
    commands = [main.get_command(context, name) for name in (*names, "portrait", "demo")]
    for command in (*commands, garden, order_parameter):
        assert command is not None
        assert "width" in {parameter.name for parameter in command.get_params(context)}, command.name


def test_commands_draw_at_the_width(project: Project) -> None:
    project.fetch("walk")
    (facts,) = project.facts("spectrum", "--model", "walk", "--width", "column")
    assert inches(facts["files"]) == {3.25}
    assert sum(path.endswith(".pdf") for path in facts["files"]) == 1
    for command in ("stop", "phases"):
        (facts,) = project.facts(command, "--model", "walk", "--width", "page")
        assert inches(facts["files"]) == {6.75}
    again = project.facts("figures", "--width", "column")["walk"]
    assert inches(again) == {3.25}
    plain = project.facts("figures")["walk"]  # the width of one command is not that of the next
    assert inches(plain).isdisjoint({3.25, 6.75})
    assert not any(path.endswith(".pdf") for path in plain)
    assert "is not one of" in project.failure("figures", "--width", "4", code=2)
