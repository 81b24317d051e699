"""Watching a training run of `transformers.Trainer`: its weights into a store, their motion into its logs, its end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import DefaultFlowCallback, Trainer, TrainerCallback

from pythia_dynamics.errors import StoreError, UnknownNameError
from pythia_dynamics.training.monitor import COLUMNS, WeightMonitor
from pythia_dynamics.training.stopping import StationarityRule

__all__ = ["NotRestoredWarning", "StationarityStop", "WeightDynamicsCallback"]

When = Literal["log", "save"]

_LOGGED = tuple(name for name in COLUMNS if name not in ("mean", "msd_null_sd", "moved"))


class NotRestoredWarning(UserWarning):
    """The Trainer went on from a checkpoint, but the weights are not those that were recorded at that step."""


class WeightDynamicsCallback(TrainerCallback):
    """Records a model's head, or any of its tensors, at each logging step (or each saving step) of a Trainer.

    Into the store ``path`` goes a copy of the weights, before the first step as well; `monitor` (a `WeightMonitor`)
    knows norm and b, MSD and its null, displacement rate, two-time Gram row and density summary at once. They are
    added to the Trainer's logs as ``weights/<name>``, with several tensors as ``weights/<tensor>/<name>``.

    Given in ``Trainer(callbacks=[...])``, it comes after the callbacks that write to TensorBoard, Weights & Biases …,
    which then do not see what it adds (`state.log_history` does). ``WeightDynamicsCallback(path).attach(trainer)`` puts
    it before them.

    Goes on with the Trainer: on ``resume_from_checkpoint`` what was recorded later is dropped, and everything known is
    measured again from the store. A run that starts anew needs a store of its own (`StoreError`). Only the main
    process records.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        tensors: str | Sequence[str] | None = None,
        when: When = "log",
        with_gram: bool = True,
    ) -> None:
        if when not in get_args(When):
            raise UnknownNameError("moment to record", when, get_args(When))
        self.when = when
        self._path, self._tensors, self._with_gram = Path(path), tensors, with_gram
        self._monitor: WeightMonitor | None = None
        self._unsaid = False

    @property
    def monitor(self) -> WeightMonitor:
        """What is known; also the way to the store and to `results()`."""
        if self._monitor is None:
            self._monitor = self._open(None)
        return self._monitor

    def _open(self, source: str | None) -> WeightMonitor:
        return WeightMonitor(self._path, tensors=self._tensors, source=source, with_gram=self._with_gram)

    def attach(self, trainer: Trainer) -> WeightDynamicsCallback:
        """Add this callback to a Trainer before those that report, so that they report what it measures."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        # after the default one, which decides at the end of a step whether there will be a log
        flow = [i for i, callback in enumerate(callbacks) if isinstance(callback, DefaultFlowCallback)]
        callbacks.insert(flow[-1] + 1 if flow else 0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self._monitor is None:
            self._monitor = self._open(str(Path(args.output_dir).absolute()))
        monitor = self._monitor
        here = monitor.store.path  # opening it measures what it holds
        if state.global_step == 0:
            if monitor.steps:
                raise StoreError(
                    f"{here} holds steps {monitor.steps[0]} to {monitor.steps[-1]} of an earlier run; resume that one, "
                    "remove the store or name another"
                )
            self._record(state, kwargs["model"])
            return
        monitor.rewind(state.global_step)
        if not monitor.holds(state.global_step, kwargs["model"]):
            warnings.warn(
                f"training goes on from step {state.global_step}, but the weights are not those recorded there: the "
                "Trainer has not restored them (transformers 5 leaves out tensors that its files name otherwise, such "
                "as the head of GPT-NeoX); load the checkpoint into the model before",
                NotRestoredWarning,
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log if self.when == "log" else control.should_save:
            self._record(state, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.when == "save":
            self._record(state, kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or not self._unsaid or not state.is_world_process_zero:
            return
        self._unsaid = False
        latest = self.monitor.latest
        known = {
            f"weights/{name}" if len(latest) == 1 else f"weights/{tensor}/{name}": row[name]
            for tensor, row in latest.items()
            for name in _LOGGED
            if row[name] == row[name]
        }
        logs.update(known)
        if state.log_history:
            state.log_history[-1].update(known)  # the Trainer has copied its logs by now

    def _record(self, state: Any, model: Any) -> None:
        if not state.is_world_process_zero or state.global_step in self.monitor.steps[-1:]:
            return
        self.monitor.record(state.global_step, model)
        self._unsaid = True


class StationarityStop(TrainerCallback):
    """Stops a Trainer when the weights that `watched` records are stationary by `rule`.

    With several tensors, when all of them are. `stopped_at` is the step, None while there is none. What is decided
    follows from the records alone, so a run that is resumed stops where an undisturbed one does.
    """

    def __init__(self, watched: WeightDynamicsCallback, rule: StationarityRule | None = None) -> None:
        self.watched, self.rule = watched, rule or StationarityRule()
        self.stopped_at: int | None = None
        self._seen = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        monitor = self.watched.monitor
        if not state.is_world_process_zero or state.global_step not in monitor.steps[-1:]:
            return
        if self._seen != state.global_step:
            self._seen = state.global_step
            stops = [self.rule.stop(monitor.results(name)) for name in monitor.tensors]
            if stops and all(step is not None for step in stops):
                self.stopped_at = max(step for step in stops if step is not None)
        if self.stopped_at is not None:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control, **kwargs)
