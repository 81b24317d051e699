"""``fetch --measure``: the result files of the measures' commands, without a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import HEAD, checkpoint
from support.project import Project

MEASURES = ("msd", "density", "order", "spectrum", "rank")
STEPS = (10, 20, 30, 40, 50)
SHAPES = {
    "gpt_neox.embed_in.weight": (60, 16),
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": (64, 16),
    HEAD: (2000, 16),
}
PART = len(STEPS) * (2 * 8192 * 2 + 4)
"""Bytes of two slabs of W_U at all steps."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    now = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for step in STEPS:
        now = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in now.items()}
        folder = tmp_path / "walk" / f"step{step}"
        folder.mkdir(parents=True)
        for name, content in checkpoint({name: w.half() for name, w in now.items()}).items():
            (folder / name).write_bytes(content)
    return Project(tmp_path)


def measure_flags(*names: str) -> list[str]:
    return [word for name in names for word in ("--measure", name)]


def tables(results: Path) -> dict[str, bytes]:
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.rglob("*.csv"))}


def test_the_files_are_those_of_the_commands(project: Project) -> None:
    (found,) = project.facts(
        "fetch", "--model", "walk", "--tensor", "all", *measure_flags(*MEASURES), "--scratch", PART
    )
    assert found["measures"] == ["msd", "two_time", "density", "order", "spectrum", "rank"]
    assert sorted(found["tensors"]) == sorted(SHAPES)
    assert {each["measure"] for each in found["overviews"]} == {"msd", "density", "order", "spectrum"}
    assert not list(Path("cache").glob("*.zarr"))
    assert not list(Path("cache").rglob("*.json"))
    project.fetch("walk", "--tensor", "all", "--cache", "other")
    for name in MEASURES:
        project.facts(name, "--model", "walk", "--tensor", "all", "--cache", "other", "--results", "of-store")
    of_store = tables(Path("of-store"))
    assert len(of_store) == 3 * 6 + 4  # two tables of the spectrum; four overviews
    assert tables(Path("results")) == of_store
    folder = Path("results", "walk", HEAD)
    assert (folder / "bifurcation.json").read_bytes() == Path("of-store/walk", HEAD, "bifurcation.json").read_bytes()
    assert {path.suffix for path in folder.glob("msd.*")} == {".csv", ".png", ".svg"}
    made = json.loads((folder / "provenance.json").read_text())
    expected = json.loads(Path("of-store/walk", HEAD, "provenance.json").read_text())
    for name in ("msd", "two_time", "spectrum"):
        assert made[name]["streamed"] is True
        assert "streamed" not in expected[name]
        for key in ("source", "tensor", "steps", "commits", "missing", "checks", "drop_padding"):
            assert made[name][key] == expected[name][key]
    assert "claims" in project.run("fetch", "--model", "walk", "--measure", "order").stdout.splitlines()[-1]


def test_complete_tensors_are_not_fetched_again(project: Project) -> None:
    flags = ["fetch", "--model", "walk", "--tensor", "all", *measure_flags("order")]
    project.facts(*flags)
    before = tables(Path("results"))
    shutil.rmtree(Path("results", "walk", HEAD))
    (found,) = project.facts(*flags)
    assert found["tensors"] == [HEAD]
    assert len(found["complete_before"]) == 2
    (found,) = project.facts(*flags)
    assert found["tensors"] == []
    assert found["bytes"] < 30_000  # headers; the weights have 340,000
    assert tables(Path("results")) == before
    (found,) = project.facts(*flags, "--refresh")
    assert len(found["tensors"]) == 3
    assert "3 tensors are complete; --refresh" in project.run(*flags).stdout
    # another measure, a step more, and a checkpoint that was replaced: what is there is not of these weights
    (found,) = project.facts(*flags, "--measure", "msd")
    assert len(found["tensors"]) == 3
    shutil.copytree("walk/step50", "walk/step60")
    (found,) = project.facts(*flags)
    assert len(found["tensors"]) == 3
    replaced = checkpoint({name: torch.ones(shape).half() for name, shape in SHAPES.items()})
    for name, content in replaced.items():
        Path("walk/step60", name).write_bytes(content)
    (found,) = project.facts(*flags)
    assert len(found["tensors"]) == 3


def test_a_step_without_weights_is_named_and_tried_again(project: Project) -> None:
    weights = Path("walk/step30/model.safetensors")
    kept = weights.read_bytes()
    weights.write_bytes(kept[: len(kept) // 3])
    flags = ["fetch", "--model", "walk", "--tensor", "all", *measure_flags("order", "msd"), "--scratch", str(PART)]
    result = project.run(*flags)
    assert result.exit_code == 1
    assert "missing 30:" in result.stdout
    assert "run the same command again" in result.stderr
    made = json.loads(Path("results/walk", HEAD, "provenance.json").read_text())["msd"]
    assert list(made["missing"]) == ["30"]
    assert project.run(*flags).exit_code == 0  # it cannot be read now either: the results are as complete as can be
    weights.write_bytes(kept)
    (found,) = project.facts(*flags)
    assert len(found["tensors"]) == 3
    assert found["missing"] == {name: {} for name in SHAPES}
    rows = Path("results/walk", HEAD, "order.csv").read_text().splitlines()
    assert len(rows) == 1 + len(STEPS)
    assert all("nan" not in row.lower() and not row.endswith(",") for row in rows)


def test_steps_that_are_not_finite(project: Project) -> None:
    state = {name: torch.full(shape, torch.nan).half() for name, shape in SHAPES.items()}
    for name, content in checkpoint(state).items():
        Path("walk/step20", name).write_bytes(content)
    result = project.run("fetch", "--model", "walk", *measure_flags("msd", "density"), "--scratch", PART)
    assert result.exit_code == 1
    assert "not finite at step 20" in result.stderr
    values = np.genfromtxt(Path("results/walk", HEAD, "msd.csv"), delimiter=",", names=True)
    assert np.isnan(values["msd"]).tolist() == [False, True, False, False, False]


def test_usage(project: Project) -> None:
    assert "no measure 'mds'" in project.failure("fetch", "--model", "walk", "--measure", "mds")
    flags = ("fetch", "--model", "walk", "--measure", "msd")
    assert "not a number of bytes" in project.failure(*flags, "--scratch", "much", code=2)
    assert "not a number of bytes" in project.failure(*flags, "--scratch", "0", code=2)
    assert "more than the scratch space of 1.0 kB" in project.failure(*flags, "--scratch", "1kB")
    assert "whole files" in project.failure(*flags, "--verify-whole")
    assert project.run(*flags, "--scratch", "0.5 GB").exit_code == 0
