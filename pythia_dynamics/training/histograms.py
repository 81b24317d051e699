"""Histograms of recorded weights from exact counts, for Weights & Biases and trackio."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError, UnknownNameError, first_line, optional_import
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.counts import CODES, code_values
from pythia_dynamics.training.choices import Tracker

__all__ = ["MOST_BINS", "HistogramNotLoggedWarning", "HistogramTrackers", "WeightHistogram", "weight_histogram"]

MOST_BINS = 512
"""The largest number of bins that `wandb.Histogram` and `trackio.Histogram` take."""


class HistogramNotLoggedWarning(UserWarning):
    """A tracker did not take a histogram; the training went on."""


@dataclass(frozen=True)
class WeightHistogram:
    """A histogram of finite weights.

    Parameters
    ----------
    counts
        The number of weights in each bin, int64 of shape (bins,); no bin for weights that are all not finite.
    edges
        The edges of the bins in ascending order, float64 of shape (bins + 1,). No weight lies on an edge.
    nonfinite
        Number of weights that are NaN or infinite.
    outside
        Number of finite float32 or float64 weights that round to an infinite float16. They are in no bin.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    nonfinite: int
    outside: int


def weight_histogram(weights: NDArray[Any], bins: int = MOST_BINS) -> WeightHistogram:
    """The histogram of weights from the exact counts of their 65,536 codes of 16 bits.

    An edge lies midway between two neighbouring 16-bit values, so it does not matter which side of a bin is closed.
    The edges are those that are nearest to equal bins from the least to the greatest weight. There are fewer bins where
    the 16-bit values are farther apart than equal bins. float32 and float64 weights are counted after rounding to
    float16, as in `density`.

    Parameters
    ----------
    weights
        Any shape; float16, bfloat16, float32 or float64.
    bins
        Number of bins, 1 to 512.

    Returns
    -------
    WeightHistogram
        The counts add up to the number of weights less `nonfinite` and `outside`.

    Raises
    ------
    PythiaDynError
        For another number of bins.
    """
    if not 1 <= bins <= MOST_BINS:
        raise PythiaDynError(f"a histogram has 1 to {MOST_BINS} bins; got {bins}")
    flat = np.ascontiguousarray(weights).reshape(-1)
    table, nonfinite = _count(flat)
    places, possible = _finite_values("bfloat16" if flat.dtype == ml_dtypes.bfloat16 else "float16")
    counts = np.bincount(places[places >= 0], table[places >= 0], len(possible) - 1).astype(np.int64)
    outside = flat.size - nonfinite - int(counts.sum())
    occurring = np.flatnonzero(counts)
    if not len(occurring):
        return WeightHistogram(np.empty(0, np.int64), np.empty(0), nonfinite, outside)
    first, last = occurring[0], occurring[-1] + 1
    candidates = possible[first : last + 1]
    wanted = np.linspace(candidates[0], candidates[-1], bins + 1)
    above = np.searchsorted(candidates, wanted).clip(1, len(candidates) - 1)
    nearer_below = wanted - candidates[above - 1] < candidates[above] - wanted
    at = np.unique(above - nearer_below)
    sums = np.concatenate([[0], np.cumsum(counts[first:last])])
    return WeightHistogram(np.diff(sums[at]), candidates[at], nonfinite, outside)


def _count(flat: NDArray[Any]) -> tuple[NDArray[np.uint32], int]:
    """The count of each code, and the number of weights that are not finite."""
    table = np.zeros(CODES, np.uint32)
    codes = flat
    if flat.dtype == np.float32:
        codes = np.empty(flat.size, np.uint16)
        kernels.narrow(flat, codes)
    elif flat.dtype == np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            codes = flat.astype(np.float16)
    if flat.size:
        kernels.count_codes(np.uint64(codes.ctypes.data), flat.size, table)
    if flat.dtype.itemsize > 2:
        return table, int(flat.size - np.count_nonzero(np.isfinite(flat)))
    values = code_values("bfloat16" if flat.dtype == ml_dtypes.bfloat16 else "float16")
    return table, int(table[~np.isfinite(values)].sum(dtype=np.int64))


@functools.cache
def _finite_values(dtype: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each code the place of its value among the finite values, −1 if not finite; and the edges of those values."""
    values = code_values(dtype)
    finite = np.isfinite(values)
    ascending, inverse = np.unique(values[finite], return_inverse=True)  # +0 and −0 are one value
    places = np.full(CODES, -1, dtype=np.intp)
    places[finite] = inverse
    half = np.diff(ascending) / 2
    edges = np.concatenate([[ascending[0] - half[0]], ascending[:-1] + half, [ascending[-1] + half[-1]]])
    return places, edges


class HistogramTrackers:
    """Sends histograms to the trackers of a training.

    Parameters
    ----------
    trackers
        ``wandb`` and ``trackio``. Default: those of them that have an active run when a histogram is logged. The
        Trainer starts a run in each library of its `report_to`.

    Raises
    ------
    UnknownNameError
        For another tracker.
    PythiaDynError
        A named tracker is not installed.
    """

    def __init__(self, trackers: Sequence[Tracker] | None = None) -> None:
        for name in trackers or ():
            if name not in get_args(Tracker):
                raise UnknownNameError("tracker", name, get_args(Tracker))
            with optional_import(f"a histogram for {name}", "trackers"):
                _require(name)
        self.trackers: tuple[Tracker, ...] = tuple(trackers) if trackers is not None else get_args(Tracker)
        self._is_named = trackers is not None
        self._warned: set[str] = set()

    def log(self, histograms: Mapping[str, WeightHistogram], step: int) -> None:
        """Log histograms by name at a training step. An error of a tracker is a `HistogramNotLoggedWarning`."""
        for name in self.trackers:
            try:
                self._log(name, histograms, step)
            except Exception as error:  # whatever a tracker raises, the training is worth more
                if name not in self._warned:
                    self._warned.add(name)
                    reason = first_line(error) or type(error).__name__
                    text = f"{name} did not take the histograms of step {step}, the training goes on: {reason}"
                    warnings.warn(text, HistogramNotLoggedWarning, stacklevel=2)

    def _log(self, name: Tracker, histograms: Mapping[str, WeightHistogram], step: int) -> None:
        library: Any = sys.modules.get(name)  # a library that nobody has imported has no run
        if library is None or not _has_run(library, name):
            if self._is_named:
                raise PythiaDynError(f"no run is active; put {name} into report_to, or call {name}.init() before")
            return
        values: dict[str, Any] = {}
        for key, each in histograms.items():
            if len(each.counts):
                values[key] = library.Histogram(np_histogram=(each.counts, each.edges))
            values[f"{key}_nonfinite"] = each.nonfinite
            values[f"{key}_outside"] = each.outside
        # the Trainer's integrations log this key in each row; the steps of the trackers themselves count calls
        library.log({**values, "train/global_step": step})


def _require(name: Tracker) -> None:
    """Import a tracker."""
    if name == "wandb":
        import wandb  # noqa: F401
    else:
        import trackio  # noqa: F401


def _has_run(library: Any, name: Tracker) -> bool:
    if name == "wandb":
        return library.run is not None
    from trackio import context_vars  # it has no public way to ask

    return context_vars.current_run.get() is not None
