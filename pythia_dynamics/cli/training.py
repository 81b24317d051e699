"""The command ``train``, and the options of a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli.app import (
    Command,
    bar,
    main,
    print_facts,
    resumable,
    say,
    with_json,
)

if TYPE_CHECKING:
    from pythia_dynamics.training.text import Text

__all__ = ["train", "training_text", "with_corpus", "with_plan"]


def with_corpus(command: Command) -> Command:
    return click.option(
        "--corpus",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Text to train on, UTF-8.  [default: karpathy/tiny_shakespeare from the Hub]",
    )(command)


def with_plan(command: Command) -> Command:
    """The numbers of a training; their names are the fields of `TrainingPlan`."""
    positive, share = click.IntRange(1), click.FloatRange(0, 1)
    for option in (
        click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the checkpoint files."),
        click.option("--held-out", type=share, help="Share of the text that is not trained on.  [default: 0.1]"),
        click.option(
            "--init",
            "initialisation",
            type=click.Choice(["neox", "pytorch"]),
            help="normal(0, 0.02) throughout, or each layer's default of PyTorch.",
        ),
        click.option("--vocab", type=positive, help="Entries of the bpe tokenizer.  [default: 1024]"),
        click.option("--tokenizer", type=click.Choice(["characters", "bpe"]), help="[default: characters]"),
        click.option(
            "--max-grad-norm", type=click.FloatRange(0), help="Gradients are clipped to it.  [default: 0, not]"
        ),
        click.option("--adam-beta2", type=share, help="[default: 0.999]"),
        click.option("--weight-decay", type=click.FloatRange(0), help="[default: 0.01]"),
        click.option("--dropout", type=share, help="[default: 0.2]"),
        click.option("--warmup-steps", type=click.IntRange(0), help="[default: 0]"),
        click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="[default: constant]"),
        click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: 3e-4]"),
        click.option("--eval-batches", type=positive, help="Batches of either part that a loss is measured on."),
        click.option("--log-spaced/--no-log-spaced", default=None, help="Also at steps 1, 2, 4 … 512.  [default: not]"),
        click.option("--checkpoints", type=positive, help="So many evenly spaced checkpoints and losses instead."),
        click.option("--every", type=positive, help="Steps between checkpoints, and losses.  [default: 500]"),
        click.option("--max-steps", type=positive, help="[default: 20000]"),
        click.option("--batch", type=positive, help="Windows in a batch.  [default: 64]"),
        click.option("--context", type=click.IntRange(2), help="Tokens in a window.  [default: 256]"),
        click.option("--heads", type=positive, help="[default: by size]"),
        click.option("--layers", type=positive, help="[default: by size]"),
        click.option("--d-model", type=positive, help="[default: by size]"),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda."),
    ):
        command = option(command)
    return command


def training_text(corpus: Path | None) -> Text:
    from pythia_dynamics.training.text import read_text, tiny_shakespeare

    return tiny_shakespeare() if corpus is None else read_text(corpus)


@main.command()
@click.option("--size", required=True, help="10k, 0.1m, 1m or 10m: the models of the order-parameter blog.")
@with_corpus
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory of the suite; with --seeds, OUT-seed0, OUT-seed1 …",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first, or only, seed.")
@click.option("--seeds", type=click.IntRange(1), help="Train so many suites, with consecutive seeds.")
@click.option("--threads", type=click.IntRange(1), help="Of torch on a CPU.  [default: 1 for a d_model up to 128]")
@with_plan
@with_json
@resumable
def train(
    size: str,
    corpus: Path | None,
    out: Path,
    seed: int,
    seeds: int | None,
    threads: int | None,
    device: str,
    as_json: bool,
    **changes: Any,
) -> None:
    """Train a suite of one's own: checkpoints like Pythia's, and the losses beside them.

    Interrupted, the same command goes on where it was and ends with the same weights.
    """
    from pythia_dynamics.training.loop import train_suite
    from pythia_dynamics.training.plan import plan_of_size

    numbers = [seed] if seeds is None else list(range(seed, seed + seeds))
    plans = {number: plan_of_size(size, seed=number, **changes) for number in numbers}
    text = training_text(corpus)
    facts = []
    for number, plan in plans.items():
        path = out if seeds is None else out.with_name(f"{out.name}-seed{number}")
        with bar(f"train {path.name}", "step") as progress:
            suite = train_suite(path, text, plan, device=device, threads=threads, progress=progress)
        losses = suite.losses
        say(
            f"{suite.path}: {len(losses)} checkpoints to step {losses[-1].step}; training loss {losses[0].train:.3f} → "
            f"{losses[-1].train:.3f}, validation loss {losses[0].validation:.3f} → {losses[-1].validation:.3f} nats "
            f"per token" + ("" if suite.fresh else " (was there)"),
            as_json,
        )
        facts.append(
            {
                "suite": suite.path,
                "seed": number,
                "trained": suite.fresh,
                "steps": [row.step for row in losses],
                "train_loss": [losses[0].train, losses[-1].train],
                "validation_loss": [losses[0].validation, losses[-1].validation],
                "losses": suite.path / "losses.csv",
            }
        )
    say(f"next: pythia-dyn fetch --model {facts[0]['suite']}", as_json)
    print_facts({"train": facts}, as_json)
