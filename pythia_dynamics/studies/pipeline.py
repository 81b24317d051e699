"""From a history to its result files: compute all that is asked in one go, write the tables, draw the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures import gallery
from pythia_dynamics.files import atomic_file
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.bifurcation import DENSITY, DISPLACEMENT, Bifurcation, bifurcation
from pythia_dynamics.measures.dip import dip_test
from pythia_dynamics.measures.displacement import interior_peak
from pythia_dynamics.measures.phases import DETECTORS, Change
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results.losses import known_loss, read_losses
from pythia_dynamics.training.stopping import Replay

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.checkpoints.findings import Verification
    from pythia_dynamics.evaluation.settings import Mode
    from pythia_dynamics.history.history import History
    from pythia_dynamics.results.folder import Results

__all__ = ["Outcome", "draw_perplexity", "keep_findings", "measure", "write_phases", "write_stop"]

_RANK_TOLERANCE = {"absolute": 0.5, "relative": 0.1}


@dataclass(frozen=True)
class Outcome:
    """One answered question: the files written, a sentence for a person and the facts for a program."""

    kind: str
    files: tuple[Path, ...]
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def measure(
    history: History,
    kinds: Collection[str],
    results: Results,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    drop_padding: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Outcome]:
    """Run the analyses `kinds` on a history as `analyse` does, and write tables, figures and provenance of each.

    Nothing is written before all of them are computed. `options` are passed on by kind; the loss of `order` may be a
    file for `read_losses`, and is the one there is (see `known_loss`) where none is given. Once there are `density` and
    `msd` of the same weights and steps, ``bifurcation.json`` says whether their detectors agree.
    """
    given = {kind: dict((options or {}).get(kind, {})) for kind in kinds}
    loss_from = _take_loss(given["order"], results, history) if "order" in given else None
    datasets = analyse(history, kinds, options=given, drop_padding=drop_padding, device=device, progress=progress)
    outcomes = []
    for kind, dataset in datasets.items():
        files = _SAVERS[kind](results, dataset)
        files += gallery.draw([gallery.plate(results, kind)], results.path)
        summary, facts = _FACTS[kind](dataset)
        details: dict[str, Any] = {name: value for name, value in given[kind].items() if np.isscalar(value)}
        if kind == "order" and loss_from:
            summary, facts = f"{summary} (loss from {loss_from})", {**facts, "loss_from": loss_from}
        facts = _plain(facts)
        details |= {"drop_padding": drop_padding, "steps": len(history.steps), "facts": facts}
        results.record(kind, {**dataset.attrs, **details})
        outcomes.append(Outcome(kind, tuple(files), summary, facts))
    if {"density", "msd"} & set(datasets) and (found := _bifurcation(results)):
        outcomes.append(found)
    return outcomes


def _take_loss(options: dict[str, Any], results: Results, history: History) -> str | None:
    """Put the loss in the options of `order`; the file it is from."""
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
    """``bifurcation.json`` from the tables; None, and no file, where they are not of the same weights and steps."""
    path = results.path / "bifurcation.json"
    made = json.loads((results.path / "provenance.json").read_text())
    of = [[made.get(kind, {}).get(key) for key in ("source", "tensor", "drop_padding")] for kind in ("density", "msd")]
    try:
        found = bifurcation(results.read_table("msd"), results.read_table("moments")) if of[0] == of[1] else None
    except PythiaDynError:  # one has not been computed, or of other steps
        found = None
    if found is None:
        path.unlink(missing_ok=True)
        return None
    summary, facts = _bifurcation_facts(found)
    with atomic_file(path) as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")
    return Outcome("bifurcation", (path,), summary, facts)


def keep_findings(results: Results, found: Verification) -> Path:
    """Keep what a verification found in ``verify.json``, in place of what was found of the same before."""
    path = results.path / "verify.json"
    try:
        kept = [item for item in json.loads(path.read_text())["verify"] if item["subject"] != found.subject]
    except (OSError, ValueError, KeyError, TypeError):
        kept = []
    with atomic_file(path) as file:
        file.write(json.dumps({"verify": [*kept, asdict(found)]}, indent=1).encode() + b"\n")
    return path


def draw_perplexity(
    results: Results, scores: Mapping[Mode, xr.Dataset], *, progress: Progress = silent
) -> list[Outcome]:
    """Draw the perplexities by mode, one figure each, linear beside logarithmic as in the paper (Fig 4 and 6)."""
    outcomes = []
    for done, (mode, dataset) in enumerate(scores.items(), 1):
        kind = f"perplexity-{mode}"
        files = [results.path / f"{kind}.csv", *gallery.draw([gallery.plate(results, kind)], results.path)]
        results.record(kind, dataset.attrs)
        variable = "ppl" if mode == "last-word" else "ppl_corpus"
        first, last = _ends(dataset[variable])
        nonfinite = int(np.nansum(dataset["nonfinite"].to_numpy()))
        summary = f"{mode} perplexity {first:.4g} → {last:.4g}" + (
            f"; {nonfinite} sentences over all steps had none" if nonfinite else ""
        )
        facts = {"first": first, "last": last, "nonfinite": nonfinite, "missing": dataset.attrs["missing"]}
        outcomes.append(Outcome(kind, tuple(files), summary, facts))
        progress(done, len(scores))
    return outcomes


# -- files ----------------------------------------------------------------------------------------------------


def _save_density(results: Results, dataset: xr.Dataset) -> list[Path]:
    dataset = dataset.assign(dip_test(dataset))
    return [results.write_table("moments", dataset), results.write_zarr("density", dataset)]


def _save_rank(results: Results, dataset: xr.Dataset) -> list[Path]:
    infinite = dataset[["rank_infinite"]].rename(rank_infinite="rank")
    return [results.write_table("rank", dataset), results.write_table("rank-infinite", infinite)]


_SAVERS: dict[str, Callable[[Results, xr.Dataset], list[Path]]] = {
    "density": _save_density,
    "msd": lambda results, dataset: [results.write_table("msd", dataset)],
    "order": lambda results, dataset: [results.write_table("order", dataset)],
    "rank": _save_rank,
    "spectrum": lambda results, dataset: [
        results.write_table("spectrum", dataset),
        results.write_zarr("spectrum", dataset),
    ],
    "two_time": lambda results, dataset: [results.write_zarr("two_time", dataset)],
}

# -- facts ----------------------------------------------------------------------------------------------------

Facts = tuple[str, dict[str, Any]]


def _density_facts(dataset: xr.Dataset) -> Facts:
    spread, modes = _ends(dataset["std"]), _ends(dataset["modes"])
    summary = f"standard deviation {_course(spread)}; modes {_course(modes)}"
    return summary, {"std": spread, "modes": modes, "nonfinite": float(np.nansum(dataset["nonfinite"]))}


def _msd_facts(dataset: xr.Dataset) -> Facts:
    sentences, facts = [], {}
    for kind, label in (("msd", "demeaned over weights"), ("msd_time", "demeaned over time")):
        peak = dataset[kind].attrs.get("peak_step")
        beyond = dataset[kind].attrs.get("peak_over_null_step")
        curve, null = dataset[kind], dataset[f"{kind}_null"]
        null_peak = interior_peak(dataset["step"].to_numpy(), null.to_numpy())
        facts[kind] = {"peak_step": peak, "peak_over_null_step": beyond, "null_peak_step": null_peak}
        sentences.append(
            f"{label}, the MSD is greatest {_where(peak, curve)}, its null {_where(null_peak, null)}, "
            f"their ratio {_where(beyond, curve / null.where(null > 0))}"
        )
    return "; ".join(sentences), facts


def _order_facts(dataset: xr.Dataset) -> Facts:
    first, last = _ends(dataset["order_parameter"])
    facts: dict[str, Any] = {"first": first, "last": last}
    summary = f"order parameter b {_course((first, last), 6)}"
    if "loss" in dataset:
        losses, fit = _ends(dataset["loss"]), dataset["loss"].attrs
        facts |= {"loss": losses, "fit": dict(fit)}
        summary += f", loss {_course(losses)}"
        if "break_b" in fit:
            summary += (
                f"; the best break of a line is at b = {fit['break_b']:.4g}, where dL/db goes from "
                f"{fit['slope_before']:.3g} to {fit['slope_after']:.3g} (p = {fit['break_p']:.2g} for no break)"
            )
    return summary, facts


def _rank_facts(dataset: xr.Dataset) -> Facts:
    sentences, facts = [], {}
    size = int(dataset["batch_size"][-1])
    for convention, wanted in _RANK_TOLERANCE.items():
        curve = dataset["rank"].sel(convention=convention, batch_size=size)
        curve = curve.sel({"tolerance": wanted}, method="nearest")
        facts[convention] = _ends(curve)
        sentences.append(f"{convention} tolerance {wanted:g}: rank {_course(facts[convention], 6)}")
    return f"batch {size}, " + "; ".join(sentences), {"batch_size": size, **facts}


def _spectrum_facts(dataset: xr.Dataset) -> Facts:
    names = ("entropy", "effective_rank", "stable_rank", "mean_row_fraction")
    facts: dict[str, Any] = {name: _ends(dataset[name]) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {_course(ends)}" for name, ends in facts.items()), facts


def _two_time_facts(dataset: xr.Dataset) -> Facts:
    found = {name: float(value) for name, value in dataset["displacement_by_lag"].attrs.items() if "exponent" in name}
    shares, nulls = (dataset[name].to_numpy()[:1].tolist() for name in ("explained", "explained_null"))
    cosine = dataset["cosine"].dropna("step", how="all").dropna("other_step", how="all")
    last = float(cosine[0, -1]) if cosine.size else np.nan
    sentence = f"cosine of the last weights with the first {last:.4g}" if cosine.size else "no step is known"
    if "exponent" in found:
        sentence = f"displacement ∝ lag^{found['exponent']:.3g}, " + sentence
    if "exponent_low" in found:
        interval = f" (95 %: {found['exponent_low']:.3g} to {found['exponent_high']:.3g})"
        sentence = sentence.replace(",", f"{interval},", 1)
    if np.isfinite(shares).any():
        sentence += f"; first principal component {shares[0]:.1%} of the variance, of a random walk's {nulls[0]:.1%}"
    return sentence, {**found, "cosine_of_ends": last, "explained": shares, "explained_null": nulls}


def _bifurcation_facts(found: Bifurcation) -> Facts:
    facts = {"detectors": {**DISPLACEMENT, **DENSITY}, **asdict(found), "agreeing": found.agreeing}
    peaks = [f"{name} at {at.step:,}" for name, at in found.displacement.items() if at.step is not None]
    modes = [f"{name} from {at.step:,}" for name, at in found.density.items() if at.step is not None]
    sentence = (
        f"the displacement peaks by {', '.join(peaks) or 'no detector'}; the density turns bimodal by "
        f"{', '.join(modes) or 'no detector'}"
    )
    if found.pairs:
        sentence += (
            f"; {found.agreeing} of {len(found.pairs)} pairs agree to {found.tolerance:,.0f} steps "
            f"({found.by_chance:.1f} by chance)"
        )
    return sentence, facts


_FACTS: dict[str, Callable[[xr.Dataset], Facts]] = {
    "density": _density_facts,
    "msd": _msd_facts,
    "order": _order_facts,
    "rank": _rank_facts,
    "spectrum": _spectrum_facts,
    "two_time": _two_time_facts,
}


def _ends(curve: xr.DataArray) -> tuple[float, float]:
    """First and last known value of a curve over steps, NaN where none is known."""
    known = curve.dropna("step").to_numpy()
    return (float(known[0]), float(known[-1])) if len(known) else (np.nan, np.nan)


def _course(ends: tuple[float, float], digits: int = 4) -> str:
    return f"{ends[0]:.{digits}g} → {ends[1]:.{digits}g}" if np.isfinite(ends).all() else "not known"


def _plain(value: Any) -> Any:
    """Facts as JSON has them: what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _where(peak: int | None, curve: xr.DataArray) -> str:
    """Where a curve is greatest: at its interior `peak`, or at which end."""
    known = curve.dropna("step")
    if peak is not None:
        return f"at step {peak}"
    if not known.size or float(known[0]) == float(known[-1]) == float(known.max()):
        return "nowhere"
    return "at its start" if float(known[0]) > float(known[-1]) else "at its end"


# -- along the time of a training -----------------------------------------------------------------------------


def write_stop(results: Results, found: Replay, *, loss_from: str | None = None) -> Outcome:
    """Write ``stop.csv`` and its figure; the outcome says where the rule stops, what it saves and what it costs."""
    columns = ["displacement_rate", "msd", "msd_null", "msd_null_sd", "stationary"]
    path = results.path / "stop.csv"
    table = found.curves[columns].to_dataframe().reset_index()[["step", *columns]]
    table["stationary"] = table["stationary"].astype(int)
    with atomic_file(path) as file:
        file.write(table.to_csv(index=False).encode())
    rule = found.rule
    with figures.sheet(width=5.2) as (figure, ax):
        threshold = None if rule.kind == "msd" else rule.threshold
        figures.stopping(ax, found.curves, threshold=threshold, stopped_at=found.stopped_at, name=results.name)
        written = figures.save(figure, results.path / "stop")
    settings = {field.name: getattr(rule, field.name) for field in fields(rule)}
    results.record("stop", {**found.attributes, **settings, "loss_from": loss_from})
    facts: dict[str, Any] = {
        "rule": settings,
        "stopped_at": found.stopped_at,
        "last_step": found.last_step,
        "saved": found.saved,
        "loss_at_stop": _plain(found.loss_at_stop),
        "loss_step": found.loss_step,
        "loss_last": _plain(found.loss_last),
        "loss_cost": _plain(found.loss_cost),
        "loss_best_after": _plain(found.loss_best_after),
        "loss_from": loss_from,
    }
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
    """Write ``phases.csv`` (a row per change point) and the figure of a model's phases, from all models' `changes`."""
    own = sorted((change for change in changes if change.model == results.name), key=lambda c: (c.step, c.detector))
    names = [field.name for field in fields(Change)]
    path = results.path / "phases.csv"
    with atomic_file(path) as file:
        file.write(",".join(names).encode() + b"\n")
        for change in own:
            cells = (getattr(change, name) for name in names)
            text = (f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
            file.write(",".join("" if cell == "nan" else cell for cell in text).encode() + b"\n")
    steps = {kind: [change.step for change in own if change.detector == kind] for kind in DETECTORS}
    with figures.sheet(columns=3) as (figure, axes):
        figures.phases(axes, dataset, steps, name=results.name)
        written = figures.save(figure, results.path / "phases")
    results.record("phases", dataset.attrs)
    found = "; ".join(f"{kind.replace('_', ' ')}: {_listed(steps[kind])}" for kind in DETECTORS)
    others = [change for change in own if change.detectors]
    by_chance = sum(change.detectors_by_chance for change in own)
    summary = f"{found}; seen by another detector as well: {len(others)} of {len(own)} ({by_chance:.1f} by chance)"
    facts = {"changes": steps, "agreeing": len(others), "agreeing_by_chance": by_chance, "rows": _rows(own)}
    return Outcome("phases", (path, *written), summary, facts)


def _rows(changes: Sequence[Change]) -> list[Mapping[str, Any]]:
    return [
        {field.name: _plain(getattr(change, field.name)) for field in fields(Change) if field.name != "model"}
        for change in changes
    ]


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps) if steps else "no change"
