"""The plan of a training: every number of it, and the four sizes of "A Large Language Model Order Parameter"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from pythia_dynamics.checkpoints.learning_rate import LearningRate
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.training.choices import Architecture, FileDtype, Initialisation, Schedule, TokenizerKind

__all__ = ["BLOG_PLAN", "DEMO_SIZE", "SIZES", "TrainingPlan", "plan_named", "plan_of_size"]

_LOG_STEPS = tuple(2**k for k in range(10))
"""1, 2, 4 … 512: the early steps that Pythia publishes."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Every number that decides what a suite will be. The defaults are the demo's: about 40 s on one core.

    Parameters
    ----------
    arch
        Architecture of the model. ``nanogpt`` is trained as the blog trains it: a window is one token longer, so that
        each of its `context` positions predicts one, and weight decay is applied to all parameters. With ``gpt-neox``,
        as with every model of transformers, the last position predicts nothing, and biases and LayerNorms do not decay.
    d_model, layers, heads
        Width of the model, number of its blocks, attention heads of a block. `heads` divides `d_model`.
    context
        Tokens in a window, at least 2.
    tokenizer
        Kind of the tokenizer, which is made from the text.
    vocab
        Largest number of entries of a ``bpe`` tokenizer. One of ``characters`` has those of the text.
    batch
        Windows in a batch.
    max_steps
        Steps of the training.
    checkpoints
        Number of evenly spaced checkpoints. None: one checkpoint `every` so many steps, and one at the end.
    every
        Steps between checkpoints where `checkpoints` is None.
    log_spaced
        Whether steps 1, 2, 4 … 512 have checkpoints too.
    step_zero
        Whether the untrained model has a checkpoint.
    eval_batches
        Batches of each part of the text on which a loss is measured. It is measured at each checkpoint.
    learning_rate
        Largest learning rate of AdamW.
    schedule
        Learning rate after the warm-up.
    warmup_steps
        Steps over which the learning rate rises from 0.
    weight_decay
        Decoupled weight decay of AdamW.
    adam_beta2
        Decay rate of AdamW's second moment; that of the first is 0.9.
    max_grad_norm
        Norm to which gradients are clipped; 0 clips nothing.
    dropout
        Dropout of attention matrices and of what attention and MLP add, with ``gpt-neox`` of the embedding too;
        0 ≤ dropout < 1.
    held_out
        Share of the text that is not trained on, between 0 and 1.
    initialisation
        How the weights are drawn.
    dtype
        Dtype of the weights in the files. Training is in float32.
    seed
        Seed of the weights, the windows and the dropout.

    Raises
    ------
    PythiaDynError
        For numbers outside their range, or that do not fit together.
    UnknownNameError
        For a word that the field does not take.
    """

    arch: Architecture = "gpt-neox"
    d_model: int = 64
    layers: int = 3
    heads: int = 4
    context: int = 64
    tokenizer: TokenizerKind = "bpe"
    vocab: int = 1024
    batch: int = 8
    max_steps: int = 1430
    checkpoints: int | None = 143
    every: int = 500
    log_spaced: bool = False
    step_zero: bool = False
    eval_batches: int = 2
    learning_rate: float = 4e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    held_out: float = 0.1
    initialisation: Initialisation = "neox"
    dtype: FileDtype = "float16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("d_model", "layers", "heads", "vocab", "batch", "max_steps", "every", "eval_batches"):
            if getattr(self, name) < 1:
                raise PythiaDynError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.context < 2:
            raise PythiaDynError(f"context must be at least 2 tokens; got {self.context}")
        if self.d_model % self.heads:
            raise PythiaDynError(f"d_model {self.d_model} is not a multiple of the {self.heads} heads")
        if self.checkpoints is not None and not 1 <= self.checkpoints <= self.max_steps:
            raise PythiaDynError(f"{self.checkpoints} checkpoints do not fit into {self.max_steps} steps")
        if not 0 <= self.dropout < 1:
            raise PythiaDynError(f"dropout must be at least 0 and less than 1; got {self.dropout}")
        if not 0 < self.held_out < 1:
            raise PythiaDynError(f"held_out is a share of the text, between 0 and 1; got {self.held_out}")
        hints = get_type_hints(type(self))
        for name in ("arch", "tokenizer", "schedule", "initialisation", "dtype"):
            if getattr(self, name) not in get_args(hints[name]):
                raise UnknownNameError(name, getattr(self, name), get_args(hints[name]))

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """The steps at which weights are saved and losses measured, in order; the last one is `max_steps`."""
        if self.checkpoints is None:
            steps = {*range(self.every, self.max_steps, self.every), self.max_steps}
        else:
            steps = {self.max_steps * k // self.checkpoints for k in range(1, self.checkpoints + 1)}
        if self.log_spaced:
            steps |= {step for step in _LOG_STEPS if step <= self.max_steps}
        if self.step_zero:
            steps.add(0)
        return tuple(sorted(steps))

    @property
    def learning_rate_schedule(self) -> LearningRate:
        """The learning rate by step, as the Trainer has it with `schedule`."""
        end = max(self.max_steps, self.warmup_steps + 1)  # a warmup may be longer than the training
        return LearningRate(self.learning_rate, end, self.warmup_steps, decay=self.schedule)


BLOG_PLAN = TrainingPlan(
    context=256,
    tokenizer="characters",
    batch=64,
    max_steps=20_000,
    checkpoints=None,
    every=500,
    step_zero=True,
    eval_batches=200,
    learning_rate=3e-4,
    schedule="constant",
    warmup_steps=0,
    weight_decay=0.01,
    adam_beta2=0.999,
    max_grad_norm=0.0,
    dropout=0.2,
    dtype="float32",
)
"""What the trainings of the blog's four models have in common (its ``gpt.py``), except the architecture and its
initialisation: ``nanogpt`` and ``pytorch``."""

SIZES: dict[str, dict[str, int]] = {
    "10k": {"d_model": 32, "heads": 2, "layers": 1},
    "0.1m": {"d_model": 64, "heads": 2, "layers": 2},
    "1m": {"d_model": 128, "heads": 4, "layers": 4},
    "10m": {"d_model": 384, "heads": 6, "layers": 6},
}
"""The four models of the blog; everything else about their training is the same."""


DEMO_SIZE = "demo"
"""Name of the plan of ``pythia-dyn demo``, the defaults of `TrainingPlan`."""


def plan_of_size(size: str, **changes: Any) -> TrainingPlan:
    """The plan of one of the blog's four models; with ``arch="nanogpt"`` that of the blog's ``gpt.py``.

    ``nanogpt`` is initialised as ``pytorch`` unless `changes` says otherwise, ``gpt-neox`` as ``neox``.

    Parameters
    ----------
    size
        One of `SIZES`, in upper or lower case.
    **changes
        Fields of `TrainingPlan` with other values. None leaves the blog's value.

    Raises
    ------
    UnknownNameError
        For an unknown size or field.
    PythiaDynError
        For numbers that do not fit together.
    """
    if size.lower() not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    return _changed(_changed(BLOG_PLAN, SIZES[size.lower()]), changes)


def plan_named(name: str, **changes: Any) -> TrainingPlan:
    """The plan of `DEMO_SIZE`, or of one of the blog's models as `plan_of_size`.

    Parameters
    ----------
    name
        ``demo``, or one of `SIZES`; in upper or lower case.
    **changes
        Fields of `TrainingPlan` with other values. None leaves the value of the plan.

    Raises
    ------
    UnknownNameError
        For an unknown name or field.
    PythiaDynError
        For numbers that do not fit together.
    """
    if name.lower() == DEMO_SIZE:
        return _changed(TrainingPlan(), changes)
    if name.lower() not in SIZES:
        raise UnknownNameError("size", name, (DEMO_SIZE, *SIZES))
    return plan_of_size(name, **changes)


def _changed(plan: TrainingPlan, changes: Mapping[str, Any]) -> TrainingPlan:
    """A plan with the `changes` that are not None."""
    known = [field.name for field in fields(TrainingPlan)]
    for name in changes:
        if name not in known:
            raise UnknownNameError("training option", name, known)
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if given.get("arch") == "nanogpt":
        given.setdefault("initialisation", "pytorch")
    if "every" in given:
        given.setdefault("checkpoints", None)  # a number of checkpoints would decide the steps
    return replace(plan, **given)
