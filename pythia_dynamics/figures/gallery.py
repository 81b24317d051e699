"""The figures that saved results allow: of one model, of one tensor, and of several models on the same axes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.settings import HEADS, Mode
from pythia_dynamics.figures.alignment import alignment_figure
from pythia_dynamics.figures.layers import overview_figure
from pythia_dynamics.figures.representation import representation_figure
from pythia_dynamics.figures.specs import FigureSpec, each_panel, from_to, measure_figure, shown_tolerances
from pythia_dynamics.figures.timeline import phases_figure, stop_figure
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.measures.displacement import interior_peak
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.overview import PREFIX, has_overview
from pythia_dynamics.results.published_lambada import published_lambada
from pythia_dynamics.results.reading import computed

__all__ = [
    "COMPARISON_FOLDER",
    "PORTRAYED",
    "comparison_figures",
    "model_figures",
    "perplexity_figure",
    "portrait_figures",
    "tensor_figures",
]

COMPARISON_FOLDER = "figures"
"""Folder in the directory of results for the figures that show several models."""

PORTRAYED = ("14m", "1b")
"""The two models of Fig 1 of the paper."""

_MODES: Mapping[Mode, str] = {"forward": "Forward", "unmask": "Causal-unmasking", "last-word": "Last-word"}
_SOURCES: Mapping[Mode, str] = {"forward": "Fig 4", "unmask": "Fig 6", "last-word": "EleutherAI's table"}
_DEMEANED = {"msd": "demeaned over the weights", "msd_time": "demeaned over time"}


def model_figures(results: Results) -> list[FigureSpec]:
    """The figures of one model whose results have been computed: portrait, weights, all tensors, evaluations.

    Parameters
    ----------
    results
        The results of the model, or of the tensor to show. Without one, the weights are those of `Results.weights`.

    Raises
    ------
    PythiaDynError
        As `Results.weights` does.
    """
    model = results.model
    return [
        *computed(_first_last, [model]),
        *computed(_unmasking, [model]),
        *tensor_figures(results.weights()),
        *computed(alignment_figure, [model]),
        *computed(partial(_saved_overview, model), filter(has_overview, known_measures())),
        *computed(partial(perplexity_figure, model), _MODES),
        *computed(representation_figure, [model]),
    ]


def tensor_figures(results: Results) -> list[FigureSpec]:
    """The figures of one tensor whose results have been computed: of every measure, of `stop` and of `phases`.

    The figure of a user's measure whose `Measure.draw` fails is left out; a warning gives the reason.

    Parameters
    ----------
    results
        The results of the weights of the tensor.
    """
    measures = known_measures()
    specs = computed(partial(measure_figure, results=results), measures.values())
    return [
        *(spec for spec in specs if measures[spec.key].draw is None or _can_be_drawn(spec)),
        *computed(lambda make: make(results), (stop_figure, phases_figure)),
    ]


def _saved_overview(results: Results, measure: str) -> FigureSpec:
    """The figure of all tensors. Raises `PythiaDynError` where there is no overview of the measure."""
    if not (results.path / f"{PREFIX}{measure}.csv").is_file():
        raise PythiaDynError(f"no overview of {measure}")
    return overview_figure(results, measure)


def _can_be_drawn(spec: FigureSpec) -> bool:
    """Whether the function of a user draws the figure. It is called here, before a page or a file needs the figure."""
    try:
        with spec.sheet() as (_, axes):
            spec.draw(axes)
    except PythiaDynError as error:
        warnings.warn(f"no figure {spec.path}: {error}", stacklevel=3)
        return False
    return True


def portrait_figures(results: Results) -> list[FigureSpec]:
    """The two figures of a portrait (Garden, Fig 1 and 5).

    Parameters
    ----------
    results
        The results of the model.

    Raises
    ------
    PythiaDynError
        Where there is no portrait.
    """
    return [_first_last(results), _unmasking(results)]


def perplexity_figure(results: Results, mode: Mode) -> FigureSpec:
    """The figure of one kind of perplexity: linear beside logarithmic, as in the paper.

    Parameters
    ----------
    results
        The results of the model.
    mode
        The kind of perplexity.

    Raises
    ------
    PythiaDynError
        Where it has not been computed.
    """
    table = results.read_table(f"perplexity-{mode}")
    curve = table["ppl" if mode == "last-word" else "ppl_corpus"]
    invalid = int(np.nansum(table["nonfinite"].to_numpy() + table["overflow"].to_numpy()))
    caption = f"{_MODES[mode]} perplexity, linear and logarithmic: {from_to(curve, '.4g')}"
    if np.isfinite(curve).any():
        caption += f", least at step {int(curve.idxmin()):,}"
    caption += f"; {invalid} sentences without a valid perplexity." if invalid else "."
    published = _published(results.name) if mode == "last-word" else None
    if published is not None:
        caption += " Circles: EleutherAI's published values on the whole test set, with standard errors."
        if published["suspect"].any():
            caption += " Crosses: published values that repeat another model's; not evidence."
    title = f"{_MODES[mode]} perplexity ({_SOURCES[mode]})"
    panel = partial(figures.perplexity, results={mode: table}, published=published)
    draw = _linear_and_log(panel, choose_scale=True)
    return FigureSpec(results.path / f"perplexity-{mode}", title, caption, draw, columns=2, name=_model_name(results))


def _model_name(results: Results) -> str:
    """The model that was run; with another head, whose results are in a folder inside those of the model, both."""
    return f"{results.path.parent.name}, {results.name} head" if results.name in HEADS else results.name


def _first_last(results: Results) -> FigureSpec:
    result = results.read_zarr("first_last")
    first, last = (int(step) for step in result["step"])
    caption = (
        f"W_U for the first {result.sizes['token']} tokens, attention of the first layer (mean over heads) on "
        f"“{result.attrs['phrase']}”, and mean logits over a long sentence, at step {first:,} (above) and {last:,}."
    )
    title, draw = "First and last step (Garden, Fig 1)", partial(figures.first_last, result=result)
    path, name = results.path / "first_last", _model_name(results)
    return FigureSpec(path, title, caption, draw, columns=3, rows=2, width=3.6, height=3.0, name=name)


def _first_last_of_two(models: Sequence[Results], path: Path) -> FigureSpec:
    """Fig 1 as the paper composes it: 14M and 1B side by side. Raises `PythiaDynError` where one has no portrait."""
    found = {results.name: results.model for results in models}
    both: list[tuple[str, xr.Dataset]] = []
    for name in (resolve(alias).name for alias in PORTRAYED):
        if name not in found:
            raise PythiaDynError(f"no results of {name}")
        both.append((name, found[name].read_zarr("first_last")))

    def draw(axes: Any) -> None:
        for place, (name, result) in enumerate(both):
            figures.first_last(axes[:, 3 * place : 3 * place + 3], result, name=name)

    steps = [f"{name}: steps {int(result['step'][0]):,} and {int(result['step'][-1]):,}" for name, result in both]
    caption = (
        f"W_U for the first {both[0][1].sizes['token']} tokens, attention of the first layer (mean over heads) on "
        f"“{both[0][1].attrs['phrase']}”, and mean logits over a long sentence, at the first step (above) and the "
        f"last; {', '.join(steps)}."
    )
    title = "First and last step of 14M and 1B (Garden, Fig 1)"
    return FigureSpec(path, title, caption, draw, columns=6, rows=2, width=3.6, height=3.0)


def _unmasking(results: Results) -> FigureSpec:
    result = results.read_zarr("first_last")
    lines, step = result.attrs["completions"], int(result["step"][-1])
    caption = (
        f"“{result.attrs['phrase']}” completed by the model of step {step:,} from each of its prefixes: given tokens "
        "bold, generated ones coloured, and the perplexity of what was generated."
    )
    title = "Causal unmasking of a phrase (Garden, Fig 5)"
    draw = partial(figures.unmasking, completions=lines)
    height = 0.22 * len(lines) + 0.6  # a line of text per prefix, and the heading
    path, name = results.path / "unmasking", f"{_model_name(results)}, step {step:,}"
    return FigureSpec(path, title, caption, draw, width=7.5, height=height, name=name, of_text=True)


def comparison_figures(models: Sequence[Results], directory: Path) -> list[FigureSpec]:
    """The figures of the first paper that show several models: on the same axes, and in Fig 1 side by side.

    Parameters
    ----------
    models
        The results of each model. A figure needs the results of one model at least, Fig 1 those of `PORTRAYED`.
    directory
        Folder of the files.
    """
    return list(_comparisons(models, directory))


def _comparisons(models: Sequence[Results], directory: Path) -> Iterator[FigureSpec]:
    yield from computed(partial(_first_last_of_two, models), [directory / "garden-first-last"])
    if tables := _tables(models, "msd"):
        for kind, demeaned in _DEMEANED.items():
            caption = (
                f"Mean squared displacement, {demeaned}. Dashed curves: a random walk with each model's step sizes. "
                f"Dashed verticals: interior peaks. {_peaks(tables, kind)}"
            )
            path, title = directory / f"garden-{kind.replace('_', '-')}", f"Displacement, {demeaned} (Garden, Fig 3)"
            draw = partial(figures.displacements, models=tables, kind=kind)
            yield FigureSpec(path, title, caption, draw, width=5.6, height=3.8, name=_tensor_of(models, tables))
    modes: tuple[Mode, ...] = ("forward", "unmask")
    for mode in modes:
        if tables := _tables(models, f"perplexity-{mode}"):
            caption = f"{_MODES[mode]} perplexity over all tokens, linear and logarithmic. A perplexity is at least 1."
            title = f"{_MODES[mode]} perplexity (Garden, {_SOURCES[mode]})"
            draw_both = _linear_and_log(partial(figures.perplexities, models=tables))
            yield FigureSpec(directory / f"garden-perplexity-{mode}", title, caption, draw_both, columns=2)
    if tables := _tables(models, "perplexity-last-word"):
        published = {name: points for name in tables if (points := _published(name)) is not None}
        known = " (lines) over EleutherAI's published values (markers)." if published else "; no published values."
        path, title = directory / "garden-perplexity-last-word", "Last-word perplexity"
        draw_both = _linear_and_log(partial(figures.last_words, models=tables, published=published))
        yield FigureSpec(path, title, f"Last-word perplexity{known}", draw_both, columns=2)
    if tables := _tables(models, "rank"):
        tolerance = shown_tolerances(next(iter(tables.values())))["absolute"]
        caption = (
            f"Covariance rank of randomly projected weights at absolute tolerance {tolerance:g}, ± its standard error, "
            "and its first difference."
        )
        path, title = directory / "garden-rank", "Covariance rank (Garden, Fig 7)"
        functions = (figures.ranks, figures.rank_differences)
        draw_both = each_panel([partial(function, models=tables, tolerance=tolerance) for function in functions])
        yield FigureSpec(path, title, caption, draw_both, columns=2, name=_tensor_of(models, tables))


def _tensor_of(models: Sequence[Results], tables: Mapping[str, xr.Dataset]) -> str:
    """The tensor of all models of some tables; what it is, where the names differ."""
    names = {results.weights().tensor for results in models if results.label in tables}
    return str(names.pop()) if len(names) == 1 else "unembedding W_U"


def _linear_and_log(panel: Callable[..., None], *, choose_scale: bool = False) -> Callable[..., None]:
    """Draw the same panel twice: on a linear scale, and on a logarithmic one."""
    return each_panel([partial(panel, log=False), partial(panel, log=True)], choose_scale=choose_scale)


def _peaks(tables: Mapping[str, xr.Dataset], kind: str) -> str:
    found = {name: interior_peak(table["step"].to_numpy(), table[kind].to_numpy()) for name, table in tables.items()}
    peaks = [f"{name} at step {step:,}" for name, step in found.items() if step is not None]
    return f"Peaks: {', '.join(peaks)}." if peaks else "None has one."


def _tables(models: Sequence[Results], name: str) -> dict[str, xr.Dataset]:
    """The table of that name of each model that has it."""

    def read(results: Results) -> tuple[str, xr.Dataset]:
        folder = results.model if name.startswith("perplexity") else results.weights()
        return results.label, folder.read_table(name)

    return dict(computed(read, models))


def _published(name: str) -> xr.Dataset | None:
    """The published last-word perplexities of a model, None where there are none."""
    try:
        return published_lambada(name)
    except UnknownNameError:
        return None
