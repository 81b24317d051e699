"""The files of a comparison: tables, figures and provenance in ``results/compare/<A>/<B>/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics import figures
from pythia_dynamics.figures.specs import FigureSpec, each_panel, save_figures
from pythia_dynamics.measures.comparison import BETWEEN, STATISTICS
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.compare import QUANTILES
from pythia_dynamics.studies.comparison_table import (
    barrier_sentence,
    comparison_rows,
    summarise_comparison,
    told_step,
)
from pythia_dynamics.studies.pipeline import Outcome
from pythia_dynamics.tables import plain, write_csv

__all__ = ["FOLDER", "comparison_figures", "write_comparison"]

FOLDER = "compare"
"""Folder of all comparisons in the directory of results. Those of two sides are two levels below it, where no command
looks for the results of a model (``<model>/provenance.json``, ``<model>/<tensor>/provenance.json``)."""

_CURVES = ("angle", "relative_displacement", "ks", "overlap")
"""The statistics that are drawn over the steps of two runs."""


def write_comparison(
    result: xr.Dataset, results: Path | str | None = None, *, line: xr.Dataset | None = None
) -> Outcome:
    """Write a comparison: tables, figures and provenance.

    ``compare.csv`` has a row per step, ``floor.csv`` one per step and pair, ``density.csv``, ``spectrum.csv`` and
    ``rows.csv`` the profiles of the last step, ``interpolation.csv`` the points of the line.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.
    results
        The directory of all results.
    line
        The result of `pythia_dynamics.interpolation`.

    Returns
    -------
    Outcome
        The files, one sentence, and the facts.
    """
    a, b = (str(result.attrs[side]).replace(":", ",") for side in "ab")
    folder = Results(f"{FOLDER}/{a}/{b}", results)
    files = [write_csv(folder.path / f"{name}.csv", *table) for name, table in _tables(result).items()]
    rows = comparison_rows(result)
    facts: dict[str, Any] = {key: result.attrs[key] for key in ("a", "b", "compared", "floor", "not_compared")}
    facts["step"], facts["step_b"] = (int(result[name][told_step(result)]) for name in ("step", "step_b"))
    facts["steps"] = result.sizes["step"]
    facts["norms"] = result["norm"].to_numpy()[told_step(result)]
    facts["statistics"] = {
        row.name: {key: value for key, value in asdict(row).items() if key != "name"} for row in rows
    }
    facts |= {key: result.attrs[key] for key in ("missing_a", "missing_b")}
    summary = summarise_comparison(result)
    if line is not None:
        columns = ("alpha", "nll", "nll_se", "chord", "excess", "excess_se")
        table = line[list(columns[1:])].to_dataframe().reset_index()
        rows_of_line = table[list(columns)].itertuples(index=False, name=None)
        files.append(write_csv(folder.path / "interpolation.csv", columns, rows_of_line))
        names = ("barrier", "barrier_alpha", "barrier_se", "barrier_low", "barrier_high", "sentences", "left_out")
        facts["interpolation"] = {name: line.attrs[name] for name in names} | {"points": line.sizes["alpha"]}
        summary += f"; {barrier_sentence(line)}"
        folder.record("interpolation", line.attrs)
    facts = plain(facts)
    folder.record("compare", {**result.attrs, "summary": summary, "facts": facts})
    files += save_figures(comparison_figures(result, line, folder.path))
    return Outcome("compare", tuple(files), summary, facts)


def _tables(result: xr.Dataset) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows of each CSV file."""
    columns: dict[str, Any] = {name: result[name].to_numpy() for name in ("step", "step_b")}
    columns |= {f"norm_{side}": result["norm"].to_numpy()[:, at] for at, side in enumerate("ab")}
    for name in STATISTICS:
        columns[name] = result[name].to_numpy()
        columns |= {
            key: result[key].to_numpy() for key in (f"{name}_independent", f"{name}_sd_independent") if key in result
        }
        if f"{name}_floor" in result:
            pairs = result[f"{name}_floor"].to_numpy()[result["kind"].to_numpy() == BETWEEN]
            for word, quantile in (("low", 0.0), ("median", 0.5), ("high", 1.0)):
                columns[f"{name}_floor_{word}"] = _quantile(pairs, quantile)
    quantiles = result["row_angle_quantile"].to_numpy()
    columns |= {f"row_angle_q{round(100 * q):02}": quantiles[:, at] for at, q in enumerate(QUANTILES)}
    tables = {"compare": _columns(columns)}
    if "pair" in result.coords:
        kinds, labels = result["kind"].to_numpy(), result["pair"].to_numpy()
        tables["floor"] = (
            ["step", "kind", "pair", *STATISTICS],
            [
                [int(step), kind, label, *(result[f"{name}_floor"].to_numpy()[row, at] for name in STATISTICS)]
                for at, step in enumerate(result["step"].to_numpy())
                for row, (kind, label) in enumerate(zip(kinds, labels, strict=True))
            ],
        )
    if "density" in result:
        one, other = result["density"].to_numpy()
        tables["density"] = _columns({"weight": result["weight"].to_numpy(), "a": one, "b": other})
    if "singular_value" in result:
        one, other = result["singular_value"].to_numpy()
        tables["spectrum"] = _columns({"index": np.arange(1, len(one) + 1), "a": one, "b": other})
    if "row_angle_count" in result:
        counts = result["row_angle_count"].to_numpy()
        tables["rows"] = _columns({"degree": result["degree"].to_numpy(), "rows": counts})
    return tables


def _columns(columns: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _quantile(pairs: Any, quantile: float) -> Any:
    """A quantile over the pairs at each step, NaN where no pair has a value."""
    known = np.isfinite(pairs).any(axis=0)
    found = np.full(pairs.shape[1], np.nan)
    if known.any():
        found[known] = np.nanquantile(pairs[:, known], quantile, axis=0)
    return found


def comparison_figures(result: xr.Dataset, line: xr.Dataset | None, folder: Path) -> list[FigureSpec]:
    """The figures of a comparison: profiles of the last step and, of two runs, curves over the steps; the loss.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.
    line
        The result of `pythia_dynamics.interpolation`; None without one.
    folder
        The folder of the files.
    """
    name = " and ".join(str(result.attrs[side]).replace(":", ",") for side in "ab")
    specs = [_figure(result, folder / "compare", name)]
    if line is not None:
        title = "Loss along the line between two checkpoints"
        draw = partial(figures.interpolated_loss, result=line)
        specs.append(FigureSpec(folder / "interpolation", title, barrier_sentence(line), draw, name=name))
    return specs


def _figure(result: xr.Dataset, path: Path, name: str) -> FigureSpec:
    """The figure of a comparison: profiles of the last step and, of two runs, curves over the steps."""
    panels = [partial(figures.compared_densities, result=result), partial(figures.compared_spectra, result=result)]
    if "row_angle_count" in result:
        panels.append(partial(figures.compared_rows, result=result))
    if result.sizes["step"] > 1:
        known = [each for each in _CURVES if np.isfinite(result[each].to_numpy()).any()]
        panels += [partial(figures.compared_curve, result=result, statistic=each) for each in known]
    elif "pair" in result.coords:
        panels.append(partial(figures.compared_floor, result=result))
    columns = len(panels) if len(panels) <= 4 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)

    def draw(axes: Any) -> None:
        flat = list(np.atleast_1d(axes).flat)
        each_panel(panels)(np.array(flat[: len(panels)]))
        for unused in flat[len(panels) :]:
            unused.set_axis_off()

    caption = f"{summarise_comparison(result)}."
    return FigureSpec(path, "Two tensors compared", caption, draw, columns, rows, name=name)
