"""The options for the places of weights and results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["with_cache", "with_results"]

Command = Callable[..., Any]


def _with_directory(name: str, content: str) -> Callable[[Command], Command]:
    """The option for a directory of the user; its default is that of the environment, else its name."""
    kind, variable = click.Path(file_okay=False, path_type=Path), f"PYTHIA_DYN_{name.upper()}"
    text = f"Directory of the {content}."
    return click.option(f"--{name}", type=kind, default=name, envvar=variable, show_default=True, help=text)


class _Place(click.ParamType[Any]):
    """A directory, or the URL of objects."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pythia_dynamics.objects import as_place

        place = as_place(value)
        return (
            click.Path(file_okay=False, path_type=Path).convert(value, param, ctx) if isinstance(place, Path) else place
        )


with_cache = click.option(
    "--cache",
    type=_Place(),
    default="cache",
    envvar="PYTHIA_DYN_CACHE",
    show_default=True,
    help="Directory of the weight stores, or s3://…, gs://…, az://…; https://… to read.",
)
with_results = _with_directory("results", "result files")
