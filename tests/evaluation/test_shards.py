"""An evaluation in shares gives what one process gives, and a share that fails takes nothing from the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from support.faulty_sources import FaultySource
from support.tiny_models import TEXTS, write_suite

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.errors import CheckpointError, PythiaDynError, StoreError, UnknownNameError
from pythia_dynamics.evaluation import evaluator, products, runner
from pythia_dynamics.evaluation import model as built
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.processes import Processes
from pythia_dynamics.evaluation.products import choose_products
from pythia_dynamics.evaluation.records import Records
from pythia_dynamics.evaluation.runner import evaluate, perplexity
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings, Mode, ModelSettings, Products
from pythia_dynamics.evaluation.shards import share_devices
from pythia_dynamics.evaluation.snapshots import snapshots

STEPS = (1, 2, 3, 10, 20)
OPTIONS: dict[str, Any] = {"corpus": Corpus("texts", TEXTS[:3]), "device": "cpu", "max_tokens": 8}
SETTINGS = EvaluationSettings(**OPTIONS)
TWO_PROCESSES: dict[str, Any] = {**OPTIONS, "device": "cpu,cpu"}

needs_kill = pytest.mark.skipif(os.name == "nt", reason="needs signals")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suites") / "tiny", STEPS)


@pytest.fixture
def suite(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that come from one which has imported torch, once for all tests."""
    if os.name == "nt":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["pythia_dynamics.evaluation.runner"])
    return found


@pytest.fixture(scope="module")
def processes(context: Any) -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def lines(out: Path, mode: Mode = "forward") -> list[str]:
    return (out / f"perplexity-{mode}.csv").read_text().splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    """The tables and what is said of their rows, without their places in the archive: these are of the moment."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    for path in folder.glob("*.json"):
        found[path.name] = json.dumps({**json.loads(path.read_text()), "indices": None}).encode()
    return found


def same(found: dict[Mode, xr.Dataset], expected: dict[Mode, xr.Dataset]) -> None:
    assert list(found) == list(expected)
    for mode in expected:
        assert found[mode].identical(expected[mode]), mode


# -- the same rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "workers"), [("threads", 2), ("threads", 9), ("processes", 2), ("processes", 3)])
def test_shares_give_the_rows_of_one_run(
    suite: Path, tmp_path: Path, kind: str, workers: int, request: pytest.FixtureRequest
) -> None:
    executor: Executor = request.getfixturevalue(kind)
    one = evaluate(suite, MODES, SETTINGS, out=tmp_path / "m" / "one")
    several = evaluate(suite, MODES, SETTINGS, out=tmp_path / "m" / "several", executor=executor, workers=workers)
    same(several, one)
    assert contents(tmp_path / "m" / "several") == contents(tmp_path / "m" / "one")
    assert [path.name for path in (tmp_path / "m" / "several").glob(".*running")] == []


@pytest.mark.parametrize("chosen", ["plain", "packed"])
def test_all_processes_of_a_run_compute_products_in_one_way(
    suite: Path, tmp_path: Path, processes: Executor, chosen: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near equal speed the measurement comes out differently in each process, and the two ways round differently."""
    out = tmp_path / "m" / "out"
    monkeypatch.setattr(runner, "choose_products", lambda device, dtype: chosen)
    steps = replace(SETTINGS, steps=STEPS[:4])
    first = evaluate(suite, ["unmask"], steps, out=out, executor=processes, workers=2)["unmask"]
    possible = "packed" if chosen == "packed" and can_pack() else "plain"
    assert first.attrs["products"] == possible
    assert "notes_by_step" not in first.attrs
    if possible == chosen:  # a later run goes on as the rows that are there
        monkeypatch.setattr(runner, "choose_products", lambda device, dtype: pytest.fail("measured again"))
        assert "notes_by_step" not in evaluate(suite, ["unmask"], SETTINGS, out=out)["unmask"].attrs
    other: Products = "plain" if chosen == "packed" else "packed"
    stated = evaluate(suite, ["unmask"], replace(SETTINGS, products=other))["unmask"]
    assert stated.attrs["products"] == (other if can_pack() else "plain")


def can_pack() -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "packed_is_faster", lambda dtype: True)
        return choose_products(torch.device("cpu"), torch.float32) == "packed"


def test_several_devices_have_a_process_each(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (suite / "step2" / "model.safetensors").unlink()
    monkeypatch.setattr(evaluator, "build_model", lambda *_, **__: pytest.fail("a model in the calling process"))
    wanted: dict[str, Any] = {"steps": [1, 2, 3, 4, 10, 20]}
    seen: list[tuple[int, int]] = []
    several = perplexity(suite, **TWO_PROCESSES, **wanted, progress=lambda *each: seen.append(each))
    monkeypatch.undo()
    one = perplexity(suite, **OPTIONS, **wanted)
    assert several.identical(one)
    assert several.attrs["missing"].keys() == {"2", "4"}
    assert several.attrs["device"] == "cpu"
    assert (seen[0], seen[-1]) == ((1, 6), (6, 6))
    assert seen == sorted(seen)


def test_threads_that_build_models_do_not_disturb_others(
    suite: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While transformers builds a model, its dtype is the default one of the process."""
    settings = replace(SETTINGS, dtype="bfloat16", limit=2)
    build = built._from_config

    def slowly(*arguments: Any) -> Any:
        torch.set_default_dtype(torch.bfloat16)
        time.sleep(0.2)
        torch.set_default_dtype(torch.float32)
        return build(*arguments)

    one = evaluate(suite, MODES, settings)
    monkeypatch.setattr(built, "_from_config", slowly)
    same(evaluate(suite, MODES, settings, executor=threads, workers=3), one)


def test_configs_that_differ_are_told_once(suite: Path, threads: Executor) -> None:
    for step in (2, 3, 10):
        file = suite / f"step{step}" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "use_parallel_residual": False}))
    with pytest.warns(UserWarning, match="steps 2, 3, 10 have another config than step 1") as warned:
        perplexity(suite, **OPTIONS, executor=threads, workers=3)
    assert len(warned) == 1
    assert Path(warned[0].filename).name in ("runner.py", "test_shards.py")


# -- rows that are there --------------------------------------------------------------------------------------


def test_steps_that_are_there_are_not_shared_out(suite: Path, tmp_path: Path, threads: Executor) -> None:
    out = tmp_path / "m" / "results"
    perplexity(suite, **OPTIONS, steps=[2, 10], out=out)
    before = (out / "perplexity-forward.zarr" / "sentence_nll" / "c" / "0" / "0").stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    result = perplexity(
        suite, **OPTIONS, out=out, executor=threads, workers=2, progress=lambda *each: seen.append(each)
    )
    assert (seen[0], seen[-1]) == ((2, 5), (5, 5))
    assert result.identical(perplexity(suite, **OPTIONS, out=tmp_path / "m" / "whole"))
    assert (out / "perplexity-forward.zarr" / "sentence_nll" / "c" / "0" / "0").stat().st_mtime_ns == before

    class Unused(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            pytest.fail("nothing is left to do")

    assert perplexity(suite, **OPTIONS, out=out, executor=Unused(1), workers=2).identical(result)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_table_of_other_settings_is_replaced_once(
    suite: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    executor: Executor = request.getfixturevalue(kind)
    out = tmp_path / "m" / "results"
    other = {**OPTIONS, "max_tokens": 5}
    perplexity(suite, **other, out=out)
    before = contents(out)
    with pytest.raises(PythiaDynError, match="has 5 rows of other settings"):
        perplexity(suite, **OPTIONS, out=out, executor=executor, workers=3)
    assert contents(out) == before
    result = perplexity(suite, **OPTIONS, out=out, executor=executor, workers=3, overwrite=True)
    assert result.attrs["missing"] == {}
    assert result.identical(perplexity(suite, **OPTIONS, out=tmp_path / "m" / "whole"))
    assert contents(out) == contents(tmp_path / "m" / "whole")


def test_nothing_replaces_a_table_where_nothing_is_evaluated(suite: Path, tmp_path: Path, threads: Executor) -> None:
    out = tmp_path / "m" / "results"
    perplexity(suite, **OPTIONS, out=out)
    before = contents(out)
    for step in STEPS:
        (suite / f"step{step}" / "config.json").unlink()
    changed = {**OPTIONS, "max_tokens": 5, "overwrite": True, "executor": threads, "workers": 2}
    with pytest.raises(CheckpointError, match=r"none of 5 revisions of .* gave a perplexity: .*config\.json"):
        perplexity(suite, **changed, out=out)
    assert contents(out) == before


def test_a_row_of_an_earlier_checkpoint_is_not_taken_for_that_of_a_broken_one(
    suite: Path, tmp_path: Path, threads: Executor
) -> None:
    out = tmp_path / "m" / "results"
    perplexity(suite, **OPTIONS, out=out)
    file = suite / "step3" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    result = perplexity(suite, **OPTIONS, out=out, executor=threads, workers=2)
    assert result.attrs["missing"].keys() == {"3"}
    assert result["ppl_mean"].isnull().values.tolist() == [False, False, True, False, False]
    assert len(lines(out)) == 6


# -- faults ---------------------------------------------------------------------------------------------------


@needs_kill
def test_a_process_that_is_killed_takes_nothing_from_the_others(suite: Path, tmp_path: Path) -> None:
    """The first of two processes, with steps 1, 3 and 20, is killed when the other has its rows."""
    out = tmp_path / "m" / "results"
    source = FaultySource(suite, 3, "kill", after=(out / "perplexity-forward.csv", 3))
    # The row of step 1 is lost where it was made in the second before.
    words = r"a process has ended \(SIGKILL, .*\); steps (1, )?3, 20 lack rows, the same command goes on from there"
    with pytest.raises(PythiaDynError, match=words):
        perplexity(source, **TWO_PROCESSES, out=out)
    assert [line.split(",")[0] for line in lines(out) if line[:2] != "1,"] == ["step", "2", "10"]
    assert list(out.glob(".*running")) == []
    result = perplexity(suite, **OPTIONS, out=out)
    assert result.identical(perplexity(suite, **OPTIONS, out=tmp_path / "m" / "whole"))


@needs_kill
def test_a_pool_that_is_broken_is_one_line(suite: Path, tmp_path: Path, context: Any) -> None:
    out = tmp_path / "m" / "results"
    source = FaultySource(suite, 10, "kill", after=(out / "perplexity-forward.csv", 4))
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        words = r"^a process of the executor was killed, or has ended; step.* 10 lack.*, the same command goes on"
        with pytest.raises(PythiaDynError, match=words):
            perplexity(source, **OPTIONS, out=out, executor=pool, workers=2)
    assert {"1", "3", "20"} <= {line.split(",")[0] for line in lines(out)}


def test_an_error_of_one_share_comes_after_the_rows_of_the_others(
    suite: Path, tmp_path: Path, threads: Executor
) -> None:
    out = tmp_path / "m" / "results"
    words = r"^a share failed: ZeroDivisionError: a defect; steps? .*10.*, the same command goes on from there$"
    with pytest.raises(PythiaDynError, match=words):
        perplexity(FaultySource(suite, 10, "raise"), **OPTIONS, out=out, executor=threads, workers=2)
    assert {"1", "3", "20"} <= {line.split(",")[0] for line in lines(out)}
    assert perplexity(suite, **OPTIONS, out=out).attrs["missing"] == {}


def test_errors_of_the_package_keep_their_class(
    suite: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, mode: Mode) -> None:
        raise CheckpointError("a fault of the checkpoint")

    monkeypatch.setattr(evaluator.Evaluator, "row", fail)
    with pytest.raises(CheckpointError, match=r"^a fault of the checkpoint; steps 1, 2, 3, 10, 20 lack rows"):
        perplexity(suite, **OPTIONS, executor=threads, workers=2)


def test_a_source_that_cannot_be_sent_is_one_line(suite: Path, threads: Executor) -> None:
    source = LocalSource(suite)
    source.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(PythiaDynError, match=r"^the LocalSource of .*tiny cannot be sent to other processes \(.*lock"):
        perplexity(source, **OPTIONS, executor=threads, workers=2)


def test_what_is_missing_everywhere_is_the_error_of_one_run(suite: Path, threads: Executor) -> None:
    with pytest.raises(UnknownNameError, match="no step 7"):
        perplexity(suite, **OPTIONS, steps=[7], executor=threads, workers=2)
    for step in STEPS:
        (suite / f"step{step}" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of 5 revisions .* gave a perplexity: .*config\.json"):
        perplexity(suite, **OPTIONS, executor=threads, workers=2)


# -- interruption ---------------------------------------------------------------------------------------------


def interrupted_at(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def test_threads_of_an_interrupted_run_stop_at_the_next_step(
    suite: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m" / "results"
    row, seen = evaluator.Evaluator.row, []

    def slowly(self: Any, mode: Mode) -> Any:
        seen.append(mode)
        time.sleep(1.2)
        return row(self, mode)

    monkeypatch.setattr(evaluator.Evaluator, "row", slowly)
    with pytest.raises(KeyboardInterrupt):
        perplexity(suite, **OPTIONS, out=out, progress=interrupted_at(1), executor=threads, workers=2)
    assert len(seen) <= 4
    assert 2 <= len(lines(out)) <= 5
    assert list(out.glob(".*running")) == []


# -- what is asked for ----------------------------------------------------------------------------------------


def test_devices_are_named_once_but_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EvaluationSettings(device="cpu,cpu").devices == ("cpu", "cpu")
    assert EvaluationSettings(device=torch.device("cpu")).devices == (torch.device("cpu"),)
    with pytest.raises(PythiaDynError, match="--device cpu,cpu names several devices; only evaluations"):
        ModelSettings(device="cpu,cpu")
    with pytest.raises(UnknownNameError, match="no device 'gpu'"):
        EvaluationSettings(device="cpu,gpu")
    with pytest.raises(UnknownNameError, match="no device ''"):
        EvaluationSettings(device="cpu,")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert EvaluationSettings(device="cuda:0,cuda:1,cpu").devices == ("cuda:0", "cuda:1", "cpu")
    for twice in ("cuda:1,cuda:1", "cuda,cuda:0", "auto,cuda"):
        with pytest.raises(PythiaDynError, match=r"names cuda:[01] twice; a GPU holds one model"):
            EvaluationSettings(device=twice)
    with pytest.raises(PythiaDynError, match="no device cuda:2 on this machine"):
        EvaluationSettings(device="cuda:0,cuda:2")


def test_the_number_of_shares(threads: Executor) -> None:
    two = EvaluationSettings(device="cpu,cpu")
    assert share_devices(SETTINGS, None, None) == ()
    assert share_devices(two, None, None) == ("cpu", "cpu")
    assert share_devices(two, threads, None) == ("cpu", "cpu")
    assert share_devices(two, threads, 3) == ("cpu", "cpu", "cpu")
    assert share_devices(SETTINGS, threads, 1) == ("cpu",)
    with pytest.raises(PythiaDynError, match="workers is the number of shares for an executor; without one"):
        share_devices(SETTINGS, None, 2)
    with pytest.raises(PythiaDynError, match="at least 1, not 0"):
        share_devices(SETTINGS, threads, 0)
    with ThreadPoolExecutor(3) as three:
        assert len(share_devices(SETTINGS, three, None)) == 3

    class Silent:  # it does not say how many tasks it runs at once
        def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Any:
            raise AssertionError

    with pytest.raises(PythiaDynError, match="at least 1, not None"):
        share_devices(SETTINGS, Silent(), None)


def test_the_disk_is_shared_too(suite: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int | None] = []

    def note(*arguments: Any, disk_budget: int | None, **options: Any) -> Any:
        budgets.append(disk_budget)
        return snapshots(*arguments, disk_budget=disk_budget, **options)

    monkeypatch.setattr("pythia_dynamics.evaluation.runner.snapshots", note)
    perplexity(suite, **OPTIONS, disk_budget=100, executor=threads, workers=3)
    perplexity(suite, **OPTIONS, executor=threads, workers=2)
    assert budgets == [33, 33, 33, None, None]


def test_rows_of_a_third_process_are_taken_too(suite: Path, tmp_path: Path, threads: Executor) -> None:
    """Somebody else evaluates the same steps meanwhile."""
    out = tmp_path / "m" / "results"
    whole = perplexity(suite, **OPTIONS, out=tmp_path / "m" / "whole")

    def progress(done: int, total: int) -> None:
        if done == 0:
            shutil.copytree(tmp_path / "m" / "whole", out, dirs_exist_ok=True)

    result = perplexity(suite, **OPTIONS, out=out, executor=threads, workers=2, progress=progress)
    assert result.identical(whole)
    assert Records("forward", out, json.loads((out / "perplexity-forward.json").read_text())["settings"]).has(
        20, LocalSource(suite).revisions()[20].commit
    )


def test_rows_that_are_not_seen_are_an_error(
    suite: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file system of a network shows them late: no step without a row and without a reason."""
    monkeypatch.setattr(Records, "refresh", lambda self: None)
    with pytest.raises(StoreError, match=r"rows that the shares have written are not seen .* lack rows"):
        perplexity(suite, out=tmp_path / "out", executor=threads, workers=2, **OPTIONS)
    monkeypatch.undo()
    assert len(lines(tmp_path / "out")) == 1 + len(STEPS)


def test_an_executor_that_does_not_see_the_folder_is_told_of(
    suite: Path, tmp_path: Path, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Path.is_dir

    def is_dir(self: Path) -> bool:
        """Where the shares run; not for the one that makes the folder."""
        in_a_share = threading.current_thread() is not threading.main_thread()
        return there(self) and not (in_a_share and self.name == "elsewhere")

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with pytest.raises(PythiaDynError, match=r"the executor does not see .*elsewhere: .* need one file system"):
        perplexity(suite, out=tmp_path / "elsewhere", executor=threads, workers=2, **OPTIONS)


def test_the_marker_goes_even_when_the_end_is_interrupted(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Processes.stop

    def interrupted(self: Processes, grace: float) -> None:
        stop(self, grace)
        raise KeyboardInterrupt

    monkeypatch.setattr(Processes, "stop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        perplexity(suite, out=tmp_path / "out", **TWO_PROCESSES)
    assert not list((tmp_path / "out").glob(".*running"))
