"""Several measures of one history from one reading of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.catalogue import find_measure, known_measures
from pythia_dynamics.measures.measure import Measure, compute_measures
from pythia_dynamics.sweep.compute import Compute

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["analyse", "chosen_measures"]


def analyse(
    history: Any,
    which: Collection[str | Measure] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Compute | None = None,
) -> dict[str, xr.Dataset]:
    """Measures of a history, each as its own function returns it, from as few readings as possible.

    Measures that are sums over weights share one pass over all of them. `rank` and `spectrum` share one Gram matrix per
    step, in a second pass that arithmetic bounds, not reading.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    which : collection of str or Measure, optional
        Names of measures, or measures of your own; by default every measure that is known.
    options : mapping of str to mapping, optional
        Options by measure, for instance ``{"order": {"loss": loss}, "rank": {"draws": 4}}``.
    compute : Compute, optional
        How to compute. Its progress counts thousandths of the whole.

    Returns
    -------
    dict of str to xarray.Dataset
        The results by measure, in the order of `which`.

    Raises
    ------
    UnknownNameError
        For a measure or an option that does not exist.
    PythiaDynError
        Where nothing is asked, or a measure cannot be computed.
    """
    measures = chosen_measures(which)
    for name in options or {}:
        if name not in {measure.name for measure in measures}:
            find_measure(name)
    return compute_measures(history, measures, options, compute)


def chosen_measures(which: Collection[str | Measure] | None) -> list[Measure]:
    """The measures that names and values stand for, each once; all known ones for None. Raises as `analyse`."""
    if which is None:
        return list(known_measures().values())
    measures = [find_measure(name) if isinstance(name, str) else name for name in which]
    by_name = {measure.name: measure for measure in measures}
    if not by_name:
        raise PythiaDynError(f"nothing to analyse; choose from {', '.join(known_measures())}")
    if any(by_name[measure.name] is not measure for measure in measures):
        raise PythiaDynError("two measures have the same name; rename one")
    return list(by_name.values())
