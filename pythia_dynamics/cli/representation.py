"""The command ``representation``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_dynamics.cli import app
from pythia_dynamics.cli.evaluation import find_sources, hint_at_bfloat16, results_of, steps_of, with_memory, with_text
from pythia_dynamics.cli.shards import cluster, with_dask, with_shard
from pythia_dynamics.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    from pythia_dynamics.shard import Shard

__all__ = ["representation"]


@app.main.command()
@app.with_models(required=False)
@with_text
@with_memory
@app.with_overwrite
@with_shard
@with_dask
@app.with_suite
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def representation(
    models: tuple[str, ...],
    shard: Shard | None,
    dask: str | None,
    suite: dict[str, Any],
    cache: Path,
    results: Path,
    **options: Any,
) -> None:
    """Geometry of the last hidden states of every checkpoint, and KL from n-grams of the text.

    Anisotropy, RankMe, effective rank and α-ReQ of the states at all positions of the text, each beside what isotropic
    Gaussian states would give; KL(unigram ‖ model) and KL(bigram ‖ model).
    """
    from pythia_dynamics.evaluation.corpus import load_corpus
    from pythia_dynamics.evaluation.representation import representation as evaluate
    from pythia_dynamics.studies.representation import draw_representation

    settings = EvaluationSettings.from_mapping(options)
    answer = app.Answer("representation")
    found = find_sources(answer, models, cache, suite, settings)
    hint_at_bfloat16(settings)
    settings = replace(settings, corpus=load_corpus(settings.corpus, limit=settings.limit))  # once for all models
    with cluster(dask, shard) as executor:
        for name, source in found.items():
            with answer.collect():
                app.echo(f"{name} is {source.location}")
                if (own := steps_of(shard, source, settings)) is None:
                    continue
                given = {field.name: getattr(own, field.name) for field in fields(own)}
                out = results_of(source, settings, results)
                with app.echo_warnings(), app.bar(f"{source.name} representation", "step") as progress:
                    dataset = evaluate(source, out=out.path, progress=progress, executor=executor, **given)
                outcome = draw_representation(out, dataset)
                app.echo_outcome(outcome)
                app.echo_steps("missing", outcome.facts["missing"])
                answer.facts.append({"model": source.name, "files": list(outcome.files), **outcome.facts})
    if gaps := sum(len(fact["missing"]) for fact in answer.facts):
        answer.fail(f"{gaps} steps have no representation (see above); run the same command again to retry them")
    elif invalid := sum(fact["nonfinite"] for fact in answer.facts):
        answer.fail(f"{invalid} hidden states are not finite; the column nonfinite counts them by step")
    answer.finish()
