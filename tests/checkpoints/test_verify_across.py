"""Verification across repositories: equal weights, foreign shards and other starts are found, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from support.checkpoints import checkpoint, state
from support.hubserver import Fault, HubServer
from support.runs import SAFETENSORS, TORCH, run, weights

from pythia_dynamics.checkpoints.continuity import check_continuity, read_samples
from pythia_dynamics.checkpoints.defects import have_different_seeds, verify_repositories
from pythia_dynamics.checkpoints.hub import HubSource
from pythia_dynamics.checkpoints.listings import list_repository
from pythia_dynamics.checkpoints.registry import ALL_STEPS
from pythia_dynamics.checkpoints.source import AccessError

A, B = "org/a", "org/b"
EARLY = (0, 1, 2, 4, 8)
Found = dict[str, list[tuple[str, tuple[int, ...], bool]]]


def check(hub: HubServer, suites: Mapping[str, Mapping[str, Mapping[str, bytes]]], *, samples: bool = False) -> Found:
    """The kinds that are found in each of these repositories."""
    for location, branches in suites.items():
        hub.add(location, branches)
    return {
        found.location: [(finding.kind, finding.steps, finding.fault) for finding in found.findings]
        for found in verify(suites, samples=samples)
    }


def verify(locations: Any, *, samples: bool = False) -> list[Any]:
    sources = [HubSource(location) for location in locations]
    continuity = check_continuity([read_samples(source) for source in sources]) if samples else None
    return verify_repositories([list_repository(source) for source in sources], continuity)


def test_repositories_without_defects_have_no_findings(hub: HubServer) -> None:
    steps = [0, 1, 2, 1000, 2000, 3000]
    assert check(hub, {f"org/{name}": run(steps, SAFETENSORS, TORCH, seed=name) for name in "abc"}) == {
        "org/a": [],
        "org/b": [],
        "org/c": [],
    }


@pytest.mark.parametrize("name", [SAFETENSORS, TORCH])
def test_weights_of_another_repository_are_found_in_both(hub: HubServer, name: str) -> None:
    one, other = run(range(5), name, seed="a"), run(range(0, 50, 10), name, seed="b")
    one["step3"] = other["step20"]
    one["step4"] = other["step40"]
    assert check(hub, {A: one, B: other}) == {
        A: [("equal-elsewhere", (3, 4), True)],
        B: [("equal-elsewhere", (20, 40), True)],
    }
    finding = verify([A, B])[0].findings[0]
    assert finding.message.startswith(
        f"steps 3, 4 have the same {'torch' if name == TORCH else 'safetensors'} files as"
    )
    assert finding.elsewhere == ((B, 20), (B, 40))
    assert len(finding.sha256) == 2


def test_a_copy_of_a_repository_is_two_findings_at_each(hub: HubServer) -> None:
    branches = run([0, *range(1000, 9000, 1000)], SAFETENSORS, TORCH)
    later = tuple(range(1000, 9000, 1000))
    expected = [("equal-elsewhere", (0,), False), ("equal-elsewhere", later, True)]
    assert check(hub, {A: branches, B: branches}) == {A: expected, B: expected}
    assert f"as the same steps of {B}" in verify([A, B])[0].findings[1].message


def test_the_first_step_may_be_the_same(hub: HubServer) -> None:
    seeds = [f"EleutherAI/pythia-160m-data-seed{k}" for k in (1, 2, 3)]
    start = weights("start")
    suites = {
        name: {**run(ALL_STEPS, seed=name), "step0": {SAFETENSORS: start}, "step1": {SAFETENSORS: start}}
        for name in seeds
    }
    shared = ("equal-elsewhere", (0, 1), False)
    assert check(hub, suites) == {name: [("equal", (0, 1), False), shared, shared] for name in seeds}


def test_step_1_of_pythia_may_be_the_same_where_step_0_is(hub: HubServer) -> None:
    seeds = [f"EleutherAI/pythia-160m-data-seed{k}" for k in (1, 2)]
    start, signs = weights("start"), weights("start, with other signs of zeros")
    suites = {
        name: {**run(ALL_STEPS, seed=name), "step0": {SAFETENSORS: start}, "step1": {SAFETENSORS: signs}}
        for name in seeds
    }
    expected = [("equal-elsewhere", (0, 1), False), ("discontinuous", (0, 1), False)]
    assert check(hub, suites) == dict.fromkeys(seeds, expected)


def test_a_first_step_that_was_trained_may_not_be_the_same(hub: HubServer) -> None:
    one, other = run([1000, 2000], seed="a"), run([1000, 2000], seed="b")
    one["step1000"] = other["step1000"]
    expected = [("equal-elsewhere", (1000,), True)]
    assert check(hub, {A: one, B: other}) == {A: expected, B: expected}


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        ("o/m-seed1", "o/m-seed2", True),
        ("o/m-seed1", "o/m", True),
        ("o/m-weight-seed1", "o/m-weight-seed2", True),
        ("o/m-weight-seed1", "o/m", True),
        ("o/m-data-seed1", "o/m-data-seed2", False),
        ("o/m-data-seed1", "o/m", False),
        ("o/m-data-seed1", "o/m-weight-seed1", False),
        ("o/m-seed1", "o/m-weight-seed2", False),
        ("o/m-seed1", "p/m-seed2", False),
        ("o/m-seed1", "o/n-seed2", False),
        ("o/m", "o/m-deduped", False),
        ("o/m-seed1", "o/m-seed1", False),
    ],
)
def test_names_tell_which_seeds_differ(hub: HubServer, one: str, other: str, different: bool) -> None:
    assert have_different_seeds(one, other) is have_different_seeds(other, one) is different
    if one != other:
        suites = {name: {**run([0, 1000], seed=name), "step0": run([0])["step0"]} for name in (one, other)}
        expected = [("equal-elsewhere", (0,), different)]
        assert check(hub, suites) == {one: expected, other: expected}


def test_shards_of_another_repository_are_mixed(hub: HubServer) -> None:
    shards = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    one, other = run(range(4), *shards, seed="a"), run(range(4), *shards, seed="b")
    one["step2"][shards[1]] = other["step3"][shards[1]]
    assert check(hub, {A: one, B: other}) == {A: [("mixed", (2,), True)], B: [("mixed", (3,), True)]}
    assert shards[1] in verify([A, B])[0].findings[0].message


def test_a_step_that_most_of_a_family_have_is_missing(hub: HubServer) -> None:
    suites = {f"org/m-seed{k}": run([0, 10, 30, 70], seed=k) for k in (1, 2, 3)}
    del suites["org/m-seed2"]["step30"]
    suites["org/m-seed3"] = run([0, 10, 30], seed=3)  # has not come to step 70 yet
    suites["org/other"] = run([0, 70], seed=4)
    assert check(hub, suites) == {
        "org/m-seed1": [],
        "org/m-seed2": [("missing", (30,), True)],
        "org/m-seed3": [],
        "org/other": [],
    }


def test_a_run_with_the_start_of_another_one_is_discontinuous(hub: HubServer) -> None:
    """pythia#203, where the files are the same."""
    seed, data = "EleutherAI/pythia-160m-weight-seed1", "EleutherAI/pythia-160m-data-seed1"
    suites = {seed: run(ALL_STEPS, seed="w"), data: run(ALL_STEPS, seed="d")}
    suites[data]["step1"] = suites[seed]["step1"] = suites[data]["step0"]
    assert check(hub, suites) == {
        seed: [("discontinuous", (1,), True)],
        data: [("equal", (0, 1), False), ("equal-elsewhere", (0, 1), False)],
    }
    message = verify([seed, data])[0].findings[0].message
    assert "step 1 has the safetensors files of steps 0, 1 of" in message
    suites[seed].pop("step0")
    hub.repositories.clear()
    assert check(hub, suites)[seed] == [("missing", (0,), True), ("equal-elsewhere", (1,), False)]


# -- by weights -----------------------------------------------------------------------------------------------


def drift(
    seed: int, steps: Sequence[int], *, layout: str = "safetensors", move: int = 1
) -> dict[str, dict[str, bytes]]:
    """A run that moves a little from the weights of its seed; the first update changes the signs of zeros only."""
    branches = {}
    for step in steps:
        tensors = state(seed)
        embedding = tensors["gpt_neox.embed_in.weight"]
        embedding[0, :8] = 0.0 if step == 0 else -0.0
        if step > 1:
            embedding += 1e-3 * step * state(move * 1000 + step)["gpt_neox.embed_in.weight"]
        branches[f"step{step}"] = checkpoint(tensors, layout)
    return branches


@pytest.mark.parametrize("layout", ["safetensors", "torch", "torch shards"])
def test_pythia_203_runs_that_do_not_continue_their_first_step(hub: HubServer, layout: str) -> None:
    names = [f"EleutherAI/pythia-160m-{part}-seed{k}" for part in ("data", "weight") for k in (1, 2)]
    suites = {}
    for move, name in enumerate(names, 1):
        branches = drift(1, EARLY, layout=layout, move=move)
        tensors = state(1)  # at step 1, all have the same numbers in files of their own, as published
        tensors["gpt_neox.embed_in.weight"][0, :8] = torch.tensor([-0.0] * move + [0.0] * (8 - move))
        branches["step1"] = checkpoint(tensors, layout)
        if "weight-seed" in name:
            branches |= drift(move, [0], layout=layout)
        suites[name] = branches
    contents = {name: tuple(suites[name]["step1"].values()) for name in names}
    assert len(set(contents.values())) == 4
    found = check(hub, suites, samples=True)
    by_weights = {name: [each for each in found[name] if each[0] == "discontinuous"] for name in names}
    assert by_weights == {
        names[0]: [],
        names[1]: [],
        names[2]: [("discontinuous", (0, 1), True)],
        names[3]: [("discontinuous", (0, 1), True)],
    }
    (finding,) = [finding for finding in verify(names, samples=True)[2].findings if finding.kind == "discontinuous"]
    assert "step 1 does not continue step 0" in finding.message
    assert "1.000 between steps 1, 2" in finding.message
    assert finding.elsewhere == ((names[0], 0), (names[1], 0))
    assert hub.file_requests().total() > 0


def test_without_weights_it_is_a_note_that_steps_0_and_1_differ(hub: HubServer) -> None:
    name = "EleutherAI/pythia-160m-weight-seed1"
    found = check(hub, {name: {**run(ALL_STEPS), **drift(1, EARLY)}})
    assert ("discontinuous", (0, 1), False) in found[name]
    found = check(hub, {name: {**run(ALL_STEPS), **drift(1, EARLY)}}, samples=True)
    assert "discontinuous" not in [kind for kind, *_ in found[name]]


def test_samples_are_small_and_of_early_steps_only(hub: HubServer) -> None:
    hub.add(A, drift(1, EARLY))
    hub.add(B, run([0, 1000, 2000]))  # no early step but one, and no real file: nothing is read
    source = HubSource(A)
    sample = read_samples(source)
    assert (sample.tensor, tuple(sample.values)) == ("gpt_neox.embed_in.weight", EARLY)
    assert source.traffic.bytes < len(EARLY) * 100_000
    none = read_samples(HubSource(B))
    assert not none.values
    assert list(check_continuity([sample, none])) == [A]


def test_a_step_that_cannot_be_read_is_left_out(hub: HubServer) -> None:
    branches = drift(1, EARLY)
    branches["step1"] = {"config.json": b"{}"}
    hub.add(A, branches)
    assert tuple(read_samples(HubSource(A)).values) == (0, 2, 4, 8)
    hub.faults.append(lambda request: Fault("status", 403) if request.kind == "resolve" else None)
    with pytest.raises(AccessError):
        read_samples(HubSource(A))


def test_weights_that_are_zero_tell_nothing(hub: HubServer) -> None:
    branches = drift(1, EARLY)
    tensors = state(1)
    tensors["gpt_neox.embed_in.weight"].zero_()
    hub.add(A, {**branches, "step0": checkpoint(tensors)})
    assert check_continuity([read_samples(HubSource(A))]) == {A: []}


def test_bfloat16_is_read(hub: HubServer) -> None:
    hub.add(A, {f"step{step}": checkpoint(state(step, dtype=torch.bfloat16)) for step in (0, 1)})
    (finding,) = check_continuity([read_samples(HubSource(A))])[A]
    assert (finding.steps, finding.fault) == ((0, 1), True)
