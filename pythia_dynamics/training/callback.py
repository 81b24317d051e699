"""Callbacks of `transformers.Trainer`: record weights and log their motion, and stop when they are stationary."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from transformers import DefaultFlowCallback, Trainer, TrainerCallback

from pythia_dynamics.checkpoints.formats.slices import select
from pythia_dynamics.errors import StoreError, UnknownNameError
from pythia_dynamics.training.choices import RecordEvent, Tracker
from pythia_dynamics.training.histograms import HistogramTrackers, WeightHistogram, weight_histogram
from pythia_dynamics.training.monitor import WeightMonitor
from pythia_dynamics.training.online import COLUMNS
from pythia_dynamics.training.stopping import StationarityRule

__all__ = ["NotRestoredWarning", "StationarityStop", "WeightDynamicsCallback"]

_LOGGED = tuple(name for name in COLUMNS if name not in ("mean", "msd_null_sd", "moved"))
"""The columns that are logged: all but those that only other columns are computed from."""


class NotRestoredWarning(UserWarning):
    """The Trainer resumed from a checkpoint, but the weights are not those recorded at its step."""


class WeightDynamicsCallback(TrainerCallback):
    """Records tensors of a model while a Trainer trains it, and adds their motion to the Trainer's logs.

    A copy of the weights goes to a store at each logging or saving step, and before the first step. `monitor` (a
    `WeightMonitor`) measures norm and b, MSD and its null, displacement rate, two-time Gram row and moments. The logs
    get them as ``weights/<name>``, or as ``weights/<tensor>/<name>`` for several tensors.

    In ``Trainer(callbacks=[...])`` this callback comes after those that write to TensorBoard, Weights & Biases …, which
    then do not get its values (`state.log_history` does). ``WeightDynamicsCallback(path).attach(trainer)`` puts it
    before them.

    The store gets the learning rate of the optimiser (of its first group of parameters) at each record.

    After ``resume_from_checkpoint`` it drops the records after the checkpoint and measures the earlier ones again from
    the store. A new run needs a new store (`StoreError`). Only the main process records.

    Parameters
    ----------
    path
        The store, for instance ``cache/my-run.zarr``.
    tensors
        As for `WeightMonitor`.
    when
        ``log`` records at logging steps, ``save`` at saving steps.
    with_gram
        Whether each record's Gram matrix row with all earlier records is computed.
    histograms
        Names of recorded tensors, globs or ``all``: each log of a new record has a histogram of these tensors from
        exact counts, with its numbers of weights that are not finite and outside (`weight_histogram`). Its name is
        ``weights/histogram``, or ``weights/<tensor>/histogram`` for several recorded tensors. Default: none.
    trackers
        Where the histograms go: ``wandb``, ``trackio``. Default: those with an active run, as the Trainer starts in
        each library of `report_to`. An error of a tracker is a warning and does not stop the training.

    Raises
    ------
    UnknownNameError
        For another value of `when` or of `trackers`.
    PythiaDynError
        A tracker that `trackers` names is not installed.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        tensors: str | Sequence[str] | None = None,
        when: RecordEvent = "log",
        with_gram: bool = True,
        histograms: str | Sequence[str] | None = None,
        trackers: Sequence[Tracker] | None = None,
    ) -> None:
        if when not in get_args(RecordEvent):
            raise UnknownNameError("moment to record", when, get_args(RecordEvent))
        self.when = when
        self._path, self._tensors, self._with_gram = Path(path), tensors, with_gram
        self._histograms = (histograms,) if isinstance(histograms, str) else tuple(histograms or ())
        self._trackers = HistogramTrackers(trackers)
        self._monitor: WeightMonitor | None = None
        self._has_new_record = False

    @property
    def monitor(self) -> WeightMonitor:
        """The monitor that records and measures; it has the store and `results()`."""
        if self._monitor is None:
            self._monitor = self._open(None)
        return self._monitor

    def _open(self, source: str | None) -> WeightMonitor:
        return WeightMonitor(self._path, tensors=self._tensors, source=source, with_gram=self._with_gram)

    def attach(self, trainer: Trainer) -> WeightDynamicsCallback:
        """Add this callback to `trainer` before those that report, so that they get its values; returns itself."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        # after the default callback, which decides at the end of a step whether to log
        flow = [i for i, callback in enumerate(callbacks) if isinstance(callback, DefaultFlowCallback)]
        callbacks.insert(flow[-1] + 1 if flow else 0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self._monitor is None:
            self._monitor = self._open(str(Path(args.output_dir).absolute()))
        monitor = self._monitor
        path = monitor.store.path  # opening the store measures its records
        if state.global_step == 0:
            if monitor.steps:
                raise StoreError(
                    f"{path} holds steps {monitor.steps[0]} to {monitor.steps[-1]} of an earlier run; resume that one, "
                    "remove the store or name another"
                )
            self._record(state, **kwargs)
            self._with_histogram()  # an unknown name is an error before the training, not in it
            return
        monitor.drop_after(state.global_step)
        if not monitor.matches(state.global_step, kwargs["model"]):
            warnings.warn(
                f"training resumes from step {state.global_step}, but the weights are not those recorded there: the "
                "Trainer did not restore them (transformers 5 skips tensors that have another name in the files, such "
                "as the head of GPT-NeoX); load the checkpoint into the model before training",
                NotRestoredWarning,
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log if self.when == "log" else control.should_save:
            self._record(state, **kwargs)

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.when == "save":
            self._record(state, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or not self._has_new_record or not state.is_world_process_zero:
            return
        self._has_new_record = False
        latest = self.monitor.latest
        known: dict[str, float] = {}
        for tensor, row in latest.items():
            prefix = "weights" if len(latest) == 1 else f"weights/{tensor}"
            known |= {f"{prefix}/{name}": row[name] for name in _LOGGED if row[name] == row[name]}
        if self._histograms:
            self._trackers.log(self.histograms(), state.global_step)
        logs.update(known)
        if state.log_history:
            state.log_history[-1].update(known)  # the Trainer has copied its logs by now

    def histograms(self) -> dict[str, WeightHistogram]:
        """The histogram of each chosen tensor at its last record, by the name that it has in the trackers.

        Raises
        ------
        UnknownNameError
            For a name in `histograms` that no recorded tensor has.
        """
        several = len(self.monitor.tensors) > 1
        prefixes = {name: f"weights/{name}" if several else "weights" for name in self._with_histogram()}
        return {f"{prefix}/histogram": weight_histogram(self.monitor.last(name)) for name, prefix in prefixes.items()}

    def _with_histogram(self) -> list[str]:
        """The recorded tensors whose histogram is logged."""
        return select(self.monitor.tensors, self._histograms, where=str(self.monitor.path))

    def _record(self, state: Any, *, model: Any, optimizer: Any = None, **others: Any) -> None:
        if not state.is_world_process_zero or state.global_step in self.monitor.steps[-1:]:
            return
        groups = getattr(optimizer, "param_groups", None)
        self.monitor.record(state.global_step, model, learning_rate=float(groups[0]["lr"]) if groups else None)
        self._has_new_record = True


class StationarityStop(TrainerCallback):
    """Stops a Trainer when the recorded weights are stationary; of several tensors, when all of them are.

    `stopped_at` is the step, None before the stop. The decision depends on the records only, so a resumed run stops at
    the same step as one without interruption.

    Parameters
    ----------
    recorder
        The callback of the same Trainer that records the weights.
    rule
        The rule; by default one with default values.
    """

    def __init__(self, recorder: WeightDynamicsCallback, rule: StationarityRule | None = None) -> None:
        self.recorder, self.rule = recorder, rule or StationarityRule()
        self.stopped_at: int | None = None
        self._at_rest: set[str] = set()
        self._tested_step = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        monitor = self.recorder.monitor
        if not state.is_world_process_zero or state.global_step not in monitor.steps[-1:]:
            return
        if self._tested_step != state.global_step:
            names = monitor.tensors
            self._at_rest |= {name for name in names if self._stops(monitor.results(name))}
            if names and self._at_rest.issuperset(names):
                self.stopped_at = state.global_step
            self._tested_step = state.global_step
        if self.stopped_at is not None:
            control.should_training_stop = True

    def _stops(self, curves: Any) -> bool:
        """Whether the rule stops; a run that goes on asks about all records once, then about the last ones only."""
        return self.rule.stop(curves) is not None if self._tested_step < 0 else self.rule.stops_now(curves)

    on_log = on_save = on_step_end
