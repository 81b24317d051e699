"""Colours of the figures on a light and on a dark page: each is legible on both (WCAG 2.2, 1.4.3 and 1.4.11).

matplotlib chooses colours for white paper. Where one of them has too little contrast with a page, the page shows it
lighter or darker, with the same hue. In the SVG such a colour is a CSS variable, whose value depends on the theme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

__all__ = ["LEAST_CONTRAST", "PAPER", "contrast", "legible", "shade", "style_of", "variable", "with_variables"]

PAPER: Mapping[str, str] = {"light": "#ffffff", "dark": "#15171a"}
"""Background of the page by theme; the style sheet gets it from here."""

LEAST_CONTRAST: Mapping[str, float] = {"line": 3.0, "text": 4.5}
"""Least contrast of graphical objects (WCAG 1.4.11) and of text (1.4.3)."""

_ON_WHITE: Mapping[str, str] = {"#e69f00": "#735000", "#56b4e9": "#275169"}
"""Shades of two colours of the palette on white paper. The nearest legible ones look like other colours of the palette
to readers who do not see green, or blue; these do not."""

_STEPS = 100
"""Shades between a colour and white, or black, of which the nearest legible one is taken."""

_TEXT = re.compile(r"<text\b.*?</text>", re.DOTALL)
_STYLE = re.compile(r'style="([^"]*)"')
_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})\b")
_FAINT = re.compile(r"opacity: 0?\.[0-4]")
"""Grids, error bands and the seeds behind a mean: what is faint on purpose, and repeats what is said elsewhere."""

_VARIABLE = re.compile(r"var\(--(line|text)-([0-9a-f]{6})\)")


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (WCAG 2.2), 1 to 21.

    Parameters
    ----------
    one, other
        The colours, as ``#rrggbb``.
    """
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def legible(colour: str, paper: str, least: float) -> str:
    """The shade of a colour nearest to it that has a contrast on a background.

    Parameters
    ----------
    colour, paper
        The colour and the background, as ``#rrggbb``.
    least
        The least contrast ratio. It is below 4.58, so that white or black has it on any background.
    """
    end = "#ffffff" if contrast("#ffffff", paper) > contrast("#000000", paper) else "#000000"
    shades = (_mixed(colour, end, step / _STEPS) for step in range(_STEPS + 1))
    return next(shade for shade in shades if contrast(shade, paper) >= least)


def shade(colour: str, theme: str, kind: str = "line") -> str:
    """A colour of a figure as the page shows it.

    Parameters
    ----------
    colour
        The colour, as ``#rrggbb`` in lower case.
    theme
        A key of `PAPER`.
    kind
        A key of `LEAST_CONTRAST`.
    """
    chosen = _ON_WHITE.get(colour, colour) if theme == "light" else colour
    return legible(chosen, PAPER[theme], LEAST_CONTRAST[kind])


def variable(colour: str, kind: str = "line") -> str:
    """A colour for the page: as it is where it is legible in both themes, else a CSS variable.

    Parameters
    ----------
    colour
        The colour as ``#rrggbb``; other words, such as ``currentColor``, stay as they are.
    kind
        ``line`` or ``text``.
    """
    if not colour.startswith("#") or all(contrast(colour, paper) >= LEAST_CONTRAST[kind] for paper in PAPER.values()):
        return colour
    return f"var(--{kind}-{colour[1:]})"


def with_variables(svg: str) -> str:
    """An SVG whose lines, points and texts are legible in both themes. Images in it stay as they are.

    A point that is filled and outlined in one colour keeps it inside, so that it agrees with its colour bar; its
    outline is legible.

    Parameters
    ----------
    svg
        The SVG.
    """
    parts, end = [], 0
    for text in _TEXT.finditer(svg):
        parts += [_coloured(svg[end : text.start()], "line"), _coloured(text[0], "text")]
        end = text.end()
    return "".join([*parts, _coloured(svg[end:], "line")])


def _coloured(svg: str, kind: str) -> str:
    """A part of an SVG with variables in its styles."""

    def restyled(style: re.Match[str]) -> str:
        if _FAINT.search(style[1]):
            return style[0]
        colours = dict(_COLOUR.findall(style[1]))
        is_point = "fill" in colours and colours["fill"] == colours.get("stroke")
        for part, colour in colours.items():
            if not (is_point and part == "fill"):
                colours[part] = variable(colour, kind)
        return 'style="' + _COLOUR.sub(lambda found: f"{found[1]}: {colours[found[1]]}", style[1]) + '"'

    return _STYLE.sub(restyled, svg)


def style_of(parts: Iterable[str]) -> Mapping[str, str]:
    """The declarations of the variables in some parts of a page, by theme.

    Parameters
    ----------
    parts
        The parts, such as SVG elements.
    """
    found = sorted({(one[1], one[2]) for part in parts for one in _VARIABLE.finditer(part)})
    return {
        theme: f"--paper: {paper}; "
        + " ".join(f"--{kind}-{code}: {shade(f'#{code}', theme, kind)};" for kind, code in found)
        for theme, paper in PAPER.items()
    }


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2), 0 to 1."""
    red, green, blue = (_linear(part / 255) for part in bytes.fromhex(colour[1:]))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else float(((part + 0.055) / 1.055) ** 2.4)


def _mixed(colour: str, end: str, share: float) -> str:
    parts = zip(bytes.fromhex(colour[1:]), bytes.fromhex(end[1:]), strict=True)
    return "#" + "".join(f"{round(one + share * (other - one)):02x}" for one, other in parts)
