"""Options of `angles` and `rows` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tokenizers
from support.project import Project
from support.tiny_models import write_suite

HEAD = "embed_out.weight"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path / "suite", (1000, 2000, 3000))
    made = Project(tmp_path)
    made.fetch("suite")
    return made


def test_rows_count_the_tokens_of_a_text(project: Project) -> None:
    folder = project.place / "results" / "suite" / HEAD
    (facts,) = project.facts("rows", "--model", "suite")
    assert "unigram_r2" not in pd.read_csv(folder / "rows.csv")
    assert "unigram_r2" not in facts
    (facts,) = project.facts("rows", "--model", "suite", "--frequencies", project.corpus)
    table = pd.read_csv(folder / "rows.csv")
    assert table["unigram_r2"].between(0, 1).all()
    assert len(facts["unigram_r2"]) == 2
    made = json.loads((folder / "provenance.json").read_text())["rows"]
    assert made["frequencies"].endswith("texts.txt")
    counts = project.place / "counts.csv"
    counts.write_text("token_id,count\n" + "".join(f"{token},{token + 1}\n" for token in range(20)))
    (facts,) = project.facts("rows", "--model", "suite", "--frequencies", counts)
    assert pd.read_csv(folder / "rows.csv")["unigram_r2"].tolist() != table["unigram_r2"].tolist()
    counts.write_text("a,b\n")
    assert "counts.csv" in project.failure("rows", "--model", "suite", "--frequencies", counts)


def test_rows_take_a_tokenizer(project: Project, tmp_path: Path) -> None:
    table = project.place / "results" / "suite" / HEAD / "rows.csv"
    flags = ("rows", "--model", "suite", "--frequencies", project.corpus)
    project.facts(*flags)
    expected = table.read_bytes()
    lent = tmp_path / "lent"
    lent.mkdir()
    own = sorted(Path("suite").rglob("tokenizer.json"))
    shutil.copy(own[0], lent)
    for path in own:
        path.unlink()
    line = project.failure(*flags)
    assert "the tokenizer of suite is not known: give it with --tokenizer" in line
    for place in (lent, lent / "tokenizer.json"):
        table.unlink()
        project.facts(*flags, "--tokenizer", place)
        assert table.read_bytes() == expected
    made = json.loads(table.with_name("provenance.json").read_text())["rows"]
    assert f"--tokenizer {lent / 'tokenizer.json'}" in made["command"] or "--tokenizer lent" in made["command"]
    assert "has no tokenizer.json; check --tokenizer" in project.failure(*flags, "--tokenizer", "results")
    assert "no-such is neither" in project.failure(*flags, "--tokenizer", "no such/no-such")
    assert "give --frequencies TEXT" in project.failure("rows", "--model", "suite", "--tokenizer", lent)
    wide = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 10_000}, unk_token="[UNK]"))
    wide.save(str(lent / "tokenizer.json"))
    assert "has token 10000; embed_out.weight has" in project.failure(*flags, "--tokenizer", lent)
    assert table.read_bytes() == expected  # a command that fails leaves the results


def test_the_equilibrium_needs_a_learning_rate(project: Project) -> None:
    folder = project.place / "results" / "suite" / HEAD
    words = ("angles", "--model", "suite", "--weight-decay", "0.1")
    assert "needs the learning rate of suite" in project.failure(*words)
    rate = project.place / "rate.csv"
    rate.write_text("step,learning_rate\n1000,1e-3\n3000,1e-4\n")
    (facts,) = project.facts(*words, "--learning-rate", rate)
    assert facts["equilibrium_norm"][0] > facts["equilibrium_norm"][1] > 0
    assert pd.read_csv(folder / "angles.csv")["equilibrium_angle"].notna().tolist() == [False, True, True]
    assert json.loads((folder / "provenance.json").read_text())["angles"]["weight_decay"] == 0.1
    assert any(path.endswith("angles.svg") for path in project.facts("figures", "--model", "suite")["suite"])
    (facts,) = project.facts("angles", "--model", "suite")
    assert "equilibrium_angle" not in pd.read_csv(folder / "angles.csv")
