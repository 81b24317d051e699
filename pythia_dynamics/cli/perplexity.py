"""The command ``perplexity``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pythia_dynamics.cli.app import (
    Failure,
    bar,
    main,
    model_names,
    notes,
    print_facts,
    resumable,
    say,
    say_missing,
    say_outcome,
    with_cache,
    with_json,
    with_models,
    with_results,
    with_steps,
)

__all__ = ["perplexity"]


@main.command()
@with_models(required=False)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["forward", "unmask", "last-word"]),
    multiple=True,
    default=("forward",),
    show_default=True,
    help="Definition; repeatable, each checkpoint is then loaded once for all.",
)
@click.option(
    "--corpus", default="lambada", show_default=True, help="lambada, cimec/lambada, or a .jsonl or text file."
)
@click.option("--limit", type=click.IntRange(1), default=500, show_default=True, help="Passages.")
@with_steps(None)
@click.option("--source", default="hub", show_default=True, help="hub, or a directory of checkpoints.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--tf32", is_flag=True, help="Allow TF32 in float32 matrix products on CUDA.")
@click.option(
    "--head",
    type=click.Choice(["as-is", "ternary"]),
    default="as-is",
    show_default=True,
    help="W_U used; ternary: rounded to {−1, 0, +1}·scale, results in a folder of that name.",
)
@click.option("--batch-tokens", type=click.IntRange(1), default=None, help="Tokens held at once.  [default: by device]")
@click.option(
    "--disk-budget", type=click.FloatRange(0), default=None, help="GB of downloads kept.  [default: one ahead]"
)
@click.option("--show", metavar="PHRASE", default=None, help="Print how each prefix of a phrase is completed (Fig 5).")
@with_cache
@with_results
@with_json
@resumable
def perplexity(
    models: tuple[str, ...],
    modes: tuple[str, ...],
    corpus: str,
    limit: int,
    steps: str | None,
    source: str,
    device: str,
    dtype: str,
    tf32: bool,
    head: str,
    batch_tokens: int | None,
    disk_budget: float | None,
    show: str | None,
    cache: Path,
    results: Path,
    as_json: bool,
) -> None:
    """Forward, causal-unmasking and last-word perplexity of every checkpoint."""
    from dataclasses import asdict

    from pythia_dynamics.checkpoints.registry import parse_steps
    from pythia_dynamics.evaluation import runner
    from pythia_dynamics.history.cache import find_model
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import draw_perplexity

    facts: list[dict[str, Any]] = []
    gaps = nonfinite = 0
    for name in model_names(models, cache):
        model = find_model(name, cache)
        say(f"{name} is {model.location}", as_json)
        if show is not None:
            asked = parse_steps(steps) if steps else None
            lines = runner.completions(
                model, show, step=asked[-1] if asked else None, device=device, dtype=dtype, head=head, source=source
            )
            for line in lines:
                say(f"{line.perplexity:10.2f}  {line.given}│{line.generated}", as_json)
            facts.append({"model": model.name, "completions": [asdict(line) for line in lines]})
            continue
        out = Results(model.name, results)
        if head != "as-is":  # beside the results of the head as it is, not in their place
            out = Results(head, out.path)
        with notes(as_json), bar(f"{model.name} perplexity", "step") as progress:
            scores = runner.perplexity(
                model,
                mode=modes,
                corpus=corpus,
                limit=limit,
                steps=steps,
                device=device,
                dtype=dtype,
                head=head,
                tf32=tf32,
                out=out.path,
                source=source,
                batch_tokens=batch_tokens,
                disk_budget=None if disk_budget is None else int(disk_budget * 1e9),
                progress=progress,
            )
        for outcome in draw_perplexity(out, scores):
            say_outcome(outcome, as_json)
            say_missing(outcome.facts["missing"], as_json)
            gaps += len(outcome.facts["missing"])
            nonfinite += outcome.facts["nonfinite"]
            facts.append({"model": model.name, "mode": outcome.kind, "files": outcome.files, **outcome.facts})
    print_facts({"perplexity": facts}, as_json)
    if gaps:
        raise Failure(f"{gaps} steps gave no perplexity (see above); the same command tries those again")
    if nonfinite:
        raise Failure(f"{nonfinite} sentences had no valid perplexity; the column nonfinite counts them by step")
