"""Commands about the steps of a training: stop, phases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.cli import app
from pythia_dynamics.cli.shards import own_items, with_shard
from pythia_dynamics.training.choices import RuleKind

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.figures.axis import AxisKind
    from pythia_dynamics.history.history import History
    from pythia_dynamics.shard import Shard

__all__ = ["phases", "stop"]


@app.main.command()
@app.with_weights
@click.option(
    "--rule",
    type=click.Choice(get_args(RuleKind)),
    default="stationary",
    show_default=True,
    help="Displacement that no longer grows with the distance, with the learning rate taken out; displacement rate "
    "below the threshold; MSD past its peak beyond the null; or either of the last two.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    default=0.01,
    show_default=True,
    help="Relative displacement per 1,000 steps, for --rule displacement.",
)
@click.option("--patience", type=click.IntRange(1), default=3, show_default=True, help="Consecutive records.")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="First step of the rule.")
@click.option(
    "--loss",
    type=click.Path(exists=True, dir_okay=False),
    help="CSV with the columns step and loss.  [default: perplexity-forward.csv, or losses.csv of the suite]",
)
@with_shard
@app.with_axis
@app.with_width
@app.with_results
@app.with_json
def stop(
    weights: app.Weights,
    rule: RuleKind,
    threshold: float,
    patience: int,
    after: int,
    loss: str | None,
    shard: Shard | None,
    axis: AxisKind,
    results: Path,
) -> None:
    """Where training would have stopped for stationary weights, the share of steps saved, and the cost in loss."""
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.results.losses import known_loss, read_losses
    from pythia_dynamics.studies.pipeline import write_stop
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.training.stopping import StationarityRule, replay

    chosen = StationarityRule(rule, threshold, patience, after)
    answer = app.Answer("stop")
    for history in own_items(shard, list(weights.histories(answer)), "tensors"):
        with answer.collect():
            rows = weights.rows(history)
            own = Results(history.name, results, tensor=history.tensor)
            known = (read_losses(loss), loss) if loss else known_loss(own, str(history.provenance["source"]))
            losses, loss_from = known if known else (None, None)
            with app.echo_warnings(), app.bar(f"{history.name} stop") as progress:
                found = replay(history, chosen, loss=losses, compute=Compute(rows=rows, progress=progress))
                outcome = write_stop(own, found, history, rows=rows, loss_from=loss_from, axis=axis)
            app.echo_outcome(outcome)
            missing = dict(history.missing)
            about = {"model": history.name, "tensor": history.tensor, "files": outcome.files, "missing": missing}
            answer.facts.append({**about, **outcome.facts})
    answer.finish()


@app.main.command()
@app.with_weights
@click.option(
    "--strength",
    type=click.FloatRange(0, min_open=True),
    default=7.0,
    show_default=True,
    help="Least size of a change, in robust standard deviations of the steps fitted at the other records.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Two change points agree within this share of the training.",
)
@with_shard
@app.with_axis
@app.with_width
@app.with_results
@app.with_json
def phases(
    weights: app.Weights,
    strength: float,
    tolerance: float,
    shard: Shard | None,
    axis: AxisKind,
    results: Path,
) -> None:
    """Phases of training: abrupt changes of displacement rate, direction and bimodality, and their agreement.

    The learning rate and smooth trends are taken out. Without a learning rate (--learning-rate), changes of the
    displacement rate are undecided.

    With several models (seeds, sizes) also the agreement between models on the same tensor.
    """
    from pythia_dynamics.measures.phases import agreement
    from pythia_dynamics.measures.phases import phases as find_phases
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import write_phases
    from pythia_dynamics.sweep.compute import Compute

    answer = app.Answer("phases")
    found: dict[str, dict[str, xr.Dataset]] = {}
    used: dict[str, dict[str, tuple[History, int | None]]] = {}
    histories = list(weights.histories(answer))
    # A job of an array has one tensor of all models, whose changes are compared.
    own = own_items(shard, list(dict.fromkeys(map(_part, histories))), "tensors of all models")
    for history in (each for each in histories if _part(each) in own):
        with answer.collect():
            rows = weights.rows(history)
            with app.echo_warnings(), app.bar(f"{history.name} phases") as progress:
                compute = Compute(rows=rows, progress=progress)
                dataset = find_phases(history, strength=strength, compute=compute)
            found.setdefault(_part(history), {})[history.name] = dataset
            used.setdefault(_part(history), {})[history.name] = history, rows
    for part, models in found.items():
        changes = agreement(models, tolerance=tolerance)
        for name, dataset in models.items():
            history, rows = used[part][name]
            saved = Results(name, results, tensor=history.tensor)
            outcome = write_phases(saved, dataset, changes, history, rows=rows, axis=axis)
            app.echo(saved.label)
            app.echo_outcome(outcome)
            facts = {"model": name, "tensor": history.tensor, "files": outcome.files}
            answer.facts.append({**facts, **outcome.facts})
    answer.finish()


def _part(history: History) -> str:
    """What a tensor is called in all models: the name of the unembedding differs between them."""
    return UNEMBEDDING if UNEMBEDDING in history.provenance["roles"] else history.tensor
