"""Watching a Trainer: what is recorded, where it is logged, what a resumed run knows, when a run stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.trainers import gpt2, neox, trainer
from transformers import TrainerCallback

import pythia_dynamics as pyd
from pythia_dynamics.errors import StoreError, UnknownNameError
from pythia_dynamics.history.cache import open_history
from pythia_dynamics.training.callback import NotRestoredWarning, StationarityStop, WeightDynamicsCallback
from pythia_dynamics.training.stopping import StationarityRule


def test_the_head_is_recorded_at_every_log(tmp_path: Path) -> None:
    watch = WeightDynamicsCallback(tmp_path / "run")
    run = trainer(tmp_path / "out", neox(), [watch])
    before = run.model.get_output_embeddings().weight.detach().clone().numpy()
    run.train()
    history = open_history(tmp_path / "run.zarr")
    assert history.tensor == "embed_out.weight"
    assert history.steps.tolist() == [0, 3, 6, 9, 12]
    np.testing.assert_array_equal(history.at(0), before)
    np.testing.assert_array_equal(history.at(12), run.model.get_output_embeddings().weight.detach().numpy())
    logged = {entry["step"]: entry for entry in run.state.log_history if "weights/msd" in entry}
    assert list(logged) == [3, 6, 9, 12]
    msd, b = pyd.msd(history), pyd.order_parameter(history)
    for step, entry in logged.items():
        assert entry["weights/msd"] == pytest.approx(float(msd["msd"].sel(step=step)), rel=1e-6)
        assert entry["weights/order_parameter"] == pytest.approx(float(b["order_parameter"].sel(step=step)), rel=1e-6)
        assert {"loss", "weights/bimodality", "weights/displacement_rate", "weights/cosine_before"} <= set(entry)
        json.dumps(entry)


class Reporter(TrainerCallback):
    """Stands where the callbacks of TensorBoard and Weights & Biases stand: before the user's."""

    def __init__(self) -> None:
        self.heard: list[set[str]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.heard.append({name for name in logs if name.startswith("weights/")})


def test_attached_it_is_heard_by_those_that_report(tmp_path: Path) -> None:
    reporter = Reporter()
    run = trainer(tmp_path / "out", gpt2(), [reporter, WeightDynamicsCallback(tmp_path / "late")])
    run.train()
    assert reporter.heard == [set()] * 5
    reporter = Reporter()
    run = trainer(tmp_path / "out", gpt2(), [reporter])
    watch = WeightDynamicsCallback(tmp_path / "early", tensors=["lm_head.weight", "*attn.c_proj.weight"])
    assert watch.attach(run) is watch
    watch.attach(run)
    assert run.callback_handler.callbacks.count(watch) == 1
    run.train()
    assert all(
        {"weights/lm_head.weight/msd", "weights/transformer.h.0.attn.c_proj.weight/std"} <= heard
        for heard in (reporter.heard[:4])
    )
    assert reporter.heard[4] == set()  # the summary at the end has nothing new


def test_at_every_save(tmp_path: Path) -> None:
    watch = WeightDynamicsCallback(tmp_path / "run", when="save")
    trainer(tmp_path / "out", gpt2(), [watch], save_strategy="steps", save_steps=4).train()
    assert watch.monitor.steps == (0, 4, 8, 12)
    by_epoch = WeightDynamicsCallback(tmp_path / "epochs")
    trainer(tmp_path / "out2", gpt2(), [by_epoch], logging_strategy="epoch", max_steps=-1, num_train_epochs=2).train()
    assert by_epoch.monitor.steps == (0, 8, 16)
    with pytest.raises(UnknownNameError, match="no moment to record 'evaluate'"):
        WeightDynamicsCallback(tmp_path / "x", when="evaluate")  # type: ignore[arg-type]


def test_resumed_with_the_trainer(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 6}
    undisturbed = WeightDynamicsCallback(tmp_path / "a")
    trainer(tmp_path / "out-a", gpt2(), [undisturbed], **saving).train()

    first = WeightDynamicsCallback(tmp_path / "b")
    run = trainer(tmp_path / "out-b", gpt2(), [first, Halt(11)], **saving)
    run.train()
    assert first.monitor.steps == (0, 3, 6, 9)
    again = WeightDynamicsCallback(tmp_path / "b")
    run = trainer(tmp_path / "out-b", gpt2(), [again], **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "out-b" / "checkpoint-6"))
    assert again.monitor.steps == (0, 3, 6, 9, 12)
    found, expected = again.monitor.results(), undisturbed.monitor.results()
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert open_history(tmp_path / "b.zarr").missing == {}
    anew = trainer(tmp_path / "out-c", gpt2(), [WeightDynamicsCallback(tmp_path / "b")])
    with pytest.raises(StoreError, match=r"holds steps 0 to 12 of an earlier run|holds the weights of"):
        anew.train()


def test_the_learning_rate_of_the_optimiser_is_recorded(tmp_path: Path) -> None:
    """Linear from 1e-2 to 0 over 12 steps; also after the run was resumed."""
    saving = {"save_strategy": "steps", "save_steps": 6, "warmup_steps": 4}
    expected = {0: 0.0, 3: 0.0075, 6: 0.0075, 9: 0.00375, 12: 0.0}
    watch = WeightDynamicsCallback(tmp_path / "a")
    trainer(tmp_path / "out", gpt2(), [watch, Halt(8)], **saving).train()
    again = WeightDynamicsCallback(tmp_path / "a")
    run = trainer(tmp_path / "out", gpt2(), [again], **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    history = open_history(tmp_path / "a.zarr")
    assert dict(zip(history.steps.tolist(), history.coordinates["learning_rate"], strict=True)) == pytest.approx(
        expected
    )
    assert history.provenance["learning_rate"] == "the optimiser, recorded while training"
    found = again.monitor.results()
    np.testing.assert_allclose(found["learning_rate"], list(expected.values()))
    assert found.attrs["learning_rate"] == history.provenance["learning_rate"]
    logged = {row["step"]: row["learning_rate"] for row in run.state.log_history if "learning_rate" in row}
    after = {3: 0.005, 6: 0.00875, 9: 0.005, 12: 0.00125}  # transformers 5 logs that of the update before
    assert logged == pytest.approx(after)

    checkpoints = pyd.fetch(tmp_path / "out", tensor="lm_head.weight", cache=tmp_path / "cache")
    assert checkpoints.provenance["learning_rate"] == "trainer_state.json of checkpoint-12"
    np.testing.assert_allclose(checkpoints.coordinates["learning_rate"], [logged[6], logged[12]])


def test_the_same_run_anew_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path / "out", gpt2(), [WeightDynamicsCallback(tmp_path / "run")]).train()
    with pytest.raises(StoreError, match="steps 0 to 12 of an earlier run; resume that one"):
        trainer(tmp_path / "out", gpt2(), [WeightDynamicsCallback(tmp_path / "run")]).train()


def test_a_head_that_the_trainer_did_not_restore_is_said(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 6}
    trainer(tmp_path / "out", gpt2(), [WeightDynamicsCallback(tmp_path / "run"), Halt(7)], **saving).train()
    watch = WeightDynamicsCallback(tmp_path / "run")
    run = trainer(tmp_path / "out", gpt2(), [Spoil(), watch], **saving)
    with pytest.warns(NotRestoredWarning, match="from step 6, but the weights are not those recorded there"):
        run.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))


class Halt(TrainerCallback):
    """Ends training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class Spoil(TrainerCallback):
    """Does to the head what the Trainer does to one that it cannot find in its files."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].get_output_embeddings().weight.data.normal_()


# -- stopping -------------------------------------------------------------------------------------------------


def test_a_run_that_rests_is_stopped(tmp_path: Path) -> None:
    watch = WeightDynamicsCallback(tmp_path / "run")
    rule = StationarityRule(kind="displacement", threshold=1.0, patience=2)
    stop = StationarityStop(watch, rule)
    # the learning rate falls to nothing in the first half, then nothing moves
    options = {
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"lr_end": 0.0, "power": 8.0},
        "max_steps": 60,
        "weight_decay": 0.0,
    }
    run = trainer(tmp_path / "out", gpt2(), [watch, stop], **options)
    run.train()
    assert stop.stopped_at == run.state.global_step < 60
    rates = watch.monitor.results()["displacement_rate"].to_numpy()
    assert (rates[-2:] < 1).all()
    assert rates[-3] >= 1
    assert rule.stop(watch.monitor.results()) == stop.stopped_at


@pytest.mark.parametrize("before", [False, True])
def test_it_may_stand_before_the_callback_it_works_with(tmp_path: Path, before: bool) -> None:
    watch = WeightDynamicsCallback(tmp_path / "run")
    stop = StationarityStop(watch, StationarityRule(kind="displacement", threshold=1e9, patience=2))
    run = trainer(tmp_path / "out", gpt2(), [stop, watch] if before else [watch, stop])
    run.train()
    assert (stop.stopped_at, run.state.global_step) == (6, 6)


def test_a_run_that_moves_is_not_stopped(tmp_path: Path) -> None:
    watch = WeightDynamicsCallback(tmp_path / "run")
    stop = StationarityStop(watch)
    run = trainer(tmp_path / "out", gpt2(), [watch, stop])
    run.train()
    assert (stop.stopped_at, run.state.global_step) == (None, 12)


def test_the_public_names() -> None:
    assert pyd.WeightDynamicsCallback is WeightDynamicsCallback
    assert pyd.StationarityStop is StationarityStop
    assert pyd.StationarityRule is StationarityRule
