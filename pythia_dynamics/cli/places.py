"""The options for the places of weights and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["shown", "with_cache", "with_results"]

_names: dict[str, str] = {}
"""The URL of each folder that stands for it, by its path. Errors are shown after the folder has been closed."""


def shown(text: str) -> str:
    """Text in which the folders that stand for URLs have their names."""
    for folder, url in _names.items():
        text = text.replace(folder, url)
    return text


class _Place(click.ParamType[Any]):
    """A directory, or the URL of objects."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from pythia_dynamics.objects import as_place

        place = as_place(value)
        return (
            click.Path(file_okay=False, path_type=Path).convert(value, param, ctx) if isinstance(place, Path) else place
        )


def _here(context: click.Context, parameter: click.Parameter, place: Any) -> Any:
    """A directory of this machine: of objects one that is exchanged with them until the command ends."""
    if isinstance(place, Path) or context.resilient_parsing:
        return place
    from pythia_dynamics.mirror import mirrored

    folder = context.with_resource(mirrored(place))
    _names[str(folder)] = str(place)
    return folder


with_cache = click.option(
    "--cache",
    type=_Place(),
    default="cache",
    envvar="PYTHIA_DYN_CACHE",
    show_default=True,
    help="Directory of the weight stores, or s3://…, gs://…, az://…; https://… to read.",
)
with_results = click.option(
    "--results",
    type=_Place(),
    default="results",
    envvar="PYTHIA_DYN_RESULTS",
    show_default=True,
    callback=_here,
    help="Directory of the result files, or s3://…, gs://…, az://….",
)
