"""A project of a user: a directory in which commands are run, without figures unless they are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import pythia_dynamics as pyd
from pythia_dynamics.cli import main
from support.checkpoints import checkpoint, state
from support.tiny_models import TEXTS

__all__ = ["Project", "walk_project"]


@dataclass(frozen=True)
class Project:
    """Runs commands in the current directory, which the test has set to `place`."""

    place: Path
    corpus: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "corpus", self.place / "texts.txt")
        self.corpus.write_text("\n\n".join(TEXTS[:2]))

    def run(self, *arguments: object) -> Result:
        """A command; no exception but an exit leaves it."""
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
        assert "Traceback" not in result.output
        return result

    def facts(self, command: str, *arguments: object) -> Any:
        """The facts of a command that succeeds."""
        result = self.run(command, *arguments, "--json")
        assert result.exit_code == 0, (command, arguments, result.output[-600:])
        return next(iter(json.loads(result.stdout).values()))

    def fetch(self, model: object, *arguments: object) -> dict[str, Any]:
        """The facts of a fetch of one model, all of whose steps come."""
        (found,) = self.facts("fetch", "--model", model, *arguments)
        assert found["missing"] == {}
        return dict(found)

    def failure(self, *arguments: object, code: int = 1) -> str:
        """The one line that a command fails with."""
        result = self.run(*arguments)
        assert result.exit_code == code, (arguments, result.output[-600:])
        lines = result.stderr.splitlines()
        if code == 2:  # the usage comes before
            return lines[-1]
        assert len(lines) == 1, lines
        assert lines[0].startswith("pythia-dyn: ")
        return lines[0]

    @property
    def perplexity_options(self) -> tuple[object, ...]:
        return ("--corpus", self.corpus, "--limit", 2, "--device", "cpu")

    def perplexities(self, model: object, *arguments: object, name: str) -> list[float]:
        """The perplexity of each step, computed by the command and saved under `name`."""
        self.facts("perplexity", "--model", model, *self.perplexity_options, *arguments)
        table = pd.read_csv(self.place / "results" / name / "perplexity-forward.csv")
        return [float(value) for value in table["ppl_mean"]]

    def portrait(self, model: object, *arguments: object) -> list[int]:
        """The two steps of the portrait."""
        (found,) = self.facts("portrait", "--model", model, "--phrase", "the cat sat", *arguments)
        return [int(step) for step in found["steps"]]

    def weights(self, name: str) -> tuple[pyd.History, Mapping[int, NDArray[np.float32]]]:
        """The fetched history of a store, and its weights by step."""
        history = pyd.open_history(name, cache=self.place / "cache")
        return history, {int(step): np.asarray(history.at(int(step)), dtype=np.float32) for step in history.steps}


def walk_project(place: Path) -> Project:
    """A project beside `walk`, a directory of four small checkpoints (40 rows of 8 weights)."""
    for step in (10, 20, 30, 40):
        folder = place / "walk" / f"step{step}"
        folder.mkdir(parents=True)
        for name, content in checkpoint(state(step, vocab=40, d_model=8)).items():
            (folder / name).write_bytes(content)
    return Project(place)
