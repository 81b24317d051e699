"""Figures from saved results: of one model and of several."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from support.saved_results import STEPS, first_last, save_results, save_table

from pythia_dynamics import figures
from pythia_dynamics.errors import FormatError
from pythia_dynamics.figures import gallery
from pythia_dynamics.figures.blog import load_runs
from pythia_dynamics.figures.specs import save_figures
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_lambada import published_lambada


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    directory = tmp_path_factory.mktemp("results")
    return [save_results(directory, name, seed) for seed, name in enumerate(("walk", "pythia-2.8b-deduped"))]


def test_every_result_has_its_figure(models: list[Results], tmp_path: Path) -> None:
    plates = gallery.model_figures(models[0])
    assert [plate.key for plate in plates] == [
        *("first_last", "unmasking", "density", "msd", "two_time", "angles", "order", "rank", "spectrum"),
        *("tails", "rows"),
        *("perplexity-forward", "perplexity-unmask", "perplexity-last-word"),
    ]
    for plate in plates:
        assert plate.caption.endswith(".")
        assert "nan" not in plate.caption
        with plate.sheet() as (_, axes):
            plate.draw(axes)
            assert all(ax.has_data() or ax.texts for ax in np.atleast_1d(axes).flat), plate.key
    told: list[tuple[int, int]] = []
    files = save_figures(
        [replace(plate, path=tmp_path / plate.key) for plate in plates[3:5]],
        progress=lambda done, total: told.append((done, total)),
    )
    assert [path.name for path in files] == ["msd.png", "msd.svg", "two_time.png", "two_time.svg"]
    assert all(path.stat().st_size > 5000 for path in files)
    assert told == [(1, 2), (2, 2)]


def test_what_has_not_been_computed_is_left_out(models: list[Results], tmp_path: Path) -> None:
    results = Results("little", tmp_path)
    assert gallery.model_figures(results) == []
    assert gallery.comparison_figures([results], Path()) == []
    save_table(results, "msd", models[0].weights().read_table("msd"))
    assert [plate.key for plate in gallery.model_figures(results)] == ["msd"]
    assert [plate.key for plate in gallery.comparison_figures([results], Path())] == ["garden-msd", "garden-msd-time"]


def test_the_two_models_of_fig_1_are_side_by_side(tmp_path: Path) -> None:
    folders = [Results(name, tmp_path) for name in ("pythia-1b-deduped", "pythia-70m-deduped", "pythia-14m")]
    for factor, results in enumerate(folders[:2], 1):
        taken = first_last()
        results.write_zarr("first_last", taken.assign(logits=factor * taken["logits"]))
    assert gallery.comparison_figures(folders, Path()) == []  # 14M has none yet
    folders[2].write_zarr("first_last", first_last().assign(logits=9 * first_last()["logits"]))
    (plate,) = gallery.comparison_figures(folders, Path("there"))
    assert (plate.path, plate.columns, plate.rows) == (Path("there/garden-first-last"), 6, 2)
    assert "pythia-14m: steps" in plate.caption
    with plate.sheet() as (_, axes):
        plate.draw(axes)
        titles = [ax.get_title() for ax in axes[0]]
        assert [titles[0].partition("\n")[0], titles[3].partition("\n")[0]] == ["pythia-14m", "pythia-1b-deduped"]
        assert all(ax.has_data() for ax in axes.flat)
        left, right = (axes[0, column].lines[0].get_ydata().max() for column in (2, 5))
        assert left == pytest.approx(9 * right)


def test_models_share_the_axes(models: list[Results], tmp_path: Path) -> None:
    plates = gallery.comparison_figures(models, Path())
    keys = [plate.key for plate in plates]
    assert keys == [
        *("garden-msd", "garden-msd-time", "garden-perplexity-forward", "garden-perplexity-unmask"),
        *("garden-perplexity-last-word", "garden-rank"),
    ]
    with plates[0].sheet() as (_, ax):
        plates[0].draw(ax)
        curves = {line.get_label(): line for line in ax.lines if len(line.get_xdata()) == len(STEPS)}
        assert set(curves) == {
            *("walk", "pythia-2.8b-deduped"),
            *("_walk, random walk", "_pythia-2.8b-deduped, random walk"),
        }
        for name, results in zip(("walk", "pythia-2.8b-deduped"), models, strict=True):
            table = results.weights().read_table("msd")
            np.testing.assert_array_equal(curves[name].get_ydata(), table["msd"])
            assert np.isnan(curves[name].get_ydata()[5])  # the gap
            null = curves[f"_{name}, random walk"]
            np.testing.assert_array_equal(null.get_ydata(), table["msd_null"])
            assert (null.get_linestyle(), null.get_color()) == ("--", curves[name].get_color())
        assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "MSD(τ) (weight²)")
    assert len({curve.get_color() for name, curve in curves.items() if not name.startswith("_")}) == 2


def test_peaks_are_dashed_verticals() -> None:
    peaked = xr.Dataset(
        {"msd": ("step", [1.0, 2, 9, 3, 1]), "msd_null": ("step", [1.0, 2, 3, 4, 5])}, {"step": [1, 2, 3, 4, 5]}
    )
    rising = peaked.assign(msd=peaked["msd_null"])
    with figures.sheet() as (_, ax):
        figures.displacements(ax, {"peaked": peaked, "rising": rising})
        verticals = [line for line in ax.lines if len(line.get_xdata()) == 2]
        assert [(line.get_xdata()[0], line.get_linestyle(), line.get_color()) for line in verticals] == [
            (3, "--", figures.COLOURS[0])
        ]


def test_published_points_lie_under_the_line_and_suspect_ones_are_marked(models: list[Results]) -> None:
    points = published_lambada("pythia-2.8b-deduped")
    table = models[1].read_table("perplexity-last-word")
    with figures.sheet() as (_, ax):
        figures.last_words(ax, {"pythia-2.8b-deduped": table}, {"pythia-2.8b-deduped": points})
        crosses = next(line for line in ax.lines if line.get_label() == "_suspect")
        suspect = points["suspect"].to_numpy()
        np.testing.assert_array_equal(crosses.get_xdata(), points["step"].to_numpy()[suspect])
        assert crosses.get_marker() == "x"
        (good,) = ax.containers
        np.testing.assert_array_equal(good.lines[0].get_xdata(), points["step"].to_numpy()[~suspect])
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["pythia-2.8b-deduped", "published", "published, suspect"]
        assert ax.get_ylim()[0] >= 1
        # The linear axis of a curve that varies little still begins at zero or above.
    with figures.sheet() as (_, ax):
        figures.perplexities(ax, {"walk": models[0].read_table("perplexity-forward")}, log=False)
        assert ax.get_ylim()[0] >= 0


def test_ranks_show_the_largest_batch(models: list[Results]) -> None:
    tables = {results.name: results.weights().read_table("rank") for results in models}
    with figures.sheet(columns=2) as (_, axes):
        figures.ranks(axes[0], tables, tolerance=0.5)
        figures.rank_differences(axes[1], tables, tolerance=0.5)
        chosen = {"batch_size": 64, "tolerance": 0.5, "convention": "absolute"}
        for ax, column in zip(axes, ("rank", "rank_difference"), strict=True):
            np.testing.assert_array_equal(ax.lines[0].get_ydata(), tables["walk"][column].sel(chosen))
        assert axes[0].get_legend().get_texts()[0].get_text() == "walk, B = 64"


def test_an_eighth_model_has_a_line_style_of_its_own() -> None:
    table = xr.Dataset({"ppl_corpus": ("step", [3.0, 2, 1])}, {"step": [1, 2, 3]})
    with figures.sheet() as (_, ax):
        figures.perplexities(ax, {f"model {i}": table for i in range(9)})
        looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == 9


def test_the_first_and_the_last_step_share_their_colours() -> None:
    with figures.sheet(3, 2) as (_, axes):
        figures.first_last(axes, first_last(), name="cat")
        first, last = (row[0].images[0] for row in axes)
        assert (first.norm.vmin, first.norm.vmax) == (last.norm.vmin, last.norm.vmax)
        assert not np.array_equal(first.get_array(), last.get_array())
        pattern = axes[0, 1].images[0].get_array()
        assert pattern.mask[0, 1]
        assert not pattern.mask[1, 0]
        assert [label.get_text() for label in axes[0, 1].get_yticklabels()] == ["a", "cat", "sat"]
        assert axes[1, 2].lines[1].get_ydata()[0] == pytest.approx(float(first_last()["logits"][1].max()))


def test_unmasking_tells_given_from_generated() -> None:
    with figures.sheet() as (_, ax):
        figures.unmasking(ax, first_last().attrs["completions"])
        texts = {text.get_text(): text for text in ax.texts}
    assert texts["a cat"].get_fontweight() == "bold"
    assert texts[" dog⏎ran $x^□"].get_color() == figures.COLOURS[1]
    assert {"1", "2", "2.5", "1.5"} <= set(texts)


# -- in a page ------------------------------------------------------------------------------------------------


def drawn(models: list[Results], key: str = "msd") -> figures.Drawing:
    plate = next(plate for plate in gallery.model_figures(models[0]) if plate.key == key)
    with plate.sheet() as (figure, axes):
        plate.draw(axes)
        return figures.inline(figure, f"test-{key}", label='a "figure" & more')


@pytest.mark.parametrize("key", ["msd", "density", "order", "unmasking", "perplexity-last-word"])
def test_inline_figures_take_the_page_s_colours_and_no_ids(models: list[Results], key: str) -> None:
    svg = drawn(models, key).svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'a "figure" & more'
    assert root.attrib["role"] == "img"
    assert not {"width", "height"} & set(root.attrib)
    assert "#000000" not in svg
    assert "fill: #ffffff" not in svg
    assert "currentColor" in svg
    assert "<style" not in svg
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
    ids = re.findall(r' id="([^"]*)"', svg)
    assert all(re.fullmatch(r"[mpC][0-9a-f_]+\w*|image\w*", name) for name in ids), ids
    assert len(ids) == len(set(ids))


def test_ids_of_two_figures_never_meet(models: list[Results]) -> None:
    ids = []
    for key in ("one", "two"):
        with figures.sheet() as (figure, ax):
            figures.msd(ax, models[0].weights().read_table("msd"))
            ids.append(set(re.findall(r' id="([^"]*)"', figures.inline(figure, key, label="x").svg)))
    assert ids[0]
    assert not ids[0] & ids[1]


def test_panels_say_where_the_curves_are(models: list[Results]) -> None:
    drawing = drawn(models)
    (panel,) = drawing.panels
    assert panel.y["scale"] == "log"
    assert panel.x["label"] == "training step"
    assert panel.series[0]["label"] == "demeaned over weights (Eq. 4)"
    table = models[0].weights().read_table("msd")
    series = panel.series[0]
    assert panel.places[series["x"]] == STEPS.tolist()
    assert series["y"][5] is None  # a gap
    known = np.array([np.nan if value is None else value for value in series["y"]], dtype=float)
    np.testing.assert_allclose(known, table["msd"], rtol=1e-4)
    # The last point of the curve, by the panel's own scales, is where the SVG has it.
    left, top, right, bottom = panel.box
    (x0, x1), (y0, y1) = panel.x["limits"], np.log(panel.y["limits"])
    x = left + (STEPS[-1] - x0) / (x1 - x0) * (right - left)
    y = bottom + (np.log(float(table["msd"][-1])) - y0) / (y1 - y0) * (top - bottom)
    assert any(
        abs(float(a) - x) < 0.1 and abs(float(b) - y) < 0.1 for a, b in re.findall(r"L ([\d.]+) ([\d.]+)", drawing.svg)
    )
    json.dumps([panel.x, panel.y, panel.places, panel.series], allow_nan=False)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "model,seed\n1,1\n", "\x00\n1,2,3"])
def test_damaged_runs_of_the_blog_are_one_line(tmp_path: Path, text: str) -> None:
    results = Results("blog", tmp_path)
    results.path.mkdir()
    (results.path / "runs.csv").write_text(text)
    with pytest.raises(FormatError, match=r"runs\.csv is damaged \(.*run pythia-dyn reproduce order-parameter$"):
        load_runs(results)
