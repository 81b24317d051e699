"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app

if TYPE_CHECKING:
    pass

__all__ = ["demo"]


@app.main.command()
@click.option(
    "--corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Text to train on instead."
)
@click.option("--seed", type=int, default=0, show_default=True)
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def demo(corpus: Path | None, seed: int, cache: Path, results: Path, as_json: bool) -> None:
    """Train a small suite on the spot and put it through everything; no network, three minutes."""
    import time

    began = time.monotonic()
    app.say("loading torch and transformers …", as_json)
    from pythia_dynamics.studies import demo as the_demo
    from pythia_dynamics.training.plan import TrainingPlan
    from pythia_dynamics.training.text import read_text

    with app.notes(as_json):
        report = the_demo.run(
            stage=app.stages(as_json),
            text=read_text(corpus) if corpus else None,
            plan=TrainingPlan(seed=seed),
            cache=cache,
            results=results,
        )
    losses = report.suite.losses
    fetched = report.fetched
    app.say(
        f"\ntraining loss {losses[0].train:.2f} → {losses[-1].train:.2f} nats per token; "
        f"{len(fetched.steps)} checkpoints in {report.suite.path}, their W_U in {fetched.path} "
        f"({app.size(fetched.bytes)} read)",
        as_json,
    )
    facts: dict[str, Any] = {
        "suite": report.suite.path,
        "store": fetched.path,
        "steps": len(fetched.steps),
        "loss": {"first": losses[0].train, "last": losses[-1].train},
        "seconds": time.monotonic() - began,
    }
    for outcome in report.outcomes:
        app.say(f"\n{outcome.kind}", as_json)
        app.say_outcome(outcome, as_json)
        facts[outcome.kind] = {"files": outcome.files, **outcome.facts}
    app.say(
        f"\n{len(report.files)} files in {results / the_demo.NAME}, {time.monotonic() - began:.0f} s in all", as_json
    )
    app.print_facts(facts, as_json)
