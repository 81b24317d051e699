"""Every figure that saved results allow: of one model, and of several on the same axes as in the papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.figures.plates import Plate, measure_plate, shown_tolerances
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.measures.displacement import interior_peak
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_lambada import published_lambada
from pythia_dynamics.sweep.dataset import ends

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

__all__ = ["TOGETHER", "of_model", "of_models", "of_weights", "perplexity_plate", "portrait_plates"]

TOGETHER = "figures"
"""Folder of the results for figures that hold several models."""

_MODES = {"forward": "Forward", "unmask": "Causal-unmasking", "last-word": "Last-word"}
_PAPER = {"forward": "Fig 4", "unmask": "Fig 6", "last-word": "EleutherAI's table"}
_DEMEANED = {"msd": "demeaned over the weights", "msd_time": "demeaned over time"}


# -- one model ------------------------------------------------------------------------------------------------


def of_model(results: Results) -> list[Plate]:
    """The figures of one model, as far as its results go: portrait, weights, perplexities.

    Of several tensors it is those of the tensor of `results`, else those of the unembedding (see `Results.weights`).
    """
    makers: list[Callable[[], Plate]] = [
        *(partial(make, results.model) for make in (_first_last, _unmasking)),
        *_weight_makers(results.weights()),
        *(partial(perplexity_plate, results.model, mode) for mode in _MODES),
    ]
    return _possible(makers)


def of_weights(results: Results) -> list[Plate]:
    """The figures of one tensor, as far as its results go."""
    return _possible(_weight_makers(results))


def portrait_plates(results: Results) -> list[Plate]:
    """The two figures of a portrait. Raises `PythiaDynError` where there is none."""
    return [_first_last(results), _unmasking(results)]


def _weight_makers(results: Results) -> list[Callable[[], Plate]]:
    return [partial(measure_plate, measure, results) for measure in known_measures().values()]


def _possible(makers: Sequence[Callable[[], Plate]]) -> list[Plate]:
    """The plates whose results have been computed."""
    plates = []
    for make in makers:
        try:
            plates.append(make())
        except PythiaDynError:  # it has not been computed
            continue
    return plates


def perplexity_plate(results: Results, mode: str) -> Plate:
    """The figure of one kind of perplexity. Raises `PythiaDynError` where it has not been computed."""
    table = results.read_table(f"perplexity-{mode}")
    column = "ppl" if mode == "last-word" else "ppl_corpus"
    first, last = ends(table[column])
    lowest = table[column].idxmin() if bool(np.isfinite(table[column]).any()) else None
    invalid = int(np.nansum(table["nonfinite"].to_numpy()))
    caption = f"{_MODES[mode]} perplexity, linear and logarithmic: from {first:.4g} to {last:.4g}"
    if lowest is not None:
        caption += f", least at step {int(lowest):,}"
    caption += f"; {invalid} sentences without a valid perplexity." if invalid else "."
    points = _published(results.name) if mode == "last-word" else None
    if points is not None:
        caption += " Circles: EleutherAI's published values on the whole test set, with standard errors."
        if bool(points["suspect"].any()):
            caption += " Crosses: published values that repeat another model's; not evidence."

    def paint(axes: Any) -> None:
        for ax, log in zip(axes, (False, True), strict=True):
            figures.perplexity(ax, {mode: table}, log=log, published=points)

    return Plate(
        results.path / f"perplexity-{mode}", f"{_MODES[mode]} perplexity ({_PAPER[mode]})", caption, paint, columns=2
    )


def _first_last(results: Results) -> Plate:
    result = results.read_zarr("first_last")
    first, last = (int(step) for step in result["step"])
    caption = (
        f"W_U for the first {result.sizes['token']} tokens, attention of the first layer (mean over heads) on "
        f"“{result.attrs['phrase']}”, and mean logits over a long sentence, at step {first:,} (above) and {last:,}."
    )
    return Plate(
        results.path / "first_last",
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
        results.path / "unmasking",
        "Causal unmasking of a phrase (Garden, Fig 5)",
        caption,
        lambda ax: figures.unmasking(ax, lines, name=f"{results.name}, step {step:,}"),
        width=7.5,
        height=0.22 * len(lines) + 0.6,
    )


# -- several models -------------------------------------------------------------------------------------------


def of_models(models: Sequence[Results], directory: Path) -> list[Plate]:
    """The figures of the first paper that hold several models on one axes, for files in a directory.

    Each needs the results of one model at least. Of several tensors it is the one that `Results.weights` means.
    """
    plates: list[Plate] = []
    tables = _tables(models, "msd")
    if tables:
        for kind, how in _DEMEANED.items():
            plates.append(
                Plate(
                    directory / f"garden-{kind.replace('_', '-')}",
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
            plates.append(Plate(directory / f"garden-perplexity-{mode}", title, caption, paint, columns=2))
    tables = _tables(models, "perplexity-last-word")
    if tables:
        points = {name: found for name in tables if (found := _published(name)) is not None}
        caption = "Last-word perplexity"
        caption += " (lines) over EleutherAI's published values (markers)." if points else "; no published values."
        paint = partial(_on_both_scales, figures.last_words, models=tables, published=points)
        plates.append(
            Plate(directory / "garden-perplexity-last-word", "Last-word perplexity", caption, paint, columns=2)
        )
    tables = _tables(models, "rank")
    if tables:
        plates.append(_ranks(tables, directory))
    return plates


def _on_both_scales(function: Callable[..., None], axes: Any, **options: Any) -> None:
    for ax, log in zip(axes, (False, True), strict=True):
        function(ax, log=log, **options)


def _ranks(tables: Mapping[str, xr.Dataset], directory: Path) -> Plate:
    tolerance = shown_tolerances(next(iter(tables.values())))["absolute"]

    def paint(axes: Any) -> None:
        figures.ranks(axes[0], tables, tolerance=tolerance)
        figures.rank_differences(axes[1], tables, tolerance=tolerance)

    caption = (
        f"Covariance rank of randomly projected weights at absolute tolerance {tolerance:g}, ± its standard error, and "
        "its first difference."
    )
    return Plate(directory / "garden-rank", "Covariance rank (Garden, Fig 7)", caption, paint, columns=2)


def _peaks(tables: Mapping[str, xr.Dataset], kind: str) -> str:
    found = {name: interior_peak(table["step"].to_numpy(), table[kind].to_numpy()) for name, table in tables.items()}
    said = [f"{name} at step {step:,}" for name, step in found.items() if step is not None]
    return f"Peaks: {', '.join(said)}." if said else "None has one."


def _tables(models: Sequence[Results], kind: str) -> dict[str, xr.Dataset]:
    tables = {}
    for results in models:
        try:
            folder = results.model if kind.startswith("perplexity") else results.weights()
            tables[results.label] = folder.read_table(kind)
        except PythiaDynError:  # it has not been computed
            continue
    return tables


def _published(name: str) -> xr.Dataset | None:
    try:
        return published_lambada(name)
    except UnknownNameError:
        return None
