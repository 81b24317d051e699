"""Saved results of made-up runs with several tensors, a gap and a run that leaves, and what gather saves of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.history.history import History
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.populations import gather
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.studies.population_tensors import study_tensors, write_tensors
from pythia_dynamics.studies.populations import study_population, write_population

STEPS = np.arange(100, 2100, 100)
GONE = 500
MLP, BIAS, NORM = (
    f"gpt_neox.layers.{name}" for name in ("0.mlp.dense_h_to_4h.weight", "0.mlp.dense_h_to_4h.bias", "1.norm.weight")
)
TENSORS = (MLP, BIAS, NORM, EMBED_OUT)
LEAVES = "walk-seed4"


def save_runs(directory: Path, seeds: int = 6) -> list[Results]:
    """Runs walk-seed1 …: every one lacks a step of the MLP, and the fourth leaves the others after step 1,000."""
    runs = [Results(f"walk-seed{seed}", directory) for seed in range(1, seeds + 1)]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
        for seed, run in enumerate(runs, 1):
            for number, tensor in enumerate(TENSORS):
                generator = np.random.default_rng([seed, number])
                sizes = np.where((run.name == LEAVES) & (STEPS > 1000), 0.4, 0.05)[:, None, None]
                frames = generator.normal(size=(1, 24, 6)) + np.cumsum(
                    sizes * generator.normal(size=(len(STEPS), 24, 6)), axis=0
                )
                missing = {GONE: "lost"} if tensor == MLP else {}
                history = History.from_array(
                    frames.astype(np.float32), STEPS, name=run.name, tensor=tensor, missing=missing
                )
                roles = ["unembedding"] if tensor == EMBED_OUT else []
                history = replace(history, provenance={**history.provenance, "roles": roles})
                measure(history, ("msd", "order"), run)
    return runs


def save_gathered(directory: Path, pattern: str = "walk-seed*") -> None:
    """What ``gather --measure order`` and ``gather --measure order --tensor all`` save."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", lambda figure, path: [])
        one = gather(pattern, measure="order", results=directory)
        write_population(one, study_population(one), [pattern], directory)
        every = gather(pattern, measure="order", tensor="all", results=directory)
        write_tensors(every, study_tensors(every), [pattern], directory)
