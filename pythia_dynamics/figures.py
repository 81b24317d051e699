"""Figures from saved results: each function draws a result on an `Axes` and returns nothing.

A figure never computes: what it shows is what the result file says. Missing steps are gaps; the null of a quantity
is dashed in the colour of the quantity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pythia_dynamics.files import atomic_file

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "density",
    "effective_rank",
    "loss_against_order",
    "msd",
    "order",
    "perplexity",
    "rank",
    "rank_difference",
    "save",
    "sheet",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with every common colour blindness."""

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 300,
    "svg.fonttype": "none",
    "svg.hashsalt": "pythia-dynamics",  # the same result gives the same file
}
_LABELS = {
    "msd": "demeaned over weights (Eq. 4)",
    "msd_time": "demeaned over time",
    "forward": "forward",
    "unmask": "causal unmasking",
    "last-word": "last word",
}


@contextmanager
def sheet(columns: int = 1, rows: int = 1, *, width: float = 4.4, height: float = 3.2) -> Iterator[tuple[Figure, Any]]:
    """A figure in the project's style and its axes (one, or an array of them); sizes are per panel, in inches."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # the keys are a Literal of all 318 of them
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        yield figure, figure.subplots(rows, columns)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path`` as PNG (300 dpi) and SVG, each whole or not at all. Call inside `sheet`."""
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        target = path.with_suffix(suffix)
        with atomic_file(target) as file:
            figure.savefig(file, format=suffix[1:], metadata=metadata)
        written.append(target)
    return written


def density(ax: Axes, result: xr.Dataset) -> None:
    """Garden Fig 2: weight density over training, a step × weight heat map with logarithmic colours."""
    values = result["density"].transpose("weight", "step").to_numpy()
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size:
        norm = LogNorm(vmin=max(positive.min(), positive.max() * 1e-6), vmax=positive.max())
        mesh = ax.pcolormesh(
            _edges(result["step"].to_numpy().astype(float)),
            _edges(result["weight"].to_numpy()),
            np.ma.masked_where(~(values > 0), values),
            norm=norm,
            cmap="viridis",
            rasterized=True,
        )
        ax.figure.colorbar(mesh, ax=ax, label="density")
    ax.grid(visible=False)
    ax.set_ylabel("weight")
    _step_axis(ax)


def msd(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """Garden Fig 3: MSD(τ) by both demeanings, each beside its null; the peak of each is a dotted vertical."""
    for colour, kind in zip(COLOURS, ("msd", "msd_time"), strict=False):
        curve, null = result[kind], result[f"{kind}_null"]
        ax.plot(result["step"], curve, color=colour, label=_LABELS[kind])
        ax.plot(result["step"], null, color=colour, linestyle="--", linewidth=1, label="its null: a random walk")
        peak = curve.dropna("step")["step"][1:-1]  # an end is no peak
        if peak.size and curve.max() == curve.sel(step=peak).max():
            ax.axvline(float(curve.idxmax()), color=colour, linestyle=":", linewidth=1)
    ax.set_yscale("log")
    # Demeaned over time, the last value is zero by construction: rounding would set the scale.
    shown = np.concatenate([result[kind].to_numpy()[:-1] for kind in ("msd", "msd_null", "msd_time", "msd_time_null")])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if shown.size:
        ax.set_ylim(bottom=shown.min() / 2)
    ax.set_ylabel("MSD(τ)")
    ax.set_title(name)
    ax.legend()
    _step_axis(ax)


def order(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The order parameter b = ‖W_U‖_F / d_model against the training step."""
    ax.plot(result["step"], result["order_parameter"], label=name or None)
    ax.set_ylabel("order parameter b")
    _step_axis(ax)


def loss_against_order(ax: Axes, result: xr.Dataset, *, name: str = "") -> None:
    """The blog's Fig 4: loss against the order parameter, coloured by step."""
    points = ax.scatter(result["order_parameter"], result["loss"], c=result["step"], s=8, cmap="viridis")
    ax.figure.colorbar(points, ax=ax, label="training step", format=EngFormatter(sep=""))
    ax.set_xlabel("order parameter b")
    ax.set_ylabel("loss (nats per token)")
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
    _step_axis(ax)


def rank_difference(ax: Axes, result: xr.Dataset, *, tolerance: float, convention: str = "absolute") -> None:
    """Garden Fig 7, second panel: first difference of the rank over steps."""
    chosen = result.sel({"tolerance": tolerance, "convention": convention})  # `tolerance=` is an option of sel
    for size in chosen["batch_size"].to_numpy():
        curve = chosen["rank_difference"].sel(batch_size=size)
        ax.plot(curve["step"], curve, linewidth=0.9, label=f"B = {size}")
    ax.set_ylabel("change of rank since the step before")
    _step_axis(ax)


def effective_rank(ax: Axes, result: xr.Dataset) -> None:
    """Effective rank exp(H) of W_U (Roy & Vetterli 2007) and its stable rank."""
    ax.plot(result["step"], result["effective_rank"], label="effective rank exp(H)")
    ax.plot(result["step"], result["stable_rank"], label="stable rank")
    ax.set_ylabel("rank of W_U")
    ax.set_yscale("log")
    ax.legend()
    _step_axis(ax)


def perplexity(ax: Axes, results: dict[str, xr.Dataset], *, log: bool = True) -> None:
    """Garden Fig 4 and 6: perplexity against the step, one line per mode in `results`."""
    for mode, result in results.items():
        for variable, style in (("ppl", "-"), ("ppl_median", "-"), ("ppl_mean", ":")):
            if variable in result:
                suffix = {"ppl_median": ", median", "ppl_mean": ", mean"}.get(variable, "")
                colour = COLOURS[list(_LABELS).index(mode) - 2]
                ax.plot(result["step"], result[variable], style, color=colour, label=f"{_LABELS[mode]}{suffix}")
    ax.set_ylabel("perplexity")
    if log:
        ax.set_yscale("log")
    ax.legend()
    _step_axis(ax)


def _step_axis(ax: Axes) -> None:
    ax.set_xlabel("training step")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _edges(centres: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cell borders half-way between the centres, for uneven steps too."""
    if len(centres) < 2:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
