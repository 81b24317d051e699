"""The density of the weights over training (Garden of Forking Paths, Fig 2), from exact counts of every value.

A 16-bit float has 65,536 codes. Counting them once, exactly, gives every binning, quantile and moment afterwards
without reading the weights again. float32 and float64 weights are counted after rounding to float16; their moments,
least and greatest value come from the values themselves, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.history import History
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import warn_missing
from pythia_dynamics.sweep.sweep import sweep

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MODES_METHOD", "QUANTILES", "count_modes", "density", "from_counts"]

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
MODES_METHOD = (
    "local maxima of the Gaussian kernel density estimate with Silverman's bandwidth 0.9 min(σ, IQR/1.34) n^(-1/5) "
    "(Silverman 1986, eq. 3.31), or the distance of neighbouring 16-bit values where that is more, that stand out by "
    "at least 5 % of the highest (topographic prominence)"
)
_PROMINENCE = 0.05
_CELLS = 1 << 14


def density(
    history: Any,
    *,
    bins: int | Sequence[float] | NDArray[Any] = 512,
    quantiles: Sequence[float] = QUANTILES,
    drop_padding: int | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """Density, quantiles, moments and number of modes of the weights at every step.

    `bins` is a number of equal bins from the least to the greatest finite weight of the history, or their edges, which
    count as in `numpy.histogram`: half open, the last one closed, what lies outside is not counted. `drop_padding` is
    the number of rows (vocabulary entries) to keep.

    Returns a dataset over `step`:

    * `histogram` (step, weight), exact counts as float64, and `density`, the same over N times the bin width; `weight`
      is the middle of a bin, `weight_low` and `weight_high` its edges;
    * `counts` (step, value): exact counts of every 16-bit value that occurs (zero rows where a step is missing);
    * `weight_quantile` (step, quantile): the least value whose cumulated count reaches the quantile (NumPy's
      ``inverted_cdf``);
    * `mean`, `std` (population), `skewness`, `kurtosis` (excess), `bimodality` (Sarle), `min`, `max`, `nonfinite`
      (number of weights) and `modes` (see `MODES_METHOD`).

    Finite float32 and float64 weights beyond ±65,504, the largest float16, are in no bin and no count. Missing steps
    are NaN. At a step with weights that are not finite, `nonfinite` and the counts hold, the rest is NaN.
    """
    history = as_history(history)
    warn_missing(history)
    (counts,) = sweep(
        history, [Counts()], drop_padding=drop_padding, threads=threads, executor=executor, progress=progress
    )
    return from_counts(history, counts, bins=bins, quantiles=quantiles)


def from_counts(
    history: History,
    counts: Counts,
    *,
    bins: int | Sequence[float] | NDArray[Any] = 512,
    quantiles: Sequence[float] = QUANTILES,
) -> xr.Dataset:
    """The dataset of `density` from counts already made."""
    import xarray as xr

    levels = np.asarray(quantiles, dtype=np.float64)
    if not np.all((levels >= 0) & (levels <= 1)):
        raise PythiaDynError(f"quantiles lie between 0 and 1; got {list(quantiles)}")
    steps = len(history.steps)
    values, table = counts.occurring
    edges = _edges(values, bins)
    # values are sorted, so a bin is a difference of cumulated counts; the last bin is closed
    borders = np.searchsorted(values, edges)
    borders[-1] = np.searchsorted(values, edges[-1], side="right")
    cumulated = np.empty((len(table), len(values) + 1), np.int64)
    for row, sums in zip(table, cumulated, strict=True):
        kernels.cumulate(row, sums)
    histogram = np.full((steps, len(edges) - 1), np.nan)
    histogram[counts.indices] = np.diff(cumulated[:, borders])
    full = table
    if len(table) < steps:
        full = np.zeros((steps, len(values)), np.uint32)
        full[counts.indices] = table
    levels_of = np.full((steps, len(levels)), np.nan)
    modes = np.full(steps, np.nan)
    moments = counts.moments
    for t, row, bad, spread in zip(counts.indices, cumulated, moments.nonfinite, moments.std, strict=True):
        if not bad and row[-1]:
            levels_of[t] = _quantiles(values, row, levels)
            modes[t] = _modes(values, row, spread, counts.counted_as)
    columns = {
        "mean": ("mean weight", moments.mean),
        "std": ("standard deviation of the weights", moments.std),
        "skewness": ("skewness", moments.skewness),
        "kurtosis": ("excess kurtosis", moments.kurtosis),
        "bimodality": ("Sarle's bimodality coefficient", moments.bimodality),
        "min": ("least weight", moments.min),
        "max": ("greatest weight", moments.max),
        "nonfinite": ("number of weights that are not finite", moments.nonfinite),
    }
    data: dict[str, Any] = {
        "histogram": (("step", "weight"), histogram, {"long_name": "number of weights in the bin", "units": "1"}),
        "density": (
            ("step", "weight"),
            histogram / (counts.size * np.diff(edges)),
            {"long_name": "density of the weights", "units": "1"},
        ),
        "counts": (("step", "value"), full, {"long_name": "number of weights of this value", "units": "1"}),
        "weight_quantile": (("step", "quantile"), levels_of, {"long_name": "quantile of the weights", "units": "1"}),
        "modes": ("step", modes, {"long_name": "number of modes", "units": "1", "method": MODES_METHOD}),
    }
    for name, (label, column) in columns.items():
        spread = np.full(steps, np.nan)
        spread[counts.indices] = column
        data[name] = ("step", spread, {"long_name": label, "units": "1"})
    rounding = "float16" if counts.direct else "none"
    return xr.Dataset(
        data,
        coords={
            "step": history.steps,
            "weight": (edges[1:] + edges[:-1]) / 2,
            "weight_low": ("weight", edges[:-1]),
            "weight_high": ("weight", edges[1:]),
            "value": values,
            "quantile": levels,
        },
        attrs={
            **history.provenance,
            "weights_per_step": counts.size,
            "counted_as": counts.counted_as,
            "rounding_before_counting": rounding,
        },
    )


def count_modes(values: NDArray[np.float64], counts: NDArray[Any]) -> int:
    """The number of modes of a density given as counts of sorted values, by `MODES_METHOD`. One value is one mode."""
    weights = counts / counts.sum()
    spread = np.sqrt(np.sum(weights * (values - np.sum(weights * values)) ** 2))
    return _modes(values, np.append(0, np.cumsum(counts, dtype=np.int64)), float(spread))


def _modes(
    values: NDArray[np.float64], cumulated: NDArray[np.int64], spread: float, counted_as: str | None = None
) -> int:
    """The same from cumulated counts and the standard deviation."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import find_peaks

    low, q1, q3, high = _quantiles(values, cumulated, np.array([0.0005, 0.25, 0.75, 0.9995]))
    narrow = min(spread, (q3 - q1) / 1.34) or spread
    width = 0.9 * narrow * float(cumulated[-1]) ** -0.2
    if width == 0:
        return 1
    if counted_as is not None:  # of rounded weights, every code would be a mode
        furthest = max(abs(low), abs(high))
        spacing = (
            np.spacing(np.float32(furthest)) * 2.0**16 if counted_as == "bfloat16" else np.spacing(np.half(furthest))
        )
        width = max(width, float(spacing))
    low, high = low - 4 * width, high + 4 * width
    cells = int(min(max(np.ceil((high - low) / (width / 4)), 16), _CELLS))
    grid = np.diff(cumulated[np.searchsorted(values, np.linspace(low, high, cells + 1))]).astype(np.float64)
    smooth = gaussian_filter1d(grid, width * cells / (high - low), mode="constant", truncate=6)
    peaks, _ = find_peaks(smooth, prominence=_PROMINENCE * smooth.max())
    return max(len(peaks), 1)


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


def _quantiles(
    values: NDArray[np.float64], cumulated: NDArray[np.int64], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The least value at which the cumulated count (from 0 on) reaches each level; for level 0 the least there is."""
    ranks = np.maximum(np.ceil(levels * cumulated[-1]), 1).astype(np.int64)
    places = np.searchsorted(cumulated[1:], ranks)
    chosen: NDArray[np.float64] = values[places]
    return chosen
