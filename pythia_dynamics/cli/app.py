"""Common parts of the commands: the group with its handling of errors, options, output."""

from __future__ import annotations

import fnmatch
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pythia_dynamics import __version__
from pythia_dynamics.cli.completion import complete_models, complete_tensors
from pythia_dynamics.cli.group import JSON_KEY, MODELS_KEY, QUIET_KEY, RESUMABLE_KEY, Failure, Group, Interrupted
from pythia_dynamics.cli.places import shown, with_cache, with_results
from pythia_dynamics.cli.suite import with_suite
from pythia_dynamics.errors import PythiaDynError, UnknownNameError, size
from pythia_dynamics.tables import json_text

if TYPE_CHECKING:
    from pythia_dynamics.figures.paper import PaperWidth
    from pythia_dynamics.history.history import History
    from pythia_dynamics.progress import Progress, Stage
    from pythia_dynamics.studies.pipeline import Outcome

__all__ = [
    "Answer",
    "Command",
    "Failure",
    "Interrupted",
    "Weights",
    "bar",
    "duration",
    "echo",
    "echo_outcome",
    "echo_steps",
    "echo_warnings",
    "expanded",
    "main",
    "model_names",
    "open_store",
    "print_facts",
    "resumable",
    "size",
    "stages",
    "with_axis",
    "with_bandwidth",
    "with_cache",
    "with_device",
    "with_devices",
    "with_json",
    "with_learning_rate",
    "with_models",
    "with_results",
    "with_steps",
    "with_suite",
    "with_weights",
    "with_width",
    "with_workers",
]


Command = Callable[..., Any]


class Answer:
    """What a command found, and its failures. It goes on past the failure of one model and fails at its end.

    Parameters
    ----------
    name
        Key of the facts in the output of ``--json``.

    Attributes
    ----------
    facts : list
        What was found, an entry per model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.facts: Any = []
        self._reasons: list[str] = []

    def fail(self, reason: str) -> None:
        """Add one failure."""
        self._reasons.append(reason)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Record an error of the library in this block as the failure of one model, and continue after the block."""
        try:
            yield
        except PythiaDynError as error:
            self.fail(str(error))

    def finish(self, **more: Any) -> None:
        """Print the facts, and more of them, if ``--json`` is given; raise `Failure` with all reasons, if any."""
        if self.facts:
            print_facts({self.name: self.facts, **more})
        if self._reasons:
            raise Failure("; ".join(dict.fromkeys(self._reasons)))


def resumable(command: Command) -> Command:
    """Mark a command that keeps finished files when it is interrupted, and resumes from them."""

    @wraps(command)
    def wrapper(*args: Any, **options: Any) -> Any:
        click.get_current_context().meta[RESUMABLE_KEY] = True
        return command(*args, **options)

    return wrapper


class _LogOnStderr(logging.Handler):
    """Prints what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="pythia-dyn")
@click.option("-q", "--quiet", is_flag=True, help="Print errors, notes and what --json asks for only.")
@click.option("-v", "--verbose", count=True, help="Say on stderr what is done step by step; -vv, with each request.")
@click.pass_context
def main(context: click.Context, quiet: bool, verbose: int) -> None:
    """How the weights of language models move while they train."""
    context.meta[QUIET_KEY] = quiet
    log = logging.getLogger("pythia_dynamics")
    log.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    if verbose and not log.handlers:
        handler = _LogOnStderr()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


def _remember_models(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    context.meta[MODELS_KEY] = value
    return value


def with_models(required: bool, default: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """The option for the names of models. If it is not required, the default is `default`, else all in the cache."""
    text = "Alias (70m, 160m-seed3 …), owner/name, name in the cache, glob, or a directory of checkpoints; repeatable."
    missing = f"  [default: {', '.join(default) or 'all cached'}]"
    return click.option(
        "--model",
        "models",
        multiple=True,
        required=required,
        default=default or None,
        callback=_remember_models,
        shell_complete=complete_models,
        help=text if required else text + missing,
    )


def _remember_json(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[JSON_KEY] = value


def _is_json() -> bool:
    """Whether ``--json`` is given to the command that runs."""
    return bool(click.get_current_context().meta.get(JSON_KEY))


with_json = click.option(
    "--json", is_flag=True, expose_value=False, callback=_remember_json, help="Print the facts as JSON."
)


with_tensors = click.option(
    "--tensor",
    "tensors",
    multiple=True,
    shell_complete=complete_tensors,
    help="unembedding, embedding, a name, a glob, or all; repeatable.  [default: unembedding]",
)
with_heads = click.option(
    "--heads",
    type=click.IntRange(1),
    help="Attention heads of a block, where no config.json says it: for parts of tensors, such as ….weight.query.",
)

_TOKENIZER = "tokenizer"


class _Rows(click.IntRange):
    """A number of rows, or ``tokenizer`` for the number of entries of the tokenizer."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == _TOKENIZER else super().convert(value, param, ctx)


with_rows = click.option(
    "--drop-padding",
    type=_Rows(1),
    is_flag=False,
    flag_value=_TOKENIZER,
    metavar="[ROWS]",
    help="Use only as many rows as the tokenizer has entries, or the first ROWS rows; the others are padding.",
)


def _one_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Refuse several devices before any work begins."""
    if "," in value:
        raise Failure(f"--device {value} names several devices; only perplexity and representation take several")
    return value


with_device = click.option(
    "--device", default="auto", show_default=True, callback=_one_device, help="auto, cuda, mps or cpu."
)
with_devices = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cuda, cuda:1, mps or cpu; several, as in cuda:0,cuda:1 or cpu,cpu, have a process each.",
)
with_workers = click.option(
    "--workers", type=click.IntRange(1, 256), default=16, show_default=True, help="Parallel revisions."
)
with_bandwidth = click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    default=25.0,
    show_default=True,
    help="MB/s, for the estimate of the time.",
)
with_overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace tables that were computed under other settings."
)
with_learning_rate = click.option(
    "--learning-rate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="CSV, .jsonl or trainer_state.json with the columns step and learning_rate (or lr). It replaces that of the "
    "suite.",
)
with_axis = click.option(
    "--axis",
    type=click.Choice(["step", "linear-step", "log-step", "tokens", "learning-rate"]),
    default="step",
    show_default=True,
    help="The x axis of figures over steps: the step (its logarithm where everything happens early), always linear or "
    "logarithmic, the tokens seen, or the cumulative learning rate.",
)


def _draw_at(context: click.Context, parameter: click.Parameter, value: PaperWidth | None) -> None:
    """Draw all figures of the command at a width."""
    if value is not None:
        from pythia_dynamics.figures.paper import drawn_at

        context.with_resource(drawn_at(value))


with_width = click.option(
    "--width",
    type=click.Choice(["column", "page"]),
    expose_value=False,
    callback=_draw_at,
    help="Draw figures for a paper: 3.25 or 6.75 inches wide, no text below 6 points, as PDF as well.  [default: for "
    "the screen]",
)
with_steps = click.option("--steps", help="paper (1000 … 143000), all, 1000,2000 or 1000:143000:1000.")


@dataclass(frozen=True)
class Weights:
    """The weights that a command measures: the values of `with_weights`.

    Parameters
    ----------
    models
        Names of models; without any, all models in the cache.
    tensors
        Names, roles and globs of tensors; without any, the unembedding.
    steps
        The steps, as in ``--steps``.
    drop_padding
        Number of rows to use, or ``tokenizer`` for the number of its entries; None for all.
    learning_rate
        A file with the learning rate, in place of that which the suite states.
    heads
        Attention heads of a block, where the store does not know them.
    cache
        Directory of the weight stores.
    """

    models: tuple[str, ...]
    tensors: tuple[str, ...]
    steps: str | None
    drop_padding: int | str | None
    learning_rate: Path | None
    heads: int | None
    cache: Path

    def histories(self, answer: Answer) -> Iterator[History]:
        """The history of each tensor of each model. A model that cannot be opened is a failure."""
        from pythia_dynamics.checkpoints.learning_rate import read_learning_rate
        from pythia_dynamics.history.cache import open_histories

        rate = None if self.learning_rate is None else read_learning_rate(self.learning_rate)
        for name in model_names(self.models, self.cache, answer):
            found: list[History] = []
            with answer.collect():
                more: dict[str, Any] = {"steps": self.steps, "learning_rate": rate, "heads": self.heads}
                found = open_histories(name, self.tensors, cache=self.cache, **more)
                self._note_fused(name)
            yield from found

    def _note_fused(self, name: str) -> None:
        """Say which tensors ``all`` does not divide, and why."""
        from pythia_dynamics.checkpoints.roles import ALL
        from pythia_dynamics.history.attention import known_attention, undivided

        if ALL in self.tensors and Path(name).suffix != ".zarr":
            store = open_store(name, self.cache)
            reasons = [*undivided(store, known_attention(store, self.heads)).values()]
            if reasons:
                echo(f"  note: {len(reasons)} fused tensors are measured whole: {reasons[0]}")

    def rows(self, history: History) -> int | None:
        """The number of rows of a history to use, None for all. Prints the history, tensor, steps and rows."""
        from pythia_dynamics.history.vocabulary import tokenizer_entries

        rows = tokenizer_entries(history) if isinstance(self.drop_padding, str) else self.drop_padding
        kept = "" if rows is None else f", {rows} of {history.frame_shape[0]} rows"
        source = history.provenance["source"]
        echo(f"{history.name} ({source}): {history.tensor}, {len(history.steps)} steps{kept}")
        return rows


def with_weights(command: Command) -> Command:
    """Add the options for the weights to measure. The command gets their values as one `Weights`."""
    names = [field.name for field in fields(Weights)]

    @wraps(command)
    def wrapper(*args: Any, **options: Any) -> Any:
        return command(*args, Weights(**{name: options.pop(name) for name in names}), **options)

    added: Command = wrapper
    for option in (with_cache, with_heads, with_learning_rate, with_rows, with_steps, with_tensors):
        added = option(added)
    return with_models(required=False)(added)


@contextmanager
def bar(label: str, unit: str = "it") -> Iterator[Progress]:
    """A progress bar on stderr, if stderr is a terminal and ``--quiet`` is not given."""
    from tqdm import tqdm

    hidden = True if click.get_current_context().meta.get(QUIET_KEY) else None
    with tqdm(desc=label, unit=unit, disable=hidden, leave=False, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def stages() -> Stage:
    """The callback of a study for its stages: a bar during a stage, and a line with its duration at the end."""

    @contextmanager
    def stage(label: str, unit: str) -> Iterator[Progress]:
        start = time.monotonic()
        with bar(label, unit) as progress:
            yield progress
        echo(f"{label:44}{time.monotonic() - start:9.1f} s")

    return stage


@contextmanager
def echo_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Print each warning of the library in one line after the block. The list then has the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield caught
    for text in dict.fromkeys(str(item.message) for item in caught if issubclass(item.category, UserWarning)):
        echo(f"  note: {text}")


def print_facts(facts: dict[str, Any]) -> None:
    """Print facts as JSON, if ``--json`` is given."""
    if _is_json():
        click.echo(shown(json_text(facts)))


def duration(seconds: float) -> str:
    """A duration in seconds as text, in seconds, minutes or hours: ``90 s`` becomes ``1.5 min``."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def echo(text: str) -> None:
    """Print text, unless ``--json`` or ``--quiet`` is given."""
    if not _is_json() and not click.get_current_context().meta.get(QUIET_KEY):
        from tqdm import tqdm

        with tqdm.external_write_mode():  # a bar that is shown makes room
            click.echo(shown(text))


def echo_steps(state: str, reasons: Mapping[int, str]) -> None:
    """Print steps in a state by their reason; up to eight steps are written out."""
    by_reason: dict[str, list[int]] = {}
    for step, reason in reasons.items():
        by_reason.setdefault(reason, []).append(step)
    for reason, steps in by_reason.items():
        shown = ", ".join(map(str, steps[:8])) + (f" … ({len(steps)} steps)" if len(steps) > 8 else "")
        echo(f"  {state} {shown}: {reason}")


def echo_outcome(outcome: Outcome) -> None:
    """Print the summary of a result and its files."""
    echo(f"  {outcome.summary}")
    for path in outcome.files:
        echo(f"  {path}")


def expanded(models: tuple[str, ...], known: Iterable[str], answer: Answer) -> tuple[str, ...]:
    """The names of models, with the known names that match in place of each glob. One without any is a failure."""
    from pythia_dynamics.checkpoints.registry import names_of_aliases

    names: dict[str, None] = {}
    known = list(known)
    for model in models:
        matches = [model]
        if any(character in model for character in "*?[") and not Path(model).exists():
            matches = [name for name in known if fnmatch.fnmatchcase(name, model)]
            matches = matches or [name for name in names_of_aliases(model) if name in known]
            if not matches:
                answer.fail(str(UnknownNameError("model", model, known)))
        names |= dict.fromkeys(matches)
    return tuple(names)


def model_names(models: tuple[str, ...], cache: Path, answer: Answer) -> tuple[str, ...]:
    """The given names of models as `expanded` has them, or all models in the cache if none is given."""
    from pythia_dynamics.history.cache import cached

    names = expanded(models, cached(cache), answer) if models else cached(cache)
    if not names and not models:
        raise PythiaDynError(f"no weights in {cache}; run pythia-dyn fetch --model 70m, or pythia-dyn demo")
    return names


def open_store(name: str, cache: Path) -> Any:
    """The store of a model in the cache, by its name there or by any other name of the model."""
    from pythia_dynamics.history.cache import cached, find_model, store_path
    from pythia_dynamics.history.store import Store

    found = name if name in cached(cache) else find_model(name, cache).name
    return Store.open(store_path(found, cache))
