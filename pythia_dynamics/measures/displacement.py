"""Mean squared displacement of the weights, and that of a random walk (Garden of Forking Paths, Eq 4 and 5).

T steps, N weights per step; w_tk is the k-th weight at step t, m_t its mean over k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.learning_rate import displacement_per_learning_rate
from pythia_dynamics.measures.measure import Measure, Table
from pythia_dynamics.sweep import kernels
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, ends, step_dataset
from pythia_dynamics.sweep.frames import Frames
from pythia_dynamics.sweep.intrinsics import workspace
from pythia_dynamics.sweep.sweep import PerSlab

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PER_LEARNING_RATE", "Integral", "interior_peak", "msd", "random_walk"]

PER_LEARNING_RATE: tuple[str, str] = ("displacement_per_learning_rate", "squared_displacement_per_learning_rate")
"""The variables that are there only where the learning rate is known."""


_ROUNDING = 1e-5
"""A peak of the ratio of a curve to its null must exceed both ends by more than this share. The relative rounding error
of the sums is about 1e-8 in practice (3e-5 at most), far less."""


@dataclass(kw_only=True)
class Integral(PerSlab):
    """Accumulator of the running integral of Eq 4 and of the sums for the nulls.

    Attributes
    ----------
    sums
        Per slab an array (T', 6); its columns are those of `kernels.integrate`.
    shift
        Provisional mean of each frame, shape (T',). It is subtracted from the weights, so that no digits are lost when
        the exact mean is subtracted afterwards.
    """

    mixes_steps: ClassVar[bool] = True

    shift: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def start(self, frames: Frames, device: str) -> Self:
        """Empty sums for these frames."""
        return replace(super().start(frames, device), shift=frames.provisional_means())

    def update(self, frames: Frames, start: int, stop: int) -> None:
        """Add the weights `start` to `stop` of every frame."""
        kind, rows = frames.computing_type, -(-len(frames) // kernels.TILE) * kernels.TILE
        keep, shift = np.zeros(rows, kind), np.zeros(rows, kind)
        keep[: len(frames)], shift[: len(frames)] = 1, self.shift
        work = workspace(4, kernels.BLOCK, kind)
        out = np.zeros((rows, 6))
        for addresses, begin, end in frames.pieces(start, stop, multiple=kernels.TILE):
            kernels.integrate(addresses, frames.like, begin, end, shift, keep, work, out)
        self.sums[start] = out[: len(frames)]

    @property
    def spread_at_start(self) -> float:
        """Σ_k (w_0k − m_0)² of the first frame."""
        first = self.total[0]
        return float(first[1] - first[0] ** 2 / self.size)

    def nonfinite_frames(self) -> NDArray[np.bool_]:
        """Frames whose sum of squares is not finite, shape (T',)."""
        return ~np.isfinite(self.total[:, 1])


def msd(history: Any, *, steps: Sequence[int] | None = None, compute: Compute | None = None) -> xr.Dataset:
    """Mean squared displacement of the integrated weights, demeaned in two ways, each with its null (Garden, Eq 4, 5).

    n is the number of present steps up to τ and T their total number; missing steps are skipped. N is the number of
    weights, and s_i = ‖w_i − w_{i−1}‖ the measured distance between consecutive present steps:

    * `msd`: ŵ_τk = Σ_{t≤τ} (w_tk − m_t), MSD = Σ_k ŵ²_τk / (N−1) (Eq 4 and 5);
    * `msd_null`: the exact expectation of `msd` for a random walk from the same start with independent isotropic
      increments of the same sizes, [n² Σ_k (w_0k − m_0)² + Σ_{i=1}^{n−1} (n−i)² s_i² (N−1)/N] / (N−1);
    * `msd_time`: as `msd`, with the mean over time of each weight instead of m_t. It is zero at the end by definition,
      and has a peak between the ends even for a random walk;
    * `msd_time_null`: its expectation for the same random walk, Σ_i c_i² s_i² / (N−1), c_i = max(n−i, 0) − (n/T)(T−i);
    * `displacement`: Σ_k (w_tk − w_0k)² / N from the first present step;
    * `displacement_per_learning_rate`: s_i / ∫η, and `squared_displacement_per_learning_rate`: s_i² / ∫η², over the
      steps between the two (η interpolated linearly). The first does not depend on the schedule for ballistic motion
      whose speed is proportional to the learning rate η, the second for a random walk whose steps are. They are there
      only where η is known.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        The curves over `step`, in units of weight². Missing steps are NaN; a `MissingStepsWarning` names them. Steps
        with weights that are not finite are treated as missing (`NonFiniteWarning`). With fewer than two weights the
        MSD is NaN. Attributes of `msd` and `msd_time`: `peak_step`, the step of a peak between the ends of the curve,
        and `peak_over_null_step`, that of its ratio to the null; absent if there is no such peak.

    Raises
    ------
    PythiaDynError
        The squares of the weights are not finite.
    """
    return MSD(history, steps=steps, compute=compute)


def _finish(history: History, integral: Integral) -> xr.Dataset:
    sums, size, length = integral.total, integral.size, len(integral.indices)
    if not np.isfinite(sums).all():
        if np.isfinite(sums[:, 1]).any():
            raise PythiaDynError(f"the weights of {history.name} are too large for their squares; scale them")
        sums[:] = np.nan  # no step is finite, so the sweep left out none
    dof = size - 1 if size > 1 else np.nan
    mean_sum = np.cumsum(sums[:, 0]) / size
    moved = sums[:, 4]  # s_i², zero for i = 0
    n = np.arange(1, length + 1, dtype=np.float64)[:, None]
    i = np.arange(length, dtype=np.float64)[None, :]
    remaining = np.maximum(n - i, 0)
    null, _ = random_walk(integral.spread_at_start, moved, size)
    curves = {
        "msd": ("MSD, demeaned over weights (Eq 5)", np.maximum(sums[:, 2] - size * mean_sum**2, 0) / dof),
        "msd_null": ("MSD of a random walk, demeaned over weights", null),
        "msd_time": ("MSD, demeaned over time", sums[:, 5] / dof),
        "msd_time_null": (
            "MSD of a random walk, demeaned over time",
            ((remaining - n / length * (length - i)) ** 2) @ moved / dof,
        ),
        "displacement": ("mean squared displacement from the first step", sums[:, 3] / size),
    }
    variables = {name: Variable(values, label, "weight^2") for name, (label, values) in curves.items()}
    variables |= _per_learning_rate(history, integral.indices, moved)
    result = step_dataset(history, variables, at=integral.indices)
    for name in ("msd", "msd_time"):
        curve, walk = result[name].to_numpy(), result[f"{name}_null"].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):  # what is not finite is no peak
            ratio = curve / walk
        for label, values, margin in (("peak_step", curve, 0.0), ("peak_over_null_step", ratio, _ROUNDING)):
            peak = interior_peak(history.steps, values, margin)
            if peak is not None:
                result[name].attrs[label] = peak
    return result


def _per_learning_rate(history: History, at: NDArray[np.intp], moved: NDArray[np.float64]) -> dict[str, Variable]:
    """The two variables per learning rate; none where no learning rate is known between two present steps."""
    rate = history.coordinates.get("learning_rate")
    if rate is None:
        return {}
    linear, squared = displacement_per_learning_rate(history.steps, rate, at, moved)
    if not np.isfinite(linear).any():
        return {}
    since = "displacement since the step before, per integral of"
    return {
        "displacement_per_learning_rate": Variable(linear, f"{since} the learning rate", "weight"),
        "squared_displacement_per_learning_rate": Variable(squared, f"squared {since} its square", "weight^2"),
    }


def random_walk(start: float, moved: Any, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The MSD (Eq 5) of a random walk with given step sizes: its expectation and its standard deviation.

    With A = Σ_i (n−i)² s_i², E = [n² start + A (N−1)/N] / (N−1) and
    Var = [4 n² start A/N + 2 A² (N−1)/N²] / (N−1)² for independent isotropic Gaussian increments.

    Parameters
    ----------
    start : float
        Σ_k (w_0k − m_0)² at the first step.
    moved : array_like, shape (n,)
        Squared sizes s_i² of the increments, in weight². The first value is not used.
    size : int
        N, the number of weights. For one weight the result is NaN.

    Returns
    -------
    tuple of array, shape (n,) each
        Expectation and standard deviation after each step, in weight².
    """
    squared = np.array(moved, dtype=np.float64)
    squared[:1] = 0
    n = np.arange(1, len(squared) + 1, dtype=np.float64)
    remaining = np.maximum(n[:, None] - np.arange(len(squared)), 0)
    walk_sum = remaining**2 @ squared
    dof = size - 1 if size > 1 else np.nan
    expected = (n**2 * start + walk_sum * (size - 1) / size) / dof
    # As a hypotenuse: the variance of weights near 1e100 has no float64, its root has.
    of_start, of_walk = 2 * n * np.sqrt(start / size) * np.sqrt(walk_sum), np.sqrt(2 * (size - 1)) * walk_sum / size
    return expected, np.hypot(of_start, of_walk) / dof


def interior_peak(steps: NDArray[np.int64], curve: NDArray[np.float64], margin: float = 0.0) -> int | None:
    """The step at which a curve is greatest; None if that is its first or last finite value.

    Parameters
    ----------
    steps
        Step numbers, shape (T,).
    curve
        Values, shape (T,); NaN is skipped. Fewer than three finite values have no peak.
    margin
        The peak must exceed the first and the last finite value by more than this share of the greater one.
    """
    finite = np.flatnonzero(np.isfinite(curve))
    if len(finite) < 3:
        return None
    values = curve[finite]
    peak = int(np.argmax(values))
    if peak in (0, len(values) - 1) or values[peak] <= (1 + margin) * max(values[0], values[-1]):
        return None
    return int(steps[finite[peak]])


_DEMEANINGS = {"msd": "MSD (Eq. 4)", "msd_time": "demeaned over time it"}


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    sentences, facts = [], {}
    steps = dataset["step"].to_numpy()
    for kind, subject in _DEMEANINGS.items():
        curve, null = dataset[kind], dataset[f"{kind}_null"]
        peak, walk_peak = curve.attrs.get("peak_step"), interior_peak(steps, null.to_numpy())
        over_null = curve.attrs.get("peak_over_null_step")
        facts[kind] = {"peak_step": peak, "peak_over_null_step": over_null, "null_peak_step": walk_peak}
        curve_shape, null_shape = _describe_curve(curve, peak), _describe_curve(null, walk_peak)
        sentence = f"{subject} {curve_shape}"
        if curve_shape == null_shape and peak is None:
            sentence += ", as a random walk's does" if kind == "msd" else ", as that of a random walk does"
        elif peak is not None and walk_peak is not None:
            sentence += f", the walk at {walk_peak:,}"
        else:
            sentence += f"; that of a random walk {null_shape}"
        if over_null is not None:
            sentence += f"; its ratio to the walk's is greatest at step {over_null:,}"
        sentences.append(sentence)
    moved = dataset["displacement"].to_numpy()
    moved = moved[np.isfinite(moved)]
    if len(moved) < 2:
        return "only one step is known" if len(moved) else "no step is known", facts
    return "; ".join(sentences) if moved.any() else "the weights do not move", facts


def _describe_curve(curve: xr.DataArray, peak: int | None) -> str:
    """A description of a curve: the step of its peak, or at which end it is greatest."""
    if peak is not None:
        return f"peaks at step {peak:,}"
    first, last = ends(curve)
    if not np.isfinite(first) or first == last == float(curve.max()):
        return "does not change"
    return "falls from the first step on" if first > last else "rises to the last step"


MSD = Measure(
    name="msd",
    title="Displacement (Garden, Fig 3)",
    source="Nicolini et al., arXiv 2403.08739, Eq 4 and 5",
    function=msd,
    accumulators=(Integral,),
    finish=_finish,
    tables={
        "msd": Table(
            ("step", "msd", "msd_null", "msd_time", "msd_time_null", "displacement", *PER_LEARNING_RATE),
            title="Displacement",
        )
    },
    summarise=_summarise,
    companions=("two_time",),
)
