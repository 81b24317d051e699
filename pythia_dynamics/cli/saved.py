"""Commands that work on saved results: figures, claims, report; and portrait, which saves what Fig 1 and 5 show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.errors import PythiaDynError

if TYPE_CHECKING:
    from pythia_dynamics.results.folder import Results

__all__ = ["claims", "figures", "portrait", "report"]

_MARKS = {"supported": "✓", "not supported": "✗", "not testable here": "–"}

with_measured: Callable[[app.Command], app.Command] = click.option(
    "--model",
    "models",
    multiple=True,
    help="A model that has been measured: its name in the results, or what stands for it; repeatable. Default: all.",
)


with_measured_tensor = click.option(
    "--tensor", default=None, help="Which tensor's results.  [default: W_U, or the only one measured]"
)


def _measured(models: tuple[str, ...], cache: Path, results: Path, tensor: str | None = None) -> list[Results]:
    """The results of the models that were named, or of all there are."""
    from pythia_dynamics.history.cache import find_model
    from pythia_dynamics.results.folder import Results

    found = [*results.glob("*/provenance.json"), *(path.parent for path in results.glob("*/*/provenance.json"))]
    there = sorted({path.parent.name for path in found})
    names = list(dict.fromkeys(name if name in there else find_model(name, cache).name for name in models or there))
    if not names:
        raise PythiaDynError(f"no results in {results}; run pythia-dyn msd --model 70m, or pythia-dyn demo")
    for name in names:
        if name not in there:
            known = f"; there: {', '.join(there)}" if there else ""
            raise PythiaDynError(f"no results of {name} in {results}{known}; run pythia-dyn msd --model {name}")
    return [Results(name, results, tensor=tensor) for name in names]


@app.main.command()
@with_measured
@app.with_cache
@app.with_results
@app.with_json
def figures(models: tuple[str, ...], cache: Path, results: Path, as_json: bool) -> None:
    """Draw every figure anew from saved results: of each model, and of all of them on the same axes."""
    from pythia_dynamics.figures.gallery import COMPARISON_FOLDER, comparison_figures, tensor_figures
    from pythia_dynamics.figures.specs import save_figures
    from pythia_dynamics.studies.sections import figure_specs

    chosen = _measured(models, cache, results)
    facts: dict[str, Any] = {}
    for one in chosen:
        with app.bar(one.name, "figure") as progress:
            others = [spec for tensor in one.tensors for spec in tensor_figures(one.of(tensor))]
            specs = {spec.path: spec for spec in [*figure_specs(one), *others]}
            facts[one.name] = save_figures(list(specs.values()), progress=progress)
    if len(chosen) > 1:
        with app.bar("side by side", "figure") as progress:
            specs_of_all = comparison_figures(chosen, results / COMPARISON_FOLDER)
            facts[COMPARISON_FOLDER] = save_figures(specs_of_all, progress=progress)
    for files in facts.values():
        for path in files:
            app.say(f"  {path}", as_json)
    app.print_facts({"figures": facts}, as_json)


@app.main.command()
@with_measured
@with_measured_tensor
@app.with_cache
@app.with_results
@app.with_json
def claims(models: tuple[str, ...], tensor: str | None, cache: Path, results: Path, as_json: bool) -> None:
    """Put every claim of the two works to its test on saved results, and write claims.json."""
    from pythia_dynamics.claims.scorecard import save
    from pythia_dynamics.studies.sections import verdicts

    facts: list[dict[str, Any]] = []
    faults = app.Faults()
    for one in _measured(models, cache, results, tensor):
        with faults.of_one_model():
            found = verdicts(one)
            path = save(one, found)
            app.note_written(one.name)
            app.say(one.label, as_json)
            for verdict in found:
                app.say(f"{_MARKS[verdict.verdict]} {verdict.verdict:18} {verdict.claim:21} {verdict.reason}", as_json)
            app.say(f"  {path}", as_json)
            facts.append({"model": one.name, "file": path, "claims": [asdict(verdict) for verdict in found]})
    if facts:
        app.print_facts({"claims": facts}, as_json)
    faults.raise_if_any()


@app.main.command()
@with_measured
@with_measured_tensor
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: report.html in --results]"
)
@app.with_cache
@app.with_results
@app.with_json
def report(
    models: tuple[str, ...], tensor: str | None, out: Path | None, cache: Path, results: Path, as_json: bool
) -> None:
    """Write one self-contained HTML page: claims, figures, tables, gaps and oddities, provenance."""
    from pythia_dynamics.studies.sections import write_report

    chosen: list[Results] = []
    faults = app.Faults()
    for one in _measured(models, cache, results, tensor):
        with faults.of_one_model():
            one.weights().require_same_weights()
            chosen.append(one)
    if chosen:
        with app.bar("report", "part") as progress:
            path = write_report(chosen, out or results / "report.html", progress=progress)
        size = path.stat().st_size
        app.say(f"{path}  {size / 1e6:.1f} MB, {', '.join(one.label for one in chosen)}", as_json)
        app.print_facts({"report": path, "bytes": size, "models": [one.name for one in chosen]}, as_json)
    faults.raise_if_any()


@app.main.command()
@app.with_models(required=False)
@click.option("--steps", default=None, help="Two steps: 1000,143000.  [default: the first and the last there are]")
@click.option("--phrase", default=None, help="Sentence whose attention is shown, and that is completed (Fig 5).")
@click.option("--text", default=None, help="Long sentence over which logits are averaged.")
@click.option("--source", default="hub", show_default=True, help="hub, or a directory of checkpoints.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@app.with_cache
@app.with_results
@app.with_json
def portrait(
    models: tuple[str, ...],
    cache: Path,
    results: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """First and last step of a model side by side: W_U, attention, logits (Fig 1), and a phrase completed (Fig 5)."""
    from pythia_dynamics.evaluation.portrait import portrait as take
    from pythia_dynamics.history.cache import find_model
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import save_portrait

    given = {name: value for name, value in options.items() if value is not None}
    facts: list[dict[str, Any]] = []
    faults = app.Faults()
    for name in app.model_names(models, cache):
        with faults.of_one_model():
            model = find_model(name, cache)
            app.say(f"{name} is {model.location}", as_json)
            with app.bar(f"{model.name} portrait", "step") as progress:
                taken = take(model, progress=progress, **given)
            files = save_portrait(Results(model.name, results), taken)
            app.note_written(model.name)
            for file in files:
                app.say(f"  {file}", as_json)
            facts.append({"model": model.name, "steps": taken["step"].to_numpy().tolist(), "files": files})
    if facts:
        app.print_facts({"portrait": facts}, as_json)
    faults.raise_if_any()
