"""What the report says of a model beside its figures: tables, gaps, oddities, where everything came from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.checkpoints.registry import UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import read_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Gap", "Oddity", "Provenance", "Table", "gaps", "number", "oddities", "provenance", "spans", "tables"]

_ROWS = 16
_PERPLEXITIES = {
    "perplexity-forward": "Forward perplexity",
    "perplexity-unmask": "Causal-unmasking perplexity",
    "perplexity-last-word": "Last-word perplexity",
}


@dataclass(frozen=True)
class Table:
    """Some rows of a result table, as text; `note` says which."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Gap:
    """Steps that a result lacks, and why."""

    results: str
    steps: str
    reason: str


@dataclass(frozen=True)
class Oddity:
    """A finding of ``pythia-dyn verify``."""

    subject: str
    kind: str
    steps: str
    message: str
    fault: bool


@dataclass(frozen=True)
class Provenance:
    """Where the weights came from, what computed the results and when, the commits, and the commands to do it again."""

    sources: tuple[str, ...]
    software: tuple[str, ...]
    computed: str
    commits: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def tables(results: Results) -> list[Table]:
    """The tables of one model, up to 16 rows of each, evenly spaced, the first and the last among them."""
    weights, found = results.weights(), []
    titles = {name: table.title for one in known_measures().values() for name, table in one.tables.items()}
    for folder, kinds in ((weights, titles), (results.model, _PERPLEXITIES)):
        for kind, title in kinds.items():
            try:
                table = folder.read_table(kind) if title else None
            except PythiaDynError:  # it has not been computed
                continue
            if table is not None:
                found.append(_excerpt(table, kind, title))
    return found


def _excerpt(table: xr.Dataset, kind: str, title: str) -> Table:
    count = table.sizes["step"]
    chosen = np.unique(np.linspace(0, count - 1, min(_ROWS, count)).round().astype(int))
    columns = [str(name) for name in table.data_vars]
    rows = tuple((f"{int(table['step'][i]):,}", *(number(float(table[name][i])) for name in columns)) for i in chosen)
    note = f"All {count} steps." if len(chosen) == count else f"{len(chosen)} of {count} steps; all are in {kind}.csv."
    return Table(title, ("step", *columns), rows, note)


def gaps(results: Results) -> list[Gap]:
    """What is missing, by result and reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for kind, details in _provenance(results).items():
        by_reason: dict[str, list[int]] = {}
        for step, reason in _mapping(details.get("missing")).items():
            by_reason.setdefault(str(reason), []).append(int(step))
        for reason, steps in by_reason.items():
            found.setdefault((spans(steps), reason), {})[kind] = None
    return [Gap(", ".join(kinds), steps, reason) for (steps, reason), kinds in found.items()]


def oddities(results: Results) -> list[Oddity] | None:
    """What ``verify`` found; None where it has not been run."""
    try:
        looked = read_json(results.model.path / "verify.json")["verify"]
        return [
            Oddity(
                str(found["subject"]),
                str(finding["kind"]),
                spans(finding["steps"]),
                str(finding["message"]),
                bool(finding.get("fault", True)),
            )
            for found in looked
            for finding in found["findings"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def provenance(results: Results) -> Provenance:
    """Gathered from ``provenance.json``."""
    kinds = _provenance(results)
    sources: dict[str, None] = {}
    software: dict[str, None] = {}
    commits: dict[int, str] = {}
    for details in kinds.values():
        place = details.get("source") or details.get("location")
        if place:
            sources[f"{place}, {details['tensor']}" if details.get("tensor") else str(place)] = None
        packages = _mapping(details.get("packages"))
        versions = [f"{name} {version}" for name, version in sorted(packages.items())]
        software[
            f"pythia-dynamics {details.get('pythia_dynamics')}, Python {details.get('python')} on "
            f"{details.get('machine')}: {', '.join(versions)}"
        ] = None
        commits |= {int(step): str(commit) for step, commit in _mapping(details.get("commits")).items()}
    times = sorted(str(details["time"]) for details in kinds.values() if "time" in details)
    return Provenance(
        sources=tuple(sources),
        software=tuple(software),
        computed="" if not times else times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}",
        commits=tuple((f"{step:,}", commits[step]) for step in sorted(commits)),
        commands=tuple(_commands(results, kinds)),
    )


def _commands(results: Results, kinds: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    name = results.name
    source = next((str(details["source"]) for details in kinds.values() if details.get("source")), None)
    if source is not None:
        tensor = next(str(details["tensor"]) for details in kinds.values() if details.get("source"))
        named = "" if tensor == UNEMBEDDING else f" --tensor {shlex.quote(tensor)}"
        yield f"pythia-dyn fetch --model {shlex.quote(source)}{named}"
    made: dict[str, None] = {}
    for kind, details in kinds.items():
        if kind.startswith("perplexity-"):
            corpus = details.get("corpus_dataset") or details.get("corpus")
            line = f"pythia-dyn perplexity --model {shlex.quote(str(details.get('location', name)))}"
            line += f" --mode {kind.removeprefix('perplexity-')}"
            line += f" --corpus {shlex.quote(str(corpus))} --limit {details.get('corpus_passages')}"
            line += f" --dtype {details.get('dtype')} --device {details.get('device')}"
            line += " --head ternary" if details.get("head") == "ternary" else ""
        elif kind == "first_last":
            line = f"pythia-dyn portrait --model {shlex.quote(str(details.get('location', name)))}"
            line += f" --phrase {shlex.quote(str(details.get('phrase')))}"
        elif kind == "order-parameter":
            line = "pythia-dyn reproduce order-parameter"
        else:
            line = results.weights().command_for(kind)
            rows = details.get("drop_padding")
            line += f" --drop-padding {rows}" if rows else ""
        made[line] = None
    yield from made
    yield f"pythia-dyn report --model {shlex.quote(name)}"


def spans(steps: Iterable[int]) -> str:
    """Step numbers as text: all of a few, else the number of them and both ends."""
    ordered = sorted(int(step) for step in steps)
    if len(ordered) <= 8:
        return ", ".join(f"{step:,}" for step in ordered)
    return f"{len(ordered)} steps from {ordered[0]:,} to {ordered[-1]:,}"


def number(value: object) -> str:
    """A number for a table: whole ones in full, others to four digits, what is not known as a dash."""
    if value is None or value != value:
        return "–"
    if value in (np.inf, -np.inf):
        return "∞" if value == np.inf else "−∞"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def _provenance(results: Results) -> dict[str, dict[str, Any]]:
    """Of the model, and of the weights that are shown."""
    return {**results.weights().provenance(), **results.model.provenance()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
