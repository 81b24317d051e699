"""The command ``calibrate``: how often each verdict and detector is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.shards import cluster, with_dask, with_shard

if TYPE_CHECKING:
    from pythia_dynamics.claims.error_rates import ErrorRates, Rate
    from pythia_dynamics.shard import Shard

__all__ = ["calibrate"]


@app.main.command()
@click.option("--runs", type=click.IntRange(1), default=200, show_default=True, help="Histories of each truth.")
@click.option("--steps", type=click.IntRange(3), default=143, show_default=True, help="Steps of a history.")
@click.option("--weights", type=click.IntRange(2), default=8192, show_default=True, help="Weights at each step.")
@click.option(
    "--seed", type=click.IntRange(0), default=2_000_000, show_default=True, help="Seed of the first history of a truth."
)
@click.option("--truth", "truths", multiple=True, help="Name or glob of a truth; repeatable.  [default: all]")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: the number of cores]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file for the table. If it has the same settings, its truths are not judged again.",
)
@with_shard
@with_dask
@app.with_json
@app.resumable
def calibrate(
    runs: int,
    steps: int,
    weights: int,
    seed: int,
    truths: tuple[str, ...],
    workers: int | None,
    out: Path | None,
    shard: Shard | None,
    dask: str | None,
) -> None:
    """Judge histories and curves of known truth, and count how often each verdict and detector is wrong.

    For each, the truth without the effect that supports it most often, and the truth with it that does so least often.
    """
    from pythia_dynamics.claims import calibration

    settings = calibration.CalibrationSettings(runs=runs, records=steps, weights=weights, seed=seed)
    with app.bar("calibrate", "run") as progress, cluster(dask, shard) as executor:
        table = calibration.calibrate(
            settings, truths=truths, out=out, workers=workers, executor=executor, shard=shard, progress=progress
        )
    if shard is not None:
        judged = sum(each.runs for each in table.truths)
        app.echo(
            f"shard {shard}: {judged} runs of {len(table.truths)} truths; pythia-dyn merge {out} puts all together"
        )
    rates = calibration.error_rates(table)
    app.echo(f"{len(table.truths)} truths, {runs} runs each, {steps} steps, {weights:,} weights, seed {seed}")
    app.echo(f"{'':22}{'wrong, at worst':36}{'sees its effect, at least':36}undecided")
    for name, each in rates.items():
        app.echo(f"{name:22}{_cell(each.worst):36}{_cell(each.weakest):36}{_share(each.undecided):>9}")
    broken = [sentence for each in rates.values() for sentence in each.broken]
    app.echo("\n".join(["", "not as promised (wrong ≤ 5 %, up to ≤ 8 %; seen ≥ 80 %):", *broken] if broken else []))
    if out is not None:
        app.echo(str(out))
    answer = app.Answer("calibrate")
    answer.facts = {name: _facts(each) for name, each in rates.items()}
    answer.finish(out=out, broken=broken)


def _share(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


def _cell(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate.supported} of {rate.runs} ({rate.truth})"


def _facts(rates: ErrorRates) -> dict[str, Any]:
    return {
        "wrong": [_rate(rate) for rate in rates.false],
        "seen": [_rate(rate) for rate in rates.true],
        "not testable": list(rates.untestable),
    }


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    counts = {"supported": rate.supported, "not supported": rate.refuted, "undecided": rate.undecided}
    return {"truth": rate.truth, "runs": rate.runs, **counts, "share": rate.share, "low": low, "high": high}
