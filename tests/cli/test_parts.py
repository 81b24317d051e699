"""Fused tensors told apart on the command line: parts, heads, all of them, and the overview."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from support.checkpoints import checkpoint
from support.project import Project

import pythia_dynamics as pyd
from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.attention import known_attention
from pythia_dynamics.history.cache import open_histories
from pythia_dynamics.history.store import Store

LAYERS = [f"gpt_neox.layers.{layer}.attention.query_key_value" for layer in range(2)]
SHAPES = {f"{layer}.weight": (24, 8) for layer in LAYERS} | {f"{layer}.bias": (24,) for layer in LAYERS}
SHAPES |= {"gpt_neox.layers.0.mlp.dense_h_to_4h.weight": (32, 8), "embed_out.weight": (20, 8)}
STEPS = (10, 20, 30)


def write(place: Path, **config: Any) -> None:
    for step in STEPS:
        generator = torch.Generator().manual_seed(step)
        tensors = {name: torch.randn(shape, generator=generator).half() for name, shape in SHAPES.items()}
        folder = place / f"step{step}"
        folder.mkdir(parents=True)
        for name, content in checkpoint(tensors, **config).items():
            (folder / name).write_bytes(content)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHIA_DYN_CACHE", "cache")
    write(tmp_path / "run", num_attention_heads=2, hidden_size=8)
    found = Project(tmp_path)
    found.fetch("run", "--tensor", "all")
    return found


def fused(layer: int, step: int) -> np.ndarray:
    """The rows of a layer as (head, query or key or value, 4, 8), from the whole tensor."""
    whole = pyd.open_history("run", f"{LAYERS[layer]}.weight").at(step).astype(np.float64)
    return whole.reshape(2, 3, 4, 8)


def test_a_part_and_a_head_have_results_of_their_own(project: Project) -> None:
    name = f"{LAYERS[1]}.weight"
    facts = project.facts("order", "--tensor", f"{name}.key", "--tensor", f"{name}.value.head1")
    assert [fact["tensor"] for fact in facts] == [f"{name}.key", f"{name}.value.head1"]
    for part, of in ((f"{name}.key", np.s_[:, 1]), (f"{name}.value.head1", np.s_[1, 2])):
        table = pd.read_csv(f"results/run/{part}/order.csv")
        norms = [np.linalg.norm(fused(1, step)[of]) for step in STEPS]
        np.testing.assert_allclose(table["frobenius_norm"], norms, rtol=1e-6)
        made = json.loads(Path(f"results/run/{part}/provenance.json").read_text())["order"]
        assert made["tensor"] == part
    project.facts("order", "--tensor", name)
    assert (project.place / "results" / "run" / name / "order.csv").is_file()


def test_a_stream_measures_the_parts_that_a_store_has(project: Project) -> None:
    flags = ["fetch", "--model", "./run", "--tensor", "all", "--measure", "order", "--measure", "spectrum"]
    flags += ["--cache", "none", "--results", "streamed"]
    (found,) = project.facts(*flags)
    for measure in ("order", "spectrum"):
        project.facts(measure, "--model", "run", "--tensor", "all")
    stored, passed = (
        {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.csv")}
        for folder in ("results", "streamed")
    )
    assert passed == stored
    assert set(found["tensors"]) == {each.tensor for each in open_histories("run", ["all"])}
    (again,) = project.facts(*flags)
    assert again["tensors"] == []
    shutil.rmtree(Path("streamed", "run", f"{LAYERS[0]}.weight.key"))
    (again,) = project.facts(*flags)
    assert again["tensors"] == [f"{LAYERS[0]}.weight.{kind}" for kind in KINDS]  # one fused tensor is fetched
    both = pyd.stream("./run", "order", tensors=["all", f"{LAYERS[0]}.bias"], cache="none")
    assert {f"{LAYERS[0]}.bias", f"{LAYERS[0]}.bias.key"} <= set(both)
    (found,) = project.facts(*flags, "--refresh", "--scratch", "2600")
    assert f"{LAYERS[0]}.weight" in found["tensors"]  # it needs 2.7 kB with the records of its chunks
    assert "fused tensors among them are measured whole" in project.run(*flags, "--refresh", "--scratch", "2600").stdout


def test_all_stands_for_each_weight_once(project: Project) -> None:
    found = json.loads(project.run("order", "--tensor", "all", "--json").stdout)
    names = [fact["tensor"] for fact in found["order"]]
    parts = [f"{layer}.{end}.{kind}" for layer in LAYERS for end in ("weight", "bias") for kind in KINDS]
    assert sorted(names) == sorted([*parts, "gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "embed_out.weight"])
    histories = open_histories("run", ["all"])
    assert sum(np.prod(each.frame_shape) for each in histories) == sum(np.prod(shape) for shape in SHAPES.values())
    table = pd.read_csv("results/run/overview-order.csv")
    assert {"query", "key", "value", "mlp-in", "unembedding"} == set(table["kind"])
    assert set(table["head"]) == {-1}
    text = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", Path("results/run/overview-order.svg").read_text()))
    assert "query" in text
    assert "query-key-value" not in text


KINDS = ("query", "key", "value")


def test_globs_are_of_tensors_then_of_parts_then_of_heads(project: Project) -> None:
    def names(pattern: str) -> list[str]:
        return [each.tensor for each in open_histories("run", [pattern])]

    assert names("*.weight") == sorted(name for name in SHAPES if name.endswith("weight"))
    assert names("*.weight.query") == [f"{layer}.weight.query" for layer in LAYERS]
    assert names("*.0.*.weight.*.head1") == [f"{LAYERS[0]}.weight.{kind}.head1" for kind in KINDS]
    assert len(names("*.head*")) == 2 * 2 * 3 * 2
    with pytest.raises(UnknownNameError):
        names("*.weight.quarry")
    with pytest.raises(PythiaDynError, match="means 2 tensors"):
        pyd.open_history("run", "*.weight.query")
    with pytest.raises(PythiaDynError, match="has the heads 0 to 1; got 2"):
        pyd.open_history("run", f"{LAYERS[0]}.weight.query.head2")


def test_heads_are_a_heat_map_and_the_overview_keeps_both(project: Project) -> None:
    project.facts("order", "--tensor", "all")
    result = project.run("order", "--tensor", "*.weight.query.head*", "--json")
    (together,) = json.loads(result.stdout)["overviews"]
    assert together["tensors"] == len(SHAPES) + 2 * 4 + 4
    found = pyd.overview("run", "order", tensors=["*.head*"])
    assert found["head"].to_numpy().tolist() == [0, 1, 0, 1]
    assert found["layer"].to_numpy().tolist() == [0, 0, 1, 1]
    rms = [np.sqrt(np.mean(fused(layer, 30)[head, 0] ** 2)) for layer in (0, 1) for head in (0, 1)]
    np.testing.assert_allclose(found["rms"].isel(step=-1), rms, rtol=1e-6)
    text = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", Path("results/run/overview-order.svg").read_text()))
    assert "query, last step" in text
    ax = Figure().add_subplot()
    figures.heads(ax, found, "rms", "query")
    (mesh,) = [each for each in ax.collections if isinstance(each, QuadMesh)]
    np.testing.assert_allclose(np.asarray(mesh.get_array()).ravel(), rms, rtol=1e-6)


def test_without_a_config_the_heads_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run")
    found = Project(tmp_path)
    found.fetch("run", "--tensor", "all")
    name = f"{LAYERS[0]}.weight"
    for pattern in (f"{name}.query", "*.query", "*.query.head0"):
        line = found.failure("order", "--tensor", pattern)
        assert "the number of attention heads of" in line
        assert "give --heads" in line
    result = found.run("order", "--tensor", "all")
    assert "note: 4 fused tensors are measured whole: the number of attention heads" in result.stdout
    (fact,) = found.facts("order", "--tensor", f"{name}.query", "--heads", "2")
    table = pd.read_csv(f"results/run/{fact['tensor']}/order.csv")
    whole = pyd.open_history("run", name, cache="cache").at(30).astype(np.float64).reshape(2, 3, 4, 8)
    np.testing.assert_allclose(table["frobenius_norm"].iloc[-1], np.linalg.norm(whole[:, 0]), rtol=1e-6)
    assert "cannot be divided among 5 heads" in found.failure("order", "--tensor", f"{name}.query", "--heads", "5")
    # Once there is a config.json, a fetch remembers what it says.
    for step in STEPS:
        (tmp_path / "run" / f"step{step}" / "config.json").write_text(
            json.dumps({"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 8})
        )
    found.facts("fetch", "--model", "run", "--tensor", "all")
    assert pyd.open_history("run", f"{name}.query", cache="cache").frame_shape == (8, 8)


def test_pythia_s_heads_are_those_of_the_registry(tmp_path: Path) -> None:
    for size, heads in {"14m": 4, "70m": 8, "160m": 12, "1b": 8, "6.9b": 32, "12b": 40}.items():
        store = Store.create(tmp_path / f"{size}.zarr", source=pyd.resolve(size).location)
        found = known_attention(store)
        assert found is not None
        assert (found.heads, found.model_type) == (heads, "gpt_neox")


def test_shells_complete_parts(project: Project) -> None:
    shown = CliRunner().invoke(
        main,
        prog_name="pythia-dyn",
        env={
            "_PYTHIA_DYN_COMPLETE": "bash_complete",
            "COMP_WORDS": f"pythia-dyn msd --tensor {LAYERS[0]}.weight.",
            "COMP_CWORD": "3",
        },
    )
    assert f"{LAYERS[0]}.weight.query" in shown.stdout
