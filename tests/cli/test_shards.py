"""Jobs of an array: each does its part, and all together what a single run does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.checkpoints import suite
from support.tiny_models import TEXTS, write_suite

from pythia_dynamics import figures
from pythia_dynamics.claims import calibration
from pythia_dynamics.cli.app import main
from pythia_dynamics.history.cache import open_histories

Run = Callable[..., Result]
STEPS = (0, 5, 10, 20, 40)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: drawing takes time."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "own"
    for name, files in suite(STEPS).items():
        (directory / name).mkdir(parents=True)
        for file, content in files.items():
            (directory / name / file).write_bytes(content)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Run:
    environment = {"PYTHIA_DYN_CACHE": str(tmp_path / "cache")}

    def invoke(*arguments: object) -> Result:
        return CliRunner(env=environment).invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def stored(run: Run, checkpoints: Path) -> Path:
    """The checkpoints, after all their tensors have been fetched."""
    assert run("fetch", "--model", checkpoints, "--tensor", "all").exit_code == 0
    return checkpoints


def facts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, (result.stderr, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def failure(result: Result) -> str:
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def tree(folder: Path) -> dict[str, bytes]:
    """All files in a folder; of the provenance, all but the time and the folder of the results."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            content = path.read_bytes()
            if path.suffix == ".json" and "zarr" not in path.name:
                lines = content.replace(str(folder).encode(), b"RESULTS").splitlines()
                content = b"\n".join(line for line in lines if b'"time"' not in line)
            found[str(path.relative_to(folder))] = content
    return found


def test_a_fetch_in_shards(run: Run, checkpoints: Path, tmp_path: Path) -> None:
    asked = ("fetch", "--model", checkpoints, "--tensor", "all", "--json")
    whole = facts(run(*asked, "--cache", tmp_path / "whole"))["fetch"][0]
    steps = []
    for number in (2, 4, 1, 3, 2):
        found = facts(run(*asked, "--shard", f"{number}/4"))["fetch"][0]
        steps += found["fetched"]
        own = open_histories("own", ["unembedding"], cache=tmp_path / "cache")[0]
        assert set(found["fetched"]) | set(found["present"]) <= set(own.steps.tolist())  # useful alone
    assert sorted(steps) == whole["fetched"] == list(STEPS)
    for one, other in zip(
        open_histories("own", ["all"], cache=tmp_path / "whole"),
        open_histories("own", ["all"], cache=tmp_path / "cache"),
        strict=True,
    ):
        assert one.tensor == other.tensor
        np.testing.assert_array_equal(one.weights[:], other.weights[:])
    result = run("fetch", "--model", checkpoints, "--shard", "9/9")
    assert result.exit_code == 0
    assert "shard 9/9 has no step of it" in result.stdout


def test_an_array_of_slurm_needs_no_option(run: Run, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    for number, step in enumerate(STEPS):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        result = run("fetch", "--model", checkpoints)
        assert f"shard {number + 1}/5, as SLURM_ARRAY_TASK_ID says; --shard 1/1 for the whole" in result.stdout
        again = facts(run("fetch", "--model", checkpoints, "--json"))["fetch"][0]
        assert again["present"] == [step]
    assert facts(run("fetch", "--model", checkpoints, "--json", "--shard", "1/1"))["fetch"][0]["present"] == list(STEPS)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "8")
    assert "its position is not known" in failure(run("fetch", "--model", checkpoints))


@pytest.mark.parametrize("measure", ["msd", "density", "rank", "rows"])
def test_the_sums_of_one_tensor_in_shards(run: Run, stored: Path, measure: str, tmp_path: Path) -> None:
    asked = (measure, "--model", "own")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    facts(run(*asked, "--results", whole, "--json"))
    for number in (3, 1, 2, 4, 4):
        result = run(*asked, "--results", parts, "--shard", f"{number}/4")
        assert result.exit_code == 0, result.stderr
        assert f"shard {number}/4: a part of the sums over 1 tensors" in result.stdout
        assert "next: pythia-dyn merge, after all jobs" in result.stdout
        assert not (parts / "own").exists()
    merged = facts(run("merge", "--results", parts, "--json"))
    assert merged == facts(run(*asked, "--results", parts, "--json"))
    assert not (parts / ".parts").exists()
    assert tree(parts) == tree(whole)


def test_jobs_of_the_same_number_at_once(run: Run, stored: Path, tmp_path: Path) -> None:
    asked = ("rank", "--model", "own", "--cache", tmp_path / "cache")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*asked, "--results", whole).exit_code == 0
    words = [sys.executable, "-m", "pythia_dynamics", *map(str, asked), "--results", str(parts), "--shard"]
    jobs = [subprocess.Popen([*words, shard], stderr=subprocess.PIPE) for shard in ("1/2", "1/2", "2/2", "2/2")]
    for job in jobs:
        _, stderr = job.communicate(timeout=120)
        assert job.returncode == 0, stderr
    assert run("merge", "--results", parts).exit_code == 0
    assert tree(parts) == tree(whole)


def test_whole_tensors_are_divided_where_there_are_enough(run: Run, stored: Path, tmp_path: Path) -> None:
    asked = ("order", "--model", "own", "--tensor", "all")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    every = [fact["tensor"] for fact in facts(run(*asked, "--results", whole, "--json"))["order"]]
    seen: list[str] = []
    for number in (1, 2, 3):
        found = facts(run(*asked, "--results", parts, "--shard", f"{number}/3", "--json"))
        assert found["shard"] == f"{number}/3"
        seen += (own := [fact["tensor"] for fact in found["order"]])
        assert all((parts / "own" / tensor / "order.csv").is_file() for tensor in own)  # useful alone
        if number < 3:
            assert "the part" in failure(run("merge", "--results", parts))
    assert sorted(seen) == sorted(every)
    result = run("merge", "--results", parts)
    assert result.exit_code == 0, result.stderr
    assert "own: all tensors" in result.stdout
    assert tree(parts) == tree(whole)


def test_what_is_not_complete_is_not_put_together(run: Run, stored: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert "nothing to put together" in failure(run("merge", "--results", results))
    asked = ("msd", "--model", "own", "--results", results)
    for number in (1, 3):
        assert run(*asked, "--shard", f"{number}/3").exit_code == 0
    line = failure(run("merge", "--results", results))
    assert "own.embed_out.weight lacks the part 2/3: run it with --shard 2/3" in line
    assert run(*asked, "--shard", "2/3").exit_code == 0
    assert run("order", "--model", "own", "--results", results, "--shard", "1/2").exit_code == 0
    line = failure(run("merge", "--results", results))  # one of two is complete
    assert line.startswith("pythia-dyn: order-")
    assert (results / "own" / "embed_out.weight" / "msd.csv").is_file()
    assert [path.name.partition("-")[0] for path in (results / ".parts").iterdir()] == ["order"]
    (next((results / ".parts").iterdir()) / "command.json").write_text("{")
    assert "is damaged" in failure(run("merge", "--results", results))


def test_a_shard_that_is_none(run: Run, stored: Path) -> None:
    assert "a shard is i/n with i from 1 to n" in failure(run("msd", "--model", "own", "--shard", "5/4"))
    line = failure(run("msd", "--model", "own", "--shard", "1/2", "--dask", "local"))
    assert "--shard is for the jobs of an array" in line


def test_perplexity_in_shards(run: Run, tmp_path: Path) -> None:
    model = write_suite(tmp_path / "suite", STEPS)
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(TEXTS))
    for command in ("perplexity", "representation"):
        asked = (command, "--model", model, "--corpus", corpus, "--device", "cpu")
        whole, parts = tmp_path / f"{command}-whole", tmp_path / f"{command}-parts"
        facts(run(*asked, "--results", whole, "--json"))
        for number in (3, 1, 2, 1):
            result = run(*asked, "--results", parts, "--shard", f"{number}/3")
            assert result.exit_code == 0, result.stderr
        assert "shard 1/3: 2 steps" in result.stdout
        result = run(*asked, "--results", parts, "--shard", "8/8")
        assert (result.exit_code, "shard 8/8: 0 steps" in result.stdout) == (0, True)
        found = [{name: text for name, text in tree(each).items() if name.endswith(".csv")} for each in (whole, parts)]
        assert found[0] == found[1]
        assert len(found[0]) == 1


def test_seeds_are_trained_in_shards(run: Run, tmp_path: Path) -> None:
    corpus = tmp_path / "play.txt"
    rng = np.random.default_rng(0)
    corpus.write_text("\n\n".join(" ".join(rng.choice(["to", "be", "or", "not"], size=20)) for _ in range(80)))
    tiny = ("--context", 32, "--batch", 2, "--max-steps", 4, "--every", 2, "--eval-batches", 1, "--device", "cpu")
    asked = ("train", "--size", "10k", "--corpus", corpus, "--out", tmp_path / "own", "--seeds", 3, *tiny, "--json")
    seen = [fact["seed"] for number in (1, 2) for fact in facts(run(*asked, "--shard", f"{number}/2"))["train"]]
    assert seen == [0, 2, 1]
    assert [fact["trained"] for fact in facts(run(*asked))["train"]] == [False] * 3
    assert run(*asked[:-1], "--shard", "4/4").exit_code == 0


def test_a_calibration_in_shards(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CHUNK", 2)
    asked = ["calibrate", "--runs", 5, "--steps", 20, "--weights", 128, "--workers", 1, "--truth", "loss-*-ar6-0.003"]
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    facts(run(*asked, "--out", whole, "--json"))
    assert "there are no parts of" in failure(run("merge", parts))
    assert "needs a file for its table" in failure(run(*asked, "--shard", "1/3"))
    for number in (1, 3, 3):
        result = run(*asked, "--out", parts, "--shard", f"{number}/3")
        assert result.exit_code == 0, result.stderr
        assert f"pythia-dyn merge {parts} puts all together" in result.stdout
    assert "lacks the part 2/3: run calibrate with --shard 2/3" in failure(run("merge", parts))
    assert run(*asked, "--out", parts, "--shard", "2/3").exit_code == 0
    alone = calibration.read_table(tmp_path / "parts.2-of-3.json")
    assert all(0 < each.runs < 5 for each in alone.truths)
    assert facts(run("merge", parts, "--json"))["merge"]["runs"] == 5
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["parts.json", "whole.json"]


@pytest.mark.parametrize("command", ["stop", "phases"])
def test_steps_of_several_tensors_in_shards(run: Run, stored: Path, command: str, tmp_path: Path) -> None:
    asked = (command, "--model", "own", "--tensor", "*embed*")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    facts(run(*asked, "--results", whole, "--json"))
    for number in (1, 2):
        assert len(facts(run(*asked, "--results", parts, "--shard", f"{number}/2", "--json"))[command]) == 1
    assert tree(parts) == tree(whole)


def test_the_models_of_an_alignment_in_shards(run: Run, stored: Path, tmp_path: Path) -> None:
    asked = ("alignment", "--model", "own", "--results", tmp_path / "results")
    result = run(*asked, "--shard", "2/2")
    assert "shard 2/2: 0 of 1 models" in result.stdout
    assert not (tmp_path / "results").exists()
    assert run(*asked, "--shard", "1/2").exit_code == 0
    assert list((tmp_path / "results" / "own").glob("alignment*"))


def test_tensors_are_streamed_in_shards(run: Run, checkpoints: Path, tmp_path: Path) -> None:
    asked = ("fetch", "--model", checkpoints, "--tensor", "all", "--measure", "order")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*asked, "--results", whole).exit_code == 0
    for number in (2, 1, 3):
        assert not list(parts.glob("own/overview*"))
        assert run(*asked, "--results", parts, "--shard", f"{number}/3").exit_code == 0
    assert tree(parts) == tree(whole)
