"""The figure of a population: what is drawn where, gaps, axes, sizes, and the runs that leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from support.populations import STEPS, save_order

import pythia_dynamics as pyd
from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import SIZES
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.spread import band


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seeds of 160m, of which the fourth leaves and the sixth has gaps; three of 70m at another learning rate."""
    directory = tmp_path_factory.mktemp("population")
    rng = np.random.default_rng(0)
    for size, count, rate in (("160m", 9, 1e-3), ("70m", 3, 2e-3)):
        for seed in range(1, count + 1):
            values = 2 * np.exp(0.05 * rng.normal() + 0.005 * rng.normal(size=40)) * (1 + STEPS / 1e5)
            if (size, seed) == ("160m", 4):
                values *= np.exp(0.8 * np.clip((np.arange(40) - 20) / 10, 0, 1))
            kept = np.setdiff1d(np.arange(40), [10, 12] if (size, seed) == ("160m", 6) else [])
            known = {"tokens": (STEPS[kept] * 2_000_000).tolist(), "learning_rate": [rate] * len(kept)}
            save_order(directory, f"pythia-{size}-seed{seed}", values[kept], STEPS[kept], coordinates=known)
    return directory


@pytest.fixture
def one_size(saved: Path) -> xr.Dataset:
    return pyd.gather("pythia-160m-*", measure="order", results=saved)


@pytest.fixture
def two_sizes(saved: Path) -> xr.Dataset:
    return pyd.gather("pythia-*", measure="order", results=saved)


def labelled(ax: Axes) -> dict[str, np.ndarray]:
    return {
        str(line.get_label()): np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_label()[0] != "_"
    }


def test_every_run_the_median_the_band_and_the_run_that_leaves(one_size: xr.Dataset) -> None:
    spread = band(one_size["order_parameter"])
    with figures.sheet() as (_, ax):
        figures.population(ax, one_size)
        lines = labelled(ax)
        np.testing.assert_allclose(lines["pythia-160m: median of 9 runs"], spread["median"])
        (leaving,) = (label for label in lines if "leaves" in label)
        assert leaving.startswith("seed4 leaves at step 2")
        step = int(leaving.rpartition(" ")[2].replace(",", ""))
        (mark,) = (line for line in ax.lines if line.get_marker() == "o")
        values = one_size["order_parameter"].sel(run="pythia-160m-seed4")
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (step, float(values.sel(step=step)))
        outline = ax.collections[0].get_paths()[0].vertices
        for at in (0, 25, 39):
            drawn = outline[outline[:, 0] == STEPS[at], 1]
            assert {drawn.min(), drawn.max()} == {float(spread["low"][at]), float(spread["high"][at])}
        thin = [line for line in ax.lines if line.get_linewidth() == 0.5]
        assert len(thin) == 8
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("training step", "order parameter", "linear")


def test_gaps_are_not_bridged_and_a_single_record_is_a_dot(one_size: xr.Dataset) -> None:
    with figures.sheet() as (_, ax):
        figures.population(ax, one_size)
        own = one_size["order_parameter"].sel(run="pythia-160m-seed6").to_numpy()
        (line,) = (line for line in ax.lines if np.array_equal(line.get_ydata(), own, equal_nan=True))
        assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [10, 12]
        (dot,) = (line for line in ax.lines if line.get_marker() == ".")
        assert (dot.get_xdata().tolist(), dot.get_ydata().tolist()) == ([STEPS[11]], [own[11]])


def test_sizes_have_colours_and_axes_of_their_own(two_sizes: xr.Dataset) -> None:
    with figures.sheet(3) as (_, axes):
        figures.population(axes[0], two_sizes, axis="learning-rate")
        figures.population(axes[1], two_sizes, axis="tokens", divide=True)
        figures.population(axes[2], two_sizes, axis="log-step", variable="rms", name="two sizes")
        for ax in axes:
            medians = [line for line in ax.lines if "median" in str(line.get_label())]
            assert [line.get_label() for line in medians] == [
                "pythia-70m: median of 3 runs",
                "pythia-160m: median of 9 runs",
            ]
            assert len({line.get_color() for line in medians}) == 2
        ends = {line.get_label()[:10]: line.get_xdata()[-1] for line in axes[0].lines if "median" in line.get_label()}
        assert ends == pytest.approx({"pythia-70m": 2 * 39, "pythia-160": 39})  # Σ η from the first record
        tokens = [line.get_xdata()[-1] for line in axes[1].lines if "median" in line.get_label()]
        assert tokens == [40_000 * 2_000_000] * 2
        small = two_sizes["order_parameter"].sel(run=[f"pythia-70m-seed{seed}" for seed in (1, 2, 3)])
        drawn = labelled(axes[1])["pythia-70m: median of 3 runs"]
        np.testing.assert_allclose(drawn, small.median("run") / SIZES["70m"].parameters)
        assert [ax.get_xlabel() for ax in axes] == ["cumulative learning rate Ση", "tokens seen", "training step"]
        assert axes[1].get_ylabel() == "order parameter per parameter"
        assert (axes[2].get_xscale(), axes[2].get_title(), axes[2].get_ylabel()) == ("log", "two sizes", "rms (weight)")


def test_values_over_decades_are_logarithmic(one_size: xr.Dataset) -> None:
    with figures.sheet() as (_, ax):
        grown = one_size.assign(order_parameter=one_size["order_parameter"] ** 8)
        figures.population(ax, grown)
        assert ax.get_yscale() == "log"
    with figures.sheet() as (_, ax):
        figures.population(ax, grown.assign(order_parameter=grown["order_parameter"] - 1e4))
        assert ax.get_yscale() == "linear"


def test_one_run_and_no_value(one_size: xr.Dataset) -> None:
    with figures.sheet(2) as (figure, axes):
        figures.population(axes[0], one_size.isel(run=[2]))
        assert list(labelled(axes[0])) == ["pythia-160m"]
        assert not axes[0].collections
        nothing = one_size.isel(run=slice(0, 5)) * np.nan
        figures.population(axes[1], nothing.assign_attrs(one_size.attrs))
        assert np.isnan(labelled(axes[1])["pythia-160m: median of 5 runs"]).all()
        figure.draw_without_rendering()


def test_an_axis_that_is_not_known_is_one_line(one_size: xr.Dataset) -> None:
    apart = one_size["tokens"] * xr.DataArray(np.arange(1, 10), dims="run")
    cases = {
        "the tokens of pythia-160m are not known": one_size.drop_vars("tokens"),
        "runs of pythia-160m with a different tokens at a step": one_size.assign_coords(
            tokens=(("run", "step"), apart.transpose("run", "step").to_numpy())
        ),
        "order has no curve over steps": one_size.rename(step="time"),
    }
    for message, dataset in cases.items():
        with figures.sheet() as (_, ax), pytest.raises(PythiaDynError, match=message):
            figures.population(ax, dataset, variable="rms", axis="tokens")
