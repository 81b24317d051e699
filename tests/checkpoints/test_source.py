"""Directories of checkpoints as sources, and what all sources share."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import socket
from collections.abc import Generator
from pathlib import Path

import pytest
from support.checkpoints import checkpoint, state, torch_file

from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.source import (
    ByteStream,
    FileMissingError,
    Revision,
    Source,
    Traffic,
    require_relative_path,
)
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.checkpoints.tree import checkpoint_files
from pythia_dynamics.errors import CheckpointError, FormatError
from pythia_dynamics.history.fetch import download


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints and things that are none."""
    for folder in ("step1000", "step0", "checkpoint-20", "logs", ".git"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        (tmp_path / "run" / folder / "config.json").write_bytes(b"{}")
        (tmp_path / "run" / folder / "model.bin").write_bytes(bytes(range(256)) * 8000)
    (tmp_path / "run" / "notes.txt").write_text("step5")
    (tmp_path / "run" / "step7").write_text("a file, not a folder")
    return tmp_path / "run"


def test_revisions_are_the_step_folders(run: Path) -> None:
    source: Source = LocalSource(run)
    revisions = source.revisions()
    assert {step: revision.ref for step, revision in revisions.items()} == {
        0: "step0",
        20: "checkpoint-20",
        1000: "step1000",
    }
    assert list(revisions) == [0, 20, 1000]
    before = revisions[20].commit
    assert source.revisions()[20].commit == before
    (run / "checkpoint-20" / "model.bin").write_bytes(b"trained anew")
    assert source.revisions()[20].commit != before
    assert (source.name, source.location) == ("run", str(run.resolve()))


@pytest.mark.parametrize(("start", "stop"), [(0, None), (3, 9), (5, 10**9), (-10, None), (1_500_000, 2_048_000)])
def test_a_range_is_a_slice(run: Path, start: int, stop: int | None) -> None:
    source = LocalSource(run)
    body = bytes(range(256)) * 8000
    with source.read(source.revisions()[20], "model.bin", start, stop) as stream:
        begin, end, _ = slice(start, stop).indices(len(body))
        assert (stream.start, stream.stop, stream.size, stream.sha256) == (begin, end, len(body), None)
        assert stream.read(10**7) == body[start:stop]
    assert source.traffic.bytes == end - begin


def test_snapshot_is_the_folder(run: Path) -> None:
    source = LocalSource(run)
    revision = source.revisions()[0]
    assert source.files(revision) == {"config.json": (2, None), "model.bin": (2_048_000, None)}
    assert source.snapshot(revision) == run.resolve() / "step0"
    source.evict(revision)
    source.cancel()
    assert (run / "step0" / "model.bin").exists()
    (run / "step0" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        source.snapshot(revision)


def test_what_is_missing_is_named(run: Path) -> None:
    source = LocalSource(run)
    revision = source.revisions()[0]
    with pytest.raises(FileMissingError, match=r"step0 has no other\.bin") as caught:
        source.read(revision, "other.bin")
    assert caught.value.file == "other.bin"
    with pytest.raises(FormatError, match="has 2 bytes, none at byte 2"):
        source.read(revision, "config.json", 2)
    with pytest.raises(FormatError, match="not a path inside"):
        source.read(revision, "../step1000/config.json")
    with pytest.raises(CheckpointError, match="no folder step3 any more"):
        source.read(Revision(3, "step3", folder="step3"), "config.json")


def test_directories_that_are_no_suites(tmp_path: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match="no directory"):
        LocalSource(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        LocalSource(tmp_path / "empty").revisions()
    with pytest.raises(CheckpointError, match="is one checkpoint, not a directory of them"):
        LocalSource(run / "step0").revisions()
    (tmp_path / "other" / "logs").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no checkpoints named .* \(there: logs\)"):
        LocalSource(tmp_path / "other").revisions()
    with pytest.raises(CheckpointError, match="is a file; give the directory"):
        LocalSource(run / "notes.txt")
    (run / "global_step1000").mkdir()
    with pytest.raises(CheckpointError, match="global_step1000 and step1000 are both step 1000"):
        LocalSource(run).revisions()
    assert list(LocalSource(run, suite=Suite(pattern=(r"^step(\d+)",))).revisions()) == [0, 1000]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("pipe", "it is a named pipe, not a regular file"),
        ("socket", "it is a socket, not a regular file"),
        ("device", "it is a device, not a regular file"),
        ("loop", "Too many levels of symbolic links"),
        ("folder loop", "is a symbolic link that leads nowhere, or to itself"),
        ("unusual name", r"weights\.pt: it is a named pipe, not a regular file"),
        ("file per step", r"ckpt_2\.pt: it is a named pipe, not a regular file"),
    ],
)
def test_what_is_no_regular_file_is_the_reason_of_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, why: str
) -> None:
    root = tmp_path / "run"
    for step in (1, 2, 3):
        (root / f"step{step}").mkdir(parents=True)
        (root / f"step{step}" / "model.safetensors").write_bytes(checkpoint(state(step))["model.safetensors"])
    weights = root / "step2" / "model.safetensors"
    weights.unlink()
    if kind == "pipe":
        os.mkfifo(weights)
        os.mkfifo(root / "suite.json")
    elif kind == "socket":
        monkeypatch.chdir(weights.parent)  # a socket's path is limited to about 100 characters
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(weights.name)
    elif kind == "device":
        weights.symlink_to("/dev/zero")
    elif kind == "loop":
        weights.symlink_to(weights)
    elif kind == "folder loop":
        weights.parent.rmdir()
        weights.parent.symlink_to(weights.parent)
        (root / "step3" / "back").symlink_to(root)
        (root / "step3" / "step9").symlink_to("step9")
    elif kind == "unusual name":
        os.mkfifo(weights.with_name("weights.pt"))
    else:
        shutil.rmtree(root)
        root.mkdir()
        for step in (1, 3):
            (root / f"ckpt_{step}.pt").write_bytes(torch_file(state(step)))
        os.mkfifo(root / "ckpt_2.pt")
    report = download(root, cache=tmp_path)
    assert report.fetched == (1, 3)
    assert list(report.missing) == [2]
    assert re.search(why, report.missing[2])


def test_open_source_follows_the_model(run: Path) -> None:
    assert isinstance(open_source(resolve(run)), LocalSource)
    remote = open_source(resolve("70m"))
    assert isinstance(remote, HubSource)
    assert (remote.location, remote.name) == ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped")
    mirrored = open_source(resolve("70m"), str(run))
    assert isinstance(mirrored, LocalSource)
    assert mirrored.name == "pythia-70m-deduped"


def test_streams_give_exactly_what_is_asked() -> None:
    closed = []

    def chunks() -> Generator[bytes, None, None]:
        yield from (b"abc", b"d", b"efgh")

    with ByteStream(chunks(), start=10, stop=18, size=99, on_close=lambda: closed.append(True)) as stream:
        assert stream.read(2) == b"ab"
        assert list(stream.chunks(4)) == [b"c", b"d", b"ef"]
        assert stream.position == 16
        assert stream.read(100) == b"gh"
        assert stream.read(100) == b""
    assert closed == [True]
    short = ByteStream(chunks(), start=0, stop=20, size=20)
    with pytest.raises(FormatError, match="stopped at byte 8 of a range up to 20"):
        short.read(20)


def test_traffic_adds_up_and_travels() -> None:
    traffic = Traffic()
    traffic.add(requests=2, bytes=10)
    other = pickle.loads(pickle.dumps(traffic))
    other.add(api=1, retries=3)
    traffic.merge(other)
    assert repr(traffic) == "Traffic(requests=4, api=1, bytes=20, retries=3)"


@pytest.mark.parametrize("path", ["model.safetensors", "sub/model.bin", "a-b_c.1"])
def test_relative_paths(path: str) -> None:
    assert require_relative_path(path) == path


def test_a_whole_model_is_its_config_tokenizer_and_one_kind_of_weights() -> None:
    common = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "optimizer.pt",
        "logs/x.safetensors",
    ]
    torch_files = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training_args.bin"]
    kept = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert checkpoint_files([*common, *torch_files]) == sorted([*kept, *torch_files[:2]])
    assert checkpoint_files([*common, *torch_files, "model.safetensors"]) == sorted([*kept, "model.safetensors"])
