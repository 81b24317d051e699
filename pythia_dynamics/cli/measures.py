"""The commands of the measures: density, msd, two-time, order, rank, spectrum, and those of users."""

from __future__ import annotations

import shlex
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.group import AFTER_KEY, SHARD
from pythia_dynamics.cli.shards import Division, cluster, with_dask, with_shard
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.measures import MEASURES

if TYPE_CHECKING:
    from pythia_dynamics.figures.axis import AxisKind
    from pythia_dynamics.measures.measure import Flag, Measure, Option
    from pythia_dynamics.progress import Progress
    from pythia_dynamics.shard import Shard

__all__ = ["MOST_DRAWN", "MeasureCommand"]

MOST_DRAWN = 8
"""Tensors of a model up to which a command draws a figure of each. A figure takes about a second, the pass over a
matrix of a small model less; of more tensors the overview is drawn."""


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


def _registered(name: str) -> MeasureCommand:
    """The command of a registered measure. Its help is the title of the measure, or why it cannot be used."""
    try:
        return MeasureCommand(name, _measure(name).title)
    except PythiaDynError as error:
        return MeasureCommand(name, f"Not available: {error}")


def _measure(name: str) -> Measure:
    from pythia_dynamics.measures.catalogue import find_measure

    return find_measure(name)


def _parameters(measure: Measure) -> list[click.Parameter]:
    companions = [_measure(name) for name in measure.companions]
    after: list[Callable[[Any], Any]] = []
    if any(each.uses_gram for each in (measure, *companions)):
        text = "For Gram matrices: auto, cuda or cpu."
        after.append(click.option("--device", default="auto", show_default=True, help=text))
    for name in measure.companions:
        flag = name.replace("_", "-")
        text = f"Also compute {name} ({name}.zarr)."
        after.append(click.option(f"--{flag}/--no-{flag}", default=True, show_default=True, help=text))
    if "frequencies" in measure.options:
        text = (
            "tokenizer.json, its directory, or a repository, for a text of --frequencies.  [default: the checkpoints']"
        )
        after.append(click.option("--tokenizer", help=text))
    after += [with_shard, with_dask, app.with_axis, app.with_width, app.with_results, app.with_json]
    weights, others = _declared([app.with_weights])[::-1], _declared(after)  # click collects from the last to the first
    own = _declared([_flag(measure, option) for option in measure.options.values() if option.flag is not None])
    taken = {"device", "--device", "--help", "-h", *_names([*weights, *others])}
    for parameter in own:
        if clash := taken.intersection(_names([parameter])):
            raise PythiaDynError(
                f"the measure {measure.name} has an option {parameter.name}, but every measure has the option "
                f"{max(clash)}; rename yours"
            )
    return [*weights, *own, *others]


def _declared(decorators: Sequence[Callable[[Any], Any]]) -> list[click.Parameter]:
    """The parameters that decorators of click declare."""

    def command() -> None: ...

    for decorate in decorators:
        command = decorate(command)
    declared: list[click.Parameter] = getattr(command, "__click_params__", [])
    return declared


def _names(parameters: Sequence[click.Parameter]) -> set[str]:
    """The flags of parameters, and the names of their values."""
    return {
        name for parameter in parameters for name in (str(parameter.name), *parameter.opts, *parameter.secondary_opts)
    }


def _flag(measure: Measure, option: Option) -> Callable[[Any], Any]:
    """The click option for an option of a measure that has a `Flag`."""
    assert option.flag is not None
    flag = option.name.replace("_", "-")
    settings: dict[str, Any] = {"help": option.flag.help, "show_default": True, "required": option.is_required}
    if not option.is_required:
        settings |= {"default": option.default, "show_default": option.default is not None}
    if option.flag.is_file:
        return click.option(f"--{flag}", option.name, type=click.Path(exists=True, dir_okay=False), **settings)
    if option.choices:
        return click.option(f"--{flag}", option.name, type=click.Choice(option.choices), **settings)
    scalar = _scalar(option.kinds, option.flag)
    if scalar is bool:
        return click.option(f"--{flag}/--no-{flag}", option.name, type=bool, **settings)
    many = next((kind for kind in option.kinds if typing.get_origin(kind) in (tuple, list, Sequence)), None)
    if scalar is None and many is not None:
        members = [member for member in typing.get_args(many) if member is not Ellipsis]
        member = _scalar(members[:1], option.flag)
        if member not in (None, bool) and len(members) == 1:
            settings["callback"] = lambda ctx, parameter, value: value or option.default
            settings["help"] += " Repeatable."
            return click.option(f"--{flag}", option.name, type=member, multiple=True, **settings)
    if scalar is None:
        raise PythiaDynError(f"the option {option.name} of the measure {measure.name} cannot be a flag: {option.kind}")
    return click.option(f"--{flag}", option.name, type=scalar, **settings)


def _scalar(kinds: Sequence[Any], flag: Flag) -> Any:
    """The type of click for the first of the types that is a number, text or a path; None without one."""
    kind = next((kind for kind in (bool, int, float, str) if kind in kinds), None)
    if kind in (int, float) and flag.minimum is not None:
        return click.IntRange(flag.minimum) if kind is int else click.FloatRange(flag.minimum)
    if kind is None and Path in kinds:
        return click.Path(path_type=Path)
    return str if kind is None and Any in kinds else kind


@app.with_weights
def _run(
    measure: str,
    /,
    weights: app.Weights,
    *,
    results: Path,
    axis: AxisKind,
    shard: Shard | None,
    dask: str | None,
    device: str = "cpu",
    **options: Any,
) -> None:
    """Compute a measure and its companions for every model, and print the results."""
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.results.overview import has_overview
    from pythia_dynamics.studies.overview import save_overview
    from pythia_dynamics.studies.pipeline import measure as measure_history
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.sweep.frames import NonFiniteWarning
    from pythia_dynamics.sweep.partial import PartSavedError

    companions = [name for name in _measure(measure).companions if options.pop(name)]
    answer = app.Answer(measure)
    division = Division.of(list(weights.histories(answer)), shard, results)
    division.begin()
    if division.said:
        app.echo(division.said)
    tensors_of = Counter(history.name for history in division.histories)
    measured: Counter[str] = Counter(tensors_of if division.merges and division.by_history else ())
    with app.bar(measure) as progress, cluster(dask, shard) as executor:
        for index, history in enumerate(division.own):
            share = partial(_part, progress, index, len(division.own))
            with answer.collect():
                rows, part = weights.rows(history), division.partial(history)
                try:
                    with app.echo_warnings() as caught:
                        outcomes = measure_history(
                            history,
                            [measure, *companions],
                            Results(history.name, results),
                            options={measure: options},
                            compute=Compute(rows=rows, device=device, progress=share, executor=executor, partial=part),
                            axis=axis,
                            draw=tensors_of[history.name] <= MOST_DRAWN,
                        )
                except PartSavedError as saved:
                    app.echo(f"  {saved}")
                    answer.facts.append({"model": history.name, "tensor": history.tensor, "part": str(shard)})
                    continue
                for item in caught:
                    if item.category is NonFiniteWarning:
                        answer.fail(f"{item.message} (all other steps are in the results)")
                for outcome in outcomes:
                    app.echo_outcome(outcome)
                first, *others = outcomes
                answer.facts.append(
                    {
                        "model": history.name,
                        "tensor": history.tensor,
                        "files": [path for outcome in outcomes for path in outcome.files],
                        "missing": dict(history.missing),
                        **first.facts,
                        **{outcome.kind: outcome.facts for outcome in others},
                    }
                )
                measured[history.name] += 1
    division.end()
    if shard is not None:  # what belongs to all tensors is drawn when the parts of all jobs are there
        click.get_current_context().meta[AFTER_KEY] = SHARD
        answer.finish(shard=str(shard))
        return
    overviews = []
    for name in [name for name, count in measured.items() if count > 1 and has_overview(measure)]:
        with answer.collect():
            outcome = save_overview(Results(name, results), measure, axis=axis)
            app.echo(f"{name}: all tensors")
            app.echo_outcome(outcome)
            if tensors_of[name] > MOST_DRAWN:
                app.echo(f"  the figures of each tensor: pythia-dyn figures --model {shlex.quote(name)}")
            overviews.append({"model": name, "files": outcome.files, **outcome.facts})
    answer.finish(**({"overviews": overviews} if overviews else {}))


def _part(progress: Progress, index: int, count: int, done: int, total: int) -> None:
    """Report the progress of one of several histories, in thousandths of each."""
    progress(1000 * index + 1000 * done // max(total, 1), 1000 * count)


for _name, _description in MEASURES.items():
    app.main.add_command(MeasureCommand(_name, _description))
app.main.other_measures = _registered
