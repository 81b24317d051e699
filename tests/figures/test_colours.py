"""Readers with a colour blindness can tell the curves of a figure apart."""

from __future__ import annotations

import itertools
from collections import defaultdict

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from pythia_dynamics.figures import COLOURS
from pythia_dynamics.figures.specs import FigureSpec

# Machado, Oliveira & Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# severity 1.0: matrices for linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE_POINT = np.array([0.95047, 1.0, 1.08883])  # D65

# ΔE*ab of 2.3 is just noticeable between large areas (Mahy et al. 1994). Of a line of one point the eye sees less: five
# times as much is asked for between curves, and ten times as much from the background, on which they must be found.
BETWEEN_CURVES, FROM_WHITE = 12.0, 23.0


def lab(colours: list[str], vision: str) -> np.ndarray:
    """CIELAB coordinates of colours as seen with a colour vision."""
    srgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0, 1) @ XYZ.T / WHITE_POINT
    f = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_the_coordinates_are_those_of_the_standard() -> None:
    known = np.array([[100.0, 0.0, 0.0], [53.24, 80.09, 67.20]])
    np.testing.assert_allclose(lab(["#ffffff", "#ff0000"], "normal"), known, atol=0.02)
    for vision in VISION:  # grey stays grey
        np.testing.assert_allclose(lab(["#808080"], vision)[0, 1:], 0, atol=0.1)
    red, green = lab(["#c04040", "#608030"], "deuteranopia")
    assert np.linalg.norm(red - green) < np.linalg.norm(np.subtract(*lab(["#c04040", "#608030"], "normal"))) / 2


def check(colours: list[str], vision: str) -> None:
    seen = lab([*colours, "#ffffff"], vision)
    for (one, at), (other, against) in itertools.combinations(zip([*colours, "white"], seen, strict=True), 2):
        least = FROM_WHITE if other == "white" else BETWEEN_CURVES
        assert np.linalg.norm(at - against) >= least, (vision, one, other)


@pytest.mark.parametrize("vision", VISION)
def test_the_palette(vision: str) -> None:
    check(list(COLOURS), vision)


def test_the_curves_of_every_figure(every_figure: dict[str, FigureSpec]) -> None:
    sets: dict[tuple[str, ...], str] = {}
    for key, spec in every_figure.items():
        with spec.sheet() as (figure, axes):
            spec.draw(axes)
            for ax in figure.axes:
                alike = defaultdict(set)
                for line in ax.lines:
                    if len(line.get_xdata()) == 0:  # an entry of the legend that stands for all colours
                        continue
                    alike[line.get_linestyle(), line.get_marker()].add(to_hex(line.get_color()))
                sets |= {tuple(sorted(colours)): key for colours in alike.values()}
    assert max(map(len, sets)) >= 6
    for colours, vision in itertools.product(sets, VISION):
        try:
            check(list(colours), vision)
        except AssertionError as error:
            raise AssertionError(f"{sets[colours]}: {error}") from None


@pytest.mark.parametrize("vision", VISION)
def test_maps_of_colours(vision: str) -> None:
    shades = [to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0, 1, 32))]
    lightness = lab(shades, vision)[:, 0]
    assert (np.diff(lightness) > 0).all()
    diverging = lab([to_hex(shade) for shade in mpl.colormaps["RdBu_r"](np.linspace(0, 1, 33))], vision)
    assert diverging[:, 0].argmax() == 16  # the middle, zero, is the lightest
    assert np.linalg.norm(diverging[4] - diverging[-5]) >= 2 * BETWEEN_CURVES  # and the signs differ


def test_the_maps_are_those() -> None:
    """`test_maps_of_colours` tests the maps that figures use."""
    import inspect

    from pythia_dynamics.figures import measures, portrait, two_time

    for module in (measures, portrait, two_time):
        used = {part.split('"')[0] for part in inspect.getsource(module).split('cmap="')[1:]}
        assert used <= {"viridis", "RdBu_r"}
