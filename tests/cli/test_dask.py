"""Commands on a Dask cluster of processes: the results of one process, and what happens when a part of it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.checkpoints import suite
from support.daskcluster import DaskProcesses
from support.hubserver import HubServer
from support.tiny_models import TEXTS, write_suite

from pythia_dynamics import figures
from pythia_dynamics.cli.app import main
from pythia_dynamics.executors import as_executor, connect
from pythia_dynamics.history.cache import open_history

Run = Callable[..., Result]
STEPS = tuple(range(0, 60, 5))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: drawing takes time."""
    monkeypatch.setattr(figures, "save", lambda figure, path: [])


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with DaskProcesses(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture
def own_dask(hub: HubServer, tmp_path: Path) -> Iterator[DaskProcesses]:
    """A cluster that this test alone uses, and may kill. It sees the Hub of the test."""
    with DaskProcesses(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands in a directory of their own, which is not that of the workers: the paths they send are absolute."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@dataclass(frozen=True)
class Finished:
    """A command that has ended in a process of its own."""

    exit_code: int
    stdout: str
    stderr: str
    exception: None = None


def facts(result: Result | Finished) -> dict[str, Any]:
    assert result.exit_code == 0, (result.stderr, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def failure(result: Result | Finished) -> str:
    assert result.exit_code == 1, (result.stdout, result.stderr, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}


def test_weights_on_a_cluster(run: Run, dask: DaskProcesses, tmp_path: Path) -> None:
    for name, files in suite(STEPS[:5]).items():
        (tmp_path / "own" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "own" / name / file).write_bytes(content)
    asked = ("fetch", "--model", tmp_path / "own", "--json")
    one = facts(run(*asked, "--cache", "one"))["fetch"][0]
    several = facts(run(*asked, "--cache", "several", "--dask", dask.address))["fetch"][0]
    assert several["fetched"] == one["fetched"] == list(STEPS[:5])
    histories = [open_history("own", cache=cache) for cache in ("one", "several")]
    np.testing.assert_array_equal(histories[0].weights[:], histories[1].weights[:])
    for measure in ("msd", "spectrum", "rank"):
        measured = (measure, "--model", "own", "--cache", "one")
        assert run(*measured, "--results", "results-one").exit_code == 0
        assert run(*measured, "--results", "results-several", "--dask", dask.address).exit_code == 0
    assert tables(Path("results-one")) == tables(Path("results-several"))
    recorded = json.loads(Path("results-several/own/embed_out.weight/provenance.json").read_text())
    assert "--dask" not in recorded["msd"]["command"]  # it is not what was computed, but where


def test_models_on_a_cluster(run: Run, dask: DaskProcesses, tmp_path: Path) -> None:
    model = write_suite(tmp_path / "suite", STEPS[:4])
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(TEXTS))
    for command in ("perplexity", "representation"):
        asked = (command, "--model", model, "--corpus", corpus, "--device", "cpu")
        assert run(*asked, "--results", "one").exit_code == 0
        result = run(*asked, "--results", "several", "--dask", dask.address)
        assert result.exit_code == 0, (result.stderr, result.exception)
    assert tables(Path("one")) == tables(Path("several"))
    assert len(tables(Path("one"))) == 2


def test_training_and_calibration_on_a_cluster(run: Run, dask: DaskProcesses, tmp_path: Path) -> None:
    corpus = tmp_path / "play.txt"
    rng = np.random.default_rng(0)
    corpus.write_text("\n\n".join(" ".join(rng.choice(["to", "be", "or", "not"], size=20)) for _ in range(80)))
    tiny = ("--context", 32, "--batch", 2, "--max-steps", 4, "--every", 2, "--eval-batches", 1, "--device", "cpu")
    asked = ("train", "--size", "10k", "--corpus", corpus, "--seeds", 2, *tiny, "--json")
    one = facts(run(*asked, "--out", "one/own"))["train"]
    several = facts(run(*asked, "--out", "several/own", "--dask", dask.address))["train"]
    assert [fact["trained"] for fact in several] == [True, True]
    assert [fact["train_loss"] for fact in several] == [fact["train_loss"] for fact in one]
    assert tables(Path("one")) == tables(Path("several"))
    judged = ("calibrate", "--runs", 21, "--steps", 20, "--weights", 64, "--truth", "loss-power-ar6-0.003", "--json")
    assert facts(run(*judged, "--out", "one.json", "--workers", 1))["calibrate"]
    assert facts(run(*judged, "--out", "several.json", "--dask", dask.address))["calibrate"]
    assert Path("one.json").read_bytes() == Path("several.json").read_bytes()


def test_what_is_no_cluster(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pythia_dynamics import executors

    monkeypatch.setattr(executors, "_CONNECT_SECONDS", 1)
    write_suite(tmp_path / "suite", STEPS[:2])
    asked = ("fetch", "--model", tmp_path / "suite", "--dask")
    assert "no Dask cluster with workers at tcp://127.0.0.1:9: " in failure(run(*asked, "tcp://127.0.0.1:9"))
    assert "no Dask cluster with workers at nonsense://x: " in failure(run(*asked, "nonsense://x"))
    with DaskProcesses(tmp_path, workers=0) as empty:
        assert f"no Dask cluster with workers at {empty.address}: " in failure(run(*asked, empty.address))


def test_each_task_has_a_gpu_for_itself_where_workers_declare_them(tmp_path: Path) -> None:
    """Of a worker with four threads and one GPU, which here is a name only."""
    options = ("--nthreads", "4", "--resources", "GPU=1")
    with DaskProcesses(tmp_path, workers=1, options=options) as cluster, connect(cluster.address) as client:
        executor = as_executor(client)
        assert executor is not None
        began = time.monotonic()
        wait([executor.submit(time.sleep, 0.4) for _ in range(3)])
        assert time.monotonic() - began >= 1.2


def fetched_meanwhile(dask: DaskProcesses, fault: Callable[[], object], hub: HubServer) -> Finished:
    """A fetch on a cluster to which something happens while the first tensors are sent."""
    hub.latency = {"cdn": 0.3}
    hub.add("org/model", suite(STEPS))
    asked = ("fetch", "--model", "org/model", "--cache", "cache", "--json", "--dask", dask.address)
    command = [sys.executable, "-m", "pythia_dynamics", *asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while hub.count("cdn") < 6:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        fault()
        stdout, stderr = process.communicate(timeout=120)
    return Finished(process.returncode, stdout, stderr)


def test_a_worker_that_is_killed(run: Run, own_dask: DaskProcesses, hub: HubServer) -> None:
    result = fetched_meanwhile(own_dask, lambda: own_dask.kill(own_dask.workers[0]), hub)
    assert facts(result)["fetch"][0]["fetched"] == list(STEPS)
    assert facts(run("fetch", "--model", "org/model", "--cache", "cache", "--json"))["fetch"][0]["present"] == list(
        STEPS
    )


def test_a_scheduler_that_starts_again(run: Run, own_dask: DaskProcesses, hub: HubServer) -> None:
    def restart() -> None:
        own_dask.kill(own_dask.scheduler)
        own_dask.start_scheduler(own_dask.address)

    line = failure(fetched_meanwhile(own_dask, restart, hub))
    assert "the cluster has lost a job: its scheduler ended, or started again" in line
    own_dask.start_worker()
    asked = ("fetch", "--model", "org/model", "--cache", "cache", "--json", "--dask", own_dask.address)
    found = facts(run(*asked))["fetch"][0]
    assert sorted((*found["fetched"], *found["present"])) == list(STEPS)
    assert found["present"]


def test_a_fetch_and_a_sweep_at_once(run: Run, own_dask: DaskProcesses, hub: HubServer) -> None:
    """The sweep has the steps that are there when it begins."""
    seen: list[Result] = []
    measure = ("order", "--model", "org/model", "--cache", "cache", "--results", "results", "--json")
    result = fetched_meanwhile(own_dask, lambda: seen.append(run(*measure, "--dask", own_dask.address)), hub)
    assert facts(result)["fetch"][0]["fetched"] == list(STEPS)
    first = facts(seen[0])["order"][0]
    assert facts(run(*measure))["order"][0]["missing"] == {}
    assert first["model"] == "model"


def test_a_worker_that_is_killed_during_an_evaluation(run: Run, own_dask: DaskProcesses, tmp_path: Path) -> None:
    """The other one goes on with its steps."""
    model = write_suite(tmp_path / "suite", STEPS)
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(TEXTS * 20))
    plain = ("--products", "plain")  # by default a run measures which way is faster, and the two round differently
    asked = ("perplexity", "--model", model, "--corpus", corpus, "--device", "cpu", "--mode", "unmask", *plain)
    command = [sys.executable, "-m", "pythia_dynamics", *map(str, asked), "--dask", own_dask.address]
    with subprocess.Popen(
        [*command, "--results", "several"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        table, deadline = Path("several/suite/perplexity-unmask.csv"), time.monotonic() + 120
        while not table.is_file():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr
            time.sleep(0.01)
        rows = len(table.read_text().splitlines()) - 1
        own_dask.kill(own_dask.workers[0])
        stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, (stdout, stderr)
    assert 0 < rows < len(STEPS)
    assert run(*asked, "--results", "one").exit_code == 0
    assert tables(Path("several")) == tables(Path("one"))
