"""The group of all commands: how errors and interruptions end a command, and the commands of registered measures."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from pythia_dynamics.cli.places import shown
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.files import reason_of, write_count

__all__ = [
    "AFTER_KEY",
    "JSON_KEY",
    "MODELS_KEY",
    "NEXT",
    "QUIET_KEY",
    "RESUMABLE_KEY",
    "SECTIONS",
    "SHARD",
    "Failure",
    "Group",
    "Interrupted",
]

SILENT_KEYS = JSON_KEY, QUIET_KEY = "pythia_dynamics.json", "pythia_dynamics.quiet"
"""Keys in `click.Context.meta` of what keeps a command from printing text."""

RESUMABLE_KEY = "pythia_dynamics.resumes"
"""Key in `click.Context.meta` of a command that resumes from finished files."""

AFTER_KEY = "pythia_dynamics.after"
"""Key in `click.Context.meta` of a command that has done the work of another one: the name of that, for `NEXT`."""

_HOW = ("--shard", "--dask")
"""Options that say which processes do the work, not what it is."""

SHARD = "shard"
"""What `AFTER_KEY` has after a job of an array that has measured its part."""

_AFTER_SHARDS = "pythia-dyn merge, after all jobs"


SECTIONS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "Get weights": (
        "pythia-dyn fetch --model 70m",
        {
            "models": "the models that have short names",
            "plan": "requests, bytes, disk, memory and time of a fetch",
            "fetch": "tensors of all checkpoints, by byte range",
            "ls": "what is in the cache, what is missing and why",
            "verify": "damaged, equal, exchanged or replaced checkpoints",
        },
    ),
    "Measure weights": (
        "pythia-dyn msd --model 70m --tensor unembedding",
        {
            "density": "weight density, moments, number of modes",
            "msd": "mean squared displacement and its nulls",
            "two-time": "all pairs of steps: displacement, ageing, cosine",
            "angles": "angles between steps, norm, AdamW's equilibrium",
            "order": "the order parameter b and dL/db",
            "rank": "covariance rank of random projections",
            "spectrum": "singular values, effective and stable rank",
            "tails": "power law, lognormal or truncated power law",
            "rows": "each token's row: norm, drift, frequency",
            "alignment": "embedding and unembedding, token by token",
            "phases": "abrupt changes of motion, direction, bimodality",
            "stop": "where training could have stopped",
        },
    ),
    "Run whole models": (
        "pythia-dyn perplexity --model 70m --mode last-word --limit 500",
        {
            "perplexity": "forward, causal-unmasking, last-word perplexity",
            "representation": "hidden states: anisotropy, ranks, KL from n-grams",
            "portrait": "first and last step side by side, a phrase completed",
        },
    ),
    "Train your own": (
        "pythia-dyn train --size 10k --checkpoints 20 --out suites/mine",
        {
            "demo": "all of it on a small suite, without network",
            "train": "a suite: a small model with many checkpoints",
        },
    ),
    "Judge and show": (
        "pythia-dyn claims --published",
        {
            "claims": "test the claims of both publications",
            "calibrate": "how often each verdict is wrong",
            "compare": "two runs, checkpoints or tensors, beside seeds",
            "figures": "draw every figure from saved results",
            "gather": "seeds and sizes: band, variance, runs that leave",
            "report": "one self-contained HTML page",
            "reproduce": "one of the two publications, from fetch to report",
            "merge": "what the jobs of an array have computed",
        },
    ),
}
"""The commands in the order of use: by section, an example and what each is for. Summaries fit a line of 80 columns."""

OWN_MEASURES = "Measures of other packages"

MODELS_KEY = "pythia_dynamics.models"
"""Key in `click.Context.meta` of the models that a command was given."""

NEXT: Mapping[str, str] = {
    "models": "pythia-dyn plan --model 70m",
    "plan": "pythia-dyn fetch{required}",
    "fetch": "pythia-dyn msd{models}",
    **dict.fromkeys(
        ("density", "msd", "two-time", "angles", "order", "rank", "spectrum", "tails", "rows", "perplexity"),
        "pythia-dyn claims{models}",
    ),
    **dict.fromkeys(("alignment", "phases", "stop", "claims", "figures", "portrait"), "pythia-dyn report{models}"),
    "representation": "pythia-dyn report{models}",
    "gather": "pythia-dyn claims{models}",
    "compare": "pythia-dyn phases{models}",
}
"""What is usually done after a command has succeeded."""


class Failure(click.ClickException):
    """A failure that the message explains: one line on stderr, exit status 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"pythia-dyn: {shown(' '.join(self.message.split()))}", file=file, err=True)


class Interrupted(Failure):
    """An interruption by the user: one line on stderr that says what is kept, exit status 130."""

    exit_code = 130


class Group(click.Group):
    """The group of all commands. Measures that other packages register are commands too."""

    other_measures: Callable[[str], click.Command]
    """Makes the command of a registered measure from the name of its entry point."""

    def main(self, *args: Any, **extra: Any) -> Any:
        with _warnings_on_stderr():
            return super().main(*args, **extra)

    def after(self, ctx: click.Context) -> None:
        """Say what is usually done next."""
        models = "".join(f" --model {shlex.quote(name)}" for name in ctx.meta.get(MODELS_KEY, ()))
        required = models or " --model 70m"
        done = ctx.meta.get(AFTER_KEY, ctx.invoked_subcommand or "")
        following = _AFTER_SHARDS if done == SHARD else NEXT.get(done, "").format(models=models, required=required)
        if following and not any(ctx.meta.get(key) for key in SILENT_KEYS):
            click.echo(f"next: {following}")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_registered_measures()})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, each with an example."""
        rest = dict.fromkeys(self.list_commands(ctx))
        width = max(map(len, rest))
        for title, (example, summaries) in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in summaries.items()])
                formatter.write(f"{'':{formatter.current_indent}}$ {example}\n")
            rest = {name: None for name in rest if name not in summaries}
        commands = {name: self.get_command(ctx, name) for name in rest}
        rows = [(name.ljust(width), found.get_short_help_str(50)) for name, found in commands.items() if found]
        if rows:
            with formatter.section(OWN_MEASURES):
                formatter.write_dl(rows)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        found = super().get_command(ctx, name)
        if found is None and name in (registered := _registered_measures()):
            return self.other_measures(registered[name])
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command as click does, and have the results that it writes record what was typed."""
        from pythia_dynamics.results.commands import running

        found = super().resolve_command(ctx, args)
        words, lacks_model = _typed(ctx, found[1], args)
        ctx.with_resource(running(words, lacks_model=lacks_model))
        return found

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt:  # while the help of the group is printed
            raise Interrupted("interrupted; nothing written") from None

    def invoke(self, ctx: click.Context) -> Any:
        writes_before = write_count()
        try:
            result = super().invoke(ctx)
            self.after(ctx)
            return result
        except PythiaDynError as error:
            raise Failure(str(error)) from error
        except OSError as error:  # for instance a file without read permission
            raise Failure(f"{error.filename}: {reason_of(error)}" if error.filename else reason_of(error)) from error
        except (KeyboardInterrupt, click.Abort) as error:
            if isinstance(error, click.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
                raise  # the answer to a question was no, or the input ended
            kept = "nothing written"
            if write_count() > writes_before:
                again = ", run the same command again to go on" if ctx.meta.get(RESUMABLE_KEY) else ""
                kept = f"finished files are kept{again}"
            raise Interrupted(f"interrupted; {kept}") from None


def _typed(ctx: click.Context, command: click.Command | None, args: list[str]) -> tuple[list[str], bool]:
    """The words of a command, to be run again, and whether it takes models and was given none.

    What the environment gives is added as an option, and ``--json`` is left out.
    """
    words, rest = _without_how([word for word in args if word != "--json"]), args[1:]
    while isinstance(command, click.Group) and rest:
        command, *rest = command.get_command(ctx, rest[0]), *rest[1:]
    lacks_model = False
    for parameter in command.get_params(ctx) if command else ():
        if any(word == flag or word.startswith(f"{flag}=") for word in rest for flag in parameter.opts):
            continue
        if parameter.opts[0] in _HOW:
            continue
        lacks_model |= "--model" in parameter.opts
        if isinstance(parameter.envvar, str) and (value := os.environ.get(parameter.envvar)):
            words += [parameter.opts[0], value]
    return words, lacks_model


def _without_how(words: list[str]) -> list[str]:
    """Words without the options that say which processes do the work, not what it is."""
    kept: list[str] = []
    values = iter(words)
    for word in values:
        if word in _HOW:
            next(values, None)
        elif not word.startswith(tuple(f"{name}=" for name in _HOW)):
            kept.append(word)
    return kept


def _registered_measures() -> dict[str, str]:
    """Entry points of the measures that other packages register, by name of the command, without importing them."""
    from importlib.metadata import entry_points

    return {name.replace("_", "-"): name for name in entry_points(group="pythia_dynamics.measures").names}


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print each warning of the library that no command prints in one line on stderr."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, UserWarning):
                click.echo(f"pythia-dyn: note: {shown(' '.join(str(message).split()))}", err=True)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_line
        yield
