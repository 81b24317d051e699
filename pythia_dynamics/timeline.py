"""Result files along the time of a training: where a rule would have stopped it, and its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics import figures
from pythia_dynamics.files import atomic_file
from pythia_dynamics.phases import DETECTORS, Change
from pythia_dynamics.pipeline import Outcome
from pythia_dynamics.results import read_losses
from pythia_dynamics.stationarity import Replay

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.results import Results

__all__ = ["known_loss", "write_phases", "write_stop"]


def known_loss(results: Results, source: str) -> tuple[dict[int, float], str] | None:
    """The loss of a model by step, and where it is from: its forward perplexity, else ``losses.csv`` of its suite.

    Of a suite it is the validation loss. None where neither is there.
    """
    forward, suite = results.path / "perplexity-forward.csv", Path(source) / "losses.csv"
    if forward.is_file():
        return read_losses(forward), str(forward)
    if suite.is_file():
        import pandas as pd

        table = pd.read_csv(suite)
        if {"step", "validation_loss"} <= set(table.columns):
            return dict(zip(table["step"].tolist(), table["validation_loss"].tolist(), strict=True)), str(suite)
        return read_losses(suite), str(suite)
    return None


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
        "loss_at_stop": _known(found.loss_at_stop),
        "loss_step": found.loss_step,
        "loss_last": _known(found.loss_last),
        "loss_cost": _known(found.loss_cost),
        "loss_best_after": _known(found.loss_best_after),
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
        {field.name: _known(getattr(change, field.name)) for field in fields(Change) if field.name != "model"}
        for change in changes
    ]


def _known(value: Any) -> Any:
    """A number for JSON, which has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps) if steps else "no change"
