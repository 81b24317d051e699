"""Commands about the steps of a training: stop, phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from pythia_dynamics.cli import app
from pythia_dynamics.training.choices import RuleKind

__all__ = ["phases", "stop"]


@app.main.command()
@app.with_models(required=False)
@click.option(
    "--rule",
    type=click.Choice(get_args(RuleKind)),
    default="either",
    show_default=True,
    help="Displacement rate below the threshold, MSD past its peak beyond the null, or either.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    default=0.01,
    show_default=True,
    help="Relative displacement per 1,000 steps.",
)
@click.option("--patience", type=click.IntRange(1), default=3, show_default=True, help="Consecutive records.")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="First step of the rule.")
@click.option(
    "--loss",
    type=click.Path(exists=True, dir_okay=False),
    help="CSV with the columns step and loss.  [default: perplexity-forward.csv, or losses.csv of the suite]",
)
@app.with_tensor
@app.with_steps(None)
@app.with_rows
@app.with_cache
@app.with_results
@app.with_json
def stop(
    models: tuple[str, ...],
    rule: RuleKind,
    threshold: float,
    patience: int,
    after: int,
    loss: str | None,
    tensor: str | None,
    steps: str | None,
    drop_padding: int | str | None,
    cache: Path,
    results: Path,
    as_json: bool,
) -> None:
    """Where training would have stopped for stationary weights, the share of steps saved, and the cost in loss."""
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.results.losses import known_loss, read_losses
    from pythia_dynamics.studies.pipeline import write_stop
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.training.stopping import StationarityRule, replay

    chosen = StationarityRule(rule, threshold, patience, after)
    facts: list[dict[str, Any]] = []
    failures = app.FailureList()
    for name in app.model_names(models, cache):
        with failures.collect():
            history = app.load_history(name, tensor, steps, cache)
            own = Results(history.name, results, tensor=history.tensor)
            known = (read_losses(loss), loss) if loss else known_loss(own, str(history.provenance["source"]))
            losses, loss_from = known if known else (None, None)
            rows = app.rows_to_keep(drop_padding, history, as_json)
            with app.echo_warnings(as_json), app.bar(f"{history.name} stop") as progress:
                found = replay(history, chosen, loss=losses, compute=Compute(rows=rows, progress=progress))
                outcome = write_stop(own, found, history, rows=rows, loss_from=loss_from)
            app.echo_outcome(outcome, as_json)
            missing = dict(history.missing)
            facts.append({"model": history.name, "files": outcome.files, "missing": missing, **outcome.facts})
    if facts:
        app.print_facts({"stop": facts}, as_json)
    failures.raise_if_any()


@app.main.command()
@app.with_models(required=False)
@click.option(
    "--strength",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Penalty for each change point, in units of σ² ln n; that of BIC is 3.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Two change points agree within this share of the training.",
)
@app.with_tensor
@app.with_steps(None)
@app.with_rows
@app.with_cache
@app.with_results
@app.with_json
def phases(
    models: tuple[str, ...],
    strength: float,
    tolerance: float,
    tensor: str | None,
    steps: str | None,
    drop_padding: int | str | None,
    cache: Path,
    results: Path,
    as_json: bool,
) -> None:
    """Phases of training: change points of displacement rate, direction and bimodality, and their agreement.

    With several models (seeds, sizes) also the agreement between models.
    """
    from pythia_dynamics.measures.phases import agreement
    from pythia_dynamics.measures.phases import phases as find_phases
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import write_phases
    from pythia_dynamics.sweep.compute import Compute

    found, weights = {}, {}
    failures = app.FailureList()
    for name in app.model_names(models, cache):
        with failures.collect():
            history = app.load_history(name, tensor, steps, cache)
            rows = app.rows_to_keep(drop_padding, history, as_json)
            with app.echo_warnings(as_json), app.bar(f"{history.name} phases") as progress:
                compute = Compute(rows=rows, progress=progress)
                found[history.name] = find_phases(history, strength=strength, compute=compute)
            weights[history.name] = history, rows
    changes = agreement(found, tolerance=tolerance)
    facts: list[dict[str, Any]] = []
    for name, dataset in found.items():
        history, rows = weights[name]
        outcome = write_phases(Results(name, results, tensor=history.tensor), dataset, changes, history, rows=rows)
        app.echo(name, as_json)
        app.echo_outcome(outcome, as_json)
        facts.append({"model": name, "files": outcome.files, **outcome.facts})
    if facts:
        app.print_facts({"phases": facts}, as_json)
    failures.raise_if_any()
