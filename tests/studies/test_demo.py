"""The demo, whole, on a suite small enough for a test."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pythia_dynamics.progress import silent
from pythia_dynamics.results import folder as results
from pythia_dynamics.results.losses import read_losses
from pythia_dynamics.studies import demo
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.text import Text, python_reference

PLAN = TrainingPlan(
    d_model=16, layers=1, heads=2, context=32, vocab=300, batch=4, max_steps=36, checkpoints=12, warmup_steps=2
)
STEPS = list(range(3, 37, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[demo.Report, Path, list[str]]:
    directory, stages = tmp_path_factory.mktemp("demo"), []

    @contextmanager
    def stage(label: str, unit: str):
        stages.append(label)
        yield silent

    whole = python_reference()
    report = demo.run(
        stage=stage,
        text=Text.of(whole.name, whole.passages[:600]),
        plan=PLAN,
        cache=directory / "cache",
        results=directory / "results",
    )
    return report, directory, stages


def test_every_promised_file_is_there(made: tuple[demo.Report, Path, list[str]]) -> None:
    report, directory, _ = made
    model = directory / "results" / "demo"
    weights = model / "embed_out.weight"
    tables = {weights: ["msd", "angles", "order", "rank", "spectrum", "tails", "rows"]}
    tables[model] = [f"perplexity-{mode}" for mode in ("forward", "unmask", "last-word")]
    figures = {**tables, weights: ["density", "two_time", *tables[weights]]}
    for folder, names in {**tables, weights: ["moments", *tables[weights]]}.items():
        for name in names:
            rows = (folder / f"{name}.csv").read_text().splitlines()
            assert sorted({int(row.split(",")[0]) for row in rows[1:]}) == STEPS
    for folder, names in figures.items():
        for name in names:
            assert (folder / f"{name}.png").is_file()
            assert (folder / f"{name}.svg").is_file()
        assert set(json.loads((folder / "provenance.json").read_text())) == set(names)
    assert (weights / "density.zarr").is_dir()
    assert (weights / "two_time.zarr").is_dir()
    assert (weights / "rank-infinite.csv").is_file()
    assert {path.suffix for path in report.files} == {".csv", ".json", ".zarr", ".png", ".svg"}
    assert all(path.exists() for path in report.files)


def test_the_store_holds_what_was_trained(made: tuple[demo.Report, Path, list[str]]) -> None:
    report, directory, _ = made
    assert report.fetched.fetched == tuple(STEPS)
    assert report.suite.path == directory / "cache" / "demo"
    assert report.suite.losses[0].train > report.suite.losses[-1].train


def test_the_results_hang_together(made: tuple[demo.Report, Path, list[str]]) -> None:
    _, directory, _ = made
    out = results.Results("demo", directory / "results")
    order, moments = out.weights().read_table("order"), out.weights().read_table("moments")
    forward = read_losses(out.path / "perplexity-forward.csv")
    np.testing.assert_allclose(order["loss"], [forward[step] for step in STEPS])
    square = (moments["std"] ** 2 + moments["mean"] ** 2) * 300 * 16
    np.testing.assert_allclose(order["order_parameter"], np.sqrt(square) / 16, rtol=1e-12)
    assert (out.weights().read_table("msd")["msd"][1:] > 0).all()


def test_a_second_run_starts_from_what_is_there(made: tuple[demo.Report, Path, list[str]]) -> None:
    report, directory, _ = made
    whole = python_reference()

    @contextmanager
    def stage(label: str, unit: str):
        yield silent

    again = demo.run(
        stage=stage,
        text=Text.of(whole.name, whole.passages[:600]),
        plan=PLAN,
        cache=directory / "cache",
        results=directory / "results",
    )
    assert not again.suite.fresh
    assert again.fetched.fetched == ()
    assert [outcome.summary for outcome in again.outcomes] == [outcome.summary for outcome in report.outcomes]
