"""What a measure is: all that is known of one statistic, as a value; and how several are computed in one reading.

A measure says what it needs of the sweep (accumulators over slabs, or a function of a step's Gram matrix), how these
sums become a dataset, which tables are saved of it, and what is told of it in a sentence. The command line, the result
files, the gallery and the report go over such values, ours and those of users alike.
"""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frame_gram import map_gram_matrices
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.gram import Gram
from pythia_dynamics.sweep.sweep import Accumulator, sweep

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.sweep.frame_gram import FrameGram

__all__ = ["Flag", "Measure", "Option", "Table", "compute_measures"]

Facts = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Flag:
    """Makes an option of a measure a flag of its command: ``draws: Annotated[int, Flag("…", minimum=1)] = 8``.

    Parameters
    ----------
    help : str
        What it does, in a sentence.
    minimum : int, optional
        The least number that is accepted.
    is_file : bool
        Whether the flag takes the path of a file that exists.
    """

    help: str
    minimum: int | None = None
    is_file: bool = False


@dataclass(frozen=True)
class Option:
    """An option of a measure: its name as a keyword argument, its default, and its flag if it has one."""

    name: str
    default: Any
    kind: Any
    flag: Flag | None


@dataclass(frozen=True)
class Table:
    """A CSV table of a measure.

    Parameters
    ----------
    columns : tuple of str
        Its columns in order, coordinates among them; those that a dataset lacks are left out.
    keys : tuple of str
        The columns that are coordinates.
    renamed : mapping of str to str
        Column to variable of the dataset, where they have different names.
    title : str
        Heading of the table in the report; empty for a table that is not shown there.
    """

    columns: tuple[str, ...]
    keys: tuple[str, ...] = ("step",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    title: str = ""


def _no_facts(dataset: xr.Dataset) -> Facts:
    return "", {}


@dataclass(frozen=True)
class Measure:
    """One statistic of weights over training.

    Parameters
    ----------
    name : str
        Names the command (with ``-`` for ``_``), the result files, the figure and the section of the report.
    title : str
        Heading of its figure and its section.
    source : str
        Where its equation is from.
    finish : callable
        ``finish(history, *sums, **options) -> xarray.Dataset``. `sums` are the filled `accumulators` in their order,
        then, with a `per_step`, the list of its values, one per step and None where there is none.
    accumulators : tuple of callable
        Each returns an empty `Accumulator`; they are filled in the pass over all weights that all measures share.
        Measures that name the same callable share what it returns.
    per_step : callable, optional
        ``per_step(**options)`` returns a function of a step's `FrameGram`; it is called for every step in a pass that
        all measures with a `per_step` share.
    function : callable, optional
        The public function of the measure; its keyword arguments, but for `compute`, are the options of the measure,
        with their defaults. Without one, the keyword-only arguments of `finish` are.
    tables : mapping of str to Table
        The CSV tables by name.
    saves_array : bool
        Whether the dataset is also saved whole, as ``<name>.zarr``.
    on_save : callable, optional
        Adds to the dataset what is only computed when results are saved.
    summarise : callable
        ``summarise(dataset)`` returns a sentence for a reader and facts for a program.
    draw : callable, optional
        ``draw(axes, dataset)`` draws the dataset, read back from the results, on one matplotlib `Axes`. Without one,
        and without a figure in `pythia_dynamics.figures`, the columns of the first table are drawn over the step.
    companions : tuple of str
        Names of measures that its command computes as well, unless ``--no-<name>`` is given.
    """

    name: str
    title: str
    source: str
    finish: Callable[..., xr.Dataset]
    accumulators: tuple[Callable[[], Accumulator], ...] = ()
    per_step: Callable[..., Callable[[FrameGram], Any]] | None = None
    function: Callable[..., xr.Dataset] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    saves_array: bool = False
    on_save: Callable[[xr.Dataset], xr.Dataset] | None = None
    summarise: Callable[[xr.Dataset], Facts] = _no_facts
    draw: Callable[[Any, xr.Dataset], None] | None = None
    companions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise PythiaDynError(f"the name of a measure must be a Python identifier; got {self.name!r}")
        if not self.accumulators and self.per_step is None:
            raise PythiaDynError(f"measure {self.name} must have accumulators or a function per step")

    @property
    def options(self) -> dict[str, Option]:
        """Its options by name, as its public function, or `finish`, declares them."""
        declared = self.function or self.finish
        names = _Names({**vars(builtins), **getattr(declared, "__globals__", {})})
        found = {}
        for name, parameter in inspect.signature(declared).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name != "compute":
                kind, flag = parameter.annotation, None
                if isinstance(kind, str):
                    kind = eval(kind, {}, names)
                if get_origin(kind) is Annotated:
                    kind, *extras = get_args(kind)
                    flag = next((extra for extra in extras if isinstance(extra, Flag)), None)
                found[name] = Option(name, parameter.default, kind, flag)
        return found

    @property
    def uses_gram(self) -> bool:
        """Whether it uses Gram matrices, which a `Compute.device` computes."""
        return self.per_step is not None or Gram in self.accumulators

    def __call__(self, history: Any, *, compute: Compute | None = None, **options: Any) -> xr.Dataset:
        """Its dataset of a history, a model's name, or an array of shape (T, …); see `compute_measures`."""
        return compute_measures(history, [self], {self.name: options}, compute)[self.name]


class _Names(dict[str, Any]):
    """Names of an annotation; those that are imported for type checkers only are Any."""

    def __missing__(self, name: str) -> Any:
        return Any


def compute_measures(
    history: Any,
    measures: Sequence[Measure],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Compute | None = None,
) -> dict[str, xr.Dataset]:
    """The datasets of measures by name, from one pass over all weights and one Gram matrix per step, where needed.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights, the name or path of a fetched model, or an array of shape (T, …).
    measures : sequence of Measure
        What to compute.
    options : mapping of str to mapping, optional
        Options by measure and name.
    compute : Compute, optional
        How to compute. Its progress counts thousandths.

    Raises
    ------
    UnknownNameError
        For an option that a measure does not have.
    PythiaDynError
        Where weights are too large for their squares, or a measure cannot be computed with its options.
    """
    history, compute = as_history(history), compute or Compute()
    given = {measure.name: _checked(measure, (options or {}).get(measure.name, {})) for measure in measures}
    functions = {
        measure.name: measure.per_step(**given[measure.name]) for measure in measures if measure.per_step is not None
    }
    warn_missing(history)
    kinds = list(dict.fromkeys(kind for measure in measures for kind in measure.accumulators))
    share = 500 if kinds and functions else 1000  # thousandths of the progress that the first pass takes
    filled = (
        dict(zip(kinds, sweep(history, [kind() for kind in kinds], compute.part(0, share)), strict=True))
        if kinds
        else {}
    )
    values: dict[str, list[Any]] = {}
    if functions:
        part = compute.part(1000 - share, share)
        found = map_gram_matrices(history, list(functions.values()), part, warn=not kinds)
        values = dict(zip(functions, found, strict=True))
    results = {}
    for measure in measures:
        sums: list[Any] = [filled[kind] for kind in measure.accumulators]
        sums += [values[measure.name]] if measure.name in values else []
        results[measure.name] = measure.finish(history, *sums, **given[measure.name])
    return results


def _checked(measure: Measure, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a measure, with the defaults of those that are not given."""
    known = measure.options
    for name in given:
        if name not in known:
            raise UnknownNameError("option", name, known, where=measure.name)
    return {name: given.get(name, option.default) for name, option in known.items()}
