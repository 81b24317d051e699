"""The whole of it on a suite trained on the spot: train, fetch, evaluate, measure, draw. No network.

Nothing here is special to the demo but the size of the suite: every stage is the one that Pythia goes through.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pythia_dynamics import train
from pythia_dynamics.analyse import ANALYSES
from pythia_dynamics.fetch import FetchReport, download
from pythia_dynamics.history import cache_directory, open_history, store_path
from pythia_dynamics.perplexity.runner import perplexity
from pythia_dynamics.pipeline import Outcome, draw_perplexity, measure
from pythia_dynamics.progress import Progress
from pythia_dynamics.results import Results
from pythia_dynamics.suites import resolve

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NAME", "PASSAGES", "Report", "Stage", "run"]

NAME = "demo"
PASSAGES = {"forward": 48, "last-word": 48, "unmask": 10}
"""Held-out passages that are evaluated at every checkpoint; unmasking writes t²/2 tokens for one of t tokens."""

Stage = Callable[[str, str], AbstractContextManager[Progress]]
"""Called with a label and a unit when a stage begins; gives the progress of that stage."""


@dataclass(frozen=True)
class Report:
    """What the demo made and where it is."""

    suite: train.Suite
    fetched: FetchReport
    outcomes: tuple[Outcome, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All result files and figures."""
        return tuple(path for outcome in self.outcomes for path in outcome.files)


def run(
    *,
    stage: Stage,
    text: train.Text | None = None,
    plan: train.TrainingPlan | None = None,
    cache: Path | str | None = None,
    results: Path | str | None = None,
) -> Report:
    """Train a suite on `text` (default: the Python reference), put it through everything, write ``results/demo``.

    The suite stays in ``<cache>/demo`` and is used again by the next run of the same plan and text; an interrupted
    run goes on where it was. Raises what the stages raise.
    """
    text, plan = text or train.python_reference(), plan or train.TrainingPlan()
    with stage("train", "step") as progress:
        suite = train.train_suite(cache_directory(cache) / NAME, text, plan, progress=progress)
    if suite.fresh:
        shutil.rmtree(store_path(NAME, cache), ignore_errors=True)
    model, out = resolve(suite.path.resolve()), Results(NAME, results)

    with stage("fetch W_U", "step") as progress:
        fetched = download(model, cache=cache, progress=progress)
    scores: dict[str, xr.Dataset] = {}
    for mode, passages in PASSAGES.items():
        with stage(f"{mode} perplexity", "step") as progress, _one_thread():
            scores[mode] = perplexity(
                model,
                mode=mode,
                corpus=suite.path / train.HELD_OUT,
                limit=passages,
                device="cpu",
                out=out.path,
                progress=progress,
            )
    with stage("measure", "block") as progress:
        history = open_history(NAME, cache=cache)
        options = {"order": {"loss": scores["forward"]["nll_mean"]}}
        outcomes = measure(history, (*ANALYSES, "two_time"), out, options=options, progress=progress)
    with stage("draw", "figure") as progress:
        outcomes = [*outcomes, *draw_perplexity(out, scores, progress=progress)]
    return Report(suite, fetched, tuple(outcomes))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose tenfold where another program wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
