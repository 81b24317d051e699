"""Which files belong to which checkpoint: folders, single files, shards, and what a training program leaves beside."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from pythia_dynamics.checkpoints.layout import Layout
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.checkpoints.tree import (
    checkpoint_files,
    files_of,
    is_shared,
    revisions_in,
    weight_files,
    weights_by_format,
)
from pythia_dynamics.errors import CheckpointError, UnknownNameError

STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "trainer_state.json")
TRAINER = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "vocab.json", *STATE)
FOLDERS_AND_FILES = Suite(references=("folder", "file"))


def found(*paths: str, suite: Suite = FOLDERS_AND_FILES) -> dict[int, str]:
    """Step → what its checkpoint is, in a source with these files."""
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"."}
    revisions = revisions_in(suite, sorted(folders), (path for path in paths if not path.endswith("/")), where="here")
    for revision in revisions.values():
        assert revision.ref == revision.path_of_all
        assert (revision.kind == "file") == bool(revision.file)
    assert list(revisions) == sorted(revisions)
    return {step: revision.path_of_all for step, revision in revisions.items()}


def inside(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" for name in names]


# -- the files of one checkpoint ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (TRAINER, ["model.safetensors"]),
        (("pytorch_model.bin", *STATE), ["pytorch_model.bin"]),
        (("pytorch_model.bin", "model.safetensors"), ["model.safetensors"]),
        (("adapter_model.safetensors", "pytorch_model.bin"), ["pytorch_model.bin"]),
        (("adapter_model.safetensors", "model.pt"), ["adapter_model.safetensors"]),
        (("model.pth", "vocab.pt", "tokenizer.bin"), ["model.pth"]),
        (("consolidated.00.pth", "consolidated.01.pth", "params.json"), ["consolidated.00.pth", "consolidated.01.pth"]),
        (("last.ckpt", "optimizer.bin"), ["last.ckpt"]),
        (
            ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            ("pytorch_model-1.bin", "pytorch_model.bin.index.json", "x.bin"),
            ["pytorch_model-1.bin", "pytorch_model.bin.index.json"],
        ),
        (("b/model.safetensors", "README.md", "logs.json"), []),
        ((), []),
    ],
)
def test_weight_files(names: tuple[str, ...], weights: list[str]) -> None:
    assert weight_files(iter(names)) == weights


@pytest.mark.parametrize(
    ("names", "safetensors", "torch"),
    [
        (("pytorch_model.bin", "model.safetensors", "x.pt"), ["model.safetensors"], ["pytorch_model.bin"]),
        (("pytorch_model.bin", "a.safetensors"), [], ["pytorch_model.bin"]),
        (("ckpt_1.pt", "a.safetensors", "optimizer.bin"), ["a.safetensors"], ["ckpt_1.pt"]),
        (("model.safetensors.index.json",), ["model.safetensors.index.json"], []),
        (("config.json",), [], []),
    ],
)
def test_weights_of_each_format(names: tuple[str, ...], safetensors: list[str], torch: list[str]) -> None:
    assert weights_by_format(iter(names)) == {"safetensors": safetensors, "torch": torch}


def test_the_files_of_a_model_are_those_that_a_reader_would_take() -> None:
    """What a snapshot downloads has the weights that `Layout.among` reads."""
    for names in (TRAINER, ("adapter_model.safetensors", "pytorch_model.bin"), ("a.safetensors", "b.bin"), ("x.pt",)):
        (first, *_) = Layout.among(names)
        assert first.entry_file in checkpoint_files(names)
    assert checkpoint_files(TRAINER) == sorted(set(TRAINER) - set(STATE))
    files = checkpoint_files(("tokenizer.bin", "model.pt", "sub/config.json"))
    assert files == ["model.pt", "tokenizer.bin"]


def test_layouts_among_files() -> None:
    assert [layout.entry_file for layout in Layout.among(("pytorch_model.bin", "model.safetensors"))] == [
        "model.safetensors",
        "pytorch_model.bin",
    ]
    assert Layout.among(("b.safetensors", "a.safetensors")) == [
        Layout("safetensors", "", ("a.safetensors", "b.safetensors"))
    ]
    assert Layout.among(("model.pt", "optimizer.pt")) == [Layout("torch", "model.pt")]
    assert Layout.among(("README.md",)) == []
    assert Layout("torch", "", ("a", "b", "c")).files_read == 3
    assert Layout.of_file("x.safetensors").format == "safetensors"
    assert not Layout.of_file("x.pt").has_index


@pytest.mark.parametrize(
    ("name", "shared"), [("tokenizer.model", True), ("merges.txt", True), ("a/config.json", False)]
)
def test_shared_files(name: str, shared: bool) -> None:
    assert is_shared(name) is shared


# -- which checkpoints there are ------------------------------------------------------------------------------


def test_folders_of_the_trainer() -> None:
    steps = [path for step in (1000, 500) for path in inside(f"checkpoint-{step}", *TRAINER)]
    top = ["README.md", "config.json", "model.safetensors", "training_args.bin", "runs/Nov22/events.out"]
    assert found(*steps, *top) == {500: "checkpoint-500", 1000: "checkpoint-1000"}
    last = inside("last-checkpoint", *TRAINER)
    assert found(*last) == {}


def test_a_folder_inside_a_checkpoint_is_none() -> None:
    deep = inside("checkpoint-500/global_step500", "mp_rank_00_model_states.pt", "zero_pp_rank_0_optim_states.pt")
    assert found(*deep, *inside("checkpoint-500", "model.safetensors", "latest")) == {500: "checkpoint-500"}
    assert found(*inside("run/checkpoint-500/global_step500", "x.pt")) == {500: "run/checkpoint-500"}


def test_files_of_lightning_and_nanogpt() -> None:
    names = ("epoch=1-step=100.ckpt", "epoch=0-step=50.ckpt", "last.ckpt", "hparams.yaml")
    assert found(*names) == {50: names[1], 100: names[0]}
    assert found("out/ckpt_10.pt", "out/ckpt_9.pth", "out/log.txt") == {9: "out/ckpt_9.pth", 10: "out/ckpt_10.pt"}
    assert found("last.ckpt", "ckpt.pt") == {}
    with pytest.raises(CheckpointError, match=r"files a/epoch=0-step=5\.ckpt and b/epoch=1-step=5\.ckpt are both step"):
        found("a/epoch=0-step=5.ckpt", "b/epoch=1-step=5.ckpt")


def test_two_formats_of_one_step_are_one() -> None:
    assert found("ckpt_10.pt", "ckpt_10.safetensors", "ckpt_20.pt") == {10: "ckpt_10.safetensors", 20: "ckpt_20.pt"}
    assert found("ckpt_10.bin", "ckpt_10.pt", "ckpt_10.ckpt") == {10: "ckpt_10.ckpt"}


def test_two_runs_are_an_error_that_names_both() -> None:
    paths = inside("run1/checkpoint-500", *TRAINER) + inside("run2/checkpoint-500", *TRAINER)
    with pytest.raises(CheckpointError) as caught:
        found(*paths)
    assert str(caught.value) == (
        "here: the folders run1/checkpoint-500 and run2/checkpoint-500 are both step 500; "
        "choose with --revision-pattern, which matches only one of them"
    )
    assert found(*paths, suite=FOLDERS_AND_FILES.changed({"pattern": r"^run2/checkpoint-(\d+)$"})) == {
        500: "run2/checkpoint-500"
    }


def test_the_order_of_kinds_decides() -> None:
    paths = ("step5/model.safetensors", "ckpt_7.pt", "step5/ckpt_8.pt")
    assert found(*paths) == {5: "step5"}
    assert found(*paths, suite=Suite(references=("file", "folder"))) == {7: "ckpt_7.pt", 8: "step5/ckpt_8.pt"}
    assert found(*paths, suite=Suite(references=("branch",))) == {}


def test_what_a_revision_knows() -> None:
    suite = Suite(references=("file",), tokens_per_step=512)
    revision = revisions_in(suite, [], ["a/b/step3-tokens9B.pt"], where="here")[3]
    assert (revision.folder, revision.file, revision.tokens) == ("a/b", "step3-tokens9B.pt", 1536)
    assert revision.path("config.json") == "a/b/config.json"
    named = revisions_in(FOLDERS_AND_FILES, ["step3-tokens9B"], [], where="here")[3]
    assert (named.folder, named.file, named.tokens) == ("step3-tokens9B", "", 9 * 10**9)


def test_the_files_of_a_revision() -> None:
    paths = dict.fromkeys(
        (
            *("config.json", "ckpt_1.pt", "ckpt_2.pt", "tokenizer.json", "notes.md", "sub/config.json"),
            *("step1/model.safetensors", "step1/sub/x.pt", "step10/model.safetensors"),
        ),
        1,
    )
    assert list(files_of(Revision(1, "main"), paths)) == list(paths)
    assert set(files_of(Revision(1, "step1", folder="step1"), paths)) == {"model.safetensors", "sub/x.pt"}
    file = Revision(1, "ckpt_1.pt", file="ckpt_1.pt")
    assert set(files_of(file, paths)) == {"config.json", "ckpt_1.pt", "tokenizer.json"}
    deep = Revision(1, "sub/ckpt_1.pt", folder="sub", file="ckpt_1.pt")
    assert set(files_of(deep, paths)) == {"config.json"}


# -- a directory ----------------------------------------------------------------------------------------------


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def test_a_directory_has_the_same_checkpoints(tmp_path: Path) -> None:
    write(
        tmp_path, *inside("run/checkpoints", "epoch=0-step=5.ckpt", "epoch=1-step=10.ckpt", "last.ckpt", "config.json")
    )
    write(tmp_path, ".cache/step7/model.safetensors", "run/.hidden_step8.pt")
    source = LocalSource(tmp_path)
    revisions = source.revisions()
    assert list(revisions) == [5, 10]
    assert set(source.files(revisions[5])) == {"epoch=0-step=5.ckpt", "config.json"}
    with source.read(revisions[10], "epoch=1-step=10.ckpt") as stream:
        assert stream.read(99) == b"run/checkpoints/epoch=1-step=10.ckpt"
    os.utime(tmp_path / "run/checkpoints/epoch=1-step=10.ckpt", (1, 1))
    again = source.revisions()
    assert again[5] == revisions[5]
    assert again[10].commit != revisions[10].commit


def test_a_folder_or_file_by_name(tmp_path: Path) -> None:
    write(tmp_path, "step5/model.safetensors", "out/ckpt_10.pt", "other/model.pt")
    source = LocalSource(tmp_path)
    assert source.revision("step5") == Revision(5, "step5", kind="folder", folder="step5")
    assert source.revision("out/ckpt_10.pt") == Revision(
        10, "out/ckpt_10.pt", kind="file", folder="out", file="ckpt_10.pt"
    )
    assert source.revision("other").step == 0
    with pytest.raises(UnknownNameError, match=r"no revision 'stp5' in .*; did you mean step5"):
        source.revision("stp5")
    revision = source.revision("step5")
    (tmp_path / "step5/model.safetensors").unlink()
    (tmp_path / "step5").rmdir()
    with pytest.raises(CheckpointError, match="has no folder step5 any more"):
        source.files(revision)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "is empty; it should hold step1000/"),
        (TRAINER, "is one checkpoint, not a directory of them"),
        (
            ("a/model.pt", "b/model.pt", "notes.md"),
            r"named step1000, .* \(there: a, b, notes\.md\); --revision-pattern",
        ),
    ],
)
def test_a_directory_without_steps_says_what_is_there(tmp_path: Path, paths: tuple[str, ...], message: str) -> None:
    write(tmp_path, *paths)
    with pytest.raises(CheckpointError, match=message) as caught:
        LocalSource(tmp_path).revisions()
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="is a file; give the directory"):
        LocalSource(write(tmp_path, "x.pt") / "x.pt")
