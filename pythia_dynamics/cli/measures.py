"""The commands of the measures: density, msd, two-time, order, rank, spectrum, and those of users."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.measures import MEASURES

if TYPE_CHECKING:
    from pythia_dynamics.measures.measure import Measure, Option

__all__ = ["MeasureCommand"]


class MeasureCommand(click.Command):
    """The command of a measure. The measure is imported when the command runs or shows its help, not for the list."""

    def __init__(self, measure: str, help: str | None = None) -> None:
        super().__init__(measure.replace("_", "-"), callback=partial(_run, measure), help=help)
        self.measure = measure

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options that every measure has, and the flags of this measure."""
        if not self.params:
            self.params = _parameters(_measure(self.measure))
        return super().get_params(ctx)


def _measure(name: str) -> Measure:
    from pythia_dynamics.measures.catalogue import find_measure

    return find_measure(name)


def _parameters(measure: Measure) -> list[click.Parameter]:
    companions = [_measure(name) for name in measure.companions]
    decorators: list[Callable[[Any], Any]] = [
        app.with_models(required=False),
        app.with_tensor,
        app.with_steps(None),
        app.with_rows,
    ]
    decorators += [_flag(option) for option in measure.options.values() if option.flag is not None]
    if any(each.uses_gram for each in (measure, *companions)):
        decorators.append(
            click.option("--device", default="auto", show_default=True, help="For Gram matrices: auto, cuda or cpu.")
        )
    for name in measure.companions:
        flag = name.replace("_", "-")
        text = f"Also compute {name} ({name}.zarr)."
        decorators.append(click.option(f"--{flag}/--no-{flag}", default=True, show_default=True, help=text))
    decorators += [app.with_cache, app.with_results, app.with_json]

    def command() -> None: ...

    for decorate in reversed(decorators):
        command = decorate(command)
    declared: list[click.Parameter] = command.__click_params__  # type: ignore[attr-defined]
    return declared[::-1]


def _flag(option: Option) -> Callable[[Any], Any]:
    """The click option for an option of a measure that has a `Flag`."""
    assert option.flag is not None
    members = typing.get_args(option.kind) if isinstance(option.kind, types.UnionType) else (option.kind,)
    kind: Any = next((member for member in (bool, int, float) if member in members), str)
    if option.flag.is_file:
        kind = click.Path(exists=True, dir_okay=False)
    elif option.flag.minimum is not None:
        kind = click.IntRange(option.flag.minimum)
    return click.option(
        f"--{option.name.replace('_', '-')}",
        option.name,
        type=kind,
        default=option.default,
        show_default=option.default is not None,
        help=option.flag.help,
    )


def _run(
    measure: str,
    *,
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
    """Compute a measure and its companions for every model, and print the results."""
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.studies.pipeline import measure as measure_history
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.sweep.frames import NonFiniteWarning

    companions = [name for name in _measure(measure).companions if options.pop(name)]
    facts: list[dict[str, Any]] = []
    failures = app.FailureList()
    for name in app.model_names(models, cache):
        with failures.collect():
            history = app.load_history(name, tensor, steps, cache)
            rows = app.rows_to_keep(drop_padding, history, as_json)
            with app.echo_warnings(as_json) as caught, app.bar(f"{history.name} {measure}") as progress:
                outcomes = measure_history(
                    history,
                    [measure, *companions],
                    Results(history.name, results),
                    options={measure: options},
                    compute=Compute(rows=rows, device=device, progress=progress),
                )
            app.record_written(history.name)
            for item in caught:
                if item.category is NonFiniteWarning:
                    failures.add(f"{item.message} (all other steps are in the results)")
            for outcome in outcomes:
                app.echo_outcome(outcome, as_json)
            first, *others = outcomes
            facts.append(
                {
                    "model": history.name,
                    "tensor": history.tensor,
                    "files": [path for outcome in outcomes for path in outcome.files],
                    "missing": dict(history.missing),
                    **first.facts,
                    **{outcome.kind: outcome.facts for outcome in others},
                }
            )
    if facts:
        app.print_facts({measure: facts}, as_json)
    failures.raise_if_any()


for _name, _description in MEASURES.items():
    app.main.add_command(MeasureCommand(_name, _description))
app.main.other_measures = MeasureCommand
