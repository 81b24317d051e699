"""The table of the order-parameter study: b and the losses of every size at its last step, over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.claims.blog import Runs
from pythia_dynamics.files import atomic_file
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_blog import published_blog
from pythia_dynamics.tables import write_csv

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["write_summary"]

_QUANTITIES = {"order_parameter": "b", "train_loss": "training loss", "validation_loss": "validation loss"}
_STATISTICS = ("mean", "standard_error", "published")
_DIGITS = 10


def write_summary(results: Results, runs: Runs) -> list[Path]:
    """Write ``summary.csv`` and ``summary.md``: means over seeds beside the published values.

    Each size is shown at the last published step after the first that all of its runs have, else at their last common
    step, without published values. Losses are in nats per token.

    Parameters
    ----------
    results
        The folder of the common results.
    runs
        The curves of each size over `step`, one dataset per seed.

    Returns
    -------
    list of Path
        Both files.
    """
    rows = [(size, len(seeds), *_row(size, seeds)) for size, seeds in runs.items()]
    columns = ["model", "seeds", "step", *(f"{name}_{part}" for name in _QUANTITIES for part in _STATISTICS)]
    table = write_csv(results.path / "summary.csv", columns, rows, digits=_DIGITS)
    titles = ["model", "seeds", "step", *(title for label in _QUANTITIES.values() for title in (label, "published"))]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for size, seeds, step, *values in rows:
        cells = [size, str(seeds), f"{step:,}"]
        for first in range(0, len(values), len(_STATISTICS)):
            mean, error, published = values[first : first + len(_STATISTICS)]
            cells.append(f"{mean:.4f}" if math.isnan(error) else f"{mean:.4f} ± {error:.4f}")
            cells.append("" if math.isnan(published) else f"{published:.4f}")
        lines.append(cells)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path = results.path / "summary.md"
    with atomic_file(path) as file:
        file.write(f"{text}\n".encode())
    return [table, path]


def _row(size: str, seeds: Sequence[xr.Dataset]) -> tuple[int, *tuple[float, ...]]:
    """The step, and for each quantity mean, standard error (NaN for one seed) and published value (NaN for none)."""
    published = published_blog(size)
    shared = set.intersection(*(set(run["step"].to_numpy().tolist()) for run in seeds))
    known = [step for step in published["step"].to_numpy().tolist() if step in shared and step > 0]
    step = max(known or shared)
    values: list[float] = []
    for name in _QUANTITIES:
        found = np.array([float(run[name].sel(step=step)) for run in seeds])
        error = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.nan
        values += [float(found.mean()), error, float(published[name].sel(step=step)) if known else math.nan]
    return int(step), *values
