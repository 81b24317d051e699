"""Figures show what the result says, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.displacement import msd
from pythia_dynamics.measures.order import order_parameter
from pythia_dynamics.measures.two_time import two_time

STEPS = np.array([0, 1, 2, 4, 1000, 2000, 3000])


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset]:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(7, 40, 12)), axis=0).astype(np.float16)
    with pytest.warns(UserWarning, match="lacks step 1000"):
        return analyse(
            History.from_array(walk, STEPS, missing={1000: "lost"}),
            tuple(MEASURES),
            options={"order": {"loss": np.arange(7.0)[::-1]}},
        )


def test_msd_shows_the_curves_the_nulls_and_the_gap(results: dict[str, xr.Dataset]) -> None:
    with figures.sheet() as (_, ax):
        figures.msd(ax, results["msd"], name="walk")
        curves = [line for line in ax.lines if len(line.get_xdata()) == 7]
        assert len(curves) == 4
        for line, name in zip(curves, ("msd", "msd_null", "msd_time", "msd_time_null"), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), results["msd"][name])
            assert np.isnan(line.get_ydata()[4])
        assert [line.get_linestyle() for line in curves] == ["-", "--", "-", "--"]
        assert ax.get_xlabel() == "training step"


def test_a_peak_at_the_end_is_no_peak() -> None:
    rising = xr.Dataset({name: ("step", np.arange(1.0, 8.0)) for name in ("msd", "msd_null", "msd_time_null")})
    rising = rising.assign_coords(step=STEPS)
    rising["msd_time"] = ("step", np.array([1.0, 2, 3, 9, 3, 2, 1]))
    with figures.sheet() as (_, ax):
        figures.msd(ax, rising)
        verticals = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2]
    assert verticals == [4]


def test_what_does_not_move_can_be_drawn() -> None:
    still = analyse(np.zeros((5, 9, 4)), ("msd", "two_time", "spectrum"))
    with figures.sheet(columns=3) as (_, axes):
        figures.msd(axes[0], still["msd"])
        assert axes[0].get_yscale() == "linear"
        figures.displacement_by_lag(axes[1], still["two_time"])
        figures.effective_rank(axes[2], still["spectrum"])


def test_density_cells_lie_where_the_steps_are(results: dict[str, xr.Dataset]) -> None:
    with figures.sheet() as (_, ax):
        figures.density(ax, results["density"])
        (mesh,) = ax.collections
        borders = mesh.get_coordinates()[0, :, 0]
    np.testing.assert_array_equal(borders, [-0.5, 0.5, 1.5, 3, 502, 1500, 2500, 3500])
    assert mesh.get_array().mask[:, 4].all()


def test_order_rank_spectrum_and_perplexity(results: dict[str, xr.Dataset]) -> None:
    with figures.sheet(columns=3, rows=2) as (_, axes):
        figures.order(axes[0, 0], results["order"])
        np.testing.assert_array_equal(axes[0, 0].lines[0].get_ydata(), results["order"]["order_parameter"])
        figures.loss_against_order(axes[0, 1], results["order"])
        points = axes[0, 1].collections[0].get_offsets()
        kept = results["order"].dropna("step", subset=["order_parameter"])
        np.testing.assert_allclose(
            points[~points.mask.any(axis=1)], np.stack([kept["order_parameter"], kept["loss"]], 1)
        )
        figures.rank(axes[0, 2], results["rank"], tolerance=0.5)
        assert len(axes[0, 2].lines) == 3
        figures.rank_difference(axes[1, 0], results["rank"], tolerance=0.5)
        figures.effective_rank(axes[1, 1], results["spectrum"])
        for draw, name in ((figures.entropy, "entropy"), (figures.mean_row_fraction, "mean_row_fraction")):
            axes[1, 1].clear()
            draw(axes[1, 1], results["spectrum"])
            np.testing.assert_array_equal(axes[1, 1].lines[0].get_ydata(), results["spectrum"][name])
        ppl = xr.Dataset({"ppl_mean": ("step", STEPS + 2.0), "ppl_median": ("step", STEPS + 1.0)}, {"step": STEPS})
        figures.perplexity(axes[1, 2], {"forward": ppl})
        assert axes[1, 2].get_yscale() == "log"
        np.testing.assert_array_equal(axes[1, 2].lines[0].get_ydata(), ppl["ppl_median"])


def test_the_same_result_gives_the_same_files(tmp_path: Path, results: dict[str, xr.Dataset]) -> None:
    for folder in ("a", "b"):
        with figures.sheet() as (figure, ax):
            figures.order(ax, results["order"], name="walk")
            written = figures.save(figure, tmp_path / folder / "order")
        assert [path.name for path in written] == ["order.png", "order.svg"]
    for name in ("order.png", "order.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert b"order parameter b" in (tmp_path / "a" / "order.svg").read_bytes()


def test_one_step_can_be_drawn() -> None:
    with figures.sheet() as (_, ax):
        result = analyse(np.random.default_rng(0).normal(size=(1, 9, 4)), ["density"])["density"]
        figures.density(ax, result)
        assert ax.collections


def test_every_two_steps(results: dict[str, xr.Dataset]) -> None:
    pairs = results["two_time"]
    with figures.sheet(columns=2, rows=2) as (_, axes):
        figures.ageing(axes[0, 0], pairs)
        table = pairs["ageing"].to_numpy()
        for line in axes[0, 0].lines:
            row = list(STEPS).index(int(line.get_label().removeprefix("from step s = ").replace(",", "")))
            good = np.isfinite(table[row]) & (table[row] > 0)
            np.testing.assert_array_equal(line.get_ydata(), table[row][good])
            np.testing.assert_array_equal(line.get_xdata(), pairs["lag"].to_numpy()[good])
        assert "from step s = 1,000" not in [line.get_label() for line in axes[0, 0].lines]
        figures.displacement_by_lag(axes[0, 1], pairs)
        assert axes[0, 1].lines[0].get_label() == "measured"  # steps of many ages share no lags
        axes[0, 1].clear()
        even = np.cumsum(np.random.default_rng(1).normal(size=(20, 30, 8)), axis=0)
        figures.displacement_by_lag(axes[0, 1], two_time(even))
        mean, walk, ballistic = axes[0, 1].lines
        assert "exponent" in mean.get_label()
        lags = walk.get_xdata()
        np.testing.assert_allclose(np.log(walk.get_ydata()[1:] / walk.get_ydata()[0]), np.log(lags[1:] / lags[0]))
        np.testing.assert_allclose(
            np.log(ballistic.get_ydata()[1:] / ballistic.get_ydata()[0]), 2 * np.log(lags[1:] / lags[0])
        )
        figures.cosine(axes[1, 0], pairs)
        (mesh,) = axes[1, 0].collections
        assert mesh.get_array().mask[4].all()
        np.testing.assert_array_equal(mesh.get_coordinates()[:, 0, 1], [-0.5, 0.5, 1.5, 3, 502, 1500, 2500, 3500])
        figures.trajectory(axes[1, 1], pairs)
        assert len(axes[1, 1].lines) == 6
        assert "of variance (walk" in axes[1, 1].lines[0].get_label()
        for measured, null in zip(axes[1, 1].lines[::2], axes[1, 1].lines[1::2], strict=True):
            assert np.nansum(measured.get_ydata() * null.get_ydata()) >= 0


def test_the_slope_of_the_loss_and_the_infinite_batch(results: dict[str, xr.Dataset]) -> None:
    with figures.sheet(columns=2) as (_, axes):
        figures.loss_slope(axes[0], results["order"])
        points = axes[0].collections[0].get_offsets()
        kept = results["order"].dropna("step", subset=["order_parameter", "dloss_db"])
        np.testing.assert_allclose(
            points[~points.mask.any(axis=1)], np.stack([kept["order_parameter"], kept["dloss_db"]], 1)
        )
        figures.rank_infinite(axes[1], results["rank"], convention="relative")
        for line in axes[1].lines:
            tolerance = float(line.get_label().removeprefix("tolerance "))
            wanted = results["rank"]["rank_infinite"].sel({"tolerance": tolerance, "convention": "relative"})
            np.testing.assert_array_equal(line.get_ydata(), wanted)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_can_be_drawn(steps: int) -> None:
    pairs = analyse(np.random.default_rng(0).normal(size=(steps, 9, 4)), ["two_time"])["two_time"]
    with figures.sheet(columns=2, rows=2) as (_, axes):
        figures.ageing(axes[0, 0], pairs)
        figures.displacement_by_lag(axes[0, 1], pairs)
        figures.cosine(axes[1, 0], pairs)
        figures.trajectory(axes[1, 1], pairs)
        assert axes[1, 0].collections


def test_a_figure_says_what_it_takes() -> None:
    weights = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    motion, order, ax = msd(weights), order_parameter(weights), Figure().subplots()
    figures.msd(ax, result=motion)
    cases: list[tuple[Any, Any, str]] = [
        (figures.msd, order, r"figures.msd draws: the result of pythia_dynamics.msd, .* it was given frobenius_norm"),
        (figures.density, motion, "figures.density draws: the result of pythia_dynamics.density.* it was given msd"),
        (figures.msd, weights, "it was given ndarray, no Dataset"),
        (figures.ageing, motion, "figures.ageing draws: the result of pythia_dynamics.two_time"),
    ]
    for draw, given, message in cases:
        with pytest.raises(PythiaDynError, match=message):
            draw(ax, given)
