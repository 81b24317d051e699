"""The figure of each measure, from its saved results: one function a measure.

A plate knows its title, its caption and its panels before it is drawn. It is drawn into files beside the results, or
into a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.figures import measures as axes_of
from pythia_dynamics.figures import style, two_time
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.rank import SHOWN_TOLERANCES
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.folder import Results
from pythia_dynamics.sweep.dataset import ends

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Plate", "draw", "measure_plate", "shown_tolerances"]


@dataclass(frozen=True)
class Plate:
    """One figure.

    Parameters
    ----------
    path : Path
        Its file without a suffix; the name is its key on a page.
    title, caption : str
        Heading, and a sentence on what is seen.
    paint : callable
        Draws on what `sheet` gives: one `Axes`, or an array of them.
    columns, rows : int
        Number of panels.
    width, height : float
        Size of a panel in inches.
    """

    path: Path
    title: str
    caption: str
    paint: Callable[[Any], None]
    columns: int = 1
    rows: int = 1
    width: float = 4.4
    height: float = 3.2

    @property
    def key(self) -> str:
        """Its name among the figures of a folder."""
        return self.path.name

    def sheet(self) -> Any:
        """An empty sheet of its panels."""
        return figures.sheet(self.columns, self.rows, width=self.width, height=self.height)


def draw(plates: Sequence[Plate], *, progress: Progress = silent) -> list[Path]:
    """Write each plate as PNG (300 dpi) and SVG; return the files. `progress` counts plates."""
    files: list[Path] = []
    for done, plate in enumerate(plates, 1):
        with plate.sheet() as (figure, axes):
            plate.paint(axes)
            files += figures.save(figure, plate.path)
        progress(done, len(plates))
    return files


def measure_plate(measure: Measure, results: Results) -> Plate:
    """The figure of a measure of the weights of one tensor. Raises `PythiaDynError` where it has not been computed."""
    return FIGURES.get(measure.name, _columns_over_steps)(measure, results)


def _columns_over_steps(measure: Measure, results: Results) -> Plate:
    """A measure without a figure of its own here: what it draws itself, else its columns over the step."""
    table = results.read_zarr(measure.name) if measure.saves_array else results.read_table(next(iter(measure.tables)))
    names = [str(name) for name, column in table.data_vars.items() if column.dims == ("step",)]
    first_and_last = (f"{name} from {a:.4g} to {b:.4g}" for name in names for a, b in [ends(table[name])])
    caption = f"{measure.title}: {', '.join(first_and_last)}. Source: {measure.source}."
    if measure.draw is not None:
        draw_one = measure.draw
        return Plate(results.path / measure.name, measure.title, caption, lambda ax: draw_one(ax, table))

    def paint(axes: Any) -> None:
        for name, ax in zip(names, np.atleast_1d(axes), strict=True):
            ax.plot(table["step"], table[name])
            ax.set_ylabel(name.replace("_", " "))
            style.step_axis(ax)

    return Plate(results.path / measure.name, measure.title, caption, paint, columns=max(len(names), 1))


def _density(measure: Measure, results: Results) -> Plate:
    result = results.read_zarr("density")
    spread, modes = ends(result["std"]), ends(result["modes"])
    caption = (
        f"Density of the weights over training, logarithmic colours. The standard deviation goes from {spread[0]:.3g} "
        f"to {spread[1]:.3g}, the number of modes from {modes[0]:.0f} to {modes[1]:.0f}."
    )
    return Plate(results.path / "density", measure.title, caption, lambda ax: axes_of.density(ax, result))


def _msd(measure: Measure, results: Results) -> Plate:
    table = results.read_table("msd")
    excess = [(table[kind] / table[f"{kind}_null"]).to_numpy()[:-1] for kind in ("msd", "msd_time")]
    caption = "Mean squared displacement by both demeanings; dashed, a random walk with the same step sizes."
    if all(np.isfinite(ratio).any() for ratio in excess):
        over_weights, over_time = (float(np.nanmax(ratio)) for ratio in excess)
        caption += (
            f" At most it is {over_weights:.2g} times the walk's (over weights, as printed in Eq 4) and "
            f"{over_time:.2g} times (over time, where the walk peaks mid-way as well)."
        )
    paint = lambda ax: axes_of.msd(ax, table, name=results.label)  # noqa: E731
    return Plate(results.path / "msd", measure.title, caption, paint)


def _order(measure: Measure, results: Results) -> Plate:
    table = results.read_table("order")
    b = ends(table["order_parameter"])
    caption = f"The order parameter b = ‖W_U‖_F / d_model goes from {b[0]:.4g} to {b[1]:.4g}"
    panels: list[Callable[..., None]] = [axes_of.order]
    if "loss" in table:
        loss = ends(table["loss"])
        caption += f", while the loss goes from {loss[0]:.4g} to {loss[1]:.4g} nats per token (middle; right: dL/db)"
        panels += [axes_of.loss_against_order, axes_of.loss_slope]
    return _row_of_panels(measure, results, f"{caption}.", panels, table)


def _rank(measure: Measure, results: Results) -> Plate:
    table = results.read_table("rank").assign(rank_infinite=results.read_table("rank-infinite")["rank"])
    size, tolerances = int(table["batch_size"].max()), shown_tolerances(table)
    courses = []
    for convention, tolerance in tolerances.items():
        first, last = ends(table["rank"].sel({"batch_size": size, "tolerance": tolerance, "convention": convention}))
        courses.append(f"from {first:.3g} to {last:.3g} ({convention} tolerance {tolerance:g})")
    caption = (
        "Covariance rank of randomly projected weights, its change, and its limit for an infinite batch. At "
        f"B = {size} it goes {', '.join(courses)}."
    )

    def paint(axes: Any) -> None:
        for column, (convention, tolerance) in zip(axes.T, tolerances.items(), strict=True):
            axes_of.rank(column[0], table, tolerance=tolerance, convention=convention)
            axes_of.rank_difference(column[1], table, tolerance=tolerance, convention=convention)
            axes_of.rank_infinite(column[2], table, convention=convention)

    return Plate(results.path / "rank", measure.title, caption, paint, columns=2, rows=3)


def _two_time(measure: Measure, results: Results) -> Plate:
    result = results.read_zarr("two_time")
    fit = result["displacement_by_lag"].attrs
    caption = "Every two steps against each other: displacement by waiting time and on average, cosine, trajectory."
    if "exponent" in fit:
        caption += f" The displacement grows as lag^{fit['exponent']:.2f}: 1 is a random walk, 2 steady motion."
    if result.sizes["component"]:
        shares = [float(result[name][0]) for name in ("explained", "explained_null")]
        caption += (
            f" The first principal component holds {shares[0]:.0%} of the variance, a random walk's {shares[1]:.0%}."
        )

    def paint(axes: Any) -> None:
        two_time.ageing(axes[0, 0], result)
        two_time.displacement_by_lag(axes[0, 1], result)
        two_time.cosine(axes[1, 0], result)
        two_time.trajectory(axes[1, 1], result)

    return Plate(results.path / "two_time", measure.title, caption, paint, columns=2, rows=2)


def _spectrum(measure: Measure, results: Results) -> Plate:
    table = results.read_table("spectrum")
    entropy, effective, stable = (ends(table[name]) for name in ("entropy", "effective_rank", "stable_rank"))
    caption = (
        f"The entropy of the singular values of W_U goes from {entropy[0]:.4g} to {entropy[1]:.4g} nats, its effective "
        f"rank from {effective[0]:.3g} to {effective[1]:.3g}, its stable rank from {stable[0]:.3g} to {stable[1]:.3g}."
    )
    panels = (axes_of.entropy, axes_of.effective_rank, axes_of.mean_row_fraction)
    return _row_of_panels(measure, results, caption, panels, table)


FIGURES: Mapping[str, Callable[[Measure, Results], Plate]] = {
    "density": _density,
    "msd": _msd,
    "two_time": _two_time,
    "order": _order,
    "rank": _rank,
    "spectrum": _spectrum,
}
"""The figure of each measure of this package."""


def _row_of_panels(
    measure: Measure, results: Results, caption: str, panels: Sequence[Callable[..., None]], table: xr.Dataset
) -> Plate:
    """A plate of panels side by side, each drawn by a function of the table."""

    def paint(axes: Any) -> None:
        for panel, ax in zip(panels, np.atleast_1d(axes), strict=True):
            panel(ax, table)

    return Plate(results.path / measure.name, measure.title, caption, paint, columns=len(panels))


def shown_tolerances(table: xr.Dataset) -> dict[str, float]:
    """By convention, the tolerance of a table of ranks that is nearest to the one that is shown."""
    known = table["tolerance"].to_numpy()
    return {name: float(known[np.argmin(np.abs(known - wanted))]) for name, wanted in SHOWN_TOLERANCES.items()}
