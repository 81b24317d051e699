"""Fetching through a Hub on the loopback and from a directory: every byte, every request, every gap."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import HEAD, LAYOUTS, checkpoint, raw, state, suite, torch_file
from support.hubserver import Fault, HubServer

from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.registry import PAPER_STEPS
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError, Revision
from pythia_dynamics.errors import CheckpointError, FormatError, HubError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.history import states
from pythia_dynamics.history.fetch import download, fetch
from pythia_dynamics.history.history import History
from pythia_dynamics.history.states import StepStates, step_states
from pythia_dynamics.history.store import Store

REPO = "org/tiny"
QKV = "gpt_neox.layers.*.attention.query_key_value.weight"
KIB = 1024
WIDE: dict[str, Any] = {"vocab": 1024, "d_model": 48, "layers": 3}


def impatient(repo: str = REPO, **options: Any) -> HubSource:
    """A source that does not wait long between tries."""
    return HubSource(repo, policy=RetryPolicy(first_wait=0.001, max_wait=0.01), **options)


def chunks(store: object) -> dict[str, bytes]:
    """Every chunk file of a store."""
    folder = Path(str(store))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("c/*/*/*"))}


def bytes_at(history: History, step: int) -> bytes:
    return history.at(step).tobytes()


# -- the main job ---------------------------------------------------------------------------------------------


def test_143_revisions_byte_for_byte(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(PAPER_STEPS, **WIDE))
    seen: list[tuple[int, int]] = []
    history = fetch(REPO, cache=tmp_path, steps="paper", progress=lambda *done: seen.append(done))
    assert history.shape == (143, 1024, 48)
    assert not history.missing
    tensor_bytes = 1024 * 48 * 2
    for step in PAPER_STEPS:
        assert bytes_at(history, step) == raw(state(step, **WIDE)[HEAD])
    assert hub.count("api") == 1
    assert hub.file_requests().total() == 143
    assert max(hub.file_requests().values()) == 1
    assert hub.sent <= 143 * (tensor_bytes + 2 * KIB) + 32 * KIB  # headers of 1.6 KB, and one survey
    assert hub.sent <= 143 * (1.01 * tensor_bytes + 64 * KIB)
    assert seen[0] == (0, 143)
    assert seen[-1] == (143, 143)

    hub.reset()
    again = download(REPO, cache=tmp_path, steps="paper")
    assert again.present == PAPER_STEPS
    assert again.complete
    assert [request.path for request in hub.log] == [f"/api/models/{REPO}/refs"]
    assert (again.requests, again.api, again.bytes) == (0, 1, 0)


def test_everything_is_asked_by_commit_and_recorded(hub: HubServer, tmp_path: Path) -> None:
    repository = hub.add(REPO, suite([1000, 2000]))
    report = download(REPO, cache=tmp_path)
    assert report.fetched == (1000, 2000)
    assert {request.revision for request in hub.log if request.kind == "resolve"} <= set(repository.commits)
    commit = repository.branches["step2000"]
    record = Store.open(report.path).records(HEAD)[2000]
    assert record["repo"] == REPO
    assert record["ref"] == "step2000"
    assert record["commit"] == commit
    assert record["file"] == "model.safetensors"
    file = repository.commits[commit]["model.safetensors"]
    assert record["sha256"] == file.sha256
    assert file.read(record["start"], record["stop"]) == raw(state(2000)[HEAD])
    assert record["dtype"] == "float16"
    assert record["time"].endswith("+00:00")
    assert "Signature" not in json.dumps(record)


def test_local_directory_gives_the_same_store(hub: HubServer, tmp_path: Path) -> None:
    branches = suite([0, 512, 1000])
    for folder, files in branches.items():
        for name, content in files.items():
            target = tmp_path / "tiny" / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    hub.add(REPO, branches)
    remote = download(REPO, cache=tmp_path / "a", steps="all")
    local = download(tmp_path / "tiny", cache=tmp_path / "b")
    named = download(REPO, source=str(tmp_path / "tiny"), cache=tmp_path / "c", steps="all")
    assert chunks(remote.path) == chunks(local.path) == chunks(named.path)
    assert local.steps == (0, 512, 1000)
    assert local.path.name == named.path.name == "tiny.zarr"
    assert Store.open(local.path).records(HEAD)[0]["commit"].startswith("local-")


# -- layouts and dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cost_of_every_layout(hub: HubServer, tmp_path: Path, layout: str) -> None:
    steps = range(1000, 13_000, 1000)
    hub.add(REPO, suite(steps, layout, **WIDE))
    history = fetch(REPO, cache=tmp_path)
    for step in steps:
        assert bytes_at(history, step) == raw(state(step, **WIDE)[HEAD])
    allowed = 1.01 * 1024 * 48 * 2 + (64 if layout.startswith("safetensors") else 256) * KIB
    assert hub.sent <= 12 * allowed
    assert max(hub.file_requests().values()) <= 4  # three layouts to try, and a survey
    assert hub.file_requests().total() <= 12 * (2 if "shards" in layout else 1) + 1
    assert hub.count("api") <= 2


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_kept(hub: HubServer, tmp_path: Path, layout: str, dtype: torch.dtype) -> None:
    hub.add(REPO, {"step1": checkpoint(state(1, dtype=dtype), layout)})
    history = fetch(REPO, cache=tmp_path)
    assert history.dtype.name == str(dtype).removeprefix("torch.")
    assert bytes_at(history, 1) == raw(state(1, dtype=dtype)[HEAD])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_tensors_and_globs(hub: HubServer, tmp_path: Path, layout: str) -> None:
    hub.add(REPO, suite([1, 2, 4], layout))
    tensors = [QKV, HEAD, "gpt_neox.final_layer_norm.weight"]
    histories = download(REPO, cache=tmp_path, tensors=tensors).histories()
    assert len(histories) == 4
    for name, history in histories.items():
        for step in (1, 2, 4):
            assert bytes_at(history, step) == raw(state(step)[name]), name
    # An index and two shards; the first revision also tells, by a 404, that it is no single safetensors file, and by
    # its config.json how many heads the fused tensors have.
    assert sorted(hub.file_requests().values())[:-1] <= [3, 3]
    assert max(hub.file_requests().values()) <= 5


def test_a_tensor_added_later_costs_only_itself(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2, 4], **WIDE))
    download(REPO, cache=tmp_path)
    hub.reset()
    report = download(REPO, cache=tmp_path, tensors=[HEAD, "gpt_neox.embed_in.weight"])
    assert hub.sent < 3 * (1024 * 48 * 2 + 4 * KIB) + 64 * KIB
    assert report.fetched == (1, 2, 4)
    assert bytes_at(report.histories()["gpt_neox.embed_in.weight"], 4) == raw(
        state(4, **WIDE)["gpt_neox.embed_in.weight"]
    )


def test_layouts_that_change_between_revisions(hub: HubServer, tmp_path: Path) -> None:
    steps = range(1, 13)
    for step in steps:
        layout, shards = LAYOUTS[step % 4], 2 + step % 3
        hub.add(REPO, {f"step{step}": checkpoint(state(step, **WIDE), layout, shards=shards)})
    report = download(REPO, cache=tmp_path, workers=1)
    assert report.complete
    history = report.histories()[HEAD]
    for step in steps:
        assert bytes_at(history, step) == raw(state(step, **WIDE)[HEAD])
    assert max(hub.file_requests().values()) <= 4  # three layouts to try, and a survey
    assert hub.count("api") <= 1 + 12


def test_a_wrong_guess_is_found_out(hub: HubServer, tmp_path: Path) -> None:
    odd = {"a.first": torch.ones(500, dtype=torch.float16), **state(2, **WIDE)}
    branches = suite([1, 3, 4], **WIDE) | {"step2": checkpoint(odd)}
    longer = {f"zz.{k}": torch.ones(1) for k in range(40)} | state(5, **WIDE)
    hub.add(REPO, branches | {"step5": checkpoint(longer)})
    history = fetch(REPO, cache=tmp_path, workers=1)
    for step in (1, 2, 3, 4, 5):
        assert bytes_at(history, step) == raw(state(step, **WIDE)[HEAD])


def test_views_of_shared_storage(hub: HubServer, tmp_path: Path) -> None:
    whole = torch.arange(4000, dtype=torch.float32)
    tied = {"first": whole[:100].reshape(10, 10), "last": whole[3000:3600].reshape(20, 30), "whole": whole}
    turned = {**tied, "last": whole[:600].reshape(30, 20).T}
    hub.add(
        REPO, {"step1": {"pytorch_model.bin": torch_file(tied)}, "step2": {"pytorch_model.bin": torch_file(turned)}}
    )
    report = download(REPO, cache=tmp_path, tensors=["first", "last", "whole"], workers=1)
    for name, tensor in tied.items():
        assert bytes_at(report.histories()[name], 1) == raw(tensor)
    assert "transposed or strided" in report.missing[2]


# -- what is not there ----------------------------------------------------------------------------------------


def test_gaps_are_recorded_and_tried_again(hub: HubServer, tmp_path: Path) -> None:
    good = suite([1000, 2000, 6000])
    legacy = {"pytorch_model.bin": torch_file(state(5000), _use_new_zipfile_serialization=False)}
    other_dtype = checkpoint(state(7000, dtype=torch.float32))
    headless = checkpoint({name: tensor for name, tensor in state(8000).items() if name != HEAD})
    cut = {"model.safetensors": checkpoint(state(9000))["model.safetensors"][:-100]}
    hub.add(
        REPO,
        good
        | {"step3000": {"config.json": b"{}", "README.md": b"later"}, "step5000": legacy}
        | {"step7000": other_dtype, "step8000": headless, "step9000": cut},
    )
    report = download(REPO, cache=tmp_path, steps="1000:9000:1000")
    assert report.fetched == (1000, 2000, 6000)
    assert not report.complete
    assert list(report.missing) == [3000, 4000, 5000, 7000, 8000, 9000]
    assert "holds no weights" in report.missing[3000]
    assert "README.md" in report.missing[3000]
    assert "has no step 4000" in report.missing[4000]
    assert "legacy" in report.missing[5000]
    assert "float32" in report.missing[7000]
    assert "no tensor known to be its unembedding" in report.missing[8000]
    assert "outside the file" in report.missing[9000]
    assert step_states(Store.open(report.path), HEAD).missing == report.missing
    history = report.histories()[HEAD]
    assert history.missing == report.missing
    assert history.frame(3) is None

    hub.reset()
    hub.commit(REPO, "step4000", checkpoint(state(4000)))
    again = download(REPO, cache=tmp_path, steps="1000:9000:1000")
    assert again.fetched == (4000,)
    assert again.present == (1000, 2000, 6000)
    assert 4000 not in again.histories()[HEAD].missing
    asked = {request.revision for request in hub.log if request.kind == "resolve"}
    commits = hub.repositories[REPO].branches
    assert not asked & {commits[f"step{step}"] for step in (1000, 2000, 6000)}


def test_the_majority_says_what_a_suite_is(hub: HubServer, tmp_path: Path) -> None:
    odd = checkpoint(state(0, dtype=torch.float32))
    hub.add(REPO, {"step0": odd} | suite(range(1, 6)))
    report = download(REPO, cache=tmp_path)
    assert report.fetched == (1, 2, 3, 4, 5)
    assert report.tensors[0].dtype == "float16"
    assert "is float32[96, 16] at step0, and float16[96, 16] in the store, which cannot hold it" in report.missing[0]
    apart = download(REPO, cache=tmp_path / "other", steps=[0])
    assert bytes_at(apart.histories()[HEAD], 0) == raw(state(0, dtype=torch.float32)[HEAD])


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("verify_whole", [False, True])
def test_narrower_steps_are_stored_without_loss(
    hub: HubServer, tmp_path: Path, layout: str, narrow: torch.dtype, verify_whole: bool
) -> None:
    wide = {f"step{step}": checkpoint(state(step, dtype=torch.float32), layout) for step in (1, 2, 4, 5)}
    values = state(3, dtype=narrow)
    values[HEAD].view(torch.int16).view(-1)[:6] = torch.tensor([0x7C00, -0x8000, 1, 0x7E01, 0x0400, -1])  # ∞, −0, NaN
    hub.add(REPO, wide | {"step3": checkpoint(values, layout)})
    report = download(REPO, cache=tmp_path, verify_whole=verify_whole)
    assert (report.fetched, report.tensors[0].dtype) == ((1, 2, 3, 4, 5), "float32")
    assert bytes_at(report.histories()[HEAD], 3) == raw(values[HEAD].float())
    records = Store.open(report.path).records(HEAD)
    assert [records[step]["dtype"] for step in (2, 3)] == ["float32", str(narrow).removeprefix("torch.")]


def test_of_a_tie_nothing_is_lost(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1]) | {"step2": checkpoint(state(2, dtype=torch.float32))})
    report = download(REPO, cache=tmp_path)
    assert (report.fetched, report.tensors[0].dtype) == ((1, 2), "float32")
    assert bytes_at(report.histories()[HEAD], 1) == raw(state(1)[HEAD].float())


def test_an_unknown_tensor_names_the_nearest_at_once(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(range(1, 30)))
    with pytest.raises(UnknownNameError, match=r"embed_out\.weigth.*did you mean embed_out\.weight"):
        download(REPO, cache=tmp_path, tensors="embed_out.weigth")
    assert hub.file_requests().total() <= 3
    assert not list(tmp_path.glob("*.zarr"))


def test_unknown_steps(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1000, 2000, 3000]))
    with pytest.raises(UnknownNameError, match=r"no step 1500 .*did you mean 1000 or 2000"):
        download(REPO, cache=tmp_path, steps=[1500])
    with pytest.raises(CheckpointError, match="none of the steps 5000 … 9000; it has steps 1000, 2000, 3000"):
        download(REPO, cache=tmp_path, steps="5000:9000:1000")
    with pytest.raises(PythiaDynError, match="no step is named"):
        download(REPO, cache=tmp_path, steps=[])
    assert download(REPO, cache=tmp_path, steps=[1000, 1500]).missing == {1500: f"{REPO} has no step 1500"}


def test_a_tied_head_is_the_embedding(hub: HubServer, tmp_path: Path) -> None:
    tied = {name: tensor for name, tensor in state(1).items() if name != HEAD}
    hub.add(REPO, {"step1": checkpoint(tied, tie_word_embeddings=True)})
    with pytest.raises(CheckpointError, match=r"its unembedding is gpt_neox\.embed_in\.weight"):
        download(REPO, cache=tmp_path, tensors=HEAD)
    hub.reset()
    report = download(REPO, cache=tmp_path)
    assert [(spec.name, spec.roles) for spec in report.tensors] == [
        ("gpt_neox.embed_in.weight", ("unembedding", "embedding"))
    ]
    assert sum("config.json" in request.path for request in hub.log if request.kind == "resolve") == 1  # says so
    hub.reset()
    assert download(REPO, cache=tmp_path, steps=[1], tensors=["unembedding", "embedding"]).present == (1,)
    assert [request.kind for request in hub.log] == ["api"]
    for content in (
        None,
        b"[]",
        b'{"tie_word_embeddings": true',
        b'{"model_type": "llama", "limits": [0, Infinity]}',
    ):
        files = checkpoint(tied)
        if content is None:
            del files["config.json"]
        else:
            files["config.json"] = content
        hub.add("org/unclear", {"step1": files})
        with pytest.raises(CheckpointError, match="no tensor known to be its unembedding"):
            download("org/unclear", cache=tmp_path)
        assert download("org/unclear", cache=tmp_path, tensors="*.dense.weight").complete
        shutil.rmtree(tmp_path / "unclear.zarr")
    hub.add("org/untied", {"step1": checkpoint(tied)})
    with pytest.raises(CheckpointError, match="no tensor known to be its unembedding; name one, with --tensor"):
        download("org/untied", cache=tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_is_what_a_store_can_hold(hub: HubServer, tmp_path: Path, layout: str) -> None:
    hub.add(REPO, suite([1, 2], layout))
    report = download(REPO, cache=tmp_path, tensors="all")
    assert report.complete
    assert {spec.name for spec in report.tensors} == {name for name in state(1) if not name.endswith(".bias")}
    assert Store.open(report.path).roles == {"unembedding": HEAD, "embedding": "gpt_neox.embed_in.weight"}
    with pytest.raises(CheckpointError, match="is bool"):
        download(REPO, cache=tmp_path, tensors="gpt_neox.layers.0.attention.bias")


def test_all_steps_failing_is_an_error(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {f"step{k}": {"config.json": b"{}"} for k in range(12)})
    with pytest.raises(CheckpointError, match=r"no revision of org/tiny can be read: .*holds no weights"):
        download(REPO, cache=tmp_path)
    assert hub.count("api") <= 1 + 12
    assert not list(tmp_path.glob("*.zarr"))


def test_a_foreign_or_mismatched_store_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1]))
    hub.add("other/tiny", suite([1]))
    download(REPO, cache=tmp_path)
    before = chunks(tmp_path / "tiny.zarr")
    with pytest.raises(StoreError, match="holds the weights of org/tiny, not of other/tiny"):
        download("other/tiny", cache=tmp_path)
    assert chunks(tmp_path / "tiny.zarr") == before


def test_names_cannot_leave_the_cache(hub: HubServer, tmp_path: Path) -> None:
    evil = checkpoint({"../../evil": torch.ones(4, 4), **state(1)})
    index = json.dumps({"weight_map": {HEAD: "../secret.safetensors"}}).encode()
    hub.add(REPO, {"step1": evil, "step2": {"model.safetensors.index.json": index}})
    with pytest.raises(PythiaDynError, match="evil"):
        download(REPO, cache=tmp_path / "cache", steps="1", tensors="*evil")
    with pytest.raises(FormatError, match="secret"):
        download(REPO, cache=tmp_path / "cache", steps="2")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_other_suites_by_pattern(hub: HubServer, tmp_path: Path) -> None:
    files = [checkpoint(state(k)) for k in range(3)]
    hub.add(REPO, {"step1000-tokens4B": files[0], "step2000-tokens8B": files[1], "ckpt_100": files[2]})
    report = download(REPO, cache=tmp_path, suite={"pattern": r"^step(\d+)-tokens"})
    assert report.fetched == (1000, 2000)
    assert bytes_at(report.histories()[HEAD], 2000) == raw(state(1)[HEAD])
    assert download(REPO, cache=tmp_path, suite={"pattern": r"^ckpt_(\d+)"}).fetched == (100,)
    with pytest.raises(CheckpointError, match="--revision-pattern"):
        download(REPO, cache=tmp_path, suite={"pattern": r"nothing(\d+)"})


# -- interrupted ----------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_store_to_go_on_from(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(range(20)))
    hub.latency = {"cdn": 0.01}

    def interrupt(done: int, total: int) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(REPO, cache=tmp_path, progress=interrupt, workers=2)
    held = len(Store.open(tmp_path / "tiny.zarr").records(HEAD))
    assert 5 <= held < 20
    report = download(REPO, cache=tmp_path)
    assert len(report.present) == held
    assert len(report.fetched) == 20 - held
    history = report.histories()[HEAD]
    assert [bytes_at(history, k) for k in range(20)] == [raw(state(k)[HEAD]) for k in range(20)]


def test_ctrl_c_does_not_wait_for_the_rate_limit(hub: HubServer, tmp_path: Path) -> None:
    from time import monotonic

    from support.hubserver import Fault

    hub.add(REPO, suite(range(6)))
    surveyed = [hub.repositories[REPO].branches[f"step{step}"] for step in (0, 3, 5)]
    busy = Fault("status", 429, {"Retry-After": "300"})
    hub.faults.append(lambda r: busy if r.kind == "resolve" and r.revision not in surveyed else None)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    began = monotonic()
    with pytest.raises(KeyboardInterrupt):
        download(REPO, cache=tmp_path, progress=interrupt, workers=1)
    assert monotonic() - began < 20


def test_too_little_room_is_said_before(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, suite(range(4)))
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9 - 4000, 4000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"has 4\.0 kB free, 12\.3 kB needed and 67\.1 MB in reserve; free some"):
        download(REPO, cache=tmp_path / "deep" / "cache")
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_fills_is_survived(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pythia_dynamics.history.chunk import ChunkWriter

    hub.add(REPO, suite(range(12)))
    write, written = ChunkWriter.write, []

    def full(self: ChunkWriter, data: bytes) -> None:
        written.append(len(data))
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkWriter, "write", full)
        with pytest.raises(StoreError, match=r"zarr: the disk is full; .*; . of 12 steps are in .*goes on from there"):
            download(REPO, cache=tmp_path, workers=2)
    report = download(REPO, cache=tmp_path)
    assert report.complete
    history = report.histories()[HEAD]
    assert [bytes_at(history, k) for k in range(12)] == [raw(state(k)[HEAD]) for k in range(12)]


# -- other executors and readers ------------------------------------------------------------------------------


def test_any_executor_will_do(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(range(6), "torch"))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        report = download(REPO, cache=tmp_path, executor=pool)
    assert report.complete
    assert report.bytes >= hub.sent > 0
    assert report.requests == hub.file_requests().total()
    assert bytes_at(report.histories()[HEAD], 5) == raw(state(5)[HEAD])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_reading_matches_torch(tmp_path: Path, layout: str) -> None:
    for step in (1, 2):
        for name, content in checkpoint(state(step), layout).items():
            (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"run/checkpoint-{step}" / name).write_bytes(content)
    histories = download(tmp_path / "run", cache=tmp_path, tensors="*.weight").histories()
    for name, history in histories.items():
        assert np.array_equal(history.at(2), state(2)[name].numpy())


def test_no_repository_no_network(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"main": {}})
    with pytest.raises(CheckpointError, match="no branch, tag, folder, file or commit that is a step"):
        download(REPO, cache=tmp_path)
    with pytest.raises(AccessError, match="no repository org/none"):
        download("org/none", cache=tmp_path)
    assert not list(tmp_path.glob("*.zarr"))


def test_a_checkpoint_written_anew_is_noticed_and_fetched_on_demand(tmp_path: Path) -> None:
    suite, cache = tmp_path / "suite", tmp_path / "cache"
    for step in (1, 2):
        _write_checkpoint(suite / f"step{step}", step)
    assert download(suite, cache=cache).fetched == (1, 2)
    _write_checkpoint(suite / "step2", 22)
    report = download(suite, cache=cache, steps=[1, 2])
    assert (report.fetched, report.present, list(report.superseded)) == ((), (1, 2), [2])
    assert "step2 has been replaced since: local-" in report.superseded[2]
    assert bytes_at(report.histories()[HEAD], 2) == raw(state(2)[HEAD])
    report = download(suite, cache=cache, steps=[1, 2], refresh=True)
    assert (report.fetched, report.present, report.superseded) == ((2,), (1,), {})
    assert bytes_at(report.histories()[HEAD], 2) == raw(state(22)[HEAD])
    assert download(suite, cache=cache, refresh=True).fetched == ()


def test_a_branch_that_moved_is_noticed_and_fetched_on_demand(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1000, 2000]))
    download(REPO, cache=tmp_path)
    hub.add(REPO, {**suite([3000]), "step2000": checkpoint(state(22))})
    report = download(REPO, cache=tmp_path)
    assert (report.fetched, report.present, list(report.superseded)) == ((3000,), (1000, 2000), [2000])
    assert report.complete
    assert report.histories()[HEAD].provenance["superseded"] == {"2000": report.superseded[2000]}
    again = download(REPO, cache=tmp_path, refresh=True)
    assert (again.fetched, again.superseded) == ((2000,), {})
    assert bytes_at(again.histories()[HEAD], 2000) == raw(state(22)[HEAD])


def test_a_complete_store_costs_one_request(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1000, 2000]))
    download(REPO, cache=tmp_path)
    for options in ({}, {"steps": "1000,2000"}, {"steps": "1000,2000", "refresh": True}):
        hub.reset()
        report = download(REPO, cache=tmp_path, **options)
        assert (report.requests, report.api, report.bytes) == (0, 1, 0)
        assert report.present == (1000, 2000)


def test_a_commit_that_leaves_the_weights_supersedes_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1000, 2000]))
    download(REPO, cache=tmp_path)
    hub.commit(REPO, "step2000", {**checkpoint(state(2000)), "README.md": b"The weights are as they were."})
    hub.reset()
    report = download(REPO, cache=tmp_path, steps=[1000, 2000])
    assert (report.superseded, report.requests, report.api) == ({}, 0, 2)
    records = Store.open(report.path).records(HEAD)
    assert records[2000]["commit"] == hub.repositories[REPO].branches["step2000"]
    assert download(REPO, cache=tmp_path, steps=[1000, 2000]).api == 1


def test_what_another_process_has_fetched_meanwhile_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2]))
    store = Store.open(download(REPO, cache=tmp_path).path)
    old = {step: str(record["commit"]) for step, record in store.records(HEAD).items()}
    new = {**store.records(HEAD)[1], "commit": "f" * 40}
    store.write(HEAD, 1, np.asarray(History.from_store(store, HEAD).at(1)), new)  # between reading and recording
    store.record_compared(HEAD, {1: (old[1], None, "replaced"), 2: (old[2], None, "replaced")})
    store.record_compared(HEAD, {1: (old[1], "e" * 40, "")})
    states = step_states(store, HEAD)
    assert (states.held, dict(states.superseded)) == ((1,), {2: "replaced"})
    assert store.records(HEAD)[1] == new


def test_a_step_that_another_process_fetches_during_the_comparison(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the records and that of the chunks."""
    hub.add(REPO, suite([1, 2]))
    store = Store.open(download(REPO, cache=tmp_path).path)
    record, weights = store.records(HEAD)[2], np.asarray(History.from_store(store, HEAD).at(2))
    store.remove_record(HEAD, 2)
    commits = {step: Revision(step, f"step{step}", "f" * 40) for step in (1, 2)}

    def read(store: Store, tensor: str) -> StepStates:
        store.write(HEAD, 2, weights, record)
        return step_states(store, tensor)

    monkeypatch.setattr(states, "step_states", read)
    found = states.compare_with_source(store, REPO, commits, lambda revision: {}, tensors=[HEAD])
    assert list(found) == [1]
    assert dict(step_states(store, HEAD).superseded) == found


def test_steps_recorded_while_training_are_not_superseded(tmp_path: Path) -> None:
    _write_checkpoint(tmp_path / "suite" / "step2", 2)
    path = download(tmp_path / "suite", cache=tmp_path).path
    store = Store.open(path)
    store.ensure([store.tensors[HEAD]], [1])
    store.write(HEAD, 1, np.asarray(History.from_store(store, HEAD).at(2)), {"file": "", "commit": None})
    assert download(tmp_path / "suite", cache=tmp_path).superseded == {}
    assert step_states(store, HEAD).held == (1, 2)


def test_what_was_removed_upstream_stays_and_is_superseded(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1000, 2000, 3000]))
    download(REPO, cache=tmp_path)
    hub.commit(REPO, "step2000", {"README.md": b"soon"})
    del hub.repositories[REPO].branches["step3000"]
    report = download(REPO, cache=tmp_path, steps=[1000, 2000, 3000], refresh=True)
    assert not report.complete
    assert (report.missing, list(report.failed), list(report.superseded)) == ({}, [2000, 3000], [2000, 3000])
    states = step_states(Store.open(report.path), HEAD)
    assert (states.held, dict(states.missing)) == ((1000,), {})
    assert "does not have it any more" in states.superseded[3000]
    assert "holds no weights" in states.superseded[2000]
    assert bytes_at(report.histories()[HEAD], 3000) == raw(state(3000)[HEAD])
    hub.add(REPO, suite([1000, 2000, 3000]))
    assert download(REPO, cache=tmp_path, steps=[1000, 2000, 3000]).superseded == {}


def test_a_complete_store_survives_an_outage(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, suite([1000, 2000]))
    download(REPO, cache=tmp_path)
    hub.faults.append(lambda request: Fault("status", 404) if request.path.endswith("/refs") else None)
    with pytest.warns(UserWarning, match="has all steps; whether they have been replaced since is not known"):
        assert download(REPO, cache=tmp_path, steps=[1000, 2000]).complete
    with pytest.raises(HubError, match="the Hub answered 404"):
        download(REPO, cache=tmp_path, steps=[1000, 2000, 3000])
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert download(REPO, cache=tmp_path, steps=[1000, 2000]).present == (1000, 2000)


def _write_checkpoint(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in checkpoint(state(seed)).items():
        (folder / name).write_bytes(content)


# -- records --------------------------------------------------------------------------------------------------


def test_records_of_new_chunks_are_written_together(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(range(40))
    hub.add(REPO, suite(steps))
    written: list[int] = []
    write = Store.record_written

    def count(self: Store, tensor: str, records: Any) -> None:
        written.append(len(records))
        write(self, tensor, records)

    monkeypatch.setattr(Store, "record_written", count)
    report = download(REPO, cache=tmp_path, tensors="all", steps="all")
    store = Store.open(report.path)
    assert len(store.tensors) == 7
    assert sum(written) == 7 * 40
    assert len(written) < 7 * 40 / 4
    assert all(step_states(store, tensor).held == steps for tensor in store.tensors)
    hub.commit(REPO, "step3", suite([99])["step99"])
    written.clear()
    again = download(REPO, cache=tmp_path, tensors="all", steps="all", refresh=True)
    assert again.fetched == (3,)
    assert written == [1] * 7  # a chunk that replaces another one: its record must not stay that of the other


def test_an_interrupt_keeps_the_records_of_all_chunks(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(range(30)))

    def stop(done: int, total: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(REPO, cache=tmp_path, steps="all", progress=stop, workers=2)
    (path,) = tmp_path.glob("*.zarr")
    found = len(list((path / HEAD / "c").iterdir()))
    assert 10 <= found < 30
    assert len(Store.open(path).records(HEAD)) == found
