"""The command ``train``, and the options of a training plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.shards import cluster, own_items, with_dask, with_shard
from pythia_dynamics.training.plan import BLOG_PLAN, TrainingPlan

if TYPE_CHECKING:
    from pythia_dynamics.shard import Shard
    from pythia_dynamics.training.suite import Suite
    from pythia_dynamics.training.text import Text

__all__ = ["train", "training_text", "with_corpus", "with_plan"]


_NON_NEGATIVE, _POSITIVE, _SHARE = click.FloatRange(0), click.IntRange(1), click.FloatRange(0, 1)

_PLAN_OPTIONS: dict[str, tuple[str, Any]] = {
    "arch": ("Architecture: that of Pythia, or that of the blog.", None),
    "d_model": ("Width of the model.", _POSITIVE),
    "layers": ("Blocks of the model.", _POSITIVE),
    "heads": ("Attention heads of a block.", _POSITIVE),
    "context": ("Tokens in a window.", click.IntRange(2)),
    "batch": ("Windows in a batch.", _POSITIVE),
    "max_steps": ("Steps of the training.", _POSITIVE),
    "every": ("Steps between checkpoints, and between losses.", _POSITIVE),
    "checkpoints": ("Number of evenly spaced checkpoints, in place of --every.", _POSITIVE),
    "log_spaced": ("Also save checkpoints at steps 1, 2, 4 … 512.", None),
    "step_zero": ("Also save a checkpoint of the untrained model.", None),
    "eval_batches": ("Batches from each part of the text, for a loss.", _POSITIVE),
    "learning_rate": ("Largest learning rate of AdamW.", click.FloatRange(0, min_open=True)),
    "schedule": ("Learning rate after the warm-up.", None),
    "warmup_steps": ("Steps over which the learning rate rises.", click.IntRange(0)),
    "dropout": ("Dropout.", _SHARE),
    "weight_decay": ("Weight decay of AdamW.", _NON_NEGATIVE),
    "adam_beta2": ("Decay rate of AdamW's second moment.", _SHARE),
    "max_grad_norm": ("Norm to which gradients are clipped; 0 for no clipping.", _NON_NEGATIVE),
    "tokenizer": ("Kind of the tokenizer.", None),
    "vocab": ("Entries of the bpe tokenizer.", _POSITIVE),
    "initialisation": ("Initial weights: the default of PyTorch for each layer, or normal(0, 0.02) for all.", None),
    "held_out": ("Share of the text that is not trained on.", _SHARE),
    "dtype": ("Dtype of the weights in the files.", None),
}
"""Help and range of the option for each field of `TrainingPlan`; `seed` has separate options."""

_SET_BY_SIZE = ("d_model", "layers", "heads")
"""Fields whose default depends on ``--size``."""

_SET_BY_COMMAND = ("arch", "initialisation")
"""Fields whose default depends on the command, which says it."""


def with_corpus(command: app.Command) -> app.Command:
    """Add the option for the training text."""
    return click.option(
        "--corpus",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Text to train on, UTF-8.  [default: karpathy/tiny_shakespeare from the Hub]",
    )(command)


def with_plan(command: app.Command) -> app.Command:
    """Add an option for each field of `TrainingPlan`; an option that is not given is None."""
    types = get_type_hints(TrainingPlan)
    for name, (text, kind) in reversed(_PLAN_OPTIONS.items()):
        default = "by size" if name in _SET_BY_SIZE else getattr(BLOG_PLAN, name)
        flag = "--init" if name == "initialisation" else f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            flag, default = f"{flag}/--no{flag[1:]}", "yes" if default else "no"
        elif kind is None:
            kind = click.Choice(get_args(types[name]))
        if default is not None and name not in _SET_BY_COMMAND:
            text = f"{text}  [default: {default}]"
        command = click.option(flag, name, type=kind, default=None, help=text)(command)
    return app.with_device(command)


def training_text(corpus: Path | None) -> Text:
    """The text of ``--corpus``, or tiny Shakespeare."""
    from pythia_dynamics.training.text import read_text, tiny_shakespeare

    return tiny_shakespeare() if corpus is None else read_text(corpus)


@app.main.command()
@click.option(
    "--size",
    required=True,
    help="10k, 0.1m, 1m or 10m: the models of the order-parameter blog. Or demo: the suite of `pythia-dyn demo`, with "
    "its own defaults and text.",
)
@with_corpus
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory of the suite; with --seeds, OUT-seed0, OUT-seed1 …",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed, or the first of several.")
@click.option("--seeds", type=click.IntRange(1), help="Number of suites, with consecutive seeds.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch on a CPU.  [default: 1 up to --d-model 128]")
@with_plan
@with_shard
@with_dask
@app.with_json
@app.resumable
def train(
    size: str,
    corpus: Path | None,
    out: Path,
    seed: int,
    seeds: int | None,
    threads: int | None,
    shard: Shard | None,
    dask: str | None,
    device: str,
    **changes: Any,
) -> None:
    """Train a suite: a small model with checkpoints like those of Pythia, and its losses.

    The default architecture is --arch gpt-neox, initialised with --init neox; that of --arch nanogpt is --init pytorch.
    After an interruption the same command resumes, and ends with the same weights.
    """
    from pythia_dynamics.training.loop import train_suite, train_suites
    from pythia_dynamics.training.plan import DEMO_SIZE, plan_named
    from pythia_dynamics.training.text import python_reference

    numbers = own_items(shard, [seed] if seeds is None else range(seed, seed + seeds), "seeds")
    places = {number: out if seeds is None else out.with_name(f"{out.name}-seed{number}") for number in numbers}
    plans = {places[number]: plan_named(size, seed=number, **changes) for number in numbers}
    text = python_reference() if corpus is None and size.lower() == DEMO_SIZE else training_text(corpus)
    answer = app.Answer("train")
    ready: dict[Path, Suite] = {}
    with cluster(dask, shard) as executor:
        if executor is not None:
            with app.bar("train", "suite") as progress:
                how: dict[str, Any] = {"device": device, "threads": threads, "progress": progress}
                ready = {suite.path: suite for suite in train_suites(plans, text, executor, **how)}
    for number, path in places.items():
        if (suite := ready.get(path)) is None:
            with app.bar(f"train {path.name}", "step") as progress:
                suite = train_suite(path, text, plans[path], device=device, threads=threads, progress=progress)
        losses = suite.losses
        app.echo(
            f"{suite.path}: {len(losses)} checkpoints to step {losses[-1].step}; training loss {losses[0].train:.3f} → "
            f"{losses[-1].train:.3f}, validation loss {losses[0].validation:.3f} → {losses[-1].validation:.3f} nats "
            f"per token" + ("" if suite.fresh else " (already there)")
        )
        answer.facts.append(
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
    if answer.facts:
        app.echo(f"next: pythia-dyn fetch --model {answer.facts[0]['suite']}")
    answer.finish()
