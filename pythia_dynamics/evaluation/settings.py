"""Settings of an evaluation: their names, defaults and checks.

The module imports neither torch nor NumPy, so that the command line takes its choices and defaults from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

from pythia_dynamics.checkpoints.open import HUB, SourceName
from pythia_dynamics.checkpoints.registry import parse_steps
from pythia_dynamics.device import DTYPES, Dtype, resolve_device
from pythia_dynamics.errors import PythiaDynError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from pythia_dynamics.evaluation.corpus import Corpus

__all__ = [
    "HEADS",
    "MODES",
    "PRODUCTS",
    "EvaluationSettings",
    "Head",
    "Mode",
    "ModelSettings",
    "Products",
    "check_modes",
    "requested_steps",
]

Mode = Literal["forward", "unmask", "last-word", "representation"]
"""What is evaluated. Three definitions of perplexity: of the text (Garden, Eq 6), of what the model writes by causal
unmasking (Garden, §4.2.2), and of the last word (``lambada_openai`` of lm-evaluation-harness); and the geometry of the
last hidden states."""

Head = Literal["as-is", "ternary"]
"""What is done to W_U before it is used; ``ternary`` rounds it to {−1, 0, +1}·scale."""

Products = Literal["auto", "plain", "packed"]
"""Linear layers of unmasking on a CPU: with weights as they are, or packed for oneDNN; ``auto`` takes the faster."""

MODES: tuple[Mode, ...] = get_args(Mode)[:3]
"""The definitions of perplexity."""
HEADS: tuple[Head, ...] = get_args(Head)
PRODUCTS: tuple[Products, ...] = get_args(Products)


def check_modes(modes: Iterable[str], known: Sequence[Mode] = MODES) -> tuple[Mode, ...]:
    """The modes without repetitions, in the order given. Raises `UnknownNameError` for other names and for none."""
    chosen = tuple(modes) or ("",)
    for mode in chosen:
        _check_name("mode", mode, known)
    return cast("tuple[Mode, ...]", tuple(dict.fromkeys(chosen)))


def requested_steps(steps: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Steps in increasing order without repetitions, from numbers or a specification such as ``1000:143000:1000``.

    None means all steps of the source. Raises `PythiaDynError` for a specification that cannot be read.
    """
    parsed = parse_steps(steps) if isinstance(steps, str) else steps
    return None if parsed is None else tuple(sorted({int(step) for step in parsed}))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How a checkpoint is loaded and run.

    Parameters
    ----------
    device
        ``"auto"`` (CUDA, else MPS, else the CPU), ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"cpu"`` or a `torch.device`.
    dtype
        Precision of the weights and activations, one of `DTYPES`; log-softmax is always float32. The default is
        float32 because attention scores of Pythia exceed the range of float16.
    head
        One of `HEADS`: what is done to W_U before it is used.
    tf32
        Allow TF32 in float32 matrix products on CUDA.
    source
        ``"hub"``, or a directory of checkpoints to read instead.

    Raises
    ------
    UnknownNameError
        For an unknown device, dtype or head.
    PythiaDynError
        For a device that this machine does not have.
    """

    device: str | torch.device = "auto"
    dtype: Dtype = "float32"
    head: Head = "as-is"
    tf32: bool = False
    source: SourceName | str = HUB

    def __post_init__(self) -> None:
        for device in self.devices:
            resolve_device(device)
        _check_name("dtype", self.dtype, DTYPES)
        _check_name("head", self.head, HEADS)

    @property
    def devices(self) -> tuple[str | torch.device, ...]:
        """The devices that are named: one."""
        return (self.device,)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a mapping from names of fields to values; the other fields have their defaults.

        Raises `UnknownNameError`, with the nearest names, for a name that is no field.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            _check_name("setting", name, known)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ModelSettings):
    """How a perplexity is evaluated, besides the model and the mode. Adds to the parameters of `ModelSettings`:

    Parameters
    ----------
    device
        Also several, separated by commas: ``"cuda:0,cuda:1"``. Each has a process that holds one model and evaluates
        its share of the steps. A GPU can be named once; ``"cpu,cpu"`` are two processes with half of the threads each.
    corpus
        The text: what `load_corpus` takes.
    limit
        Number of passages, the first ones of the corpus; None takes all. The default is the paper's 500.
    steps
        Steps to evaluate: numbers, or a specification such as ``"1000:143000:1000"``; None takes all there are.
    batch_tokens
        Bound on what is held at once: tokens read; in unmasking key-value positions, which are some hundred times as
        many, so that one number seldom serves both. None chooses by device.
        It is noted with each row, and smaller there where memory ran short.
    max_tokens
        Number of tokens, at least 2, after which passages are cut, but in the mode last-word. None cuts at the
        context of the model.
    products
        One of `PRODUCTS`: the linear layers of unmasking on a CPU. The two ways round differently, so that all
        processes of a run take one: that of the rows which this machine has computed before, else the faster one,
        which is measured once. The notes of each row say which.
    disk_budget
        Bytes of downloaded checkpoints to keep on disk; those that are done are kept as well, while they fit. None
        keeps the current one and up to three that come next: always one, and more while all have at most 16 GB.
        Several devices have equal parts of the budget; without one, each keeps as many.
    overwrite
        Replace a table of results that was computed under other settings, once there is a row to replace it with.
        Otherwise it is an error, and the table stays.

    Raises
    ------
    PythiaDynError
        For a number that is too small, for steps that cannot be read, and for a GPU that is named twice.
    """

    corpus: str | Path | Corpus = "lambada"
    limit: int | None = 500
    steps: str | Sequence[int] | None = None
    batch_tokens: int | None = None
    max_tokens: int | None = None
    products: Products = "auto"
    disk_budget: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Two tokens are the shortest text with a prediction: the first one is context only.
        for name, least in (("limit", 1), ("batch_tokens", 1), ("max_tokens", 2), ("disk_budget", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PythiaDynError(f"{name} must be at least {least}, not {value}")
        _check_name("products", self.products, PRODUCTS)
        requested_steps(self.steps)
        gpus = [_index(device) for device in map(resolve_device, self.devices) if device.type != "cpu"]
        for kind, index in gpus:
            if gpus.count((kind, index)) > 1:
                raise PythiaDynError(f"--device {self.device} names {kind}:{index} twice; a GPU holds one model")

    @property
    def devices(self) -> tuple[str | torch.device, ...]:
        """The devices that are named, at least one."""
        return tuple(self.device.split(",")) if isinstance(self.device, str) else (self.device,)


def _index(device: torch.device) -> tuple[str, int]:
    """The kind of a GPU and its number: without one, that of the first."""
    return device.type, device.index or 0


def _check_name(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UnknownNameError(kind, name, known)
