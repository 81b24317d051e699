"""Measures of tensors that are streamed: each is fetched, measured and deleted, for whoever has no room for all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.history.request import WORKERS, FetchRequest
from pythia_dynamics.history.stream import SCRATCH, StreamPlan, open_stream
from pythia_dynamics.measures.analyse import analyse, chosen_measures
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.sweep.compute import Compute

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["passes", "stream", "with_companions"]


def stream(
    model: str | Path | Model | FetchRequest,
    which: Collection[str | Measure] | str | Measure | None = None,
    *,
    tensors: str | Iterable[str] = (UNEMBEDDING,),
    scratch: int = SCRATCH,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Compute | None = None,
    workers: int = WORKERS,
    **request: Any,
) -> dict[str, dict[str, xr.Dataset]]:
    """Fetch tensors of a model, measure each and delete its weights: nothing is added to the cache.

    The numbers are those of `analyse` with the same weights in a store, to the last bit. Tensors whose histories have
    room in a scratch folder are fetched together. The history of a larger tensor is read in parts: as ranges of its
    weights at all steps for sums over weights, and as whole steps for Gram matrices (`rank`, `spectrum`, `tails`). A
    tensor of which both are asked is transferred twice.

    Parameters
    ----------
    model
        As for `FetchRequest`.
    which
        As for `analyse`.
    tensors
        Names, roles, globs, ``all``.
    scratch
        Bytes of weights that are on the disk at one time, in a hidden folder of the cache.
    options, compute
        As for `analyse`. Progress counts thousandths of the bytes.
    workers
        Revisions that are read at once.
    **request
        Other fields of `FetchRequest`, by name: `steps`, `source`, `cache`, `suite`, `learning_rate`.

    Returns
    -------
    dict of str to dict
        By tensor the datasets by measure, as `analyse` returns them; their attribute `streamed` is True.

    Raises
    ------
    PythiaDynError
        As `download` and `analyse`; or the scratch space has no room for a slab of all steps, or for one whole step.
    """
    wanted = FetchRequest.of(model, {**request, "tensors": tensors}, others=("which", "scratch", "options", "compute"))
    measures, compute = chosen_measures(which), compute or Compute()
    results = {}
    with open_stream(wanted, scratch=scratch, workers=workers) as opened:
        for history, progress in opened.histories(opened.plan(), rows=compute.rows, progress=compute.progress):
            own = replace(compute, progress=progress)
            found = opened.measured(history, partial(analyse, which=measures, options=options, compute=own))
            results[history.tensor] = found
    return results


def with_companions(names: Sequence[str]) -> list[Measure]:
    """The measures of these names and those that their commands also compute, each once.

    Parameters
    ----------
    names
        Names of measures, with ``-`` or ``_``.

    Raises
    ------
    UnknownNameError
        A measure does not exist.
    """
    measures = chosen_measures([name.replace("-", "_") for name in names])
    return chosen_measures([each for one in measures for each in (one, *chosen_measures(one.companions or one))])


def passes(plan: StreamPlan, measures: Sequence[Measure]) -> int:
    """How often the bytes of a tensor that is read in parts are transferred: once for sums, once for whole steps.

    Parameters
    ----------
    plan
        The plan.
    measures
        The measures.
    """
    if not plan.parted:
        return 1
    return any(one.accumulators for one in measures) + any(one.per_step is not None for one in measures)
