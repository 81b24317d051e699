"""The command ``gather``: saved results of several runs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.completion import complete_tensors

if TYPE_CHECKING:
    from pythia_dynamics.figures.axis import AxisKind

__all__ = ["gather"]


@app.main.command()
@app.with_models(required=True)
@click.option(
    "--measure",
    default="msd",
    show_default=True,
    help="A measure or a table of results: msd, moments, order, rank, spectrum, perplexity-last-word …",
)
@click.option("--variable", help="Column of the table.  [default: the main one, such as order_parameter]")
@click.option(
    "--tensor",
    shell_complete=complete_tensors,
    help="unembedding, embedding, a name, a glob or all; several tensors are drawn by layer and kind.  [default: "
    "unembedding, or the only tensor with results]",
)
@click.option("--per-parameter", "divide", is_flag=True, help="Divide by the number of parameters of each model.")
@app.with_axis
@app.with_width
@app.with_results
@app.with_json
def gather(
    models: tuple[str, ...],
    measure: str,
    variable: str | None,
    tensor: str | None,
    divide: bool,
    axis: AxisKind,
    results: Path,
) -> None:
    """Put the saved results of several runs side by side: seeds, sizes, data seeds and weight seeds.

    Prints the median and the central 80 % at the end, the spread between and within runs, the runs that leave the
    others and from which step, and whether data or weights make runs differ. Writes the runs, the band and the figure
    to results/runs/. Nothing is computed from weights.
    """
    from pythia_dynamics.results.populations import gather as gather_runs
    from pythia_dynamics.studies.population_tensors import study_tensors, tensor_lines, write_tensors
    from pythia_dynamics.studies.populations import population_lines, study_population, write_population

    answer = app.Answer("gather")
    with app.echo_warnings():
        dataset = gather_runs(models, measure=measure, tensor=tensor, results=results)
        if "tensor" in dataset.dims:
            if divide or axis != "step":
                raise click.UsageError("--axis and --per-parameter are for one tensor")
            tensors = study_tensors(dataset, variable)
            lines, outcome = tensor_lines(tensors), write_tensors(dataset, tensors, models, results)
        else:
            found = study_population(dataset, variable, divide=divide)
            lines = population_lines(found)
            outcome = write_population(dataset, found, models, results, axis=axis, divide=divide)
    for line in lines:
        app.echo(line)
    app.echo_outcome(outcome)
    answer.facts = {**outcome.facts, "left_out": dataset.attrs["left_out"], "files": outcome.files}
    answer.finish()
