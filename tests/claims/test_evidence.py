"""The word that follows from evidence, and the correction for several tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pythia_dynamics.claims.evidence import Evidence, holm
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError, Verdict, corrected, decision_of
from pythia_dynamics.errors import PythiaDynError, UnknownNameError


def evidence(effect: float, p: float = 0.001, power: float = 0.9, **other: Any) -> Evidence:
    return Evidence("a statistic", effect, 0.1, "a null", p=p, power=power, **other)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (evidence(0.2), "supported"),
        (evidence(0.1), "supported"),
        (evidence(0.1 - 1e-12), "supported"),  # rounding
        (evidence(0.2, p=0.05), "supported"),
        (evidence(0.2, p=0.051), "undecided"),  # large, and noise may be as large
        (evidence(0.05, p=0.5), "not supported"),
        (evidence(0.05, p=1e-9), "not supported"),  # certain, and too small to count
        (evidence(0.05, p=0.5, power=0.79), "undecided"),  # nobody could have seen it
        (evidence(0.05, p=0.5, power=math.nan), "undecided"),
        (evidence(0.05, p=0.5, power=0.1, low=0.0, high=0.09), "not supported"),  # the interval excludes it
        (evidence(math.nan, p=1.0), "not supported"),
        (evidence(0.05, at_most=True), "supported"),
        (evidence(0.05, p=0.2, at_most=True), "undecided"),
        (evidence(0.2, p=0.9, at_most=True), "not supported"),
        (evidence(0.2, p=0.9, power=0.2, low=0.05, high=0.4, at_most=True), "undecided"),
        (evidence(0.2, p=0.9, power=0.2, low=0.15, high=0.4, at_most=True), "not supported"),
        (Evidence.exact("", 0.2, 0.1), "supported"),
        (Evidence.exact("", 0.05, 0.1), "not supported"),
        (Evidence.exact("", 0.05, 0.1, at_most=True), "supported"),
        (Evidence.exact("", 0.2, 0.1, at_most=True), "not supported"),
    ],
)
def test_the_word_follows_from_the_evidence(found: Evidence, word: str) -> None:
    assert found.word() == word


def test_a_probability_lies_between_0_and_1() -> None:
    with pytest.raises(PythiaDynError, match="is a probability"):
        evidence(1, p=1.1)
    with pytest.raises(PythiaDynError, match="is a probability"):
        evidence(1, power=-0.1)


def test_holm_is_as_published() -> None:
    """Against the definition: reject while p_(i) ≤ level / (m − i)."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = generator.random(6) ** 3
        for level in (0.01, 0.05, 0.2):
            rejected = set()
            for rank, place in enumerate(np.argsort(values)):
                if values[place] > level / (6 - rank):
                    break
                rejected.add(int(place))
            assert {i for i, p in enumerate(holm(values.tolist())) if p <= level} == rejected


def test_holm_leaves_exact_statistics_out() -> None:
    first, exact, last = holm([0.01, math.nan, 0.04])
    assert (first, last) == (0.02, 0.04)
    assert math.isnan(exact)
    assert holm([]) == ()
    assert holm([0.9, 0.8]) == (1.0, 1.0)


def test_a_scorecard_corrects_for_its_tests() -> None:
    decisions = [Decision("", {}, evidence(0.2, p=p)) for p in (0.001, 0.03, 0.04, 0.6)]
    assert [decision.verdict for decision in decisions] == ["supported"] * 3 + ["undecided"]
    exact, untestable = Decision("", {}, Evidence.exact("", 1, 0)), Decision("", {})
    found = corrected([*decisions, exact, untestable])
    assert [decision.verdict for decision in found] == [
        *("supported", "undecided", "undecided", "undecided", "supported", "not testable here")
    ]
    assert found[0].p_corrected == pytest.approx(0.004)
    assert found[4].p_corrected is None


def test_what_stands_beside_the_evidence() -> None:
    assert Decision("", {}, evidence(0.2), refuted=True).verdict == "not supported"
    assert Decision("", {}, evidence(0.2), open=True).verdict == "undecided"
    assert Decision("", {}, evidence(0.01), open=True).verdict == "undecided"


def test_a_test_that_cannot_decide() -> None:
    def test(data: int) -> Decision:
        raise NotTestableError("no table", {"steps": data})

    found = decision_of(test, 3)
    assert (found.verdict, found.reason, found.numbers) == ("not testable here", "no table", {"steps": 3})


def test_a_verdict_is_flat() -> None:
    claim = Claim("a-claim", "It is so.", "Fig 1", "a test", "10 %", "The Garden of Forking Paths", remark="or not")
    verdict = Verdict.of(claim, Decision("because", {"n": 1}, evidence(0.2), p_corrected=0.02))
    assert (verdict.claim, verdict.verdict, verdict.remark) == ("a-claim", "supported", "or not")
    assert verdict.evidence is not None
    assert verdict.evidence["effect"] == 0.2
    assert verdict.p_corrected == 0.02
    with pytest.raises(UnknownNameError):
        Verdict("a", "The Garden of Forking Paths", "", "maybe", "", {}, "", "", "")  # type: ignore[arg-type]
