"""What the commands share: the group and its errors, options, printing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics import __version__
from pythia_dynamics.errors import PythiaDynError, size

if TYPE_CHECKING:
    from pythia_dynamics.progress import Progress
    from pythia_dynamics.studies.pipeline import Outcome

__all__ = [
    "Command",
    "Failure",
    "bar",
    "duration",
    "main",
    "model_names",
    "notes",
    "open_store",
    "print_facts",
    "say",
    "say_missing",
    "say_outcome",
    "size",
    "with_cache",
    "with_json",
    "with_models",
    "with_results",
    "with_steps",
]


class Failure(click.ClickException):
    """The work failed and said why: one line on stderr, exit status 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"pythia-dyn: {' '.join(self.message.split())}", file=file, err=True)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PythiaDynError as error:
            raise Failure(str(error)) from error
        except OSError as error:  # a full disk, a directory that is not ours to write
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}; what is finished is kept") from error
        except KeyboardInterrupt:
            raise Failure("interrupted; finished steps are kept, run the same command again to go on") from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="pythia-dyn")
def main() -> None:
    """How the weights of language models move while they train."""


Command = Callable[..., Any]


def with_cache(command: Command) -> Command:
    return click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        default="cache",
        envvar="PYTHIA_DYN_CACHE",
        show_default=True,
        help="Directory of the weight stores.",
    )(command)


def with_results(command: Command) -> Command:
    return click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        default="results",
        envvar="PYTHIA_DYN_RESULTS",
        show_default=True,
        help="Directory of the result files.",
    )(command)


def with_models(required: bool) -> Callable[[Command], Command]:
    text = "Alias (70m, 160m-seed3 …), owner/name, name in the cache, or a directory of checkpoints; repeatable."
    return click.option(
        "--model", "models", multiple=True, required=required, help=text if required else text + " Default: all cached."
    )


with_json = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


def with_steps(default: str | None) -> Callable[[Command], Command]:
    return click.option(
        "--steps",
        default=default,
        help="paper (1000 … 143000), all, 1000,2000 or 1000:143000:1000.",
    )


@contextmanager
def bar(label: str, unit: str = "it") -> Iterator[Progress]:
    """A progress bar on stderr, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=label, unit=unit, disable=None, leave=False, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


@contextmanager
def notes(as_json: bool) -> Iterator[list[warnings.WarningMessage]]:
    """Print what the library warns of, a line each; the list holds the warnings afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield caught
    for text in dict.fromkeys(str(item.message) for item in caught if issubclass(item.category, UserWarning)):
        say(f"  note: {text}", as_json)


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=1, default=str))


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever a person would say."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def say(text: str, as_json: bool = False) -> None:
    if not as_json:
        click.echo(text)


def say_missing(missing: Any, as_json: bool) -> None:
    by_reason: dict[str, list[int]] = {}
    for step, reason in missing.items():
        by_reason.setdefault(reason, []).append(step)
    for reason, steps in by_reason.items():
        shown = ", ".join(map(str, steps[:8])) + (f" … ({len(steps)} steps)" if len(steps) > 8 else "")
        say(f"  missing {shown}: {reason}", as_json)


def say_outcome(outcome: Outcome, as_json: bool) -> None:
    """What was found, and where it is written."""
    say(f"  {outcome.summary}", as_json)
    for path in outcome.files:
        say(f"  {path}", as_json)


def model_names(models: tuple[str, ...], cache: Path) -> tuple[str, ...]:
    """The models that were named, or all that are in the cache."""
    from pythia_dynamics.history.cache import cached

    names = models or cached(cache)
    if not names:
        raise PythiaDynError(f"no weights in {cache}; run pythia-dyn fetch --model 70m, or pythia-dyn demo")
    return names


def open_store(name: str, cache: Path) -> Any:
    from pythia_dynamics.history.cache import cached, find_model, store_path
    from pythia_dynamics.history.store import Store

    found = name if name in cached(cache) else find_model(name, cache).name
    return Store.open(store_path(found, cache))
