"""Verdicts in words, for the command line and the page: marks, counts, evidence, and how often the test is wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from pythia_dynamics.claims.verdict import VERDICTS, Verdict, VerdictWord
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures.measure import Table
from pythia_dynamics.report.facts import format_number
from pythia_dynamics.results.folder import Results

__all__ = ["MARKS", "counted", "evidence_facts", "evidence_line", "heading", "p_values", "records_of"]

MARKS: Mapping[VerdictWord, str] = {"supported": "✓", "not supported": "✗", "undecided": "?", "not testable here": "–"}
"""Marks beside the words of the verdicts."""

_USUAL_RECORDS = 143
"""Steps of a history whose number is not known: those of both papers."""

_RUNS = Table(("model", "seed", "step"))
"""The keys of the table ``runs.csv`` of the blog's models."""


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts have each word: ``1 supported, 3 not supported, 2 undecided, 4 not testable here``.

    Parameters
    ----------
    verdicts
        The verdicts.
    """
    found = Counter(verdict.verdict for verdict in verdicts)
    return ", ".join(f"{found[word]} {word}" for word in VERDICTS)


def heading(verdicts: Sequence[Verdict]) -> str:
    """How many claims a scorecard has, how many tests it holds, and how their p-values are corrected.

    Parameters
    ----------
    verdicts
        The verdicts of one scorecard.
    """
    tests = sum(verdict.p_corrected is not None for verdict in verdicts)
    untestable = sum(verdict.evidence is None for verdict in verdicts)
    without = len(verdicts) - tests - untestable
    kinds = f"{tests} tests with a p-value, corrected for their number (Holm)"
    return f"{len(verdicts)} claims: {kinds}; {without} without a p-value; {untestable} not testable"


def records_of(results: Results) -> int:
    """The number of steps of a history, for which error rates are looked up.

    Parameters
    ----------
    results
        The results of a model, or of the blog's models together.
    """
    try:
        if (results.path / "runs.csv").is_file():
            return int(results.read_table("runs", _RUNS).sizes["step"])
        return int(results.weights().read_table("msd").sizes["step"])
    except PythiaDynError:
        return _USUAL_RECORDS


def evidence_facts(verdict: Verdict, records: int) -> dict[str, str]:
    """The evidence of a verdict in words, by heading; empty for a claim that cannot be tested.

    Parameters
    ----------
    verdict
        The verdict.
    records
        Number of steps of the history, see `records_of`.
    """
    from pythia_dynamics.claims.error_rates import error_rates_of

    evidence = verdict.evidence
    if evidence is None:
        return {}
    number = {
        name: math.nan if evidence[name] is None else float(evidence[name])  # JSON has null for NaN
        for name in ("effect", "least", "low", "high", "p", "power")
    }
    is_exact = math.isnan(number["p"])
    effect = format_number(number["effect"])
    if not is_exact and math.isfinite(number["low"]) and math.isfinite(number["high"]):
        effect += f" ({format_number(number['low'])} to {format_number(number['high'])})"
    told = {
        "Statistic": str(evidence["statistic"]),
        "Effect": effect,
        "At most" if evidence["at_most"] else "At least": format_number(number["least"]),
    }
    if not is_exact:
        told["Null"] = str(evidence["null"])
    told["p"] = p_values(verdict)
    if not is_exact:
        told["Power"] = "not known" if math.isnan(number["power"]) else f"{number['power']:.2f}"
    rates = error_rates_of(verdict.claim, records)
    if rates is not None:
        told["Error rates"] = rates.text
    return told


def evidence_line(verdict: Verdict, records: int) -> str:
    """The evidence of a verdict in one line; empty for a claim that cannot be tested.

    Parameters
    ----------
    verdict, records
        As for `evidence_facts`.
    """
    told = evidence_facts(verdict, records)
    if not told:
        return ""
    least = next(name for name in ("At most", "At least") if name in told)
    parts = [f"{told['Statistic']}: {told['Effect']}, {least.lower()} {told[least]}"]
    parts.append(f"p {told['p']}" + (f"; power {told['Power']}" if "Power" in told else ""))
    return "; ".join([*parts, told.get("Error rates", "error rates not calibrated")])


def p_values(verdict: Verdict) -> str:
    """p of a verdict in words, and p corrected for the tests of its scorecard, on which the word rests.

    Parameters
    ----------
    verdict
        The verdict, of a claim that can be tested.
    """
    evidence = verdict.evidence or {}
    if evidence.get("p") is None:
        return "none, the statistic is exact" if evidence.get("power") == 1 else "not known"
    told = _probability(float(evidence["p"]))
    return told if verdict.p_corrected is None else f"{told}, corrected {_probability(verdict.p_corrected)}"


def _probability(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
