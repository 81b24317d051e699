"""Checkpoints of a user in a directory, in the layouts of the usual programs: fetch, measures, perplexity, portrait."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from support.checkpoints import torch_file
from support.project import Project
from support.suites import (
    Kind,
    config_and_tokenizer,
    files,
    json_file,
    lightning,
    nanogpt,
    prefixed,
    state,
    torch_checkpoint,
    without_biases,
    write,
)

from pythia_dynamics import figures

STEPS = (10, 20, 30)

Save = Callable[[int, int], Mapping[str, bytes]]
"""The files of the checkpoint of a step, by path in the directory, with the weights of a seed."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
    return Project(tmp_path)


def inside(folder: str, content: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in content.items()}


@dataclass(frozen=True)
class Layout:
    """A way to save checkpoints. `beside` says that config and tokenizer are elsewhere."""

    kind: Kind
    save: Save
    tensor: str = "lm_head.weight"
    beside: bool = False


def bfloat16(seed: int) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16() for name, tensor in state("llama", seed).items()}


def plain_shards(seed: int, step: int) -> dict[str, bytes]:
    tensors = {name: tensor.clone() for name, tensor in state("llama", seed).items()}
    names = list(tensors)
    parts = {"part-a": names[:5], "part-b": names[5:]}
    shards = {f"{part}.safetensors": save({name: tensors[name] for name in held}) for part, held in parts.items()}
    return inside(f"step{step}", {**config_and_tokenizer("llama"), **shards})


def trainer(seed: int, step: int) -> dict[str, bytes]:
    """The output folder of a Trainer, with the final model at its top."""
    state_files = {
        "optimizer.pt": torch_file({"state": {0: torch.ones(3)}}),
        "scheduler.pt": torch_file({}),
        "rng_state.pth": torch_file({}),
        "training_args.bin": b"pickled",
        "trainer_state.json": json_file(global_step=step),
    }
    top = {**files("llama", 2), "training_args.bin": b"pickled", "runs/events.out.tfevents": b""}
    return top | inside(f"checkpoint-{step}", {**files("llama", seed), **state_files})


TIED = "model.embed_tokens.weight"
WTE = "transformer.wte.weight"

LAYOUTS: dict[str, Layout] = {
    "llama": Layout("llama", lambda seed, step: inside(f"step{step}", files("llama", seed))),
    "llama-tied": Layout(
        "llama-tied", lambda seed, step: inside(f"checkpoint-{step}", files("llama-tied", seed)), TIED
    ),
    "gpt2": Layout("gpt2", lambda seed, step: inside(f"step{step}", files("gpt2", seed)), WTE),
    "bin": Layout("llama", lambda seed, step: inside(f"step{step}", torch_checkpoint("llama", state("llama", seed)))),
    "bf16": Layout("llama", lambda seed, step: inside(f"step{step}", torch_checkpoint("llama", bfloat16(seed)))),
    "modelpt": Layout(
        "llama",
        lambda seed, step: inside(f"step-{step:06}", torch_checkpoint("llama", state("llama", seed), "model.pt")),
    ),
    "prefixed": Layout(
        "llama",
        lambda seed, step: inside(
            f"iter_{step}", torch_checkpoint("llama", prefixed(state("llama", seed), "module._orig_mod."), "model.pt")
        ),
        "module._orig_mod.lm_head.weight",
    ),
    "plain": Layout("llama", plain_shards),
    "trainer": Layout("llama", trainer),
    "files": Layout("llama", lambda seed, step: {f"ckpt_{step}.pt": torch_file(state("llama", seed))}, beside=True),
    "safetensors": Layout(
        "llama",
        lambda seed, step: {
            f"step-{step}.safetensors": save({name: tensor.clone() for name, tensor in state("llama", seed).items()})
        },
        beside=True,
    ),
    "lightning": Layout(
        "llama",
        lambda seed, step: {
            f"lightning_logs/version_0/checkpoints/epoch=1-step={step}.ckpt": torch_file(
                lightning(state("llama", seed), step)
            )
        },
        "model.lm_head.weight",
        beside=True,
    ),
    "nanogpt": Layout(
        "gpt2",
        lambda seed, step: {f"ckpt_{step}.pt": torch_file(nanogpt(seed, step))},
        "_orig_mod.lm_head.weight",
        beside=True,
    ),
    "nanogpt-in-folders": Layout(
        "gpt2",
        lambda seed, step: inside(f"step{step}", torch_checkpoint("gpt2", nanogpt(seed, step), "ckpt.pt")),
        "_orig_mod.lm_head.weight",
    ),
}


def saved(project: Project, name: str, layout: Layout) -> Path:
    for seed, step in enumerate(STEPS):
        write(project.place / name, layout.save(seed, step))
    return project.place / name


EXPECTED: dict[tuple[Kind, str], list[float]] = {}
"""The perplexities of the checkpoints that transformers saved, by kind; computed once."""


def expected(project: Project, kind: Kind) -> list[float]:
    key = (kind, "transformers")
    if key not in EXPECTED:
        directory = project.place / "reference"
        for seed, step in enumerate(STEPS):
            write(directory, inside(f"step{step}", files(kind, seed)))
        EXPECTED[key] = project.perplexities(directory, name="reference")
    return EXPECTED[key]


@pytest.mark.parametrize("name", LAYOUTS)
def test_plain_commands_read_own_checkpoints(name: str, project: Project) -> None:
    layout = LAYOUTS[name]
    directory = saved(project, name, layout)
    fetched = project.fetch(directory)
    assert (fetched["model"], fetched["fetched"], fetched["tensors"]) == (name, [*STEPS], [layout.tensor])
    _, weights = project.weights(name)
    head = {"llama-tied": TIED, "gpt2": WTE}.get(layout.kind, "lm_head.weight")
    for seed, step in enumerate(STEPS):
        np.testing.assert_array_equal(weights[step], state(layout.kind, seed)[head].float().numpy())
    (moved,) = project.facts("msd", "--model", name)
    assert (moved["model"], moved["tensor"]) == (name, layout.tensor)

    flags: tuple[object, ...] = ()
    if layout.beside:
        shared = write(project.place / "shared", config_and_tokenizer(layout.kind))
        flags = ("--config", shared, "--tokenizer", shared)
        line = project.failure("perplexity", "--model", name, *project.perplexity_options)
        assert "has no config.json" in line
        assert "--config" in line
    found = project.perplexities(name, *flags, name=name)
    assert found == expected(project, layout.kind)
    assert project.portrait(name) == [STEPS[0], STEPS[-1]]  # what was given once is known
    if layout.beside:
        table = project.place / "results" / name / "perplexity-forward.csv"
        table.unlink()
        assert project.perplexities(directory, name=name) == found
    again = project.fetch(directory)
    assert (again["present"], again["bytes"]) == ([*STEPS], 0)


def test_a_nanogpt_without_biases_is_the_model_with_biases_of_0(project: Project) -> None:
    mine, theirs = project.place / "mine", project.place / "theirs"
    for seed, step in enumerate(STEPS):
        write(mine, {f"ckpt_{step}.pt": torch_file(nanogpt(seed, step, biases=False))})
        write(theirs, inside(f"step{step}", without_biases(seed)))
    shared = write(project.place / "shared", config_and_tokenizer("gpt2"))
    flags = ("--config", shared, "--tokenizer", shared)
    found = project.perplexities(mine, *flags, name="mine")
    assert found == project.perplexities(theirs, name="theirs")
    assert found != expected(project, "gpt2")


def test_folders_come_before_files_and_hidden_ones_do_not_count(project: Project) -> None:
    directory = saved(project, "mine", LAYOUTS["llama"])
    write(directory, {"notes.txt": b"", ".cache/step40/model.safetensors": b"", "step10/global_step7/zero.pt": b""})
    assert project.fetch(directory)["fetched"] == [*STEPS]


def test_a_copied_project_works_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Project(write(tmp_path / "first", {"README": b""}))
    monkeypatch.chdir(first.place)
    saved(first, "mine", LAYOUTS["files"])
    write(first.place / "shared", config_and_tokenizer("llama"))
    first.fetch("mine")
    first.facts("msd", "--model", "mine")
    flags = ("--config", "shared", "--tokenizer", "shared")
    perplexities = first.perplexities("mine", *flags, name="mine")
    first.portrait("mine")

    second_place = tmp_path / "elsewhere" / "second"
    shutil.copytree(first.place, second_place)
    shutil.rmtree(first.place)
    monkeypatch.chdir(second_place)
    results = second_place / "results"
    rows_file = results / "mine" / "perplexity-forward.csv"
    drawn = [*results.rglob("*.svg"), *results.rglob("*.png")]
    assert drawn
    assert all(str(tmp_path).encode() not in file.read_bytes() for file in drawn)
    second = Project(second_place)
    monkeypatch.setattr(figures, "save", lambda figure, path: [])  # they have been drawn
    rows = rows_file.read_bytes()
    for model in (second_place / "mine", "mine"):
        again = second.fetch(model)
        assert (again["present"], again["bytes"]) == ([*STEPS], 0)
        assert again["location"] == str(second_place / "mine")
    (listed,) = second.facts("ls")
    assert listed["source"] == str(second_place / "mine")
    second.facts("msd", "--model", "mine")
    monkeypatch.setattr("pythia_dynamics.evaluation.evaluator.LoadedModel.load", lambda *_: pytest.fail("recomputed"))
    assert second.perplexities("mine", name="mine") == perplexities
    assert rows_file.read_bytes() == rows
    assert second.run("report", "--model", "mine").exit_code == 0
    text = (results / "report.html").read_text()
    assert str(tmp_path) not in text
    assert "pythia-dyn fetch --model mine" in text
