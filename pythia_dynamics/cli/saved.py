"""Commands for saved results: figures, claims, report. The command portrait saves the data of Fig 1 and 5."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.completion import complete_tensors
from pythia_dynamics.errors import PythiaDynError, UnknownNameError

if TYPE_CHECKING:
    from pythia_dynamics.claims.verdict import Verdict
    from pythia_dynamics.figures.axis import AxisKind
    from pythia_dynamics.report.page import Section
    from pythia_dynamics.results.folder import Results

__all__ = ["claims", "figures", "portrait", "report"]

with_measured: Callable[[app.Command], app.Command] = click.option(
    "--model",
    "models",
    multiple=True,
    help="Name of a model in the results, or any other name of it; repeatable. Default: all models with results.",
)


with_measured_tensors = click.option(
    "--tensor",
    "tensors",
    multiple=True,
    shell_complete=complete_tensors,
    help="unembedding, a name, a glob, or all; repeatable.  [default: unembedding, or the only tensor with results]",
)


def _measured(
    models: tuple[str, ...], cache: Path, results: Path, answer: app.Answer, tensors: tuple[str, ...] = ()
) -> list[Results]:
    """The results of the given models, or of all models with results if none is given. Other names are failures."""
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.results.runs import measured_models

    known = list(measured_models(results))
    if not known and not models:
        raise PythiaDynError(f"no results in {results}; run pythia-dyn msd --model 70m, or pythia-dyn demo")
    names: dict[str, None] = {}
    for model in app.expanded(models, known, answer) if models else known:
        with answer.collect():
            names[_name_of(model, known, cache, results)] = None
    chosen: list[Results] = []
    for name in names:
        with answer.collect():
            chosen += Results(name, results).select(tensors)
    return chosen


def _name_of(model: str, known: list[str], cache: Path, results: Path) -> str:
    """The name that a model has in the results. Raises `PythiaDynError` where it has none."""
    from pythia_dynamics.history.cache import find_model

    if model in known:
        return model
    try:
        name = find_model(model, cache).name
    except PythiaDynError:  # its message lists stores and aliases, which need not have results
        if known:
            raise UnknownNameError("results of the model", model, known, where=str(results)) from None
        name, command = model, "pythia-dyn msd --model 70m, or pythia-dyn demo"
    else:
        command = f"pythia-dyn msd --model {shlex.quote(model)}"
    if name not in known:
        hint = f"; there: {', '.join(known)}" if known else ""
        raise PythiaDynError(f"no results of {name} in {results}{hint}; run {command}")
    return name


@app.main.command()
@with_measured
@app.with_axis
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
def figures(models: tuple[str, ...], axis: AxisKind, cache: Path, results: Path) -> None:
    """Draw every figure from saved results: those of each model, and those that compare all models."""
    from pythia_dynamics.figures.axis import along, saved_axis
    from pythia_dynamics.figures.gallery import COMPARISON_FOLDER, comparison_figures, tensor_figures
    from pythia_dynamics.figures.specs import save_figures
    from pythia_dynamics.studies.sections import figure_specs

    chosen: list[Results] = []
    answer = app.Answer("figures")
    answer.facts = {}
    for measured in _measured(models, cache, results, answer):
        with answer.collect(), app.bar(measured.name, "figure") as progress:
            others = [spec for tensor in measured.tensors for spec in tensor_figures(measured.of(tensor))]
            specs = {spec.path: spec for spec in [*figure_specs(measured), *others]}
            drawn = along(list(specs.values()), saved_axis(measured, axis))
            answer.facts[measured.name] = save_figures(drawn, progress=progress)
            chosen.append(measured)
    if len(chosen) > 1:
        with answer.collect(), app.bar("side by side", "figure") as progress:
            specs_of_all = comparison_figures(chosen, results / COMPARISON_FOLDER)
            try:
                specs_of_all = along(specs_of_all, *(saved_axis(measured, axis) for measured in chosen))
            except PythiaDynError as error:
                app.echo(f"  note: {error}; the figures that compare models are over the step")
            answer.facts[COMPARISON_FOLDER] = save_figures(specs_of_all, progress=progress)
    for files in answer.facts.values():
        for path in files:
            app.echo(f"  {path}")
    answer.finish()


@app.main.command()
@with_measured
@with_measured_tensors
@click.option(
    "--published", is_flag=True, help="Judge EleutherAI's LAMBADA table of 16 Pythia models, which needs no results."
)
@app.with_cache
@app.with_results
@app.with_json
def claims(models: tuple[str, ...], tensors: tuple[str, ...], published: bool, cache: Path, results: Path) -> None:
    """Test every claim of the two publications on saved results, and write claims.json.

    Of several models, claims about all of them are tested as well, and verdicts are counted over seeds
    (claims-over-models.json).
    """
    from pythia_dynamics.claims.populations import FILE, save_over_models
    from pythia_dynamics.claims.scorecard import save
    from pythia_dynamics.report.verdicts import heading, records_of
    from pythia_dynamics.studies.sections import over_models, verdicts

    answer = app.Answer("claims")
    if published:
        if tensors:
            raise click.UsageError("--published has perplexities only; leave out --tensor")
        _judge_published(models, answer)
        return
    judged: dict[Results, tuple[Verdict, ...]] = {}
    for measured in _measured(models, cache, results, answer, tensors):
        with answer.collect():
            found = verdicts(measured)
            path = save(measured, found)
            judged[measured] = found
            app.echo(f"{measured.label}: {heading(found)}")
            _echo_verdicts(found, records_of(measured))
            app.echo(f"  {path}")
            answer.facts.append(
                {"model": measured.name, "file": path, "claims": [asdict(verdict) for verdict in found]}
            )
    more: dict[str, Any] = {}
    with answer.collect():
        over = over_models(judged)
        if over is not None:
            path = save_over_models(results / FILE, [*judged], over.verdicts, over.seeds)
            app.echo("over models")
            _echo_verdicts(over.verdicts, max(map(records_of, judged)))
            for counts in over.seeds:
                app.echo(f"  {counts.model}, over seeds: {counts.claim:21} {counts.text}")
            app.echo(f"  {path}")
            more["over_models"] = {
                "file": path,
                "claims": [asdict(verdict) for verdict in over.verdicts],
                "seeds": [asdict(counts) for counts in over.seeds],
            }
    answer.finish(**more)


def _echo_verdicts(verdicts: Iterable[Verdict], records: int) -> None:
    """Print verdicts: for each the mark, the word, the claim and the reason, and its evidence in a second line.

    Parameters
    ----------
    verdicts
        The verdicts.
    records
        Number of steps of the history, for the error rates.
    """
    from pythia_dynamics.report.verdicts import MARKS, evidence_line

    for verdict in verdicts:
        app.echo(f"{MARKS[verdict.verdict]} {verdict.verdict:18} {verdict.claim:21} {verdict.reason}")
        if evidence := evidence_line(verdict, records):
            app.echo(f"    {evidence}")


def _judge_published(models: tuple[str, ...], answer: app.Answer) -> None:
    """Judge EleutherAI's published table and print the verdicts on the given models, or on all of them."""
    from pythia_dynamics.claims.lambada_curve import PublishedCurve
    from pythia_dynamics.claims.published import DROPS, HURTS, LITERATURE, TOWARDS_ZERO, judge_published
    from pythia_dynamics.report.verdicts import MARKS, p_values
    from pythia_dynamics.results.published_lambada import SOURCE, SUSPECT_REASON, published_models

    known = published_models()
    names: dict[str, None] = {}
    for model in models or ("*",):
        with answer.collect():
            names |= dict.fromkeys(_published_names(model, known))
    if not names:  # no name is one of the table: its error alone is the answer
        answer.finish()
        return
    card = judge_published()
    chosen = {name: verdicts for name, verdicts in card.models.items() if name in names}
    curves = {name: PublishedCurve.of(name) for name in chosen}
    app.echo(f"{SOURCE}\n{len(card.models)} models, {card.tests} tests, p corrected for their number (Holm)\n")
    columns = f"{'best step':>9} {'ppl':>7} {'last':>7} {'factor':>7} {'z':>5} {'p':>8} {'corrected':>9}  τ late"
    app.echo(f"{'late training hurts':22} {columns}")
    for name, verdicts in chosen.items():
        hurts = next(verdict for verdict in verdicts if verdict.claim == HURTS.id)
        told, p = hurts.numbers, math.nan if hurts.evidence is None else hurts.evidence["p"]
        app.echo(
            f"{name:22} {told['best_step']:>9,} {told['best_ppl']:7.2f} {told['last_ppl']:7.2f} {told['factor']:7.2f} "
            f"{told['z']:5.1f} {p:8.2g} {hurts.p_corrected:9.2g}  "
            f"{told['trend_kendall_tau']:+.2f}  {MARKS[hurts.verdict]} {hurts.verdict}"
        )
    for claim in (DROPS, TOWARDS_ZERO):
        of_claim = {name: verdict for name, found in chosen.items() for verdict in found if verdict.claim == claim.id}
        untestable = [name for name, verdict in of_claim.items() if verdict.evidence is None]
        tested = {name: verdict for name, verdict in of_claim.items() if verdict.evidence is not None}
        if claim is TOWARDS_ZERO and tested:  # exact: the least of all says it
            least = min(tested, key=lambda name: float(str(tested[name].numbers["least"])))
            tested = {least: tested[least]}
        app.echo("")
        for name, verdict in tested.items():
            found = f"{verdict.reason}; p {p_values(verdict)}"
            app.echo(f"{MARKS[verdict.verdict]} {verdict.verdict:18} {claim.id} {name}: {found}")
        if untestable:
            app.echo(f"– not testable here  {claim.id} the paper gives no step for {', '.join(untestable)}")
    app.echo("")
    _echo_verdicts(card.over_models, 0)
    for name, curve in curves.items():
        if curve.suspect:
            steps = f"{len(curve.suspect)} steps, {curve.suspect[0]:,} to {curve.suspect[-1]:,}"
            app.echo(f"  suspect, not used: {name}, {steps}: {SUSPECT_REASON}")
    for line in LITERATURE:
        app.echo(f"  {line}")
    answer.facts = {
        "source": SOURCE,
        "tests": card.tests,
        "models": [
            {"model": name, "suspect_steps": curves[name].suspect, "claims": [asdict(verdict) for verdict in verdicts]}
            for name, verdicts in chosen.items()
        ],
        "suspect_reason": SUSPECT_REASON,
        "over_models": [asdict(verdict) for verdict in card.over_models],
        "literature": LITERATURE,
    }
    answer.name = "published"
    answer.finish()


def _published_names(model: str, known: Sequence[str]) -> list[str]:
    """The models of the published table that a name, an alias or a glob means."""
    from pythia_dynamics.checkpoints.registry import resolve
    from pythia_dynamics.results.published_lambada import published_lambada

    if any(character in model for character in "*?["):
        found = [name for name in known if fnmatchcase(name, model) or fnmatchcase(name.removeprefix("pythia-"), model)]
        if not found:
            raise UnknownNameError("published model", model, known)
        return found
    with suppress(PythiaDynError):  # the error of the next line lists the names of the table
        model = resolve(model).name
    return [str(published_lambada(model).attrs["model"])]


@app.main.command()
@with_measured
@with_measured_tensors
@click.option(
    "--runs",
    multiple=True,
    metavar="PATTERN",
    help="A population, as it was given to gather --model ('160m-seed*'): a page of its own; repeatable.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: report.html in --results, or in the folder of the population]",
)
@app.with_axis
@app.with_cache
@app.with_results
@app.with_json
def report(
    models: tuple[str, ...],
    tensors: tuple[str, ...],
    runs: tuple[str, ...],
    out: Path | None,
    axis: AxisKind,
    cache: Path,
    results: Path,
) -> None:
    """Write one self-contained HTML page: claims, figures, tables, missing and irregular steps, provenance.

    With --runs it is the page of a population: what was gathered of it, and a heat map of all its tensors.
    """
    from pythia_dynamics.studies.sections import section, write_page

    answer = app.Answer("report")
    if runs:
        if models or tensors or axis != "step":
            raise click.UsageError("--runs has a page of its own; leave out --model, --tensor and --axis")
        _report_population(runs, out, results)
        answer.finish()
        return
    chosen: list[Section] = []
    for measured in _measured(models, cache, results, answer, tensors):
        with answer.collect():
            measured.weights().require_same_weights()
            chosen.append(section(measured, axis=axis))
    if chosen:
        with app.bar("report", "part") as progress:
            path = write_page(chosen, out or results / "report.html", progress=progress)
        size, shown = path.stat().st_size, [part.results for part in chosen]
        app.echo(f"{path}  {size / 1e6:.1f} MB, {', '.join(measured.label for measured in shown)}")
        app.print_facts({"report": path, "bytes": size, "models": [measured.name for measured in shown]})
    answer.finish()


def _report_population(runs: tuple[str, ...], out: Path | None, results: Path) -> None:
    """Write the page of a population."""
    from pythia_dynamics.studies.population_page import page_of_population, write_population_page

    with app.bar("read", "table") as progress:
        page = page_of_population(runs, results, progress=progress)
    with app.bar("report", "figure") as progress:
        path = write_population_page(page, results, out, progress=progress)
    for problem in page.problems:
        app.echo(f"  note: {problem}")
    size, names = path.stat().st_size, [run.name for run in page.runs]
    app.echo(f"{path}  {size / 1e6:.1f} MB, {len(names)} runs, {len(page.gathered)} gathered measures")
    told = {"report": path, "bytes": size, "runs": names, "gathered": [one.title for one in page.gathered]}
    app.print_facts({**told, "notes": page.problems})


@app.main.command()
@app.with_models(required=False)
@click.option("--steps", default=None, help="Two steps: 1000,143000.  [default: the first and the last]")
@click.option("--phrase", default=None, help="Phrase for the attention maps and the completions (Fig 5).")
@click.option("--text", default=None, help="Long text for the average of the logits.")
@app.with_suite
@click.option("--source", default="hub", show_default=True, help="hub, or a directory of checkpoints.")
@app.with_device
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
def portrait(
    models: tuple[str, ...],
    suite: dict[str, Any],
    cache: Path,
    results: Path,
    **options: Any,
) -> None:
    """First and last step of a model side by side: W_U, attention, logits (Fig 1), and a phrase completed (Fig 5)."""
    from pythia_dynamics.evaluation.portrait import portrait as compute_portrait
    from pythia_dynamics.history.cache import choose_model
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import save_portrait

    given = {name: value for name, value in options.items() if value is not None}
    answer = app.Answer("portrait")
    for name in app.model_names(models, cache, answer):
        with answer.collect():
            model = choose_model(name, cache, suite)
            app.echo(f"{name} is {model.location}")
            with app.echo_warnings(), app.bar(f"{model.name} portrait", "step") as progress:
                dataset = compute_portrait(model, progress=progress, **given)
            files = save_portrait(Results(model.name, results), dataset)
            for file in files:
                app.echo(f"  {file}")
            answer.facts.append({"model": model.name, "steps": dataset["step"].to_numpy().tolist(), "files": files})
    answer.finish()
