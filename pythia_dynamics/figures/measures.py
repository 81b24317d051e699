"""Figures of the weight statistics: density, displacement, order parameter, rank, spectrum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter

from pythia_dynamics.figures.style import COLOURS, edges, step_axis

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = [
    "density",
    "effective_rank",
    "entropy",
    "loss_against_order",
    "loss_slope",
    "mean_row_fraction",
    "msd",
    "order",
    "rank",
    "rank_difference",
    "rank_infinite",
]

_LABELS = {"msd": "demeaned over weights (Eq. 4)", "msd_time": "demeaned over time"}


def density(ax: Axes, result: xr.Dataset) -> None:
    """Garden Fig 2: weight density over training, a step × weight heat map with logarithmic colours."""
    values = result["density"].transpose("weight", "step").to_numpy()
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size:
        norm = LogNorm(vmin=max(positive.min(), positive.max() * 1e-6), vmax=positive.max())
        mesh = ax.pcolormesh(
            edges(result["step"].to_numpy().astype(float)),
            edges(result["weight"].to_numpy()),
            np.ma.masked_where(~(values > 0), values),
            norm=norm,
            cmap="viridis",
            rasterized=True,
        )
        ax.figure.colorbar(mesh, ax=ax, label="density")
    ax.grid(visible=False)
    ax.set_ylabel("weight")
    step_axis(ax)


def msd(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """Garden Fig 3: MSD(τ) by both demeanings, each beside its null; the peak of each is a dotted vertical."""
    for colour, kind in zip(COLOURS, ("msd", "msd_time"), strict=False):
        curve, null = result[kind], result[f"{kind}_null"]
        ax.plot(result["step"], curve, color=colour, label=_LABELS[kind])
        ax.plot(result["step"], null, color=colour, linestyle="--", linewidth=1, label="its null: a random walk")
        peak = curve.dropna("step")["step"][1:-1]  # an end is no peak
        if peak.size and curve.max() == curve.sel(step=peak).max():
            ax.axvline(float(curve.idxmax()), color=colour, linestyle=":", linewidth=1)
    # Demeaned over time, the last value is zero by construction: rounding would set the scale.
    shown = np.concatenate([result[kind].to_numpy()[:-1] for kind in ("msd", "msd_null", "msd_time", "msd_time_null")])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if shown.size:
        ax.set_yscale("log")
        ax.set_ylim(bottom=shown.min() / 2)
    ax.set_ylabel("MSD(τ)")
    ax.set_title(name)
    ax.legend()
    step_axis(ax)


def order(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The order parameter b = ‖W_U‖_F / d_model against the training step."""
    ax.plot(result["step"], result["order_parameter"], label=name or None)
    ax.set_ylabel("order parameter b")
    step_axis(ax)


def loss_against_order(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The blog's Fig 4: loss against the order parameter, coloured by step."""
    points = ax.scatter(result["order_parameter"], result["loss"], c=result["step"], s=8, cmap="viridis")
    ax.figure.colorbar(points, ax=ax, label="training step", format=EngFormatter(sep=""))
    ax.set_xlabel("order parameter b")
    ax.set_ylabel("loss (nats per token)")
    ax.set_title(name)


def loss_slope(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The blog's Fig 5: dL/db against the order parameter, coloured by step."""
    points = ax.scatter(result["order_parameter"], result["dloss_db"], c=result["step"], s=8, cmap="viridis")
    ax.figure.colorbar(points, ax=ax, label="training step", format=EngFormatter(sep=""))
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.set_xlabel("order parameter b")
    ax.set_ylabel("dL/db (nats per token)")
    ax.set_title(name)


def rank(ax: Axes, result: xr.Dataset, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7: rank of the batch covariance for every batch size at one tolerance, ± its standard error."""
    chosen = result.sel({"tolerance": tolerance, "convention": convention})  # `tolerance=` is an option of sel
    for size in chosen["batch_size"].to_numpy():
        curve = chosen.sel(batch_size=size)
        (line,) = ax.plot(curve["step"], curve["rank"], label=f"B = {size}")
        low, high = curve["rank"] - curve["rank_se"], curve["rank"] + curve["rank_se"]
        ax.fill_between(curve["step"], low, high, color=line.get_color(), alpha=0.25, linewidth=0)
    ax.set_ylabel("covariance rank")
    ax.set_title(f"{convention} tolerance {tolerance:g}")
    ax.legend()
    step_axis(ax)


def rank_difference(ax: Axes, result: xr.Dataset, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7, second panel: first difference of the rank over steps."""
    chosen = result.sel({"tolerance": tolerance, "convention": convention})  # `tolerance=` is an option of sel
    for size in chosen["batch_size"].to_numpy():
        curve = chosen["rank_difference"].sel(batch_size=size)
        ax.plot(curve["step"], curve, linewidth=0.9, label=f"B = {size}")
    ax.set_ylabel("change of rank since the step before")
    step_axis(ax)


def rank_infinite(ax: Axes, result: xr.Dataset, *, convention: str = "absolute") -> None:
    """The exact rank in the limit of an infinite batch, W_U W_Uᵀ's own, at several tolerances."""
    tolerances = result["tolerance"].to_numpy()
    for tolerance in tolerances[:: max(1, len(tolerances) // 4)]:
        curve = result["rank_infinite"].sel({"tolerance": tolerance, "convention": convention})
        ax.plot(curve["step"], curve, label=f"tolerance {tolerance:g}")
    ax.set_ylabel("rank, B → ∞")
    ax.set_title(f"{convention} tolerance, infinite batch")
    ax.legend()
    step_axis(ax)


def effective_rank(ax: Axes, result: xr.Dataset) -> None:
    """Effective rank exp(H) of W_U (Roy & Vetterli 2007) and its stable rank."""
    ax.plot(result["step"], result["effective_rank"], label="effective rank exp(H)")
    ax.plot(result["step"], result["stable_rank"], label="stable rank")
    ax.set_ylabel("rank of W_U")
    ax.set_yscale("log")
    ax.legend()
    step_axis(ax)


def entropy(ax: Axes, result: xr.Dataset) -> None:
    """Entropy of the singular values of W_U: a head that saturates late in training loses it (Godey et al. 2024)."""
    ax.plot(result["step"], result["entropy"])
    ax.set_ylabel("entropy of the singular values (nats)")
    step_axis(ax)


def mean_row_fraction(ax: Axes, result: xr.Dataset) -> None:
    """The share of W_U that all rows have in common, its anisotropy (Godey et al. 2024)."""
    ax.plot(result["step"], result["mean_row_fraction"])
    ax.set_ylim(bottom=0)
    ax.set_ylabel("share of the weight in the mean row")
    step_axis(ax)
