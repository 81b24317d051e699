"""The report: one page that says what the results say, and works in a browser without a network."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
from pythia_dynamics.studies.sections import section, write_report

FINDING = {"kind": "equal", "steps": [0, 1], "message": "steps 0 and 1 are <the same>", "fault": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    directory = tmp_path_factory.mktemp("results")
    made = [save_results(directory, "walk"), save_results(directory, "a&b", 1, only=("msd", "order"))]
    checked = {"verify": [{"subject": "embed_out.weight", "findings": [FINDING]}]}
    (made[0].path / "verify.json").write_text(json.dumps(checked))
    return made


@pytest.fixture(scope="module")
def page(models: list[Results], tmp_path_factory: pytest.TempPathFactory) -> Path:
    told: list[tuple[int, int]] = []
    path = write_report(
        models,
        tmp_path_factory.mktemp("page") / "report.html",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    return path


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
    assert "2,000 lost density, " in text
    assert "6,000: c6000" in text
    assert "steps 0 and 1 are <the same>" in text
    assert "equal (harmless)" in text
    assert "pythia-dyn verify --model a&b" in text  # has not been checked
    assert "pythia-dyn msd --model 'a&b'" in text
    assert "pythia-dyn perplexity --model walk --mode unmask --corpus text.jsonl --limit 9" in text
    assert "numpy " in text
    assert "a&b" in text
    assert facts.findings(models[1]) is None
    assert [gap.steps for gap in facts.gaps(models[0])] == ["2,000"]


def test_tables_are_excerpts_with_both_ends(models: list[Results]) -> None:
    tables = {table.title: table for table in facts.tables(models[0])}
    assert len(tables) == 7
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


# -- in a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser that PYTHIA_DYN_BROWSER names, or one that is installed; without the variable none is needed."""
    named = os.environ.get("PYTHIA_DYN_BROWSER")
    if named is None:
        pytest.importorskip("playwright", reason="playwright is not installed: the page is not tried out")
    from playwright import sync_api

    installed = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=arguments)
        except sync_api.Error as error:
            if named:
                raise
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Tab:
    """The page in a tab, and whatever it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 900}, "reduced_motion": "reduce", **options}
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []
            assert len([url for url in self.requests if url.startswith("file:")]) == 1


def test_it_loads_quietly_and_asks_for_nothing(chromium: Any, page: Path) -> None:
    with Tab(chromium, page) as tab:
        assert tab.locator("h1").inner_text() == "Training dynamics of walk, a&b"
        assert tab.locator("svg[role=img][aria-label]").count() == tab.locator("figure svg").count() > 20


@pytest.mark.parametrize(("kind", "name"), [("density", "weight"), ("cosine", "other step")])
def test_the_slider_moves_by_key_and_by_pointer(
    chromium: Any, page: Path, models: list[Results], kind: str, name: str
) -> None:
    with Tab(chromium, page) as tab:
        slider, curve = tab.locator(f"#m1-{kind}-step"), tab.locator(f"#keep-m1-{kind}-curve path")
        marker = tab.locator(f"#keep-m1-{kind}-step path")
        seen = set()
        slider.focus()
        for key, step in (("End", 6000), ("ArrowLeft", 5000), ("Home", 0), ("ArrowRight", 1)):
            tab.keyboard.press(key)
            assert tab.locator(f"output[for=m1-{kind}-step]").inner_text() == f"{step:,}"
            assert slider.get_attribute("aria-valuetext") == f"step {step:,}"
            seen.add((curve.get_attribute("d"), marker.get_attribute("d")))
        assert len(seen) == 4
        # A click in the middle of the map chooses the step that is there.
        tab.locator(f"#m1-{kind} svg").scroll_into_view_if_needed()
        box = tab.locator(f"#m1-{kind} svg").bounding_box()
        tab.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
        chosen = int(tab.locator(f"output[for=m1-{kind}-step]").inner_text().replace(",", ""))
        assert chosen in (1000, 3000, 4000)
        tab.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.2)
        read = tab.locator(f"#m1-{kind}-read").inner_text()
        assert re.fullmatch(rf"step [\d,]+, {name} [^:]+: {kind} \S.*", read)


def test_the_section_is_what_was_measured(chromium: Any, page: Path, models: list[Results]) -> None:
    cosine = models[0].weights().read_zarr("two_time")["cosine"]
    with Tab(chromium, page) as tab:
        tab.locator("#m1-cosine-step").focus()
        tab.keyboard.press("Home")
        tab.locator("#m1-cosine .plot").focus()
        tab.keyboard.press("End")
        text = tab.locator("#m1-cosine-read").inner_text()
        assert text.startswith("other step 6,000: cosine with the chosen step: ")
        assert float(text.rpartition(" ")[2]) == pytest.approx(float(cosine[0, -1]), abs=1e-3)
        # The gap is said to be one.
        tab.locator("#m1-cosine-step").focus()
        for _ in range(5):
            tab.keyboard.press("ArrowRight")
        tab.locator("#m1-cosine .plot").focus()
        tab.keyboard.press("End")
        assert tab.locator("#m1-cosine-read").inner_text().endswith("not known")


def test_values_are_read_off_a_figure(chromium: Any, page: Path, models: list[Results]) -> None:
    table = models[0].weights().read_table("msd")
    with Tab(chromium, page) as tab:
        tab.locator("#m1-msd .plot").focus()
        tab.keyboard.press("End")
        text = tab.locator("#m1-msd-read").inner_text()
        assert text.startswith("training step 6,000: MSD(τ) (weight²): demeaned over weights (Eq. 4) ")
        said = float(text.split("(Eq. 4) ")[1].split(";")[0])
        assert said == pytest.approx(float(table["msd"][-1]), rel=1e-3)
        tab.keyboard.press("Escape")
        assert tab.locator("#m1-msd-read").inner_text() == ""
        tab.locator("#m1-msd svg").scroll_into_view_if_needed()
        box = tab.locator("#m1-msd svg").bounding_box()
        tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4)
        assert tab.locator("#m1-msd-read").inner_text().startswith("training step ")
        assert tab.locator("#m1-msd .guide").count() == 1


def test_a_verdict_leads_to_its_numbers(chromium: Any, page: Path) -> None:
    with Tab(chromium, page) as tab:
        details = tab.locator("#claim-msd-peak")
        assert details.get_attribute("open") is None
        tab.locator('.score a[href="#claim-msd-peak"]').first.click()
        tab.wait_for_function("document.querySelector('#claim-msd-peak').open")
        assert details.locator("dl").first.is_visible()


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_never_scrolls_sideways(chromium: Any, page: Path, width: int) -> None:
    with Tab(chromium, page, viewport={"width": width, "height": 800}) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("window.scrollTo(500, 0), window.scrollX") == 0


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return light(colour);
    }
    return 1;
  };
  const ratio = (ink, paper) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  const nodes = document.querySelectorAll("p, a, dd, dt, th, td, figcaption, summary, .chip, h1, h2, h3");
  const figures = document.querySelectorAll("#m1-msd .plot text");
  return [
    Math.min(...[...nodes].map((node) => ratio(light(getComputedStyle(node).color), back(node)))),
    Math.min(...[...figures].map((node) => ratio(light(getComputedStyle(node).fill), back(node.closest("figure"))))),
  ];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_by_day_and_by_night(chromium: Any, page: Path, scheme: str) -> None:
    with Tab(chromium, page, color_scheme=scheme) as tab:
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        words, figures = tab.evaluate(CONTRAST)
        assert words >= 4.5
        assert figures >= 4.5


def test_it_prints_with_all_claims_open(chromium: Any, page: Path) -> None:
    with Tab(chromium, page, color_scheme="dark") as tab:
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert tab.locator("details.claim:not([open])").count() == 0
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert tab.locator("details.claim[open]").count() == 0
        assert tab.pdf(format="A4")[:5] == b"%PDF-"
