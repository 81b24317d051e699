"""The measures by name: those of this package and those that other packages register."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from pythia_dynamics import __all__ as public_names
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures import COMMANDS
from pythia_dynamics.measures.angles import ANGLES
from pythia_dynamics.measures.density import DENSITY
from pythia_dynamics.measures.displacement import MSD
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.order import ORDER
from pythia_dynamics.measures.rank import RANK
from pythia_dynamics.measures.rows import ROWS
from pythia_dynamics.measures.spectrum import SPECTRUM
from pythia_dynamics.measures.tails import TAILS
from pythia_dynamics.measures.two_time import TWO_TIME

__all__ = ["find_measure", "known_measures", "require_own_names"]

BUILT_IN: Mapping[str, Measure] = {
    measure.name: measure for measure in (DENSITY, MSD, TWO_TIME, ANGLES, ORDER, RANK, SPECTRUM, TAILS, ROWS)
}
"""The measures of this package, in the order of `pythia_dynamics.measures.MEASURES`."""

_GROUP = "pythia_dynamics.measures"


_OTHER_FILES = ("bifurcation", "first_last", "provenance", "runs", "unmasking")
"""Names of result files that are neither of a measure nor of a command."""


def known_measures() -> Mapping[str, Measure]:
    """Every measure by name: those of this package, then those of the entry-point group ``pythia_dynamics.measures``.

    An entry point that cannot be used is left out; a warning gives the reason at the first call.
    """
    return _registered()[0]


def find_measure(name: str) -> Measure:
    """The measure of that name.

    Raises
    ------
    UnknownNameError
        There is none.
    PythiaDynError
        Its entry point cannot be used.
    """
    known, unusable = _registered()
    if name not in known and name in unusable:
        raise PythiaDynError(unusable[name])
    if name not in known:
        raise UnknownNameError("measure", name, known)
    return known[name]


def require_own_names(measure: Measure, others: Iterable[Measure]) -> None:
    """Check that a measure can be used beside others: that no result of one would replace that of another.

    Parameters
    ----------
    measure
        The measure.
    others
        The other measures.

    Raises
    ------
    PythiaDynError
        Its name, or that of a table, is the name of another measure, table or command, or of a name of this package.
    """
    taken = {name.lower(): "by pythia-dyn" for name in (*COMMANDS, *_OTHER_FILES)}
    tables = dict(taken)
    taken |= {name: "by pythia_dynamics" for name in public_names if not name.startswith("_")}
    for other in others:
        taken[other.name.lower()] = "by another measure"
        tables |= {table.lower(): f"by the measure {other.name}" for table in other.tables}
    if by := taken.get(measure.name.lower()):
        raise PythiaDynError(f"the name of the measure {measure.name} is used {by}; rename the measure")
    for table in measure.tables:
        if by := "by pythia-dyn" if table.startswith("perplexity-") else tables.get(table.lower()):
            raise PythiaDynError(f"{measure.name}: the table {table} is written {by}; rename the table")
        if not re.fullmatch(r"\w[\w.-]*", table):
            raise PythiaDynError(f"the table {table!r} of {measure.name} must have a name that a file can have")


@functools.cache
def _registered() -> tuple[Mapping[str, Measure], Mapping[str, str]]:
    """The known measures, and why the other entry points cannot be used, by their name and that of their measure."""
    found, unusable = dict(BUILT_IN), {}
    for point in sorted(entry_points(group=_GROUP)):
        names = [point.name]
        try:
            measure = _load(point)
            names.append(measure.name)
            if measure.name != point.name:
                raise PythiaDynError(f"its measure has another name, {measure.name}; use one name for both")
            require_own_names(measure, found.values())
        except PythiaDynError as error:
            package = point.dist.name if point.dist else "that registers it"
            reason = (
                f"the entry point {point.name} ({point.value}) of the package {package} cannot be used: {error}. "
                "Fix the package or uninstall it"
            )
            unusable.update(dict.fromkeys(names, reason))
            warnings.warn(reason, stacklevel=3)
        else:
            found[measure.name] = measure
    return found, unusable


def _load(point: EntryPoint) -> Measure:
    try:
        measure = point.load()
    except (Exception, SystemExit) as error:  # the import of a user's module can raise any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PythiaDynError(reason) from error
    if not isinstance(measure, Measure):
        raise PythiaDynError(f"it is a {type(measure).__name__}, not a Measure")
    return measure
