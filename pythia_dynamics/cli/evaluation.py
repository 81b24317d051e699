"""What the commands that evaluate every checkpoint on a text share: their options, and the models they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.device import DTYPES
from pythia_dynamics.evaluation.settings import HEADS, EvaluationSettings, requested_steps

if TYPE_CHECKING:
    from pythia_dynamics.checkpoints.source import Source
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.shard import Shard

__all__ = ["find_sources", "hint_at_bfloat16", "results_of", "steps_of", "with_memory", "with_text"]

Command = Callable[..., Any]

_WORTH_A_HINT = 1.5
"""Gain in speed from which a smaller precision is worth its rounding."""


def _gigabytes(context: click.Context, parameter: click.Parameter, value: float | None) -> int | None:
    """Convert the value of an option from gigabytes to bytes."""
    return None if value is None else int(value * 1e9)


def _with(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """All of several options, in this order in the help."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


with_text = _with(
    click.option(
        "--corpus",
        default=EvaluationSettings.corpus,
        show_default=True,
        help="lambada, cimec/lambada, or a .jsonl or text file.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), default=EvaluationSettings.limit, show_default=True, help="Passages."
    ),
    app.with_steps,
    click.option(
        "--source", default=EvaluationSettings.source, show_default=True, help="hub, or a directory of checkpoints."
    ),
    app.with_devices,
    click.option("--dtype", type=click.Choice(DTYPES), default=EvaluationSettings.dtype, show_default=True),
    click.option("--tf32", is_flag=True, help="Allow TF32 in float32 matrix products on CUDA."),
    click.option(
        "--head",
        type=click.Choice(HEADS),
        default=EvaluationSettings.head,
        show_default=True,
        help="W_U to use; ternary: rounded to {−1, 0, +1}·scale, results in a folder of that name.",
    ),
)
"""The options for the text, the checkpoints and how they are run."""

with_memory = _with(
    click.option(
        "--batch-tokens",
        type=click.IntRange(1),
        default=None,
        help="Held at once: tokens read; cached positions (unmask).  [default: by mode and device]",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(2),
        default=EvaluationSettings.max_tokens,
        help="Cut passages after so many tokens (not last-word).  [default: the context of the model]",
    ),
    click.option(
        "--disk-budget",
        type=click.FloatRange(0),
        default=None,
        callback=_gigabytes,
        help="GB of downloads on disk.  [default: up to 3 checkpoints ahead in 16 GB, 1 at least]",
    ),
)
"""The options for what is held at once."""


def find_sources(
    answer: app.Answer, models: tuple[str, ...], cache: Path, suite: dict[str, Any], settings: EvaluationSettings
) -> dict[str, Source]:
    """Where the checkpoints of each model are, by the name that was given. A model that cannot be found is a failure;
    without any other, the command ends."""
    from pythia_dynamics.evaluation.snapshots import checkpoint_source
    from pythia_dynamics.history.cache import choose_model

    found = {}
    for name in app.model_names(models, cache, answer):
        with answer.collect():
            source = checkpoint_source(choose_model(name, cache, suite), settings.source)
            source.revisions()  # a Hub that cannot be reached is said before anything else is loaded
            found[name] = source
    if not found:
        answer.finish()
    return found


def hint_at_bfloat16(settings: EvaluationSettings) -> None:
    """Say so where a processor would be faster in bfloat16."""
    from pythia_dynamics.device import resolve_device
    from pythia_dynamics.evaluation.products import bfloat16_gain

    on_cpu = all(resolve_device(device).type == "cpu" for device in settings.devices)
    if on_cpu and settings.dtype == "float32" and (gain := bfloat16_gain()) >= _WORTH_A_HINT:
        app.echo(
            f"this processor multiplies {gain:.1f} times as fast in bfloat16: --dtype bfloat16 changes forward "
            "perplexities by less than 0.1 %, those of unmasking by up to 3 %"
        )


def steps_of(shard: Shard | None, source: Source, settings: EvaluationSettings) -> EvaluationSettings | None:
    """The settings for the steps of a job of an array; None, and a line that says so, where it has none."""
    if shard is None:
        return settings
    requested = requested_steps(settings.steps)
    own = tuple(shard.take(sorted(source.revisions()) if requested is None else requested))
    app.echo(f"shard {shard}: {len(own)} steps")
    return replace(settings, steps=own) if own else None


def results_of(source: Source, settings: EvaluationSettings, results: Path) -> Results:
    """The folder of a model; with another head, a separate folder inside the results of the unchanged head."""
    from pythia_dynamics.results.folder import Results

    out = Results(source.name, results)
    return out if settings.head == "as-is" else Results(settings.head, out.path)
