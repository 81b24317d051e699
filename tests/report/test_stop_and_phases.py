"""The figures of `stop` and `phases` are drawn from saved results: by their commands, by `figures`, and in the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.walks import walk

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.cli.app import main
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.figures.timeline import phases_figure, stop_figure
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.phases import agreement, phases
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure, write_phases, write_stop
from pythia_dynamics.studies.sections import figure_specs, write_report
from pythia_dynamics.training.stopping import StationarityRule, replay

STEPS = np.arange(0, 40_000, 1000)
RULE = StationarityRule("displacement", threshold=0.01, patience=2)


def history(name: str) -> History:
    """A walk that becomes three times as fast at step 20,000, and at 30,000 slow."""
    frames = walk(len(STEPS), 30, 8, np.float32, 0)
    increments = np.diff(frames, axis=0) * np.where(STEPS[1:] < 20_000, 1, np.where(STEPS[1:] < 30_000, 3, 0.01))[
        :, None, None
    ].astype(np.float32)
    moved = np.concatenate([frames[:1], frames[0] + np.cumsum(increments, axis=0)])
    made = History.from_array(moved, STEPS, name=name, tensor=EMBED_OUT)
    return made.with_learning_rate({0: 0.001, 40_000: 0.001})


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """The results of both, and of one measure."""
    one = Results("mine", tmp_path / "results")
    own, made = one.of(EMBED_OUT), history("mine")
    measure(made, ["order"], one)
    found = replay(made, RULE, loss={0: 3.0, 30_000: 2.5, 39_000: 2.0})
    assert found.stopped_at == 31_000
    write_stop(own, found, made)
    signals = phases(made)
    write_phases(own, signals, agreement({"mine": signals}), made)
    return one


def test_both_are_drawn_anew(results: Results) -> None:
    folder = results.of(EMBED_OUT).path
    files = [folder / f"{name}{suffix}" for name in ("stop", "phases") for suffix in (".png", ".svg")]
    before = {file: file.read_bytes() for file in files}
    for file in files:
        file.unlink()
    result = CliRunner().invoke(main, ["figures", "--model", "mine", "--results", str(results.path.parent)])
    assert result.exit_code == 0, result.output
    assert {file: file.read_bytes() for file in files} == before
    assert all(str(file) in result.stdout for file in files)


def test_they_show_what_was_found(results: Results) -> None:
    own = results.of(EMBED_OUT)
    stop, found = stop_figure(own), phases_figure(own)
    assert "The rule stops at step 31,000 of 39,000" in stop.caption
    assert stop.caption.endswith(".")
    assert "displacement rate: 20,000, 30,000" in found.caption.lower()
    with stop.sheet() as (_, ax):
        stop.draw(ax)
        vertical = [line.get_xdata()[0] for line in ax.lines if line.get_label() == "stops"]
        level = [line.get_ydata()[0] for line in ax.lines if line.get_label() == "threshold"]
    assert (vertical, level) == ([31_000], [RULE.threshold])
    with found.sheet() as (_, axes):
        found.draw(axes)
        drawn = [sorted(line.get_xdata()[0] for line in ax.lines[1:]) for ax in axes]
    assert drawn[0] == [20_000, 30_000]


def test_both_are_in_the_page_and_among_the_figures(results: Results, tmp_path: Path) -> None:
    assert [spec.key for spec in figure_specs(results)] == ["order", "stop", "phases"]
    page = write_report([results], tmp_path / "page.html").read_text()
    for key in ("m1-stop", "m1-phases"):
        assert f'<figure class="plate wide" id="{key}">' in page or f'<figure class="plate" id="{key}">' in page
    assert "Stopping rule “displacement”: the rule stops at step 31,000 of 39,000" in page
    assert "found in the motion: displacement rate at steps 20,000 and 30,000" in page


def test_what_is_not_known_is_not_drawn(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    own = results.of(EMBED_OUT)
    own.record("stop", {"tensor": EMBED_OUT})
    with pytest.raises(PythiaDynError, match=r"not say which rule stop.csv is of: run pythia-dyn stop --model mine"):
        stop_figure(own)
    assert [spec.key for spec in figure_specs(results)] == ["order", "phases"]
    (own.path / "phases.zarr").rename(own.path / "other.zarr")
    with pytest.raises(PythiaDynError, match=r"phases.zarr is missing: run pythia-dyn phases --model mine"):
        phases_figure(own)
    monkeypatch.setattr(figures, "save", lambda figure, path: [])
    made = history("mine")
    never = write_stop(own, replay(made, StationarityRule("displacement", threshold=1e-9)), made)
    assert "does not stop" in never.summary
    assert "does not stop" in stop_figure(own).caption
