"""Every figure that saved results allow: of one model, and of several on the same axes as in the papers.

A plate knows what it shows before it is drawn; it is drawn as a file beside the results, or into a page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_lambada import published_lambada

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TOGETHER", "Plate", "draw", "keep_portrait", "of_model", "of_models", "plate"]

TOGETHER = "figures"
"""Folder of the results for figures that hold several models."""

_TOLERANCES = {"absolute": 0.5, "relative": 0.1}
_MODES = {"forward": "Forward", "unmask": "Causal-unmasking", "last-word": "Last-word"}
_PAPER = {"forward": "Fig 4", "unmask": "Fig 6", "last-word": "EleutherAI's table"}


@dataclass(frozen=True)
class Plate:
    """One figure: its file name, its title, a sentence on what is seen, its panels, and what draws it.

    `paint` takes what `sheet` gives: one `Axes`, or an array of them.
    """

    key: str
    title: str
    caption: str
    paint: Callable[[Any], None]
    columns: int = 1
    rows: int = 1
    width: float = 4.4
    height: float = 3.2

    def on(self, **changes: float) -> Any:
        """The sheet it wants."""
        size = {"width": self.width, "height": self.height, **changes}
        return figures.sheet(self.columns, self.rows, **size)


def draw(plates: Sequence[Plate], directory: Path, *, progress: Progress = silent) -> list[Path]:
    """Write each plate as PNG (300 dpi) and SVG into a directory. `progress` counts plates."""
    files: list[Path] = []
    for done, plate in enumerate(plates, 1):
        with plate.on() as (figure, axes):
            plate.paint(axes)
            files += figures.save(figure, directory / plate.key)
        progress(done, len(plates))
    return files


def keep_portrait(results: Results, taken: xr.Dataset) -> list[Path]:
    """Save a portrait as ``first_last.zarr`` and draw the two figures that it allows."""
    files = [results.write_zarr("first_last", taken)]
    results.record("first_last", {name: value for name, value in taken.attrs.items() if name != "completions"})
    return files + draw([_first_last(results), _unmasking(results)], results.path)


# -- one model ------------------------------------------------------------------------------------------------


def of_model(results: Results) -> list[Plate]:
    """The figures of one model, as far as its results go."""
    plates = []
    for key in _makers():
        try:
            plates.append(plate(results, key))
        except PythiaDynError:  # it has not been computed
            continue
    return plates


def plate(results: Results, key: str) -> Plate:
    """The figure of one kind of result. Raises `PythiaDynError` where that has not been computed."""
    return _makers()[key](results)


def _makers() -> dict[str, Callable[[Results], Plate]]:
    return {
        "first_last": _first_last,
        "unmasking": _unmasking,
        "density": _density,
        "msd": _msd,
        "two_time": _two_time,
        "order": _order,
        "rank": _rank,
        "spectrum": _spectrum,
        **{f"perplexity-{mode}": partial(_perplexity, mode=mode) for mode in _MODES},
    }


def _density(results: Results) -> Plate:
    result = results.read_zarr("density")
    spread, modes = _ends(result["std"]), _ends(result["modes"])
    caption = (
        f"Density of the weights over training, logarithmic colours. The standard deviation goes from {spread[0]:.3g} "
        f"to {spread[1]:.3g}, the number of modes from {modes[0]:.0f} to {modes[1]:.0f}."
    )
    return Plate("density", "Weight density (Garden, Fig 2)", caption, lambda ax: figures.density(ax, result))


def _msd(results: Results) -> Plate:
    table = results.read_table("msd")
    excess = [(table[kind] / table[f"{kind}_null"]).to_numpy()[:-1] for kind in _DEMEANED]
    caption = "Mean squared displacement by both demeanings; dashed, a random walk with the same step sizes."
    if all(np.isfinite(ratio).any() for ratio in excess):
        over_weights, over_time = (float(np.nanmax(ratio)) for ratio in excess)
        caption += (
            f" At most it is {over_weights:.2g} times the walk's (over weights, as printed in Eq 4) and "
            f"{over_time:.2g} times (over time, where the walk peaks mid-way as well)."
        )
    return Plate("msd", "Displacement (Garden, Fig 3)", caption, lambda ax: figures.msd(ax, table, name=results.name))


_DEMEANED = {"msd": "demeaned over the weights", "msd_time": "demeaned over time"}


def _order(results: Results) -> Plate:
    table = results.read_table("order")
    b = _ends(table["order_parameter"])
    caption = f"The order parameter b = ‖W_U‖_F / d_model goes from {b[0]:.4g} to {b[1]:.4g}"
    with_loss = "loss" in table
    if with_loss:
        loss = _ends(table["loss"])
        caption += f", while the loss goes from {loss[0]:.4g} to {loss[1]:.4g} nats per token (middle; right: dL/db)"
    draws = [figures.order, *([figures.loss_against_order, figures.loss_slope] if with_loss else [])]

    def paint(axes: Any) -> None:
        for paint_one, ax in zip(draws, np.atleast_1d(axes), strict=True):
            paint_one(ax, table)

    return Plate("order", "Order parameter", f"{caption}.", paint, columns=len(draws))


def _rank(results: Results) -> Plate:
    table = results.read_table("rank").assign(rank_infinite=results.read_table("rank-infinite")["rank"])
    size = int(table["batch_size"].max())
    said = []
    for convention, tolerance in _tolerances(table).items():
        curve = table["rank"].sel({"batch_size": size, "tolerance": tolerance, "convention": convention})
        first, last = _ends(curve)
        said.append(f"from {first:.3g} to {last:.3g} ({convention} tolerance {tolerance:g})")
    caption = (
        "Covariance rank of randomly projected weights, its change, and its limit for an infinite batch. At "
        f"B = {size} it goes {', '.join(said)}."
    )

    def paint(axes: Any) -> None:
        for column, (convention, tolerance) in zip(axes.T, _tolerances(table).items(), strict=True):
            figures.rank(column[0], table, tolerance=tolerance, convention=convention)
            figures.rank_difference(column[1], table, tolerance=tolerance, convention=convention)
            figures.rank_infinite(column[2], table, convention=convention)

    return Plate("rank", "Covariance rank (Garden, Fig 7)", caption, paint, columns=2, rows=3)


def _two_time(results: Results) -> Plate:
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
        figures.ageing(axes[0, 0], result)
        figures.displacement_by_lag(axes[0, 1], result)
        figures.cosine(axes[1, 0], result)
        figures.trajectory(axes[1, 1], result)

    return Plate("two_time", "Two-time displacement", caption, paint, columns=2, rows=2)


def _spectrum(results: Results) -> Plate:
    table = results.read_table("spectrum")
    entropy, effective, stable = (_ends(table[name]) for name in ("entropy", "effective_rank", "stable_rank"))
    caption = (
        f"The entropy of the singular values of W_U goes from {entropy[0]:.4g} to {entropy[1]:.4g} nats, its effective "
        f"rank from {effective[0]:.3g} to {effective[1]:.3g}, its stable rank from {stable[0]:.3g} to {stable[1]:.3g}."
    )
    draws = (figures.entropy, figures.effective_rank, figures.mean_row_fraction)

    def paint(axes: Any) -> None:
        for paint_one, ax in zip(draws, axes, strict=True):
            paint_one(ax, table)

    return Plate("spectrum", "Spectrum of W_U", caption, paint, columns=len(draws))


def _perplexity(results: Results, *, mode: str) -> Plate:
    table = results.read_table(f"perplexity-{mode}")
    column = "ppl" if mode == "last-word" else "ppl_corpus"
    first, last = _ends(table[column])
    least = table[column].idxmin() if bool(np.isfinite(table[column]).any()) else None
    spoilt = int(np.nansum(table["nonfinite"].to_numpy()))
    caption = f"{_MODES[mode]} perplexity, linear and logarithmic: from {first:.4g} to {last:.4g}"
    if least is not None:
        caption += f", least at step {int(least):,}"
    caption += f"; {spoilt} sentences without a valid perplexity." if spoilt else "."
    points = _published(results.name) if mode == "last-word" else None
    if points is not None:
        caption += " Circles: EleutherAI's published values on the whole test set, with standard errors."
        if bool(points["suspect"].any()):
            caption += " Crosses: published values that repeat another model's; not evidence."

    def paint(axes: Any) -> None:
        for ax, log in zip(axes, (False, True), strict=True):
            figures.perplexity(ax, {mode: table}, log=log, published=points)

    return Plate(f"perplexity-{mode}", f"{_MODES[mode]} perplexity ({_PAPER[mode]})", caption, paint, columns=2)


def _first_last(results: Results) -> Plate:
    result = results.read_zarr("first_last")
    first, last = (int(step) for step in result["step"])
    caption = (
        f"W_U for the first {result.sizes['token']} tokens, attention of the first layer (mean over heads) on "
        f"“{result.attrs['phrase']}”, and mean logits over a long sentence, at step {first:,} (above) and {last:,}."
    )
    return Plate(
        "first_last",
        "First and last step (Garden, Fig 1)",
        caption,
        lambda axes: figures.first_last(axes, result, name=results.name),
        columns=3,
        rows=2,
        width=3.6,
        height=3.0,
    )


def _unmasking(results: Results) -> Plate:
    result = results.read_zarr("first_last")
    lines = result.attrs["completions"]
    step = int(result["step"][-1])
    caption = (
        f"“{result.attrs['phrase']}” completed by the model of step {step:,} from each of its prefixes: given tokens "
        "bold, generated ones coloured, and the perplexity of what was generated."
    )
    return Plate(
        "unmasking",
        "Causal unmasking of a phrase (Garden, Fig 5)",
        caption,
        lambda ax: figures.unmasking(ax, lines, name=f"{results.name}, step {step:,}"),
        width=7.5,
        height=0.22 * len(lines) + 0.6,
    )


# -- several models -------------------------------------------------------------------------------------------


def of_models(models: Sequence[Results]) -> list[Plate]:
    """The figures of the first paper that hold several models on one axes; those with results of one at least."""
    plates: list[Plate] = []
    tables = _tables(models, "msd")
    if tables:
        for kind, how in _DEMEANED.items():
            plates.append(
                Plate(
                    f"garden-{kind.replace('_', '-')}",
                    f"Displacement, {how} (Garden, Fig 3)",
                    f"Mean squared displacement, {how}. Dashed curves: a random walk with each model's step sizes. "
                    f"Dashed verticals: interior peaks. {_peaks(tables, kind)}",
                    partial(figures.displacements, models=tables, kind=kind),
                    width=5.6,
                    height=3.8,
                )
            )
    for mode in ("forward", "unmask"):
        tables = _tables(models, f"perplexity-{mode}")
        if tables:
            caption = f"{_MODES[mode]} perplexity over all tokens, linear and logarithmic. A perplexity is at least 1."
            paint = partial(_on_both_scales, figures.perplexities, models=tables)
            title = f"{_MODES[mode]} perplexity (Garden, {_PAPER[mode]})"
            plates.append(Plate(f"garden-perplexity-{mode}", title, caption, paint, columns=2))
    tables = _tables(models, "perplexity-last-word")
    if tables:
        points = {name: found for name in tables if (found := _published(name)) is not None}
        caption = "Last-word perplexity"
        caption += " (lines) over EleutherAI's published values (markers)." if points else "; no published values."
        paint = partial(_on_both_scales, figures.last_words, models=tables, published=points)
        plates.append(Plate("garden-perplexity-last-word", "Last-word perplexity", caption, paint, columns=2))
    tables = _tables(models, "rank")
    if tables:
        plates.append(_ranks(tables))
    return plates


def _on_both_scales(function: Callable[..., None], axes: Any, **options: Any) -> None:
    for ax, log in zip(axes, (False, True), strict=True):
        function(ax, log=log, **options)


def _ranks(tables: Mapping[str, xr.Dataset]) -> Plate:
    tolerance = _tolerances(next(iter(tables.values())))["absolute"]

    def paint(axes: Any) -> None:
        figures.ranks(axes[0], tables, tolerance=tolerance)
        figures.rank_differences(axes[1], tables, tolerance=tolerance)

    caption = (
        f"Covariance rank of randomly projected weights at absolute tolerance {tolerance:g}, ± its standard error, and "
        "its first difference."
    )
    return Plate("garden-rank", "Covariance rank (Garden, Fig 7)", caption, paint, columns=2)


def _peaks(tables: Mapping[str, xr.Dataset], kind: str) -> str:
    from pythia_dynamics.measures.displacement import interior_peak

    found = {name: interior_peak(table["step"].to_numpy(), table[kind].to_numpy()) for name, table in tables.items()}
    said = [f"{name} at step {step:,}" for name, step in found.items() if step is not None]
    return f"Peaks: {', '.join(said)}." if said else "None has one."


def _tables(models: Sequence[Results], kind: str) -> dict[str, xr.Dataset]:
    tables = {}
    for results in models:
        try:
            tables[results.name] = results.read_table(kind)
        except PythiaDynError:  # it has not been computed
            continue
    return tables


def _published(name: str) -> xr.Dataset | None:
    try:
        return published_lambada(name)
    except UnknownNameError:
        return None


def _tolerances(table: xr.Dataset) -> dict[str, float]:
    """By convention, the tolerance of the table that is nearest to the one that is shown."""
    known = table["tolerance"].to_numpy()
    return {name: float(known[np.argmin(np.abs(known - wanted))]) for name, wanted in _TOLERANCES.items()}


def _ends(curve: xr.DataArray) -> tuple[float, float]:
    known = curve.dropna("step").to_numpy()
    return (float(known[0]), float(known[-1])) if len(known) else (np.nan, np.nan)
