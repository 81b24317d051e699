"""A measure of all tensors on the command line: one command, results of each, and the overview of all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.checkpoints import checkpoint
from support.project import Project

import pythia_dynamics as pyd
from pythia_dynamics.cli import measures as module

TENSORS = (
    "gpt_neox.embed_in.weight",
    *(
        f"gpt_neox.layers.{layer}.{name}"
        for layer in range(2)
        for name in ("attention.query_key_value.weight", "attention.query_key_value.bias", "mlp.dense_h_to_4h.weight")
    ),
    "gpt_neox.final_layer_norm.weight",
    "embed_out.weight",
)
SHAPES = {"embed": (40, 8), "query_key_value.weight": (24, 8), "query_key_value.bias": (24,), "norm": (8,)}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    for step in (10, 20, 30, 40):
        generator = torch.Generator().manual_seed(step)
        tensors = {
            name: torch.randn(
                next((shape for part, shape in SHAPES.items() if part in name), (32, 8)), generator=generator
            ).half()
            for name in TENSORS
        }
        folder = tmp_path / "walk" / f"step{step}"
        folder.mkdir(parents=True)
        for name, content in checkpoint(tensors).items():
            (folder / name).write_bytes(content)
    found = Project(tmp_path)
    found.fetch("walk", "--tensor", "all")
    return found


def texts(path: str) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", Path(path).read_text()))


def test_one_command_measures_all_tensors_and_shows_them_together(project: Project) -> None:
    result = project.run("order", "--tensor", "all", "--json")
    found = json.loads(result.stdout)
    assert sorted(fact["tensor"] for fact in found["order"]) == sorted(TENSORS)
    (together,) = found["overviews"]
    assert (together["model"], together["tensors"], together["variable"]) == ("walk", len(TENSORS), "rms")
    assert together["least"]["value"] < together["most"]["value"]
    table = pd.read_csv("results/walk/overview-order.csv")
    assert list(dict.fromkeys(table["tensor"])) == list(TENSORS)
    for tensor, rows in table.groupby("tensor"):
        weights = np.asarray(pyd.open_history("walk", tensor=str(tensor), cache="cache").weights, dtype=np.float64)
        rms = [float(np.sqrt(np.mean(frame**2))) for frame in weights]
        np.testing.assert_allclose(rows["rms"], rms, rtol=1e-6)
    (drawn,) = [path for path in together["files"] if path.endswith(".svg")]
    for word in ("query-key-value", "mlp-in", "norm", "embedding", "unembedding", "layer 0", "layer 1", "walk"):
        assert word in texts(drawn)
    assert "layer 2" not in texts(drawn)


def test_figures_of_each_are_drawn_where_they_are_few(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pngs = Path("results/walk")
    assert len(TENSORS) > module.MOST_DRAWN
    result = project.run("order", "--tensor", "all")
    assert "the figures of each tensor: pythia-dyn figures --model walk" in result.stdout
    assert not list(pngs.glob("*/order.png"))
    project.facts("figures")
    assert len(list(pngs.glob("*/order.png"))) == len(TENSORS)
    project.run("spectrum", "--tensor", "*.mlp.*")
    assert len(list(pngs.glob("*/spectrum.png"))) == 2
    assert (pngs / "overview-spectrum.png").exists()


def test_a_single_tensor_or_a_measure_without_rows_per_step_has_none(project: Project) -> None:
    project.facts("order")
    project.facts("rank", "--tensor", "*.mlp.*")
    assert not list(Path("results/walk").glob("overview-*"))


def test_the_report_shows_it(project: Project) -> None:
    project.facts("order", "--tensor", "all")
    project.facts("report")
    page = Path("results/report.html").read_text()
    assert "All tensors: order" in page


def test_the_bar_counts_all_tensors() -> None:
    seen: list[tuple[int, int]] = []
    for index in range(3):
        for done in range(3):
            module._part(lambda done, total: seen.append((done, total)), index, 3, done, 2)
    assert seen == [(500 * count, 3000) for count in (0, 1, 2, 2, 3, 4, 4, 5, 6)]
    module._part(lambda done, total: seen.append((done, total)), 0, 1, 0, 0)
    assert seen[-1] == (0, 1000)
