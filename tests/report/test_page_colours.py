"""The colours of the page and of its figures have enough contrast on a light and on a dark background (WCAG 2.2)."""

from __future__ import annotations

import itertools
import re
from importlib import resources, util
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from pythia_dynamics.figures import COLOURS
from pythia_dynamics.report.colours import (
    LEAST_CONTRAST,
    PAPER,
    contrast,
    legible,
    shade,
    style_of,
    variable,
    with_variables,
)

SHADES = [to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0, 1, 64))]
PAIRS = {  # what is written in a colour of the style sheet, and on which
    "paper": ("ink", "faint", "link"),
    "soft": ("ink",),
    **{f"{kind}-back": (kind,) for kind in ("yes", "no", "open", "maybe")},
}


def test_the_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == contrast("#ffffff", "#000000") == 21
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the known grey that just fails
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("theme", PAPER)
@pytest.mark.parametrize("colour", [*map(to_hex, COLOURS), *SHADES])
def test_every_colour_of_a_figure_is_legible(theme: str, colour: str) -> None:
    for kind, least in LEAST_CONTRAST.items():
        shown = variable(colour, kind)
        found = re.search(rf"--{kind}-{colour[1:]}: (#\w+);", style_of([shown])[theme]) if shown != colour else None
        assert contrast(found[1] if found else shown, PAPER[theme]) >= least


def test_the_dark_end_of_viridis_is_not_legible_in_the_dark_as_it_is() -> None:
    assert contrast(SHADES[0], PAPER["dark"]) < 1.5
    assert contrast(SHADES[-1], PAPER["light"]) < 1.5


@pytest.mark.parametrize("theme", PAPER)
def test_the_order_of_a_ramp_stays(theme: str) -> None:
    towards = [contrast(shade(colour, theme), PAPER[theme]) for colour in SHADES]
    assert all(np.diff(towards if theme == "dark" else towards[::-1]) > -0.12)  # a step of the search


@given(st.integers(0, 0xFFFFFF), st.integers(0, 0xFFFFFF), st.floats(1, 4.5))
def test_the_nearest_legible_shade(colour: int, paper: int, least: float) -> None:
    one, other = f"#{colour:06x}", f"#{paper:06x}"
    found = legible(one, other, least)
    assert contrast(found, other) >= least
    if contrast(one, other) >= least:
        assert found == one


def test_readers_with_a_colour_blindness_tell_the_shades_apart() -> None:
    spec = util.spec_from_file_location("palette", Path(__file__).parents[1] / "figures" / "test_colours.py")
    assert spec is not None
    assert spec.loader is not None
    palette = util.module_from_spec(spec)
    spec.loader.exec_module(palette)
    for theme, ink in (("light", "#1b1d21"), ("dark", "#e8eaed")):  # black is drawn in the colour of the text
        shown = [ink if to_hex(colour) == "#000000" else shade(to_hex(colour), theme) for colour in COLOURS]
        for vision in palette.VISION:
            for one, other in itertools.combinations(palette.lab(shown, vision), 2):
                assert np.linalg.norm(one - other) >= palette.BETWEEN_CURVES, (theme, vision)


def test_what_becomes_a_variable() -> None:
    dark, text = "var(--line-440154)", "var(--text-d55e00)"
    curve = '<path style="fill: none; stroke: #440154; stroke-width: 2"/>'
    assert with_variables(curve) == curve.replace("#440154", dark)
    point = '<use style="fill: #440154; stroke: #440154"/>'  # inside, it agrees with the colour bar
    assert with_variables(point) == f'<use style="fill: #440154; stroke: {dark}"/>'
    words = '<text style="fill: #d55e00">a</text>'
    assert with_variables(words) == words.replace("#d55e00", text)
    for same in (
        '<path style="stroke: #d55e00"/>',
        '<path style="stroke: #440154; stroke-opacity: 0.25"/>',
        '<path style="fill: #440154; fill-opacity: 0.25"/>',
        '<text style="fill: currentColor">#440154</text>',
        '<image href="data:image/png;base64,#440154"/>',
    ):
        assert with_variables(same) == same
    assert variable("currentColor") == "currentColor"
    assert style_of([curve]) == {theme: f"--paper: {paper}; " for theme, paper in PAPER.items()}


def declared(block: str) -> dict[str, str]:
    found = re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block)
    return {name: code if len(code) == 7 else "#" + "".join(2 * digit for digit in code[1:]) for name, code in found}


def test_the_words_of_the_page_are_legible() -> None:
    style = (resources.files("pythia_dynamics.report") / "style.css").read_text()
    light, dark, printed = (declared(block) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL))
    themes = {
        "light": {**light, "paper": PAPER["light"]},
        "dark": {**light, **dark, "paper": PAPER["dark"]},
        "print": {**light, "paper": PAPER["light"], **printed},
    }
    assert set(light) == set(dark)  # each colour is chosen for both
    for theme, colours in themes.items():
        for paper, inks in PAIRS.items():
            for ink in inks:
                assert contrast(colours[ink], colours[paper]) >= 4.5, (theme, ink, paper)
