"""Training a suite with `transformers.Trainer`: its checkpoints, its losses, and resuming after an interruption."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pythia_dynamics.checkpoints.registry import branch
from pythia_dynamics.device import resolve_device
from pythia_dynamics.errors import NonFiniteError, PythiaDynError, optional_import
from pythia_dynamics.evaluation.nanogpt import NanoGPTConfig, NanoGPTForCausalLM
from pythia_dynamics.executors import Pool, as_executor
from pythia_dynamics.files import disk_full_errors
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep.sweep import run_jobs
from pythia_dynamics.tables import write_json
from pythia_dynamics.training import suite
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.suite import Loss, PreparedText, Suite
from pythia_dynamics.training.text import Text
from pythia_dynamics.training.transformers_log import silence_transformers

__all__ = ["new_model", "torch_threads", "train_suite", "train_suites"]

_STATE = "trainer"
"""Folder of the Trainer's own checkpoints while a suite is trained."""

_PLAN = "plan.json"
"""The description of the suite that is being trained."""

_COMPLETE = "complete"
"""Empty file in a Trainer's checkpoint that has been written completely."""

_MAX_WIDTH_OF_ONE_THREAD = 128
"""Largest d_model for which one thread of torch is at least as fast as two: the matrix products are that small."""


def train_suite(
    out: Path | str,
    text: Text,
    plan: TrainingPlan,
    *,
    device: str = "auto",
    threads: int | None = None,
    resume_seconds: float = 60,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = silent,
) -> Suite:
    """Train a model with AdamW and write its suite.

    A finished suite of the same plan and text is left as it is. Another suite is replaced when the new one is finished.
    During training all files are in ``.<name>.partial`` beside `out`, with a checkpoint of the Trainer. After an
    interruption the same call resumes from that checkpoint; on a CPU the weights at the end are those of a training
    without interruption. The same plan gives the same suite on the same machine.

    Parameters
    ----------
    out
        Directory of the suite.
    text
        The text to train on.
    plan
        The numbers of the training.
    device
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``mps``.
    threads
        Threads of torch on a CPU. Default: one for a `d_model` up to 128, else torch's own number.
    resume_seconds
        Time between checkpoints of the Trainer, the most that an interruption costs.
    callbacks
        More callbacks for the Trainer, which logs at the interval of the checkpoints.
    progress
        Called with the number of steps done and in all.

    Returns
    -------
    Suite
        The suite at `out`; `fresh` tells whether this call trained it.

    Raises
    ------
    CorpusError
        Where the text is too short to train on.
    NonFiniteError
        Where the training diverges.
    PythiaDynError
        Where `out` holds something else, or another process is training it.
    StoreError
        Where the disk is full.
    """
    out = Path(out)
    about = suite.describe_suite(text, plan)
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    goes_on = "; free some space, the same command goes on"
    try:
        with disk_full_errors(out, hint=goes_on), FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            if not suite.describes(partial / suite.SUITE, about):  # else only the move to `out` was interrupted
                if suite.is_finished(out, about):
                    return Suite(out, fresh=False)
                automatic = 1 if plan.d_model <= _MAX_WIDTH_OF_ONE_THREAD else torch.get_num_threads()
                with torch_threads(threads or automatic), silence_transformers():
                    prepared = suite.prepare_text(text, plan)
                    _train(partial, about, prepared, plan, device, resume_seconds, callbacks, progress)
            suite.replace_suite(out, partial, plan.saved_steps)
    except Timeout:
        raise PythiaDynError(f"another process is training {out}; wait for it or name another directory") from None
    return Suite(out, fresh=True)


def train_suites(
    plans: Mapping[Path, TrainingPlan],
    text: Text,
    executor: Pool,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Suite]:
    """Train several suites at once.

    Parameters
    ----------
    plans
        The plans by the directory of their suite, which the workers of the executor and this process see.
    text, device, threads
        As for `train_suite`.
    executor
        Trains each suite in another process or on another machine: an `Executor`, a `distributed.Client`, or an
        executor of submitit.
    progress
        Called with the number of suites that are finished, and of all.

    Returns
    -------
    list of Suite
        The suites, in the order of `plans`.

    Raises
    ------
    PythiaDynError
        As `train_suite`. What has been trained is kept, and the same call resumes the others.
    """
    pool = as_executor(executor)
    assert pool is not None
    train = partial(train_suite, device=device, threads=threads)
    jobs = ((index, (train, out.absolute(), text, plan)) for index, (out, plan) in enumerate(plans.items()))
    found: dict[int, Suite] = {}
    progress(0, len(plans))
    for index, suite_there in run_jobs(pool, jobs, ahead=len(plans)):
        found[index] = suite_there
        progress(len(found), len(plans))
    return [Suite(out, found[index].fresh) for index, out in enumerate(plans)]


def new_model(plan: TrainingPlan, vocab: int) -> PreTrainedModel:
    """The untrained model of a plan, in float32. The global random states stay as they are.

    Parameters
    ----------
    plan
        The plan; its `seed` decides the weights.
    vocab
        Number of entries of the tokenizer.
    """
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": plan.d_model,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "max_position_embeddings": plan.context,
        "bos_token_id": None,
        "eos_token_id": None,
        "use_cache": False,
        "dtype": plan.dtype,  # of the files
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model: PreTrainedModel
        if plan.arch == "nanogpt":
            model = NanoGPTForCausalLM(NanoGPTConfig(dropout=plan.dropout, **common))
        else:
            common |= {"hidden_dropout": plan.dropout, "attention_dropout": plan.dropout}
            model = GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=4 * plan.d_model, **common))
        if plan.initialisation == "pytorch":
            for module in model.modules():
                if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                    module.reset_parameters()
    return model


def _train(
    partial: Path,
    about: dict[str, Any],
    prepared: PreparedText,
    plan: TrainingPlan,
    device: str,
    resume_seconds: float,
    callbacks: Sequence[TrainerCallback],
    progress: Progress,
) -> None:
    """Train from the start, or from the last checkpoint in `partial` where that is of the same training."""
    if not suite.describes(partial / _PLAN, about):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / _PLAN, about)
    tokenizer = prepared.tokenizer
    model = new_model(plan, len(tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    checkpoint = _last_checkpoint(partial / _STATE)
    if checkpoint is not None:
        # The Trainer of transformers 5 does not restore tensors whose name in the files is not the model's: the head.
        saved = type(model).from_pretrained(checkpoint, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())
    writer = _SuiteWriter(partial, prepared, plan, progress)
    trainer = (_DecayOfAll if plan.arch == "nanogpt" else Trainer)(
        model=model,
        args=_arguments(partial / _STATE, plan, device),
        train_dataset=_RandomWindows(prepared.training, plan),
        data_collator=_unchanged,
        callbacks=[writer, _PeriodicCheckpoint(resume_seconds), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    shutil.rmtree(partial / _STATE, ignore_errors=True)
    (partial / _PLAN).unlink()
    suite.write_suite(partial, prepared.passages, about, plan.learning_rate_schedule)


def _arguments(out: Path, plan: TrainingPlan, device: str) -> TrainingArguments:
    """The Trainer's arguments for a plan."""
    with optional_import("training a suite", "train"):
        import accelerate  # noqa: F401  (TrainingArguments needs it)

    kind = resolve_device(device).type
    steps = plan.saved_steps
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.batch,
        train_sampling_strategy="sequential",  # the windows are in random order already
        remove_unused_columns=False,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine" if plan.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        adam_beta2=plan.adam_beta2,
        max_grad_norm=plan.max_grad_norm,
        logging_steps=steps[-1] - steps[-2] if len(steps) > 1 else steps[-1],
        logging_nan_inf_filter=False,
        save_strategy="no",  # `_PeriodicCheckpoint` asks for checkpoints by time
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=plan.seed,
        use_cpu=kind == "cpu",
        dataloader_pin_memory=kind == "cuda",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # with more GPUs the Trainer multiplies the batch by their number
    return arguments


class _DecayOfAll(Trainer):
    """A Trainer whose weight decay is that of every parameter, as in ``AdamW(model.parameters())``."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]


class _RandomWindows(Dataset[dict[str, torch.Tensor]]):
    """Random windows of the tokens, `max_steps` batches of them, the same for the same seed."""

    def __init__(self, tokens: NDArray[np.int64], plan: TrainingPlan) -> None:
        self.tokens = torch.from_numpy(tokens)
        self.plan, self.offsets = plan, _offsets(plan)
        count = plan.max_steps * plan.batch
        starts = np.random.default_rng(plan.seed).integers(0, len(tokens) - plan.context, size=count)
        self.starts = torch.from_numpy(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        windows = self.tokens[self.starts[indices][:, None] + self.offsets]
        return _inputs(windows, self.plan)


def _offsets(plan: TrainingPlan) -> torch.Tensor:
    """The tokens of a window, counted from its start: those that are read, and for ``nanogpt`` the one that follows."""
    return torch.arange(plan.context + (plan.arch == "nanogpt"))


def _inputs(windows: torch.Tensor, plan: TrainingPlan) -> dict[str, torch.Tensor]:
    """The arguments of the model for windows of shape (n, tokens), with what each position is to predict."""
    if plan.arch == "nanogpt":
        return {"input_ids": windows[:, :-1], "shift_labels": windows[:, 1:]}
    return {"input_ids": windows, "labels": windows}


def _unchanged(batch: Any) -> Any:
    """The collator of `_RandomWindows`, which gives whole batches."""
    return batch


class _SuiteWriter(TrainerCallback):
    """Writes the checkpoints, measures the losses at the steps of the plan, and reports each step to `progress`."""

    def __init__(self, out: Path, prepared: PreparedText, plan: TrainingPlan, progress: Progress) -> None:
        self.out, self.saved, self.progress = out, frozenset(plan.saved_steps), progress
        self.tokenizer_files = [Path(name) for name in prepared.tokenizer.save_pretrained(out / "tokenizer")]
        self.dtype = getattr(torch, plan.dtype)
        self.plan = plan
        rng = np.random.default_rng((plan.seed, 1))
        self.windows = [_evaluation_windows(part, plan, rng) for part in (prepared.training, prepared.validation)]
        self.losses: list[Loss] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses = [row for row in suite.read_suite_losses(self.out) if row.step <= state.global_step]
        if state.global_step == 0 and 0 in self.saved and not self.losses:
            self.record(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.saved:
            self.record(kwargs["model"], state.global_step)
        self.progress(state.global_step, state.max_steps)

    def record(self, model: PreTrainedModel, step: int) -> None:
        """Measure the losses of `model` at a step, then write its weights and the losses."""
        training, validation = (self.loss(model, windows) for windows in self.windows)
        if not math.isfinite(training + validation):
            raise NonFiniteError(f"the loss is {training} at step {step}: training diverged; lower --learning-rate")
        self.save(model, step)
        self.losses.append(Loss(step, training, validation))
        suite.write_suite_losses(self.out, self.losses)

    def loss(self, model: PreTrainedModel, windows: torch.Tensor) -> float:
        """Mean loss over the windows (n, tokens), without dropout. It draws no random number."""
        model.eval()  # type: ignore[no-untyped-call]
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        with torch.no_grad():
            for batch in torch.split(windows, self.plan.batch):
                loss = model(**_inputs(batch.to(model.device), self.plan)).loss
                total += loss.double() * len(batch)
        model.train()
        return float(total) / len(windows)

    def save(self, model: PreTrainedModel, step: int) -> None:
        """Write one checkpoint under a temporary name, then rename it."""
        target, temporary = self.out / branch(step), self.out / f".{branch(step)}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        weights = {name: tensor.detach().to("cpu", self.dtype) for name, tensor in model.state_dict().items()}
        model.save_pretrained(temporary, state_dict=weights)
        for file in filter(Path.is_file, self.tokenizer_files):
            shutil.copy(file, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)


class _PeriodicCheckpoint(TrainerCallback):
    """Asks for a checkpoint of the Trainer every so many seconds, and marks complete ones."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.last >= self.seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
        self.last = time.monotonic()


def _evaluation_windows(tokens: NDArray[np.int64], plan: TrainingPlan, rng: np.random.Generator) -> torch.Tensor:
    """The windows (n, tokens) on which the loss of a part is measured."""
    starts = rng.integers(0, len(tokens) - plan.context, size=plan.eval_batches * plan.batch)
    return torch.from_numpy(tokens[starts[:, None] + _offsets(plan).numpy()])


def _last_checkpoint(directory: Path) -> Path | None:
    """The Trainer's newest complete checkpoint; incomplete ones are removed."""
    complete: dict[int, Path] = {}
    for path in directory.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            complete[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return complete[max(complete)] if complete else None


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
