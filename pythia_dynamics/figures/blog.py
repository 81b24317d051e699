"""The figures of "A Large Language Model Order Parameter", from saved runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from pythia_dynamics import figures
from pythia_dynamics.errors import FormatError, PythiaDynError, first_line
from pythia_dynamics.figures.specs import FigureSpec, each_panel, from_to
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_blog import published_blog

__all__ = ["blog_figures", "load_runs"]


_CURVES = ("order_parameter", "train_loss", "validation_loss", "dloss_db", "dloss_db_backward")
"""Columns of ``runs.csv`` that the figures and the claims read."""


def load_runs(results: Results) -> Mapping[str, tuple[xr.Dataset, ...]]:
    """The curves in ``runs.csv`` by size, one dataset over `step` per seed.

    Parameters
    ----------
    results
        The folder that `reproduce` wrote.

    Raises
    ------
    PythiaDynError
        Where there is no ``runs.csv``, or it is damaged.
    """
    path = results.path / "runs.csv"
    if not path.is_file():
        raise PythiaDynError(f"no {path}; run pythia-dyn reproduce order-parameter")
    try:
        return {
            str(size): tuple(
                run.set_index("step")[list(_CURVES)].sort_index().to_xarray() for _, run in runs.groupby("seed")
            )
            for size, runs in pd.read_csv(path).groupby("model", sort=False)
        }
    except (KeyError, ValueError) as error:
        again = "run pythia-dyn reproduce order-parameter"
        raise FormatError(f"{path} is damaged ({first_line(error)}): {again}") from None


def blog_figures(results: Results) -> list[FigureSpec]:
    """The blog's Fig 3, 4 and 5: loss against the step, loss against b, and the slope of the loss.

    Parameters
    ----------
    results
        The folder that `reproduce` wrote.

    Raises
    ------
    PythiaDynError
        Where there is no ``runs.csv``, or it is damaged.
    """
    runs = load_runs(results)
    published = {size: published_blog(size) for size in runs}
    b_ranges = ", ".join(f"{size} {from_to(seeds[0]['order_parameter'], '.3g')}" for size, seeds in runs.items())
    draw_losses, draw_against_order, draw_slope = (
        partial(function, runs=runs, published=published)
        for function in (figures.losses, figures.runs_against_order, figures.slope_against_order)
    )

    def spec(name: str, title: str, caption: str, *panels: Callable[[Axes], None]) -> FigureSpec:
        width, height = (5.2, 3.8) if len(panels) == 1 else (4.4, 3.2)
        caption = f"{caption} Markers: the blog's published numbers."
        path, draw = results.path / name, each_panel(panels)
        return FigureSpec(path, title, caption, draw, columns=len(panels), width=width, height=height)

    loss = "Training and validation loss (dashed) against the step."
    against_order = f"Training (left) and validation loss against b, which goes {b_ranges}."
    slope = "dL/db of the training loss against b, by backward differences, without the untrained model."
    panels = (draw_against_order, partial(draw_against_order, part="validation_loss"))
    return [
        spec("loss", "Loss during training (blog, Fig 3)", loss, draw_losses),
        spec("loss_against_order", "Loss against the order parameter (blog, Fig 4)", against_order, *panels),
        spec("slope_against_order", "Slope of the loss (blog, Fig 5)", slope, draw_slope),
    ]
