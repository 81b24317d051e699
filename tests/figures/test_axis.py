"""The x axis of figures over steps: positions, ticks and labels; where it is not known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pythia_dynamics import figures
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.figures.axis import along, axis_of, saved_axis
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.figures.step_scale import choose_step_scale
from pythia_dynamics.figures.style import edges, step_axis
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.learning_rate import cumulative_learning_rate
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure

STEPS = np.array([0, 10, 20, 50, 100])
KNOWN = {"tokens": STEPS * 2e6, "learning_rate": np.array([1.0, 0.5, 0.5, 0.25, 0.25])}


def drawn(kind: Any, *, panel: Any = None, points: np.ndarray = STEPS) -> tuple[Any, Any]:
    """The axes of a curve over the steps, and where its points are, as fractions of the width."""
    axis = axis_of(kind, STEPS, KNOWN, where="m")
    with figures.sheet() as (figure, ax):
        ax.plot(points, np.arange(len(points)))
        ax.axvline(50)
        if panel:
            panel(ax)
        step_axis(ax, "value")
        axis.apply(ax)
        figure.canvas.draw()
        places = ax.transAxes.inverted().transform(ax.transData.transform(np.column_stack([points, points * 0])))[:, 0]
        ticks = {tick.get_text(): float(at) for at, tick in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)}
        return ax, (places, ticks)


@pytest.mark.parametrize("kind", ["tokens", "learning-rate"])
def test_points_are_at_the_value_of_their_step(kind: Any) -> None:
    ax, (places, ticks) = drawn(kind)
    expected = KNOWN["tokens"] if kind == "tokens" else cumulative_learning_rate(STEPS, KNOWN["learning_rate"])
    np.testing.assert_allclose((places - places[0]) / (places[-1] - places[0]), expected / expected[-1], atol=1e-6)
    assert ax.get_xlabel() == {"tokens": "tokens seen", "learning-rate": "cumulative learning rate Ση"}[kind]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), STEPS)  # the data stay as they are
    axis = axis_of(kind, STEPS, KNOWN, where="m")
    shown = {text: float(axis.at(at)) for text, at in ticks.items()}
    texts = ("0", "50M", "100M") if kind == "tokens" else ("0", "10", "20", "30")
    for text in texts:
        assert shown[text.replace("-", "−")] == pytest.approx(
            float(text.removesuffix("M")) * (1e6 if "M" in text else 1)
        )


def test_over_the_step_nothing_changes() -> None:
    ax, (places, _) = drawn("step")
    assert (ax.get_xlabel(), ax.get_xscale()) == ("training step", "linear")
    assert np.diff(places).argmax() == 3


def test_heat_maps_and_panels_over_something_else() -> None:
    def heat(ax: Any) -> None:
        ax.pcolormesh(edges(STEPS.astype(float)), [0, 1], np.arange(5.0)[None])

    ax, _ = drawn("learning-rate", panel=heat)
    assert ax.get_xscale() == "function"
    axis = axis_of("tokens", STEPS, KNOWN, where="m")
    with figures.sheet(2) as (_, axes):
        axes[0].set_xlabel("lag τ (steps)")
        step_axis(axes[1], "training step")
        axis.apply(axes)
        assert [each.get_xlabel() for each in axes] == ["lag τ (steps)", "tokens seen"]
        assert axes[1].get_ylabel() == "tokens seen"


def test_values_at_the_pointer_are_those_of_the_axis() -> None:
    axis = axis_of("learning-rate", STEPS, KNOWN, where="m")
    with figures.sheet() as (figure, ax):
        ax.plot(STEPS, STEPS)
        step_axis(ax, "value")
        axis.apply(ax)
        (panel,) = figures.inline(figure, "k", label="l").panels
    assert panel.x["scale"] == "linear"
    expected = cumulative_learning_rate(STEPS, KNOWN["learning_rate"])
    assert panel.places[0] == pytest.approx(expected.tolist(), rel=1e-4)
    low, high = panel.x["limits"]
    assert low < 0 < expected[-1] < high


def test_steps_beyond_what_is_known_are_an_error() -> None:
    with pytest.raises(PythiaDynError, match=r"steps 0 to 400, but its axis \(tokens seen\) is known from"):
        drawn("tokens", points=np.array([0, 400]))


@pytest.mark.parametrize(
    ("kind", "coordinates", "message"),
    [
        ("tokens", {}, "the tokens of m are not known"),
        ("learning-rate", {}, "the learning rate of m is not known; give it with --learning-rate FILE"),
        ("learning-rate", {"learning_rate": [math.nan, 1, 1, 1, 1]}, "is not known at step 0, from which it is summed"),
        (
            "learning-rate",
            {"learning_rate": [1, 1, 1, math.nan, math.nan]},
            "the learning rate of m is not known at step 50",
        ),
        ("tokens", {"tokens": [math.nan, 1, 2, 3, 4]}, "the tokens of m are not known at step 0"),
        ("tokens", {"tokens": [0, 2, 1, 3, 4]}, "cannot be an axis: the values do not grow"),
        ("learning-rate", {"learning_rate": [0, 0, 0, 0, 0]}, "cannot be an axis"),
    ],
)
def test_where_it_is_not_known(kind: Any, coordinates: Any, message: str) -> None:
    with pytest.raises(PythiaDynError, match=message) as caught:
        axis_of(kind, STEPS, coordinates, where="m")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UnknownNameError, match="no axis 'time'"):
        axis_of("time", STEPS, {}, where="m")  # type: ignore[arg-type]


def test_gaps_inside_are_bridged() -> None:
    axis = axis_of("tokens", STEPS, {"tokens": [0, math.nan, 20, 50, 100]}, where="m")
    assert axis.at([10, 75]).tolist() == [10, 75]
    flat = axis_of("learning-rate", STEPS, {"learning_rate": [1, 0, 0, 0, 1]}, where="m")
    assert flat.at(flat.step_at([1.0, 6.0])).tolist() == [1.0, 6.0]


def history(rate: dict[int, float] | None, name: str = "m") -> History:
    w = np.random.default_rng(0).normal(size=(5, 30, 4)).cumsum(axis=0).astype(np.float32)
    return History.from_array(w, STEPS, name=name, learning_rate=rate)


def test_saved_results_know_their_axis(tmp_path: Path) -> None:
    rate = dict(zip(STEPS.tolist(), KNOWN["learning_rate"].tolist(), strict=True))
    results, other = Results("m", tmp_path), Results("n", tmp_path)
    measure(history(rate), ["order", "msd"], results, axis="learning-rate")
    measure(history(None), ["order"], other)
    axis = saved_axis(results, "learning-rate")
    np.testing.assert_allclose(axis.at(STEPS), cumulative_learning_rate(STEPS, KNOWN["learning_rate"]))
    with pytest.raises(PythiaDynError, match="the learning rate of n is not known"):
        saved_axis(other, "learning-rate")
    with pytest.raises(PythiaDynError, match="the tokens of m are not known"):
        saved_axis(results, "tokens")
    with pytest.raises(PythiaDynError, match="the learning rate of array is not known"):
        measure(history(None, "array"), ["order"], Results("array", tmp_path), axis="learning-rate")
    assert not (tmp_path / "array").exists()
    provenance = results.of("weights").provenance()
    assert provenance["msd"]["learning_rate"] == "given as a mapping"
    assert other.of("weights").provenance()["order"]["learning_rate"] == "not known"
    assert "displacement_per_learning_rate" in results.of("weights").read_table("msd")


def test_models_with_different_learning_rates_have_no_common_axis(tmp_path: Path) -> None:
    one, same, two = (axis_of("learning-rate", STEPS, {"learning_rate": np.full(5, x)}, where="m") for x in (1, 1, 2))
    spec = FigureSpec(tmp_path / "x", "t", "c", lambda ax: step_axis(ax, "value"))
    assert along([spec], one, same)[0].key == "x"
    with pytest.raises(PythiaDynError, match="models with a different learning rate at a step have no common axis"):
        along([spec], one, two)


# -- the logarithm of the step ----------------------------------------------------------------------------------


def scale_of(curves: list[np.ndarray], steps: np.ndarray, *, yscale: str = "linear") -> str:
    """The scale that is chosen for a figure of two panels: curves over steps, and something else."""
    with figures.sheet(2) as (_, axes):
        for curve in curves:
            axes[0].plot(steps, curve)
        axes[0].axvline(3)
        axes[0].set_yscale(yscale)
        step_axis(axes[0], "value")
        axes[1].plot(steps, np.exp(-steps / steps[-1] * 100))
        axes[1].set_xlabel("order parameter b")
        choose_step_scale(axes)
        assert axes[1].get_xscale() == "linear"
        scale: str = axes[0].get_xscale()
        return scale


EVEN = np.arange(10.0, 1440, 10)
EARLY, EVENLY, LATE = np.exp(-EVEN / 30), EVEN / 1430, np.exp(EVEN / 30)


@pytest.mark.parametrize(
    ("curves", "yscale", "scale"),
    [
        ([EARLY], "linear", "log"),
        ([EVENLY], "linear", "linear"),
        ([LATE], "linear", "linear"),
        ([EARLY, EARLY, EVENLY], "linear", "log"),  # the median curve
        ([EARLY, EVENLY, LATE], "linear", "linear"),
        ([EARLY], "log", "linear"),  # what is seen counts: on this scale it is a straight line
        ([EARLY, np.full(EVEN.shape, 2.0), np.full(EVEN.shape, np.nan)], "linear", "log"),  # two do not change
        ([np.where(EVEN < 30, np.nan, EARLY)], "linear", "log"),
        ([np.full(EVEN.shape, 2.0)], "linear", "linear"),
        ([], "linear", "linear"),
    ],
)
def test_where_everything_happens_early_the_steps_are_logarithmic(
    curves: list[np.ndarray], yscale: str, scale: str
) -> None:
    assert scale_of(curves, EVEN, yscale=yscale) == scale


def test_step_0_has_a_place_on_a_logarithmic_axis() -> None:
    steps = np.array([0, 1, 2, 4, 512, 1000, 143000])
    with figures.sheet(2) as (figure, axes):
        axes[0].plot(steps, np.arange(7))
        axes[1].pcolormesh(edges(steps.astype(float)), [0, 1], np.arange(7.0)[None])
        for ax in axes:
            step_axis(ax, "value")
        axis_of("log-step", steps, {}, where="m").apply(axes)
        figure.canvas.draw()
        for ax in axes:
            assert ax.get_xscale() == "symlog"
            texts = [label.get_text() for label in ax.get_xticklabels()]
            assert texts == ["0", "1", "10", "100", "1k", "10k", "100k"]
            places = ax.transData.transform(np.column_stack([steps, steps * 0]))[:, 0]
            assert (np.diff(places) > 4).all()
            assert ax.get_xlabel() == "training step"
        (panel, _) = figures.inline(figure, "k", label="l").panels  # a page has linear and logarithmic axes only
        assert panel.x["scale"] == "linear"


@pytest.mark.parametrize(("kind", "scale"), [("step", "log"), ("log-step", "log"), ("linear-step", "linear")])
def test_the_scale_can_be_named(kind: Any, scale: str, tmp_path: Path) -> None:
    def draw(ax: Any) -> None:
        ax.plot(EVEN, EARLY)
        step_axis(ax, "value")
        choose_step_scale(ax)

    spec = FigureSpec(tmp_path / "x", "t", "c", draw)
    (chosen,) = along([spec], axis_of(kind, EVEN, {}, where="m"), saved_axis(Results("m", tmp_path), kind))
    with chosen.sheet() as (figure, ax):
        chosen.draw(ax)
        assert ax.get_xscale() == scale
        assert figures.inline(figure, "k", label="l").panels[0].x["scale"] == scale
