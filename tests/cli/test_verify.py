"""``pythia-dyn verify --remote`` over several repositories: its table, its reports, its exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.checkpoints import checkpoint, state
from support.hubserver import Fault, HubServer
from support.runs import run as branches_of
from support.runs import weights

from pythia_dynamics.checkpoints.registry import ALL_STEPS
from pythia_dynamics.checkpoints.suite import Suite
from pythia_dynamics.cli.app import main
from pythia_dynamics.history.cache import store_path
from pythia_dynamics.history.store import Store

SEEDS = [f"EleutherAI/pythia-14m-seed{k}" for k in range(1, 10)]
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache"), "PYTHIA_DYN_RESULTS": str(tmp_path / "results")}

    def invoke(*models: str, options: tuple[str, ...] = ()) -> Result:
        arguments = [argument for model in models for argument in ("--model", model)]
        return CliRunner(env=environment).invoke(main, ["verify", "--remote", *arguments, *options])

    return invoke


def filings(tmp_path: Path) -> set[str]:
    return {path.parent.name for path in (tmp_path / "results").glob("*/filing.md")}


@pytest.fixture
def seeds(hub: HubServer) -> HubServer:
    """All seeds of 14m: number 3 has a step of number 2, and number 5 has a step twice."""
    suites = {name: branches_of(ALL_STEPS, seed=name) for name in SEEDS}
    for branches in suites.values():
        branches["step1"] = branches["step0"]
    suites[SEEDS[2]]["step6000"] = suites[SEEDS[1]]["step7000"]
    suites[SEEDS[4]]["step2000"] = suites[SEEDS[4]]["step143000"]
    for name, branches in suites.items():
        hub.add(name, branches)
    return hub


def test_one_command_checks_a_whole_suite(seeds: HubServer, run: Run, tmp_path: Path) -> None:
    seeds.add("org/other", branches_of(range(5), seed="other"))
    first = run("14m-seed*", "org/other", "pythia-14m-seed3")  # the last one is among the first
    assert first.exit_code == 1
    assert first.stderr.splitlines() == ["pythia-dyn: 3 faults found in 3 repositories"]
    assert seeds.count("api") == 10 + 9 * 154 + 5
    assert seeds.file_requests().total() == 0
    table = first.stdout.partition("\nrepository ")[2].splitlines()
    rows = [line.split() for line in table[1:]]
    assert [row for row in rows if row[0] == SEEDS[1]] == [
        [SEEDS[1], "equal", "(harmless)", "1", "2", "0", "1"],
        [SEEDS[1], "equal-elsewhere", "1", "1", "7000"],
    ]
    assert [SEEDS[2], "equal-elsewhere", "1", "1", "6000"] in rows
    assert [SEEDS[4], "equal", "1", "2", "2000", "143000"] in rows
    assert "org/other" not in {row[0] for row in rows}
    assert "other  files on the Hub: 5 steps checked, nothing found" in first.stdout
    assert filings(tmp_path) == {"pythia-14m-seed2", "pythia-14m-seed3", "pythia-14m-seed5"}
    for seed in (2, 3, 5):
        assert f"for the publisher: {tmp_path / 'results' / f'pythia-14m-seed{seed}' / 'filing.md'}" in first.stdout
    assert "step7000` of" not in (tmp_path / "results" / "pythia-14m-seed5" / "filing.md").read_text()
    seeds.reset()
    second = run("14m-seed*", options=("--json",))
    assert seeds.count("api") == 9
    facts = json.loads(second.stdout)
    assert [found["location"] for found in facts["verify"]] == SEEDS
    assert facts["failed"] == {}
    by_name = {found["location"]: found for found in facts["verify"]}
    assert by_name[SEEDS[2]]["findings"][1] | {"sha256": []} == {
        "kind": "equal-elsewhere",
        "steps": [6000],
        "message": f"step 6000 has the same safetensors files as step 7000 of {SEEDS[1]}: at most one of the two runs "
        "has these weights there",
        "fault": True,
        "elsewhere": [[SEEDS[1], 7000]],
        "sha256": [],
    }
    assert by_name[SEEDS[2]]["filing"] == str(tmp_path / "results" / "pythia-14m-seed3" / "filing.md")
    assert by_name[SEEDS[0]]["filing"] is None


def test_a_repository_that_fails_is_one_line(seeds: HubServer, run: Run, tmp_path: Path) -> None:
    seeds.add("org/gated", branches_of(range(3)), gated=True, token="secret")
    seeds.faults.append(lambda request: Fault("status", 403) if "models/org/gated/" in request.path else None)
    seeds.add("org/main", {})
    result = run("org/none", "14m-seed1", "org/gated", "org/main", "9999m-*", str(tmp_path))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    for reason in (
        "no repository org/none",
        "refuses org/gated",
        "org/main has no branch",
        "9999m-*",
        "is a directory",
    ):
        assert reason in line
    assert "pythia-14m-seed1  files on the Hub: 154 steps checked, 1 finding" in result.stdout
    failed = [line for line in result.stdout.splitlines() if " failed " in line]
    assert [line.split()[0] for line in failed] == ["org/none", "org/gated", "org/main"]
    assert filings(tmp_path) == set()
    facts = json.loads(run("org/none", "14m-seed1", options=("--json",)).stdout)
    assert list(facts["failed"]) == ["org/none"]
    assert len(facts["verify"]) == 1


def test_without_defects_it_succeeds_and_removes_its_own_report(seeds: HubServer, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "results" / "pythia-14m-seed5" / "filing.md"
    assert run("14m-seed5").exit_code == 1
    seeds.commit(SEEDS[4], "step2000", branches_of([2000], seed="repaired")["step2000"])
    assert run("14m-seed5", options=("--steps", "1000,3000")).exit_code == 0  # of some steps: says nothing of others
    assert path.exists()
    good = run("14m-seed5")
    assert (good.exit_code, good.stderr) == (0, "")
    assert "for the publisher" not in good.stdout
    assert not path.exists()
    path.write_text("my notes")
    assert run("14m-seed5").exit_code == 0
    assert path.read_text() == "my notes"
    seeds.commit(SEEDS[4], "step2000", branches_of([143_000], seed=SEEDS[4])["step143000"])
    kept = run("14m-seed5")
    assert "is kept; move it away" in kept.stderr
    assert "1 fault found in 1 repository" in kept.stderr
    assert path.read_text() == "my notes"


def test_first_weights_are_read_on_request(hub: HubServer, run: Run, tmp_path: Path) -> None:
    hub.add("org/a", {f"step{step}": checkpoint(state(step)) for step in (0, 1)})
    hub.add("org/b", {f"step{step}": checkpoint(state(7 + step)) for step in (0, 1000)})
    assert "discontinuous" not in run("org/a", "org/b").stdout
    assert hub.file_requests().total() == 0
    result = run("org/a", "org/b", options=("--weights",))
    assert "discontinuous: step 1 does not continue step 0" in result.stdout
    assert hub.file_requests().total() > 0
    assert "cosine" in (tmp_path / "results" / "a" / "filing.md").read_text()


def test_branches_with_other_names(hub: HubServer, run: Run) -> None:
    steps = branches_of(range(0, 6000, 1000))
    hub.add("org/other", {name.replace("step", "w"): files for name, files in steps.items()})
    assert "--revision-pattern" in run("org/other").stderr
    result = run("org/other", options=("--revision-pattern", r"^w(\d+)$"))
    assert "6 steps checked, nothing found" in result.stdout


def test_files_that_are_the_steps(hub: HubServer, run: Run, tmp_path: Path) -> None:
    steps = {f"ckpt_{step}.pt": weights(step) for step in range(100, 1300, 100) if step != 600}
    steps["ckpt_400.pt"] = steps["ckpt_300.pt"]
    hub.add("org/files", {"main": steps})
    result = run("org/files")
    assert [line.split()[:2] for line in result.stdout.partition("\nrepository ")[2].splitlines()[1:3]] == [
        ["org/files", "missing"],
        ["org/files", "equal"],
    ]
    assert "org/files has no file for step 600" in result.stdout
    assert "steps 300, 400 have the same torch files" in result.stdout
    assert "`ckpt_300.pt`" in (tmp_path / "results" / "files" / "filing.md").read_text()


def test_two_parts_of_a_repository_are_not_verified_together(hub: HubServer, run: Run, tmp_path: Path) -> None:
    """Findings name steps, which begin again in each part; what is left out is said, and the others are checked."""
    branches = branches_of((1000, 2000))
    hub.add("org/two", {f"stage{stage}-{name}": files for stage in (1, 2) for name, files in branches.items()})
    hub.add("org/other", branches_of((1, 2)))
    first, second = (store_path(f"two-{stage}", tmp_path / "cache") for stage in (1, 2))
    for stage, path in ((1, first), (2, second)):
        Store.create(path, source="org/two", suite=Suite(part={"stage": str(stage)}))
    together = run("two-1", "two-2", "org/other")
    assert together.exit_code == 1
    (line,) = together.stderr.splitlines()
    assert "two-1 and two-2 are parts of org/two; verify one stage, generation or seed at a time" in line
    assert "two-1  files on the Hub: 2 steps checked, nothing found" in together.stdout
    assert "other  files on the Hub: 2 steps checked, nothing found" in together.stdout
    assert (run("two-1", "two-1").exit_code, run("two-2").exit_code) == (0, 0)


def test_options_of_remote_need_it(tmp_path: Path) -> None:
    for option in (("--weights",), ("--revision-pattern", "x"), ("--steps", "1")):
        result = CliRunner(env={"PYTHIA_DYN_CACHE": str(tmp_path)}).invoke(main, ["verify", *option])
        assert result.exit_code == 2
        assert f"{option[0]} is for --remote" in result.stderr
