"""A comparison in words and as a table: every statistic beside independent vectors and beside the floor of seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pythia_dynamics.measures.comparison import BETWEEN, STATISTICS, WITHIN

__all__ = [
    "Floor",
    "Row",
    "barrier_sentence",
    "comparison_cells",
    "comparison_lines",
    "comparison_remarks",
    "comparison_rows",
    "summarise_comparison",
    "told_step",
]

_LEAST_PAIRS = 3
"""Pairs of which a range is told as such. Of fewer, an equal pair lies outside in two of three cases or more."""


@dataclass(frozen=True)
class Floor:
    """One statistic of one comparison beside the same statistic of pairs of seeds.

    Parameters
    ----------
    kind
        Which pairs.
    pairs
        Number n of pairs with a value.
    low, median, high
        Of the pairs.
    ratio
        The statistic over the median of the pairs.
    quantile
        Share of the pairs that are not above the statistic.
    verdict
        ``within`` the range of the pairs, ``above`` or ``below``; ``too few pairs`` for fewer than three.
    outside_by_chance
        2/(n + 1), how often one more pair of the same kind lies outside the range of n independent ones.
    """

    kind: str
    pairs: int
    low: float
    median: float
    high: float
    ratio: float
    quantile: float
    verdict: str
    outside_by_chance: float


@dataclass(frozen=True)
class Row:
    """One statistic at one step.

    Parameters
    ----------
    name, title, units
        As in `STATISTICS`.
    value
        The statistic; NaN where it is not defined.
    independent, independent_sd
        Of independent directions of the same norms; NaN where the statistic has no such reference.
    floors
        Beside the seeds.
    steps
        For two runs, the number of steps by verdict of the first kind of pairs.
    """

    name: str
    title: str
    units: str
    value: float
    independent: float
    independent_sd: float
    floors: tuple[Floor, ...]
    steps: Mapping[str, int]


def comparison_rows(result: xr.Dataset) -> tuple[Row, ...]:
    """The statistics at the last step at which both sides are finite, beside their references.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.

    Returns
    -------
    tuple of Row
        One for each statistic, also for those that are not defined.
    """
    index = told_step(result)
    kinds = [kind for kind in (BETWEEN, WITHIN) if "kind" in result.coords and kind in result["kind"].to_numpy()]
    rows = []
    for name, statistic in STATISTICS.items():
        floors = {kind: [_floor_at(result, name, kind, at) for at in range(result.sizes["step"])] for kind in kinds}
        words = [found.verdict for found in floors.get(BETWEEN, ()) if found is not None]
        rows.append(
            Row(
                name,
                statistic.title,
                statistic.units,
                _at(result, name, index),
                _at(result, f"{name}_independent", index),
                _at(result, f"{name}_sd_independent", index),
                tuple(found for each in floors.values() if (found := each[index]) is not None),
                {word: words.count(word) for word in sorted(set(words))},
            )
        )
    return tuple(rows)


def told_step(result: xr.Dataset) -> int:
    """The index of the step that is told: the last one at which both sides are finite, else the last.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.
    """
    known = np.flatnonzero(np.isfinite(result["norm"].to_numpy()).all(axis=1))
    return int(known[-1]) if len(known) else result.sizes["step"] - 1


def _at(result: xr.Dataset, name: str, index: int) -> float:
    return float(result[name].to_numpy()[index]) if name in result else np.nan


def _floor_at(result: xr.Dataset, name: str, kind: str, index: int) -> Floor | None:
    """A statistic at a step beside the pairs of a kind; None where either is not known."""
    value = _at(result, name, index)
    pairs = result[f"{name}_floor"].to_numpy()[result["kind"].to_numpy() == kind, index]
    pairs = pairs[np.isfinite(pairs)]
    if not len(pairs) or not np.isfinite(value):
        return None
    low, median, high = float(pairs.min()), float(np.median(pairs)), float(pairs.max())
    verdict = "above" if value > high else "below" if value < low else "within"
    return Floor(
        kind=kind,
        pairs=len(pairs),
        low=low,
        median=median,
        high=high,
        ratio=value / median if median else np.nan,
        quantile=float((pairs <= value).mean()),
        verdict=verdict if len(pairs) >= _LEAST_PAIRS else "too few pairs",
        outside_by_chance=2 / (len(pairs) + 1),
    )


def comparison_lines(result: xr.Dataset) -> Iterator[str]:
    """The lines of the table on the screen.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.
    """
    index = told_step(result)
    one, other = (int(result[name][index]) for name in ("step", "step_b"))
    norms = result["norm"].to_numpy()[index]
    for side, norm, step in zip("ab", norms, (one, other), strict=True):
        shape = " × ".join(map(str, result.attrs[f"shape_{side}"]))
        label, at = result.attrs[side], "" if result.attrs["compared"] == "checkpoints" else f" at step {step:,}"
        yield f"{side.upper()}  {label}{at}: {result.attrs[f'tensor_{side}']} ({shape}), norm {norm:.6g}"
    rows = [row for row in comparison_rows(result) if np.isfinite(row.value)]
    head, *lines = _aligned([("", "value", "independent", "floor", ""), *comparison_cells(rows)])
    yield f"  {head}".rstrip()
    for row, cells in zip(rows, lines, strict=True):
        yield f"  {cells}".rstrip()
        for found in row.floors[1:]:
            yield f"      {found.kind}: {_range(found, row.units)}, {found.verdict}"
    yield from (f"  {line}" for line in comparison_remarks(result, rows))
    if result.attrs["compared"] == "runs":
        count = int(np.isfinite(result["norm"].to_numpy()).all(axis=1).sum())
        yield f"  {count} of {result.sizes['step']} common steps compared"
        for row in rows:
            if row.steps:
                words = ", ".join(f"{word} at {count}" for word, count in row.steps.items())
                yield f"  {row.title}, steps beside the floor: {words}"
    for side in "ab":
        for step, reason in [*result.attrs[f"missing_{side}"].items()][:8]:
            yield f"  missing {result.attrs[side]} step {step}: {reason}"


def comparison_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The cells of a table: statistic, value, independent directions, range of the seeds, verdict.

    Parameters
    ----------
    rows
        The result of `comparison_rows`, or a part of it.
    """
    return [(row.title, *_cells(row)) for row in rows]


def comparison_remarks(result: xr.Dataset, rows: Sequence[Row]) -> Iterator[str]:
    """What the floor is, and what cannot be compared.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.
    rows
        The rows of it that are shown.
    """
    counts = sorted({found.pairs for row in rows for found in row.floors[:1]})
    chance = f"; one more pair is outside by chance in {2 / (counts[-1] + 1):.0%}" if counts else ""
    yield f"floor: {result.attrs['floor']}{chance}"
    if result.attrs["not_compared"]:
        yield f"not compared: {result.attrs['not_compared']}"


def _cells(row: Row) -> tuple[str, str, str, str]:
    """Value, independent directions, range of the seeds, verdict."""
    reference = ""
    if np.isfinite(row.independent):
        reference = _number(row.independent, row.units)
        reference += f" ± {row.independent_sd:.2g}" if np.isfinite(row.independent_sd) else ""
    if not row.floors:
        return _number(row.value, row.units, unit=True), reference, "", ""
    found = row.floors[0]
    ratio = f", {found.ratio:.3g} × median" if np.isfinite(found.ratio) else ""
    return _number(row.value, row.units, unit=True), reference, _range(found, row.units), f"{found.verdict}{ratio}"


def _range(found: Floor, units: str) -> str:
    return f"{_number(found.low, units)} to {_number(found.high, units)} ({found.pairs})"


def _number(value: float, units: str, *, unit: bool = False) -> str:
    """A value of a statistic: degrees with two decimals or, where small, two digits; else four digits."""
    if units == "degree":
        text = f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
        return f"{text}°" if unit else text
    return f"{value:.4g}"


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows of a table with columns of equal width, the first and the last to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        first, *middle, last = (
            cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join([first, *middle, last])


def summarise_comparison(result: xr.Dataset) -> str:
    """The comparison in one sentence: the angle, or the Kolmogorov–Smirnov distance of two shapes, and the floor.

    Parameters
    ----------
    result
        The result of `pythia_dynamics.compare`.
    """
    rows = {row.name: row for row in comparison_rows(result)}
    row = rows["angle"] if np.isfinite(rows["angle"].value) else rows["ks"]
    if not np.isfinite(row.value):
        return f"{result.attrs['a']} and {result.attrs['b']}: nothing to compare at any step"
    text = f"{row.title} {_number(row.value, row.units, unit=True)}"
    if row.floors:
        found = row.floors[0]
        unit = "°" if row.units == "degree" else ""
        text += f", {found.kind} {_number(found.low, row.units)} to {_number(found.high, row.units)}{unit}"
        text += f" ({found.pairs} pairs): {_VERDICTS[found.verdict]}"
    else:
        text += f"; {result.attrs['floor']}"
    if np.isfinite(row.independent):
        reference = f"{_number(row.independent, row.units, unit=True)} ± {row.independent_sd:.2g}°"
        text += f"; independent vectors {reference}"
    return text


_VERDICTS = {
    "within": "within the floor",
    "above": "above the floor",
    "below": "below the floor",
    "too few pairs": "too few pairs for a verdict",
}


def barrier_sentence(line: xr.Dataset) -> str:
    """The loss barrier in words.

    Parameters
    ----------
    line
        The result of `pythia_dynamics.interpolation`.
    """
    found = line.attrs
    if not found["barrier"] > 0:
        high = f" (95 %: at most {found['barrier_high']:.4g})" if np.isfinite(found["barrier_high"]) else ""
        return f"no loss barrier: the loss is nowhere above the line between the ends{high}, {found['sentences']} texts"
    return (
        f"loss barrier {found['barrier']:.4g} ± {found['barrier_se']:.2g} nats per token at α = "
        f"{found['barrier_alpha']:.3g} (95 %: {found['barrier_low']:.4g} to {found['barrier_high']:.4g}, "
        f"{found['sentences']} texts)"
    )
