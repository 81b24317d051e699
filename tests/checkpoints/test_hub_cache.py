"""Checkpoints are removed from the Hugging Face cache while others arrive in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from support.checkpoints import checkpoint, state
from support.hubserver import HubServer

from pythia_dynamics.checkpoints import hub_cache
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.errors import HubError

REPO = "org/model"
STEPS = (1, 2, 3, 4)


@pytest.fixture
def source(hub: HubServer) -> HubSource:
    """Steps 1 and 2 have the same weights, all have the same config."""
    hub.add(REPO, {f"step{step}": checkpoint(state(max(step, 2))) for step in STEPS})
    return HubSource(REPO)


def contents(tmp_path: Path) -> list[Path]:
    """What the cache holds of the repository, without what is left of a download that was interrupted."""
    return [path for path in tmp_path.rglob("models--org--model/blobs/*") if path.is_file()]


def while_downloading(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Do something before and after the files of a commit are downloaded."""
    download = HfApi.snapshot_download

    def interleaved(*arguments: Any, **options: Any) -> Any:
        before()
        folder = download(*arguments, **options)
        after()
        return folder

    monkeypatch.setattr(HfApi, "snapshot_download", interleaved)


def test_the_first_checkpoint_goes_before_the_second_has_a_file(
    source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a download lie in the folder of the repository, which has no other commit yet."""
    first, second = source.revisions()[2], source.revisions()[3]
    folder = source.snapshot(first)
    part = folder.parents[1] / "blobs" / "abc.incomplete"

    def evict() -> None:
        part.write_bytes(b"a part")
        source.evict(first)

    with monkeypatch.context() as patch:
        while_downloading(patch, evict, lambda: None)
        following = source.snapshot(second)
    assert not folder.exists()
    assert part.read_bytes() == b"a part"
    assert (following / "model.safetensors").stat().st_size > 2000
    part.unlink()
    source.evict(second)
    assert contents(tmp_path) == []


def test_content_that_is_removed_after_a_download_has_seen_it_comes_again(
    source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the look for the content and the link to it, where the other link is the only one."""
    first, second = source.revisions()[1], source.revisions()[2]
    source.snapshot(first)
    link, left = os.symlink, [1]

    def evict_and_link(target: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if left[0] and str(path).endswith("model.safetensors"):
            left[0] -= 1
            source.evict(first)
            for content in contents(tmp_path):
                content.unlink()
        link(target, path, *arguments, **options)

    monkeypatch.setattr(os, "symlink", evict_and_link)
    folder = source.snapshot(second)
    assert left == [0]
    assert (folder / "model.safetensors").read_bytes() == checkpoint(state(2))["model.safetensors"]
    assert (folder / "config.json").is_file()
    source.evict(second)
    assert contents(tmp_path) == []


def test_a_checkpoint_that_never_stays_is_an_error(source: HubSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pythia_dynamics.checkpoints.hub.absent_files", lambda repository, commit, files: list(files))
    with pytest.raises(HubError, match=r"the checkpoint step1: its files were removed .* while they were downloaded"):
        source.snapshot(source.revisions()[1])


def test_equal_contents_stay_until_the_last_checkpoint_goes(source: HubSource, tmp_path: Path) -> None:
    folders = {step: source.snapshot(source.revisions()[step]) for step in (1, 2)}
    source.evict(source.revisions()[1])
    assert not folders[1].exists()
    assert sorted(path.name for path in folders[2].iterdir() if path.is_file()) == ["config.json", "model.safetensors"]
    source.evict(source.revisions()[2])
    assert contents(tmp_path) == []


def test_files_that_were_there_before_stay(hub: HubServer, source: HubSource) -> None:
    revision = source.revisions()[1]
    folder = Path(
        HfApi(endpoint=hub.url).snapshot_download(REPO, revision=revision.commit, allow_patterns=["config.json"])
    )
    assert source.snapshot(revision) == folder
    source.evict(revision)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").is_file()


def test_a_content_in_the_store_of_all_repositories_is_left_to_it(
    source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A content may be a link. The link goes, and what it leads to is the library's."""
    folder = source.snapshot(source.revisions()[3])
    content = Path(os.path.normpath(folder / (folder / "model.safetensors").readlink()))
    kept = tmp_path / "store"
    content.rename(kept)
    content.symlink_to(kept)
    source.evict(source.revisions()[3])
    assert not content.is_symlink()
    assert kept.exists()


def test_a_system_without_links_has_the_files_themselves(
    source: HubSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source.snapshot(source.revisions()[3])
    for path in list(folder.iterdir()):
        content = path.resolve()
        path.unlink()
        content.rename(path)
    source.evict(source.revisions()[3])
    assert not folder.exists()


def test_checkpoints_come_and_go_at_once(source: HubSource, tmp_path: Path) -> None:
    """Threads of two sources, each with half of the steps, as in two processes."""
    other = HubSource(REPO)
    failures: list[BaseException] = []

    def work(own: HubSource, steps: tuple[int, ...]) -> None:
        try:
            for _ in range(6):
                for step in steps:
                    folder = own.snapshot(own.revisions()[step])
                    expected = checkpoint(state(max(step, 2)))
                    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
                    own.evict(own.revisions()[step])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(own, steps)) for own, steps in ((source, (1, 3)), (other, (2, 4)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(tmp_path) == []


def test_the_lock_is_beside_those_of_the_library(source: HubSource, tmp_path: Path) -> None:
    folder = source.snapshot(source.revisions()[3])
    lock = hub_cache.cache_lock(folder)
    assert Path(lock.lock_file).parent == tmp_path / "huggingface" / ".locks" / "models--org--model"
