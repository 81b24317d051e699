"""The page of a population in a browser: the heat map opens curves and switches runs, by pointer and by key."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.contrast import CONTRAST
from support.saved_populations import BIAS, GONE, LEAVES, MLP, STEPS, TENSORS, save_gathered, save_runs

from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.population_page import page_of_population, write_population_page

MAP, CURVE = "#tensors-map .plot", "#tensors-map .curve .plot"
READ, CURVE_READ = "#tensors-map-cell", "#tensors-map-read"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    directory = tmp_path_factory.mktemp("population")
    made = save_runs(directory)
    save_gathered(directory)
    return made


@pytest.fixture(scope="module")
def population(runs: list[Results]) -> Path:
    directory = runs[0].path.parent
    return write_population_page(page_of_population(["walk-seed*"], directory), directory)


def rms(runs: list[Results], tensor: str, step: int) -> list[float]:
    return [float(run.of(tensor).read_table("order")["rms"].sel(step=step)) for run in runs]


def choose(page: Any, name: str) -> None:
    page.locator("#tensors-map select").first.select_option(label=name)
    page.wait_for_selector('#tensors-map[aria-busy="false"]')


def told(text: str) -> float:
    """The number that a readout has after the name of the quantity."""
    found = re.search(r"(?:median|\)|rms)\s+(-?[\d.,e-]+)", text)
    assert found is not None, text
    return float(found[1].replace(",", "").rstrip("."))


def place(page: Any, row: int, step: int) -> tuple[float, float]:
    """Where a cell is on the screen."""
    frame = page.locator(f"{MAP} rect.frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    return (
        box["x"] + (step + 0.5) * box["width"] / len(STEPS),
        box["y"] + (row + 0.5) * box["height"] / len(TENSORS),
    )


def test_it_loads_quietly_and_asks_for_nothing(tab: Callable[..., Any], population: Path) -> None:
    with tab(population) as shown:
        shown.wait_for_selector('#tensors-map[aria-busy="false"]')
        assert shown.locator("h1").inner_text() == "Training dynamics of 6 runs: walk-seed*"
        assert shown.locator("figure svg[role=img][aria-label]").count() == shown.locator("figure svg").count() == 4


def test_a_click_opens_the_curve_of_a_tensor(tab: Callable[..., Any], population: Path, runs: list[Results]) -> None:
    with tab(population) as shown:
        choose(shown, "rms")
        assert shown.locator(f"{CURVE} svg").get_attribute("aria-label").startswith("rms (weight) of embed_out.weight")
        shown.mouse.move(*place(shown, 1, 7))
        read = shown.locator(READ).inner_text()
        assert read.startswith(f"{BIAS}, step {STEPS[7]:,}: rms (weight) ")
        assert told(read) == pytest.approx(np.median(rms(runs, BIAS, STEPS[7])), rel=1e-3)
        shown.mouse.click(*place(shown, 1, 7))
        assert shown.locator(f"{CURVE} svg").get_attribute("aria-label").startswith(f"rms (weight) of {BIAS}")
        assert shown.locator(f"{CURVE} path.run").count() == 6
        assert shown.locator(f"{CURVE} path.median").count() == 1
        shown.mouse.move(*place(shown, 0, STEPS.tolist().index(GONE)))
        assert "no finite value" in shown.locator(READ).inner_text()


def test_all_of_it_by_key(tab: Callable[..., Any], population: Path, runs: list[Results]) -> None:
    with tab(population) as shown:
        choose(shown, "rms")
        shown.locator(MAP).first.focus()
        for key in ("ArrowUp", "Home", "PageUp", "ArrowRight"):
            shown.keyboard.press(key)
        read = shown.locator(READ).inner_text()
        assert read.startswith(f"{MLP}, step {STEPS[1]:,}: ")
        shown.keyboard.press("ArrowDown")
        shown.keyboard.press("Enter")
        assert shown.locator(READ).inner_text() == f"Opened the curve of {BIAS}"
        assert shown.locator(f"{CURVE} svg").get_attribute("aria-label").startswith(f"rms (weight) of {BIAS}")
        shown.locator(CURVE).focus()
        shown.keyboard.press("End")
        text = shown.locator(CURVE_READ).inner_text()
        ends = rms(runs, BIAS, STEPS[-1])
        assert text.startswith(f"step {STEPS[-1]:,}: median ")
        assert told(text) == pytest.approx(np.median(ends), rel=1e-3)
        assert f"({runs[int(np.argmin(ends))].name})" in text
        assert text.endswith(f"({runs[int(np.argmax(ends))].name})")
        shown.keyboard.press("Escape")
        assert shown.locator(CURVE_READ).inner_text() == ""


def test_runs_are_switched_off_and_on(tab: Callable[..., Any], population: Path, runs: list[Results]) -> None:
    with tab(population) as shown:
        choose(shown, "rms")
        for run in (1, 4):
            shown.get_by_label(runs[run].name).uncheck()
        left = [run for at, run in enumerate(runs) if at not in (1, 4)]
        assert shown.locator(f"{CURVE} path.run").count() == 4
        shown.mouse.move(*place(shown, 1, 7))
        read = shown.locator(READ).inner_text()
        assert told(read) == pytest.approx(np.median(rms(left, BIAS, STEPS[7])), rel=1e-3)
        assert read.endswith("median of 4 runs")
        shown.get_by_label(runs[1].name).focus()
        shown.keyboard.press("Space")  # by key
        assert shown.locator(f"{CURVE} path.run:not(.shining)").count() == 5
        shown.get_by_role("button", name="None").click()
        assert shown.locator(f"{CURVE} path").count() == 0
        assert shown.locator(f"{MAP} svg").first.get_attribute("aria-label").endswith("no run is chosen")
        shown.get_by_role("button", name="All").click()
        assert shown.locator(f"{CURVE} path.run").count() == 6
        shown.get_by_role("checkbox", name=LEAVES).hover()
        assert shown.locator(f"{CURVE} path.shining").count() == 1
        assert shown.locator(f"{CURVE} text", has_text=LEAVES).count() == 1


def test_the_table_has_the_same_values(tab: Callable[..., Any], population: Path, runs: list[Results]) -> None:
    with tab(population) as shown:
        choose(shown, "rms")
        shown.get_by_text("The map as a table").click()
        rows = shown.locator("#tensors-map tbody tr")
        assert rows.locator("th").all_inner_texts() == list(TENSORS)
        last = rows.locator("td:last-child").all_inner_texts()
        for tensor, text in zip(TENSORS, last, strict=True):
            assert float(text.replace(",", "")) == pytest.approx(np.median(rms(runs, tensor, STEPS[-1])), rel=1e-3)
        rows.locator("button", has_text=BIAS).press("Enter")
        assert shown.locator(f"{CURVE} svg").get_attribute("aria-label").startswith(f"rms (weight) of {BIAS}")


def test_colours_are_over_all_tensors_or_over_each(tab: Callable[..., Any], population: Path) -> None:
    with tab(population) as shown:
        choose(shown, "rms")
        image = shown.locator(f"{MAP} image.cells").first
        before = image.get_attribute("href")
        shown.locator("#tensors-map select").nth(1).select_option("row")
        assert image.get_attribute("href") != before
        assert "least of the row" in shown.locator(f"{MAP} svg").first.text_content()


@pytest.mark.parametrize("width", [400, 1200])
def test_it_never_scrolls_sideways(tab: Callable[..., Any], population: Path, width: int) -> None:
    with tab(population, viewport={"width": width, "height": 800}) as shown:
        shown.wait_for_selector('#tensors-map[aria-busy="false"]')
        shown.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert shown.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_curves_stand_out(tab: Callable[..., Any], population: Path, scheme: str) -> None:
    with tab(population, color_scheme=scheme) as shown:
        shown.wait_for_selector('#tensors-map[aria-busy="false"]')
        shown.locator(CURVE).focus()
        shown.keyboard.press("End")
        least = shown.evaluate(CONTRAST)
        assert least["text"][1] >= 4.5, least["text"]
        assert least["line"][1] >= 3.0, least["line"]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 375)])
def test_axe_finds_nothing(tab: Callable[..., Any], population: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install axe-playwright-python")
    source = (resources.files(axe) / "axe.min.js").read_text()
    with tab(population, color_scheme=scheme, viewport={"width": width, "height": 900}) as shown:
        shown.wait_for_selector('#tensors-map[aria-busy="false"]')
        shown.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
        shown.evaluate(source)
        found = shown.evaluate("axe.run(document, { resultTypes: ['violations', 'incomplete'] })")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
        assert {one["id"] for one in found["incomplete"]} <= {"color-contrast"}


def test_without_a_script_its_tables_are_there(tab: Callable[..., Any], population: Path) -> None:
    with tab(population, java_script_enabled=False) as shown:
        assert "The heat map needs JavaScript" in shown.locator("#tensors-map noscript").inner_text()
        assert shown.locator("#g1 table").first.is_visible()
        assert shown.locator("#g1 svg").is_visible()


def test_it_is_printed(tab: Callable[..., Any], population: Path) -> None:
    with tab(population, color_scheme="dark") as shown:
        shown.wait_for_selector('#tensors-map[aria-busy="false"]')
        shown.emulate_media(media="print")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not shown.locator("#tensors-map .controls").is_visible()
        assert shown.locator(f"{MAP} svg").first.is_visible()
