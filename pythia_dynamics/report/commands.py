"""The commands that make the results of a model again: as they were typed, else from the provenance.

Results that were made in Python have no typed command. Theirs are composed from the settings in the provenance.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pythia_dynamics.checkpoints.roles import ALL, UNEMBEDDING
from pythia_dynamics.evaluation.settings import HEADS
from pythia_dynamics.results.commands import steps_option, typed_command
from pythia_dynamics.results.folder import Results
from pythia_dynamics.tables import read_json

__all__ = ["commands", "report_command", "subcommand", "verify_command"]

_PROGRAM = "pythia-dyn"

_WHOLE = ("demo", "reproduce")
"""Commands that fetch the weights themselves."""


def report_command(shown: Sequence[Results]) -> str:
    """The command that writes a page.

    Parameters
    ----------
    shown
        The results on the page.
    """
    models = dict.fromkeys(results.name for results in shown)
    tensors = dict.fromkeys(results.tensor for results in shown if results.tensor is not None)
    words = [word for name in models for word in ("--model", name)]
    words += [word for name in tensors for word in ("--tensor", name)]
    return typed_command() or shlex.join([_PROGRAM, "report", *words])


def verify_command(results: Results) -> str:
    """The command that verifies the weights of a model.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    """
    return shlex.join([_PROGRAM, "verify", "--model", results.name])


def commands(results: Results) -> tuple[str, ...]:
    """The commands that make the results of a model again, each once, in an order in which they can be run.

    Parameters
    ----------
    results
        The results of the model, or of a tensor of it.
    """
    weights, model = results.weights(), results.model
    # Of the same second, perplexities come first: measures read the loss from them.
    made = [(name, details, model) for name, details in model.provenance().items()]
    for head in HEADS:
        of_head = Results(head, model.path).provenance()
        made += [(f"{head}/{name}", details, model) for name, details in of_head.items()]
    made += [(name, details, weights) for name, details in weights.provenance().items()]
    made.sort(key=lambda entry: str(entry[1].get("time")))
    lines = [details.get("command") or _composed(name, details, folder) for name, details, folder in made]
    whole = [line for line in lines if subcommand(line) in _WHOLE]
    fetched: list[str] = []
    measured = [details for _, details, folder in made if folder is weights and details.get("source")]
    if measured and not (whole and weights.is_unembedding):
        fetched = [_fetch(measured, weights, lines)]
    return tuple(dict.fromkeys([*whole, *fetched, *_verifications(model), *lines]))


def _composed(name: str, details: Mapping[str, Any], folder: Results) -> str:
    """The command for a result that has none in its provenance, from the settings there."""
    if name == "order-parameter":
        return f"{_PROGRAM} reproduce order-parameter"
    # Whole models need not be in the cache: their checkpoints have a location.
    model = _place(details["location"], folder.path) if "location" in details else None
    options = {
        "corpus": details.get("corpus_dataset") or details.get("corpus"),
        "limit": details.get("corpus_passages"),
        "phrase": details.get("phrase"),
        "drop-padding": details.get("drop_padding"),
    }
    if "corpus" in details:
        options |= {"dtype": details.get("dtype"), "device": details.get("device")}
    flags = (f" --{option} {shlex.quote(str(value))}" for option, value in options.items() if value is not None)
    return folder.command_for(name, model) + "".join(flags)


def _fetch(measured: Sequence[Mapping[str, Any]], weights: Results, lines: Sequence[str]) -> str:
    """The command that fetches the weights of results, at all steps that any of them is of.

    It fetches every tensor that the lines name: a measure of all tensors needs all of them.
    """
    words = [_PROGRAM, "fetch", "--model", _place(measured[0]["source"], weights.path)]
    named = dict.fromkeys(value for line in lines for value in _values(line, "--tensor"))
    if not weights.is_unembedding:
        named.setdefault(str(measured[0]["tensor"]))
    elif named:
        named.setdefault(UNEMBEDDING)
    for tensor in [ALL] if ALL in named else named:
        words += ["--tensor", tensor]
    steps = sorted({int(step) for details in measured for step in details.get("steps") or ()})
    for key, value in (measured[0].get("suite") or {}).items():
        place = _place(value, weights.path) if key in ("config", "tokenizer") else str(value)
        words += [f"--{'revision-pattern' if key == 'pattern' else key}", place]
    cache = next((value for line in lines for value in _values(line, "--cache")), None)
    return (
        shlex.join(words) + (steps_option(steps) if steps else "") + (f" --cache {shlex.quote(cache)}" if cache else "")
    )


def _verifications(model: Results) -> Iterator[str]:
    """The commands that wrote ``verify.json``."""
    try:
        for subject in read_json(model.path / "verify.json")["verify"]:
            yield subject.get("command") or verify_command(model)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return


def subcommand(line: str) -> str:
    """The command of a line: its first word after the name of the program.

    Parameters
    ----------
    line
        The line, as for a shell.
    """
    return shlex.split(line)[1]


def _values(line: str, option: str) -> Iterator[str]:
    """The values of an option of a command, given as ``--option value`` or ``--option=value``."""
    for word, following in pairwise([*shlex.split(line), ""]):
        if word == option:
            yield following
        elif word.startswith(f"{option}="):
            yield word.removeprefix(f"{option}=")


def _place(place: object, folder: Path) -> str:
    """A repository as it is, and a directory as it is seen from the working directory.

    Parameters
    ----------
    place
        As it is recorded: relative to the folder of the results, if it is near.
    folder
        That folder.
    """
    text = str(place)
    if text.startswith("../"):
        text = os.path.normpath(folder.resolve() / text)
    is_inside = Path(text).is_absolute() and Path(text).is_relative_to(Path.cwd())
    return os.path.relpath(text) if is_inside else text
