"""``fetch --measure``: tensors are measured while they are fetched, and not stored."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics.checkpoints.roles import ALL
from pythia_dynamics.cli import app
from pythia_dynamics.cli.group import AFTER_KEY
from pythia_dynamics.cli.measures import MOST_DRAWN

if TYPE_CHECKING:
    from pythia_dynamics.history.request import FetchRequest
    from pythia_dynamics.history.stream import StreamPlan
    from pythia_dynamics.measures.measure import Measure
    from pythia_dynamics.shard import Shard

__all__ = ["Streaming", "stream_model", "with_streaming"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class _Bytes(click.ParamType[int]):
    """A number of bytes: ``500MB``, ``2 GB``, ``1e9``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([kKMGT]?B?)\s*", str(value))
        unit = found[2].upper() if found else "?"
        if found is None or unit not in _UNITS or not int(float(found[1]) * _UNITS[unit]):
            self.fail(f"{value!r} is not a number of bytes, such as 500MB or 2GB", param, ctx)
        return int(float(found[1]) * _UNITS[unit])


@dataclass(frozen=True)
class Streaming:
    """The values of `with_streaming`.

    Parameters
    ----------
    measures
        Names of measures; none: the weights are stored.
    scratch
        Bytes of weights on the disk at one time.
    results
        Directory of result files.
    """

    measures: tuple[str, ...]
    scratch: int
    results: Path


def with_streaming(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a fetch that measures. The command gets their values as one `Streaming`."""

    @wraps(command)
    def wrapper(*args: Any, measures: tuple[str, ...], scratch: int, results: Path, **options: Any) -> Any:
        return command(*args, streaming=Streaming(measures, scratch, results), **options)

    added: Callable[..., Any] = app.with_results(wrapper)
    added = click.option(
        "--scratch",
        type=_Bytes(),
        default="2GB",
        show_default=True,
        help="With --measure: bytes of weights that are on the disk at one time. A larger tensor is read in parts.",
    )(added)
    return click.option(
        "--measure",
        "measures",
        multiple=True,
        metavar="NAME",
        help="Measure the tensors while they are fetched, and store results only: msd, density, order, spectrum … (any "
        "command of a measure, with its default options; repeatable). The files are those of that command.",
    )(added)


def stream_model(
    request: FetchRequest,
    streaming: Streaming,
    workers: int,
    refresh: bool,
    shard: Shard | None,
    answer: app.Answer,
) -> None:
    """Measure the tensors of a model, or those of a shard, while they are fetched, and print what was found."""
    from pythia_dynamics.history.stream import open_stream
    from pythia_dynamics.measures.stream import with_companions
    from pythia_dynamics.results.folder import Results
    from pythia_dynamics.results.overview import has_overview
    from pythia_dynamics.studies.overview import save_overview
    from pythia_dynamics.studies.streaming import finished_tensors, measure_stream
    from pythia_dynamics.sweep.compute import Compute
    from pythia_dynamics.sweep.frames import MissingStepsWarning, NonFiniteWarning

    click.get_current_context().meta[AFTER_KEY] = streaming.measures[0]
    measures, model = with_companions(streaming.measures), request.resolved
    results = Results(model.name, streaming.results)
    with open_stream(request, scratch=streaming.scratch, workers=workers) as stream:
        finished = set() if refresh else finished_tensors(stream, measures, results)
        own = stream.tensors if shard is None else shard.balanced(stream.tensors, lambda spec: float(spec.nbytes))
        plan = stream.plan({*finished, *(spec.name for spec in stream.tensors if spec not in own)})
        if shard is not None:
            app.echo(f"  shard {shard}: {len(own)} of {len(stream.tensors)} tensors")
        for line in _plan_lines(plan, measures, len(finished), divides=ALL in request.patterns):
            app.echo(f"  {line}")
        names = [name for spec in stream.tensors for name in stream.names(spec)]
        lacking: dict[str, dict[int, str]] = {}
        found = Counter[str]()
        with app.bar(model.name) as progress, app.echo_warnings() as caught:
            compute, draw = Compute(device="auto"), len(names) <= MOST_DRAWN
            measured = measure_stream(
                stream, plan, measures, results, compute=compute, draw=lambda tensor: draw, progress=progress
            )
            for history, outcomes in measured:
                app.echo(f"{history.name} ({history.provenance['source']}): {history.tensor}")
                for outcome in outcomes:
                    app.echo_outcome(outcome)
                lacking[history.tensor] = dict(history.missing)
                found[history.tensor] = len(history.steps) - len(history.missing)
            caught[:] = [item for item in caught if item.category is not MissingStepsWarning]  # said below
        for item in caught:
            if item.category is NonFiniteWarning:
                answer.fail(f"{item.message} (all other steps are in the results)")
        # Of all tensors there is an overview once the last job of an array has ended.
        is_last = shard is None or len(finished_tensors(stream, measures, results)) == len(stream.tensors)
        traffic = stream.source.traffic.counts()
    app.echo(
        f"{results.path}: {len(lacking)} tensors measured, {len(finished)} were complete; "
        f"{app.size(traffic['bytes'])} in {traffic['requests']} requests; no weights are kept"
    )
    reasons = {step: why for missing in lacking.values() for step, why in missing.items()}
    app.echo_steps("missing", dict(sorted(reasons.items())))
    if reasons:
        answer.fail("some steps could not be fetched (see above); run the same command again to retry them")
    overviews = []
    for one in measures if len(names) > 1 and lacking and is_last else ():
        if one.name.replace("_", "-") in streaming.measures and has_overview(one.name):
            outcome = save_overview(results, one.name)
            app.echo(f"{model.name}: all tensors")
            app.echo_outcome(outcome)
            overviews.append({"measure": one.name, "files": outcome.files, **outcome.facts})
    if lacking and not draw:
        app.echo(f"  the figures of each tensor: pythia-dyn figures --model {shlex.quote(model.name)}")
    answer.facts.append(
        {
            "model": model.name,
            "location": model.location,
            "measures": [one.name for one in measures],
            "tensors": list(lacking),
            "complete_before": sorted(finished),
            "missing": lacking,
            "overviews": overviews,
            **{"requests": traffic["requests"], "api_requests": traffic["api"], "bytes": traffic["bytes"]},
        }
    )


def _plan_lines(plan: StreamPlan, measures: list[Measure], finished: int, *, divides: bool) -> list[str]:
    """What is going to be transferred, in words. `divides`: fused tensors that are not read in parts are divided."""
    from pythia_dynamics.checkpoints.parts import may_have_parts
    from pythia_dynamics.measures.stream import passes

    lines = [f"{finished} tensors are complete; --refresh measures them again"] if finished else []
    if not plan.tensors:
        return lines
    times = passes(plan, measures)
    lines.append(
        f"{len(plan.tensors)} tensors of {len(plan.steps)} steps, {app.size(plan.bytes(times))} to transfer, through "
        f"{app.size(plan.scratch)} of scratch space in {len(plan.groups) + len(plan.parted)} groups"
    )
    if plan.parted:
        names = ", ".join(spec.name for spec in plan.parted[:4]) + (" …" if len(plan.parted) > 4 else "")
        twice = ", and twice: for sums over weights and for whole steps" if times > 1 else ""
        lines.append(f"read in parts{twice}: {names}; more --scratch lets them pass as the others")
        if divides and any(may_have_parts(spec.name) for spec in plan.parted):
            lines.append("fused tensors among them are measured whole")
    return lines
