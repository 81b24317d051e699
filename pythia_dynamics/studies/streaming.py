"""Result files of tensors that are streamed: those that the commands of the measures write from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pythia_dynamics.figures.axis import AxisKind
from pythia_dynamics.history.history import History
from pythia_dynamics.history.spec import TensorSpec
from pythia_dynamics.history.stream import StreamPlan, WeightStream
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import Outcome, measure
from pythia_dynamics.sweep.compute import Compute

__all__ = ["finished_tensors", "measure_stream"]

Options = Mapping[str, Mapping[str, Any]]


def measure_stream(
    stream: WeightStream,
    plan: StreamPlan,
    measures: Sequence[Measure],
    results: Results,
    *,
    options: Options | None = None,
    compute: Compute | None = None,
    axis: AxisKind = "step",
    draw: Callable[[str], bool] = lambda tensor: True,
    progress: Progress = silent,
) -> Iterator[tuple[History, list[Outcome]]]:
    """Measure the tensors of a plan one after another, and write their results.

    The results of a tensor are complete before the next one is fetched.

    Parameters
    ----------
    stream, plan
        The tensors.
    measures
        The measures.
    results
        The results of the model.
    options, compute, axis
        As for `pythia_dynamics.studies.pipeline.measure`. The progress of `compute` is not used.
    draw
        Whether to draw the figures of a tensor, by its name.
    progress
        As for `WeightStream.histories`.

    Yields
    ------
    tuple of History and list of Outcome
        The history that was measured, and what was written of it.

    Raises
    ------
    PythiaDynError
        As `WeightStream.histories` and `measure`.
    """
    compute = compute or Compute()
    for history, part in stream.histories(plan, rows=compute.rows, progress=progress):
        own = replace(compute, progress=part)

        def written(of: History, own: Compute = own) -> tuple[History, list[Outcome]]:
            drawn = draw(of.tensor)
            return of, measure(of, measures, results, options=options, compute=own, axis=axis, draw=drawn)

        yield stream.measured(history, written)


def finished_tensors(
    stream: WeightStream, measures: Sequence[Measure], results: Results, *, options: Options | None = None
) -> set[str]:
    """The tensors whose results are complete: of the same steps, commits and options as now.

    A tensor that lacks steps is complete if those that the source has cannot be read now either; a fused tensor, if all
    its parts are.

    Parameters
    ----------
    stream
        The tensors.
    measures
        The measures.
    results
        The results of the model.
    options
        Options by measure.
    """
    given = options or {}

    def complete(spec: TensorSpec, name: str) -> bool:
        own = results.of(name)
        recorded = own.provenance()
        return all(
            _is_complete(stream, spec, one, own, recorded.get(one.name), given.get(one.name, {})) for one in measures
        )

    return {spec.name for spec in stream.tensors if all(complete(spec, name) for name in stream.names(spec))}


def _is_complete(
    stream: WeightStream,
    spec: TensorSpec,
    one: Measure,
    results: Results,
    made: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> bool:
    """Whether a measure of a tensor was computed from all weights that the source has now."""
    if made is None or not all((results.path / f"{table}.csv").is_file() for table in one.tables):
        return False
    commits, missing = made.get("commits") or {}, made.get("missing") or {}
    now = {str(step): each.commit for step, each in stream.revisions.items()}
    options = {name: given.get(name, option.default) for name, option in one.options.items()}
    return (
        made.get("steps") == list(stream.steps)
        and made.get("drop_padding") is None
        and {str(step) for step in stream.steps} == {*commits, *missing}
        and all(now.get(step) == commit for step, commit in commits.items())
        and all(made.get(name, value) == value for name, value in options.items() if np.isscalar(value))
        and not any(stream.can_be_read(spec, int(step)) for step in missing if step in now)
    )
