"""What a checkpoint is on the Hub: a branch, tag, folder, file, commit or repository; and what finding it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import HEAD, checkpoint, raw, state, torch_file
from support.hubserver import HubServer

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import Revision
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.errors import CheckpointError, UnknownNameError

REPO = "org/model"
QUICK = RetryPolicy(first_wait=0.001, max_wait=0.01, timeout=5)
ONE: dict[str, bytes | Path] = {"model.safetensors": b"x" * 2000, "config.json": b"{}"}


def source(name: str = REPO, **suite: Any) -> HubSource:
    return HubSource(name, suite=Suite().changed(suite), policy=QUICK)


def refs(found: HubSource) -> dict[int, str]:
    return {step: revision.ref for step, revision in found.revisions().items()}


def read(found: HubSource, revision: Revision, file: str) -> bytes:
    with found.read(revision, file) as stream:
        return stream.read(10**6)


# -- each kind ------------------------------------------------------------------------------------------------


def test_branches_and_then_tags(hub: HubServer) -> None:
    hub.add(REPO, {"step5": ONE, "main": {}})
    hub.tag(REPO, {"global_step7": {"pytorch_model.bin": b"seven"}, "v1.0": {}})
    found = source()
    assert refs(found) == {5: "step5"}
    tags = source(references=["tag", "branch"])
    assert refs(tags) == {7: "global_step7"}
    revision = tags.revisions()[7]
    assert (revision.kind, revision.commit) == ("tag", hub.repositories[REPO].tags["global_step7"])
    assert read(tags, revision, "pytorch_model.bin") == b"seven"
    assert hub.count("api") == 2


def test_only_tags_are_found_without_a_word(hub: HubServer) -> None:
    hub.add(REPO, {"main": {}})
    hub.tag(REPO, {f"global_step{step}": ONE for step in (10, 5)})
    found = source()
    assert refs(found) == {5: "global_step5", 10: "global_step10"}
    assert hub.count("api") == found.traffic.api == 1


def test_folders_on_main_cost_one_listing(hub: HubServer) -> None:
    files = {
        f"checkpoint-{step}/{name}": content
        for step in (500, 1000)
        for name, content in {**ONE, "optimizer.pt": b"o", "global_step500/x.pt": b"d"}.items()
    }
    commit = hub.add(REPO, {"main": {**files, "README.md": b"", "model.safetensors": b"top"}}).branches["main"]
    found = source()
    assert refs(found) == {500: "checkpoint-500", 1000: "checkpoint-1000"}
    assert hub.count("api") == 2
    first = found.revisions()[500]
    assert (first.kind, first.commit, first.folder, first.path_of_all) == ("folder", commit, *["checkpoint-500"] * 2)
    assert set(found.files(first)) == {*ONE, "optimizer.pt", "global_step500/x.pt"}
    assert found.files(first)["model.safetensors"][0] == 2000
    assert read(found, first, "config.json") == b"{}"
    assert hub.count("api") == 2
    stranger = source()
    assert stranger.files(first) == found.files(first)  # the same files without the list at hand
    assert set(stranger.files(found.revision("main"))) == set(hub.repositories[REPO].commits[commit])


def test_a_file_for_each_step(hub: HubServer) -> None:
    weights = {f"out/ckpt_{step}.pt": torch_file({"model": state(step)}) for step in (10, 20)}
    hub.add(REPO, {"main": {**weights, "out/config.json": b"{}", "out/tokenizer.json": b"{}", "README.md": b""}})
    found = source()
    assert refs(found) == {10: "out/ckpt_10.pt", 20: "out/ckpt_20.pt"}
    revision = found.revisions()[10]
    assert (revision.kind, revision.folder, revision.file) == ("file", "out", "ckpt_10.pt")
    assert set(found.files(revision)) == {"ckpt_10.pt", "config.json", "tokenizer.json"}
    assert hub.count("api") == 2
    assert pyd.tensor(REPO, HEAD, 20).tobytes() == raw(state(20)[HEAD])


def test_commits_of_a_branch(hub: HubServer) -> None:
    hub.add(REPO, {"main": {}})
    for step in (500, 1000):
        weights = {"model.safetensors": b"%d" % step}
        title = f"Training in progress, step {step}"
        hub.commit(REPO, "main", weights, title=title)
        hub.commit(REPO, "main", {**weights, "last-checkpoint/optimizer.pt": b"o"}, title=f"{title}, checkpoint")
    hub.commit(REPO, "main", {"model.safetensors": b"end"}, title="End of training")
    found = source()
    assert refs(found) == {step: f"Training in progress, step {step}" for step in (500, 1000)}
    assert hub.count("api") == 3  # refs, files, commits
    for step, revision in found.revisions().items():
        assert revision.kind == "commit"
        assert read(found, revision, "model.safetensors") == b"%d" % step
        assert set(found.files(revision)) == {"model.safetensors"}


def test_commits_of_the_branch_of_a_run(hub: HubServer) -> None:
    hub.page_size = 3
    hub.add("pico-lm/pico-decoder-tiny", {"main": ONE, "pico-decoder-tiny-1": {}})
    for step in (0, 1000, 2000):
        for what in ("Saving HF Model", "Saving Fabric Checkpoint", "Saving Logs", "Update README.md"):
            title = what if what.startswith("Update") else f"{what} -- Step {step}"
            hub.commit("pico-lm/pico-decoder-tiny", "pico-decoder-tiny-1", ONE, title=title)
    found = HubSource("pico-lm/pico-decoder-tiny", suite=pyd.resolve("pico-tiny").suite, policy=QUICK)
    assert refs(found) == {step: f"Saving HF Model -- Step {step}" for step in (0, 1000, 2000)}
    assert found.revisions()[1000].tokens == 1000 * 2_097_152
    assert hub.count("api") == 1 + 5


def test_two_commits_of_one_title_are_both_named(hub: HubServer) -> None:
    hub.add(REPO, {"main": {}})
    title = "Training in progress, step 500"
    first = hub.commit(REPO, "main", {"model.safetensors": b"1"}, title=title)
    second = hub.commit(REPO, "main", {"model.safetensors": b"2", "x": b""}, title=title)
    for suite in (source(), source(references="commit"), source(pattern=r"^Training in progress, step (\d+)$")):
        with pytest.raises(CheckpointError) as caught:
            suite.revisions()
        assert f"{title} ({first[:7]})" in str(caught.value)
        assert "are both step 500" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert second != first


def test_commits_that_are_no_steps_may_have_one_title(hub: HubServer) -> None:
    hub.add(REPO, {"main": {}})
    for title in ("Upload", "Upload", "step 3", "Upload"):
        hub.commit(REPO, "main", ONE, title=title)
    assert refs(source()) == {3: "step 3"}


def test_a_repository_for_each_step_over_several_pages(hub: HubServer) -> None:
    hub.page_size = 2
    for step in (0, 20, 100):
        hub.add(f"google/multiberts-seed_1-step_{step}k", {"main": {"pytorch_model.bin": b"%d" % step}})
    for other in ("google/multiberts-seed_1", "google/multiberts-seed_10", "google/multiberts-seed_2-step_20k"):
        hub.add(other, {"main": ONE})
    hub.add("google/bert-multiberts-seed_1-step_7k", {"main": ONE})
    found = HubSource("google/multiberts-seed_1", suite=pyd.resolve("multiberts-seed1").suite, policy=QUICK)
    assert refs(found) == {step * 1000: f"google/multiberts-seed_1-step_{step}k" for step in (0, 20, 100)}
    assert hub.count("api") == found.traffic.api == 3
    revision = found.revisions()[20_000]
    name = "google/multiberts-seed_1-step_20k"
    assert (revision.repository, revision.commit) == (name, hub.repositories[name].branches["main"])
    assert revision.tokens == 20_000 * 131_072
    assert read(found, revision, "pytorch_model.bin") == b"20"
    assert set(found.files(revision)) == {"pytorch_model.bin"}
    assert found.revision(name) == revision
    with pytest.raises(UnknownNameError, match="no revision 'main' in google/multiberts-seed_1; known: google/multi"):
        found.revision("main")


# -- nothing, or not that -------------------------------------------------------------------------------------


def test_nothing_found_says_what_was_there(hub: HubServer) -> None:
    hub.add(REPO, {"main": {"model.safetensors": b"x"}, "experiment-a": {}})
    hub.tag(REPO, {"v1.0": {}})
    with pytest.raises(CheckpointError) as caught:
        source().revisions()
    assert str(caught.value) == (
        "org/model has no branch, tag, folder, file or commit that is a step (found: experiment-a, v1.0, "
        "model.safetensors, Upload); --revision-pattern says how steps are named"
    )
    with pytest.raises(CheckpointError, match=r"org/model has no tag that is a step \(found: v1\.0\)"):
        source(references="tag").revisions()
    with pytest.raises(CheckpointError, match=r"no repository that is a step \(found: org/model\)"):
        source(references="repository").revisions()
    with pytest.raises(CheckpointError, match=r"org/absent has no repository that is a step \(found: none\)"):
        source("org/absent", references="repository").revisions()


@pytest.mark.parametrize("kind", ["folder", "file", "commit"])
def test_a_branch_that_is_not_there(hub: HubServer, kind: str) -> None:
    hub.add(REPO, {"main": {"a/run5/model.pt": b"x"}})
    with pytest.raises(CheckpointError, match=rf"org/model has no branch dev, whose {kind}s are the steps"):
        source(references=kind, branch="dev", pattern=r"run(\d+)").revisions()


def test_folders_of_another_branch(hub: HubServer) -> None:
    hub.add(REPO, {"main": {"step1/model.safetensors": b"m"}, "dev": {"step2/model.safetensors": b"d"}})
    found = source(references="folder", branch="dev")
    assert refs(found) == {2: "step2"}
    assert read(found, found.revisions()[2], "model.safetensors") == b"d"
    assert set(found.files(found.revision("main"))) == {"step1/model.safetensors"}


def test_several_stages_are_listed(hub: HubServer) -> None:
    hub.add(REPO, {"stage1-step5": ONE, "stage2-step5": ONE, "main": {}})
    with pytest.raises(CheckpointError, match=r"org/model has several stages \(1, 2\); choose one with --stage"):
        source().revisions()
    assert refs(source(stage="2")) == {5: "stage2-step5"}


# -- one revision by name -------------------------------------------------------------------------------------


def test_a_revision_by_name(hub: HubServer) -> None:
    hub.add(REPO, {"step5": ONE, "main": {"checkpoint-7/model.safetensors": b"7"}})
    hub.tag(REPO, {"v1": ONE})
    repository, found = hub.repositories[REPO], source()
    assert found.revision("step5") == Revision(5, "step5", repository.branches["step5"])
    assert found.revision("main") == Revision(0, "main", repository.branches["main"])
    assert found.revision("v1") == Revision(0, "v1", repository.tags["v1"], "tag")
    commit = repository.tags["v1"]
    assert found.revision(commit) == Revision(0, commit, commit)
    assert hub.count("api") == 1
    with pytest.raises(UnknownNameError, match="no revision 'stpe5' in org/model; did you mean step5"):
        found.revision("stpe5")
    folders = source(references="folder")
    assert folders.revision("checkpoint-7") == folders.revisions()[7]
    with pytest.raises(UnknownNameError, match="did you mean checkpoint-7"):
        folders.revision("checkpoint-8")


# -- whole checkpoints ----------------------------------------------------------------------------------------


def on_main(*steps: int, same: bool = False) -> dict[str, bytes]:
    return {
        f"checkpoint-{step}/{name}": content
        for step in steps
        for name, content in checkpoint(state(0 if same else step)).items()
    } | {"README.md": b""}


def test_a_snapshot_of_a_folder_is_that_folder(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, {"main": on_main(500, 1000)})
    found = source()
    first, second = found.revisions().values()
    folders = [found.snapshot(revision) for revision in (first, second)]
    assert sorted(path.name for path in folders[0].iterdir()) == ["config.json", "model.safetensors"]
    found.evict(first)
    assert not (folders[0] / "model.safetensors").exists()
    assert (folders[1] / "model.safetensors").exists()
    blobs = [path for path in tmp_path.rglob("blobs/*") if path.stat().st_size > 2000]
    assert blobs == [(folders[1] / "model.safetensors").resolve()]
    found.evict(first)  # again
    found.evict(second)
    assert not [path for path in tmp_path.rglob("blobs/*") if path.stat().st_size > 2000]
    assert found.snapshot(first) == folders[0]
    assert (folders[0] / "model.safetensors").exists()


def test_evicting_keeps_content_that_another_step_has_too(hub: HubServer) -> None:
    """Two steps of the same weights have one blob in the cache, also where one of them was there before."""
    hub.add(REPO, {"main": on_main(500, 1000, same=True)})
    before, found = source(), source()
    first, second = found.revisions().values()
    kept = before.snapshot(first) / "model.safetensors"
    folder = found.snapshot(second)
    assert (folder / "model.safetensors").resolve() == kept.resolve()
    found.snapshot(first)
    found.evict(second)
    found.evict(first)
    assert not (folder / "model.safetensors").exists()
    assert kept.exists()


def test_a_snapshot_of_a_file_has_that_file_only(hub: HubServer) -> None:
    weights = {f"ckpt_{step}.pt": torch_file({"model": state(step)}) for step in (10, 20)}
    hub.add(REPO, {"main": {**weights, "config.json": b"{}", "vocab.json": b"{}", "notes.txt": b""}})
    found = source()
    first, second = found.revisions().values()
    folder = found.snapshot(first)
    assert sorted(path.name for path in folder.iterdir()) == ["ckpt_10.pt", "config.json", "vocab.json"]
    other = found.snapshot(second)
    found.evict(first)
    assert not (folder / "ckpt_10.pt").exists()
    assert (other / "ckpt_20.pt").exists()
    assert (other / "config.json").exists()


def test_a_snapshot_of_a_repository_of_its_own(hub: HubServer) -> None:
    for step in (1, 2):
        hub.add(f"org/run-step_{step}k", {"main": checkpoint(state(step))})
    found = source("org/run", references="repository", pattern=r"-step_(\d+k)$")
    folder = found.snapshot(found.revisions()[1000])
    assert "models--org--run-step_1k" in str(folder)
    found.evict(found.revisions()[1000])
    assert not folder.exists()
    hub.add("org/run-step_3k", {"main": {"model.safetensors": b"x"}})
    bare = source("org/run", references="repository", pattern=r"-step_(\d+k)$")
    revision = bare.revisions()[3000]
    with pytest.raises(CheckpointError, match=r"has no config\.json; give one with --config"):
        bare.snapshot(revision)
