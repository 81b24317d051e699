"""From a history to its result files: compute measures in one reading, write tables and provenance, draw figures."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.checkpoints.findings import Verification
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation.settings import Mode
from pythia_dynamics.evaluation.token_counts import token_counts
from pythia_dynamics.figures.axis import AxisKind, StepAxis, along, axis_of
from pythia_dynamics.figures.gallery import perplexity_figure, portrait_figures
from pythia_dynamics.figures.specs import measure_figure, save_figures
from pythia_dynamics.figures.timeline import phases_figure, stop_figure
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.analyse import analyse, chosen_measures
from pythia_dynamics.measures.bifurcation import DENSITY, DISPLACEMENT, Bifurcation, bifurcation
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.phases import DETECTORS, Change
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.commands import typed_command
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.losses import known_loss, read_losses
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import ends
from pythia_dynamics.tables import plain, read_json, write_csv, write_json
from pythia_dynamics.training.stopping import Replay

__all__ = ["Outcome", "draw_perplexity", "measure", "save_findings", "save_portrait", "write_phases", "write_stop"]


@dataclass(frozen=True)
class Outcome:
    """One result that was written.

    Parameters
    ----------
    kind
        Name of the result: a measure, ``bifurcation``, ``perplexity-forward`` …
    files
        The files.
    summary
        The result in one sentence.
    facts
        The result for programs, as JSON can hold it.
    """

    kind: str
    files: tuple[Path, ...]
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def measure(
    history: History,
    which: Collection[str | Measure] | str | Measure | None,
    results: Results,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Compute | None = None,
    axis: AxisKind = "step",
    draw: bool = True,
) -> list[Outcome]:
    """Compute measures of a history in one reading, and write tables, figures and provenance of each.

    Files are written only after all measures have been computed: first all tables, then the figures. Where `density`
    and `msd` of the same weights are in the results, ``bifurcation.json`` is written as well: it says whether their
    detectors agree.

    Parameters
    ----------
    history
        The weights.
    which
        The measures, or their names; or one of them. By default every known measure that saves something.
    results
        The results of the model. The files are written to the folder of the tensor in it.
    options
        Options by measure. The option `frequencies` may be a text, whose tokens `token_counts` counts with the
        tokenizer that the option `tokenizer` beside it names, or a CSV file. The option `loss` may be a file for
        `read_losses`. By default it is the known loss of the model (see `known_loss`).
    compute
        How to compute.
    axis
        The x axis of the figures over steps.
    draw
        Whether to draw the figures.

    Returns
    -------
    list of Outcome
        One for each measure, and one for the bifurcation where its file was written.

    Raises
    ------
    PythiaDynError
        As `analyse` and `read_losses` do. Where a measure saves nothing, or its table or summary cannot be made; the
        files of the other measures are then complete.
    """
    compute, results = compute or Compute(), results.of(history.tensor)
    x_axis = _axis(axis, history)
    measures = [one for one in chosen_measures(which) if one.saves or which is not None]
    for one in measures:
        if not one.saves:
            raise PythiaDynError(f"the measure {one.name} saves nothing: give it tables= or saves_array=True")
    given = {one.name: dict((options or {}).get(one.name, {})) for one in measures}
    counted = [one.name for one in measures if "frequencies" in one.options]
    texts = {name: text for name in counted if (text := _take_frequencies(given[name], history)) is not None}
    loss_from = {one.name: _take_loss(given[one.name], results, history) for one in measures if "loss" in one.options}
    datasets = analyse(history, measures, options=given, compute=compute)
    rows = compute.rows_of(history)
    weights = _weights(history, rows)
    outcomes, failures = [], []
    for one in measures:
        dataset = datasets[one.name]
        try:
            files = _write(one, dataset, results)
        except PythiaDynError as error:  # of a user's measure; the others are written
            failures.append(error)
            continue
        summary, facts = "", {}
        try:
            summary, facts = one.call("summarise", dataset)
        except PythiaDynError as error:  # of a user's measure; its tables are complete
            failures.append(error)
        summary = summary or one.title or one.name
        if loss_from.get(one.name):
            summary = f"{summary} (loss from {loss_from[one.name]})"
            facts = {**facts, "loss_from": loss_from[one.name]}
        facts = plain(facts)
        settings = {name: value for name, value in given[one.name].items() if np.isscalar(value)}
        settings |= {"frequencies": texts[one.name]} if one.name in texts else {}
        results.record(one.name, {**dataset.attrs, **settings, **weights, "facts": facts})
        outcomes.append(Outcome(one.name, tuple(files), summary, facts))
    figure_of = {one.name: one for one in measures}
    for index, outcome in enumerate(outcomes if draw else ()):
        try:
            drawn = save_figures(along([measure_figure(figure_of[outcome.kind], results)], x_axis))
        except PythiaDynError as error:  # of a user's measure that cannot be drawn
            warnings.warn(str(error), stacklevel=2)
        else:
            outcomes[index] = replace(outcome, files=(*outcome.files, *drawn))
    if {"density", "msd", "two_time"} & set(datasets) and (found := _bifurcation(results)):
        outcomes.append(found)
    if failures:
        raise PythiaDynError("; ".join(map(str, failures))) from failures[0]
    return outcomes


def _weights(history: History, rows: int | None) -> dict[str, Any]:
    """What the results record besides the provenance of a history: rows, None for all; steps and their coordinates."""
    known = {"coordinates": history.coordinates} if history.coordinates else {}
    return {"drop_padding": None if rows == history.frame_shape[0] else rows, "steps": history.steps, **known}


def _axis(kind: AxisKind, history: History) -> StepAxis:
    """The x axis of the figures of a history."""
    return axis_of(kind, history.steps, history.coordinates, where=history.name)


def _write(one: Measure, dataset: xr.Dataset, results: Results) -> list[Path]:
    """Write the tables and the array of a measure; return the files."""
    dataset = dataset if one.on_save is None else one.call("on_save", dataset)
    for name, table in one.tables.items():
        lacking = [key for key in table.keys if key not in dataset.coords]
        if lacking or not {table.renamed.get(column, column) for column in table.columns} & set(dataset.data_vars):
            what = f"no coordinate {lacking[0]}" if lacking else "no variable"
            raise PythiaDynError(f"the measure {one.name} has {what} for its table {name}")
    files = [results.write_table(name, table, dataset) for name, table in one.tables.items()]
    return [*files, results.write_zarr(one.name, dataset)] if one.saves_array else files


def _take_loss(options: dict[str, Any], results: Results, history: History) -> str | None:
    """Set the option `loss` of a measure; return the file it is from, None where no loss is known."""
    loss = options.get("loss")
    if isinstance(loss, (str, Path)):
        options["loss"] = read_losses(loss)
        return str(loss)
    known = known_loss(results, str(history.provenance.get("source", ""))) if loss is None else None
    if known is None or not known[0].keys() & set(history.steps.tolist()):
        return None
    options["loss"], where = known
    return where


def _take_frequencies(options: dict[str, Any], history: History) -> str | None:
    """Count the tokens of the text that the option `frequencies` of a measure names, and return its name.

    A CSV is left to the measure. The option `tokenizer` is for a text only.
    """
    named, tokenizer = options.get("frequencies"), options.pop("tokenizer", None)
    if not isinstance(named, (str, Path)) or Path(named).suffix.lower() == ".csv":
        if tokenizer is not None:
            raise PythiaDynError("a tokenizer is for frequencies that are counted in a text: give --frequencies TEXT")
        return None
    options["frequencies"] = token_counts(history, named, tokenizer=tokenizer, limit=None)
    return str(named)


def _bifurcation(results: Results) -> Outcome | None:
    """Write ``bifurcation.json``. Without both tables, or if they are of different weights, delete it; return None.

    Peaks of the displacement are tested where ``two_time.zarr`` of the same weights is there.
    """
    path = results.path / "bifurcation.json"
    try:
        results.require_same_weights(("density", "msd"))
        found = bifurcation(results.read_table("msd"), results.read_zarr("density"), _pairs(results))
    except PythiaDynError:
        path.unlink(missing_ok=True)
        return None
    summary, facts = _bifurcation_facts(found)
    return Outcome("bifurcation", (write_json(path, facts),), summary, facts)


def _pairs(results: Results) -> xr.Dataset | None:
    """``two_time.zarr``; None where it is missing, or of other weights than the density and the MSD."""
    try:
        results.require_same_weights(("density", "msd", "two_time"))
        return results.read_zarr("two_time")
    except PythiaDynError:
        return None


def _bifurcation_facts(found: Bifurcation) -> tuple[str, dict[str, Any]]:
    """A sentence for a reader, and facts for a program."""
    facts = {"detectors": {**DISPLACEMENT, **DENSITY}, **asdict(found), "agreeing": found.agreeing}
    if found.step is None:
        sentence = f"{'undecided' if found.undecided else 'no step of a bifurcation'}: {found.reason}"
    else:
        sentence = f"bifurcation at step {found.step:,}, where {', '.join(found.origin)} agree"
    if found.pairs:
        sentence += (
            f"; {found.agreeing} of {len(found.pairs)} pairs of detectors agree to {found.tolerance:,.0f} steps "
            f"({found.by_chance:.1f} pairs by chance)"
        )
    return sentence, facts


def save_findings(results: Results, found: Verification) -> Path:
    """Write the findings of a verification to ``verify.json``, in place of earlier ones on the same subject.

    Parameters
    ----------
    results
        The results of the model.
    found
        The subject and its findings.

    Returns
    -------
    Path
        The file.
    """
    path = results.model.path / "verify.json"
    try:
        others = [item for item in read_json(path)["verify"] if item["subject"] != found.subject]
    except (OSError, ValueError, KeyError, TypeError):
        others = []
    command = typed_command(results.name)
    made = asdict(found) | ({} if command is None else {"command": command})
    return write_json(path, {"verify": [*others, made]})


def save_portrait(results: Results, portrait: xr.Dataset) -> list[Path]:
    """Write a portrait as ``first_last.zarr``, and its two figures.

    Parameters
    ----------
    results
        The results of the model.
    portrait
        The result of `pythia_dynamics.portrait`.

    Returns
    -------
    list of Path
        The files.
    """
    path = results.write_zarr("first_last", portrait)
    results.record("first_last", {name: value for name, value in portrait.attrs.items() if name != "completions"})
    return [path, *save_figures(portrait_figures(results))]


def draw_perplexity(
    results: Results, scores: Mapping[Mode, xr.Dataset], *, progress: Progress = silent
) -> list[Outcome]:
    """Draw the figure of each kind of perplexity and record its provenance.

    Parameters
    ----------
    results
        The results of the model, with the tables.
    scores
        The result of the evaluation by mode.
    progress
        Counts figures.

    Returns
    -------
    list of Outcome
        One for each mode.
    """
    outcomes = []
    for done, (mode, dataset) in enumerate(scores.items(), 1):
        kind = f"perplexity-{mode}"
        files = [results.path / f"{kind}.csv", *save_figures([perplexity_figure(results, mode)])]
        results.record(kind, dataset.attrs)
        first, last = ends(dataset["ppl" if mode == "last-word" else "ppl_corpus"])
        nonfinite, overflow = (int(np.nansum(dataset[name].to_numpy())) for name in ("nonfinite", "overflow"))
        summary = f"{mode} perplexity {first:.4g} → {last:.4g}"
        summary += f"; {nonfinite + overflow} sentences over all steps had none" if nonfinite + overflow else ""
        facts = {"first": first, "last": last, "nonfinite": nonfinite, "overflow": overflow}
        facts["missing"] = dataset.attrs["missing"]
        outcomes.append(Outcome(kind, tuple(files), summary, facts))
        progress(done, len(scores))
    return outcomes


# -- along the time of a training -----------------------------------------------------------------------------


def write_stop(
    results: Results,
    found: Replay,
    history: History,
    *,
    rows: int | None = None,
    loss_from: str | None = None,
    axis: AxisKind = "step",
) -> Outcome:
    """Write ``stop.csv``, its provenance and its figure.

    Parameters
    ----------
    results
        The results of the tensor.
    found
        The step at which the rule stops, and its curves.
    history
        The weights that were replayed.
    rows
        Number of rows that were used. Default: all.
    loss_from
        The file that the loss is from.
    axis
        The x axis of the figure.

    Returns
    -------
    Outcome
        Where the rule stops, how many steps that saves, and what it costs in loss.
    """
    x_axis = _axis(axis, history)
    rule, columns = found.rule, ("step", "displacement_rate", "msd", "msd_null", "msd_null_sd", "stationary")
    table = found.curves[list(columns[1:])].to_dataframe().reset_index().astype({"stationary": int})
    path = write_csv(results.path / "stop.csv", columns, table[list(columns)].itertuples(index=False, name=None))
    losses = ("loss_at_stop", "loss_step", "loss_last", "loss_cost", "loss_best_after")
    values = {name: getattr(found, name) for name in ("stopped_at", "last_step", "saved", *losses)}
    facts = plain({"rule": asdict(rule), **values, "loss_from": loss_from})
    summary = _stop_sentence(found)
    made = {**found.attributes, **asdict(rule), **_weights(history, rows), "loss_from": loss_from}
    results.record("stop", {**made, "summary": summary, "facts": facts})
    written = save_figures(along([stop_figure(results)], x_axis))
    return Outcome("stop", (path, *written), summary, facts)


def _stop_sentence(found: Replay) -> str:
    rule = found.rule
    if found.stopped_at is None:
        if rule.kind == "stationary":
            known = "learning_rate" in found.curves.coords
            why = "" if known else "; the learning rate is not known, so a motion that stops may be the schedule's work"
            return f"the weights are not seen to be stationary up to step {found.last_step:,}{why}"
        least = np.nanmin(found.curves["displacement_rate"].to_numpy(), initial=np.inf)
        slowest = f"; the least displacement rate is {least:.3g} per 1,000 steps" if np.isfinite(least) else ""
        return f"the rule ({rule.kind}, threshold {rule.threshold:g}) does not stop before {found.last_step:,}{slowest}"
    reached = f"step {found.stopped_at:,} of {found.last_step:,}"
    stop = f"the rule stops at {reached} and saves {found.saved:.1%} of the steps"
    if not np.isfinite(found.loss_cost):
        return f"{stop}; what it costs in loss is not known"
    return (
        f"{stop}; it {'costs' if found.loss_cost > 0 else 'gains'} {abs(found.loss_cost):.4g} nats per token: "
        f"{found.loss_at_stop:.4g} at step {found.loss_step:,}, {found.loss_last:.4g} at the end (best after the stop: "
        f"{found.loss_best_after:.4g})"
    )


def write_phases(
    results: Results,
    dataset: xr.Dataset,
    changes: Sequence[Change],
    history: History,
    *,
    rows: int | None = None,
    axis: AxisKind = "step",
) -> Outcome:
    """Write ``phases.csv``, with a row per change point, ``phases.zarr``, with the signals, and the figure of both.

    Parameters
    ----------
    results
        The results of the tensor.
    dataset
        The result of `phases`.
    changes
        The change points of all models, from `agreement`.
    history
        The weights of the model.
    rows
        Number of rows that were used. Default: all.
    axis
        The x axis of the figure.

    Returns
    -------
    Outcome
        The change points of this model, and how many of them another detector confirms.
    """
    x_axis = _axis(axis, history)
    own = sorted((change for change in changes if change.model == results.name), key=lambda c: (c.step, c.detector))
    names = [field.name for field in fields(Change)]
    path = write_csv(results.path / "phases.csv", names, map(astuple, own), digits=9)
    steps = {kind: [change.step for change in own if change.detector == kind] for kind in DETECTORS}
    array = results.write_zarr("phases", dataset)
    confirmed = sum(change.detectors > 0 for change in own)
    by_chance = sum(change.any_by_chance for change in own)
    summary = "; ".join(
        f"{kind.replace('_', ' ')}: {', '.join(f'{step:,}' for step in found) or 'no change'}"
        for kind, found in steps.items()
    )
    undecided = dataset["step"].to_numpy()[dataset["displacement_rate_undecided"].to_numpy()].tolist()
    if undecided:
        summary += (
            f"; undecided: the displacement rate changes at {', '.join(f'{step:,}' for step in undecided)}, but the "
            "learning rate is not known"
        )
    if own:
        summary += f"; {confirmed} of {len(own)} changes are seen by another detector ({by_chance:.1f} by chance)"
    table = [{name: getattr(change, name) for name in names if name != "model"} for change in own]
    facts = {
        "changes": steps,
        "undecided": undecided,
        "agreeing": confirmed,
        "agreeing_by_chance": by_chance,
    }
    results.record("phases", {**dataset.attrs, **_weights(history, rows), "summary": summary, "facts": facts})
    written = save_figures(along([phases_figure(results)], x_axis))
    return Outcome("phases", (path, array, *written), summary, {**facts, "rows": plain(table)})
