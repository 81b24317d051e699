"""From a history to its result files: compute what is asked in one reading, write tables, draw figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.gallery import perplexity_plate, portrait_plates
from pythia_dynamics.figures.plates import draw, measure_plate
from pythia_dynamics.measures.analyse import analyse, chosen_measures
from pythia_dynamics.measures.bifurcation import DENSITY, DISPLACEMENT, Bifurcation, bifurcation
from pythia_dynamics.measures.measure import Measure
from pythia_dynamics.measures.phases import DETECTORS, Change
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.losses import known_loss, read_losses
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import ends
from pythia_dynamics.tables import plain, read_json, write_csv, write_json
from pythia_dynamics.training.stopping import Replay

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.checkpoints.findings import Verification
    from pythia_dynamics.evaluation.settings import Mode
    from pythia_dynamics.history.history import History
    from pythia_dynamics.results.folder import Results

__all__ = ["Outcome", "draw_perplexity", "keep_findings", "keep_portrait", "measure", "write_phases", "write_stop"]


@dataclass(frozen=True)
class Outcome:
    """One result: its kind, the files written, a sentence for a reader and the facts for a program."""

    kind: str
    files: tuple[Path, ...]
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def measure(
    history: History,
    which: Collection[str | Measure] | None,
    results: Results,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Compute | None = None,
) -> list[Outcome]:
    """Compute measures of a history in one reading, and write tables, figures and provenance of each.

    Nothing is written before all of them are computed. Once there are `density` and `msd` of the same weights,
    ``bifurcation.json`` says whether their detectors agree.

    Parameters
    ----------
    history : History
        The weights.
    which : collection of str or Measure, optional
        What to compute, by default every known measure.
    results : Results
        The results of the model; what comes from weights is written to its folder of the tensor.
    options : mapping of str to mapping, optional
        Options by measure. An option `loss` may be a file for `read_losses`; where none is given it is the loss that
        is known of the model (see `known_loss`).
    compute : Compute, optional
        How to compute.

    Returns
    -------
    list of Outcome
        One for each measure, and one for the bifurcation where it was written.

    Raises
    ------
    PythiaDynError
        What `analyse` and `read_losses` raise.
    """
    compute, results = compute or Compute(), results.of(history.tensor)
    measures = chosen_measures(which)
    given = {one.name: dict((options or {}).get(one.name, {})) for one in measures}
    loss_from = {one.name: _take_loss(given[one.name], results, history) for one in measures if "loss" in one.options}
    datasets = analyse(history, measures, options=given, compute=compute)
    outcomes = []
    for one in measures:
        dataset = datasets[one.name]
        files = _write(one, dataset, results)
        summary, facts = one.summarise(dataset)
        if loss_from.get(one.name):
            summary = f"{summary} (loss from {loss_from[one.name]})"
            facts = {**facts, "loss_from": loss_from[one.name]}
        facts = plain(facts)
        details: dict[str, Any] = {name: value for name, value in given[one.name].items() if np.isscalar(value)}
        details |= {"drop_padding": compute.rows, "steps": history.steps, "facts": facts}
        results.record(one.name, {**dataset.attrs, **details})
        files += draw([measure_plate(one, results)])
        outcomes.append(Outcome(one.name, tuple(files), summary, facts))
    if {"density", "msd"} & set(datasets) and (found := _bifurcation(results)):
        outcomes.append(found)
    return outcomes


def _write(one: Measure, dataset: xr.Dataset, results: Results) -> list[Path]:
    """The tables and the array of a measure."""
    dataset = dataset if one.on_save is None else one.on_save(dataset)
    files = [results.write_table(name, table, dataset) for name, table in one.tables.items()]
    return [*files, results.write_zarr(one.name, dataset)] if one.saves_array else files


def _take_loss(options: dict[str, Any], results: Results, history: History) -> str | None:
    """Put the loss into the options of a measure; return the file it is from."""
    loss = options.get("loss")
    if isinstance(loss, (str, Path)):
        options["loss"] = read_losses(loss)
        return str(loss)
    known = known_loss(results, str(history.provenance.get("source", ""))) if loss is None else None
    if known is None or not known[0].keys() & set(history.steps.tolist()):
        return None
    options["loss"], where = known
    return where


def _bifurcation(results: Results) -> Outcome | None:
    """``bifurcation.json`` from the tables; None, and no file, where they are not of the same weights."""
    path = results.path / "bifurcation.json"
    try:
        if results.mixture(("density", "msd")) is not None:
            raise PythiaDynError("density and msd are of different weights")
        found = bifurcation(results.read_table("msd"), results.read_table("moments"))
    except PythiaDynError:  # one has not been computed
        path.unlink(missing_ok=True)
        return None
    summary, facts = _bifurcation_facts(found)
    return Outcome("bifurcation", (write_json(path, facts),), summary, facts)


def _bifurcation_facts(found: Bifurcation) -> tuple[str, dict[str, Any]]:
    facts = {"detectors": {**DISPLACEMENT, **DENSITY}, **asdict(found), "agreeing": found.agreeing}
    peaks = [f"{name} at {at.step:,}" for name, at in found.displacement.items() if at.step is not None]
    modes = [f"{name} from {at.step:,}" for name, at in found.density.items() if at.step is not None]
    sentence = f"displacement peaks: {', '.join(peaks)}" if peaks else "no displacement peak"
    sentence += f"; density bimodal: {', '.join(modes)}" if modes else "; density not bimodal"
    if found.pairs:
        sentence += (
            f"; {found.agreeing} of {len(found.pairs)} pairs agree to {found.tolerance:,.0f} steps "
            f"({found.by_chance:.1f} by chance)"
        )
    return sentence, facts


def keep_findings(results: Results, found: Verification) -> Path:
    """Save what a verification found in ``verify.json``, in place of what was found of the same before."""
    path = results.model.path / "verify.json"
    try:
        kept = [item for item in read_json(path)["verify"] if item["subject"] != found.subject]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    return write_json(path, {"verify": [*kept, asdict(found)]})


def keep_portrait(results: Results, taken: xr.Dataset) -> list[Path]:
    """Save a portrait as ``first_last.zarr`` and draw the two figures that it allows; return the files."""
    files = [results.write_zarr("first_last", taken)]
    results.record("first_last", {name: value for name, value in taken.attrs.items() if name != "completions"})
    return files + draw(portrait_plates(results))


def draw_perplexity(
    results: Results, scores: Mapping[Mode, xr.Dataset], *, progress: Progress = silent
) -> list[Outcome]:
    """Draw perplexities by mode, one figure each, linear beside logarithmic as in the paper (Fig 4 and 6)."""
    outcomes = []
    for done, (mode, dataset) in enumerate(scores.items(), 1):
        kind = f"perplexity-{mode}"
        files = [results.path / f"{kind}.csv", *draw([perplexity_plate(results, mode)])]
        results.record(kind, dataset.attrs)
        variable = "ppl" if mode == "last-word" else "ppl_corpus"
        first, last = ends(dataset[variable])
        nonfinite = int(np.nansum(dataset["nonfinite"].to_numpy()))
        summary = f"{mode} perplexity {first:.4g} → {last:.4g}" + (
            f"; {nonfinite} sentences over all steps had none" if nonfinite else ""
        )
        facts = {"first": first, "last": last, "nonfinite": nonfinite, "missing": dataset.attrs["missing"]}
        outcomes.append(Outcome(kind, tuple(files), summary, facts))
        progress(done, len(scores))
    return outcomes


# -- along the time of a training -----------------------------------------------------------------------------


def write_stop(results: Results, found: Replay, *, loss_from: str | None = None) -> Outcome:
    """Write ``stop.csv`` and its figure; the outcome says where the rule stops, what it saves and what it costs.

    Parameters
    ----------
    results : Results
        The results of the tensor.
    found : Replay
        What the rule did.
    loss_from : str, optional
        The file that the loss is from.
    """
    columns = ("step", "displacement_rate", "msd", "msd_null", "msd_null_sd", "stationary")
    table = found.curves[list(columns[1:])].to_dataframe().reset_index()
    table["stationary"] = table["stationary"].astype(int)
    path = write_csv(results.path / "stop.csv", columns, table[list(columns)].itertuples(index=False, name=None))
    rule = found.rule
    with figures.sheet(width=5.2) as (figure, ax):
        threshold = None if rule.kind == "msd" else rule.threshold
        figures.stopping(ax, found.curves, threshold=threshold, stopped_at=found.stopped_at, name=results.label)
        written = figures.save(figure, results.path / "stop")
    results.record("stop", {**found.attributes, **asdict(rule), "loss_from": loss_from})
    facts = plain(
        {
            "rule": asdict(rule),
            "stopped_at": found.stopped_at,
            "last_step": found.last_step,
            "saved": found.saved,
            "loss_at_stop": found.loss_at_stop,
            "loss_step": found.loss_step,
            "loss_last": found.loss_last,
            "loss_cost": found.loss_cost,
            "loss_best_after": found.loss_best_after,
            "loss_from": loss_from,
        }
    )
    return Outcome("stop", (path, *written), _stop_sentence(found), facts)


def _stop_sentence(found: Replay) -> str:
    rule = found.rule
    if found.stopped_at is None:
        least = np.nanmin(found.curves["displacement_rate"].to_numpy(), initial=np.inf)
        slowest = f"; the least displacement rate is {least:.3g} per 1,000 steps" if np.isfinite(least) else ""
        return f"the rule ({rule.kind}, threshold {rule.threshold:g}) does not stop before {found.last_step:,}{slowest}"
    text = (
        f"the rule stops at step {found.stopped_at:,} of {found.last_step:,} and saves {found.saved:.1%} of the steps"
    )
    if np.isfinite(found.loss_cost):
        worth = "costs" if found.loss_cost > 0 else "gains"
        text += (
            f"; it {worth} {abs(found.loss_cost):.4g} nats per token: {found.loss_at_stop:.4g} at step "
            f"{found.loss_step:,}, {found.loss_last:.4g} at the end (best after the stop: {found.loss_best_after:.4g})"
        )
        return text
    return text + "; what it costs in loss is not known"


def write_phases(results: Results, dataset: xr.Dataset, changes: Sequence[Change]) -> Outcome:
    """Write ``phases.csv``, a row per change point, and the figure of a model's phases.

    Parameters
    ----------
    results : Results
        The results of the tensor.
    dataset : xarray.Dataset
        What `phases` returned of it.
    changes : sequence of Change
        The change points of all models, from `agreement`.
    """
    own = sorted((change for change in changes if change.model == results.name), key=lambda c: (c.step, c.detector))
    names = [field.name for field in fields(Change)]
    path = write_csv(results.path / "phases.csv", names, map(astuple, own), digits=9)
    steps = {kind: [change.step for change in own if change.detector == kind] for kind in DETECTORS}
    with figures.sheet(columns=3) as (figure, axes):
        figures.phases(axes, dataset, steps, name=results.label)
        written = figures.save(figure, results.path / "phases")
    results.record("phases", dataset.attrs)
    parts = [
        f"{kind.replace('_', ' ')}: {', '.join(f'{s:,}' for s in steps[kind]) or 'no change'}" for kind in DETECTORS
    ]
    confirmed = sum(change.detectors > 0 for change in own)
    by_chance = sum(change.any_by_chance for change in own)
    summary = "; ".join(parts)
    if own:
        summary += f"; {confirmed} of {len(own)} changes are seen by another detector ({by_chance:.1f} by chance)"
    facts = {"changes": steps, "agreeing": confirmed, "agreeing_by_chance": by_chance, "rows": _rows(own)}
    return Outcome("phases", (path, *written), summary, facts)


def _rows(changes: Sequence[Change]) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = plain([asdict(change) for change in changes])
    return [{name: value for name, value in row.items() if name != "model"} for row in rows]
