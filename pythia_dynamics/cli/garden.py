"""The command ``reproduce garden``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.reproduce import reproduce

if TYPE_CHECKING:
    from pythia_dynamics.studies.garden import ModelPlan

__all__ = ["garden"]


@reproduce.command(short_help='"The Garden of Forking Paths", arXiv 2403.08739')
@app.with_models(required=False, default=("14m", "31m", "70m", "160m", "410m", "1b"))
@click.option("--skip-perplexity", is_flag=True, help="Leave out everything that needs complete checkpoints.")
@app.with_steps
@click.option(
    "--corpus", default="lambada", show_default=True, help="lambada, cimec/lambada, or a .jsonl or text file."
)
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True, help="Passages.")
@app.with_device
@app.with_overwrite
@app.with_workers
@app.with_bandwidth
@click.option("--plan", "only_plan", is_flag=True, help="Print the plan and stop.")
@click.option("--yes", is_flag=True, help="Start without a question.")
@app.with_suite
@app.with_width
@app.with_cache
@app.with_results
@app.with_json
@app.resumable
def garden(
    models: tuple[str, ...],
    skip_perplexity: bool,
    steps: str | None,
    corpus: str,
    limit: int,
    device: str,
    overwrite: bool,
    workers: int,
    bandwidth: float,
    only_plan: bool,
    yes: bool,
    suite: dict[str, Any],
    cache: Path,
    results: Path,
) -> None:
    """The Garden of Forking Paths: fetch, analyses, three perplexities, figures, claims, report, for its six models.

    After an interruption the same command resumes.
    """
    from pythia_dynamics.checkpoints.registry import aliases
    from pythia_dynamics.evaluation.settings import EvaluationSettings
    from pythia_dynamics.report.verdicts import counted
    from pythia_dynamics.studies import garden as garden_study

    answer = app.Answer("garden")
    names = app.expanded(models, aliases(), answer)
    if not names:
        answer.finish()
    asked: dict[str, Any] = {
        "steps": steps,
        "corpus": corpus,
        "limit": limit,
        "cache": cache,
        "results": results,
        "skip_perplexity": skip_perplexity,
        "suite": suite,
    }
    planned = garden_study.plan(names, **asked)
    settings = EvaluationSettings(device=device, corpus=corpus, limit=limit)
    with app.echo_warnings():
        seconds = [cost.seconds(bandwidth * 1e6, garden_study.checkpoint_seconds(cost, settings)) for cost in planned]
    _echo_plan(planned, seconds, bandwidth)
    answer.facts = {"plan": list(map(_cost_facts, planned, seconds))}
    if only_plan:
        answer.finish()
        return
    if not yes:
        click.confirm("Begin?", abort=True, err=True)
    start = time.monotonic()

    with app.echo_warnings():
        result = garden_study.run(
            names, stage=app.stages(), workers=workers, device=device, overwrite=overwrite, **asked
        )
    for name, reasons in result.missing.items():
        app.echo(name)
        app.echo_steps("missing", reasons)
    for name, verdicts in result.verdicts.items():
        app.echo(f"{name}: claims: {counted(verdicts)}")
    app.echo(
        f"\n{results / garden_study.PAGE}\n{len(result.files)} files, {app.duration(time.monotonic() - start)} in all"
    )
    answer.facts |= {
        "failed": dict(result.failed),
        "missing": dict(result.missing),
        "claims": {name: [asdict(verdict) for verdict in found] for name, found in result.verdicts.items()},
        "files": result.files,
        "seconds": time.monotonic() - start,
    }
    for name, why in result.failed.items():
        answer.fail(f"{name}: {why}")
    answer.finish()


def _echo_plan(planned: list[ModelPlan], seconds: list[float], bandwidth: float) -> None:
    app.echo(
        f"{'model':24} {'W_U':>9} {'checkpoints':>11} {'to move':>9} {'disk':>9} {'time':>8}  at {bandwidth:g} MB/s "
        "and the speed of this machine, just measured"
    )
    for cost, duration in zip(planned, seconds, strict=True):
        app.echo(
            f"{cost.model.name:24} {app.size(cost.fetch.bytes):>9} {cost.checkpoints:11} {app.size(cost.bytes):>9} "
            f"{app.size(cost.disk_bytes):>9} {app.duration(duration):>8}"
        )
        if cost.fetch.note:
            app.echo(f"  {cost.fetch.note}")
    if len(planned) > 1:
        disk = sum(cost.fetch.disk_bytes for cost in planned)
        disk += max(cost.disk_bytes - cost.fetch.disk_bytes for cost in planned)
        moved = app.size(sum(cost.bytes for cost in planned))
        app.echo(f"{'all':24} {'':9} {'':11} {moved:>9} {app.size(disk):>9} {app.duration(sum(seconds)):>8}")


def _cost_facts(cost: ModelPlan, seconds: float) -> dict[str, Any]:
    return {
        "model": cost.model.name,
        "location": cost.model.location,
        "fetch": asdict(cost.fetch),
        "checkpoints": cost.checkpoints,
        "bytes": cost.bytes,
        "disk_bytes": cost.disk_bytes,
        "seconds": seconds,
    }
