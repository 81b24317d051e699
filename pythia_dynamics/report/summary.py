"""What was found, in sentences: the paragraph on a model at the top of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pythia_dynamics.claims.verdict import VERDICTS, Verdict, VerdictWord
from pythia_dynamics.history.cache import DEMO
from pythia_dynamics.report import facts
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import read_json

__all__ = ["Paragraph", "paragraph"]

_NAMED: tuple[VerdictWord, ...] = ("supported", "not supported", "undecided")
"""Verdicts whose claims are named. Those that are not testable are counted only."""

_NOT_OF_A_WORK = (
    "This is the demo: a small model, trained on a small text to show what the program does. It is not a model of "
    "either work: its verdicts say nothing about the models of the two works."
)

_IN_BRACKETS = re.compile(r"\s*\([^()]*\)")


@dataclass(frozen=True)
class Paragraph:
    """What was found for one model.

    Parameters
    ----------
    opening
        What the model is, where that has to be said, and how many claims have each verdict.
    claims
        By the word of the verdict, the short name and the words of each claim that has it; without empty ones.
    rest
        Sentences on the bifurcation, the stop, the phases, the steps and the verification.
    """

    opening: str
    claims: Mapping[VerdictWord, Sequence[tuple[str, str]]]
    rest: str


def paragraph(results: Results, verdicts: Sequence[Verdict]) -> Paragraph:
    """The paragraph on a model. It says no more than the verdicts and the files of the results do.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    verdicts
        The verdicts on its claims.
    """
    made = {**results.weights().provenance(), **results.model.provenance()}
    opening = [_NOT_OF_A_WORK] if _is_demo(results, made) else []
    named = {
        word: [(verdict.claim, _in_words(verdict.statement)) for verdict in verdicts if verdict.verdict == word]
        for word in _NAMED
    }
    return Paragraph(
        opening=" ".join([*opening, _counts(verdicts)]),
        claims={word: claims for word, claims in named.items() if claims},
        rest=" ".join([*_bifurcation(results), *_stop(made), *_phases(made), *_steps(made), _verified(results)]),
    )


def _is_demo(results: Results, made: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether these are the results of ``pythia-dyn demo``: of its name, and from a directory."""
    places = {str(details.get("source") or details.get("location") or ".") for details in made.values()}
    return results.name == DEMO and any(place.startswith((".", "/")) for place in places)


def _in_words(statement: str) -> str:
    """A claim without what stands in brackets, and without its full stop."""
    return _IN_BRACKETS.sub("", statement).strip().rstrip(".")


def _counts(verdicts: Sequence[Verdict]) -> str:
    words = [verdict.verdict for verdict in verdicts]
    if not words:
        return "No claim was looked at."
    counted = [f"{_are(words.count(word))} {word}" for word in VERDICTS]
    return f"{_number(len(words), 'claim was', 'claims were')} looked at: {_listed(counted)}."


def _bifurcation(results: Results) -> Iterator[str]:
    """A sentence on ``bifurcation.json``."""
    try:
        found = read_json(results.weights().path / "bifurcation.json")
        step, reason, origin = found["step"], str(found["reason"]), list(map(str, found["origin"]))
        undecided = bool(found["undecided"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if step is not None:
        yield f"The detectors {_listed(origin)} agree on a bifurcation at step S = {int(step):,}."
    elif undecided:
        yield f"Whether there is a bifurcation is undecided ({reason})."
    else:
        yield f"No step of a bifurcation was found ({reason})."


def _stop(made: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    details = made.get("stop", {})
    if details.get("summary"):
        yield f"Stopping rule “{details.get('kind')}”: {details['summary']}."


def _phases(made: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    found = made.get("phases", {}).get("facts")
    if not isinstance(found, dict):
        return
    changes = {str(name).replace("_", " "): steps for name, steps in found["changes"].items() if steps}
    count = sum(map(len, changes.values()))
    where = "; ".join(f"{name} at {_step_numbers(steps)}" for name, steps in changes.items())
    sentence = f"{_number(count, 'change point was', 'change points were', none='No')} found in the motion"
    yield f"{sentence}: {where}." if where else f"{sentence}."
    if found["undecided"]:
        many = len(found["undecided"]) > 1
        yield (
            f"{_number(len(found['undecided']), 'change', 'changes')} of the displacement rate, at "
            f"{_step_numbers(found['undecided'])}, {'are' if many else 'is'} undecided, because the learning rate is "
            "not known."
        )


def _steps(made: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """How many steps were measured, and which are missing."""
    measured = sorted({int(step) for details in made.values() for step in _steps_of(details)})
    if len(measured) > 1:
        yield f"The weights were measured at {len(measured)} steps from {measured[0]:,} to {measured[-1]:,}."
    missing = sorted({int(step) for details in made.values() for step in details.get("missing") or {}})
    yield f"Some results lack {_step_numbers(missing)}." if missing else "No step is missing."


def _steps_of(details: Mapping[str, Any]) -> Iterable[int]:
    found = details.get("steps")
    return found if isinstance(found, list) else ()


def _verified(results: Results) -> str:
    """A sentence on ``verify.json``."""
    findings = facts.findings(results)
    if findings is None:
        return "The weights have not been verified."
    faults = list(dict.fromkeys(finding.kind for finding in findings if finding.fault))
    count = sum(finding.fault for finding in findings)
    told = [_number(count, "fault", "faults", none="no") + (f" ({_listed(faults)})" if faults else "")]
    if harmless := len(findings) - count:
        told.append(_number(harmless, "harmless oddity", "harmless oddities"))
    return f"The verification of the weights found {_listed(told)}."


def _step_numbers(steps: Sequence[int]) -> str:
    """Steps in a sentence: ``step 5``, ``steps 5 and 6``, ``12 steps from 5 to 90``."""
    text = facts.format_steps(steps)
    if len(steps) == 1:
        return f"step {text}"
    numbers = text.split(", ")
    return f"steps {_listed(numbers)}" if len(numbers) > 1 else text


def _number(count: int, one: str, many: str, *, none: str = "0") -> str:
    """A number with its noun: ``1 claim``, ``2 claims``, ``no claims``."""
    return f"{f'{count:,}' if count else none} {one if count == 1 else many}"


def _are(count: int) -> str:
    return "none is" if count == 0 else "1 is" if count == 1 else f"{count} are"


def _listed(words: Sequence[str]) -> str:
    """Words in a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
