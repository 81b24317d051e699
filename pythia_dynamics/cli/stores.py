"""Commands about weights: models, plan, fetch, ls."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.checkpoints.roles import UNEMBEDDING
from pythia_dynamics.cli import app
from pythia_dynamics.cli.completion import complete_tensors
from pythia_dynamics.cli.deployments import told_deployments
from pythia_dynamics.cli.shards import cluster, with_dask, with_shard
from pythia_dynamics.cli.streaming import Streaming, stream_model, with_streaming

if TYPE_CHECKING:
    from pythia_dynamics.history.estimate import FetchPlan
    from pythia_dynamics.shard import Shard

__all__ = ["fetch", "list_stores", "models", "plan"]

with_tensors = click.option(
    "--tensor",
    "tensors",
    multiple=True,
    default=(UNEMBEDDING,),
    show_default=True,
    shell_complete=complete_tensors,
    help="unembedding, embedding, a name, a glob, or all; repeatable.",
)

with_verify_whole = click.option(
    "--verify-whole",
    is_flag=True,
    help="Download each safetensors file whole, once, and compare it with the SHA-256 that the Hub states: a file of "
    "this format has no checksum of one tensor. It costs the bytes of whole checkpoints (plan --verify-whole says how "
    "many). The tensors of torch files have a checksum, which is always compared.",
)

with_refresh = click.option(
    "--refresh",
    is_flag=True,
    help="Fetch again the steps that have been replaced at the source since they were fetched. Without it they stay as "
    "they are, and are said to be superseded. With --measure: measure complete tensors again.",
)


@app.main.command()
@app.with_models(required=True)
@app.with_steps
@with_tensors
@click.option("--source", default="hub", show_default=True, help="hub, or a directory of checkpoints.")
@with_streaming
@with_verify_whole
@with_refresh
@click.option(
    "--virtual",
    is_flag=True,
    help="Record only where the weights are (commit, file, offset, length). They are read from there when measured.",
)
@app.with_learning_rate
@app.with_workers
@with_shard
@with_dask
@app.with_suite
@app.with_cache
@app.with_json
@app.resumable
def fetch(
    models: tuple[str, ...],
    steps: str | None,
    tensors: tuple[str, ...],
    source: str,
    streaming: Streaming,
    verify_whole: bool,
    refresh: bool,
    virtual: bool,
    learning_rate: Path | None,
    workers: int,
    shard: Shard | None,
    dask: str | None,
    suite: dict[str, Any],
    cache: Path,
) -> None:
    """Fetch tensors of a model's checkpoints into the cache, by byte range; or measure them on the way (--measure)."""
    from pythia_dynamics.checkpoints.learning_rate import read_learning_rate
    from pythia_dynamics.checkpoints.registry import aliases
    from pythia_dynamics.history.fetch import download
    from pythia_dynamics.history.provenance import checks_in_words
    from pythia_dynamics.history.request import FetchRequest

    if streaming.measures and virtual:
        raise app.Failure("--measure keeps no weights, and --virtual keeps only their places; give one of them")
    if streaming.measures and dask:
        raise app.Failure("--measure measures on this machine; fetch with --dask, then measure with --dask")
    rates = None if learning_rate is None else read_learning_rate(learning_rate)
    answer = app.Answer("fetch")
    names = app.expanded(models, aliases(), answer)
    with cluster(dask, shard) as executor:
        for name in names:
            with answer.collect():
                of_steps = None if streaming.measures else shard  # a job that measures has all steps of some tensors
                request = FetchRequest(
                    name, tensors, steps, source, cache, suite, rates, verify_whole, refresh, virtual, of_steps
                )
                model = request.resolved
                app.echo(f"{name} is {model.location}")
                if streaming.measures:
                    stream_model(request, streaming, workers, refresh, shard, answer)
                    continue
                with app.bar(model.name, "step") as progress:
                    report = download(request, workers=workers, executor=executor, progress=progress)
                if not report.steps:
                    app.echo(f"shard {shard} has no step of it")
                if not report.complete:
                    answer.fail("some steps could not be fetched (see above); run the same command again to retry them")
                rate = report.bytes / max(report.seconds, 1e-9)
                app.echo(
                    f"{report.path}: {len(report.fetched)} steps fetched, {len(report.present)} already in the cache, "
                    f"{len(report.missing)} missing; {app.size(report.bytes)} in {report.requests} requests, "
                    f"{report.seconds:.1f} s ({app.size(rate)}/s)"
                )
                app.echo_steps("missing", report.missing)
                app.echo_steps("not fetched again", report.failed)
                app.echo_steps("superseded", report.superseded)
                if report.superseded and not refresh:
                    app.echo("  fetch --refresh fetches the superseded steps again")
                for line in checks_in_words(report.checks):
                    app.echo(f"  {line}")
                answer.facts.append(
                    {
                        "model": model.name,
                        "location": model.location,
                        "store": report.path,
                        "tensors": [spec.name for spec in report.tensors],
                        "fetched": report.fetched,
                        "present": report.present,
                        "missing": dict(report.missing),
                        "superseded": dict(report.superseded),
                        "failed": dict(report.failed),
                        "requests": report.requests,
                        "api_requests": report.api,
                        "bytes": report.bytes,
                        "checks": report.checks,
                        "seconds": report.seconds,
                    }
                )
    answer.finish()


@app.main.command(name="ls")
@app.with_models(required=False)
@app.with_cache
@app.with_json
def list_stores(models: tuple[str, ...], cache: Path) -> None:
    """List the steps in the cache and how their bytes were checked; those superseded or missing, and why."""
    from pythia_dynamics.history.provenance import check_of, checks_in_words
    from pythia_dynamics.history.states import step_states

    answer = app.Answer("stores")
    for name in app.model_names(models, cache, answer):
        with answer.collect():
            store = app.open_store(name, cache)
            for tensor, spec in store.tensors.items():
                states, recorded = step_states(store, tensor), store.records(tensor)
                stored = states.stored
                app.echo(
                    f"{store.name}  {tensor} {spec}  {len(stored)} steps, "
                    f"{app.size(len(stored) * spec.nbytes)}, from {store.source}"
                )
                checks = {step: check_of(recorded[step]) for step in stored}
                for line in checks_in_words(checks):
                    app.echo(f"  {line}")
                app.echo_steps("superseded", states.superseded)
                app.echo_steps("missing", states.missing)
                answer.facts.append(
                    {
                        "model": store.name,
                        "source": store.source,
                        "tensor": tensor,
                        "dtype": spec.dtype,
                        "shape": spec.shape,
                        "steps": stored,
                        "superseded": states.superseded,
                        "missing": states.missing,
                        "checks": checks,
                        "bytes": len(stored) * spec.nbytes,
                    }
                )
    answer.finish()


@app.main.command()
@app.with_json
def models() -> None:
    """List the registry: Pythia (Table 1 of the paper, corrected), aliases, seeds, steps; other suites."""
    from pythia_dynamics.checkpoints.registry import (
        ALL_STEPS,
        PAPER_STEPS,
        SIZES,
        TOKENIZER_ENTRIES,
        V0_DOUBLE_BATCH,
        aliases,
        other_suites,
        resolve,
    )

    answer = app.Answer("models")
    app.echo(
        f"{'model':6} {'layers':>6} {'d_model':>7} {'heads':>5} {'non-embedding':>14} {'dataset':17} "
        f"{'vocab':>6} {'parameters':>14} {'W_U':>11} {'of 143 steps':>12}  repository"
    )
    for size_name, shape in SIZES.items():
        names = [alias for alias in aliases() if alias.partition("-")[0] == size_name]
        weights, repository = shape.unembedding_parameters, resolve(size_name).location
        dataset = "deduplicated Pile" if repository.endswith("-deduped") else "Pile"
        app.echo(
            f"{size_name:6} {shape.layers:6} {shape.d_model:7} {shape.heads:5} "
            f"{shape.non_embedding_parameters:14,} {dataset:17} {shape.vocab:6} {shape.parameters:14,} {weights:11,} "
            f"{app.size(2 * weights * len(PAPER_STEPS)):>12}  {repository}"
        )
        answer.facts.append(
            {
                "model": size_name,
                **asdict(shape),
                "dataset": dataset,
                "parameters": shape.parameters,
                "non_embedding_parameters": shape.non_embedding_parameters,
                "unembedding_parameters": weights,
                "aliases": {alias: resolve(alias).location for alias in names},
                "v0_tokens_per_step": 4_194_304 if size_name in V0_DOUBLE_BATCH else 2_097_152,
            }
        )
    seeded = [size_name for size_name in SIZES if f"{size_name}-seed1" in aliases()]
    deduped = [size_name for size_name in SIZES if f"{size_name}-standard" in aliases()]
    for line in (
        "",
        f"deduplicated data by default: {', '.join(deduped)}; the others: <size>-standard",
        f"seeds 1 to 9: {', '.join(seeded)}: <size>-seed3; of the order of the data or of the initial weights alone: "
        "160m-data-seed1 to 3, 160m-weight-seed1 to 3",
        f"v0: {', '.join(deduped)}: <size>-v0, <size>-deduped-v0; steps 1000 … 143000 only. "
        f"{', '.join(V0_DOUBLE_BATCH)} took",
        "    half as many steps of twice the tokens there, and their branches were relabelled: step2000 is step 1000",
        f"steps: {len(ALL_STEPS)} (0, 1, 2, 4 … 512, 1000, 2000 … 143000); the papers use the {len(PAPER_STEPS)} "
        "from 1000 on",
        f"the tokenizer has {TOKENIZER_ENTRIES} entries, the other rows of W_U are padding "
        f"(--drop-padding {TOKENIZER_ENTRIES})",
        "Table 1 of the paper gives 14M eight heads; the published model has four",
        "",
        f"{'other suites':24} {'a step is':10} {'of a name like':58} models",
    ):
        app.echo(line)
    suites = []
    for entry in other_suites():
        kind = entry.suite.references[0]
        app.echo(f"{entry.title:24} {kind:10} {entry.example:58} {', '.join(entry.models)}")
        repositories = {alias: repository for alias, (repository, _) in entry.models.items()}
        facts = {"title": entry.title, "example": entry.example, **entry.suite.as_json, "models": repositories}
        suites.append(facts)
    answer.finish(steps=ALL_STEPS, tokenizer_entries=TOKENIZER_ENTRIES, suites=suites)


@app.main.command()
@app.with_models(required=False)
@app.with_steps
@with_tensors
@click.option(
    "--source", default="hub", show_default=True, help="hub, a directory of checkpoints, or registry (no network)."
)
@with_verify_whole
@with_refresh
@app.with_workers
@app.with_bandwidth
@click.option("--shards", type=click.IntRange(1), default=4, show_default=True, help="Jobs of the array.")
@click.option(
    "--addresses",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Addresses of array and cluster, each with a rate limit of the Hub and a bandwidth of its own.",
)
@app.with_suite
@app.with_cache
@app.with_json
def plan(
    models: tuple[str, ...],
    steps: str | None,
    tensors: tuple[str, ...],
    source: str,
    verify_whole: bool,
    refresh: bool,
    workers: int,
    bandwidth: float,
    shards: int,
    addresses: int,
    suite: dict[str, Any],
    cache: Path,
) -> None:
    """Estimate a fetch: requests, bytes, disk, memory, time. Without --model: every size of Pythia.

    The time is that of this machine. Below it is said what the fetch, and MSD and density of what is fetched, would
    take on this machine, as an array of --shards jobs on such machines, each with --workers, and on a cluster of
    --workers cores; and how many workers are worth having.
    """
    from pythia_dynamics.checkpoints.open import HUB, REGISTRY
    from pythia_dynamics.checkpoints.registry import SIZES, aliases
    from pythia_dynamics.history.estimate import preview
    from pythia_dynamics.history.request import FetchRequest
    from pythia_dynamics.history.workload import Resources, Work

    answer, total, work = app.Answer("plan"), 0, Work()
    machine = Resources(workers=workers, cores=os.cpu_count() or 1, bandwidth=bandwidth * 1e6)
    for name in app.expanded(models, aliases(), answer) if models else tuple(SIZES):
        with answer.collect():
            request = FetchRequest(
                name, tensors, steps, source, cache, suite, verify_whole=verify_whole, refresh=refresh
            )
            model, found = request.resolved, preview(request)
            seconds = found.seconds(bandwidth * 1e6, workers=workers)
            memory = found.memory_bytes(workers)
            total, work = total + found.bytes, work + found.work
            if not answer.facts:
                app.echo(
                    f"{'model':24} {'revisions':>9} {'requests':>8} {'to move':>9} {'saved':>9} {'disk':>9} "
                    f"{'memory':>9} {'time':>8}  at {bandwidth:g} MB/s"
                )
            app.echo(
                f"{model.name:24} {found.revisions:9} {found.requests + found.api_requests:8} "
                f"{app.size(found.bytes):>9} {app.size(found.saved_bytes):>9} {app.size(found.disk_bytes):>9} "
                f"{app.size(memory):>9} {app.duration(seconds):>8}"
            )
            for note in _plan_notes(found):
                app.echo(f"  {note}")
            answer.facts.append(
                {
                    "model": model.name,
                    "location": model.location,
                    **asdict(found),
                    "saved_bytes": found.saved_bytes,
                    "memory_bytes": memory,
                    "seconds": seconds,
                    "deployments": told_deployments(found.work, machine, shards, addresses)[0],
                }
            )
            if found.note and source == HUB and not models:  # the Hub cannot be reached; do not wait for it again
                source = REGISTRY
    if len(answer.facts) > 1:
        app.echo(f"{'all':24} {'':9} {'':8} {app.size(total):>9}")
    facts, lines = told_deployments(work, machine, shards, addresses)
    if work.revisions:
        for line in lines:
            app.echo(line)
    answer.finish(bandwidth=bandwidth * 1e6, workers=workers, shards=shards, addresses=addresses, deployments=facts)


def _plan_notes(found: FetchPlan) -> list[str]:
    from pythia_dynamics.history.provenance import CHECKS

    notes = [found.note] if found.note else []
    if found.revisions:
        notes.append(f"each step will be {', or '.join(CHECKS[check] for check in found.checks)}")
    if found.present:
        notes.append(f"{found.present} of {found.steps} steps are in the cache already")
    if found.missing:
        notes.append(f"{found.missing} of {found.steps} steps are not published")
    return notes
