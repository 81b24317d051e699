"""How the bytes of a step were checked: recorded by step, said everywhere, and the whole file where that is asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.checkpoints import HEAD, LAYOUTS, checkpoint, raw, state, suite, torch_file
from support.hubserver import Fault, HubServer

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.formats.safetensors import parse_safetensors
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import CheckpointError, IntegrityError
from pythia_dynamics.history.estimate import preview
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.history import History
from pythia_dynamics.history.provenance import check_of, checks_in_words, weakest_checks
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.whole import read_whole
from pythia_dynamics.objects import Place

REPO = "org/tiny"
QKV = "gpt_neox.layers.0.attention.query_key_value.weight"


def recorded(path: Place, tensor: str = HEAD) -> dict[int, str]:
    return {step: check_of(record) for step, record in sorted(Store.open(path).records(tensor).items())}


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def flipped(files: dict[str, bytes], file: str, at: int) -> dict[str, bytes]:
    """The same files with one bit of one of them flipped."""
    content = bytearray(files[file])
    content[at] ^= 1
    return {**files, file: bytes(content)}


def serve_damaged(hub: HubServer, step: int, file: str, at: int) -> None:
    """Serve a branch whose file has another content than its checksum says, as a storage that has lost a bit."""
    commit = hub.repositories[REPO].branches[f"step{step}"]
    held = hub.repositories[REPO].commits[commit][file]
    assert held.sha256  # computed before the content changes
    assert isinstance(held.content, bytes)
    damaged = flipped({file: held.content}, file, at)[file]
    object.__setattr__(held, "content", damaged)


@pytest.mark.parametrize("layout", ["safetensors", "safetensors shards"])
def test_a_whole_file_is_compared_with_its_sha256(hub: HubServer, tmp_path: Path, layout: str) -> None:
    branches = suite([1, 2, 3], layout)
    hub.add(REPO, branches)
    plain = download(REPO, cache=tmp_path / "plain")
    assert set(recorded(plain.path).values()) == set(plain.checks.values()) == {"transferred"}
    hub.reset()
    whole = download(REPO, tensors=(HEAD, QKV), cache=tmp_path / "whole", verify_whole=True)
    assert recorded(whole.path) == recorded(whole.path, QKV) == whole.checks == dict.fromkeys([1, 2, 3], "sha256")
    for step in (1, 2, 3):
        assert History.from_store(Store.open(whole.path), HEAD).at(step).tobytes() == raw(state(step)[HEAD])
        assert History.from_store(Store.open(whole.path), QKV).at(step).tobytes() == raw(state(step)[QKV])
    weights = sum(len(content) for files in branches.values() for name, content in files.items() if "safet" in name)
    headers = 6 * 2048 if layout == "safetensors" else 0  # a shard of a tiny model is read with its header
    assert weights <= whole.bytes + headers
    assert whole.bytes <= 3 * weights
    # One more is of the config.json, which says how many heads QKV has.
    assert hub.file_requests().total() <= 3 * (1 if layout == "safetensors" else 3) + 2


def test_each_file_is_downloaded_once(hub: HubServer, tmp_path: Path) -> None:
    branches = suite([1, 2, 3, 4], vocab=1024, d_model=96, layers=3)
    hub.add(REPO, branches)
    total = sum(len(files["model.safetensors"]) for files in branches.values())
    report = download(REPO, tensors="all", cache=tmp_path, verify_whole=True)
    assert total < report.bytes <= total + 5 * 32 * 1024  # the headers, which are read before
    assert report.requests <= 4 + 1


def test_a_lost_bit_anywhere_in_the_file_is_found(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2, 3]))
    size = len(suite([2])["step2"]["model.safetensors"])
    serve_damaged(hub, 2, "model.safetensors", size - 3)
    blind = download(REPO, cache=tmp_path / "blind")
    assert blind.complete  # the bytes of one tensor have no checksum
    report = download(REPO, cache=tmp_path / "whole", verify_whole=True)
    assert list(report.missing) == [2]
    assert "model.safetensors of step2 fails its SHA-256" in report.missing[2]
    again = download(REPO, cache=tmp_path / "blind", verify_whole=True)
    assert (again.fetched, again.missing, list(again.failed), again.complete) == ((1, 3), {}, [2], False)
    assert recorded(blind.path) == {1: "sha256", 2: "transferred", 3: "sha256"}
    with pytest.raises(IntegrityError, match="fails its SHA-256"):
        pyd.tensor(REPO, HEAD, 2, verify_whole=True)


def test_damage_on_the_way_is_overcome(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1]))
    good = suite([1])["step1"]["model.safetensors"]
    left = [1]

    def spoil(request: Any) -> Fault | None:
        if request.kind == "cdn" and request.range in (None, f"bytes=0-{len(good) - 1}") and left:
            left.clear()
            return Fault("cut", after=len(good) // 2)
        return None

    hub.faults.append(spoil)
    source = HubSource(REPO, policy=RetryPolicy(first_wait=0.001, max_wait=0.01))
    report = download(REPO, source=source, cache=tmp_path, verify_whole=True)
    assert recorded(report.path) == {1: "sha256"}
    assert History.from_store(Store.open(report.path)).at(1).tobytes() == raw(state(1)[HEAD])


def test_a_header_that_was_damaged_when_it_was_read_first_is_found(tmp_path: Path) -> None:
    content = suite([1])["step1"]["model.safetensors"]
    (tmp_path / "run" / "step1").mkdir(parents=True)
    (tmp_path / "run" / "step1" / "model.safetensors").write_bytes(content)
    source, sha256 = LocalSource(tmp_path / "run"), hashlib.sha256(content).hexdigest()
    revision = source.revisions()[1]
    right = parse_safetensors(content, file="model.safetensors", file_size=len(content))[HEAD]
    taken = bytearray()
    read_whole(source, revision, {right: taken.extend}, sha256=sha256)
    assert bytes(taken) == raw(state(1)[HEAD])
    for wrong in (replace(right, start=right.start - 2, stop=right.stop - 2), replace(right, dtype="bfloat16")):
        with pytest.raises(IntegrityError, match="fails its SHA-256"):
            read_whole(source, revision, {wrong: taken.extend}, sha256=sha256)
    with pytest.raises(IntegrityError, match="fails its SHA-256"):
        read_whole(source, revision, {right: taken.extend}, sha256="0" * 64)
    (tmp_path / "run" / "step1" / "model.safetensors").write_bytes(b"\xff" * 8 + content[8:])
    with pytest.raises(IntegrityError, match="fails its SHA-256"):
        read_whole(source, revision, {right: taken.extend}, sha256=sha256)


def test_torch_files_have_a_checksum_of_each_tensor(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2], "torch", vocab=1024, d_model=96, layers=3))
    size = len(suite([1], "torch", vocab=1024, d_model=96, layers=3)["step1"]["pytorch_model.bin"])
    plain = download(REPO, cache=tmp_path / "plain")
    whole = download(REPO, cache=tmp_path / "whole", verify_whole=True)
    assert recorded(plain.path) == recorded(whole.path) == {1: "crc32", 2: "crc32"}
    assert whole.bytes < size  # of two files: nothing is downloaded whole


def test_steps_that_were_not_checked_are_fetched_again_once(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2]) | {"step3": checkpoint(state(3), "torch")})
    download(REPO, cache=tmp_path)
    first = download(REPO, cache=tmp_path, verify_whole=True, steps="1,2,3")
    assert (first.fetched, first.present) == ((1, 2), (3,))
    assert first.checks == {1: "sha256", 2: "sha256", 3: "crc32"}
    hub.reset()
    second = download(REPO, cache=tmp_path, verify_whole=True, steps="1,2,3")
    assert (second.fetched, second.present, hub.file_requests().total()) == ((), (1, 2, 3), 0)


def test_a_directory_states_no_checksum(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / "run" / f"step{step}").mkdir(parents=True)
        file = checkpoint(state(step))["model.safetensors"]
        (tmp_path / "run" / f"step{step}" / "model.safetensors").write_bytes(file)
    (tmp_path / "run" / "step3").mkdir()
    (tmp_path / "run" / "step3" / "pytorch_model.bin").write_bytes(torch_file(state(3)))
    report = download(tmp_path / "run", cache=tmp_path, verify_whole=True)
    assert report.checks == {1: "transferred", 2: "transferred", 3: "crc32"}
    assert download(tmp_path / "run", cache=tmp_path, verify_whole=True).fetched == ()


def test_one_tensor_is_compared_with_its_whole_file(hub: HubServer) -> None:
    hub.add(REPO, suite([1]))
    assert pyd.tensor(REPO, HEAD, 1, verify_whole=True).tobytes() == raw(state(1)[HEAD])
    hub.reset()
    serve_damaged(hub, 1, "model.safetensors", 5000)
    with pytest.raises(IntegrityError, match=r"model\.safetensors of step1 fails its SHA-256"):
        pyd.tensor(REPO, HEAD, 1, verify_whole=True)


def test_what_a_plan_says_of_whole_files_comes_true(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite(range(1, 9), vocab=1024, d_model=96, layers=3))
    plain, plan = preview(REPO, cache=tmp_path), preview(REPO, cache=tmp_path, verify_whole=True)
    assert (plain.checks, plan.checks) == (("transferred",), ("sha256",))
    assert plan.bytes > plain.bytes
    report = download(REPO, cache=tmp_path, verify_whole=True)
    assert plan.requests <= report.requests <= plan.requests + 1
    assert plan.bytes - 8 * 24 * 1024 <= report.bytes <= plan.bytes + 32 * 1024


def test_the_commands_say_how_each_step_was_checked(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1, 2]) | {"step3": checkpoint(state(3), "torch")})
    plan = command("plan", "--model", REPO, "--cache", tmp_path, "--verify-whole")
    assert "checked with the SHA-256 of the whole file, or checked with the CRC-32" in plan.output
    fetched = command("fetch", "--model", REPO, "--cache", tmp_path, "--steps", "1,3")
    assert "step 1: transferred only" in fetched.output
    command("fetch", "--model", REPO, "--cache", tmp_path, "--steps", "2", "--verify-whole")
    listed = command("ls", "--cache", tmp_path)
    for line in ("step 2: checked with the SHA-256", "step 3: checked with the CRC-32", "step 1: transferred only"):
        assert line in listed.output
    facts = json.loads(command("ls", "--cache", tmp_path, "--json").stdout)["stores"]
    assert facts[0]["checks"] == {"1": "transferred", "2": "sha256", "3": "crc32"}
    verified = command("verify", "--cache", tmp_path, "--results", tmp_path / "results")
    assert "when they were fetched: step 3: checked with the CRC-32 in the torch file" in verified.output


def test_results_and_reports_say_it(hub: HubServer, tmp_path: Path) -> None:
    from pythia_dynamics.report.facts import provenance
    from pythia_dynamics.results.folder import Results

    hub.add(REPO, suite([1, 2]) | {"step3": checkpoint(state(3), "torch")})
    history = pyd.fetch(REPO, cache=tmp_path, verify_whole=True)
    assert history.provenance["checks"] == {"1": "sha256", "2": "sha256", "3": "crc32"}
    assert history.select([3]).provenance["checks"] == {"3": "crc32"}
    done = command("order", "--model", "tiny", "--cache", tmp_path, "--results", tmp_path / "results")
    assert done.exit_code == 0, done.output
    lines = provenance(Results("tiny", tmp_path / "results")).checks
    assert lines == (
        "steps 1, 2: checked with the SHA-256 of the whole file",
        "step 3: checked with the CRC-32 in the torch file",
    )


def test_checks_in_words_and_of_older_records() -> None:
    assert check_of({"file": "model.safetensors", "start": 8}) == "transferred"
    assert check_of({"file": "written while training", "commit": None}) == "memory"
    assert check_of({"checked": "something of a later version"}) == "transferred"
    records = [{1: {"checked": "crc32"}, 2: {"checked": "sha256"}}, {1: {"checked": "transferred"}, 3: {}}]
    assert weakest_checks(records, [1, 2, 3, 4]) == {1: "transferred", 2: "sha256", 3: "memory"}
    assert checks_in_words({}) == []


@pytest.mark.parametrize("layouts", [LAYOUTS[:3], LAYOUTS[1:]])
def test_the_plan_of_a_mixed_layout_is_enough(hub: HubServer, tmp_path: Path, layouts: tuple[str, ...]) -> None:
    steps = range(29)  # the first, the middle and the last differ
    hub.add(REPO, {f"step{step}": checkpoint(state(step), layouts[step % len(layouts)]) for step in steps})
    plan = preview(REPO, cache=tmp_path)
    assert "the layout differs between revisions" in plan.note
    report = download(REPO, cache=tmp_path)
    assert report.complete
    assert 29 < report.requests <= plan.requests <= 4 * 29
    assert report.api <= plan.api_requests


def test_nothing_is_left_of_a_fetch_whose_files_fail(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, suite([1]))
    serve_damaged(hub, 1, "model.safetensors", 4000)
    with pytest.raises(CheckpointError, match="fails its SHA-256"):
        download(REPO, cache=tmp_path, verify_whole=True)
    assert recorded(tmp_path / "tiny.zarr") == {}
    assert not list(tmp_path.glob("*.zarr/*/c/*/*/*"))
