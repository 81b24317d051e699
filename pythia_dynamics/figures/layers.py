"""All tensors of a model by layer and kind: a panel for each kind, a curve for each layer."""

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

__all__ = ["SHOWN", "layers", "layers_figure", "overview_figure"]

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


@of_a_result
def layers(ax: Axes, result: xr.Dataset, variable: str, kind: str, label: str = "") -> None:
    """One kind of tensor: a curve for each layer, from dark (the first) to bright; biases dotted.

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
    part = result.isel(tensor=np.flatnonzero(result["kind"].to_numpy() == kind))
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


def overview_figure(results: Results, measure: str) -> FigureSpec:
    """The figure of all measured tensors of a model.

    Parameters
    ----------
    results
        The results of the model.
    measure
        The measure.

    Raises
    ------
    PythiaDynError
        As `pythia_dynamics.results.overview.overview` does.
    """
    result = overview(results, measure)
    name, table = overview_table(measure)
    first = next(column for column in table.columns if column not in table.keys)
    variable, label = SHOWN.get(measure, (first, first.replace("_", " ")))
    biases = "; dotted, biases" if bool(result["is_bias"].any()) else ""
    caption = (
        f"{result.sizes['tensor']} tensors by kind: {label} ({name}.csv, {variable}), a curve for each layer{biases}."
    )
    path = results.model.path / f"{PREFIX}{measure}"
    return layers_figure(
        path, result, variable, f"All tensors: {measure.replace('_', ' ')}", caption, label, results.name
    )


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
    kinds = [kind for kind in KINDS if kind in set(result["kind"].to_numpy().tolist())]
    columns = min(_MOST_COLUMNS, len(kinds))
    rows = -(-len(kinds) // columns)
    panels: list[Callable[[Axes], None]] = [
        partial(layers, result=result, variable=variable, kind=kind, label=label) for kind in kinds
    ]
    panels += [lambda ax: ax.set_axis_off()] * (rows * columns - len(kinds))
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
