"""Verification finds planted faults, each by its kind and its steps, and finds nothing where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.checkpoints import HEAD, checkpoint, state, suite
from support.hubserver import Fault, HubServer

from pythia_dynamics.checkpoints.findings import Finding, Verification
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.listings import list_repository
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError
from pythia_dynamics.checkpoints.verify import REMOTE, verify_listing
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import UnknownNameError, listed
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.store import Store
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.verify import verify_store

SPEC = TensorSpec(HEAD, "float16", (64, 24))
REPO = "org/tiny"


def verify_remote(source: HubSource, steps: Iterable[int] | None = None) -> Verification:
    return verify_listing(list_repository(source, steps))


def store(path: Path, frames: Mapping[int, np.ndarray], source: str = REPO) -> Store:
    made = Store.create(path, source=source)
    made.ensure([SPEC], frames)
    for step, frame in frames.items():
        made.write(HEAD, step, frame.astype(np.float16), {"step": step})
    return made


def walk(steps: int, seed: int = 0) -> dict[int, np.ndarray]:
    moves = np.random.default_rng(seed).normal(size=(steps, *SPEC.shape))
    return {1000 * (t + 1): frame for t, frame in enumerate(np.cumsum(moves, axis=0))}


def kinds(found: Verification) -> list[tuple[str, tuple[int, ...]]]:
    return [(finding.kind, finding.steps) for finding in found.findings]


@pytest.mark.parametrize("seed", range(3))
def test_honest_motion_has_no_oddity(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=SPEC.shape)
    honest = {
        "walk": walk(30, seed),
        "ballistic": {t: t * direction for t in range(30)},
        "noise": {t: rng.normal(size=SPEC.shape) for t in range(30)},
        "uneven": {t: np.sqrt(t + 1) * direction + rng.normal(size=SPEC.shape) for t in (0, 1, 2, 4, 8, 16, 1000)},
        "one": walk(1),
        "two": walk(2),
    }
    for name, frames in honest.items():
        found = verify_store(store(tmp_path / f"{name}.zarr", frames), HEAD)
        assert found.findings == (), name
        assert found.checked == tuple(sorted(frames))


def test_strays_and_stretches_of_strays_are_named(tmp_path: Path) -> None:
    frames = walk(30)
    other = walk(30, seed=9)
    frames[7000] = other[29000]
    for step in (15000, 16000, 17000):
        frames[step] = other[step]
    found = verify_store(store(tmp_path / "a.zarr", frames), HEAD)
    assert kinds(found) == [("stray", (7000,)), ("stray", (15000, 16000, 17000))]
    assert "step 7000 is far from 6000" in found.findings[0].message
    assert "steps 15000, 16000, 17000 are far from 14000" in found.findings[1].message


def test_swapped_checkpoints_are_named(tmp_path: Path) -> None:
    frames = walk(30)
    frames[8000], frames[21000] = frames[21000], frames[8000]
    assert kinds(verify_store(store(tmp_path / "a.zarr", frames), HEAD)) == [("stray", (8000,)), ("stray", (21000,))]


def test_neighbours_that_are_exchanged_are_named(tmp_path: Path) -> None:
    frames = walk(30)
    frames[8000], frames[9000] = frames[9000], frames[8000]
    (found,) = verify_store(store(tmp_path / "a.zarr", frames), HEAD).findings
    assert found.steps == (8000, 9000)
    assert found.message.startswith("steps 8000, 9000 seem exchanged: the path around them is 1.2")


def test_wrong_weights_at_the_ends_are_named(tmp_path: Path) -> None:
    frames, start = walk(30), 5 * np.random.default_rng(1).normal(size=SPEC.shape)
    frames = {step: start + frame for step, frame in frames.items()}
    frames[1000] = 5 * np.random.default_rng(2).normal(size=SPEC.shape)
    frames[30000] = frames.pop(4000)
    first, last = verify_store(store(tmp_path / "a.zarr", frames), HEAD).findings
    assert (first.steps, last.steps) == ((1000,), (30000,))
    assert "as independent weights" in first.message
    assert "nearer to" in last.message


def test_steps_between_equal_ones_are_not_blamed(tmp_path: Path) -> None:
    frames = walk(30)
    frames[12000] = frames[10000]
    assert kinds(verify_store(store(tmp_path / "a.zarr", frames), HEAD)) == [("equal", (10000, 12000))]


def test_equal_content_is_found_by_content(tmp_path: Path) -> None:
    frames = walk(12)
    frames[3000] = frames[5000] = frames[12000]
    found = verify_store(store(tmp_path / "a.zarr", frames), HEAD)
    assert ("equal", (3000, 5000, 12000)) in kinds(found)
    equal = next(finding for finding in found.findings if finding.kind == "equal")
    assert "have the same embed_out.weight" in equal.message
    assert equal.fault


def test_equal_checksums_are_not_equal_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = walk(6)
    frames[6000] = frames[2000]
    made = store(tmp_path / "a.zarr", frames)
    monkeypatch.setattr("pythia_dynamics.sweep.verify._stored_checksum", lambda path, nbytes: b"same")
    assert ("equal", (2000, 6000)) in kinds(verify_store(made, HEAD))
    assert [finding.steps for finding in verify_store(made, HEAD).findings if finding.kind == "equal"] == [(2000, 6000)]


@pytest.mark.parametrize(
    ("source", "fault"), [("EleutherAI/pythia-70m-deduped", False), (REPO, True), ("/gone/away", True)]
)
def test_the_first_two_steps_of_pythia_are_known_to_be_equal(tmp_path: Path, source: str, fault: bool) -> None:
    frames = {0: np.ones(SPEC.shape), 1: np.ones(SPEC.shape), 2: walk(1)[1000]}
    found = verify_store(store(tmp_path / "a.zarr", frames, source), HEAD)
    assert kinds(found) == [("equal", (0, 1))]
    assert bool(found.faults) is fault


def test_damage_is_found_named_and_forgotten(tmp_path: Path) -> None:
    made = store(tmp_path / "a.zarr", walk(6))
    for step, spoil in ((2000, 100), (4000, None)):
        path = made.chunk_path(HEAD, step)
        content = bytearray(path.read_bytes())
        if spoil is None:
            del content[-10:]
        else:
            content[spoil] ^= 1
        path.write_bytes(content)
    made.chunk_path(HEAD, 5000).unlink()
    found = verify_store(made, HEAD)
    assert kinds(found) == [("damaged", (2000,)), ("damaged", (4000,)), ("damaged", (5000,))]
    assert sorted(made.records(HEAD)) == [1000, 3000, 6000]
    assert verify_store(made, HEAD).findings == ()


def test_weights_that_are_not_finite_are_named_and_spoil_nothing_else(tmp_path: Path) -> None:
    frames = walk(8)
    frames[4000] = frames[4000].copy()
    frames[4000][0, 0] = np.nan
    frames[6000] = walk(30, seed=5)[30000]
    found = verify_store(store(tmp_path / "a.zarr", frames), HEAD)
    assert kinds(found) == [("non-finite", (4000,)), ("stray", (6000,))]
    nothing = {step: np.full(SPEC.shape, np.inf) for step in (1, 2, 3)}
    found = verify_store(store(tmp_path / "b.zarr", nothing), HEAD)
    assert [kind for kind, _ in kinds(found)] == ["equal", "non-finite", "non-finite", "non-finite"]


def test_an_empty_store_has_nothing_to_check(tmp_path: Path) -> None:
    made = Store.create(tmp_path / "a.zarr", source=REPO)
    made.ensure([SPEC], [1000])
    assert verify_store(made, HEAD) == Verification("a", REPO, HEAD, (), ())


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify_store(
        store(tmp_path / "a.zarr", walk(5)),
        HEAD,
        compute=Compute(progress=lambda done, total: seen.append((done, total))),
    )
    assert seen[-1] == (1000, 1000)
    assert seen == sorted(seen)


# -- before anything is downloaded ----------------------------------------------------------------------------


def test_final_weights_under_early_branches_are_found_by_their_sha256(hub: HubServer) -> None:
    for layout in ("safetensors", "torch"):
        branches = suite(range(1000, 9000, 1000), layout)
        for step in (2000, 3000, 5000):
            branches[f"step{step}"] = branches["step8000"]
        hub.add(f"org/{layout}", branches)
        source = HubSource(f"org/{layout}")
        found = verify_remote(source)
        assert kinds(found) == [("equal", (2000, 3000, 5000, 8000))]
        assert (found.subject, found.checked) == (REMOTE, tuple(range(1000, 9000, 1000)))
        assert source.traffic.requests == 0
        assert source.traffic.api == 1 + 8
        assert hub.file_requests().total() == 0
        assert verify_remote(source, [1000, 4000, 6000]).findings == ()


def test_both_formats_of_one_fault_are_told_once(hub: HubServer) -> None:
    branches = {
        f"step{step}": checkpoint(state(min(step, 2))) | checkpoint(state(min(step, 2)), "torch")
        for step in (0, 1, 2, 3)
    }
    hub.add(REPO, branches)
    assert kinds(verify_remote(HubSource(REPO))) == [("equal", (2, 3))]


@pytest.mark.parametrize("layout", ["safetensors shards", "torch shards"])
def test_mixed_shards_are_told_from_equal_checkpoints(hub: HubServer, layout: str) -> None:
    branches = suite(range(1000, 7000, 1000), layout)
    shard = next(name for name in branches["step1000"] if "00002-of" in name)
    branches["step3000"][shard] = branches["step5000"][shard]
    branches["step4000"] = branches["step6000"]
    hub.add(REPO, branches)
    found = verify_remote(HubSource(REPO))
    assert kinds(found) == [("equal", (4000, 6000)), ("mixed", (3000, 5000))]
    assert shard in found.findings[1].message


def test_what_pythia_should_have_and_has_not_is_missing(hub: HubServer) -> None:
    branches = suite([0, 2, 1000, 2000])
    branches["step1"] = branches["step0"]
    branches["step2000"] = {"README.md": b"soon"}
    hub.add("EleutherAI/pythia-14m", branches)
    found = verify_remote(HubSource("EleutherAI/pythia-14m"), [0, 1, 2, 4, 1000, 2000])
    assert kinds(found) == [("missing", (4,)), ("missing", (2000,)), ("equal", (0, 1))]
    assert [finding.fault for finding in found.findings] == [True, True, False]
    assert len(verify_remote(HubSource("EleutherAI/pythia-14m")).checked) == 154


def test_a_revision_that_cannot_be_listed_is_a_finding(hub: HubServer) -> None:
    hub.add(REPO, suite([1, 2, 3]))
    source = HubSource(REPO, policy=RetryPolicy(max_invalid_responses=1))
    commit = source.revisions()[2].commit
    hub.faults.append(lambda request: Fault("status", 404) if f"tree/{commit}" in request.path else None)
    assert kinds(verify_remote(source)) == [("unreadable", (2,))]


def test_a_closed_repository_ends_it(hub: HubServer) -> None:
    with pytest.raises(AccessError, match="no repository"):
        verify_remote(HubSource("org/none"))


# -- the command ----------------------------------------------------------------------------------------------


def test_the_command_says_saves_and_fails(hub: HubServer, tmp_path: Path) -> None:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    branches = suite([1000, 2000, 3000])
    branches["step2000"] = branches["step1000"]
    hub.add(REPO, branches)
    run = lambda *arguments: CliRunner(env=environment).invoke(main, list(arguments))  # noqa: E731
    assert run("fetch", "--model", REPO).exit_code == 0
    remote = run("verify", "--model", REPO, "--remote")
    assert remote.exit_code == 1
    assert "equal: steps 1000, 2000 have the same safetensors files" in remote.stdout
    assert remote.stderr.splitlines() == ["pythia-dyn: 1 fault found in 1 repository"]
    local = run("verify", "--json")
    assert local.exit_code == 1
    (facts,) = json.loads(local.stdout)["verify"]
    assert facts["findings"][0]["steps"] == [1000, 2000]
    run("verify")
    saved = json.loads((tmp_path / "results" / "tiny" / "verify.json").read_text())["verify"]
    assert [item["subject"] for item in saved] == [REMOTE, HEAD]
    assert run("verify", "--steps", "1000").exit_code == 2
    assert "name a repository" in run("verify", "--remote", "--model", str(tmp_path)).stderr
    good = run("verify", "--remote", "--model", REPO, "--steps", "1000,3000")
    assert good.exit_code == 0
    assert "2 steps checked, nothing found" in good.stdout


def test_a_repaired_branch_is_said_until_it_is_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}
    run = lambda *arguments: CliRunner(env=environment).invoke(main, list(arguments))  # noqa: E731
    hub.add(REPO, suite([1000, 2000, 3000]))
    assert run("fetch", "--model", REPO).exit_code == 0
    hub.commit(REPO, "step2000", checkpoint(state(22)))
    hub.commit(REPO, "step3000", {**checkpoint(state(3000)), "README.md": b"the same weights"})
    remote = run("verify", "--model", REPO, "--remote", "--json")
    assert remote.exit_code == 1
    (facts,) = json.loads(remote.stdout)["verify"]
    assert [(each["kind"], each["steps"]) for each in facts["findings"]] == [("superseded", [2000])]
    assert "fetch --refresh fetches it again" in facts["findings"][0]["message"]
    assert "superseded 2000: step2000 has been replaced since" in run("ls").stdout
    hub.reset()
    fetched = run("fetch", "--model", REPO)
    assert fetched.exit_code == 0
    assert "0 steps fetched, 3 already in the cache" in fetched.stdout
    assert "superseded 2000: step2000 has been replaced since" in fetched.stdout
    assert "fetch --refresh fetches the superseded steps again" in fetched.stdout
    assert hub.file_requests().total() == 0
    assert "1 steps fetched, 2 already" in run("fetch", "--model", REPO, "--refresh").stdout
    (stored,) = json.loads(run("ls", "--json").stdout)["stores"]
    assert (stored["steps"], stored["superseded"], stored["missing"]) == ([1000, 2000, 3000], {}, {})
    assert run("verify", "--model", REPO, "--remote").exit_code == 0


def test_a_finding_has_a_known_kind() -> None:
    with pytest.raises(UnknownNameError, match="no kind of finding 'damage'; did you mean damaged"):
        Finding("damage", (1,), "")  # type: ignore[arg-type]


def test_long_lists_are_cut() -> None:
    assert listed([5]) == "step 5"
    assert listed(range(3)) == "steps 0, 1, 2"
    assert listed(range(0, 9000, 1000)) == "9 steps (0, 1000, 2000, 3000 … 8000)"
