"""Figures of the weight statistics of one model: density, displacement, order parameter, rank, spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from pythia_dynamics.figures.style import COLOURS, edges, of_a_result, step_axis
from pythia_dynamics.measures.displacement import PER_LEARNING_RATE, interior_peak

__all__ = [
    "DENSITY_FLOOR",
    "density",
    "density_range",
    "effective_rank",
    "entropy",
    "loss_against_order",
    "loss_slope",
    "mean_row_fraction",
    "msd",
    "msd_scale",
    "order",
    "per_learning_rate",
    "rank",
    "rank_band",
    "rank_difference",
    "rank_infinite",
]

DENSITY_FLOOR = 1e-6
"""Least density that is drawn, relative to the greatest. In a density whose highest bin holds a million of the 26
million weights of the 70M model's W_U, a bin with one weight lies at this limit."""

_PEAKS = {"msd": "its peak", "msd_time": "its peak; a random walk has one as well"}
"""The dotted lines. Demeaned over time the curve is zero at its end, so that it has a peak whatever the motion."""

_LABELS = {"msd": "demeaned over weights (Eq. 4)", "msd_time": "demeaned over time"}


@of_a_result
def density(ax: Axes, result: xr.Dataset) -> None:
    """Garden Fig 2: weight density over training, a heat map of step and weight with logarithmic colours.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.density`. Missing steps and empty bins stay blank.
    """
    values = result["density"].transpose("weight", "step").to_numpy()
    limits = density_range(values)
    if limits:
        x, y = edges(result["step"].to_numpy().astype(float)), edges(result["weight"].to_numpy())
        shown = np.ma.masked_where(~(values > 0), values)
        mesh = ax.pcolormesh(x, y, shown, norm=LogNorm(*limits), cmap="viridis", rasterized=True)
        ax.figure.colorbar(mesh, ax=ax, label="density (1/weight)")
    ax.grid(visible=False)
    step_axis(ax, "weight")


def density_range(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The least and the greatest density that are drawn.

    Parameters
    ----------
    values
        Densities, with NaN where they are not known.

    Returns
    -------
    tuple of float, or None
        The least positive value, but at least `DENSITY_FLOOR` times the greatest; and the greatest. None where no value
        is positive.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    return (max(positive.min(), positive.max() * DENSITY_FLOOR), positive.max()) if positive.size else None


@of_a_result
def msd(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """Garden Fig 3: MSD(τ) with both ways of demeaning, each with its null; a dotted vertical marks an interior peak.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.msd`, or the table ``msd.csv``.
    name
        The title.
    """
    for colour, (kind, label) in zip(COLOURS, _LABELS.items(), strict=False):
        curve, null = result[kind], result[f"{kind}_null"]
        ax.plot(result["step"], curve, color=colour, label=label)
        ax.plot(result["step"], null, color=colour, linestyle="--", linewidth=1, label="its null: a random walk")
        peak = interior_peak(result["step"].to_numpy(), curve.to_numpy())
        if peak is not None:
            ax.axvline(peak, color=colour, linestyle=":", linewidth=1, label=_PEAKS[kind])
    msd_scale(ax, [result[name] for kind in _LABELS for name in (kind, f"{kind}_null")])
    step_axis(ax, "MSD(τ) (weight²)", title=name, legend=True)


@of_a_result
def per_learning_rate(ax: Axes, result: xr.Dataset, *, squared: bool = False) -> None:
    """Displacement between neighbouring steps per learning rate; dotted, its median.

    Parameters
    ----------
    ax
        The panel.
    result
        A result as for `msd`, with `displacement_per_learning_rate`.
    squared
        Whether to draw `squared_displacement_per_learning_rate`, which is constant for a random walk whose steps are
        proportional to the learning rate. The other one is constant for ballistic motion.
    """
    curve = result[PER_LEARNING_RATE[squared]]
    ax.plot(result["step"], curve, ".-", color=COLOURS[0], linewidth=1, markersize=3)
    positive = curve.to_numpy()[curve.to_numpy() > 0]
    if positive.size:
        ax.axhline(float(np.median(positive)), color="0.5", linestyle=":", linewidth=1)
        ax.set_yscale("log")
    quantity = "‖Δw‖² / ∫η² (weight²): constant for a walk" if squared else "‖Δw‖ / ∫η (weight): constant if ballistic"
    step_axis(ax, quantity)


def msd_scale(ax: Axes, curves: Sequence[xr.DataArray]) -> None:
    """Make the y axis of displacements logarithmic; leave it linear where no value is positive.

    The lower limit is half the least positive value. The last value of a curve does not count: demeaned over time it is
    zero by construction, so that its rounding error would determine the scale.

    Parameters
    ----------
    ax
        The panel.
    curves
        The curves in it.
    """
    values = np.concatenate([curve.to_numpy()[:-1] for curve in curves]) if curves else np.empty(0)
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size:
        ax.set_yscale("log")
        ax.set_ylim(bottom=positive.min() / 2)


@of_a_result
def order(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The order parameter b = ‖W_U‖_F / d_model against the training step.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.order_parameter`, or the table ``order.csv``.
    name
        The label of the curve.
    """
    ax.plot(result["step"], result["order_parameter"], label=name or None)
    step_axis(ax, "order parameter b")


@of_a_result
def loss_against_order(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The blog's Fig 4: loss against the order parameter, coloured by step.

    Parameters
    ----------
    ax
        The panel.
    result
        A result as for `order`, with `loss`.
    name
        The title.
    """
    _against_order(ax, result, "loss", "loss (nats per token)", name)


@of_a_result
def loss_slope(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The blog's Fig 5: dL/db against the order parameter, coloured by step.

    Parameters
    ----------
    ax
        The panel.
    result
        A result as for `order`, with `dloss_db`.
    name
        The title.
    """
    _against_order(ax, result, "dloss_db", "dL/db (nats per token)", name)
    ax.axhline(0, color="0.5", linewidth=0.8)


def _against_order(ax: Axes, result: xr.Dataset, variable: str, label: str, name: str) -> None:
    """Draw a variable against b, coloured by step."""
    points = ax.scatter(result["order_parameter"], result[variable], c=result["step"], s=8, cmap="viridis")
    ax.figure.colorbar(points, ax=ax, label="training step", format=EngFormatter(sep=""))
    ax.set(xlabel="order parameter b", ylabel=label, title=name)


@of_a_result
def rank(ax: Axes, result: xr.Dataset, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7: rank of the batch covariance for every batch size at one tolerance, ± its standard error.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.covariance_rank`, or the table ``rank.csv``.
    tolerance
        One of the tolerances of the result.
    convention
        Whether the tolerance is ``absolute`` or ``relative`` to the largest singular value.
    """
    chosen = result.sel({"tolerance": tolerance, "convention": convention})  # `tolerance=` is an option of sel
    for size in chosen["batch_size"].to_numpy():
        rank_band(ax, chosen.sel(batch_size=size), label=f"B = {size}")
    step_axis(ax, "covariance rank", title=f"{convention} tolerance {tolerance:g}", legend=True)


def rank_band(ax: Axes, curve: xr.Dataset, **line: Any) -> None:
    """Draw one curve of the rank, and a band of ± its standard error in the same colour.

    Parameters
    ----------
    ax
        The panel.
    curve
        `rank` and `rank_se` over `step`.
    **line
        Properties of the line, as for `matplotlib.axes.Axes.plot`.
    """
    (drawn,) = ax.plot(curve["step"], curve["rank"], **line)
    low, high = curve["rank"] - curve["rank_se"], curve["rank"] + curve["rank_se"]
    ax.fill_between(curve["step"], low, high, color=drawn.get_color(), alpha=0.25, linewidth=0)


@of_a_result
def rank_difference(ax: Axes, result: xr.Dataset, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7, second panel: first difference of the rank over steps. The parameters are those of `rank`.

    Parameters
    ----------
    ax
        The panel.
    result
        As for `rank`.
    tolerance
        As for `rank`.
    convention
        As for `rank`.
    """
    chosen = result["rank_difference"].sel({"tolerance": tolerance, "convention": convention})
    for size in chosen["batch_size"].to_numpy():
        ax.plot(chosen["step"], chosen.sel(batch_size=size), linewidth=0.9, label=f"B = {size}")
    step_axis(ax, "change of rank since the step before", title=f"{convention} tolerance {tolerance:g}")


@of_a_result
def rank_infinite(ax: Axes, result: xr.Dataset, *, convention: str = "absolute") -> None:
    """The rank in the limit of an infinite batch, that of W_U W_Uᵀ, at about four tolerances.

    Parameters
    ----------
    ax
        The panel.
    result
        A result with `rank_infinite`.
    convention
        As for `rank`.
    """
    tolerances = result["tolerance"].to_numpy()
    for tolerance in tolerances[:: max(1, len(tolerances) // 4)]:
        curve = result["rank_infinite"].sel({"tolerance": tolerance, "convention": convention})
        ax.plot(curve["step"], curve, label=f"tolerance {tolerance:g}")
    step_axis(ax, "rank, B → ∞", title=f"{convention} tolerance, infinite batch", legend=True)


@of_a_result
def effective_rank(ax: Axes, result: xr.Dataset) -> None:
    """Effective rank exp(H) of W_U (Roy & Vetterli 2007) and its stable rank.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.spectrum`, or the table ``spectrum.csv``.
    """
    ax.plot(result["step"], result["effective_rank"], label="effective rank exp(H)")
    ax.plot(result["step"], result["stable_rank"], label="stable rank")
    ax.set_yscale("log")
    step_axis(ax, "rank of W_U", legend=True)


@of_a_result
def entropy(ax: Axes, result: xr.Dataset) -> None:
    """Entropy of the singular values of W_U. It falls in a head that saturates late in training (Godey et al. 2024).

    Parameters
    ----------
    ax
        The panel.
    result
        As for `effective_rank`.
    """
    ax.plot(result["step"], result["entropy"])
    step_axis(ax, "entropy of the singular values (nats)")


@of_a_result
def mean_row_fraction(ax: Axes, result: xr.Dataset) -> None:
    """The share of W_U in its mean row, a measure of its anisotropy (Godey et al. 2024).

    Parameters
    ----------
    ax
        The panel.
    result
        As for `effective_rank`.
    """
    ax.plot(result["step"], result["mean_row_fraction"])
    ax.set_ylim(bottom=0)
    step_axis(ax, "share of the weight in the mean row")
