"""The report: one page that says what the results say, and works in a browser without a network."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.saved_results import STEPS, save_results, save_table

from pythia_dynamics.claims import scorecard as claims
from pythia_dynamics.claims.evidence import VERDICTS, Evidence
from pythia_dynamics.claims.populations import OVER_MODELS, SeedCounts
from pythia_dynamics.claims.verdict import Claim, Decision, Verdict
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.report import facts
from pythia_dynamics.report.explorer import decode, encode, explorers
from pythia_dynamics.report.page import OverModels, Section, report
from pythia_dynamics.report.verdicts import MARKS, counted, evidence_facts, evidence_line, heading
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.sections import section


class Reader(HTMLParser):
    """The text of a page, its tags, and whether they nest."""

    VOID = ("meta", "input", "br", "link", "img", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    return Reader(page.read_text())


def text_of(read: Reader) -> str:
    return " ".join(" ".join(read.words).split())


# -- what it says ---------------------------------------------------------------------------------------------


def test_the_scorecard_comes_first_and_has_every_claim(models: list[Results], read: Reader) -> None:
    text = text_of(read)
    for results in models:
        for verdict in claims.judge(results):
            assert verdict.statement in text
            assert verdict.test in text
            assert verdict.tolerance in text
            assert verdict.reason[1:] in text
    assert text.index("Scorecard") < text.index("Claims in detail") < text.index("Step by step")
    chips = [attrs for tag, attrs in read.tags if tag == "span" and str(attrs.get("class")).startswith("chip ")]
    # In the scorecard and in the details, of each model and over models.
    assert len(chips) == 2 * (len(claims.CLAIMS) * len(models) + len(OVER_MODELS))


def test_evidence_is_shown_with_each_verdict(models: list[Results], read: Reader) -> None:
    text = text_of(read)
    for results in models:
        for verdict in claims.judge(results):
            told = evidence_facts(verdict, len(STEPS))
            assert bool(told) == (verdict.evidence is not None)
            assert all(" ".join(value.split()) in text for value in told.values())
    assert "corrected for their number (Holm)" in text
    for claim in OVER_MODELS:
        assert claim.statement in text


def judged(word: str) -> Verdict:
    """A verdict with each word."""
    claim = Claim(
        f"is-{word.replace(' ', '-')}", f"It is {word}.", "Fig 1", "test", "none", "The Garden of Forking Paths"
    )
    if word == "not testable here":
        return Verdict.of(claim, Decision("no data", {}))
    effect = 2.0 if word == "supported" else 0.5
    evidence = Evidence("size of it", effect, 1.0, "none of it", 0.01, 0.5 if word == "undecided" else 0.9, 0.25, 3.0)
    return Verdict.of(claim, Decision("reason", {}, evidence, p_corrected=0.04))


def test_the_four_words_are_counted_and_marked(models: list[Results]) -> None:
    verdicts = tuple(map(judged, VERDICTS))
    assert [verdict.verdict for verdict in verdicts] == list(VERDICTS)
    assert set(MARKS) == set(VERDICTS)
    assert counted(verdicts) == "1 supported, 1 not supported, 1 undecided, 1 not testable here"
    assert heading(verdicts).startswith("4 claims: 3 tests with a p-value")
    seeds = (SeedCounts("m", "is-undecided", 7, 9, 1, 0, 0.5, 0.1),)
    part = Section(models[1], verdicts, [], [])
    page = report([part], over=OverModels((judged("undecided"),), seeds))
    text = text_of(Reader(page.replace('id="claim-is-undecided"', "", 1)))
    assert "? undecided" in text
    assert "7 of 9; 1 undecided; mean effect 0.5 ± 0.1" in text
    assert "0.5 (0.25 to 3)" in text
    assert "0.01, corrected 0.04" in text
    assert evidence_line(verdicts[0], 143) == (
        "size of it: 2 (0.25 to 3), at least 1; p 0.01, corrected 0.04; power 0.90; error rates not calibrated"
    )
    assert evidence_line(verdicts[3], 143) == ""


def test_saved_verdicts_have_null_for_what_is_not_known(models: list[Results], tmp_path: Path) -> None:
    claim = Claim("exact", "It is exact.", "Fig 1", "test", "none", "The Garden of Forking Paths")
    results = Results("m", tmp_path)
    claims.save(results, (Verdict.of(claim, Decision("reason", {}, Evidence.exact("size", math.nan, 1.0))),))
    found = claims.read(results)
    assert found is not None
    assert evidence_facts(found[0], 143) == {
        "Statistic": "size",
        "Effect": "–",
        "At least": "1",
        "p": "none, the statistic is exact",
    }
    assert evidence_line(found[0], 143).startswith("size: –, at least 1; p none, the statistic is exact; ")


def test_gaps_oddities_and_provenance_are_told(models: list[Results], read: Reader) -> None:
    text = text_of(read)
    assert "2,000 lost angles, density, " in text
    assert "6,000: c6000" in text
    assert "steps 0 and 1 are <the same>" in text
    assert "equal (harmless)" in text
    assert "pythia-dyn verify --model 'a&b'" in text  # has not been checked
    assert "pythia-dyn msd --model 'a&b'" in text
    assert "pythia-dyn perplexity --mode unmask --model walk --corpus text.jsonl --limit 9" in text
    assert "numpy " in text
    assert "a&b" in text
    assert facts.findings(models[1]) is None
    assert [gap.steps for gap in facts.gaps(models[0])] == ["2,000"]


def test_tables_are_excerpts_with_both_ends(models: list[Results]) -> None:
    tables = {table.title: table for table in facts.tables(models[0])}
    assert len(tables) == 8
    rows = tables["Displacement"].rows
    assert [row[0] for row in rows] == [f"{step:,}" for step in STEPS]
    assert rows[5][1:] == ("–",) * 5  # the gap
    long = save_long_table(models[0], 100)
    (table,) = facts.tables(long)
    assert (len(table.rows), table.rows[0][0], table.rows[-1][0]) == (16, "0", "99,000")
    assert table.note == "16 of 100 steps; all are in msd.csv."


def save_long_table(model: Results, count: int) -> Results:
    results = Results("long", model.path.parent / "other")
    table = (
        model.weights().read_table("msd").isel(step=np.zeros(count, int)).assign_coords(step=np.arange(count) * 1000)
    )
    save_table(results, "msd", table)
    return results


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "–"), (np.nan, "–"), (np.inf, "∞"), (-np.inf, "−∞"), (12345.0, "12,345"), (-3, "−3")),
        *((0.00012345, "0.0001234"), (True, "True"), ("msd", "msd"), (1.5e-18, "1.5e−18")),
    ],
)
def test_numbers_are_written_for_people(value: object, text: str) -> None:
    assert facts.format_number(value) == text


def test_a_model_with_little_still_has_a_page(models: list[Results], tmp_path: Path) -> None:
    results = Results("little", tmp_path)
    save_table(results, "msd", models[0].weights().read_table("msd"))
    text = text_of(Reader(report([section(results)])))
    assert "not testable here" in text
    assert "Displacement (Garden, Fig 3)" in text
    assert "Side by side" not in text
    with pytest.raises(PythiaDynError, match="no results in"):
        report([section(Results("nothing", tmp_path))])
    with pytest.raises(PythiaDynError, match="no model"):
        report([])


# -- what it is -----------------------------------------------------------------------------------------------


def test_it_is_whole_in_itself(read: Reader) -> None:
    assert read.open == []
    for tag, attrs in read.tags:
        assert tag not in ("link", "iframe", "img", "object")
        assert "src" not in attrs
        for name in ("href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,")), attrs
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_ids_are_unique_and_references_meet_them(read: Reader) -> None:
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in read.tags:
        named = f"{attrs.get('for') or ''} {attrs.get('aria-describedby') or ''} {attrs.get('aria-labelledby') or ''}"
        assert set(named.split()) <= set(ids)
        if (attrs.get("href") or "").startswith("#"):
            assert str(attrs["href"])[1:] in ids


def test_four_models_fit_into_five_megabytes(tmp_path: Path) -> None:
    steps = np.arange(1000, 144_000, 1000)
    results = save_results(tmp_path, "full", steps=steps)
    alone = len(report([section(results)]).encode())
    assert alone < 5e6 / 4.6  # and what they have in common, on one more set of axes


def test_values_survive_the_journey() -> None:
    generator = np.random.default_rng(0)
    density = np.where(generator.random((6, 9)) < 0.2, 0.0, 10 ** generator.uniform(-4, 1, (6, 9)))
    density[3] = np.nan
    back = decode(encode(density, log=True), density.shape)
    np.testing.assert_allclose(back, density, rtol=2e-4)
    cosine = generator.uniform(-1, 1, (7, 7))
    cosine[2, 5] = np.nan
    np.testing.assert_allclose(decode(encode(cosine, log=False), cosine.shape), cosine, atol=2e-5)
    for values in (np.full((2, 2), np.nan), np.zeros((2, 2)), np.ones((2, 2))):
        np.testing.assert_array_equal(decode(encode(values, log=True), (2, 2)), values)


def test_a_long_history_is_thinned_and_says_so(models: list[Results], tmp_path: Path) -> None:
    results = Results("long", tmp_path)
    for kind, name, other in (("density", "density", "weight"), ("two_time", "cosine", "other_step")):
        short = models[0].weights().read_zarr(kind)[[name]].isel({"step": [1, 2], other: slice(0, 8)})
        long = short.isel({"step": np.arange(260) % 2})
        if other == "other_step":
            long = long.isel(other_step=np.arange(260) % 8).assign_coords(other_step=np.arange(260) * 10)
        results.weights().write_zarr(kind, long.assign_coords(step=np.arange(260) * 10))
    for explorer in explorers(results, "k"):
        assert len(explorer.steps) == 200
        assert (explorer.steps[0], explorer.steps[-1]) == (0, 2590)
        assert "200 steps are shown" in explorer.caption
