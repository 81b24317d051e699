"""The examples in the documentation run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from click.testing import CliRunner

from pythia_dynamics.cli.app import main

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")) if found == language]


def test_training_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    watched, loop = blocks("train_your_own.md", "python")
    assert len(watched.splitlines()) <= 60
    names: dict[str, object] = {}
    exec(compile(watched, "train_your_own.md", "exec"), names)
    assert names["history"].steps.tolist() == list(range(0, 121, 5))  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "counting.png").stat().st_size > 10_000
    exec(compile(loop, "train_your_own.md", "exec"), {})
    (said,) = re.findall(r"stationary at step (\d+), loss (\S+)", capsys.readouterr().out)
    assert 500 < int(said[0]) < 20_000
    result = CliRunner().invoke(main, ["msd", "--model", "counting"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "results" / "counting" / "msd.csv").is_file()


def test_the_commands_of_the_page_are_commands() -> None:
    (commands,) = blocks("train_your_own.md", "bash")
    named = [line.split()[1:] for line in commands.splitlines()]
    assert [words[0] for words in named] == ["train", "fetch", "order", "perplexity"]
    for words in named:
        options = [word for word in words if word.startswith("--") and word != "--seeds"]
        text = CliRunner().invoke(main, [words[0], "--help"]).output
        assert all(f"{option} " in text for option in options)
