"""The text of the report on one model: tables, missing steps, findings of the verification, provenance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import xarray as xr

from pythia_dynamics.checkpoints.findings import FindingKind
from pythia_dynamics.history.provenance import Check, checks_in_words
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.report.commands import commands
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.reading import computed
from pythia_dynamics.tables import read_json

__all__ = [
    "Finding",
    "Gap",
    "Provenance",
    "Table",
    "findings",
    "format_number",
    "format_steps",
    "gaps",
    "provenance",
    "tables",
]

_MAX_ROWS = 16
"""Rows of a table on the page, so that a table fits on a screen. The CSV file has all of them."""

_MAX_LISTED_STEPS = 8
"""Steps that are listed one by one: as many as fit on a line of a table."""

_EVALUATIONS = {
    "perplexity-forward": "Forward perplexity",
    "perplexity-unmask": "Causal-unmasking perplexity",
    "perplexity-last-word": "Last-word perplexity",
    "representation": "Representation",
}

_DIRECTORIES = re.compile(r"(?<![\w:/.])(?:/|(?:\.\./)+)(?:[^\s/:;,'\"]+/)*(?=[^\s/])")
"""What stands before the last component of a local path, absolute or relative. Not that of an address ``https://…``."""


@dataclass(frozen=True)
class Table:
    """Some rows of a result table, as text.

    Parameters
    ----------
    title
        Heading.
    columns
        Names of the columns.
    rows
        The cells of each row.
    note
        Which of the rows these are.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Gap:
    """Steps that are missing from results.

    Parameters
    ----------
    results
        Names of the results.
    steps
        The steps, as text.
    reason
        Why they are missing.
    """

    results: str
    steps: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """A finding of ``pythia-dyn verify``.

    Parameters
    ----------
    subject
        What was verified: a tensor, or checkpoints.
    kind
        Kind of the finding.
    steps
        Its steps, as text.
    message
        The finding in one sentence.
    fault
        False where it is harmless.
    """

    subject: str
    kind: FindingKind
    steps: str
    message: str
    fault: bool


@dataclass(frozen=True)
class Provenance:
    """How the results of a model were made.

    Parameters
    ----------
    sources
        Where the weights are from.
    software
        Versions and machines that computed the results.
    computed
        When: one time, or the first and the last.
    commits
        Step and commit of each checkpoint.
    checks
        Which steps were compared with which checksum of their publisher, a line for each.
    commands
        The commands that make the results again.
    """

    sources: tuple[str, ...]
    software: tuple[str, ...]
    computed: str
    commits: tuple[tuple[str, str], ...]
    checks: tuple[str, ...]
    commands: tuple[str, ...]


def tables(results: Results) -> list[Table]:
    """The tables of a model that have been computed, with up to 16 rows each.

    The rows are evenly spaced; the first and the last row are among them.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    """
    titles = {name: table.title for one in known_measures().values() for name, table in one.tables.items()}
    places = [(results.weights(), name, title) for name, title in titles.items() if title]
    places += [(results.model, name, title) for name, title in _EVALUATIONS.items()]
    return list(computed(lambda place: _excerpt(place[0].read_table(place[1]), *place[1:]), places))


def _excerpt(table: xr.Dataset, name: str, title: str) -> Table:
    count = table.sizes["step"]
    chosen = np.unique(np.linspace(0, count - 1, min(_MAX_ROWS, count)).round().astype(int))
    columns = [str(column) for column in table.data_vars]
    rows = tuple(
        (f"{int(table['step'][i]):,}", *(format_number(float(table[column][i])) for column in columns)) for i in chosen
    )
    note = f"All {count} steps." if len(chosen) == count else f"{len(chosen)} of {count} steps; all are in {name}.csv."
    return Table(title, ("step", *columns), rows, note)


def gaps(results: Results) -> list[Gap]:
    """The missing steps of a model. Results that lack the same steps for the same reason are one gap.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for name, details in _provenance(results).items():
        by_reason: dict[str, list[int]] = {}
        for step, reason in _mapping(details.get("missing")).items():
            by_reason.setdefault(str(reason), []).append(int(step))
        for reason, steps in by_reason.items():
            found.setdefault((format_steps(steps), _without_directories(reason)), {})[name] = None
    return [Gap(", ".join(names), steps, reason) for (steps, reason), names in found.items()]


def findings(results: Results) -> list[Finding] | None:
    """The findings of ``pythia-dyn verify``; None where it has not been run.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    """
    try:
        return [
            Finding(
                subject["subject"],
                found["kind"],
                format_steps(found["steps"]),
                _without_directories(found["message"]),
                found["fault"],
            )
            for subject in read_json(results.model.path / "verify.json")["verify"]
            for found in subject["findings"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def provenance(results: Results) -> Provenance:
    """The provenance of the results of a model, from ``provenance.json``.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    """
    made = _provenance(results)
    sources: dict[str, None] = {}
    software: dict[str, None] = {}
    commits: dict[int, str] = {}
    checks: dict[int, Check] = {}
    for details in made.values():
        place, tensor = details.get("source") or details.get("location"), details.get("tensor")
        if place:
            sources[f"{_name(place)}, {tensor}" if tensor else _name(place)] = None
        versions = ", ".join(f"{name} {version}" for name, version in sorted(_mapping(details.get("packages")).items()))
        python = f"Python {details.get('python')} on {details.get('machine')}"
        software[f"pythia-dynamics {details.get('pythia_dynamics')}, {python}: {versions}"] = None
        commits |= {int(step): str(commit) for step, commit in _mapping(details.get("commits")).items()}
        checks |= {int(step): check for step, check in _mapping(details.get("checks")).items()}
    times = sorted({str(details["time"]) for details in made.values() if "time" in details})
    return Provenance(
        sources=tuple(sources),
        software=tuple(software),
        computed=" to ".join(times[:1] + times[1:][-1:]),
        commits=tuple((f"{step:,}", commit) for step, commit in sorted(commits.items())),
        checks=tuple(checks_in_words(checks)),
        commands=commands(results),
    )


def _name(place: object) -> str:
    """A local path as its last component; a repository as it is."""
    path = PurePath(str(place))
    return path.name if path.is_absolute() or ".." in path.parts else str(place)


def _without_directories(text: str) -> str:
    """A text in which local paths have their last component only: the others are of no use on another machine."""
    return _DIRECTORIES.sub("", text)


def format_steps(steps: Iterable[int]) -> str:
    """Step numbers as text: each of up to eight, else their number, the first and the last.

    Parameters
    ----------
    steps
        The step numbers in any order.
    """
    ordered = sorted(int(step) for step in steps)
    if len(ordered) <= _MAX_LISTED_STEPS:
        return ", ".join(f"{step:,}" for step in ordered)
    return f"{len(ordered)} steps from {ordered[0]:,} to {ordered[-1]:,}"


def format_number(value: object) -> str:
    """A number for a table: a whole number in full, another one with four significant digits.

    Parameters
    ----------
    value
        The number. None and NaN become a dash; words and truth values stay as they are.
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"
    return text.replace("-", "−")


def _provenance(results: Results) -> dict[str, dict[str, Any]]:
    """The provenance of the weights that are shown, and of the model."""
    return {**results.weights().provenance(), **results.model.provenance()}


def _mapping(value: Any) -> Mapping[str, Any]:
    """A value of the provenance that ought to be a mapping; an empty one where it is none."""
    return value if isinstance(value, dict) else {}
