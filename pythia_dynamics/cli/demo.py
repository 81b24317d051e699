"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pythia_dynamics.cli import app

__all__ = ["demo"]


@app.main.command()
@click.option(
    "--corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Text.  [default: Python reference]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training.")
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def demo(corpus: Path | None, seed: int, cache: Path, results: Path) -> None:
    """Train a small suite and run every analysis on it: no network, three minutes."""
    import time

    start = time.monotonic()
    app.echo("loading torch and transformers …")
    from pythia_dynamics.studies import demo as demo_study
    from pythia_dynamics.training.plan import TrainingPlan
    from pythia_dynamics.training.text import read_text

    with app.echo_warnings():
        report = demo_study.run(
            stage=app.stages(),
            text=read_text(corpus) if corpus else None,
            plan=TrainingPlan(seed=seed),
            cache=cache,
            results=results,
        )
    losses = report.suite.losses
    fetched = report.fetched
    app.echo(
        f"\ntraining loss {losses[0].train:.2f} → {losses[-1].train:.2f} nats per token; "
        f"{len(fetched.steps)} checkpoints in {report.suite.path}, their W_U in {fetched.path} "
        f"({app.size(fetched.bytes)} read)"
    )
    facts: dict[str, Any] = {
        "suite": report.suite.path,
        "store": fetched.path,
        "steps": len(fetched.steps),
        "loss": {"first": losses[0].train, "last": losses[-1].train},
        "seconds": time.monotonic() - start,
    }
    for outcome in report.outcomes:
        app.echo(f"\n{outcome.kind}")
        app.echo_outcome(outcome)
        facts[outcome.kind] = {"files": outcome.files, **outcome.facts}
    app.echo(f"\n{len(report.files)} files in {results / demo_study.NAME}, {time.monotonic() - start:.0f} s in all")
    app.print_facts(facts)
