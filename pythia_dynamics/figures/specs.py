"""Specifications of figures, and the figure of each measure: one function per measure.

A specification has the title, the caption and the layout of a figure before it is drawn. The figure is drawn into files
beside the results, or into a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.paper import PaperWidth, drawn_at
from pythia_dynamics.figures.step_scale import choose_step_scale
from pythia_dynamics.figures.style import step_axis
from pythia_dynamics.measures.displacement import PER_LEARNING_RATE
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.rank import SHOWN_TOLERANCES
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.folder import Results
from pythia_dynamics.sweep.dataset import ends

__all__ = [
    "FIGURES",
    "FigureSpec",
    "each_panel",
    "from_to",
    "full_name",
    "measure_figure",
    "save_figures",
    "shown_tolerances",
]

Panels = Sequence[Callable[[Axes], None]]
"""Functions that draw one panel each."""


@dataclass(frozen=True)
class FigureSpec:
    """Specification of one figure.

    Parameters
    ----------
    path
        Its files without the suffix.
    title
        Heading.
    caption
        One or two sentences on what the figure shows.
    draw
        Draws on the axes that `sheet` gives: one `Axes`, or an array of them.
    columns, rows
        Number of panels side by side, and above one another.
    width, height
        Size of a panel in inches.
    name
        The model and the tensor that it shows, above the panels. Empty where the panels or their legends name them.
    of_text
        Whether it holds lines of text (see `sheet`).
    """

    path: Path
    title: str
    caption: str
    draw: Callable[[Any], None]
    columns: int = 1
    rows: int = 1
    width: float = 4.4
    height: float = 3.2
    name: str = ""
    of_text: bool = False

    @property
    def key(self) -> str:
        """The name of the figure in its folder and on a page."""
        return self.path.name

    def sheet(self) -> Any:
        """An empty figure with its panels (see `pythia_dynamics.figures.sheet`)."""
        size = {"width": self.width, "height": self.height}
        return figures.sheet(self.columns, self.rows, **size, name=self.name, of_text=self.of_text)


def each_panel(panels: Panels, *, choose_scale: bool = False) -> Callable[[Any], None]:
    """The function `FigureSpec.draw` of a figure whose panels are drawn one by one.

    Parameters
    ----------
    panels
        One function per panel, row by row.
    choose_scale
        Whether axes over steps become logarithmic where everything happens early (see `choose_step_scale`). Figures of
        the two works keep the linear axes of the works.
    """

    def draw(axes: Any) -> None:
        for panel, ax in zip(panels, np.atleast_1d(axes).flat, strict=True):
            panel(ax)
        if choose_scale:
            choose_step_scale(axes)

    return draw


def save_figures(
    specs: Sequence[FigureSpec], *, width: PaperWidth | None = None, progress: Progress = silent
) -> list[Path]:
    """Draw figures and write each as PNG (300 dpi) and SVG; for a paper, as PDF as well.

    Parameters
    ----------
    specs
        The figures.
    width
        ``column`` (3.25 inches) or ``page`` (6.75 inches), for a paper. By default each has its own size, or that of
        `drawn_at` around the call.
    progress
        Counts figures.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    UnknownNameError
        There is no such width.
    """
    files: list[Path] = []
    for done, spec in enumerate(specs, 1):
        with drawn_at(width), spec.sheet() as (figure, axes):
            spec.draw(axes)
            files += figures.save(figure, spec.path)
        progress(done, len(specs))
    return files


def measure_figure(measure: Measure, results: Results) -> FigureSpec:
    """The figure of a measure.

    Parameters
    ----------
    measure
        The measure. One that is not in `FIGURES` draws itself (`Measure.draw`), or its columns over the step are drawn.
    results
        The results of the weights of one tensor.

    Raises
    ------
    PythiaDynError
        Where the measure has not been computed, or has no figure, no `Measure.draw` and no column over the step.
    """
    caption, panels = FIGURES.get(measure.name, partial(_own_figure, measure))(results)
    columns = 2 if len(panels) > 3 else max(len(panels), 1)
    draw, rows = each_panel(panels, choose_scale=True), len(panels) // columns or 1
    path = results.path / measure.name
    return FigureSpec(path, measure.title, caption, draw, columns, rows, name=full_name(results))


def full_name(results: Results) -> str:
    """The model and the tensor, as every figure of one tensor names them.

    Parameters
    ----------
    results
        The results of a model, or of a tensor of it.
    """
    return results.name if results.tensor is None else f"{results.name}, {results.tensor}"


def _own_figure(measure: Measure, results: Results) -> tuple[str, Panels]:
    """The figure of a measure that is not in `FIGURES`."""
    if measure.saves_array:
        table = results.read_zarr(measure.name)
    elif measure.tables:
        table = results.read_table(*next(iter(measure.tables.items())))
    else:
        raise PythiaDynError(f"{measure.name}: no figure, because the measure saves nothing: give it tables=")
    names = [
        str(name)
        for name, column in table.data_vars.items()
        if column.dims == ("step",) and np.issubdtype(column.dtype, np.number)
    ]
    if measure.draw is None and not names:
        raise PythiaDynError(f"{measure.name}: no figure, because no column has one number per step: give it draw=")
    courses = ", ".join(f"{name} {from_to(table[name], '.4g')}" for name in names)
    caption = f"{measure.title}: {courses}. Source: {measure.source}."
    if measure.draw is not None:
        return caption, [lambda ax: measure.call("draw", ax, table)]

    def draw_column(ax: Axes, name: str) -> None:
        ax.plot(table["step"], table[name])
        step_axis(ax, name.replace("_", " "))

    return caption, [partial(draw_column, name=name) for name in names]


def _density(results: Results) -> tuple[str, Panels]:
    result = results.read_zarr("density")
    caption = (
        "Density of the weights over training, logarithmic colours. The standard deviation goes "
        f"{from_to(result['std'], '.3g')}, the number of modes {from_to(result['modes'], '.0f')}."
    )
    return caption, [partial(figures.density, result=result)]


def _msd(results: Results) -> tuple[str, Panels]:
    table = results.read_table("msd")
    excess = [(table[kind] / table[f"{kind}_null"]).to_numpy()[:-1] for kind in ("msd", "msd_time")]
    caption = "MSD demeaned over the weights and over time; dashed, a random walk with the same step sizes."
    if all(np.isfinite(ratio).any() for ratio in excess):
        over_weights, over_time = (float(np.nanmax(ratio)) for ratio in excess)
        caption += (
            f" At most it is {over_weights:.2g} times the walk's (over weights, as printed in Eq 4) and "
            f"{over_time:.2g} times (over time, where the walk peaks mid-way as well)."
        )
    panels: list[Callable[[Axes], None]] = [partial(figures.msd, result=table)]
    if all(name in table for name in PER_LEARNING_RATE):
        caption += " Then the displacement between steps per learning rate: of the length, and of its square."
        panels += [partial(figures.per_learning_rate, result=table, squared=squared) for squared in (False, True)]
    return caption, panels


def _angles(results: Results) -> tuple[str, Panels]:
    table = results.read_table("angles")
    caption = (
        f"The norm of the weights goes {from_to(table['norm'], '.4g')}, the angle between neighbouring steps "
        f"{from_to(table['angle'], '.3g')} degrees. Dashed, increments that are orthogonal to the weights."
    )
    if "equilibrium_angle" in table:
        caption += " Dotted, the equilibrium of AdamW."
    return caption, [partial(draw, result=table) for draw in (figures.angle, figures.weight_norm, figures.norm_growth)]


def _order(results: Results) -> tuple[str, Panels]:
    table = results.read_table("order")
    caption = f"The order parameter b = ‖W_U‖_F / d_model goes {from_to(table['order_parameter'], '.4g')}"
    functions: list[Callable[..., None]] = [figures.order]
    if "loss" in table:
        caption += f", while the loss goes {from_to(table['loss'], '.4g')} nats per token (middle; right: dL/db)"
        functions += [figures.loss_against_order, figures.loss_slope]
    return f"{caption}.", [partial(function, result=table) for function in functions]


def _rank(results: Results) -> tuple[str, Panels]:
    table = results.read_table("rank").assign(rank_infinite=results.read_table("rank-infinite")["rank"])
    size, tolerances = int(table["batch_size"].max()), shown_tolerances(table)
    courses = []
    for convention, tolerance in tolerances.items():
        curve = table["rank"].sel({"batch_size": size, "tolerance": tolerance, "convention": convention})
        courses.append(f"{from_to(curve, '.3g')} ({convention} tolerance {tolerance:g})")
    caption = (
        "Covariance rank of randomly projected weights, its change, and its limit for an infinite batch. At "
        f"B = {size} it goes {', '.join(courses)}."
    )
    return caption, [
        *(
            partial(function, result=table, tolerance=tolerance, convention=convention)
            for function in (figures.rank, figures.rank_difference)
            for convention, tolerance in tolerances.items()
        ),
        *(partial(figures.rank_infinite, result=table, convention=convention) for convention in tolerances),
    ]


def _two_time(results: Results) -> tuple[str, Panels]:
    result = results.read_zarr("two_time")
    fit = result["displacement_by_lag"].attrs
    caption = "Every two steps against each other: displacement by waiting time and on average, cosine, trajectory."
    if "exponent" in fit:
        caption += f" The displacement grows as lag^{fit['exponent']:.2f}: 1 is a random walk, 2 steady motion."
    if result.sizes["component"]:
        measured, null = (float(result[name][0]) for name in ("explained", "explained_null"))
        caption += f" The first principal component holds {measured:.0%} of the variance, a random walk's {null:.0%}."
    functions = (figures.ageing, figures.displacement_by_lag, figures.cosine, figures.trajectory)
    return caption, [partial(function, result=result) for function in functions]


def _spectrum(results: Results) -> tuple[str, Panels]:
    table = results.read_table("spectrum")
    caption = (
        f"The entropy of the singular values of W_U goes {from_to(table['entropy'], '.4g')} nats, its effective rank "
        f"{from_to(table['effective_rank'], '.3g')}, its stable rank {from_to(table['stable_rank'], '.3g')}."
    )
    functions = (figures.entropy, figures.effective_rank, figures.mean_row_fraction)
    return caption, [partial(function, result=table) for function in functions]


def _tails(results: Results) -> tuple[str, Panels]:
    table = results.read_table("tails")
    caption = f"The power law of the largest eigenvalues has an exponent that goes {from_to(table['alpha'], '.3g')}."
    caption += " Against it, a lognormal and a truncated power law: below the dotted line they fit better (p ≈ 0.05)."
    functions = (figures.tail_exponent, figures.tail_ratio, figures.tail_size)
    return caption, [partial(function, result=table) for function in functions]


def _rows(results: Results) -> tuple[str, Panels]:
    result = results.read_zarr("rows")
    caption = f"The mean norm of a row of W goes {from_to(result['norm'], '.3g')}, its mean distance from the first "
    caption += f"step {from_to(result['drift'], '.3g')}."
    functions = [figures.row_norm, figures.row_drift]
    if "unigram_r2" in result:
        caption += (
            f" The rank correlation of the norm with the frequency of the token goes "
            f"{from_to(result['spearman_norm'], '.2f')}; the unigram direction explains "
            f"{from_to(result['unigram_r2'], '.2f')} of the variance of log frequency."
        )
        functions += [figures.row_correlations, figures.unigram]
    return caption, [partial(function, result=result) for function in functions]


FIGURES: Mapping[str, Callable[[Results], tuple[str, Panels]]] = {
    "density": _density,
    "msd": _msd,
    "two_time": _two_time,
    "angles": _angles,
    "order": _order,
    "rank": _rank,
    "spectrum": _spectrum,
    "tails": _tails,
    "rows": _rows,
}
"""Caption and panels of the figure of each measure of this package. Up to three panels are drawn side by side, more in
two columns."""


def from_to(curve: xr.DataArray, digits: str) -> str:
    """The first and the last known value of a curve in words: ``from 0.146 to 0.3``.

    Parameters
    ----------
    curve
        Values over `step`.
    digits
        Format of a number, such as ``.4g``.
    """
    first, last = ends(curve)
    return f"from {first:{digits}} to {last:{digits}}"


def shown_tolerances(table: xr.Dataset) -> dict[str, float]:
    """The tolerances of a table of ranks that are shown.

    Parameters
    ----------
    table
        The table ``rank.csv``.

    Returns
    -------
    dict of str to float
        By convention, the tolerance of the table that is nearest to that in `SHOWN_TOLERANCES`.
    """
    known = table["tolerance"].to_numpy()
    return {name: float(known[np.argmin(np.abs(known - wanted))]) for name, wanted in SHOWN_TOLERANCES.items()}
