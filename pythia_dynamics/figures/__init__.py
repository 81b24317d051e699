"""Figures from saved results: each function draws a result on an `Axes` and returns nothing.

A figure never computes: what it shows is what the result file says. Missing steps are gaps; the null of a quantity
is dashed in the colour of the quantity.
"""

from __future__ import annotations

from pythia_dynamics.figures.scores import perplexity
from pythia_dynamics.figures.style import COLOURS, save, sheet
from pythia_dynamics.figures.weights import (
    density,
    effective_rank,
    loss_against_order,
    msd,
    order,
    rank,
    rank_difference,
)

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
