"""The density of the weights over training (Garden of Forking Paths, Fig 2), from exact counts of every value.

A 16-bit float has 65,536 codes. Their exact counts give every histogram, quantile and moment without another reading
of the weights. float32 and float64 weights are counted after rounding to float16; their moments, minimum and maximum
come from the values themselves, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.dip import dip_test
from pythia_dynamics.measures.measure import Flag, Measure, Table
from pythia_dynamics.measures.modes import MODES_METHOD, find_modes, independent_weights, quantiles_of
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DENSITY", "QUANTILES", "density"]

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Levels of the saved quantiles: the quartiles, and the usual levels of both tails."""


def density(
    history: Any,
    *,
    bins: Annotated[
        int | Sequence[float] | NDArray[Any], Flag("Number of equal bins of the density.", minimum=1)
    ] = 512,
    quantiles: Sequence[float] = QUANTILES,
    steps: Sequence[int] | None = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Density, quantiles, moments and number of modes of the weights at every step (Garden, Fig 2).

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    bins : int or sequence of float
        Number of equal bins from the least to the greatest finite weight of the history, or the edges of the bins. As
        in `numpy.histogram`, bins are half open, the last bin is closed, and weights outside are not counted.
    quantiles : sequence of float
        Levels between 0 and 1.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        Over `step`, NaN at missing steps:

        * `histogram` (step, weight), exact counts as float64, and `density`, the counts divided by N times the bin
          width; `weight` is the middle of a bin, `weight_low` and `weight_high` are its edges;
        * `counts` (step, value): exact counts of every 16-bit value that occurs (0 at missing steps);
        * `weight_quantile` (step, quantile): the least value whose cumulative count reaches the quantile (NumPy's
          ``inverted_cdf``);
        * `mean`, `std` (population), `skewness`, `kurtosis` (excess), `bimodality` (Sarle), `min`, `max`, `nonfinite`
          (number of weights) and `modes` (see `MODES_METHOD`).

        Finite float32 and float64 weights beyond ±65,504, the largest float16, are in no bin and no count. At a step
        with weights that are not finite, `nonfinite` and the counts are valid and all other variables are NaN.

    Raises
    ------
    PythiaDynError
        A quantile is outside 0 to 1, there is no bin, or the edges do not increase.
    """
    return DENSITY(history, bins=bins, quantiles=quantiles, steps=steps, compute=compute)


def _finish(
    history: History,
    counts: Counts,
    *,
    bins: int | Sequence[float] | NDArray[Any],
    quantiles: Sequence[float],
) -> xr.Dataset:
    levels = np.asarray(quantiles, dtype=np.float64)
    if not np.all((levels >= 0) & (levels <= 1)):
        raise PythiaDynError(f"quantiles lie between 0 and 1; got {list(quantiles)}")
    values, table = counts.occurring
    edges = _edges(values, bins)
    # Values are sorted, so the count of a bin is a difference of cumulative counts. The last bin is closed.
    indices = np.searchsorted(values, edges)
    indices[-1] = np.searchsorted(values, edges[-1], side="right")
    sums = np.empty(len(values) + 1, np.int64)
    histogram = np.empty((len(table), len(edges) - 1))
    moments = counts.moments
    quantile = np.full((len(table), len(levels)), np.nan)
    modes = np.full(len(table), np.nan)
    independent = independent_weights(counts.size, history.frame_shape)
    for t, (row, nonfinite) in enumerate(zip(table, moments.nonfinite, strict=True)):
        kernels.cumulate(row, sums)
        histogram[t] = np.diff(sums[indices])
        if not nonfinite and sums[-1]:
            quantile[t] = quantiles_of(values, sums, levels)
            modes[t] = find_modes(values, row, independent, counted_as=counts.counted_as).count
    full = table
    if len(table) < len(history.steps):
        full = np.zeros((len(history.steps), len(values)), np.uint32)  # a missing step has no weights: 0, not NaN
        full[counts.indices] = table
    per_bin = ("step", "weight")
    variables = {
        "histogram": Variable(histogram, "number of weights in the bin", dims=per_bin),
        "density": Variable(histogram / (counts.size * np.diff(edges)), "density of the weights", dims=per_bin),
        "counts": Variable(full, "number of weights of this value", dims=("step", "value")),
        "weight_quantile": Variable(quantile, "quantile of the weights", dims=("step", "quantile")),
        "modes": Variable(modes, "number of modes", attrs={"method": MODES_METHOD}),
        "mean": Variable(moments.mean, "mean weight"),
        "std": Variable(moments.std, "standard deviation of the weights"),
        "skewness": Variable(moments.skewness, "skewness"),
        "kurtosis": Variable(moments.kurtosis, "excess kurtosis"),
        "bimodality": Variable(moments.bimodality, "Sarle's bimodality coefficient"),
        "min": Variable(moments.min, "least weight"),
        "max": Variable(moments.max, "greatest weight"),
        "nonfinite": Variable(moments.nonfinite, "number of weights that are not finite"),
    }
    return step_dataset(
        history,
        variables,
        at=counts.indices,
        coords={
            "weight": (edges[1:] + edges[:-1]) / 2,
            "weight_low": ("weight", edges[:-1]),
            "weight_high": ("weight", edges[1:]),
            "value": values,
            "quantile": levels,
        },
        attrs={
            "weights_per_step": counts.size,
            "independent_weights": independent,
            "counted_as": counts.counted_as,
            "rounding_before_counting": "float16" if counts.direct else "none",
        },
    )


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    spread, modes = ends(dataset["std"]), ends(dataset["modes"])
    sentence = f"standard deviation {format_ends(spread)}; modes {format_ends(modes)}"
    return sentence, {"std": spread, "modes": modes, "nonfinite": float(np.nansum(dataset["nonfinite"]))}


def _with_dip(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(dip_test(dataset))


DENSITY = Measure(
    name="density",
    title="Weight density (Garden, Fig 2)",
    source="Nicolini et al., arXiv 2403.08739, Fig 2; Silverman 1986; Sarle; Hartigan & Hartigan 1985",
    function=density,
    accumulators=(Counts,),
    finish=_finish,
    tables={
        "moments": Table(
            (
                *("step", "mean", "std", "skewness", "kurtosis", "bimodality", "min", "max", "nonfinite"),
                *("modes", "dip", "dip_p"),
            ),
            title="Moments of the weights",
        )
    },
    saves_array=True,
    on_save=_with_dip,
    summarise=_summarise,
)


def _edges(values: NDArray[np.float64], bins: int | Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    if isinstance(bins, (int, np.integer)):
        if bins < 1:
            raise PythiaDynError(f"the number of bins must be at least 1; got {bins}")
        low, high = (values[0], values[-1]) if len(values) else (0.0, 1.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        return np.linspace(low, high, int(bins) + 1)
    edges = np.asarray(bins, dtype=np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0):
        raise PythiaDynError("bin edges must be at least two increasing numbers")
    return edges
