"""Several measures of one history from one reading of its weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.measures.catalogue import find_measure, known_measures, require_own_names
from pythia_dynamics.measures.measure import Measure, compute_measures
from pythia_dynamics.sweep.compute import Compute

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["analyse", "chosen_measures"]


def analyse(
    history: Any,
    which: Collection[str | Measure] | str | Measure | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    steps: Sequence[int] | None = None,
    compute: Compute | None = None,
) -> dict[str, xr.Dataset]:
    """Compute several measures of a history, from as few readings of the weights as possible.

    Measures that are sums over weights share one pass over all weights. `rank` and `spectrum` share one Gram matrix per
    step in a second pass, whose speed is limited by arithmetic and not by reading.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    which : collection of str or Measure, str or Measure, optional
        Names of measures, or your own `Measure` values; or one of them. Default: every known measure.
    options : mapping of str to mapping, optional
        Options by measure, for instance ``{"order": {"loss": loss}, "rank": {"draws": 4}}``.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute. Progress counts thousandths of the whole work.

    Returns
    -------
    dict of str to xarray.Dataset
        The datasets by name of the measure, in the order of `which`; each as the function of that measure returns it.

    Raises
    ------
    UnknownNameError
        A measure or an option does not exist.
    PythiaDynError
        `which` is empty or has something else, two measures have the same name or table, or a measure cannot be
        computed.
    """
    measures = chosen_measures(which)
    for name in options or {}:
        if name not in {measure.name for measure in measures}:
            find_measure(name)
    return compute_measures(as_history(history, steps), measures, options, compute)


def chosen_measures(which: Collection[str | Measure] | str | Measure | None) -> list[Measure]:
    """The measures that `which` names, each once, in order; all known ones for None.

    Parameters
    ----------
    which
        Names of measures, or `Measure` values; or one of them.

    Raises
    ------
    UnknownNameError
        A measure does not exist.
    PythiaDynError
        `which` is empty or has something else, or two measures have the same name or table.
    """
    if which is None:
        return list(known_measures().values())
    given = which if isinstance(which, Iterable) and not isinstance(which, str) else [which]
    measures = [_measure(item) for item in given]
    by_name = {measure.name: measure for measure in measures}
    if not by_name:
        raise PythiaDynError(f"nothing to analyse; choose from {', '.join(known_measures())}")
    if any(by_name[measure.name] is not measure for measure in measures):
        raise PythiaDynError("two measures have the same name; rename one")
    others = {id(measure): measure for measure in (*known_measures().values(), *by_name.values())}
    for measure in by_name.values():
        if known_measures().get(measure.name) is not measure:
            require_own_names(measure, [other for other in others.values() if not _same(measure, other)])
    return list(by_name.values())


def _same(measure: Measure, other: Measure) -> bool:
    """Whether they are versions of one measure, as after `dataclasses.replace`, or after its module is loaded again."""
    return measure.name == other.name and measure.finish.__module__ == other.finish.__module__


def _measure(item: object) -> Measure:
    if isinstance(item, str):
        return find_measure(item)
    if not isinstance(item, Measure):
        raise PythiaDynError(f"a measure is given by its name or as a Measure; got {item!r}")
    return item
