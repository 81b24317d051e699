"""The page in a browser: it is read, printed, and used by pointer and by key."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from support.contrast import CONTRAST

from pythia_dynamics.results.folder import Results


def test_it_loads_quietly_and_asks_for_nothing(tab: Callable[..., Any], page: Path) -> None:
    with tab(page) as shown:
        assert shown.locator("h1").inner_text() == "Training dynamics of walk, a&b"
        assert shown.locator("svg[role=img][aria-label]").count() == shown.locator("figure svg").count() > 20


@pytest.mark.parametrize(("kind", "name"), [("density", "weight"), ("cosine", "other step")])
def test_the_slider_moves_by_key_and_by_pointer(
    tab: Callable[..., Any], page: Path, models: list[Results], kind: str, name: str
) -> None:
    with tab(page) as shown:
        slider, curve = shown.locator(f"#m1-{kind}-step"), shown.locator(f"#keep-m1-{kind}-curve path")
        marker = shown.locator(f"#keep-m1-{kind}-step path")
        seen = set()
        slider.focus()
        for key, step in (("End", 6000), ("ArrowLeft", 5000), ("Home", 0), ("ArrowRight", 1)):
            shown.keyboard.press(key)
            assert shown.locator(f"output[for=m1-{kind}-step]").inner_text() == f"{step:,}"
            assert slider.get_attribute("aria-valuetext") == f"step {step:,}"
            seen.add((curve.get_attribute("d"), marker.get_attribute("d")))
        assert len(seen) == 4
        # A click in the middle of the map chooses the step that is there.
        shown.locator(f"#m1-{kind} svg").scroll_into_view_if_needed()
        box = shown.locator(f"#m1-{kind} svg").bounding_box()
        shown.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.25)
        chosen = int(shown.locator(f"output[for=m1-{kind}-step]").inner_text().replace(",", ""))
        assert chosen in (1000, 3000, 4000)
        shown.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.2)
        read = shown.locator(f"#m1-{kind}-read").inner_text()
        assert re.fullmatch(rf"step [\d,]+, {name} [^:]+: {kind} \S.*", read)


def test_the_section_is_what_was_measured(tab: Callable[..., Any], page: Path, models: list[Results]) -> None:
    cosine = models[0].weights().read_zarr("two_time")["cosine"]
    with tab(page) as shown:
        shown.locator("#m1-cosine-step").focus()
        shown.keyboard.press("Home")
        shown.locator("#m1-cosine .plot").focus()
        shown.keyboard.press("End")
        text = shown.locator("#m1-cosine-read").inner_text()
        assert text.startswith("other step 6,000: cosine with the chosen step: ")
        assert float(text.rpartition(" ")[2]) == pytest.approx(float(cosine[0, -1]), abs=1e-3)
        # The gap is said to be one.
        shown.locator("#m1-cosine-step").focus()
        for _ in range(5):
            shown.keyboard.press("ArrowRight")
        shown.locator("#m1-cosine .plot").focus()
        shown.keyboard.press("End")
        assert shown.locator("#m1-cosine-read").inner_text().endswith("not known")


def test_values_are_read_off_a_figure(tab: Callable[..., Any], page: Path, models: list[Results]) -> None:
    table = models[0].weights().read_table("msd")
    with tab(page) as shown:
        shown.locator("#m1-msd .plot").focus()
        shown.keyboard.press("End")
        text = shown.locator("#m1-msd-read").inner_text()
        assert text.startswith("training step 6,000: MSD(τ) (weight²): demeaned over weights (Eq. 4) ")
        said = float(text.split("(Eq. 4) ")[1].split(";")[0])
        assert said == pytest.approx(float(table["msd"][-1]), rel=1e-3)
        shown.keyboard.press("Escape")
        assert shown.locator("#m1-msd-read").inner_text() == ""
        shown.locator("#m1-msd svg").scroll_into_view_if_needed()
        box = shown.locator("#m1-msd svg").bounding_box()
        shown.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4)
        assert shown.locator("#m1-msd-read").inner_text().startswith("training step ")
        assert shown.locator("#m1-msd .guide").count() == 1


def test_a_verdict_leads_to_its_numbers(tab: Callable[..., Any], page: Path) -> None:
    with tab(page) as shown:
        details = shown.locator("#claim-msd-peak")
        assert details.get_attribute("open") is None
        shown.locator('.score a[href="#claim-msd-peak"]').first.click()
        shown.wait_for_function("document.querySelector('#claim-msd-peak').open")
        assert details.locator("dl").first.is_visible()


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_never_scrolls_sideways(tab: Callable[..., Any], page: Path, width: int) -> None:
    with tab(page, viewport={"width": width, "height": 800}) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate("window.scrollTo(500, 0), window.scrollX") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_every_curve_stands_out_by_day_and_by_night(
    tab: Callable[..., Any], page: Path, scheme: str
) -> None:
    with tab(page, color_scheme=scheme) as shown:
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        shown.locator("#m1-msd .plot").focus()
        shown.keyboard.press("End")  # the points that the script draws are among them
        least = shown.evaluate(CONTRAST)
        for kind, enough in (("text", 4.5), ("line", 3.0)):
            count, contrast, which = least[kind]
            assert count > 300
            assert contrast >= enough, (kind, which)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 375)])
def test_axe_finds_nothing(tab: Callable[..., Any], page: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install axe-playwright-python")
    source = (resources.files(axe) / "axe.min.js").read_text()
    with tab(page, color_scheme=scheme, viewport={"width": width, "height": 900}) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        shown.evaluate(source)
        found = shown.evaluate("axe.run(document, { resultTypes: ['violations', 'incomplete'] })")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
        # axe cannot tell the background of text in an SVG; the test above decides it.
        assert {one["id"] for one in found["incomplete"]} <= {"color-contrast"}


def test_everything_is_printed(tab: Callable[..., Any], page: Path) -> None:
    with tab(page, color_scheme="dark") as shown:
        shown.emulate_media(media="print")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        least = shown.evaluate(CONTRAST)
        assert least["text"][1] >= 4.5
        assert least["line"][1] >= 3.0
        # What is closed on the screen is open on paper, without the script too.
        hidden = "[...document.querySelectorAll('details > :not(summary)')].filter((one) => !one.checkVisibility())"
        assert shown.evaluate(f"{hidden}.length") == 0
        for what in ("nav", ".hint", ".slider input"):
            assert not any(one.is_visible() for one in shown.locator(what).all())
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert shown.locator("details:not([open])").count() == 0
        shown.evaluate("dispatchEvent(new Event('afterprint'))")
        assert shown.locator("details[open]").count() == 0


def test_two_figures_fit_on_a_printed_page(tab: Callable[..., Any], page: Path) -> None:
    width, height = (round(96 / 25.4 * (side - 2 * 14)) for side in (210, 297))  # A4 within its margins, in CSS pixels
    with tab(page, viewport={"width": width, "height": height}) as shown:
        shown.emulate_media(media="print")
        heights = "[...document.querySelectorAll('figure.plate')].map((one) => one.getBoundingClientRect().height)"
        assert 0 < max(shown.evaluate(heights)) <= height / 2
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        table = "getComputedStyle(document.querySelector('.score thead')).display"
        assert shown.evaluate(table) == "table-header-group"  # repeated on every page
        pages = len(re.findall(rb"/Type\s*/Page\b", shown.pdf(format="A4")))
        # All figures of both models would fill these pages with two on each; the text takes eleven.
        assert 4 < pages <= 11 + shown.locator("figure.plate").count() / 2
