"""The options for a suite that the registry does not know."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

__all__ = ["with_suite"]

Command = Callable[..., Any]

_SUITE = {
    "revision_pattern": "pattern",
    **{name: name for name in ("stage", "generation", "seed", "config", "tokenizer")},
}
"""The options of `with_suite`, and the keys of a suite that they give."""


def with_suite(command: Command) -> Command:
    """Add the options for a suite that the registry does not know. The command gets their values as `suite`."""

    @wraps(command)
    def wrapper(*args: Any, suite_file: Path | None, **options: Any) -> Any:
        from pythia_dynamics.checkpoints.suite import read_suite

        suite = {} if suite_file is None else read_suite(suite_file)
        given = {key: options.pop(name) for name, key in _SUITE.items()}
        return command(
            *args, suite=suite | {key: value for key, value in given.items() if value is not None}, **options
        )

    texts = {
        "tokenizer": "Directory or repository of the tokenizer, in place of the checkpoints' own.",
        "config": "Directory or repository of the config.json, in place of the checkpoints' own.",
        "seed": "The runs of this seed, where the names of checkpoints have several.",
        "generation": "The checkpoints of this generation, where there are several.",
        "stage": "The checkpoints of this stage of training, where there are several.",
    }
    added: Command = wrapper
    for name, text in texts.items():
        added = click.option(f"--{name}", help=text)(added)
    added = click.option(
        "--revision-pattern",
        metavar="REGEX",
        help="Which branches, tags, folders, files or commits are steps. It may match a part of the name; ^ and $ "
        "anchor it. Groups: (?P<step>…), tokens, generation, stage, seed.",
    )(added)
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("--suite", "suite_file", type=file, help="TOML file with what these options give.")(added)
