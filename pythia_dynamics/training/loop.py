"""Training a suite with `transformers.Trainer`: its checkpoints, its losses, and going on where it was interrupted."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from pythia_dynamics.checkpoints.registry import branch
from pythia_dynamics.device import resolve_device
from pythia_dynamics.errors import NonFiniteError, PythiaDynError, optional_import
from pythia_dynamics.files import atomic_file
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.quiet import quiet
from pythia_dynamics.training.suite import (
    SUITE,
    Loss,
    Material,
    Suite,
    describe,
    is_finished,
    prepare,
    read_losses,
    replace_suite,
    write_losses,
    write_suite,
)
from pythia_dynamics.training.text import Text

__all__ = ["new_model", "train_suite"]

_STATE, _PLAN, _COMPLETE = "trainer", "plan.json", "complete"
_ONE_THREAD = 128  # d_model up to which a second thread only costs


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
    """Train a GPT-NeoX by AdamW on `text` and write the suite to `out`; `progress` counts training steps.

    A finished suite of the same plan and text is left as it is; another one is replaced when the new one is finished.
    While it trains, everything is in ``.<name>.partial`` beside it, with the Trainer's own checkpoint of at most
    `resume_seconds` ago. An interrupted training goes on from there when it is called again, and on a CPU ends with
    the very weights that an undisturbed one has. The same plan gives the same suite on the same machine.

    `device` is ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``mps``; `threads` are those of torch on a CPU
    (default: one for a d_model up to 128, which gains nothing from a second one). `callbacks` are given to the Trainer
    as well, which logs at the interval of the checkpoints.

    Raises `CorpusError` when the text is too short to train on, `NonFiniteError` when the training diverges,
    `PythiaDynError` when `out` holds something else or another process is training it.
    """
    out = Path(out)
    about = describe(text, plan)
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            if not _holds(partial / SUITE, about):  # otherwise only its renaming was interrupted
                if is_finished(out, about):
                    return Suite(out, fresh=False)
                with _threads(threads or (1 if plan.d_model <= _ONE_THREAD else torch.get_num_threads())), quiet():
                    _train(partial, about, prepare(text, plan), plan, device, resume_seconds, callbacks, progress)
            replace_suite(out, partial, plan.saved_steps)
    except Timeout:
        raise PythiaDynError(f"another process is training {out}; wait for it or name another directory") from None
    return Suite(out, fresh=True)


def new_model(plan: TrainingPlan, vocab: int) -> GPTNeoXForCausalLM:
    """The untrained model of a plan, seeded; the random states are left as they were."""
    config = GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=plan.d_model,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        intermediate_size=4 * plan.d_model,
        max_position_embeddings=plan.context,
        hidden_dropout=plan.dropout,
        attention_dropout=plan.dropout,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        dtype=plan.dtype,  # of the files
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = GPTNeoXForCausalLM(config)
        if plan.initialisation == "pytorch":
            for module in model.modules():
                if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                    module.reset_parameters()
    return model


def _train(
    partial: Path,
    about: dict[str, Any],
    material: Material,
    plan: TrainingPlan,
    device: str,
    resume_seconds: float,
    callbacks: Sequence[TrainerCallback],
    progress: Progress,
) -> None:
    """Train from the start, or from the last checkpoint in `partial` where that is of the same training."""
    if not _holds(partial / _PLAN, about):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with atomic_file(partial / _PLAN) as file:
            file.write(json.dumps(about).encode())
    model = new_model(plan, len(material.tokenizer))
    model.config.bos_token_id, model.config.eos_token_id = (
        material.tokenizer.bos_token_id,
        material.tokenizer.eos_token_id,
    )
    checkpoint = _last_checkpoint(partial / _STATE)
    if checkpoint is not None:
        # Trainer of transformers 5 leaves out whatever the files call by another name than the model: the head.
        whole = GPTNeoXForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        model.load_state_dict(whole.state_dict())
    writer = _Suite(partial, material, plan)
    trainer = Trainer(
        model=model,
        args=_arguments(partial / _STATE, plan, device),
        train_dataset=_Windows(material.training, plan),
        data_collator=_as_it_is,
        callbacks=[writer, _Resumable(resume_seconds), _Report(progress), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    shutil.rmtree(partial / _STATE, ignore_errors=True)
    (partial / _PLAN).unlink()
    write_suite(partial, material, about)


def _arguments(out: Path, plan: TrainingPlan, device: str) -> TrainingArguments:
    with optional_import("training a suite", "train"):
        import accelerate  # noqa: F401  (TrainingArguments needs it)

    kind = resolve_device(device).type
    steps = plan.saved_steps
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.batch,
        train_sampling_strategy="sequential",  # the windows are drawn at random already
        remove_unused_columns=False,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine" if plan.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        adam_beta2=plan.adam_beta2,
        max_grad_norm=plan.max_grad_norm,
        logging_steps=steps[-1] - steps[-2] if len(steps) > 1 else steps[-1],
        logging_nan_inf_filter=False,
        save_strategy="no",  # `_Resumable` asks for the Trainer's checkpoints, by the clock
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=plan.seed,
        use_cpu=kind == "cpu",
        dataloader_pin_memory=kind == "cuda",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else every GPU there is takes a batch of this size, and the plan is another one
    return arguments


class _Windows(Dataset[dict[str, torch.Tensor]]):
    """As many random windows of the tokens as training will ask for, the same for the same seed, a batch at a time."""

    def __init__(self, tokens: NDArray[np.int64], plan: TrainingPlan) -> None:
        self.tokens = torch.from_numpy(tokens)
        self.offsets = torch.arange(plan.context)
        starts = np.random.default_rng(plan.seed).integers(
            0, len(tokens) - plan.context, size=plan.max_steps * plan.batch
        )
        self.starts = torch.from_numpy(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        windows = self.tokens[self.starts[indices][:, None] + self.offsets]
        return {"input_ids": windows, "labels": windows}


def _as_it_is(batch: Any) -> Any:
    return batch


class _Suite(TrainerCallback):
    """Writes the checkpoints and measures the losses while the Trainer trains."""

    def __init__(self, out: Path, material: Material, plan: TrainingPlan) -> None:
        self.out, self.saved = out, frozenset(plan.saved_steps)
        self.tokenizer_files = [Path(name) for name in _save_tokenizer(material.tokenizer, out / "tokenizer")]
        self.dtype = getattr(torch, plan.dtype)
        self.batch = plan.batch
        rng = np.random.default_rng((plan.seed, 1))
        self.windows = [_windows(part, plan, rng) for part in (material.training, material.validation)]
        self.losses: list[Loss] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.losses = [row for row in read_losses(self.out) if row.step <= state.global_step]
        if state.global_step == 0 and 0 in self.saved and not self.losses:
            self.record(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.saved:
            self.record(kwargs["model"], state.global_step)

    def record(self, model: GPTNeoXForCausalLM, step: int) -> None:
        """Measure the losses, write them and the weights."""
        training, validation = (self.loss(model, windows) for windows in self.windows)
        if not math.isfinite(training + validation):
            raise NonFiniteError(f"the loss is {training} at step {step}: training diverged; lower --learning-rate")
        self.save(model, step)
        self.losses.append(Loss(step, training, validation))
        write_losses(self.out, self.losses)

    def loss(self, model: GPTNeoXForCausalLM, windows: torch.Tensor) -> float:
        """Mean loss over the windows, always the same ones, without dropout: nothing here touches a random state."""
        model.eval()  # type: ignore[no-untyped-call]
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        with torch.no_grad():
            for batch in torch.split(windows, self.batch):
                on_device = batch.to(model.device)
                total += model(input_ids=on_device, labels=on_device).loss.double() * len(batch)
        model.train()
        return float(total) / len(windows)

    def save(self, model: GPTNeoXForCausalLM, step: int) -> None:
        """Write one checkpoint under a temporary name, then give it its own."""
        target, temporary = self.out / branch(step), self.out / f".{branch(step)}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        weights = {name: tensor.detach().to("cpu", self.dtype) for name, tensor in model.state_dict().items()}
        model.save_pretrained(temporary, state_dict=weights)
        for file in self.tokenizer_files:
            shutil.copy(file, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)


class _Resumable(TrainerCallback):
    """Asks for a checkpoint of the Trainer every so many seconds, and marks those that are whole."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.last >= self.seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
        self.last = time.monotonic()


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def _windows(tokens: NDArray[np.int64], plan: TrainingPlan, rng: np.random.Generator) -> torch.Tensor:
    """The windows (n, context) that the loss of a part is measured on."""
    starts = rng.integers(0, len(tokens) - plan.context, size=plan.eval_batches * plan.batch)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(plan.context)])


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> tuple[str, ...]:
    files: tuple[str, ...] = tokenizer.save_pretrained(directory)
    return tuple(name for name in files if Path(name).is_file())


def _last_checkpoint(directory: Path) -> Path | None:
    """The Trainer's newest checkpoint that is whole; those that are not are removed."""
    whole: dict[int, Path] = {}
    for path in directory.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            whole[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return whole[max(whole)] if whole else None


def _holds(file: Path, about: dict[str, Any]) -> bool:
    """Whether a JSON file says (at least) this."""
    try:
        found = json.loads(file.read_text())
        return {key: found.get(key) for key in about} == about
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
