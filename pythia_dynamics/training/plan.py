"""What a training will be: every number of it, and the four sizes of "A Large Language Model Order Parameter"."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from pythia_dynamics.errors import PythiaDynError, UnknownNameError

__all__ = ["SIZES", "Initialisation", "TrainingPlan", "plan_of_size"]

Initialisation = Literal["neox", "pytorch"]

_EARLY = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything that decides what a suite will be. Defaults: the demo's, about 40 s on one core.

    At each of `saved_steps` the weights are saved, and the losses measured over `eval_batches` batches of either part
    of the text: `checkpoints` evenly spaced steps or, where that is None, one `every` so many; with `log_spaced` also
    1, 2, 4 … 512, and with `step_zero` the untrained model. `held_out` is the share of the text that is not trained on.

    `initialisation` is ``neox``, normal(0, 0.02) throughout, or ``pytorch``, each layer's default: uniform on
    ±1/√d for the head. `max_grad_norm` 0 clips nothing. `vocab` is of the ``bpe`` tokenizer; that of ``characters`` is
    what characters the text has. `dtype` is that of the files, training is in float32.
    """

    d_model: int = 64
    layers: int = 3
    heads: int = 4
    context: int = 64
    tokenizer: Literal["bpe", "characters"] = "bpe"
    vocab: int = 1024
    batch: int = 8
    max_steps: int = 1430
    checkpoints: int | None = 143
    every: int = 500
    log_spaced: bool = False
    step_zero: bool = False
    eval_batches: int = 2
    learning_rate: float = 4e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.1
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    held_out: float = 0.1
    initialisation: Initialisation = "neox"
    dtype: Literal["float16", "float32"] = "float16"
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
        for name in ("tokenizer", "schedule", "initialisation", "dtype"):
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
            steps |= {step for step in _EARLY if step <= self.max_steps}
        if self.step_zero:
            steps.add(0)
        return tuple(sorted(steps))


_BLOG = TrainingPlan(
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

SIZES: dict[str, dict[str, int]] = {
    "10k": {"d_model": 32, "heads": 2, "layers": 1},
    "0.1m": {"d_model": 64, "heads": 2, "layers": 2},
    "1m": {"d_model": 128, "heads": 4, "layers": 4},
    "10m": {"d_model": 384, "heads": 6, "layers": 6},
}
"""The four models of the blog; everything else about their training is the same."""


def plan_of_size(size: str, **changes: Any) -> TrainingPlan:
    """The training of one of `SIZES` as the blog has it (its `gpt.py`), with `changes` by field name.

    A change to None is none. Raises `UnknownNameError` for a size or field that is not known, `PythiaDynError` for
    numbers that do not go together.
    """
    if size.lower() not in SIZES:
        raise UnknownNameError("size", size, SIZES)
    known = {field.name: getattr(_BLOG, field.name) for field in fields(TrainingPlan)}
    for name in changes:
        if name not in known:
            raise UnknownNameError("training option", name, known)
    given = {name: value for name, value in changes.items() if value is not None}
    return TrainingPlan(**(known | SIZES[size.lower()] | given))
