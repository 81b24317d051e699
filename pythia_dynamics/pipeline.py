"""From a history to its result files: compute all that is asked in one go, write the tables, draw the figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.analyse import analyse
from pythia_dynamics.diffusion import interior_peak
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.results import read_losses

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.history import History
    from pythia_dynamics.results import Results

__all__ = ["Outcome", "draw_perplexity", "measure"]

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

    Nothing is written before all of them are computed. `options` are passed on by kind; `order` takes the loss of the
    model's forward perplexity where none is given and that has been computed.
    """
    given = {kind: dict((options or {}).get(kind, {})) for kind in kinds}
    forward = results.path / "perplexity-forward.csv"
    if "order" in given and given["order"].get("loss") is None and forward.exists():
        given["order"]["loss"] = read_losses(forward)
    datasets = analyse(history, kinds, options=given, drop_padding=drop_padding, device=device, progress=progress)
    outcomes = []
    for kind, dataset in datasets.items():
        files = _WRITERS[kind](results, dataset)
        summary, facts = _FACTS[kind](dataset)
        named = {name: value for name, value in given[kind].items() if np.isscalar(value)}
        results.record(kind, {**dataset.attrs, **named, "drop_padding": drop_padding, "steps": len(history.steps)})
        outcomes.append(Outcome(kind, tuple(files), summary, facts))
    return outcomes


def draw_perplexity(
    results: Results, scores: Mapping[str, xr.Dataset], *, progress: Progress = silent
) -> list[Outcome]:
    """Draw the perplexities by mode, one figure each, linear beside logarithmic as in the paper (Fig 4 and 6)."""
    outcomes = []
    for done, (mode, dataset) in enumerate(scores.items(), 1):
        table = results.path / f"perplexity-{mode}.csv"
        with figures.sheet(columns=2) as (figure, axes):
            figures.perplexity(axes[0], {mode: dataset}, log=False)
            figures.perplexity(axes[1], {mode: dataset}, log=True)
            files = [table, *figures.save(figure, results.path / f"perplexity-{mode}")]
        results.record(f"perplexity-{mode}", dataset.attrs)
        variable = "ppl" if mode == "last-word" else "ppl_corpus"
        first, last = _ends(dataset[variable])
        nonfinite = int(np.nansum(dataset["nonfinite"].to_numpy()))
        summary = f"{mode} perplexity {first:.4g} → {last:.4g}" + (
            f"; {nonfinite} sentences over all steps had none" if nonfinite else ""
        )
        facts = {"first": first, "last": last, "nonfinite": nonfinite, "missing": dataset.attrs["missing"]}
        outcomes.append(Outcome(f"perplexity-{mode}", tuple(files), summary, facts))
        progress(done, len(scores))
    return outcomes


# -- files ----------------------------------------------------------------------------------------------------


def _write_density(results: Results, dataset: xr.Dataset) -> list[Path]:
    files = [results.write_table("moments", dataset), results.write_zarr("density", dataset)]
    with figures.sheet() as (figure, ax):
        figures.density(ax, dataset)
        return files + figures.save(figure, results.path / "density")


def _write_msd(results: Results, dataset: xr.Dataset) -> list[Path]:
    files = [results.write_table("msd", dataset)]
    with figures.sheet() as (figure, ax):
        figures.msd(ax, dataset, name=results.name)
        return files + figures.save(figure, results.path / "msd")


def _write_order(results: Results, dataset: xr.Dataset) -> list[Path]:
    files = [results.write_table("order", dataset)]
    with_loss = [figures.loss_against_order, figures.loss_slope] if "loss" in dataset else []
    with figures.sheet(columns=1 + len(with_loss)) as (figure, axes):
        for draw, ax in zip([figures.order, *with_loss], np.atleast_1d(axes), strict=True):
            draw(ax, dataset)
        return files + figures.save(figure, results.path / "order")


def _write_rank(results: Results, dataset: xr.Dataset) -> list[Path]:
    infinite = dataset[["rank_infinite"]].rename(rank_infinite="rank")
    files = [results.write_table("rank", dataset), results.write_table("rank-infinite", infinite)]
    with figures.sheet(columns=2, rows=3) as (figure, axes):
        for column, (convention, wanted) in zip(axes.T, _RANK_TOLERANCE.items(), strict=True):
            tolerance = float(dataset["tolerance"].sel({"tolerance": wanted}, method="nearest"))
            figures.rank(column[0], dataset, tolerance=tolerance, convention=convention)
            figures.rank_difference(column[1], dataset, tolerance=tolerance, convention=convention)
            figures.rank_infinite(column[2], dataset, convention=convention)
        return files + figures.save(figure, results.path / "rank")


def _write_spectrum(results: Results, dataset: xr.Dataset) -> list[Path]:
    files = [results.write_table("spectrum", dataset), results.write_zarr("spectrum", dataset)]
    with figures.sheet() as (figure, ax):
        figures.effective_rank(ax, dataset)
        return files + figures.save(figure, results.path / "spectrum")


def _write_two_time(results: Results, dataset: xr.Dataset) -> list[Path]:
    files = [results.write_zarr("two_time", dataset)]
    with figures.sheet(columns=2, rows=2) as (figure, axes):
        figures.ageing(axes[0, 0], dataset)
        figures.displacement_by_lag(axes[0, 1], dataset)
        figures.cosine(axes[1, 0], dataset)
        figures.trajectory(axes[1, 1], dataset)
        return files + figures.save(figure, results.path / "two_time")


_WRITERS: dict[str, Callable[[Results, xr.Dataset], list[Path]]] = {
    "density": _write_density,
    "msd": _write_msd,
    "order": _write_order,
    "rank": _write_rank,
    "spectrum": _write_spectrum,
    "two_time": _write_two_time,
}

# -- facts ----------------------------------------------------------------------------------------------------

Facts = tuple[str, dict[str, Any]]


def _density_facts(dataset: xr.Dataset) -> Facts:
    spread, modes = _ends(dataset["std"]), _ends(dataset["modes"])
    summary = f"standard deviation {spread[0]:.4g} → {spread[1]:.4g}; modes {modes[0]:.0f} → {modes[1]:.0f}"
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
    summary = f"order parameter b {first:.6g} → {last:.6g}"
    if "loss" in dataset:
        losses = _ends(dataset["loss"])
        facts |= {"loss": losses, "fit": dict(dataset["loss"].attrs)}
        summary += f", loss {losses[0]:.4g} → {losses[1]:.4g}"
    return summary, facts


def _rank_facts(dataset: xr.Dataset) -> Facts:
    sentences, facts = [], {}
    size = int(dataset["batch_size"][-1])
    for convention, wanted in _RANK_TOLERANCE.items():
        curve = dataset["rank"].sel(convention=convention, batch_size=size)
        curve = curve.sel({"tolerance": wanted}, method="nearest")
        facts[convention] = _ends(curve)
        sentences.append(f"{convention} tolerance {wanted:g}: rank {facts[convention][0]:g} → {facts[convention][1]:g}")
    return f"batch {size}, " + "; ".join(sentences), {"batch_size": size, **facts}


def _spectrum_facts(dataset: xr.Dataset) -> Facts:
    effective, stable = _ends(dataset["effective_rank"]), _ends(dataset["stable_rank"])
    summary = f"effective rank {effective[0]:.4g} → {effective[1]:.4g}, stable rank {stable[0]:.4g} → {stable[1]:.4g}"
    return summary, {"effective_rank": effective, "stable_rank": stable}


def _two_time_facts(dataset: xr.Dataset) -> Facts:
    found = {name: float(value) for name, value in dataset["displacement_by_lag"].attrs.items() if "exponent" in name}
    shares, nulls = (dataset[name].to_numpy()[:1].tolist() for name in ("explained", "explained_null"))
    last = float(dataset["cosine"].dropna("step", how="all").dropna("other_step", how="all")[0, -1])
    sentence = f"cosine of the last weights with the first {last:.4g}"
    if "exponent" in found:
        sentence = f"displacement ∝ lag^{found['exponent']:.3g}, " + sentence
    if "exponent_low" in found:
        interval = f" (95 %: {found['exponent_low']:.3g} to {found['exponent_high']:.3g})"
        sentence = sentence.replace(",", f"{interval},", 1)
    if shares:
        sentence += f"; first principal component {shares[0]:.1%} of the variance, of a random walk's {nulls[0]:.1%}"
    return sentence, {**found, "cosine_of_ends": last, "explained": shares, "explained_null": nulls}


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


def _where(peak: int | None, curve: xr.DataArray) -> str:
    """Where a curve is greatest: at its interior `peak`, or at which end."""
    known = curve.dropna("step")
    if peak is not None:
        return f"at step {peak}"
    if not known.size or float(known[0]) == float(known[-1]) == float(known.max()):
        return "nowhere"
    return "at its start" if float(known[0]) > float(known[-1]) else "at its end"
