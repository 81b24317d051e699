"""Commands about weights: fetch, ls, verify."""

from __future__ import annotations

from pathlib import Path

import click

from pythia_dynamics.cli.app import (
    Failure,
    bar,
    main,
    model_names,
    open_store,
    print_facts,
    say,
    say_missing,
    size,
    with_cache,
    with_json,
    with_models,
    with_steps,
)

__all__ = ["fetch", "list_stores", "verify"]


@main.command()
@with_models(required=True)
@with_steps(None)
@click.option(
    "--tensor",
    "tensors",
    multiple=True,
    default=("embed_out.weight",),
    show_default=True,
    help="Name or glob of a tensor; repeatable.",
)
@click.option("--source", default="hub", show_default=True, help="hub, or a directory of checkpoints.")
@click.option("--workers", type=click.IntRange(1, 256), default=8, show_default=True, help="Revisions at once.")
@click.option("--revision-pattern", default=None, help="Regular expression with one group, the step, of branch names.")
@with_cache
@with_json
def fetch(
    models: tuple[str, ...],
    steps: str | None,
    tensors: tuple[str, ...],
    source: str,
    workers: int,
    revision_pattern: str | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Bring tensors of a model's checkpoints into the cache, by byte range."""
    from pythia_dynamics.fetch import download
    from pythia_dynamics.history import find_model

    facts, incomplete = [], False
    for name in models:
        model = find_model(name, cache)
        say(f"{name} is {model.location}", as_json)
        with bar(model.name, "step") as progress:
            report = download(
                model,
                source=source,
                steps=steps,
                tensors=tensors,
                cache=cache,
                workers=workers,
                pattern=revision_pattern,
                progress=progress,
            )
        incomplete = incomplete or not report.complete
        rate = report.bytes / max(report.seconds, 1e-9)
        say(
            f"{report.path}: {len(report.fetched)} steps fetched, {len(report.present)} were there, "
            f"{len(report.missing)} missing; {size(report.bytes)} in {report.requests} requests, "
            f"{report.seconds:.1f} s ({size(rate)}/s)",
            as_json,
        )
        say_missing(report.missing, as_json)
        facts.append(
            {
                "model": model.name,
                "location": model.location,
                "store": report.path,
                "tensors": [spec.name for spec in report.tensors],
                "fetched": report.fetched,
                "present": report.present,
                "missing": dict(report.missing),
                "requests": report.requests,
                "api_requests": report.api,
                "bytes": report.bytes,
                "seconds": report.seconds,
            }
        )
    print_facts({"fetch": facts}, as_json)
    if incomplete:
        raise Failure("some steps could not be fetched (see above); the same command tries those again")


@main.command(name="ls")
@with_models(required=False)
@with_cache
@with_json
def list_stores(models: tuple[str, ...], cache: Path, as_json: bool) -> None:
    """What is in the cache, what is missing and why."""
    facts = []
    for name in model_names(models, cache):
        store = open_store(name, cache)
        for tensor, spec in store.tensors.items():
            held = [step for step in sorted(store.records(tensor)) if store.has(tensor, step)]
            absent = {step: "not fetched" for step in store.steps if step not in held} | store.missing(tensor)
            say(
                f"{store.name}  {tensor} {spec.dtype}[{', '.join(map(str, spec.shape))}]  {len(held)} steps, "
                f"{size(len(held) * spec.nbytes)}, from {store.source}",
                as_json,
            )
            say_missing(absent, as_json)
            facts.append(
                {
                    "model": store.name,
                    "source": store.source,
                    "tensor": tensor,
                    "dtype": spec.dtype,
                    "shape": spec.shape,
                    "steps": held,
                    "missing": absent,
                    "bytes": len(held) * spec.nbytes,
                }
            )
    print_facts({"stores": facts}, as_json)


@main.command()
@with_models(required=False)
@with_cache
@with_json
def verify(models: tuple[str, ...], cache: Path, as_json: bool) -> None:
    """Compare every stored chunk with its checksum."""
    from pythia_dynamics.errors import IntegrityError

    facts, broken = [], 0
    for name in model_names(models, cache):
        store = open_store(name, cache)
        for tensor in store.tensors:
            damaged: dict[int, str] = {}
            steps = sorted(store.records(tensor))
            with bar(f"{name} {tensor}", "step") as progress:
                for done, step in enumerate(steps, 1):
                    try:
                        store.check(tensor, step)
                    except IntegrityError as error:
                        damaged[step] = str(error)
                        store.forget(tensor, step)  # so that fetch brings it again
                    progress(done, len(steps))
            broken += len(damaged)
            say(f"{name}  {tensor}: {len(steps) - len(damaged)} steps whole, {len(damaged)} damaged", as_json)
            for reason in damaged.values():
                say(f"  {reason}", as_json)
            facts.append({"model": name, "tensor": tensor, "checked": steps, "damaged": damaged})
    print_facts({"verify": facts}, as_json)
    if broken:
        raise Failure(f"{broken} chunks are damaged; pythia-dyn fetch replaces them")
