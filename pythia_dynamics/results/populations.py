"""Saved results of several runs (seeds, sizes) as one dataset with the dimension `run`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pythia_dynamics.checkpoints.modules import find_place
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.checkpoints.roles import ALL
from pythia_dynamics.errors import FormatError, PythiaDynError, UnknownNameError
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.results.overview import place_coordinates
from pythia_dynamics.results.runs import RunName, find_runs, seed_of

__all__ = ["gather", "recorded_coordinate"]

_ARRAY = ".zarr"
"""End of a name that means the saved array of a measure, not its table."""

_EVALUATIONS = (
    *("perplexity-forward", "perplexity-unmask", "perplexity-unmask-prefix", "perplexity-last-word"),
    "representation",
)
_OTHER_TABLES = ("stop",)
_OTHER_ARRAYS = ("phases",)

_JOINED = ("step", "other_step", "lag", "prefix")
"""Dimensions whose values depend on which records a run has: the union over runs is taken. Others must be equal."""

_SETTINGS = ("drop_padding", "corpus", "corpus_sha256", "passages", "dtype", "head", "max_tokens")
"""Settings in the provenance of a result that change what it is of, beside the options of its measure."""

_SIZES = ("shape", "weights_per_step")
"""Entries of the provenance that tell the shape of the tensor."""

_COORDINATES: Mapping[str, Mapping[str, str]] = {
    "tokens": {"long_name": "tokens seen", "units": "token"},
    "learning_rate": {"long_name": "learning rate", "units": "1"},
}

_NAMED = 3
"""Runs without a result that a warning names; further ones are counted."""


def gather(
    models: str | Path | Sequence[str | Path],
    *,
    measure: str = "msd",
    tensor: str | None = None,
    results: Path | str | None = None,
) -> xr.Dataset:
    """Saved results of several runs as one dataset with the dimension `run`. Nothing is computed.

    Parameters
    ----------
    models
        A name, a glob or a sequence of them. A name is that of a folder of results, or whatever `resolve` takes. A glob
        means the folders that it matches; where it matches none, the models whose aliases it matches: ``160m-seed*``.
    measure
        A measure (``msd``, ``two_time``), or one of its tables (``moments``, ``rank-infinite``,
        ``perplexity-last-word``, ``representation``, ``stop``). Of a measure that has tables the first one is read; its
        array, where it saves one, has the name ``density.zarr``.
    tensor
        Name or role of a measured tensor. Default: the unembedding, or the only tensor with results. ``all``, or a glob
        that matches several tensors, adds the dimension `tensor`.
    results
        The directory of all results; see `results_directory`.

    Returns
    -------
    xarray.Dataset
        The variables of the result over `run` and their own dimensions. `step` is the union over the runs; a step that
        a run has not is NaN. Coordinates over `run`: ``seed`` (NaN where the name has none), ``seed_kind`` (``seed``,
        ``data``, ``weight`` or empty), ``family`` (the name without the seed) and ``parameters`` (of the whole model,
        NaN where the registry does not know them). ``tokens`` and ``learning_rate`` are over `step` where all runs
        record them and agree, else over `run` and `step`; where no run records them, they are left out. Of several
        tensors there are also `layer`, `kind`, `is_bias` and `head` over `tensor`, as in `overview`; a tensor that a
        run lacks is NaN. Attributes:
        ``sources``, where each run is from; and ``left_out``, the runs that a glob means but that lack the result, each
        with the reason; a warning names them.

    Raises
    ------
    UnknownNameError
        There is no such run, measure or tensor; the message names the nearest ones.
    PythiaDynError
        A run that is named has no such result, or none of a glob has it: the message has the command that computes it.
        Results that cannot be joined: options, rows or texts differ; runs that differ in the seed only have tensors of
        different shapes; axes other than steps differ.
    FormatError
        A result is damaged.
    """
    source = _source(measure)
    root = results_directory(results)
    chosen = find_runs([models] if isinstance(models, (str, Path)) else models, root)
    several = None if tensor is None or source.of_model else _matching(chosen, tensor, root)
    if several is not None:
        if source.is_array:
            raise PythiaDynError(f"{measure} is an array; of several tensors gather a table such as msd or order")
        parts, left_out = _read_tensors(chosen, source, several, root)
    else:
        runs, left_out = _read_runs(chosen, source, tensor, root)
        parts = {tensor or "": runs}
    if left_out:
        _warn_left_out(left_out)
    joined = {}
    for name, runs in parts.items():
        _require_same_settings(runs, source)
        joined[name] = _joined(runs, source.name)
    every = [run for runs in parts.values() for run in runs]
    _warn_versions(every, source)
    dataset = next(iter(joined.values()))
    if several is not None:
        dataset = _side_by_side(joined, [run.name for run in chosen])
    names = [str(name) for name in dataset["run"].to_numpy()]
    seeds = [seed_of(name) for name in names]
    labels: dict[str, tuple[Any, str]] = {
        "seed": ([seed.number for seed in seeds], "seed in the name of the run"),
        "seed_kind": (np.array([seed.kind for seed in seeds], dtype=str), "what is random"),
        "family": (np.array([seed.family for seed in seeds], dtype=str), "name without the seed"),
        "parameters": (np.array([_parameters(name) for name in names]), "number of parameters of the model"),
    }
    dataset = dataset.assign_coords({key: ("run", value, {"long_name": text}) for key, (value, text) in labels.items()})
    if "step" in dataset.dims:
        folders = (
            [Results(name, root) for name in names] if "tensor" in dataset.dims else [run.results for run in every]
        )
        dataset = dataset.assign_coords(_step_coordinates(folders, dataset["step"].to_numpy()))
    tensors = sorted({run.results.tensor or "" for run in every})
    return dataset.assign_attrs(
        measure=source.name,
        tensor=tensor if "tensor" in dataset.dims else ", ".join(filter(None, tensors)),
        is_unembedding=all(run.results.is_unembedding for run in every),
        sources={run.name: _told(run) for run in every},
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Source:
    """A result that is gathered: its name, the measure that its provenance is under, and whether it is an array."""

    name: str
    entry: str
    is_array: bool
    options: tuple[str, ...]

    @property
    def of_model(self) -> bool:
        """Whether it is of the whole model, not of the weights of a tensor."""
        return self.name in _EVALUATIONS


@dataclass(frozen=True, eq=False)
class _Run:
    """The result of one run."""

    name: str
    results: Results
    dataset: xr.Dataset
    made: Mapping[str, Any]


def _source(wanted: str) -> _Source:
    """The result that a name means."""
    measures = known_measures()
    spelled, is_array = wanted.removesuffix(_ARRAY), wanted.endswith(_ARRAY)
    tables = {table: one for one in measures.values() for table in one.tables}
    measure = measures.get(spelled) or measures.get(spelled.replace("-", "_"))
    if not is_array and spelled in tables:
        return _Source(spelled, tables[spelled].name, False, tuple(tables[spelled].options))
    if not is_array and spelled in (*_EVALUATIONS, *_OTHER_TABLES):
        return _Source(spelled, spelled.removesuffix("-prefix"), False, ("kind", "threshold", "patience", "after"))
    if measure is not None and measure.tables and not is_array:
        return _Source(next(iter(measure.tables)), measure.name, False, tuple(measure.options))
    if measure is not None and measure.saves_array:
        return _Source(measure.name, measure.name, True, tuple(measure.options))
    if spelled in _OTHER_ARRAYS:
        return _Source(spelled, spelled, True, ("strength",))
    arrays = [f"{one.name}{_ARRAY}" for one in measures.values() if one.saves_array and one.tables]
    known = dict.fromkeys((*measures, *tables, *_EVALUATIONS, *_OTHER_TABLES, *_OTHER_ARRAYS, *arrays))
    raise UnknownNameError("measure or table", wanted, known)


def _folder(run: RunName, source: _Source, tensor: str | None, root: Path) -> Results:
    """The folder of results of a run that a tensor means."""
    folder = Results(run.name, root)
    if source.of_model:
        if tensor is not None:
            raise PythiaDynError(f"{source.name} is of whole models; leave out the tensor {tensor}")
        return folder
    if tensor is None:
        return folder.weights()
    return folder.select([tensor])[0] if folder.tensors else folder.of(tensor)


def _read(run: RunName, source: _Source, folder: Results) -> _Run:
    """The result of one run. Raises `PythiaDynError` with the command that computes it where it is not there."""
    path = folder.path / f"{source.name}{_ARRAY if source.is_array else '.csv'}"
    if not path.exists():
        raise PythiaDynError(f"{path} is missing: run {folder.command_for(source.name, run.typed)}")
    dataset = folder.read_zarr(source.name) if source.is_array else folder.read_table(source.name)
    return _Run(run.name, folder, dataset, folder.provenance().get(source.entry, {}))


def _read_runs(
    chosen: Sequence[RunName], source: _Source, tensor: str | None, root: Path
) -> tuple[list[_Run], dict[str, str]]:
    """The results of the runs, and the runs of a glob that have none, with the reason."""
    read: list[_Run] = []
    left_out: dict[str, str] = {}
    for run in chosen:
        try:
            read.append(_read(run, source, _folder(run, source, tensor, root)))
        except FormatError:
            raise
        except PythiaDynError as error:
            if run.is_named:
                raise
            left_out[run.name] = str(error)
    if not read:
        raise PythiaDynError(next(iter(left_out.values())) if left_out else "no run is named")
    return read, left_out


def _matching(chosen: Sequence[RunName], pattern: str, root: Path) -> tuple[str, ...] | None:
    """The tensors that a pattern means, in the order of the model; None where it means one tensor of a run."""
    found: list[list[str]] = []
    for run in chosen:
        with contextlib.suppress(PythiaDynError):  # the run has none; another run may
            found.append([str(one.tensor) for one in Results(run.name, root).select([pattern])])
    if pattern != ALL and max(map(len, found), default=0) < 2:
        return None
    return tuple(sorted({name for names in found for name in names}, key=lambda name: (find_place(name).order, name)))


def _read_tensors(
    chosen: Sequence[RunName], source: _Source, tensors: Sequence[str], root: Path
) -> tuple[dict[str, list[_Run]], dict[str, str]]:
    """The results of the runs by tensor, and the runs of a glob that have none of any tensor, with the reason."""
    read: dict[tuple[str, str], _Run] = {}
    why: dict[str, PythiaDynError] = {}
    for run in chosen:
        folder = Results(run.name, root)
        for tensor in set(folder.tensors).intersection(tensors):
            try:
                read[run.name, tensor] = _read(run, source, folder.of(tensor))
            except FormatError:
                raise
            except PythiaDynError as error:
                why.setdefault(run.name, error)
    by_tensor = {tensor: [read[run.name, tensor] for run in chosen if (run.name, tensor) in read] for tensor in tensors}
    parts = {tensor: runs for tensor, runs in by_tensor.items() if runs}
    having = {run.name for runs in parts.values() for run in runs}
    for run in chosen:
        if run.name not in having and (run.is_named or not having):
            command = f"pythia-dyn {source.entry.replace('_', '-')} --model {run.typed} --tensor {ALL}"
            raise why.get(run.name) or PythiaDynError(f"{run.name} has no results of {source.name}: run {command}")
    return parts, {name: str(error) for name, error in why.items() if name not in having}


def _side_by_side(joined: Mapping[str, xr.Dataset], runs: Sequence[str]) -> xr.Dataset:
    """Datasets of tensors along the new dimension `tensor`, with the place of each; what a run lacks is NaN."""
    dataset = xr.concat(list(joined.values()), dim="tensor", join="outer", data_vars="all", coords="minimal")
    known = set(dataset["run"].to_numpy().tolist())
    return dataset.sel(run=[name for name in runs if name in known]).assign_coords(place_coordinates(list(joined)))


def _warn_left_out(left_out: Mapping[str, str]) -> None:
    """Say which runs of a glob have no result, with the reason of the first."""
    names, first = list(left_out), next(iter(left_out.values()))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    warnings.warn(f"left out: {', '.join(names[:_NAMED])}{more} ({first})", stacklevel=3)


def _parameters(name: str) -> float:
    """The number of parameters of a model of the registry, NaN of others."""
    try:
        architecture = resolve(name).architecture
    except PythiaDynError:
        return np.nan
    return np.nan if architecture is None else float(architecture.parameters)


def _require_same_settings(runs: Sequence[_Run], source: _Source) -> None:
    """Check that results differ in their runs only. What a provenance does not record is not compared."""
    for entry in (*source.options, *_SETTINGS):
        known = {run.name: run.made[entry] for run in runs if entry in run.made and _is_plain(run.made[entry])}
        _require_equal(known, f"{source.name} was computed with another {entry.replace('_', ' ')}", runs, source)
    families = {run.name: seed_of(run.name).family for run in runs}
    for family in dict.fromkeys(families.values()):
        same = [run for run in runs if families[run.name] == family]
        for entry in _SIZES:
            sizes = {run.name: run.made[entry] for run in same if entry in run.made}
            _require_equal(sizes, f"runs of {family} have another {entry.replace('_', ' ')}", runs, source)
    heads = [run.results.is_unembedding for run in runs]
    tensors = {run.name: run.results.tensor for run in runs}
    if not all(heads):  # unembeddings have other names in other architectures
        _require_equal(tensors, "these are different tensors", runs, source)


def _warn_versions(runs: Sequence[_Run], source: _Source) -> None:
    """Say where results were computed by several versions of this package."""
    versions = {run.made["pythia_dynamics"] for run in runs if "pythia_dynamics" in run.made}
    if len(versions) > 1:
        named = ", ".join(sorted(map(str, versions)))
        warnings.warn(f"{source.name} was computed by different versions of pythia-dynamics: {named}", stacklevel=3)


def _told(run: _Run) -> dict[str, Any]:
    """Where the weights of a run are from, and when its result was computed, by which version."""
    entries = {"source": "source", "location": "source", "time": "time", "pythia_dynamics": "pythia_dynamics"}
    return {name: run.made[entry] for entry, name in entries.items() if entry in run.made}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool, list))


def _require_equal(known: Mapping[str, Any], what: str, runs: Sequence[_Run], source: _Source) -> None:
    """Raise `PythiaDynError` with the command where a value differs between runs."""
    if not known:
        return
    first, value = next(iter(known.items()))
    odd = next((name for name, other in known.items() if other != value), None)
    if odd is not None:
        results = next(run.results for run in runs if run.name == odd)
        words = f"{value} of {first}, {known[odd]} of {odd}"
        raise PythiaDynError(f"{what}: {words}; run {results.command_for(source.name)} with the same options")


def _joined(runs: Sequence[_Run], what: str) -> xr.Dataset:
    """The datasets along the new dimension; steps are the union, other axes must be equal."""
    plain = [_numbers(run.dataset) for run in runs]
    axes = {dim: plain[0][dim].to_numpy() for dim in plain[0].dims if dim in plain[0].coords}
    for run, dataset in zip(runs, plain, strict=True):
        for dim in dataset.dims:
            if dim in _JOINED:
                continue
            same = dataset.sizes[dim] == plain[0].sizes.get(dim)
            if same and dim in axes:
                same = np.array_equal(axes[dim], dataset[dim].to_numpy())
            if not same:
                raise PythiaDynError(f"{what} of {runs[0].name} and {run.name} have different values of {dim}")
    columns = {name: column for dataset in plain for name, column in dataset.data_vars.items()}
    filled = [
        dataset.assign({name: xr.full_like(column, np.nan) for name, column in columns.items() if name not in dataset})
        if set(columns) - set(dataset.data_vars)
        else dataset
        for dataset in plain
    ]
    names = xr.DataArray([run.name for run in runs], dims="run", name="run")
    joined = xr.concat(
        filled, dim=names, data_vars="all", join="outer", combine_attrs="drop_conflicts", coords="minimal"
    )
    return joined.drop_attrs(deep=False)


def _numbers(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset whose whole numbers and booleans are float64, so that a gap is NaN, without coordinates that are not
    of a dimension."""
    dataset = dataset.drop_vars([name for name in dataset.coords if name not in dataset.dims])
    return dataset.map(lambda column: column.astype(np.float64) if column.dtype.kind in "iub" else column)


def recorded_coordinate(results: Results, name: str) -> dict[int, float]:
    """The tokens or the learning rate by step, as the provenance of results of weights records them.

    Parameters
    ----------
    results
        The results of a model, of which all tensors are read, or of one tensor.
    name
        ``tokens`` or ``learning_rate``.

    Returns
    -------
    dict of int to float
        The newest record of a step counts; NaN where it is not known at a step that has been measured.
    """
    folders = [results] if results.tensor is not None else [results.of(tensor) for tensor in results.tensors]
    made = [one for folder in folders for one in folder.provenance().values()]
    known: dict[int, float] = {}
    for one in sorted(made, key=lambda one: str(one.get("time"))):
        recorded, steps = one.get("coordinates"), one.get("steps")
        values = recorded.get(name) if isinstance(recorded, dict) else None
        if isinstance(steps, list) and isinstance(values, list) and len(values) == len(steps):
            known |= dict(zip(steps, [np.nan if value is None else value for value in values], strict=True))
    return known


def _step_coordinates(folders: Iterable[Results], steps: NDArray[Any]) -> dict[str, Any]:
    """Tokens and learning rate over `step`, or over `run` and `step` where the runs differ."""
    found: dict[str, Any] = {}
    for name, label in _COORDINATES.items():
        rows = [recorded_coordinate(folder, name) for folder in folders]
        values = np.array([[row.get(int(step), np.nan) for step in steps] for row in rows], dtype=np.float64)
        if not np.isfinite(values).any():
            continue
        known = np.isfinite(values)
        first = np.where(known.any(axis=0), values[known.argmax(axis=0), np.arange(len(steps))], np.nan)
        agree = np.isclose(values, first, rtol=1e-9, atol=0) | ~known
        same = agree.all() and known.any(axis=1).all()
        found[name] = ("step", first, label) if same else (("run", "step"), values, label)
    return found
