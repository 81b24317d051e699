"""Figures from saved results: each function draws a result on an `Axes` and returns nothing.

A figure never computes: what it shows is what the result file says. Missing steps are gaps; the null of a quantity
is dashed in the colour of the quantity.
"""

from __future__ import annotations

from pythia_dynamics.figures.explore import cosine_at, density_at
from pythia_dynamics.figures.garden import (
    displacements,
    last_words,
    perplexities,
    published_points,
    rank_differences,
    ranks,
    unmasking,
)
from pythia_dynamics.figures.inline import Drawing, Panel, inline
from pythia_dynamics.figures.measures import (
    density,
    effective_rank,
    entropy,
    loss_against_order,
    loss_slope,
    mean_row_fraction,
    msd,
    order,
    rank,
    rank_difference,
    rank_infinite,
)
from pythia_dynamics.figures.perplexity import perplexity
from pythia_dynamics.figures.portrait import first_last
from pythia_dynamics.figures.style import COLOURS, save, sheet
from pythia_dynamics.figures.training import losses, phases, runs_against_order, slope_against_order, stopping
from pythia_dynamics.figures.two_time import ageing, cosine, displacement_by_lag, trajectory

__all__ = [
    "COLOURS",
    "Drawing",
    "Panel",
    "ageing",
    "cosine",
    "cosine_at",
    "density",
    "density_at",
    "displacement_by_lag",
    "displacements",
    "effective_rank",
    "entropy",
    "first_last",
    "inline",
    "last_words",
    "loss_against_order",
    "loss_slope",
    "losses",
    "mean_row_fraction",
    "msd",
    "order",
    "perplexities",
    "perplexity",
    "phases",
    "published_points",
    "rank",
    "rank_difference",
    "rank_differences",
    "rank_infinite",
    "ranks",
    "runs_against_order",
    "save",
    "sheet",
    "slope_against_order",
    "stopping",
    "trajectory",
    "unmasking",
]
