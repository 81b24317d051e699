"""All tensors of a population: what is told, written and drawn."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from support.populations import STEPS, save_order

import pythia_dynamics as pyd
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.results.departures import departures
from pythia_dynamics.studies.population_tensors import study_tensors, tensor_lines, write_tensors

LAYERS = 12


def save_runs(results: Path, *, leaves: float = 0.0, runs: int = 8) -> None:
    """Runs of 12 tensors; run 3 leaves the others in the tensor of layer 5, by `leaves` in logarithms, from step 21."""
    rng = np.random.default_rng(7)
    for seed in range(1, runs + 1):
        for layer in range(LAYERS):
            curve = np.exp(0.01 * (layer + 1) * rng.normal() + 0.001 * rng.normal(size=len(STEPS)))
            if (seed, layer) == (3, 5):
                curve[20:] *= np.exp(leaves)
            save_order(results, f"tiny-seed{seed}", curve, tensor=f"layers.{layer}.mlp.up_proj.weight")


def test_what_is_told_of_all_tensors(tmp_path: Path) -> None:
    save_runs(tmp_path, leaves=3.0)
    found = study_tensors(pyd.gather("tiny-*", measure="order", tensor="all", results=tmp_path), "order_parameter")
    lines = tensor_lines(found)
    assert lines[0] == "tiny: order parameter of 12 tensors, 8 runs, 40 steps (1000 … 40000)"
    assert "(layers.0.mlp.up_proj.weight)" in lines[1].split(" to ")[0]  # the least spread was planted there
    assert "(layers.5.mlp.up_proj.weight), median" in lines[1]
    assert lines[2] == "  more variance between runs than within one in 12 of 12 tensors"
    assert lines[3].startswith("  tiny-seed3 leaves the others at step 21000 in layers.5.mlp.up_proj.weight (")
    assert len(lines) == 4
    ((tensor, one),) = found.departures
    curve = found.curves.sel(tensor=tensor)
    (alone,) = departures(curve).found
    assert one.p == pytest.approx(12 * alone.p)  # as many tests as tensors
    assert found.groups[tensor].variances.icc > 0.9


def test_a_departure_that_chance_makes_among_so_many_tensors_is_none(tmp_path: Path) -> None:
    """One run of one tensor is just outside: enough for one test, not for twelve."""
    save_runs(tmp_path, leaves=0.5)
    dataset = pyd.gather("tiny-*", measure="order", tensor="all", results=tmp_path)
    (alone,) = departures(dataset["order_parameter"].isel(tensor=5).transpose("run", "step")).found
    assert 0.025 / LAYERS < alone.p <= 0.025
    found = study_tensors(dataset, "order_parameter")
    assert not found.departures
    assert tensor_lines(found)[-1] == "  no run leaves the others in any tensor (p corrected for 12 tensors)"


def test_the_files_of_all_tensors(tmp_path: Path) -> None:
    save_runs(tmp_path, runs=3)
    dataset = pyd.gather("tiny-*", measure="order", tensor="all", results=tmp_path)
    found = study_tensors(dataset)
    assert found.variable == "rms"  # what the overview of one model shows
    assert tensor_lines(found)[-1] == "  leaving runs: undecided (3 runs; 5 are needed)"
    outcome = write_tensors(dataset, found, ["tiny-*"], tmp_path)
    assert [path.relative_to(tmp_path / "runs" / "tiny-+" / "order,all").as_posix() for path in outcome.files] == [
        f"rms{end}" for end in (".csv", "-band.csv", "-tensors.csv", ".png", ".svg")
    ]
    runs, bands, tensors = (list(csv.DictReader(path.read_text().splitlines())) for path in outcome.files[:3])
    assert (len(runs), len(bands), len(tensors)) == (LAYERS * 3 * 40, LAYERS * 40, LAYERS)
    for row in runs[:: len(runs) // 50]:
        value = dataset["rms"].sel(tensor=row["tensor"], run=row["run"], step=int(row["step"]))
        assert float(row["rms"]) == float(value)
    for row in bands[:: len(bands) // 50]:
        values = dataset["rms"].sel(tensor=row["tensor"], step=int(row["step"])).to_numpy()
        assert float(row["median"]) == pytest.approx(np.median(values))
        assert float(row["low"]) == pytest.approx(np.quantile(values, 0.1))
    assert [row["layer"] for row in tensors] == [str(layer) for layer in range(LAYERS)]
    assert {row["kind"] for row in tensors} == {"mlp-in"}
    assert outcome.facts["tensors"]["layers.4.mlp.up_proj.weight"]["runs"] == 3
    svg = outcome.files[-1].read_text()
    assert "layer 11" in svg
    assert "tiny-*" in svg


def test_sizes_have_other_tensors(tmp_path: Path) -> None:
    save_runs(tmp_path, runs=2)
    save_order(tmp_path, "large-seed1", np.sqrt(STEPS), tensor="layers.0.mlp.up_proj.weight")
    dataset = pyd.gather(["tiny-*", "large-seed1"], measure="order", tensor="all", results=tmp_path)
    with pytest.raises(PythiaDynError, match="these are runs of tiny, large: gather all tensors of one family"):
        study_tensors(dataset)
