"""Verification of one repository by its listing: every planted defect is found, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.hubserver import Fault, HubServer, once
from support.runs import SAFETENSORS, TORCH, run, weights

from pythia_dynamics.checkpoints.findings import Verification
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.listings import list_repository, listings_path
from pythia_dynamics.checkpoints.registry import ALL_STEPS, resolve
from pythia_dynamics.checkpoints.retry import RetryPolicy
from pythia_dynamics.checkpoints.source import AccessError
from pythia_dynamics.checkpoints.verify import verify_listing
from pythia_dynamics.errors import HubError

REPO = "org/tiny"
ONE = SAFETENSORS
QUICK = RetryPolicy(max_attempts=2, max_invalid_responses=1, first_wait=0.001, max_wait=0.01)


def verify_remote(source: HubSource, steps: Iterable[int] | None = None, **options: Any) -> Verification:
    return verify_listing(list_repository(source, steps, **options))


def kinds(found: Verification) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(finding.kind, finding.steps, finding.fault) for finding in found.findings]


@pytest.mark.parametrize(
    "names", [(ONE,), (TORCH,), (ONE, TORCH), tuple(f"model-0000{k}-of-00003.bin" for k in (1, 2, 3))]
)
def test_a_suite_without_defects_has_no_findings(hub: HubServer, names: tuple[str, ...]) -> None:
    hub.add(REPO, run([0, 1, 2, 4, 8, *range(1000, 9000, 1000)], *names))
    assert verify_remote(HubSource(REPO)).findings == ()
    hub.add("EleutherAI/pythia-14m", {**run(ALL_STEPS, *names), "step1": run([0], *names)["step0"]})
    assert kinds(verify_remote(HubSource("EleutherAI/pythia-14m"))) == [("equal", (0, 1), False)]


@pytest.mark.parametrize("given", [TORCH, ONE])
def test_formats_of_different_steps_disagree(hub: HubServer, given: str) -> None:
    other = ONE if given == TORCH else TORCH
    branches = run(range(1, 9), ONE, TORCH)
    branches["step5"][given] = branches["step2"][given]  # the other format is right
    branches["step7"] = branches["step3"]  # both are wrong, and agree
    del branches["step8"][other]
    hub.add(REPO, branches)
    found = verify_remote(HubSource(REPO))
    assert sorted(kinds(found)) == [("disagree", (2, 5), True), ("equal", (2, 5), True), ("equal", (3, 7), True)]
    names = {ONE: "safetensors", TORCH: "torch"}
    assert (
        f"steps 2, 5 have the same {names[given]} files, but different {names[other]} files"
        in found.findings[-1].message
    )


def test_torch_files_of_steps_0_and_1_of_pythia_may_differ(hub: HubServer) -> None:
    branches = run(ALL_STEPS, ONE, TORCH)
    branches["step1"][ONE] = branches["step0"][ONE]
    hub.add("EleutherAI/pythia-14m", branches)
    assert not verify_remote(HubSource("EleutherAI/pythia-14m")).faults


def test_a_truncated_file_has_another_size(hub: HubServer) -> None:
    branches = run(range(1, 9))
    branches["step3"][ONE] = branches["step3"][ONE][:200]
    hub.add(REPO, branches)
    found = verify_remote(HubSource(REPO))
    assert kinds(found) == [("size", (3,), True)]
    assert "200 bytes of safetensors files; 7 steps have 256 (56 B apart)" in found.findings[0].message


def test_a_second_dtype_is_no_fault_and_headers_do_not_count(hub: HubServer) -> None:
    branches = run(range(1, 12))
    for step in (1, 2, 3):
        branches[f"step{step}"][ONE] *= 2
    hub.add(REPO, branches)
    assert kinds(verify_remote(HubSource(REPO))) == [("size", (1, 2, 3), False)]
    headers = {f"step{step}": {ONE: weights(step, 40_000 + 7 * step)} for step in range(6)}
    hub.add("org/headers", headers)
    assert verify_remote(HubSource("org/headers")).findings == ()
    hub.add("org/two", {"step1": {ONE: b"1"}, "step2": {ONE: b"22"}})
    assert verify_remote(HubSource("org/two")).findings == ()


def test_what_a_branch_lacks_is_said(hub: HubServer) -> None:
    shards = [f"pytorch_model-0000{k}-of-00003.bin" for k in (1, 2, 3)]
    branches = run(range(1, 7), *shards)
    del branches["step2"][shards[1]]
    branches["step4"] = {"config.json": b"{}"}
    branches["step5"] = {ONE: b"version https://git-lfs"}
    hub.add(REPO, branches)
    commit = hub.repositories[REPO].branches["step5"]
    hub.faults.append(
        lambda request: (
            Fault("json", content=json.dumps([{"type": "file", "path": ONE, "size": 134}]).encode())
            if f"tree/{commit}" in request.path
            else None
        )
    )
    found = verify_remote(HubSource(REPO))
    assert [(finding.kind, finding.message) for finding in found.findings] == [
        ("missing", "step2 has 2 of 3 shards of its torch files; missing: 2"),
        ("missing", "step4 has no weights"),
        ("missing", f"step5 has no weights: {ONE} with 134 bytes is not in LFS, as weights are"),
    ]


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([*range(1000, 20_000, 1000)], []),
        ([1, 2, 4, 8, *range(100, 900, 100), *range(1000, 9000, 1000)], []),  # becomes coarser
        ([*range(100, 900, 100), 1100, 1200, 1300], [900, 1000]),
        ([0, 100, 300, 500, 600, 700, 800, 900, 1000], [200, 400]),
        ([0, 1, 5, 9, 20, 31, 42], []),  # no grid
        ([5], []),
    ],
)
def test_gaps_in_the_grid_of_a_suite_are_missing_steps(hub: HubServer, steps: list[int], missing: list[int]) -> None:
    hub.add(REPO, run(steps))
    found = verify_remote(HubSource(REPO))
    assert kinds(found) == [("missing", (step,), True) for step in missing]
    assert found.checked == tuple(sorted({*steps, *missing}))


# -- the known defects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "step"), [(9, 40_000), (6, 88_000), (2, 111_000)])
def test_pythia_202_steps_without_weights(hub: HubServer, seed: int, step: int) -> None:
    repo = f"EleutherAI/pythia-410m-seed{seed}"
    branches = run(ALL_STEPS) | {"step1": run([0])["step0"]}
    hub.add(repo, {**branches, f"step{step}": {"config.json": b"{}"}})  # the branch has no weights
    assert kinds(verify_remote(HubSource(repo))) == [("missing", (step,), True), ("equal", (0, 1), False)]
    del hub.repositories[repo].branches[f"step{step}"]  # or there is none
    assert kinds(verify_remote(HubSource(repo))) == [("missing", (step,), True), ("equal", (0, 1), False)]


def test_pythia_205_branches_with_weights_of_the_end(hub: HubServer) -> None:
    many = [*ALL_STEPS[:11], *range(1000, 54_000, 1000), 55_000, 60_000, 65_000, *range(70_000, 110_000, 10_000)]
    many = sorted({*many, 103_000, 110_000, 120_000, 130_000, 140_000})
    few = [54_000, *range(56_000, 60_000, 1000), 61_000, 62_000, 63_000, 64_000, 143_000]
    branches = run(ALL_STEPS)
    branches |= {f"step{step}": {ONE: weights("main")} for step in many}
    branches |= {f"step{step}": {ONE: weights("second")} for step in few}
    hub.add("EleutherAI/pythia-2.8b", branches)
    found = verify_remote(HubSource("EleutherAI/pythia-2.8b"))
    assert (len(many), len(few)) == (76, 10)
    assert kinds(found) == [("equal", tuple(many), True), ("equal", tuple(few), True)]


def test_pythia_206_first_shard_of_the_end(hub: HubServer) -> None:
    shards = [f"pytorch_model-0000{k}-of-00003.bin" for k in (1, 2, 3)]
    branches = run(ALL_STEPS, *shards) | {"step1": run([0], *shards)["step0"]}
    for step in (50_000, 58_000):
        branches[f"step{step}"][shards[0]] = branches["step143000"][shards[0]]
    hub.add("EleutherAI/pythia-12b", branches)
    found = verify_remote(HubSource("EleutherAI/pythia-12b"))
    assert kinds(found) == [("equal", (0, 1), False), ("mixed", (50_000, 58_000, 143_000), True)]
    assert shards[0] in found.findings[1].message


def test_olmo_915_three_branches_with_the_same_shards(hub: HubServer) -> None:
    shards = [f"model-0000{k}-of-00006.safetensors" for k in range(1, 7)]
    same = (101_000, 175_000, 300_000)
    steps = sorted({0, 150, 600, *range(1000, 310_000, 1000)} - {*range(130_000, 140_000, 1000)})
    tokens = {step: f"stage1-step{step}-tokens{-(-step * 4_194_304 // 10**9)}B" for step in steps}
    branches = {tokens[step]: files for step, files in zip(steps, run(steps, *shards).values(), strict=True)}
    branches |= {tokens[step]: branches[tokens[300_000]] for step in same}
    hub.add("allenai/OLMo-2-1124-7B", branches)
    found = verify_remote(HubSource("allenai/OLMo-2-1124-7B", suite=resolve("olmo2-7b").suite))
    assert kinds(found) == [
        *(("missing", (step,), True) for step in range(130_000, 140_000, 1000)),
        ("equal", same, True),
    ]


# -- listings are kept ----------------------------------------------------------------------------------------


def test_a_second_run_lists_only_what_is_new(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, run(range(10)))
    first = list_repository(HubSource(REPO), cache=tmp_path)
    assert (first.requests, hub.count("api")) == (10, 11)
    hub.reset()
    second = list_repository(HubSource(REPO), cache=tmp_path)
    assert (second.requests, hub.count("api")) == (0, 1)
    assert (second.files, second.revisions) == (first.files, first.revisions)
    hub.commit(REPO, "step3", {ONE: weights("repaired")})
    hub.add(REPO, run([10]))
    hub.reset()
    third = list_repository(HubSource(REPO), cache=tmp_path)
    assert (third.requests, hub.count("api")) == (2, 3)
    assert third.files[3] != first.files[3]


@pytest.mark.parametrize(
    ("threads", "refused"),
    [
        (1, 3),  # three in a row are an outage
        # A request that is under way when the repository closes may succeed after two refusals of the other thread,
        # and the row begins again; when it is full, the other thread has one more under way.
        (2, 2 + 3 + 1),
    ],
)
def test_a_run_that_fails_goes_on_where_it_stopped(hub: HubServer, tmp_path: Path, threads: int, refused: int) -> None:
    hub.add(REPO, run(range(60)))
    closed = [False]

    def close(request: object) -> Fault | None:
        closed[0] |= hub.count("api") > 30
        return Fault("status", 403) if closed[0] else None

    hub.faults.append(close)
    with pytest.raises(AccessError):
        list_repository(HubSource(REPO), cache=tmp_path, threads=threads)
    assert 3 <= hub.count("api", status=403) <= refused
    hub.faults.clear()
    hub.reset()
    again = HubSource(REPO)
    made = list_repository(again, cache=tmp_path)
    assert len(made.files) == 60
    assert made.requests == again.traffic.api - 1 < 40  # its own: the server may log a request of the first run late


def test_a_revision_that_fails_is_listed_again(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, run(range(5)))
    commit = hub.repositories[REPO].branches["step2"]
    hub.faults.append(lambda request: Fault("status", 404) if f"tree/{commit}" in request.path else None)
    assert kinds(verify_remote(HubSource(REPO, policy=QUICK), cache=tmp_path)) == [("unreadable", (2,), True)]
    hub.faults.clear()
    made = list_repository(HubSource(REPO), cache=tmp_path)
    assert (made.requests, len(made.files), made.unreadable) == (1, 5, {})


@pytest.mark.parametrize(
    "damage", [b"", b"[1]", b'{"format": "other"}', b"\xff", b'{"format": "pythia-dyn listings 1"}']
)
def test_a_damaged_cache_is_made_anew(hub: HubServer, tmp_path: Path, damage: bytes) -> None:
    hub.add(REPO, run(range(3)))
    path = listings_path(REPO, tmp_path)
    for _ in range(2):
        made = list_repository(HubSource(REPO), cache=tmp_path)
        assert (made.requests, len(made.files)) == (3, 3)
        path.write_bytes(damage)
    (path.parent / "org--other.json").write_bytes(json.dumps({"format": "pythia-dyn listings 1"}).encode())
    assert list_repository(HubSource(REPO), [0, 2], cache=tmp_path).requests == 2


def test_other_processes_lose_nothing_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, run(range(6)))
    list_repository(HubSource(REPO), [0, 1, 2], cache=tmp_path)
    list_repository(HubSource(REPO), [3, 4, 5], cache=tmp_path)
    assert list_repository(HubSource(REPO), cache=tmp_path).requests == 0


def test_the_rate_limit_is_waited_for(hub: HubServer) -> None:
    hub.add(REPO, run(range(4)))
    hub.faults.append(once(Fault("status", 429, {"Retry-After": "1"}), "api", match="/tree/"))
    assert verify_remote(HubSource(REPO)).findings == ()
    assert hub.count("api") == 6


def test_progress_counts_what_was_in_the_cache(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, run(range(4)))
    list_repository(HubSource(REPO), [0, 1], cache=tmp_path)
    seen: list[tuple[int, int]] = []
    list_repository(HubSource(REPO), cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_an_error_of_the_progress_ends_the_requests(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, run(range(40)))

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    source = HubSource(REPO)
    with pytest.raises(KeyboardInterrupt):
        list_repository(source, cache=tmp_path, threads=2, progress=interrupt)
    assert hub.count("api") < 20
    assert list_repository(source, cache=tmp_path).requests <= 35


def test_errors_are_those_of_the_hub(hub: HubServer) -> None:
    assert issubclass(AccessError, HubError)
    with pytest.raises(AccessError, match="no repository"):
        list_repository(HubSource("org/none"))


@pytest.mark.parametrize("stated", [True, False])
def test_a_rate_limit_costs_few_requests_and_no_words(
    hub: HubServer, capfd: pytest.CaptureFixture[str], stated: bool
) -> None:
    hub.add(REPO, run(ALL_STEPS))
    hub.limits, hub.states_limits = {"api": (60, 1.0)}, stated
    listing = list_repository(HubSource(REPO))
    assert len(listing.files) == 154
    assert hub.count("api") <= 155 + (
        1 if stated else 2 * 8
    )  # the requests under way when it is used up, in two windows
    assert capfd.readouterr() == ("", "")
