"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare"]

_LEAST_POINTS = 3
"""Both ends and one point between them."""


@app.main.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--floor",
    "floors",
    metavar="PATTERN",
    multiple=True,
    help="Stored runs between which the noise floor is taken, as '160m-seed*'; none for no floor; repeatable.  "
    "[default: the other seeds of the same suite in the cache]",
)
@app.with_steps
@click.option(
    "--leading",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Leading right singular vectors whose subspaces are compared.",
)
@click.option(
    "--interpolate",
    "points",
    type=click.IntRange(_LEAST_POINTS),
    metavar="N",
    help="Also run the models at N points on the line between the two checkpoints: the loss barrier.",
)
@click.option(
    "--corpus",
    default=EvaluationSettings.corpus,
    show_default=True,
    help="Texts of --interpolate: lambada, cimec/lambada, or a .jsonl or text file.",
)
@click.option("--limit", type=click.IntRange(1), default=EvaluationSettings.limit, show_default=True, help="Passages.")
@click.option(
    "--max-tokens", type=click.IntRange(2), help="Cut passages after so many tokens.  [default: the model's context]"
)
@click.option(
    "--source", default=EvaluationSettings.source, show_default=True, help="hub, or a directory of checkpoints."
)
@app.with_device
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
def compare(
    a: str,
    b: str,
    floors: tuple[str, ...],
    steps: str | None,
    leading: int,
    points: int | None,
    cache: Path,
    results: Path,
    **options: Any,
) -> None:
    """Compare two runs, two checkpoints or two tensors, beside the noise floor that seeds give.

    A and B are MODEL[@STEP][:TENSOR], as in 160m-seed1@143000 or 70m@last:embedding; a STEP is a number, first or last.
    Without steps, two runs are compared at every common step.

    Angles, displacement, exact densities, singular values and their leading directions are told as multiples of what
    they are between other seeds of the suite. With --interpolate, the two models are also averaged, and run.
    """
    from pythia_dynamics.studies.compare import compare as compare_weights
    from pythia_dynamics.studies.comparison_files import write_comparison
    from pythia_dynamics.studies.comparison_table import comparison_lines

    answer = app.Answer("compare")
    with app.echo_warnings():
        if points is not None:
            _check_runnable(a, b, cache)
        with app.bar("compare", "step") as progress:
            result = compare_weights(a, b, floor=floors, steps=steps, leading=leading, cache=cache, progress=progress)
        for line in comparison_lines(result):
            app.echo(line)
        line_between = None if points is None else _interpolate(a, b, points, cache, options)
        outcome = write_comparison(result, results, line=line_between)
    app.echo_outcome(outcome)
    answer.facts = {**outcome.facts, "summary": outcome.summary, "files": outcome.files}
    answer.finish()


def _check_runnable(a: str, b: str, cache: Path) -> None:
    """Raise `PythiaDynError` where one of the two has no step, before anything is computed."""
    from pythia_dynamics.studies.subjects import open_side

    for side in (open_side(a, cache), open_side(b, cache)):
        if side.step is None:
            raise PythiaDynError(f"--interpolate is between two checkpoints: give {side.label} a step (MODEL@STEP)")


def _interpolate(a: str, b: str, points: int, cache: Path, options: dict[str, Any]) -> xr.Dataset:
    """The loss along the line between two checkpoints of models in the cache."""
    from pythia_dynamics.evaluation.interpolation import interpolation
    from pythia_dynamics.history.cache import find_model
    from pythia_dynamics.studies.subjects import open_side

    sides = [open_side(subject, cache) for subject in (a, b)]
    places = [(find_model(side.history.name, cache), side.step or 0) for side in sides]
    with app.bar("interpolate", "point") as progress:
        return interpolation(places[0], places[1], points, progress=progress, **options)
