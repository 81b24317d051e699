"""The figures of `stop` and `phases`, from their saved results."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.specs import FigureSpec, full_name
from pythia_dynamics.measures.phases import DETECTORS
from pythia_dynamics.results.folder import Results
from pythia_dynamics.training.stopping import StationarityRule

__all__ = ["phases_figure", "stop_figure"]


def stop_figure(results: Results) -> FigureSpec:
    """The figure of ``stop.csv``: the displacement rate, and the step at which the rule stops.

    Parameters
    ----------
    results
        The results of the weights of one tensor.

    Raises
    ------
    PythiaDynError
        Where there is no such table, or its provenance does not have the rule.
    """
    table = results.read_table("stop")
    made = results.provenance().get("stop", {})
    known = {field.name for field in fields(StationarityRule)}
    if not known <= made.keys():
        raise PythiaDynError(
            f"{results.path} does not say which rule stop.csv is of: run {results.command_for('stop')}"
        )
    rule = StationarityRule(**{name: made[name] for name in known})
    curves = table.assign(stationary=table["stationary"].astype(bool))
    draw = partial(
        figures.stopping,
        curves=curves,
        threshold=rule.threshold if rule.kind in ("displacement", "either") else None,
        stopped_at=rule.first_stop(curves, curves["stationary"].to_numpy()),
    )
    caption = _sentence("Displacement rate of the weights", made)
    title = f"Where training could have stopped (rule: {rule.kind})"
    return FigureSpec(results.path / "stop", title, caption, draw, width=5.2, name=full_name(results))


def phases_figure(results: Results) -> FigureSpec:
    """The figure of ``phases.zarr``: the signal of each detector, and its change points.

    Parameters
    ----------
    results
        The results of the weights of one tensor.

    Raises
    ------
    PythiaDynError
        Where there is no such array.
    """
    signals = results.read_zarr("phases")
    steps = signals["step"].to_numpy()
    changes = {kind: steps[signals[f"{kind}_change"].to_numpy().astype(bool)].tolist() for kind in DETECTORS}
    caption = _sentence("Signals of three detectors; dashed, their change points", results.provenance().get("phases"))
    draw = partial(figures.phases, signals=signals.drop_attrs(deep=False), changes=changes)
    return FigureSpec(results.path / "phases", "Phases of training", caption, draw, columns=3, name=full_name(results))


def _sentence(what: str, made: Any) -> str:
    """A caption: what the figure shows, and the result in words where that is recorded."""
    summary = str((made or {}).get("summary", ""))
    return f"{what}. {summary[:1].upper()}{summary[1:]}." if summary else f"{what}."
