"""The definition of a measure as a value, and the computation of several measures in one reading.

A measure defines what the sweep must sum (accumulators over slabs, or a function of the Gram matrix of a step), how
these sums become a dataset, which tables are saved, and its summary in one sentence. The command line, the result
files, the gallery and the report use these values. They treat measures of users like those of this package.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.frame_gram import map_gram_matrices
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.gram import Gram
from pythia_dynamics.sweep.partial import PartSavedError
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
        Help text of the flag, one sentence.
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
    """An option of a measure.

    Parameters
    ----------
    name
        Name of the keyword argument.
    default
        Its default value.
    kind
        Its annotation, without `Flag`.
    flag
        The flag of the command line; None if there is none.
    """

    name: str
    default: Any
    kind: Any
    flag: Flag | None

    @property
    def is_required(self) -> bool:
        """Whether it has no default value."""
        return self.default is inspect.Parameter.empty

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The members of its annotation if that is a union, without None; else the annotation alone."""
        is_union = get_origin(self.kind) in (Union, types.UnionType)
        return tuple(kind for kind in (get_args(self.kind) if is_union else (self.kind,)) if kind is not type(None))

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that a `Literal` annotation allows; empty without one."""
        if any(get_origin(kind) is not Literal for kind in self.kinds):
            return ()
        return tuple(value for kind in self.kinds for value in get_args(kind) if value is not None)

    def allows(self, value: Any) -> bool:
        """Whether a value is one of `choices`, or None where that is the default or part of the annotation."""
        if value is None and (self.default is None or {None, type(None)}.intersection(get_args(self.kind))):
            return True
        return not self.choices or any(type(value) is type(choice) and value == choice for choice in self.choices)


@dataclass(frozen=True)
class Table:
    """A CSV table of a measure.

    Parameters
    ----------
    columns : tuple of str
        Its columns in order, including coordinates. Columns that a dataset does not have are left out.
    keys : tuple of str
        The columns that are coordinates.
    renamed : mapping of str to str
        The variable of the dataset for each column that has another name.
    title : str
        Heading of the table in the report; empty for a table that is not shown there.
    optional : tuple of str
        The columns that a table of this package may lack, because an option of the measure was not given. A table
        without another column is damaged.
    """

    columns: tuple[str, ...]
    keys: tuple[str, ...] = ("step",)
    renamed: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    optional: tuple[str, ...] = ()


def _no_facts(dataset: xr.Dataset) -> Facts:
    return "", {}


@dataclass(frozen=True)
class Measure:
    """One statistic of weights over training.

    Parameters
    ----------
    name : str
        Name of the command (with ``-`` for ``_``), the result files, the figure and the section of the report.
    title : str
        Heading of its figure and its section.
    source : str
        The publication of its equation.
    finish : callable
        ``finish(history, *sums, **options) -> xarray.Dataset``. `sums` are the filled `accumulators` in their order.
        With a `per_step` the list of its values follows: one per step, None for a step without a value.
    accumulators : tuple of callable
        Each returns an empty `Accumulator`. All measures share one pass over the weights that fills them. Measures with
        the same callable share one accumulator.
    per_step : callable, optional
        ``per_step(**options)`` returns a function of the `FrameGram` of a step. It is called for every step, in a pass
        that all measures with a `per_step` share.
    function : callable, optional
        The public function of the measure. Its keyword-only arguments except `compute` are the options of the measure.
        Without a function, those of `finish` are the options.
    tables : mapping of str to Table
        The CSV tables by name.
    saves_array : bool
        Whether the complete dataset is also saved, as ``<name>.zarr``.
    on_save : callable, optional
        ``on_save(dataset)`` returns the dataset with variables that are computed only when results are saved.
    summarise : callable
        ``summarise(dataset)`` returns one sentence for readers, and a mapping of facts for programs.
    draw : callable, optional
        ``draw(axes, dataset)`` draws the saved dataset on one matplotlib `Axes`. Without it, and without a figure in
        `pythia_dynamics.figures`, the columns of the first table are drawn over the step.
    companions : tuple of str
        Names of measures that its command also computes, unless ``--no-<name>`` is given.
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
        if keyword.iskeyword(self.name):
            raise PythiaDynError(f"the name of a measure must not be a keyword of Python; got {self.name!r}")
        if not self.accumulators and self.per_step is None:
            raise PythiaDynError(f"measure {self.name} must have accumulators or a function per step")

    @property
    def options(self) -> dict[str, Option]:
        """Its options by name, as its public function, or `finish`, declares them."""
        declared = self.function or self.finish
        names = _AnnotationNames({**vars(builtins), **getattr(declared, "__globals__", {})})
        found = {}
        for name, parameter in inspect.signature(declared).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name != "compute":
                kind, flag = parameter.annotation, None
                if isinstance(kind, str):
                    kind = eval(kind, {}, names)
                if get_origin(kind) is Annotated:
                    kind, *extras = get_args(kind)
                    flag = next((extra for extra in extras if isinstance(extra, Flag)), None)
                if name != "steps" or flag is not None:  # the steps of a public function are no option of the measure
                    found[name] = Option(name, parameter.default, kind, flag)
        return found

    @property
    def saves(self) -> bool:
        """Whether it has result files. Without them it can be computed in Python, but has no command and no figure."""
        return bool(self.tables) or self.saves_array

    @property
    def uses_gram(self) -> bool:
        """Whether the measure uses Gram matrices, which are computed on `Compute.device`."""
        return self.per_step is not None or Gram in self.accumulators

    def __call__(
        self, history: Any, *, steps: Sequence[int] | None = None, compute: Compute | None = None, **options: Any
    ) -> xr.Dataset:
        """The dataset of this measure for a history, the name of a model, or an array; see `compute_measures`."""
        return compute_measures(as_history(history, steps), [self], {self.name: options}, compute)[self.name]

    def call(self, part: str, *arguments: Any, **options: Any) -> Any:
        """Call one of its functions.

        Parameters
        ----------
        part
            The function: ``finish``, ``per_step``, ``on_save``, ``summarise`` or ``draw``.
        arguments, options
            Its arguments.

        Raises
        ------
        PythiaDynError
            A function that is not of this package raises an exception, or returns a value of a wrong type.
        """
        import xarray as xr

        found = _guarded(self, part, getattr(self, part))(*arguments, **options)
        if part in ("finish", "on_save") and not isinstance(found, xr.Dataset):
            raise PythiaDynError(f"{_subject(self.name, part)} returned a {type(found).__name__}, not a Dataset")
        if part in ("finish", "on_save") and not any("step" in column.dims for column in found.data_vars.values()):
            raise PythiaDynError(f"{_subject(self.name, part)} returned a Dataset without a variable over step")
        if part == "summarise":
            kinds = tuple(map(type, found)) if isinstance(found, tuple) else ()
            if len(kinds) != 2 or not issubclass(kinds[0], str) or not issubclass(kinds[1], Mapping):
                raise PythiaDynError(f"{_subject(self.name, part)} did not return a sentence and a mapping of facts")
        return found


def _subject(name: str, part: str) -> str:
    """A function of a measure, as the subject of a message."""
    return f"the measure {name} ({part})"


def _guarded(measure: Measure, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with one-line errors, unless it is of this package: its exceptions are defects, and keep their type.

    The result can be pickled if `function` can.
    """
    if str(getattr(function, "__module__", "")).startswith("pythia_dynamics."):
        return function
    return partial(_call, measure.name, part, function)


def _call(name: str, part: str, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Call a function of a user's measure. An exception becomes one line that names the measure and the function."""
    try:
        return function(*arguments, **options)
    except PythiaDynError:
        raise
    except Exception as error:  # a user's function can raise any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise PythiaDynError(f"{_subject(name, part)} failed: {reason}") from error


class _GuardedSums:
    """An accumulator of a user's measure, with one-line errors. `filled` is the accumulator itself."""

    def __init__(self, name: str, filled: Any) -> None:
        self.name, self.filled = name, filled

    def _do(self, action: Callable[[Any], Any]) -> Any:
        return _call(self.name, "accumulators", action, self.filled)

    @property
    def mixes_steps(self) -> bool:
        return bool(self._do(attrgetter("mixes_steps")))

    @property
    def uses_device(self) -> bool:
        return bool(self._do(attrgetter("uses_device")))

    def start(self, frames: Any, device: str) -> _GuardedSums:
        return _GuardedSums(self.name, self._do(methodcaller("start", frames, device)))

    def fork(self) -> _GuardedSums:
        return _GuardedSums(self.name, self._do(methodcaller("fork")))

    def update(self, frames: Any, start: int, stop: int) -> None:
        self._do(methodcaller("update", frames, start, stop))

    def merge(self, other: _GuardedSums) -> None:
        self._do(methodcaller("merge", other.filled))

    def nonfinite_frames(self) -> Any:
        return self._do(methodcaller("nonfinite_frames"))

    def refine(self) -> _GuardedSums | None:
        better = self._do(methodcaller("refine"))
        return None if better is None else _GuardedSums(self.name, better)


def _empty(measure: Measure, factory: Callable[[], Accumulator]) -> Any:
    """An empty accumulator of a measure."""
    make = _guarded(measure, "accumulators", factory)
    return make() if make is factory else _GuardedSums(measure.name, make())


class _AnnotationNames(dict[str, Any]):
    """Names in annotations. A name that is imported only for type checkers is Any."""

    def __missing__(self, name: str) -> Any:
        return Any


def compute_measures(
    history: Any,
    measures: Sequence[Measure],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Compute | None = None,
) -> dict[str, xr.Dataset]:
    """Compute measures from one pass over all weights and one Gram matrix per step, as far as they need them.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    measures : sequence of Measure
        The measures.
    options : mapping of str to mapping, optional
        Options by measure and name.
    compute : Compute, optional
        How to compute. Progress counts thousandths of the whole work.

    Returns
    -------
    dict of str to xarray.Dataset
        The dataset of each measure by name.

    Raises
    ------
    UnknownNameError
        A measure does not have an option of that name.
    PythiaDynError
        The squares of the weights are not finite, a measure cannot be computed with its options, or a function of a
        user's measure fails.
    """
    history, compute = as_history(history), compute or Compute()
    given = {measure.name: _checked(measure, (options or {}).get(measure.name, {})) for measure in measures}
    functions = {
        measure.name: _guarded(measure, "per_step", measure.call("per_step", **given[measure.name]))
        for measure in measures
        if measure.per_step is not None
    }
    warn_missing(history)
    factories: dict[Callable[[], Accumulator], Measure] = {}
    for measure in measures:
        for factory in measure.accumulators:
            factories.setdefault(factory, measure)
    first_share = 500 if factories and functions else 1000  # thousandths of the work in the first pass
    filled: dict[Callable[[], Accumulator], Any] = {}
    if factories:
        empty = [_empty(measure, factory) for factory, measure in factories.items()]
        try:
            sums_of_all = sweep(history, empty, compute.part(0, first_share))
            filled = {
                factory: found.filled if isinstance(found, _GuardedSums) else found
                for factory, found in zip(factories, sums_of_all, strict=True)
            }
        except PartSavedError:
            if not functions:  # else the second pass saves its part as well, and ends the job
                raise
    values: dict[str, list[Any]] = {}
    if functions:
        part = compute.part(1000 - first_share, first_share)
        found = map_gram_matrices(history, list(functions.values()), part, warn=not factories)
        values = dict(zip(functions, found, strict=True))
    results = {}
    for measure in measures:
        sums: list[Any] = [filled[factory] for factory in measure.accumulators]
        sums += [values[measure.name]] if measure.name in values else []
        results[measure.name] = measure.call("finish", history, *sums, **given[measure.name])
    return results


def _checked(measure: Measure, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a measure: the given values, and defaults for the others."""
    known = measure.options
    for name in given:
        if name not in known:
            raise UnknownNameError("option", name, known, where=measure.name)
    for name, option in known.items():
        if name in given and not option.allows(given[name]):
            allowed = ", ".join(map(repr, option.choices))
            raise PythiaDynError(f"the option {name} of {measure.name} must be one of {allowed}; got {given[name]!r}")
        if name not in given and option.is_required:
            raise PythiaDynError(f"{measure.name} needs the option {name}")
    return {name: given.get(name, option.default) for name, option in known.items()}
