"""The command ``reproduce order-parameter``, and the group of commands that reproduce a publication."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.training import training_text, with_corpus, with_plan

__all__ = ["order_parameter", "reproduce"]


@app.main.group()
def reproduce() -> None:
    """Reproduce one of the two publications: all its figures, and a verdict on each of its claims."""


@reproduce.command(name="order-parameter", short_help='"A Large Language Model Order Parameter", a blog')
@click.option("--quick", is_flag=True, help="The two small sizes, 3,000 small steps: about five minutes on two cores.")
@click.option("--size", "sizes", multiple=True, help="10k, 0.1m, 1m or 10m; repeatable.  [default: all]")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each size.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the suites, order-10k …  [default: the cache]",
)
@with_corpus
@with_plan
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def order_parameter(
    quick: bool,
    sizes: tuple[str, ...],
    seeds: int,
    out: Path | None,
    corpus: Path | None,
    device: str,
    cache: Path,
    results: Path,
    **changes: Any,
) -> None:
    """The order-parameter blog: four models, loss over step and over b, dL/db, with the published numbers.

    The default architecture and initialisation are the blog's, --arch nanogpt and --init pytorch. After an interruption
    the same command resumes.
    """
    start = time.monotonic()
    app.echo("loading torch and transformers …")
    from pythia_dynamics.report.verdicts import evidence_line, heading, records_of
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.order_parameter import reproduce as reproduce_blog

    with app.echo_warnings():
        study = reproduce_blog(
            training_text(corpus),
            stage=app.stages(),
            quick=quick,
            sizes=sizes or None,
            seeds=range(seeds),
            out=out,
            cache=cache,
            results=results,
            device=device,
            **changes,
        )
    for size, fact in study.facts.items():
        (b, last_b), (loss, last_loss), (_, validation) = fact["b"], fact["train_loss"], fact["validation_loss"]
        app.echo(
            f"{size:5} {fact['steps']} steps: b {b:.4g} → {last_b:.4g}, training loss {loss:.3f} → {last_loss:.3f}, "
            f"validation {validation:.3f}"
        )
    app.echo(f"\n{heading(study.verdicts)}")
    records = records_of(Results(study.name, results))
    for verdict in study.verdicts:
        app.echo(f"\n{verdict.verdict.upper()}: {verdict.statement}\n  {verdict.reason}")
        if evidence := evidence_line(verdict, records):
            app.echo(f"  {evidence}")
    app.echo(f"\n{len(study.files)} files in {results / study.name}, {time.monotonic() - start:.0f} s in all")
    facts = {
        "models": dict(study.facts),
        "claims": {verdict.claim: asdict(verdict) for verdict in study.verdicts},
        "files": study.files,
        "seconds": time.monotonic() - start,
    }
    app.print_facts({"order-parameter": facts})
