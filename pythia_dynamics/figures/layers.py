"""All tensors of a model by layer and kind: a panel for each kind, a curve for each layer or a cell for each head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics.checkpoints.modules import KINDS
from pythia_dynamics.figures.specs import FigureSpec, each_panel
from pythia_dynamics.figures.style import COLOURS, of_a_result, step_axis
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.overview import PREFIX, overview, overview_table
from pythia_dynamics.results.spread import band
from pythia_dynamics.sweep.dataset import ends

__all__ = ["SHOWN", "heads", "layers", "layers_figure", "overview_figure"]

SHOWN: Mapping[str, tuple[str, str]] = {
    "angles": ("angle", "angular update (degrees)"),
    "density": ("std", "standard deviation of the weights"),
    "msd": ("displacement", "squared displacement (weight²)"),
    "order": ("rms", "root mean square weight"),
    "spectrum": ("effective_rank", "effective rank (of a vector 1)"),
}
"""The column of a measure that its overview shows, and its label. Of other measures it is the first column."""

_MOST_COLUMNS = 3
"""Panels side by side."""

_LEGEND_LAYERS = 4
"""Layers that the legend names: the first, the last, and those between them at even distances."""

_MOST_TICKS = 6
"""Layers and heads that the axes of a heat map name."""


@of_a_result
def layers(ax: Axes, result: xr.Dataset, variable: str, kind: str, label: str = "") -> None:
    """One kind of tensor: a curve for each layer, from dark (the first) to bright; biases dotted. Single heads are not
    drawn.

    Of several runs the curve is the median, with the central 80 % shaded.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.overview`, or of `pythia_dynamics.gather` for several tensors.
    variable
        The column.
    kind
        The kind of tensor.
    label
        Label of the y axis. Default: the name of the column.
    """
    part = result.isel(tensor=np.flatnonzero((result["kind"] == kind) & (result["head"] < 0)))
    blocks = np.unique(result["layer"].to_numpy())
    blocks = blocks[blocks >= 0]
    named = set(blocks[np.linspace(0, len(blocks) - 1, min(_LEGEND_LAYERS, len(blocks))).astype(int)].tolist())
    last = max(int(blocks.max(initial=0)), 1)
    colours = mpl.colormaps["viridis"]
    labelled = set()
    for index in range(part.sizes["tensor"]):
        one = part.isel(tensor=index)
        layer, is_bias = int(one["layer"]), bool(one["is_bias"])
        colour = COLOURS[0] if layer < 0 else colours(0.9 * layer / last)
        curve = one[variable]
        if "run" in curve.dims:
            spread = band(curve).dropna("step")
            ax.fill_between(spread["step"], spread["low"], spread["high"], color=colour, alpha=0.22, linewidth=0)
            curve = spread["median"]
        curve = curve.dropna("step")
        name = f"layer {layer}" if layer >= 0 else str(one["tensor"].item())
        shown = (layer in named or layer < 0) and not is_bias and name not in labelled
        labelled |= {name} if shown else set()
        ax.plot(
            curve["step"],
            curve,
            ":" if is_bias else "-",
            color=colour,
            label=name if shown else f"_{name}",  # matplotlib leaves out labels that begin so
        )
    step_axis(ax, label or variable.replace("_", " "), title=kind, legend=bool(ax.get_legend_handles_labels()[0]))


@of_a_result
def heads(ax: Axes, result: xr.Dataset, variable: str, kind: str, label: str = "") -> None:
    """One kind of tensor: the value of each head of each layer at its last step, as a heat map; biases are not drawn.

    Of several runs it is the median.

    Parameters
    ----------
    ax
        The panel.
    result
        The result of `pythia_dynamics.overview`, or of `pythia_dynamics.gather` for several tensors.
    variable
        The column.
    kind
        The kind of tensor: ``query``, ``key`` or ``value``.
    label
        Label of the colours. Default: the name of the column.
    """
    chosen = (result["kind"] == kind) & (result["head"] >= 0) & ~result["is_bias"]
    part = result.isel(tensor=np.flatnonzero(chosen))
    rows, columns = part["layer"].to_numpy(), part["head"].to_numpy()
    values = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    of_runs = part[variable].median("run") if "run" in part[variable].dims else part[variable]
    values[rows, columns] = [ends(curve)[1] for curve in of_runs]
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label=label or variable.replace("_", " "))
    ax.set(xlabel="head", ylabel="layer", title=f"{kind}, last step")
    ax.grid(visible=False)
    for axis, count in ((ax.xaxis, values.shape[1]), (ax.yaxis, values.shape[0])):
        numbers = np.unique(np.linspace(0, count - 1, min(count, _MOST_TICKS)).astype(int))
        axis.set_ticks(numbers + 0.5, numbers.astype(str).tolist())


def overview_figure(results: Results, measure: str, dataset: xr.Dataset | None = None) -> FigureSpec:
    """The figure of all measured tensors of a model.

    Parameters
    ----------
    results
        The results of the model.
    measure
        The measure.
    dataset
        The overview of these results where it is known, so that the tables are not read again.

    Raises
    ------
    PythiaDynError
        As `pythia_dynamics.results.overview.overview` does.
    """
    result = overview(results, measure) if dataset is None else dataset
    name, table = overview_table(measure)
    first = next(column for column in table.columns if column not in table.keys)
    variable, label = SHOWN.get(measure, (first, first.replace("_", " ")))
    is_head = result["head"].to_numpy() >= 0
    biases = "; dotted, biases" if bool(result["is_bias"].any()) else ""
    curves = f", a curve for each layer{biases}" if not is_head.all() else ""
    cells = "; of single heads the value at the last step" if is_head.any() else ""
    caption = f"{result.sizes['tensor']} tensors by kind: {label} ({name}.csv, {variable}){curves}{cells}."
    path, title = results.model.path / f"{PREFIX}{measure}", f"All tensors: {measure.replace('_', ' ')}"
    return layers_figure(path, result, variable, title, caption, label, results.name)


def layers_figure(
    path: Path, result: xr.Dataset, variable: str, title: str, caption: str, label: str, name: str
) -> FigureSpec:
    """The figure of tensors by layer and kind: a panel for each kind.

    Parameters
    ----------
    path
        The files, without their suffix.
    result, variable, label
        As for `layers`.
    title, caption
        Its heading and what it shows, in the report.
    name
        The model or the runs, above the panels.
    """
    is_head = result["head"].to_numpy() >= 0
    panels: list[Callable[[Axes], None]] = []
    for draw, drawn in ((layers, ~is_head), (heads, is_head & ~result["is_bias"].to_numpy())):
        found = set(result["kind"].to_numpy()[drawn].tolist())
        panels += [
            partial(draw, result=result, variable=variable, kind=kind, label=label) for kind in KINDS if kind in found
        ]
    columns = min(_MOST_COLUMNS, max(len(panels), 1))
    rows = -(-len(panels) // columns)
    panels += [lambda ax: ax.set_axis_off()] * (rows * columns - len(panels))
    return FigureSpec(
        path,
        title,
        caption,
        each_panel(panels, choose_scale=True),
        columns,
        rows,
        width=3.6,
        height=2.7,
        name=name,
    )
