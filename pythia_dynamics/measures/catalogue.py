"""The measures by name: those of this package and those that other packages register."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.density import DENSITY
from pythia_dynamics.measures.displacement import MSD
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.order import ORDER
from pythia_dynamics.measures.rank import RANK
from pythia_dynamics.measures.spectrum import SPECTRUM
from pythia_dynamics.measures.two_time import TWO_TIME

__all__ = ["find_measure", "known_measures"]

BUILT_IN: Mapping[str, Measure] = {measure.name: measure for measure in (DENSITY, MSD, TWO_TIME, ORDER, RANK, SPECTRUM)}
"""The measures of this package, in the order of `pythia_dynamics.measures.MEASURES`."""

_GROUP = "pythia_dynamics.measures"


@functools.cache
def known_measures() -> Mapping[str, Measure]:
    """Every measure by name: those of this package, then those of the entry-point group ``pythia_dynamics.measures``.

    Raises
    ------
    PythiaDynError
        An entry point cannot be loaded, is not a `Measure`, or has the name of another measure.
    """
    found = dict(BUILT_IN)
    for point in sorted(entry_points(group=_GROUP)):
        measure = _load(point)
        if measure.name in found:
            raise PythiaDynError(f"entry point {point.value} registers the measure {measure.name!r}, which exists")
        found[measure.name] = measure
    return found


def find_measure(name: str) -> Measure:
    """The measure of that name. Raises `UnknownNameError` if there is none."""
    known = known_measures()
    if name not in known:
        raise UnknownNameError("measure", name, known)
    return known[name]


def _load(point: EntryPoint) -> Measure:
    try:
        measure = point.load()
    except Exception as error:  # the import of a user's module can raise any exception
        raise PythiaDynError(f"the measure {point.name} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(measure, Measure):
        raise PythiaDynError(f"entry point {point.value} is a {type(measure).__name__}, not a Measure")
    return measure
