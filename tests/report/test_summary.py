"""The paragraph at the top of the page: correct for none, one and many, and no more than the verdicts say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pythia_dynamics.claims.evidence import Evidence
from pythia_dynamics.claims.verdict import Claim, Decision, Verdict
from pythia_dynamics.report.summary import paragraph
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import write_json


def verdict(number: int, word: str) -> Verdict:
    claim = Claim(f"c{number}", f"Claim {number} holds (paper: 5).", "Fig", "t", "none", "The Garden of Forking Paths")
    if word == "not testable here":
        return Verdict.of(claim, Decision("no data", {}))
    effect = {"supported": 2.0, "not supported": 0.1, "undecided": 0.5}[word]
    evidence = Evidence("size", effect, 1.0, "none", 0.01, 0.3 if word == "undecided" else 0.9, 0.05, 3.0)
    return Verdict.of(claim, Decision("reason", {}, evidence, p_corrected=0.02))


def verdicts(**counts: int) -> list[Verdict]:
    words = [word.replace("_", " ") for word, count in counts.items() for _ in range(count)]
    made = [verdict(number, word) for number, word in enumerate(words)]
    assert [one.verdict for one in made] == words
    return made


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, "No claim was looked at."),
        (
            {"supported": 1},
            "1 claim was looked at: 1 is supported, none is not supported, none is undecided and none is not testable "
            "here.",
        ),
        (
            {"supported": 2, "not_supported": 1, "undecided": 3, "not_testable_here": 1},
            "7 claims were looked at: 2 are supported, 1 is not supported, 3 are undecided and 1 is not testable here.",
        ),
    ],
)
def test_verdicts_are_counted(tmp_path: Path, counts: dict[str, int], text: str) -> None:
    made = verdicts(**counts)
    found = paragraph(Results("mine", tmp_path), made)
    assert found.opening == text
    named = {word: [name for name, _ in claims] for word, claims in found.claims.items()}
    for word in ("supported", "not supported", "undecided"):
        assert named.get(word, []) == [one.claim for one in made if one.verdict == word]
    assert "not testable here" not in named
    assert all(words == f"Claim {name[1:]} holds" for claims in found.claims.values() for name, words in claims)


def test_a_model_without_anything(tmp_path: Path) -> None:
    assert paragraph(Results("mine", tmp_path), []).rest == "No step is missing. The weights have not been verified."


def test_the_demo_is_no_model_of_either_work(tmp_path: Path) -> None:
    results = Results("demo", tmp_path / "results")
    assert "demo" not in paragraph(results, []).opening  # nothing says where it is from
    results.of("w").record("msd", {"source": "EleutherAI/demo", "tensor": "w"})
    assert "demo" not in paragraph(results, []).opening
    results.of("w").record("msd", {"source": str(tmp_path / "cache" / "demo"), "tensor": "w"})
    assert "It is not a model of either work: " in paragraph(results, []).opening
    other = Results("mine", tmp_path / "results")
    other.of("w").record("msd", {"source": str(tmp_path / "cache" / "mine"), "tensor": "w"})
    assert "either work" not in paragraph(other, []).opening


def rest(results: Results) -> str:
    return paragraph(results, []).rest


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            {"step": 81_000, "origin": ["msd", "modes"], "reason": "", "undecided": False},
            "The detectors msd and modes agree on a bifurcation at step S = 81,000.",
        ),
        (
            {"step": None, "origin": [], "reason": "noise hides it", "undecided": True},
            "Whether there is a bifurcation is undecided (noise hides it).",
        ),
        (
            {"step": None, "origin": [], "reason": "no detector found a step", "undecided": False},
            "No step of a bifurcation was found (no detector found a step).",
        ),
    ],
)
def test_the_bifurcation(tmp_path: Path, found: dict[str, object], text: str) -> None:
    results = Results("mine", tmp_path)
    results.of("w").record("msd", {"tensor": "w"})
    write_json(results.of("w").path / "bifurcation.json", found)
    assert rest(results).startswith(text)


@pytest.mark.parametrize(
    ("changes", "undecided", "text"),
    [
        ([[], []], [], "No change points were found in the motion. "),
        ([[5000], []], [], "1 change point was found in the motion: displacement rate at step 5,000. "),
        (
            [[5000, 7000], [1]],
            [9],
            "3 change points were found in the motion: displacement rate at steps 5,000 and 7,000; direction at step "
            "1. 1 change of the displacement rate, at step 9, is undecided, because the learning rate is not known. ",
        ),
        (
            [[], []],
            [8, 9],
            "No change points were found in the motion. 2 changes of the displacement rate, at steps 8 and 9, are "
            "undecided, because the learning rate is not known. ",
        ),
    ],
)
def test_the_phases_and_the_stop(tmp_path: Path, changes: list[list[int]], undecided: list[int], text: str) -> None:
    results = Results("mine", tmp_path)
    facts = {"changes": dict(zip(("displacement_rate", "direction"), changes, strict=True)), "undecided": undecided}
    results.of("w").record("stop", {"tensor": "w", "kind": "msd", "summary": "the rule stops at step 7 of 9"})
    results.of("w").record("phases", {"tensor": "w", "facts": facts})
    assert rest(results).startswith(f"Stopping rule “msd”: the rule stops at step 7 of 9. {text}")


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ([], "No step is missing."),
        ([2000], "Some results lack step 2,000."),
        ([2000, 1], "Some results lack steps 1 and 2,000."),
        ([1, 2, 3], "Some results lack steps 1, 2 and 3."),
        (range(1, 13), "Some results lack 12 steps from 1 to 12."),
    ],
)
def test_the_steps(tmp_path: Path, missing: list[int], text: str) -> None:
    results = Results("mine", tmp_path)
    made = {"tensor": "w", "steps": [1, 2, 3000], "missing": {str(step): "lost" for step in missing}}
    results.of("w").record("msd", made)
    assert rest(results).startswith(f"The weights were measured at 3 steps from 1 to 3,000. {text} ")


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ([], "found no faults."),
        ([("equal", False)], "found no faults and 1 harmless oddity."),
        ([("equal", True)], "found 1 fault (equal)."),
        (
            [("equal", True), ("damaged", True), ("damaged", True), ("equal", False), ("equal", False)],
            "found 3 faults (equal and damaged) and 2 harmless oddities.",
        ),
    ],
)
def test_the_verification(tmp_path: Path, kinds: list[tuple[str, bool]], text: str) -> None:
    results = Results("mine", tmp_path)
    findings = [{"kind": kind, "steps": [1, 2], "message": "m", "fault": fault} for kind, fault in kinds]
    write_json(results.path / "verify.json", {"verify": [{"subject": "w", "findings": findings}]})
    assert rest(results).endswith(f"The verification of the weights {text}")


def test_it_stands_at_the_top_of_the_page(page: Path) -> None:
    text = page.read_text()
    main = text[text.index("<main") :]
    (section,) = re.findall(r'<section id="found".*?</section>', main, re.DOTALL)
    assert main.index(section) < main.index('id="scorecard"')
    assert section.count('<p class="found">') == 2  # a paragraph for each model
    assert "Some results lack step 2,000." in section
    for claim in re.findall(r'href="#(claim-[^"]+)"', section):
        assert f'id="{claim}"' in text
    assert json.dumps("None")[1:-1] not in section
