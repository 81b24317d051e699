"""A measure that is defined outside the package, as docs/own_measure.md has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from support.walks import walk

import pythia_dynamics as pyd
from pythia_dynamics.checkpoints.registry import UNEMBEDDING
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.history.cache import as_history
from pythia_dynamics.history.store import Store, TensorSpec
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.measures.catalogue import BUILT_IN
from pythia_dynamics.measures.displacement import Integral
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.counts import Counts
from pythia_dynamics.sweep.frames import slabs
from pythia_dynamics.sweep.sweep import SlabSums

PAGE = Path(__file__).parents[2] / "docs" / "own_measure.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def block(language: str, number: int = 0) -> str:
    return [code for found, code in BLOCKS if found == language][number]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory with the measure of the page, registered as an installed package registers it."""
    (tmp_path / "sparsity.py").write_text(block("python"))
    section = block("toml").split('[project.entry-points."pythia_dynamics.measures"]\n')[1].split("\n\n")[0]
    point = re.sub(r'"', "", section)
    info = tmp_path / "sparsity-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sparsity\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[pythia_dynamics.measures]\n{point}\n")
    return tmp_path


def own() -> pyd.Measure:
    names: dict[str, object] = {}
    exec(compile(block("python"), "sparsity.py", "exec"), names)
    found = names["SPARSITY"]
    assert isinstance(found, pyd.Measure)
    return found


def test_it_is_about_thirty_lines() -> None:
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 35


def test_one_reading_serves_it_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = walk(5, 600, 40, np.float16)
    ranges: dict[Any, list[tuple[int, int]]] = {Counts: [], Integral: [], SlabSums: []}
    for kind, seen in ranges.items():
        update = kind.update

        def note(self, frames, start, stop, update=update, seen=seen):
            seen.append((start, stop))
            update(self, frames, start, stop)

        monkeypatch.setattr(kind, "update", note)
    order: list[str] = []
    reading = pyd.History.frame
    monkeypatch.setattr(pyd.History, "frame", lambda self, index: (order.append("read"), reading(self, index))[1])
    found = pyd.analyse(frames, ["msd", "density", own()])
    assert list(found) == ["msd", "density", "sparsity"]
    for seen in ranges.values():
        assert sorted(seen) == slabs(24_000)  # each range once, for each of the three
    assert order == ["read"] * 5  # each frame was opened once
    small = (np.abs(frames.astype(np.float64)) < 0.01).mean(axis=(1, 2))
    np.testing.assert_allclose(found["sparsity"]["sparsity"], small)


def test_its_options_missing_steps_and_steps_that_are_not_finite() -> None:
    frames = walk(5, 60, 8, np.float32)
    frames[3, 0, 0] = np.nan
    history = pyd.History.from_array(frames, missing={1: "lost"})
    with pytest.warns(UserWarning, match="array"):
        found = own()(history, limit=0.1)
    values = found["sparsity"].to_numpy()
    assert np.isnan(values[1])
    assert values[0] == pytest.approx((np.abs(frames[0]) < 0.1).mean())
    assert found["sparsity"].attrs["long_name"] == "share of weights with |w| < 0.1"
    with pytest.raises(UnknownNameError, match="no option 'limt' in sparsity; did you mean limit"):
        own()(frames, limt=0.1)


def test_the_examples_of_the_page_run(place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block("python", 1)], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Name: sparsity" in done.stdout


def test_registered_it_has_command_table_figure_and_section(place: Path) -> None:
    frames = walk(4, 60, 8, np.float16)
    store = Store.create(place / "cache" / "demo.zarr", source="by hand")
    store.ensure([TensorSpec(UNEMBEDDING, "float16", (60, 8))], range(4))
    for step, frame in enumerate(frames):
        store.write(UNEMBEDDING, step, frame, {"commit": None})

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "pythia_dynamics", *words]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for line in block("bash").splitlines():
        run(*line.partition("#")[0].split()[1:])
    folder = place / "results" / "demo" / UNEMBEDDING
    rows = (folder / "sparsity.csv").read_text().splitlines()
    assert rows[0] == "step,sparsity,sparsity_gaussian"
    assert float(rows[1].split(",")[1]) == pytest.approx((np.abs(frames[0].astype(float)) < 0.1).mean())
    assert (folder / "sparsity.png").stat().st_size > 5_000
    page = (place / "results" / "report.html").read_text()
    assert page.count("Share of small weights") >= 2  # the figure and the table
    assert "--limit FLOAT" in run("sparsity", "--help")
    assert "sparsity" in run("--help")
    facts = json.loads(run("sparsity", "--json"))["sparsity"]
    assert facts[0]["tensor"] == UNEMBEDDING


def test_the_list_of_names_is_that_of_the_values() -> None:
    assert list(MEASURES) == list(BUILT_IN)
    for name, one in BUILT_IN.items():
        assert one.name == name
        assert one.function is not None
        assert one.function.__name__ in pyd.__all__


def test_measures_that_cannot_be() -> None:
    with pytest.raises(PythiaDynError, match="must be a Python identifier"):
        pyd.Measure(name="my measure", title="", source="", finish=lambda history: xr.Dataset(), accumulators=(Counts,))
    with pytest.raises(PythiaDynError, match="must have accumulators or a function per step"):
        pyd.Measure(name="nothing", title="", source="", finish=lambda history: xr.Dataset())
    twice = pyd.Measure(
        name="msd", title="", source="", finish=lambda history, counts: xr.Dataset(), accumulators=(Counts,)
    )
    with pytest.raises(PythiaDynError, match="two measures have the same name"):
        pyd.analyse(walk(2, 3, 3, np.float16), ["msd", twice])


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"halves": pyd.Table(("step", "half", "square"), keys=("step", "half"))}, "no column has one number per step"),
        ({}, "the measure saves nothing"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_the_table_is_written(
    tmp_path: Path, tables: dict[str, pyd.Table], why: str
) -> None:
    def finish(history: pyd.History, total: Any) -> xr.Dataset:
        halves = pyd.Variable(total.total, "Σw² of each half", dims=("step", "half"))
        return pyd.step_dataset(history, {"square": halves}, coords={"half": [0, 1]}, at=total.indices)

    def sums(weights: np.ndarray) -> tuple[float, float]:
        return float(weights[:2] @ weights[:2]), float(weights[2:] @ weights[2:])

    halves = pyd.Measure("halves", "Halves", "here", finish, (lambda: SlabSums(sums),), tables=tables)
    results = Results("walk", tmp_path)
    with pytest.warns(UserWarning, match=f"halves: no figure, because {why}"):
        (outcome,) = measure(as_history(walk(3, 4, 2, np.float32)), [halves], results)
    assert [path.name for path in outcome.files] == [f"{name}.csv" for name in tables]
