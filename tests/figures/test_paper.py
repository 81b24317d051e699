"""Figures for a paper: their width, text that can be read, labels that name what they show."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from pythia_dynamics import figures
from pythia_dynamics.errors import UnknownNameError
from pythia_dynamics.figures.paper import LEAST_POINTS, WIDTHS, PaperWidth, arrange, drawn_at, fit, paper
from pythia_dynamics.figures.specs import FigureSpec, save_figures

ALL = (
    *("first_last", "unmasking", "density", "msd", "msd-learning-rate", "two_time", "order", "rank", "spectrum"),
    *("angles", "tails", "rows"),
    *("perplexity-forward", "perplexity-unmask", "perplexity-last-word", "representation", "stop", "phases"),
    *("garden-first-last", "garden-msd", "garden-msd-time", "garden-perplexity-forward", "garden-perplexity-unmask"),
    *("garden-perplexity-last-word", "garden-rank"),
    *("order-parameter-loss", "loss_against_order", "slope_against_order"),
    "population",
)


def test_the_list_is_complete(every_figure: dict[str, FigureSpec]) -> None:
    assert set(every_figure) == set(ALL)


def shown_texts(figure: Figure) -> Iterator[tuple[str, Text]]:
    """Every text that is drawn, and what it is."""
    for text in figure.texts:
        yield "name", text
    for ax in figure.axes:
        yield from (("text", text) for text in (ax.title, *ax.texts) if text.get_text())
        if not ax.axison:
            continue
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                labels = (tick.label1, tick.label2) if low <= tick.get_loc() <= high else ()
                yield from (("tick", label) for label in labels if label.get_visible() and label.get_text())
            if axis.label.get_text():
                yield "label", axis.label
            if axis.get_offset_text().get_text():
                yield "offset", axis.get_offset_text()
        for legend in ax.findobj(Legend):
            yield from (("legend", text) for text in legend.get_texts())


def check_texts(figure: Figure, *, of_text: bool) -> None:
    """No text is small, cut off, or on another one."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    boxes = []
    for kind, text in shown_texts(figure):
        assert text.get_fontsize() >= LEAST_POINTS, (kind, text)
        # An exponent in mathematical text is 0.7 of the font.
        assert "$" not in text.get_text() or not text.get_parse_math(), (kind, text)
        box = text.get_window_extent(renderer)
        outside = max(-box.x0, -box.y0, box.x1 - figure.bbox.width, box.y1 - figure.bbox.height)
        assert outside <= 1, (kind, text, box)
        boxes.append((kind, text, box))
    if of_text:  # parts of a line touch
        return
    for (kind, one, box), (_, other, against) in itertools.combinations(boxes, 2):
        across = min(box.x1, against.x1) - max(box.x0, against.x0)
        along = min(box.y1, against.y1) - max(box.y0, against.y0)
        # The box of a line of text has one point above and below its letters.
        assert across <= 1 or along <= 3, (kind, one, other, across, along)


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_figure_for_a_paper_can_be_read(every_figure: dict[str, FigureSpec], width: PaperWidth, key: str) -> None:
    spec = every_figure[key]
    with drawn_at(width), spec.sheet() as (figure, axes):
        assert np.shape(axes) == tuple(n for n in (spec.rows, spec.columns) if n > 1)
        spec.draw(axes)
        fit(figure)
        figure.draw_without_rendering()
        assert figure.get_figwidth() == {"column": 3.25, "page": 6.75}[width]
        check_texts(figure, of_text=spec.of_text)
        assert all(ax.bbox.height > 0.4 * figure.dpi for ax in figure.axes)


@pytest.mark.parametrize("key", ALL)
def test_a_figure_for_the_screen_can_be_read(every_figure: dict[str, FigureSpec], key: str) -> None:
    spec = every_figure[key]
    with spec.sheet() as (figure, axes):
        spec.draw(axes)
        assert all(text.get_fontsize() >= LEAST_POINTS for _, text in shown_texts(figure))


MODELS = ("pythia-2.8b-deduped", "pythia-14m", "pythia-1b-deduped")
NO_TENSOR = ("unmasking", "first_last", "garden-first-last", "perplexity", "representation", "order-parameter-loss")
"""Figures of whole models. Fig 1 says W_U in its titles."""


@pytest.mark.parametrize("key", ALL)
def test_a_figure_names_model_and_tensor(every_figure: dict[str, FigureSpec], key: str) -> None:
    spec = every_figure[key]
    with spec.sheet() as (figure, axes):
        spec.draw(axes)
        texts = " ".join(text.get_text() for _, text in shown_texts(figure))
    if key in ("order-parameter-loss", "loss_against_order", "slope_against_order"):
        assert all(size in texts for size in ("10k", "0.1m", "1m", "10m"))
        return
    one, *others = ("pythia-14m", "pythia-1b-deduped") if key == "garden-first-last" else MODELS
    assert one in texts
    assert all(name in texts for name in others) == key.startswith("garden")
    if not any(part in key for part in NO_TENSOR):
        assert any(name in texts for name in ("embed_out.weight", "gpt_neox.layers.11.attention")), texts


UNITS = (
    *("(weight²)", "(weight)", "(degrees)", "(1/weight)", "(nats)", "(standard deviations)", "(nats per token)"),
    *("(steps)", "per 1,000 steps", "1.5"),
    "nats per token",
)
PURE = (
    *("training step", "order parameter b", "covariance rank", "change of rank since the step before", "rank, B → ∞"),
    *("rank of W_U", "share of the weight in the mean row", "perplexity", "token (column of W_U)", "attends to"),
    *("token", "dimension of the model", "rank of the token", "cosine", "weight", "attention", "Sarle's bimodality"),
    "cosine of successive increments",
    *("exponent of the eigenvalue density", "eigenvalues in the tail", "rank correlation with frequency"),
    *("share, cosine", "mean cosine of two states", "rank of the hidden states", "decay exponent α"),
)
"""Counts, places, shares and pure numbers; a weight is its own unit, and so is b, which is a norm of weights."""


@pytest.mark.parametrize("key", [key for key in ALL if key != "unmasking"])
def test_every_axis_has_a_quantity_and_its_unit(every_figure: dict[str, FigureSpec], key: str) -> None:
    spec = every_figure[key]
    with spec.sheet() as (figure, axes):
        spec.draw(axes)
        figure.draw_without_rendering()
        for ax in figure.axes:
            is_bar = hasattr(ax, "_colorbar")
            labels = [ax.get_ylabel()] if is_bar else [ax.get_xlabel(), ax.get_ylabel()]
            for label in labels:
                shown = " ".join(label.split("\n"))
                assert shown in PURE or any(unit in shown for unit in UNITS), (key, label)


def test_the_files_of_a_paper(every_figure: dict[str, FigureSpec], tmp_path: Path) -> None:
    spec = replace(every_figure["msd"], path=tmp_path / "a" / "msd")
    files = save_figures([spec], width="column")
    assert [path.name for path in files] == ["msd.png", "msd.svg", "msd.pdf"]
    again = save_figures([replace(spec, path=tmp_path / "b" / "msd")], width="column")
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]
    svg = files[1].read_text()
    assert 'width="234pt"' in svg  # 3.25 inches
    assert "demeaned over time</text>" in svg
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[\w ]*?)([\d.]+)px", svg)]
    assert len(sizes) >= 15
    assert min(sizes) >= LEAST_POINTS
    pdf = files[2].read_bytes()
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    assert b"/MediaBox [ 0 0 234 " in pdf
    assert paper() is None


def test_a_pdf_from_the_library_has_text(every_figure: dict[str, FigureSpec]) -> None:
    with every_figure["order"].sheet() as (figure, axes):
        every_figure["order"].draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="pdf")
    assert b"/FontFile2" in buffer.getvalue()
    assert b"/Type3" not in buffer.getvalue()


def test_a_sheet_of_a_paper() -> None:
    with figures.sheet(columns=3, rows=2, width="column") as (figure, axes):
        assert axes.shape == (2, 3)
        assert figure.get_figwidth() == 3.25
        assert paper() == "column"
        tops = [ax.get_position().y1 for ax in axes.flat]
        assert tops == sorted(tops, reverse=True)  # one above another, in their order
    assert paper() is None
    with drawn_at("page"), figures.sheet(columns=2, width=9) as (figure, axes):
        assert figure.get_figwidth() == 6.75
        assert axes.shape == (2,)
        assert axes[0].get_position().y0 == axes[1].get_position().y0
    with pytest.raises(UnknownNameError, match="no width 'collumn'"), figures.sheet(width="collumn"):  # type: ignore[arg-type]
        pass


def test_panels_are_high_and_wide_enough() -> None:
    for columns, rows in itertools.product(range(1, 7), range(1, 4)):
        for width, inches in WIDTHS.items():
            plan = arrange(columns, rows, width, aspect=0.7)
            assert plan.columns * plan.rows == columns * rows
            assert plan.columns == 1 or inches / plan.columns >= 2.1
            assert plan.height >= 1.5
            assert plan.height == 1.5 or plan.height * plan.rows <= 9 + 1e-9
    assert arrange(3, 1, "page", aspect=0.7).columns == 3
    assert arrange(3, 1, "column", aspect=0.7).rows == 3


def test_long_names_and_great_legends_and_powers_of_ten() -> None:
    name = "pythia-2.8b-deduped, gpt_neox.layers.11.attention.query_key_value.weight"
    with figures.sheet(width="column", name=name) as (figure, ax):
        for number in range(12):
            ax.plot([1, 10, 100], [1e-9, 1e-3, 10.0**number], label=f"the long name of the curve number {number}.5")
        ax.set(xscale="log", yscale="log", xlabel="step", title="a title that stays above the panel")
        ax.set(ylabel="a quantity that has a very long name and does not fit into one line (weight²)")
        ax.legend()
        before = figure.get_figheight()
        fit(figure)
        figure.draw_without_rendering()
        renderer: Any = FigureCanvasAgg(figure).get_renderer()
        assert figure.get_figheight() > before  # the legend is above the panel
        assert ax.get_legend().get_window_extent(renderer).y0 >= ax.bbox.y1
        assert ax.title.get_window_extent(renderer).y0 >= ax.get_legend().get_window_extent(renderer).y1 - 3
        assert figure.texts[0].get_text().replace("\n", "").replace(" ", "") == name.replace(" ", "")
        assert "\n" in figure.texts[0].get_text()
        assert "\n" in ax.get_ylabel()
        assert "curve number 3.5" in " ".join(" ".join(text.get_text().split()) for text in ax.get_legend().get_texts())
        labels = {label.get_text() for label in ax.get_yticklabels()}
        assert any("e−" in label for label in labels), labels
        check_texts(figure, of_text=False)
