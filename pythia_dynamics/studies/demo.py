"""All stages on a small suite: train it, fetch, evaluate, measure, draw. It needs no network.

The stages are those of a Pythia model; only the size of the suite is special.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import EvaluationSettings, Mode
from pythia_dynamics.history.cache import DEMO, local_directory, open_history
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.report import FetchReport
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.progress import Stage
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import Outcome, draw_perplexity, measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.training.loop import torch_threads, train_suite
from pythia_dynamics.training.plan import TrainingPlan
from pythia_dynamics.training.suite import HELD_OUT, Suite
from pythia_dynamics.training.text import Text, python_reference

__all__ = ["NAME", "PASSAGES", "Report", "run"]

NAME = DEMO
"""Name of the suite in the cache and in the results."""

PASSAGES: dict[Mode, int] = {"forward": 48, "last-word": 48, "unmask": 10}
"""Held-out passages that are evaluated at every checkpoint. Unmasking has fewer, since it generates t²/2 tokens for a
passage of t tokens."""


@dataclass(frozen=True)
class Report:
    """The result of `run`.

    Parameters
    ----------
    suite
        The suite that was trained.
    fetched
        The report of the fetch.
    outcomes
        The results that were written.
    """

    suite: Suite
    fetched: FetchReport
    outcomes: tuple[Outcome, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All result files and figures."""
        return tuple(path for outcome in self.outcomes for path in outcome.files)


def run(
    *,
    stage: Stage,
    text: Text | None = None,
    plan: TrainingPlan | None = None,
    cache: Path | str | None = None,
    results: Path | str | None = None,
) -> Report:
    """Train a suite, fetch its W_U, evaluate and measure it, and write ``results/demo``.

    The suite stays in ``<cache>/demo``. The next run with the same plan and text uses it again, and continues one that
    was interrupted.

    Parameters
    ----------
    stage
        Called with the label and the unit of each stage.
    text
        The text to train on. By default the Python reference.
    plan
        How to train.
    cache
        Directory of the suite and of the weight store.
    results
        Directory of the results.

    Raises
    ------
    PythiaDynError
        As the stages do.
    """
    text, plan = text or python_reference(), plan or TrainingPlan()
    with stage("train", "step") as progress:
        suite = train_suite(local_directory(cache) / NAME, text, plan, progress=progress)
    if suite.fresh:
        shutil.rmtree(local_directory(cache) / f"{NAME}.zarr", ignore_errors=True)
    model, out = resolve(suite.path.resolve()), Results(NAME, results)

    with stage("fetch W_U", "step") as progress:
        fetched = download(model, cache=cache, progress=progress, refresh=True)  # the suite is our own
    scores: dict[Mode, xr.Dataset] = {}
    for mode, passages in PASSAGES.items():
        # Models this small gain nothing from a second thread, and lose tenfold where another program wants the core.
        with stage(f"{mode} perplexity", "step") as progress, torch_threads(1):
            settings = EvaluationSettings(corpus=suite.path / HELD_OUT, limit=passages, device="cpu")
            scores |= evaluate(model, [mode], settings, out=out.path, progress=progress)
    with stage("measure", "block") as progress:
        history = open_history(NAME, cache=cache)
        options = {"order": {"loss": scores["forward"]["nll_mean"]}}
        outcomes = measure(history, tuple(MEASURES), out, options=options, compute=Compute(progress=progress))
    with stage("draw", "figure") as progress:
        outcomes = [*outcomes, *draw_perplexity(out, scores, progress=progress)]
    return Report(suite, fetched, tuple(outcomes))
