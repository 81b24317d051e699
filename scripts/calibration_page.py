"""Write docs/calibration.md from the tables of the calibration in the package.

python scripts/calibration_page.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pythia_dynamics.claims.error_rates import (
    COMMITTED,
    LEAST_RUNS,
    CalibrationTable,
    ErrorRates,
    Rate,
    error_rates,
    load_calibration,
)

KEPT = "All promises are kept."
FEW = (
    f"No promise is broken for certain. Whether they are kept takes {LEAST_RUNS} histories of each kind; with fewer, "
    "the intervals say what is known."
)

PAGE = Path(__file__).parent.parent / "docs" / "calibration.md"

HEAD = """# How often the verdicts are wrong

Every verdict and detector of this package is run on histories and curves of which it is known what is true: walks,
drifts, rotations, splits to two values, losses with and without a kink, and others. *Wrong* is how often a claim is
supported where it is false, *seen* how often it is supported where it is true, each with Wilson's 95 % interval. What
is promised: wrong in at most 5 % on every kind, upper end of the interval at most 8 %; seen in at least 80 %, or else
undecided. Histories in which a claim is not testable, and kinds for which it is neither true nor false, are not
counted.

`pythia-dyn calibrate --runs 200 --steps 143 --out calibration.json` makes such a table, of any number of steps and
weights; the library is `pythia_dynamics.claims.calibration`. This page is written by `scripts/calibration_page.py`.
"""


def page(tables: Sequence[CalibrationTable]) -> str:
    """The page of some tables."""
    return "\n".join([HEAD, *(line for table in tables for line in _section(table)), ""])


def _section(table: CalibrationTable) -> list[str]:
    settings, rates = table.settings, error_rates(table)
    lines = [
        f"## {settings.records} steps, {settings.weights:,} weights",
        "",
        f"{settings.runs} histories or curves of each kind, seeds from {settings.seed:,} on, version {table.version}.",
        "",
        "| claim or detector | wrong, at worst | on | seen, at least | on | undecided there |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_summary(each) for each in rates.values()),
        "",
    ]
    broken = [f"- {sentence}" for each in rates.values() for sentence in each.broken]
    lines += ["Not as promised:", "", *broken, ""] if broken else [KEPT if settings.runs >= LEAST_RUNS else FEW, ""]
    for name, each in rates.items():
        lines += [f"### {name}, {settings.records} steps", "", *_rates(each), ""]
    lines += [f"### The kinds of histories and curves, {settings.records} steps", ""]
    lines += [f"- `{truth.name}`: {truth.description}" for truth in table.truths]
    return [*lines, ""]


def _share(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.supported} of {rate.runs} ({low:.1%} to {high:.1%})"


def _summary(rates: ErrorRates) -> str:
    worst, weakest = rates.worst, rates.weakest
    wrong = f"{_share(worst)} | `{worst.truth}`" if worst else "– | –"
    seen = f"{_share(weakest)} | `{weakest.truth}` | {weakest.undecided}" if weakest else "– | – | –"
    return f"| {rates.judged} | {wrong} | {seen} |"


def _rates(rates: ErrorRates) -> list[str]:
    """All rates of a claim. Kinds on which it is never supported, nor undecided, are named in one line."""
    lines = [
        "| kind | true? | supported | not supported | undecided | not testable |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    silent = [rate for rate in rates.false if not rate.supported and not rate.undecided and not rate.untestable]
    shown = [(rate, "no") for rate in rates.false if rate not in silent] + [(rate, "yes") for rate in rates.true]
    lines += [
        f"| `{rate.truth}` | {true} | {_share(rate)} | {rate.refuted} | {rate.undecided} | {rate.untestable} |"
        for rate, true in shown
    ]
    if silent:
        lines += [
            "",
            "False, and never supported nor undecided: " + ", ".join(f"`{rate.truth}`" for rate in silent) + ".",
        ]
    if rates.untestable:
        lines += ["", "Not testable: " + ", ".join(f"`{name}`" for name in rates.untestable) + "."]
    return lines if shown else lines[3:]


if __name__ == "__main__":
    PAGE.write_text(page([load_calibration(records) for records in sorted(COMMITTED, reverse=True)]), encoding="utf-8")
    print(PAGE)
