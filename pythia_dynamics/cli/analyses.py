"""Commands that answer a question about weights: density, msd, order, rank, spectrum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pythia_dynamics.cli.app import (
    Command,
    Failure,
    bar,
    main,
    model_names,
    notes,
    print_facts,
    say,
    say_outcome,
    with_cache,
    with_json,
    with_models,
    with_results,
    with_steps,
)
from pythia_dynamics.errors import PythiaDynError

__all__ = ["density", "msd", "order", "rank", "spectrum"]


_TOKENIZER = "tokenizer"


class _Rows(click.IntRange):
    """A number of rows, or those that the tokenizer has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == _TOKENIZER else super().convert(value, param, ctx)


def _common(command: Command) -> Command:
    """The options of every analysis, as `_answer` takes them."""
    for option in (
        with_json,
        with_results,
        with_cache,
        click.option(
            "--drop-padding",
            type=_Rows(1),
            is_flag=False,
            flag_value=_TOKENIZER,
            metavar="[ROWS]",
            help="Leave out the rows of the vocabulary beyond the entries of the tokenizer, or beyond so many ROWS.",
        ),
        with_steps(None),
        click.option("--tensor", default=None, help="Which tensor of the store.  [default: W_U]"),
        with_models(required=False),
    ):
        command = option(command)
    return command


def _device(command: Command) -> Command:
    return click.option("--device", default="auto", show_default=True, help="Of the Gram matrices: auto, cuda or cpu.")(
        command
    )


def _answer(
    *kinds: str,
    models: tuple[str, ...],
    tensor: str | None,
    steps: str | None,
    drop_padding: int | str | None,
    cache: Path,
    results: Path,
    as_json: bool,
    device: str = "cpu",
    **options: Any,
) -> None:
    """Run the analyses on every model, the first with `options` of its own, and print what came of them."""
    from pythia_dynamics.history.cache import open_history
    from pythia_dynamics.history.vocabulary import tokenizer_entries
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import measure
    from pythia_dynamics.sweep.frames import NonFiniteWarning

    facts, faults = [], []
    for name in model_names(models, cache):
        try:
            history = open_history(name, tensor, cache=cache, steps=steps)
            rows = tokenizer_entries(history) if isinstance(drop_padding, str) else drop_padding
            kept = "" if rows is None else f", {rows} of {history.frame_shape[0]} rows"
            source, steps_there = history.provenance["source"], len(history.steps)
            say(f"{history.name} ({source}): {history.tensor}, {steps_there} steps{kept}", as_json)
            with notes(as_json) as caught, bar(f"{history.name} {kinds[0]}") as progress:
                outcomes = measure(
                    history,
                    kinds,
                    Results(history.name, results),
                    options={kinds[0]: options},
                    drop_padding=rows,
                    device=device,
                    progress=progress,
                )
        except PythiaDynError as error:  # the other models are answered all the same
            faults.append(str(error))
            continue
        faults += [
            f"{item.message} (all other steps are in the results)"
            for item in caught
            if item.category is NonFiniteWarning
        ]
        for outcome in outcomes:
            say_outcome(outcome, as_json)
        first, *others = outcomes
        facts.append(
            {
                "model": history.name,
                "files": [path for outcome in outcomes for path in outcome.files],
                "missing": dict(history.missing),
                **first.facts,
                **{outcome.kind: outcome.facts for outcome in others},
            }
        )
    if facts:
        print_facts({kinds[0]: facts}, as_json)
    if faults:
        raise Failure("; ".join(faults))


@main.command()
@click.option("--bins", type=click.IntRange(1), default=512, show_default=True, help="Bins of the density.")
@_common
def density(**options: Any) -> None:
    """Weight density over training: exact counts, moments, Fig 2."""
    _answer("density", **options)


@main.command()
@click.option(
    "--two-time/--no-two-time", default=True, show_default=True, help="Also compare every two steps (two_time.zarr)."
)
@_device
@_common
def msd(two_time: bool, **options: Any) -> None:
    """Mean squared displacement by both demeanings, each beside its null, Fig 3; ageing, cosines, trajectory."""
    _answer("msd", *(["two_time"] if two_time else []), **options)


@main.command()
@click.option(
    "--loss",
    type=click.Path(exists=True, dir_okay=False),
    default=None,
    help="CSV or JSON lines with step and loss (nll_mean, train_loss), or a trainer_state.json.  [default: the forward "
    "perplexity, else losses.csv of the suite]",
)
@_common
def order(loss: str | None, **options: Any) -> None:
    """Order parameter b = ‖W‖_F / d_model, and the loss against it where one is known."""
    _answer("order", loss=loss, **options)


@main.command()
@click.option("--draws", type=click.IntRange(1), default=8, show_default=True, help="Random batches per size.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the batches.")
@_device
@_common
def rank(**options: Any) -> None:
    """Covariance rank of random projections, for batch sizes and tolerances, Fig 7."""
    _answer("rank", **options)


@main.command()
@_device
@_common
def spectrum(**options: Any) -> None:
    """Singular values: entropy, effective and stable rank, condition number, power law."""
    _answer("spectrum", **options)
