"""Work that several processes share: the options ``--shard`` and ``--dask``, and the command ``merge``."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pythia_dynamics.cli import app
from pythia_dynamics.cli.group import AFTER_KEY, JSON_KEY, Failure
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.files import store_errors
from pythia_dynamics.results.commands import running, typed_command
from pythia_dynamics.shard import Shard
from pythia_dynamics.tables import read_json, write_json

if TYPE_CHECKING:
    from pythia_dynamics.executors import Pool
    from pythia_dynamics.history.history import History
    from pythia_dynamics.sweep.partial import PartialSums

__all__ = ["Division", "cluster", "merge", "own_items", "with_dask", "with_shard"]

T = TypeVar("T")

_PARTS = ".parts"
"""Folder in the results of what jobs have saved, by command."""

_COMMAND = "command.json"

_MERGE_KEY = "pythia_dynamics.merge"
"""Key in `click.Context.meta` of the number of shards that are put together by the command that runs."""


def _shard(context: click.Context, parameter: click.Parameter, value: str | None) -> Shard | None:
    """The shard that is named, else that of the environment; None for the whole."""
    if context.resilient_parsing or _MERGE_KEY in context.meta:
        return None
    shard = Shard.from_environment() if value is None else Shard.parse(value)
    if shard is None or shard.is_whole:
        return None
    if value is None:
        app.echo(f"shard {shard}, as SLURM_ARRAY_TASK_ID says; --shard 1/1 for the whole")
    return shard


def with_shard(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option for the part of a job of an array. The command gets a `Shard`, or None for the whole."""
    return click.option(
        "--shard",
        callback=_shard,
        metavar="I/N",
        help="Do part I of N, as one job of an array.  [default: from SLURM_ARRAY_TASK_ID, else all]",
    )(command)


def with_dask(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option for a cluster of Dask. The command gets the text and passes it to `cluster`."""
    return click.option(
        "--dask",
        metavar="ADDRESS",
        envvar="PYTHIA_DYN_DASK",
        help="Work on a Dask cluster: the address of its scheduler, or local for a process per core of this machine.",
    )(command)


@contextmanager
def cluster(dask: str | None, shard: Shard | None = None) -> Iterator[Pool | None]:
    """A connection to the cluster that ``--dask`` names; None without one.

    Parameters
    ----------
    dask
        The value of the option, or of ``PYTHIA_DYN_DASK``.
    shard
        That of ``--shard``, which is for jobs without a cluster.
    """
    if dask is None:
        yield None
        return
    if shard is not None:
        raise Failure("--shard is for the jobs of an array, --dask divides the work itself; give one of them")
    from pythia_dynamics.executors import connect

    with connect(dask) as client:
        yield client


def own_items(shard: Shard | None, items: Sequence[T], what: str) -> list[T]:
    """The items of a job of an array, each of which is worked on by itself.

    Parameters
    ----------
    shard
        The job; None for all items.
    items
        The items of all jobs.
    what
        What they are, in the plural, for the line that says how many this job has.
    """
    if shard is None:
        return list(items)
    own = shard.take(items)
    app.echo(f"shard {shard}: {len(own)} of {len(items)} {what}")
    return own


@dataclass(frozen=True)
class Division:
    """How the jobs of an array divide the histories that a measure is computed of.

    Where there are as many histories as jobs, each job has some of them and writes their results. Otherwise each job
    has a part of the sums over the weights, or of the steps, of every history, which it saves for ``merge``.

    Parameters
    ----------
    histories
        All histories.
    folder
        Where the jobs save what is to be put together.
    shard
        The job; None where one process does all. While parts are put together, the last of the jobs.
    merges
        Whether parts are put together.
    """

    histories: tuple[History, ...]
    folder: Path
    shard: Shard | None
    merges: bool

    @classmethod
    def of(cls, histories: Sequence[History], shard: Shard | None, results: Path) -> Division:
        """The division of the command that runs. Its folder is named by its words."""
        words = typed_command() or ""
        name = f"{shlex.split(words)[1]}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"
        count = click.get_current_context().meta.get(_MERGE_KEY)
        own = shard if count is None else Shard(count, count)
        return cls(tuple(histories), results / _PARTS / name, own, merges=count is not None)

    @property
    def by_history(self) -> bool:
        """Whether whole histories are divided, not the sums over each."""
        return self.shard is not None and len(self.histories) >= self.shard.count

    @property
    def own(self) -> list[History]:
        """The histories that this process measures, or its part of them."""
        if not self.by_history:
            return list(self.histories)
        assert self.shard is not None
        return [] if self.merges else self.shard.balanced(self.histories, lambda one: float(one.shape[0] * _size(one)))

    def partial(self, history: History) -> PartialSums | None:
        """Where the sums over a history are saved, or read; None where they are not divided."""
        from pythia_dynamics.sweep.partial import PartialSums

        if self.shard is None or self.by_history:
            return None
        return PartialSums(self.folder, f"{history.name}.{history.tensor}", self.shard, self.merges)

    def begin(self) -> None:
        """Note the command for ``merge``; or, where it runs, see whether all jobs have ended that wrote results."""
        if self.shard is None:
            return
        if not self.merges:
            words = shlex.split(typed_command() or "")[1:]
            write_json(self.folder / _COMMAND, {"command": words, "shards": self.shard.count})
        elif self.by_history:
            every = [Shard(number + 1, self.shard.count) for number in range(self.shard.count)]
            if absent := [str(each) for each in every if not (self.folder / f"done.{each.label}").is_file()]:
                raise PythiaDynError(f"the part {', '.join(absent)} is not there: run it with --shard {absent[0]}")

    def end(self) -> None:
        """Note that the histories of this job have been measured."""
        if self.shard is not None and self.by_history and not self.merges:
            write_json(self.folder / f"done.{self.shard.label}", [[one.name, one.tensor] for one in self.own])

    @property
    def said(self) -> str:
        """What this process does, in words; empty where it does all."""
        if self.shard is None or self.merges:
            return ""
        if self.by_history:
            return f"shard {self.shard}: {len(self.own)} of {len(self.histories)} tensors"
        return f"shard {self.shard}: a part of the sums over {len(self.histories)} tensors"


def _size(history: History) -> int:
    """Weights of a frame."""
    count = 1
    for length in history.frame_shape:
        count *= length
    return count


@app.main.command()
@click.argument("table", required=False, type=click.Path(dir_okay=False, path_type=Path))
@app.with_results
@app.with_json
def merge(table: Path | None, results: Path) -> None:
    """Put together what the jobs of an array have computed (--shard).

    Of measures: the sums or results of the commands whose parts are in the results. Run it where the jobs ran. With
    TABLE, the --out of calibrate: its parts TABLE.1-of-4 ….
    """
    if table is not None:
        _merge_tables(table)
        return
    context = click.get_current_context()
    found = sorted((results / _PARTS).glob(f"*/{_COMMAND}"))
    if not found:
        raise PythiaDynError(f"nothing to put together in {results}: run a measure with --shard first")
    reasons = []
    for path in found:
        try:
            _merge_one(context, path)
        except (PythiaDynError, Failure) as error:
            reasons.append(f"{path.parent.name}: {error}")
    if reasons:
        raise Failure("; ".join(reasons))


def _merge_one(context: click.Context, path: Path) -> None:
    """Run a command with the parts that its jobs have saved, and remove them."""
    try:
        about = read_json(path)
        (name, *arguments), count = about["command"], int(about["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PythiaDynError(f"{path} is damaged ({error}); remove it and run the jobs again") from None
    group = context.parent
    assert group is not None
    command = app.main.get_command(group, name)
    if command is None:
        raise PythiaDynError(f"there is no command {name}")
    is_json = bool(context.meta.get(JSON_KEY))
    context.meta[_MERGE_KEY] = count
    app.echo(f"pythia-dyn {shlex.join([name, *arguments])}: {count} parts")
    lacks_model = "--model" not in arguments and not any(word.startswith("--model=") for word in arguments)
    words = [name, *arguments]
    try:
        with (
            running(words, lacks_model=lacks_model),
            command.make_context(name, [*arguments, *(["--json"] if is_json else [])], parent=group) as inner,
        ):
            command.invoke(inner)
    finally:
        del context.meta[_MERGE_KEY]
    context.meta[AFTER_KEY] = name
    with store_errors(path.parent):
        shutil.rmtree(path.parent)
    with suppress(OSError):  # parts of other commands are there
        path.parent.parent.rmdir()


def _merge_tables(out: Path) -> None:
    """Put the tables of a calibration together."""
    from pythia_dynamics.claims.calibration import merge_tables

    table = merge_tables(out)
    app.echo(f"{out}: {len(table.truths)} truths, {table.settings.runs} runs each")
    app.print_facts(
        {"merge": {"out": out, "truths": [each.name for each in table.truths], "runs": table.settings.runs}}
    )
