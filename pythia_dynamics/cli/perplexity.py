"""The command ``perplexity``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.evaluation import find_sources, hint_at_bfloat16, results_of, steps_of, with_memory, with_text
from pythia_dynamics.cli.shards import cluster, with_dask, with_shard
from pythia_dynamics.evaluation.settings import MODES, PRODUCTS, EvaluationSettings, Mode, requested_steps

if TYPE_CHECKING:
    from pythia_dynamics.checkpoints.source import Source
    from pythia_dynamics.executors import Pool
    from pythia_dynamics.shard import Shard

__all__ = ["perplexity"]


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
@with_text
@with_memory
@click.option(
    "--products",
    type=click.Choice(PRODUCTS),
    default=EvaluationSettings.products,
    show_default=True,
    help="Linear layers of unmask on a CPU; the notes of a row say which were used.",
)
@app.with_overwrite
@app.with_suite
@click.option("--show", metavar="PHRASE", default=None, help="Print the completion of each prefix of a phrase (Fig 5).")
@with_shard
@with_dask
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def perplexity(
    models: tuple[str, ...],
    modes: tuple[Mode, ...],
    show: str | None,
    shard: Shard | None,
    dask: str | None,
    suite: dict[str, Any],
    cache: Path,
    results: Path,
    **options: Any,
) -> None:
    """Forward, causal-unmasking and last-word perplexity of every checkpoint."""
    from pythia_dynamics.evaluation.corpus import load_corpus

    settings = EvaluationSettings.from_mapping(options)
    answer = app.Answer("perplexity")
    found = find_sources(answer, models, cache, suite, settings)
    hint_at_bfloat16(settings)
    if show is None:  # loaded once for all models
        settings = replace(settings, corpus=load_corpus(settings.corpus, limit=settings.limit))
    with cluster(dask, shard) as executor:
        for name, source in found.items():
            with answer.collect():
                app.echo(f"{name} is {source.location}")
                if show is not None:
                    answer.facts.append(_complete(source, show, settings))
                elif own := steps_of(shard, source, settings):
                    answer.facts += _evaluate(source, modes, own, results, executor)
    if gaps := sum(len(fact.get("missing", ())) for fact in answer.facts):
        answer.fail(f"{gaps} steps have no perplexity (see above); run the same command again to retry them")
    elif invalid := sum(fact.get("nonfinite", 0) + fact.get("overflow", 0) for fact in answer.facts):
        answer.fail(f"{invalid} sentences have no perplexity; the columns nonfinite and overflow count them by step")
    answer.finish()


def _evaluate(
    source: Source, modes: tuple[Mode, ...], settings: EvaluationSettings, results: Path, executor: Pool | None
) -> list[dict[str, Any]]:
    """Evaluate a model, draw and print the results, and return the facts of each mode."""
    from pythia_dynamics.evaluation.runner import evaluate
    from pythia_dynamics.studies.pipeline import draw_perplexity

    out = results_of(source, settings, results)
    with app.echo_warnings(), app.bar(f"{source.name} perplexity", "step") as progress:
        scores = evaluate(source, modes, settings, out=out.path, progress=progress, executor=executor)
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
