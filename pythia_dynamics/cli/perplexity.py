"""The command ``perplexity``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.device import DTYPES
from pythia_dynamics.evaluation.settings import HEADS, MODES, PRODUCTS, EvaluationSettings, Mode, requested_steps

if TYPE_CHECKING:
    from pythia_dynamics.checkpoints.source import Source

    pass

__all__ = ["perplexity"]

_WORTH_A_HINT = 1.5
"""Gain in speed from which a smaller precision is worth its rounding."""


def _gigabytes(context: click.Context, parameter: click.Parameter, value: float | None) -> int | None:
    """Convert the value of an option from gigabytes to bytes."""
    return None if value is None else int(value * 1e9)


@app.main.command()
@app.with_models(required=False)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(MODES),
    multiple=True,
    default=("forward",),
    show_default=True,
    help="Definition of the perplexity; repeatable, each checkpoint is loaded once for all.",
)
@click.option(
    "--corpus",
    default=EvaluationSettings.corpus,
    show_default=True,
    help="lambada, cimec/lambada, or a .jsonl or text file.",
)
@click.option("--limit", type=click.IntRange(1), default=EvaluationSettings.limit, show_default=True, help="Passages.")
@app.with_steps
@click.option(
    "--source", default=EvaluationSettings.source, show_default=True, help="hub, or a directory of checkpoints."
)
@app.with_devices
@click.option("--dtype", type=click.Choice(DTYPES), default=EvaluationSettings.dtype, show_default=True)
@click.option("--tf32", is_flag=True, help="Allow TF32 in float32 matrix products on CUDA.")
@click.option(
    "--head",
    type=click.Choice(HEADS),
    default=EvaluationSettings.head,
    show_default=True,
    help="W_U to use; ternary: rounded to {−1, 0, +1}·scale, results in a folder of that name.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    default=None,
    help="Held at once: tokens read (forward, last-word), cached positions (unmask).  [default: by mode and device]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    default=EvaluationSettings.max_tokens,
    help="Cut passages after so many tokens (forward, unmask).  [default: the context of the model]",
)
@click.option(
    "--products",
    type=click.Choice(PRODUCTS),
    default=EvaluationSettings.products,
    show_default=True,
    help="Linear layers of unmask on a CPU; the notes of a row say which were used.",
)
@click.option(
    "--disk-budget",
    type=click.FloatRange(0),
    default=None,
    callback=_gigabytes,
    help="GB of downloads on disk.  [default: up to 3 checkpoints ahead in 16 GB, 1 at least]",
)
@app.with_overwrite
@app.with_suite
@click.option("--show", metavar="PHRASE", default=None, help="Print the completion of each prefix of a phrase (Fig 5).")
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def perplexity(
    models: tuple[str, ...],
    modes: tuple[Mode, ...],
    show: str | None,
    suite: dict[str, Any],
    cache: Path,
    results: Path,
    **options: Any,
) -> None:
    """Forward, causal-unmasking and last-word perplexity of every checkpoint."""
    from pythia_dynamics.evaluation.corpus import load_corpus
    from pythia_dynamics.evaluation.snapshots import checkpoint_source
    from pythia_dynamics.history.cache import choose_model

    settings = EvaluationSettings.from_mapping(options)
    answer, found = app.Answer("perplexity"), {}
    for name in app.model_names(models, cache, answer):
        with answer.collect():
            source = checkpoint_source(choose_model(name, cache, suite), settings.source)
            source.revisions()  # a Hub that cannot be reached is said before anything else is loaded
            found[name] = source
    if not found:
        answer.finish()
    _hint_at_bfloat16(settings)
    if show is None:  # loaded once for all models
        settings = replace(settings, corpus=load_corpus(settings.corpus, limit=settings.limit))
    for name, source in found.items():
        with answer.collect():
            app.echo(f"{name} is {source.location}")
            if show is None:
                answer.facts += _evaluate(source, modes, settings, results)
            else:
                answer.facts.append(_complete(source, show, settings))
    if gaps := sum(len(fact.get("missing", ())) for fact in answer.facts):
        answer.fail(f"{gaps} steps have no perplexity (see above); run the same command again to retry them")
    elif invalid := sum(fact.get("nonfinite", 0) + fact.get("overflow", 0) for fact in answer.facts):
        answer.fail(f"{invalid} sentences have no perplexity; the columns nonfinite and overflow count them by step")
    answer.finish()


def _hint_at_bfloat16(settings: EvaluationSettings) -> None:
    """Say so where a processor would be faster in bfloat16."""
    from pythia_dynamics.device import resolve_device
    from pythia_dynamics.evaluation.products import bfloat16_gain

    on_cpu = all(resolve_device(device).type == "cpu" for device in settings.devices)
    if on_cpu and settings.dtype == "float32" and (gain := bfloat16_gain()) >= _WORTH_A_HINT:
        app.echo(
            f"this processor multiplies {gain:.1f} times as fast in bfloat16: --dtype bfloat16 changes forward "
            "perplexities by less than 0.1 %, those of unmasking by up to 3 %"
        )


def _evaluate(
    source: Source, modes: tuple[Mode, ...], settings: EvaluationSettings, results: Path
) -> list[dict[str, Any]]:
    """Evaluate a model, draw and print the results, and return the facts of each mode."""
    from pythia_dynamics.evaluation.runner import evaluate
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import draw_perplexity

    out = Results(source.name, results)
    if settings.head != "as-is":  # a separate folder inside the results of the unchanged head
        out = Results(settings.head, out.path)
    with app.echo_warnings(), app.bar(f"{source.name} perplexity", "step") as progress:
        scores = evaluate(source, modes, settings, out=out.path, progress=progress)
    facts = []
    for outcome in draw_perplexity(out, scores):
        app.echo_outcome(outcome)
        app.echo_steps("missing", outcome.facts["missing"])
        facts.append({"model": source.name, "mode": outcome.kind, "files": outcome.files, **outcome.facts})
    return facts


def _complete(source: Source, phrase: str, settings: EvaluationSettings) -> dict[str, Any]:
    """Print the completions of a phrase by the last of the steps, and return them as facts."""
    from pythia_dynamics.evaluation.portrait import completions

    steps = requested_steps(settings.steps)
    with app.echo_warnings():
        lines = completions(source, phrase, settings, step=steps[-1] if steps else None)
    for line in lines:
        app.echo(f"{line.perplexity:10.2f}  {line.given}│{line.generated}")
    return {"model": source.name, "completions": [asdict(line) for line in lines]}
