"""One curve of a gathered dataset: which variable is meant, and which runs are replicates of one another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.measures.rank import SHOWN_TOLERANCES

__all__ = ["curve_of", "per_parameter", "replicates", "units_of"]

_MAIN: Mapping[str, str] = {
    "moments": "std",
    "angles": "angle",
    "order": "order_parameter",
    "spectrum": "effective_rank",
    "stop": "displacement_rate",
    "phases": "displacement_rate",
    "perplexity-forward": "ppl_corpus",
    "perplexity-unmask": "ppl_corpus",
    "representation": "effective_rank",
}
"""The curve that is meant where none is named and the first one of the table is not the one people ask for."""

_UNITS: Mapping[str, str] = {
    **dict.fromkeys(("msd", "msd_null", "msd_time", "msd_time_null", "displacement"), "weight²"),
    **dict.fromkeys(("mean", "std", "min", "max", "frobenius_norm", "rms"), "weight"),
    "entropy": "nats",
    **dict.fromkeys(("angle", "angle_null"), "degrees"),
    **dict.fromkeys(("nll_mean", "loss"), "nats per token"),
    **dict.fromkeys(("kl_unigram", "kl_bigram"), "nats per token"),
    "displacement_rate": "per 1,000 steps",
}
"""Units of the columns of tables, which a CSV file does not hold. Others are pure numbers, or not known."""

_KINDS: Mapping[str, str] = {"data": ", data seeds", "weight": ", weight seeds"}
"""How runs in which only one part is random are told from those in which both are."""


def curve_of(dataset: xr.Dataset, variable: str | None = None) -> xr.DataArray:
    """One number per run and step.

    Parameters
    ----------
    dataset
        The result of `pythia_dynamics.gather`.
    variable
        Its variable. Default: the main one of the measure. Of a rank, that of the greatest batch at the tolerance of
        the figures, absolute; the name of the curve says so.

    Returns
    -------
    xarray.DataArray
        Over `run` and `step`, with the coordinates of the dataset, and the attribute ``units`` where that is known.

    Raises
    ------
    UnknownNameError
        There is no such variable.
    PythiaDynError
        The variable is no curve over steps, or there is no curve at all.
    """
    dataset = _of_one_rank(dataset)
    names = [str(name) for name, column in dataset.data_vars.items() if set(column.dims) == {"run", "step"}]
    measure = str(dataset.attrs.get("measure", ""))
    if not names:
        raise PythiaDynError(f"{measure or 'the dataset'} has no curve over steps; gather a table such as msd or order")
    if variable is None:
        main = _MAIN.get(measure, names[0])
        variable = main if main in names else names[0]
    if variable in dataset.data_vars and variable not in names:
        dims = ", ".join(map(str, dataset[variable].dims))
        raise PythiaDynError(f"{variable} is over {dims}, so it is no curve over steps; there are {', '.join(names)}")
    if variable not in names:
        raise UnknownNameError("variable", variable, names, where=measure)
    curve = dataset[variable].transpose("run", "step")
    return curve if "units" in curve.attrs or variable not in _UNITS else curve.assign_attrs(units=_UNITS[variable])


def units_of(variable: str) -> str:
    """The units of a column of a table; empty for a pure number, or where they are not known.

    Parameters
    ----------
    variable
        Its name.
    """
    return _UNITS.get(variable, "")


def _of_one_rank(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset of ranks at the greatest batch and one tolerance; any other one as it is."""
    if "convention" not in dataset.dims or "tolerance" not in dataset.dims:
        return dataset
    known = dataset["tolerance"].to_numpy()
    tolerance = float(known[np.argmin(np.abs(known - SHOWN_TOLERANCES["absolute"]))])
    dataset = dataset.sel({"convention": "absolute", "tolerance": tolerance}, drop=True)  # a keyword of `sel`, too
    words = f"absolute tolerance {tolerance:g}"
    if "batch_size" in dataset.dims:
        size = int(dataset["batch_size"].max())
        dataset, words = dataset.sel(batch_size=size, drop=True), f"B = {size}, {words}"
    return dataset.assign({name: one.assign_attrs(selected=words) for name, one in dataset.data_vars.items()})


def per_parameter(curve: xr.DataArray) -> xr.DataArray:
    """A curve divided by the number of parameters of each model, so that several sizes share an axis.

    Parameters
    ----------
    curve
        The result of `curve_of`.

    Raises
    ------
    PythiaDynError
        The number of parameters of a run is not known.
    """
    unknown = curve["run"].to_numpy()[~np.isfinite(curve["parameters"].to_numpy())]
    if unknown.size:
        raise PythiaDynError(f"the number of parameters of {unknown[0]} is not known: the registry has that of Pythia")
    return (curve / curve["parameters"]).rename(curve.name).assign_attrs(curve.attrs)


def replicates(curve: xr.DataArray) -> dict[str, xr.DataArray]:
    """The curves of the runs that are replicates of one another: that differ in one kind of seed only.

    Parameters
    ----------
    curve
        The result of `curve_of`.

    Returns
    -------
    dict of str to xarray.DataArray
        By the name of the family, with the kind where only data or only weights are random. The run without a seed in
        its name, the first one published, is one of those in which both are.
    """
    families, kinds = (curve[name].to_numpy().astype(str) for name in ("family", "seed_kind"))
    labels = np.array([family + _KINDS.get(kind, "") for family, kind in zip(families, kinds, strict=True)])
    return {str(label): curve.isel(run=np.flatnonzero(labels == label)) for label in dict.fromkeys(labels.tolist())}
