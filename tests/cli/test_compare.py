"""The command ``compare``: its table, facts, files and errors, and that nothing takes its folder for a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.project import Project
from support.tiny_models import model, write_checkpoint

from pythia_dynamics import figures
from pythia_dynamics.results.folder import Results


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seeds of a suite with two checkpoints each, fetched."""
    directory = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for seed in range(4):
            for step in (10, 20):
                write_checkpoint(Path(f"tiny-seed{seed}") / f"step{step}", model(10 * seed + step))
            Project(directory).fetch(f"tiny-seed{seed}", "--tensor", "unembedding", "--tensor", "embedding")
    return directory


@pytest.fixture
def project(place: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(place)
    return Project(place)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take time, and are tested elsewhere."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [path.with_suffix(".png")])


@pytest.mark.usefixtures("undrawn")
def test_the_table_is_aligned_and_has_units_and_the_floor(project: Project) -> None:
    shown = project.run("compare", "tiny-seed0@10", "tiny-seed1@10", "--floor", "tiny-seed*")
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("A  tiny-seed0@10: embed_out.weight (304 × 32), norm ")
    table = lines[lines.index(next(line for line in lines if "independent" in line)) : -3]
    (angle,) = (line for line in table if line.startswith("  angle  "))
    assert re.search(r"^  angle +\d\d\.\d\d°  +90\.00 ± 0\.58 +\d\d\.\d\d to \d\d\.\d\d \(1\)  too few pairs", angle)
    ends = {line.index("(1)") for line in table if "(1)" in line}
    assert len(ends) == 1  # one column
    assert "  floor: 2 runs (tiny-seed2, tiny-seed3), 1 pair; one more pair is outside by chance in 100%" in lines
    assert any(line.startswith("  angle ") and "too few pairs for a verdict" in line for line in lines)
    assert lines[-1] == "next: pythia-dyn phases"


@pytest.mark.usefixtures("undrawn")
def test_the_facts_are_json_and_the_files_are_there(project: Project) -> None:
    facts = project.facts("compare", "tiny-seed0", "tiny-seed0:embedding")
    assert (facts["a"], facts["b"]) == ("tiny-seed0", "tiny-seed0:gpt_neox.embed_in.weight")
    assert (facts["steps"], facts["step"]) == (2, 20)
    assert facts["statistics"]["angle"]["units"] == "degree"
    kinds = [floor["kind"] for floor in facts["statistics"]["ks"]["floors"]]
    assert kinds == ["between seeds", "other seeds, same steps"]
    first = Path(facts["files"][0])
    assert first == Path("results/compare/tiny-seed0/tiny-seed0,gpt_neox.embed_in.weight/compare.csv")
    assert first.is_file()
    made = json.loads((first.parent / "provenance.json").read_text())["compare"]
    assert made["command"] == "pythia-dyn compare tiny-seed0 tiny-seed0:embedding"
    assert made["leading"] == 10


@pytest.mark.usefixtures("undrawn")
def test_the_models_between_are_run(project: Project) -> None:
    options = ("--interpolate", 3, "--corpus", project.corpus, "--device", "cpu", "--floor", "none")
    facts = project.facts("compare", "tiny-seed0@10", "tiny-seed1@20", *options)
    found = facts["interpolation"]
    assert found["points"] == 3
    assert found["barrier"] >= 0
    assert "loss barrier" in facts["summary"]
    assert facts["floor"] == "no floor asked for"
    (path,) = (Path(each) for each in facts["files"] if each.endswith("interpolation.csv"))
    table = np.genfromtxt(path, delimiter=",", names=True)
    assert table["alpha"].tolist() == [0, 0.5, 1]
    project.facts("perplexity", "--model", "tiny-seed0", *project.perplexity_options)
    plain = np.genfromtxt(project.place / "results/tiny-seed0/perplexity-forward.csv", delimiter=",", names=True)
    assert np.exp(table["nll"][0]) == pytest.approx(plain["ppl_corpus"][0], rel=1e-12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny-seed0@10", "tiny-seed1"), "tiny-seed0@10 is a checkpoint and tiny-seed1 a run"),
        (("tiny-seed0", "tiny-seed1", "--interpolate", 3), "--interpolate is between two checkpoints: give tiny-seed0"),
        (("tiny-seed0@11", "tiny-seed1@10"), "no step 11 in tiny-seed0; did you mean 10 or 20?"),
        (("tiny-seed0@10:x", "tiny-seed1@10"), "no tensor 'x' in"),
        (("tiny-seed9@10", "tiny-seed1@10"), "no model 'tiny-seed9'"),
        (("70m@10", "tiny-seed1@10"), "run pythia-dyn fetch --model 70m"),
        (("tiny-seed0", "tiny-seed1", "--floor", "no*"), "no run in the cache 'no*'"),
        (("tiny-seed0", "tiny-seed1", "--steps", "x"), "cannot read steps 'x'"),
    ],
)
def test_errors_are_one_line(project: Project, words: tuple[object, ...], message: str) -> None:
    assert message in project.failure("compare", *words)


def test_the_usage(project: Project) -> None:
    assert "Missing argument 'B'" in project.failure("compare", "tiny-seed0", code=2)
    assert "--interpolate" in project.failure("compare", "tiny-seed0", "tiny-seed1", "--interpolate", 2, code=2)


@pytest.mark.usefixtures("undrawn")
def test_no_command_takes_the_folder_for_a_model(project: Project) -> None:
    project.facts("compare", "tiny-seed0@10", "tiny-seed1@10")
    project.facts("order", "--model", "tiny-seed0")
    assert set(project.facts("figures")) <= {"tiny-seed0", "figures"}
    (card,) = project.facts("claims")
    assert card["model"] == "tiny-seed0"
    assert all(fact["model"].startswith("tiny-seed") for fact in project.facts("ls"))
    assert "compare" in project.failure("figures", "--model", "compare")
    assert Results("compare", project.place / "results").tensors == ()


def test_the_figures_are_drawn(project: Project) -> None:
    facts = project.facts("compare", "tiny-seed0", "tiny-seed1", "--width", "page")
    drawn = {Path(each).suffix for each in facts["files"]} - {".csv"}
    assert drawn == {".png", ".svg", ".pdf"}
    (svg,) = (Path(each).read_text() for each in facts["files"] if each.endswith(".svg"))
    for text in ("singular value", "angle of corresponding rows", "between seeds", "tiny-seed1"):
        assert text in svg
