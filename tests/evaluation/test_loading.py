"""The order in which checkpoints are asked for, prepared, loaded and removed."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.queues import DeferredQueues, Happening, ImmediateQueues
from support.tiny_models import TEXTS, write_suite

from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.source import AccessError, Revision
from pythia_dynamics.errors import CheckpointError, FormatError
from pythia_dynamics.evaluation import evaluator as evaluator_module
from pythia_dynamics.evaluation import staging
from pythia_dynamics.evaluation.checkpoint import Checkpoint, CheckpointReader
from pythia_dynamics.evaluation.corpus import Corpus
from pythia_dynamics.evaluation.evaluator import LoadedModel, Prepared
from pythia_dynamics.evaluation.loading import load_ahead
from pythia_dynamics.evaluation.portrait import portrait
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import EvaluationSettings, Mode, ModelSettings
from pythia_dynamics.evaluation.staging import Queue, Queues, StagedWeights
from pythia_dynamics.evaluation.weights import Weights

STEPS = (1, 2, 3, 10)
MODES: tuple[Mode, ...] = ("forward", "last-word")
SETTINGS = EvaluationSettings(corpus=Corpus("texts", TEXTS[:3]), device="cpu", max_tokens=8)
PATIENCE = 5.0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suites") / "tiny", STEPS)


@pytest.fixture
def suite(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "tiny"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.001)


class Run:
    """`load_ahead` over revisions, with a log of what happens in which order.

    Parameters
    ----------
    steps
        The revisions.
    failing
        The error of a step, by what raises it.
    """

    def __init__(self, steps: range, failing: dict[tuple[str, int], BaseException] | None = None) -> None:
        self.steps = steps
        self.failing = failing or {}
        self.log: list[tuple[str, int]] = []
        self.threads: dict[tuple[str, int], str] = {}
        self.cancels = 0
        self.block: Callable[[tuple[str, int]], object] = lambda entry: None

    def has(self, what: str, step: int) -> bool:
        return (what, step) in self.log

    def note(self, what: str, step: int) -> None:
        self.log.append((what, step))
        self.threads[what, step] = threading.current_thread().name
        self.block((what, step))
        if error := self.failing.get((what, step)):
            raise error

    def found(self) -> Any:
        last = 0
        try:
            for step in self.steps:
                self.note("find", step)
                if last:
                    self.log.append(("evict", last))
                last = step
                error = self.failing.get(("download", step))
                yield Revision(step, f"step{step}"), Path(str(step)) if error is None else error
        finally:
            self.log.append(("closed", last))

    def read(self, revision: Revision, directory: Path) -> Any:
        self.note("read", revision.step)
        return revision.step

    def prepare(self, checkpoint: Any, check: Callable[[], None]) -> Any:
        self.note("prepare", checkpoint)
        check()
        return ("prepared", checkpoint)

    def load(self, checkpoint: Any, prepared: Any) -> None:
        assert prepared == ("prepared", checkpoint)
        self.note("load", checkpoint)

    def cancel(self) -> None:
        self.cancels += 1

    def upcoming(self) -> Any:
        return load_ahead(
            self.found(), self.read, self.prepare, self.load, cancel=self.cancel, stopped=threading.Event()
        )


def test_the_next_is_prepared_in_a_thread_while_this_one_is_used_and_no_further() -> None:
    run = Run(range(1, 5))
    for revision, load in run.upcoming():
        step = revision.step
        before = len(run.log)
        load()
        run.log.append(("use", step))
        if step < 4:
            until(partial(run.has, "prepare", step + 1))
        time.sleep(0.01)
        assert ("find", step + 2) not in run.log
        assert run.log[before] == ("load", step)  # nothing happens before it is loaded
    order = {entry: number for number, entry in enumerate(run.log)}
    for step in range(1, 5):
        assert run.threads["load", step] == threading.current_thread().name
        assert all(run.threads[what, step].startswith("weights") for what in ("find", "read", "prepare"))
        steps_of_one = [order[what, step] for what in ("find", "read", "prepare", "load", "use")]
        assert steps_of_one == sorted(steps_of_one)
        if step < 4:
            assert order["load", step] < order["find", step + 1] < order["evict", step]
    assert run.log[-1] == ("closed", 4)
    assert run.cancels == 0


def test_a_revision_that_is_not_loaded_is_passed_over() -> None:
    run = Run(range(1, 4))
    for revision, load in run.upcoming():
        if revision.step != 2:
            load()
    assert [step for what, step in run.log if what == "load"] == [1, 3]
    assert [step for what, step in run.log if what == "prepare"] == [1, 2, 3]


@pytest.mark.parametrize("where", ["download", "read", "load"])
@pytest.mark.parametrize("kind", [FormatError, OSError])
def test_an_error_of_one_revision_is_raised_where_it_is_loaded(where: str, kind: type[Exception]) -> None:
    run = Run(range(1, 5), {(where, 2): kind("damaged")})
    loaded = []
    for revision, load in run.upcoming():
        if revision.step == 2:
            with pytest.raises(kind, match="damaged"):
                load()
        else:
            load()
            loaded.append(revision.step)
    assert loaded == [1, 3, 4]


@pytest.mark.parametrize("what", ["find", "prepare"])
def test_an_error_that_is_not_of_one_revision_ends_the_run(what: str) -> None:
    error = AccessError("gated") if what == "find" else ZeroDivisionError("a mistake")
    run = Run(range(1, 5), {(what, 3): error})
    loaded: list[int] = []

    def use() -> None:
        for revision, load in run.upcoming():
            load()
            loaded.append(revision.step)

    with pytest.raises(type(error)):
        use()
    assert loaded == [1, 2]
    assert run.log[-1][0] == "closed"


@pytest.mark.parametrize("where", ["find", "prepare"])
def test_stopping_early_ends_the_thread_and_what_it_waits_for(where: str) -> None:
    run = Run(range(1, 5))
    released = threading.Event()
    run.block = lambda entry: released.wait(PATIENCE) if entry == (where, 2) else None

    def cancel() -> None:
        run.cancels += 1
        if run.cancels == 2:  # the first one came too early
            released.set()

    before = threading.active_count()

    def use() -> None:
        with closing(
            load_ahead(run.found(), run.read, run.prepare, run.load, cancel=cancel, stopped=threading.Event())
        ) as upcoming:
            for _, load in upcoming:
                load()
                until(lambda: (where, 2) in run.log)
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert run.cancels == 2
    assert ("prepare", 3) not in run.log
    assert run.log[-1][0] == "closed"
    assert threading.active_count() == before


def test_nothing_runs_before_the_first_is_asked_for() -> None:
    run = Run(range(1, 3))
    before = threading.active_count()
    run.upcoming().close()
    assert (run.log, threading.active_count()) == ([], before)


# -- with models ----------------------------------------------------------------------------------------------


class Evicting(LocalSource):
    """Checkpoints that are gone when they are not needed any more; none of their files is mapped then."""

    def snapshot(self, revision: Revision) -> Path:
        return Path(shutil.copytree(super().snapshot(revision), self.copies / revision.ref))

    def evict(self, revision: Revision) -> None:
        maps = Path("/proc/self/maps")
        directory = self.copies / revision.ref
        self.still_mapped += maps.is_file() and f"{directory}/" in maps.read_text()
        self.evicted.append(revision.step)
        shutil.rmtree(directory)

    def __init__(self, directory: Path, copies: Path) -> None:
        super().__init__(directory)
        self.copies, self.evicted, self.still_mapped = copies, list[int](), 0


class Uploading(DeferredQueues):
    """Uploads run late; the host computes, so it waits for what is submitted to the queue that computes."""

    def record(self, queue: Queue) -> Happening:
        event = super().record(queue)
        if queue == "compute":
            self.synchronize(event)
        return event


def use_queues(monkeypatch: pytest.MonkeyPatch, queues: Callable[[], Queues | None]) -> None:
    monkeypatch.setattr(staging, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(evaluator_module, "device_queues", lambda device: queues())


QUEUES = pytest.mark.parametrize("queues", [lambda: None, ImmediateQueues, lambda: Uploading("late")])


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_parallel_residual": False}))


@QUEUES
def test_results_and_reasons_are_those_of_loading_each_checkpoint_alone(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queues: Callable[[], Queues | None]
) -> None:
    change_config(suite / "step2")
    broken = suite / "step3" / "model.safetensors"
    state = load_file(broken)
    save_file({name: t for name, t in state.items() if name != "embed_out.weight"}, broken)
    expected: dict[int, Any] = {}
    reason = ""
    for step in STEPS:  # each in a run of its own
        settings = EvaluationSettings(corpus=SETTINGS.corpus, device="cpu", max_tokens=8, steps=[step])
        try:
            expected[step] = evaluate(suite, MODES, settings)
        except CheckpointError as error:
            reason = str(error).partition("gave a perplexity: ")[2]
    assert reason.endswith("step3 lacks 1 weights: lm_head.weight")
    use_queues(monkeypatch, queues)
    source = Evicting(suite, tmp_path / "copies")
    with pytest.warns(UserWarning, match="step 2 has another config than step 1"):
        results = evaluate(source, MODES, SETTINGS)
    for mode in MODES:
        assert results[mode].attrs["missing"] == {"3": reason.replace(str(suite), str(tmp_path / "copies"))}
        for step, alone in expected.items():
            for name, values in alone[mode].data_vars.items():
                np.testing.assert_array_equal(results[mode][name].sel(step=step), values.sel(step=step))
    assert source.evicted == list(STEPS)
    assert source.still_mapped == 0
    assert not any((tmp_path / "copies").iterdir())


def test_a_checkpoint_of_another_config_is_not_prepared(suite: Path) -> None:
    change_config(suite / "step2")
    source = LocalSource(suite)
    reader = CheckpointReader(source, source.revisions())
    one, two, three = (reader.read(r, source.snapshot(r)) for r in list(source.revisions().values())[:3])
    loaded = LoadedModel(ModelSettings(device="cpu"))
    assert loaded.prepare(one) is None
    loaded.load(one)
    assert loaded.prepare(two) is None
    prepared = loaded.prepare(three)
    assert isinstance(prepared, Weights)
    parallel = []
    for arguments in ((two,), (three, prepared)):  # it was prepared for a model that is gone: it is read again
        loaded.load(*arguments)
        parallel.append(loaded.model.config.use_parallel_residual)
    assert parallel == [False, True]
    exact = load_file(suite / "step3" / "model.safetensors")["embed_out.weight"]
    assert torch.equal(loaded.model.lm_head.weight, exact.float())


@QUEUES
def test_a_checkpoint_is_prepared_while_the_weights_of_the_model_have_no_values(
    suite: Path, monkeypatch: pytest.MonkeyPatch, queues: Callable[[], Queues | None]
) -> None:
    use_queues(monkeypatch, queues)
    source = LocalSource(suite)
    reader = CheckpointReader(source, source.revisions())
    one, two = (reader.read(r, source.snapshot(r)) for r in list(source.revisions().values())[:2])
    loaded = LoadedModel(ModelSettings(device="cpu"))
    loaded.load(one)
    weight = loaded.model.lm_head.weight
    values, weight.data = weight.data, weight.new_empty(0)  # as while layers compute with packed weights
    prepared = loaded.prepare(two)
    weight.data = values
    loaded.load(two, prepared)
    assert torch.equal(weight, load_file(suite / "step2" / "model.safetensors")["embed_out.weight"].float())


def test_the_weights_are_staged_by_the_thread_while_the_checkpoint_before_is_evaluated(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_queues(monkeypatch, ImmediateQueues)
    staged: list[int] = []
    prepare, row = evaluator_module.Evaluator.prepare, evaluator_module.Evaluator.row

    def note(self: Any, checkpoint: Checkpoint, check: Callable[[], None]) -> Prepared:
        prepared = prepare(self, checkpoint, check)
        assert threading.current_thread() is not threading.main_thread()
        assert isinstance(prepared, StagedWeights) or checkpoint.step == 1
        staged.append(checkpoint.step)
        return prepared

    def wait_for_the_next(self: Any, mode: Mode) -> Any:
        until(lambda: len(staged) == min(len(used) + 2, len(STEPS)))
        used.append(mode)
        return row(self, mode)

    used: list[Mode] = []
    monkeypatch.setattr(evaluator_module.Evaluator, "prepare", note)
    monkeypatch.setattr(evaluator_module.Evaluator, "row", wait_for_the_next)
    evaluate(suite, ["forward"], SETTINGS)
    assert staged == list(STEPS)


@pytest.mark.parametrize("queues", [ImmediateQueues, lambda: Uploading("late")])
def test_a_portrait_has_staged_weights_in_inference_mode(
    suite: Path, monkeypatch: pytest.MonkeyPatch, queues: Callable[[], Queues | None]
) -> None:
    options: dict[str, Any] = {"phrase": "the cat sat on the mat", "text": TEXTS[1], "device": "cpu"}
    plain = portrait(suite, **options)
    use_queues(monkeypatch, queues)
    assert portrait(suite, **options).identical(plain)


class Slow(LocalSource):
    """A source whose second download takes for ever, unless it is cancelled."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.cancelled = threading.Event()
        self.waiting = threading.Event()

    def snapshot(self, revision: Revision) -> Path:
        if revision.step == 2:
            self.waiting.set()
            assert self.cancelled.wait(PATIENCE)
            raise FormatError("cancelled")
        return super().snapshot(revision)

    def cancel(self) -> None:
        self.cancelled.set()


def test_an_interrupted_run_ends_at_once(suite: Path) -> None:
    source = Slow(suite)

    def interrupt(done: int, total: int) -> None:
        if done == 1:
            assert source.waiting.wait(PATIENCE)
            raise KeyboardInterrupt

    before, start = threading.active_count(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        evaluate(source, ["forward"], SETTINGS, progress=interrupt)
    assert time.monotonic() - start < PATIENCE
    assert threading.active_count() == before
