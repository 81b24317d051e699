"""Every figure that the project draws, from made-up results with long names."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from support.saved_results import representation_table, save_results

from pythia_dynamics import figures
from pythia_dynamics.figures.blog import blog_figures
from pythia_dynamics.figures.gallery import comparison_figures, model_figures
from pythia_dynamics.figures.specs import FigureSpec
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.analyse import analyse
from pythia_dynamics.measures.phases import phases
from pythia_dynamics.results.folder import Results
from pythia_dynamics.training.stopping import StationarityRule, replay

LONG_TENSOR = "gpt_neox.layers.11.attention.query_key_value.weight"


def _history() -> History:
    rng = np.random.default_rng(0)
    steps = np.arange(1000, 25000, 1000)
    frames = np.cumsum(rng.normal(size=(len(steps), 40, 8)), axis=0).astype(np.float32)
    rate = {int(step): 1e-3 * (1 - step / 30000) for step in steps}
    return History.from_array(frames, steps, name="pythia-2.8b-deduped", tensor=LONG_TENSOR, learning_rate=rate)


def _blog(directory: Path) -> Results:
    results = Results("order-parameter", directory)
    results.path.mkdir()
    steps = np.arange(0, 20001, 1000)
    rows = []
    for size, b in (("10k", 0.15), ("0.1m", 0.1), ("1m", 0.05), ("10m", 0.03)):
        for seed in (0, 1):
            loss = 2 + 2.4 * np.exp(-steps / 3000)
            order = b * (1 + steps / 10000)
            slope = np.append(np.nan, np.diff(loss) / np.diff(order))
            columns = {"model": size, "seed": seed, "step": steps, "order_parameter": order, "train_loss": loss}
            columns |= {"validation_loss": loss + 0.1, "dloss_db": slope, "dloss_db_backward": slope}
            rows.append(pd.DataFrame(columns))
    pd.concat(rows).to_csv(results.path / "runs.csv", index=False)
    return results


def _draw_population(ax: object) -> None:
    """Nine seeds of a model with a long name, two of which leave the others."""
    steps, rng = np.arange(1000, 41_000, 1000), np.random.default_rng(0)
    grown = np.sqrt(steps) * np.exp(0.05 * rng.normal(size=(9, 1)) + 0.005 * rng.normal(size=(9, 40)))
    grown[2:4] *= np.exp(np.clip((steps - 20_000) / 15_000, 0, 1) * np.array([[1.0], [1.2]]))
    names = ("run", [f"pythia-2.8b-deduped-seed{number}" for number in range(1, 10)])
    labels = {"family": ("run", ["pythia-2.8b-deduped"] * 9), "seed_kind": ("run", ["seed"] * 9)}
    runs = xr.Dataset({"frobenius_norm": (("run", "step"), grown)}, {"run": names, "step": steps, **labels})
    figures.population(ax, runs)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def every_figure(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FigureSpec]:
    """The figures by name: of a model, of several, of the blog, of the stop and the phases of a training."""
    directory = tmp_path_factory.mktemp("figures")
    names = ("pythia-2.8b-deduped", "pythia-14m", "pythia-1b-deduped")
    models = [save_results(directory, name, seed) for seed, name in enumerate(names)]
    (models[0].model.path / "representation.csv").write_text(representation_table().to_dataframe().to_csv())
    specs = [*model_figures(models[0]), *comparison_figures(models, directory), *blog_figures(_blog(directory))]
    found = {f"{spec.path.parent.name}-{spec.key}" if spec.key in ("loss",) else spec.key: spec for spec in specs}
    history = _history()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rated = analyse(history, ["msd"])["msd"]
        signals = phases(history)
        stopped = replay(history, StationarityRule("displacement"))

    def draw_rated(axes: np.ndarray) -> None:
        figures.msd(axes[0], rated)
        figures.per_learning_rate(axes[1], rated)
        figures.per_learning_rate(axes[2], rated, squared=True)

    def draw_stop(ax: object) -> None:
        curves: xr.Dataset = stopped.curves
        figures.stopping(ax, curves, threshold=0.01, stopped_at=9000, name=history.name)  # type: ignore[arg-type]

    def draw_phases(axes: np.ndarray) -> None:
        changes = {"displacement_rate": [5000], "direction": [5000, 9000]}
        figures.phases(axes, signals, changes, name=history.name)  # type: ignore[arg-type]

    name = f"{history.name}, {LONG_TENSOR}"
    found["population"] = FigureSpec(directory / "population", "", "", _draw_population, width=6.0, name=name)
    found["msd-learning-rate"] = FigureSpec(directory / "msd", "", "", draw_rated, columns=3, name=name)
    found["stop"] = FigureSpec(directory / "stop", "", "", draw_stop, width=5.2)
    found["phases"] = FigureSpec(directory / "phases", "", "", draw_phases, columns=3)
    return found
