"""Two tensors compared: angle, displacement, rows, exact densities, singular values and leading directions.

Frames are read in blocks of rows, which are converted to float64 one at a time. Nothing here is over steps: a frame is
the weights of one step. What does not depend on the other frame is computed once, in a `FrameSummary`, so that n frames
that are all compared with one another are read n times for it and not n².
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.history.history import History
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import NonFiniteWarning
from pythia_dynamics.sweep.pair_kernels import compare_rows
from pythia_dynamics.sweep.sweep import sweep

__all__ = [
    "BETWEEN",
    "LEADING",
    "STATISTICS",
    "WITHIN",
    "Comparison",
    "FrameSummary",
    "Statistic",
    "compare_summaries",
    "distances",
    "independent",
    "summarise_frame",
]

LEADING = 10
"""Right singular vectors whose subspaces are compared. Ten are 2 % of the width of Pythia 70m, so that independent
subspaces overlap by 0.02; the leading ones of an unembedding are those of token frequency."""

_BLOCK = 1 << 18
"""Weights that are converted to float64 at once: 2 MB, so that the arrays of a block stay in the cache."""

_GRAM_BLOCK = 1 << 22
"""Weights of one product for the Gram matrix: 32 MB in float64, enough rows for the full speed of the product."""

_RESOLUTION = 1e-13
"""Eigenvalues of the Gram matrix below this share of the largest are rounding errors, as in `FrameGram`."""

_SMALLEST_GAP = 1e-10
"""Share of the largest eigenvalue by which the eigenvalues of two neighbouring directions must differ. With a smaller
gap, rounding decides which of them is among the leading ones."""


@dataclass(frozen=True)
class Statistic:
    """One number that says how two tensors differ. Every statistic is symmetric in the two.

    Parameters
    ----------
    title
        What it is, in words.
    units
        Its unit.
    """

    title: str
    units: str


STATISTICS: Mapping[str, Statistic] = {
    "angle": Statistic("angle", "degree"),
    "row_angle": Statistic("angle of rows, median", "degree"),
    "displacement": Statistic("displacement, RMS", "weight"),
    "relative_displacement": Statistic("displacement / norm", "1"),
    "norm_difference": Statistic("difference of norms", "1"),
    "ks": Statistic("Kolmogorov-Smirnov", "1"),
    "wasserstein": Statistic("Wasserstein-1", "weight"),
    "spectrum_distance": Statistic("singular values", "1"),
    "overlap": Statistic("subspace overlap", "1"),
}
"""The statistics by the name of their variable, in the order in which they are shown."""

BETWEEN, WITHIN = "between seeds", "other seeds, same steps"
"""Kinds of pairs of a noise floor: two seeds; and, where A and B are of one run, one seed twice, at the same steps and
tensors as A and B."""


@dataclass(frozen=True, eq=False)
class FrameSummary:
    """What a comparison needs of one frame besides its weights.

    Parameters
    ----------
    weights
        The weights as a matrix W of shape (v, d); leading axes are merged, a vector is one row.
    shape
        The shape of the frame.
    scale
        A power of two near the largest |w|, by which weights are divided before they are squared.
    norm
        ‖W‖_F / scale, in float64.
    values, cumulative
        The values that occur, ascending, and the share of the weights up to each: the exact distribution function.
        float32 and float64 are counted after rounding to float16; empty where a weight lies beyond its range.
    singular_values
        All min(v, d) singular values of W, descending.
    directions
        The leading right singular vectors, shape (d, k); without columns where the weights do not determine them.
    """

    weights: NDArray[Any] = field(repr=False)
    shape: tuple[int, ...]
    scale: float
    norm: float
    values: NDArray[np.float64] = field(repr=False)
    cumulative: NDArray[np.float64] = field(repr=False)
    singular_values: NDArray[np.float64] = field(repr=False)
    directions: NDArray[np.float64] = field(repr=False)

    @property
    def frobenius_norm(self) -> float:
        """‖W‖_F."""
        return self.norm * self.scale


@dataclass(frozen=True, eq=False)
class Comparison:
    """How two frames differ.

    Parameters
    ----------
    statistics
        The `STATISTICS` by name; NaN where one is not defined.
    row_angles
        The angle of each two corresponding rows in degrees, shape (v,); NaN for a row of zeros. Empty for two shapes.
    """

    statistics: Mapping[str, float]
    row_angles: NDArray[np.float64] = field(repr=False)


def summarise_frame(history: History, index: int, *, leading: int = LEADING) -> FrameSummary | None:
    """Read one frame of a history.

    Parameters
    ----------
    history
        The weights: float16, bfloat16, float32 or float64.
    index
        Index of a step of the history that has weights.
    leading
        Number k of right singular vectors; no more than min(v, d) are computed.

    Returns
    -------
    FrameSummary or None
        None where a weight is not finite.

    Raises
    ------
    IntegrityError
        As `History.frame`.
    PythiaDynError
        float64 weights are finite, but their squares are not.
    """
    one = history.select([int(history.steps[index])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)  # the caller knows by None, and names all steps in one line
        (counts,) = sweep(one, [Counts()])
    moments = counts.moments
    if moments.nonfinite[0]:
        return None
    values, table = counts.occurring
    counted = table[0].astype(np.float64)
    if counted.sum() < counts.size:  # rounded to infinity
        values, counted = values[:0], counted[:0]
    weights = history.frame(index)
    assert weights is not None  # the step has weights
    matrix = weights.reshape(-1, history.frame_shape[-1])
    largest = float(max(abs(moments.min[0]), abs(moments.max[0])))
    scale = float(2.0 ** np.frexp(largest)[1]) if 0 < largest < np.finfo(np.float64).max / 4 else 1.0
    square = sum(float(np.square(_scaled(rows, scale)).sum()) for rows in _row_blocks(matrix))
    singular, directions = _spectrum(matrix, scale, leading)
    return FrameSummary(
        weights=matrix,
        shape=history.frame_shape,
        scale=scale,
        norm=float(np.sqrt(square)),
        values=values,
        cumulative=np.cumsum(counted) / counts.size,
        singular_values=singular * scale,
        directions=directions,
    )


def compare_summaries(first: FrameSummary, second: FrameSummary) -> Comparison:
    """Compare two frames.

    With u and v the weights as vectors of N numbers, û and v̂ of norm 1:

    * ``angle`` = 2·atan2(‖û − v̂‖, ‖û + v̂‖) (Kahan 2006), which is exact for small angles, where arccos is not; NaN for
      weights of zeros. ``row_angle`` is the median of the same over corresponding rows.
    * ``displacement`` = ‖u − v‖/√N. ``relative_displacement`` = ‖u − v‖ / √((‖u‖² + ‖v‖²)/2): √2 for orthogonal
      vectors of any norms, 2 for opposite ones.
    * ``norm_difference`` = |‖u‖ − ‖v‖| / √((‖u‖² + ‖v‖²)/2), from the norms of a weight (‖u‖/√N) where N differs.
    * ``ks`` and ``wasserstein``: see `distances`.
    * ``spectrum_distance`` = ‖σ(u) − σ(v)‖ / √((‖u‖² + ‖v‖²)/2), at most the relative displacement (Mirsky 1960).
    * ``overlap`` = ‖V_uᵀ V_v‖_F² / k of the k leading right singular vectors: 1 for one subspace, k/d on average for
      independent ones. NaN where the weights do not determine the subspaces, and for k = d, where it is always 1.

    Parameters
    ----------
    first, second
        The frames. Of two shapes, only ``norm_difference``, ``ks``, ``wasserstein`` and, with the same d, ``overlap``
        are defined.

    Returns
    -------
    Comparison
    """
    found = dict.fromkeys(STATISTICS, np.nan)
    found["ks"], found["wasserstein"] = distances(first, second)
    found["overlap"] = _overlap(first.directions, second.directions)
    unit = max(first.scale, second.scale)
    lengths = np.array([each.norm * (each.scale / unit) / np.sqrt(each.weights.size) for each in (first, second)])
    typical = float(np.sqrt(np.square(lengths).mean()))
    if typical > 0:
        found["norm_difference"] = float(abs(lengths[0] - lengths[1])) / typical
    rows = np.empty(0)
    if first.shape == second.shape:
        angle, displacement, rows = _paired(first, second)
        found |= {"angle": angle, "displacement": displacement * unit, "row_angle": _median(rows)}
        if typical > 0:
            scaled = (first.singular_values - second.singular_values) / unit
            found["relative_displacement"] = displacement / typical
            found["spectrum_distance"] = float(np.linalg.norm(scaled)) / np.sqrt(first.weights.size) / typical
    return Comparison(found, rows)


def distances(first: FrameSummary, second: FrameSummary) -> tuple[float, float]:
    """Two distances between exact distribution functions F and G of weights.

    Parameters
    ----------
    first, second
        The frames, of any shapes.

    Returns
    -------
    tuple of float
        Kolmogorov–Smirnov, max |F − G|; and Wasserstein-1, ∫ |F − G| dw, in units of a weight: the mean way by which
        sorted weights must be moved. NaN where float32 weights lie beyond the range of float16.
    """
    if not len(first.values) or not len(second.values):
        return np.nan, np.nan
    grid = np.union1d(first.values, second.values)
    low, high = (_distribution(each, grid) for each in (first, second))
    gap = np.abs(low - high)
    return float(gap.max()), float((gap[:-1] * np.diff(grid)).sum())


def independent(first: FrameSummary, second: FrameSummary) -> dict[str, float]:
    """What independent random directions of the same norms give.

    The cosine of two independent isotropic vectors of N numbers has mean 0 and standard deviation 1/√N.

    Parameters
    ----------
    first, second
        The frames.

    Returns
    -------
    dict of str to float
        By statistic: angle and row_angle (90°), displacement √((‖u‖² + ‖v‖²)/N), relative_displacement √2, overlap k/d.
        ``angle_sd`` and ``row_angle_sd`` are the standard deviations of one angle, 1/√N and 1/√d, in degrees. Without
        those that the two frames do not have.
    """
    found: dict[str, float] = {}
    if first.shape == second.shape:
        rows, width = first.weights.shape
        norms = np.hypot(first.frobenius_norm, second.frobenius_norm)
        found |= {"angle": 90.0, "angle_sd": float(np.degrees(1 / np.sqrt(rows * width)))}
        found |= {"row_angle": 90.0, "row_angle_sd": float(np.degrees(1 / np.sqrt(width)))}
        found |= {"displacement": float(norms / np.sqrt(rows * width)), "relative_displacement": float(np.sqrt(2))}
    if not np.isnan(_overlap(first.directions, second.directions)):
        width, count = first.directions.shape
        found["overlap"] = count / width
    return found


def _paired(first: FrameSummary, second: FrameSummary) -> tuple[float, float, NDArray[np.float64]]:
    """Angle in degrees, displacement (RMS) over the larger scale, angles of the rows in degrees."""
    unit = max(first.scale, second.scale)
    rows, width = first.weights.shape
    step = max(_BLOCK // width, 1)
    cuts = [slice(start, start + step) for start in range(0, rows, step)]
    sums, angles = np.empty((len(cuts), 3)), np.empty((rows, 2))
    factors, norms = (np.array([getattr(each, name) for each in (first, second)]) for name in ("scale", "norm"))

    def compare(index: int) -> None:
        one, other = (_computable(each.weights[cuts[index]]) for each in (first, second))
        compare_rows(one, other, 1 / factors, norms, unit, sums[index], angles[cuts[index]])

    with ThreadPoolExecutor(min(Compute().workers, len(cuts))) as pool:
        list(pool.map(compare, range(len(cuts))))
    apart, together, moved = sums.sum(axis=0)  # in the order of the rows, however many threads there are
    angle = float(_angle(np.sqrt(apart), np.sqrt(together)))
    return angle, float(np.sqrt(moved / first.weights.size)), _angle(*np.sqrt(angles.T))


def _angle(apart: Any, together: Any) -> Any:
    """The angle of unit vectors in degrees, from the lengths of their difference and their sum."""
    return np.degrees(2 * np.arctan2(apart, together))


def _median(angles: NDArray[np.float64]) -> float:
    known = angles[np.isfinite(angles)]
    return float(np.median(known)) if len(known) else np.nan


def _distribution(summary: FrameSummary, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the weights up to each number of a grid."""
    return np.concatenate([[0.0], summary.cumulative])[np.searchsorted(summary.values, grid, side="right")]


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    (width, count), (other_width, other_count) = first.shape, second.shape
    if width != other_width or count != other_count or not 0 < count < width:
        return np.nan
    return float(np.square(first.T @ second).sum() / count)


def _row_blocks(matrix: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The matrix in blocks of whole rows."""
    rows = max(_BLOCK // matrix.shape[1], 1)
    for start in range(0, len(matrix), rows):
        yield matrix[start : start + rows]


def _computable(block: NDArray[Any]) -> NDArray[Any]:
    """A block as the kernel reads it: weights of 16 bits in float32, which holds them exactly."""
    return np.ascontiguousarray(block, None if block.dtype.itemsize > 2 else np.float32)


def _scaled(block: NDArray[Any], scale: float) -> NDArray[np.float64]:
    """A block in float64, divided by a power of two."""
    result: NDArray[np.float64] = block.astype(np.float64) / scale
    return result


def _spectrum(matrix: NDArray[Any], scale: float, leading: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Singular values of W/scale, descending, and the leading right singular vectors, from the smaller Gram matrix.

    `FrameGram` has no singular vectors of a wide matrix, so that the Gram matrix is summed here.
    """
    rows, width = matrix.shape
    is_tall = rows >= width
    # Parts of the longer side: the Gram matrix is the sum of their products.
    side, step = (rows if is_tall else width), max(_GRAM_BLOCK // min(rows, width), 1)
    cuts = [slice(start, start + step) for start in range(0, side, step)]
    gram = np.zeros((min(rows, width),) * 2)
    for cut in cuts:
        part = _scaled(matrix[cut] if is_tall else matrix[:, cut].T, scale)
        gram += part.T @ part
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0), vectors[:, ::-1]
    count = min(leading, len(eigenvalues))
    following = eigenvalues[count] if count < len(eigenvalues) else 0.0
    resolved = eigenvalues[count - 1] > _RESOLUTION * eigenvalues[0]
    if not resolved or eigenvalues[count - 1] - following <= _SMALLEST_GAP * eigenvalues[0]:
        return np.sqrt(eigenvalues), np.empty((width, 0))
    directions = vectors[:, :count]
    if not is_tall:
        parts = [_scaled(matrix[:, cut].T, scale) @ directions for cut in cuts]
        directions = np.concatenate(parts) / np.sqrt(eigenvalues[:count])
    return np.sqrt(eigenvalues), directions
