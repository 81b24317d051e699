"""The models trained, measured and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.claims.blog import Initial, decide
from pythia_dynamics.claims.scorecard import save
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.figures.blog import plates
from pythia_dynamics.figures.plates import draw
from pythia_dynamics.files import atomic_file
from pythia_dynamics.history.cache import cache_directory, open_history
from pythia_dynamics.history.fetch import download
from pythia_dynamics.progress import Stage
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_blog import SOURCE, published_blog
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.training.loop import new_model, train_suite
from pythia_dynamics.training.plan import SIZES, Initialisation, TrainingPlan, plan_of_size
from pythia_dynamics.training.sample import sample_text
from pythia_dynamics.training.suite import Loss, Suite
from pythia_dynamics.training.text import Text

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["INITIALISATIONS", "QUICK", "QUICK_SIZES", "Report", "expected_b", "reproduce"]

QUICK: Mapping[str, Any] = {"context": 64, "batch": 32, "max_steps": 3000, "every": 100, "eval_batches": 10}
"""What ``--quick`` changes: about five minutes for both of `QUICK_SIZES` on two cores."""
QUICK_SIZES = ("10k", "0.1m")

Runs = Mapping[str, Sequence["xr.Dataset"]]


@dataclass(frozen=True)
class Report:
    """What came of it: the verdicts, the facts behind them, every file, and the curves by size (one per seed)."""

    name: str
    verdicts: tuple[Verdict, ...]
    facts: Mapping[str, Any]
    files: tuple[Path, ...]
    runs: Mapping[str, tuple[xr.Dataset, ...]]


def reproduce(
    text: Text,
    *,
    stage: Stage,
    quick: bool = False,
    sizes: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    out: Path | str | None = None,
    cache: Path | str | None = None,
    results: Path | str | None = None,
    device: str = "auto",
    **changes: Any,
) -> Report:
    """Train the sizes on `text`, measure b and the losses, draw the figures, hold them against the blog's numbers.

    `quick` takes the two small sizes and `QUICK`'s numbers; `changes` are those of `plan_of_size`. The suites go to
    ``<out>/order-<size>`` (default: the cache), their W_U to the cache, each model's own results to
    ``results/order-<size>``, everything in common to ``results/order-parameter`` (with `quick`, ``order-quick-<size>``
    and ``order-parameter-quick``). What is there of the same plan is used again; interrupted, it goes on.
    Raises what the stages raise.
    """
    known = {name: value for name, value in changes.items() if value is not None}
    options = {"initialisation": "pytorch", **(QUICK if quick else {}), **known}
    chosen = tuple(dict.fromkeys(size.lower() for size in sizes or (QUICK_SIZES if quick else SIZES)))
    plans = {size: plan_of_size(size, **options) for size in chosen}
    if not seeds:
        raise PythiaDynError("name at least one seed")
    folder = "order-parameter-quick" if quick else "order-parameter"
    label = "order-quick" if quick else "order"
    home = Path(out) if out is not None else cache_directory(cache)
    runs: dict[str, tuple[xr.Dataset, ...]] = {}
    files: list[Path] = []
    common = Results(folder, results)
    for size, plan in plans.items():
        curves = []
        for seed in seeds:
            name = f"{label}-{size}" if len(seeds) == 1 else f"{label}-{size}-seed{seed}"
            curve, suite, made = _run(home / name, text, plan, seed, stage, cache, results, device)
            curves.append(curve)
            files += made
            if seed == seeds[0]:
                files.append(_write_sample(common, size, suite))
        runs[size] = tuple(curves)
    measured = {size: _initial(plan, text) for size, plan in plans.items()}
    verdicts = decide(runs, measured, {size: plan.initialisation for size, plan in plans.items()})
    files += [
        _write_runs(common, runs, seeds),
        _write_comparison(common, runs, seeds),
        _write_initial(common, measured),
        save(common, verdicts),
    ]
    with stage("draw", "figure") as progress:
        files += draw(plates(common), progress=progress)
    facts = {
        size: {
            "steps": int(curves[0]["step"][-1]),
            "b": [float(curves[0]["order_parameter"][i]) for i in (0, -1)],
            "train_loss": [float(curves[0]["train_loss"][i]) for i in (0, -1)],
            "validation_loss": [float(curves[0]["validation_loss"][i]) for i in (0, -1)],
            "initial_b": measured[size],
        }
        for size, curves in runs.items()
    }
    details = {"text": text.name, "sha256": text.sha256, "published": SOURCE, "options": options}
    common.record("order-parameter", {**details, "seeds": list(seeds)})
    return Report(folder, verdicts, facts, tuple(files), runs)


def _run(
    path: Path,
    text: Text,
    plan: TrainingPlan,
    seed: int,
    stage: Stage,
    cache: Path | str | None,
    results: Path | str | None,
    device: str,
) -> tuple[xr.Dataset, Suite, list[Path]]:
    """Train one suite, fetch its W_U, measure; the curves (b, both losses, dL/db over `step`) and the files."""
    with stage(f"train {path.name}", "step") as progress:
        suite = train_suite(path, text, replace(plan, seed=seed), device=device, progress=progress)
    with stage(f"fetch {path.name}", "step") as progress:
        download(resolve(suite.path.resolve()), cache=cache, progress=progress)
    by_step = {row.step: row for row in suite.losses}
    training = {step: row.train for step, row in by_step.items()}
    own = Results(path.name, results)
    with stage(f"measure {path.name}", "block") as progress:
        history = open_history(path.name, cache=cache)
        (outcome,) = measure(
            history, ["order"], own, options={"order": {"loss": training}}, compute=Compute(progress=progress)
        )
    table = own.weights().read_table("order")
    steps = table["step"].to_numpy().tolist()
    nothing = Loss(0, math.nan, math.nan)
    curve = table[["order_parameter", "dloss_db"]].assign(
        train_loss=("step", [by_step.get(step, nothing).train for step in steps]),
        validation_loss=("step", [by_step.get(step, nothing).validation for step in steps]),
    )
    return curve, suite, list(outcome.files)


def _initial(plan: TrainingPlan, text: Text) -> dict[str, dict[str, float]]:
    """b of the untrained model by both conventions: expected, its spread, and measured on a model made so."""
    vocab = len(set(text.content)) if plan.tokenizer == "characters" else plan.vocab
    found: dict[str, dict[str, float]] = {}
    for kind in INITIALISATIONS:
        head = new_model(replace(plan, initialisation=kind), vocab).lm_head.weight
        b, spread = expected_b(kind, vocab, plan.d_model)
        found[kind] = {
            "expected": b,
            "spread": spread,
            "measured": float(head.detach().double().norm()) / plan.d_model,
        }
    return found


# -- files ----------------------------------------------------------------------------------------------------


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with atomic_file(path) as file:
        file.write(",".join(columns).encode() + b"\n")
        for row in rows:
            cells = (f"{cell:.10g}" if isinstance(cell, float) else str(cell) for cell in row)
            file.write(",".join("" if cell == "nan" else cell for cell in cells).encode() + b"\n")
    return path


_CURVES = ("order_parameter", "train_loss", "validation_loss", "dloss_db")


def _write_runs(results: Results, runs: Runs, seeds: Sequence[int]) -> Path:
    rows = [
        (size, seed, int(step), *(float(run[name].sel(step=step)) for name in _CURVES))
        for size, several in runs.items()
        for seed, run in zip(seeds, several, strict=True)
        for step in run["step"].to_numpy()
    ]
    return _write_csv(results.path / "runs.csv", ("model", "seed", "step", *_CURVES), rows)


def _write_comparison(results: Results, runs: Runs, seeds: Sequence[int]) -> Path:
    """Ours beside what was published, at the steps that both have."""
    names = _CURVES[:3]
    rows = []
    for size, several in runs.items():
        theirs = published_blog(size)
        for seed, run in zip(seeds, several, strict=True):
            for step in np.intersect1d(run["step"], theirs["step"]):
                pairs = ((float(run[name].sel(step=step)), float(theirs[name].sel(step=step))) for name in names)
                rows.append((size, seed, int(step), *(value for pair in pairs for value in pair)))
    columns = [column for name in names for column in (name, f"{name}_published")]
    return _write_csv(results.path / "comparison.csv", ("model", "seed", "step", *columns), rows)


def _write_initial(results: Results, initial: Initial) -> Path:
    rows = [
        (
            size,
            kind,
            found["expected"],
            found["spread"],
            found["measured"],
            float(published_blog(size)["order_parameter"][0]) if kind == "pytorch" else math.nan,
        )
        for size, kinds in initial.items()
        for kind, found in kinds.items()
    ]
    columns = ("model", "initialisation", "expected", "standard_deviation", "measured", "published")
    return _write_csv(results.path / "initial_b.csv", columns, rows)


def _write_sample(results: Results, size: str, suite: Suite) -> Path:
    path = results.path / f"sample-{size}.txt"
    with atomic_file(path) as file:
        file.write(sample_text(suite, suite.losses[-1].step, samples=8).encode())
    return path


INITIALISATIONS: tuple[Initialisation, ...] = ("pytorch", "neox")
"""Conventions for the untrained head."""


def expected_b(initialisation: str, vocab: int, d_model: int) -> tuple[float, float]:
    """b of an untrained head (vocab, d_model) and its standard deviation, to first order in 1/N.

    ``pytorch``: uniform on ±1/√d, b = √(v/3)/d. ``neox``: normal(0, 0.02), b = 0.02 √(v/d).
    """
    size = vocab * d_model
    if initialisation == "pytorch":
        b, kurtosis = math.sqrt(vocab / 3) / d_model, 1.8
    elif initialisation == "neox":
        b, kurtosis = 0.02 * math.sqrt(vocab / d_model), 3.0
    else:
        raise UnknownNameError("initialisation", initialisation, INITIALISATIONS)
    return b, b * math.sqrt((kurtosis - 1) / size) / 2
