"""Saved results of made-up models, with everything there is and a gap."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pythia_dynamics import figures
from pythia_dynamics.checkpoints.registry import EMBED_OUT
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.catalogue import known_measures
from pythia_dynamics.results.folder import Results
from pythia_dynamics.studies.pipeline import measure

STEPS = np.array([0, 1, 2, 4, 1000, 2000, 3000, 4000, 5000, 6000])
GONE = 2000


def perplexity_table(seed: int, steps: np.ndarray = STEPS, *, last_word: bool = False) -> xr.Dataset:
    count = len(steps)
    values = 5 + 100 * np.exp(-np.arange(count) / 2) + np.random.default_rng(seed).random(count)
    values[steps == GONE] = np.nan
    counts = {"sentences": np.full(count, 9.0), "nonfinite": np.zeros(count), "overflow": np.zeros(count)}
    if last_word:
        columns = {"ppl": values, "accuracy": 1 / values, **counts}
    else:
        columns = (
            dict.fromkeys(("ppl_mean", "ppl_median", "ppl_corpus"), values) | {"nll_mean": np.log(values)} | counts
        )
    return xr.Dataset({name: ("step", column) for name, column in columns.items()}, {"step": steps})


def representation_table(steps: np.ndarray = STEPS) -> xr.Dataset:
    """Hidden states that collapse and spread again."""
    grown = 1 + 30 * np.abs(np.linspace(-0.3, 0.7, len(steps)))
    grown[steps == GONE] = np.nan
    columns = {"anisotropy": 1 / grown, "rankme": 2 * grown, "effective_rank": grown, "alpha": 3 / np.sqrt(grown)}
    columns |= {"kl_unigram": np.log(grown), "kl_bigram": 5 - np.log(grown), "positions": 0 * grown + 900}
    columns |= {"nonfinite": 0 * grown, "anisotropy_null_sd": 0 * grown + 1e-4}
    columns |= {f"{name}_se": 0 * grown + 0.05 for name in ("alpha", "kl_unigram", "kl_bigram")}
    columns |= {f"{name}_null": 0 * grown + 64 for name in ("rankme", "effective_rank")} | {"alpha_null": 0 * grown}
    return xr.Dataset({name: ("step", column) for name, column in columns.items()}, {"step": steps})


def first_last() -> xr.Dataset:
    generator = np.random.default_rng(0)
    attention = np.tril(np.ones((2, 2, 3, 3), np.float32))
    lines = [
        {"prefix": 1, "given": "a", "generated": " dog\nran $x^\x1f", "perplexity": 2.5, "entropy": 1.0},
        {"prefix": 2, "given": "a cat", "generated": "!", "perplexity": 1.5, "entropy": 1.0},
    ]
    return xr.Dataset(
        {
            "unembedding": (("step", "dimension", "token"), generator.normal(size=(2, 8, 20)).astype(np.float32)),
            "attention": (
                ("step", "head", "query", "key"),
                (attention / attention.sum(-1, keepdims=True)).astype("f4"),
            ),
            "logits": (("step", "entry"), generator.normal(size=(2, 50)).astype(np.float32)),
        },
        {"step": [0, 6000]},
        {"phrase": "a cat sat", "words": ["a", " cat", " sat"], "completions": lines},
    )


def save_table(results: Results, name: str, dataset: xr.Dataset) -> Path:
    """Write a table of a measure into the folder of the weights."""
    (table,) = (measure.tables[name] for measure in known_measures().values() if name in measure.tables)
    return results.weights().write_table(name, table, dataset)


KINDS = ("density", "msd", "order", "rank", "spectrum", "two_time", "angles", "tails", "rows")


def save_results(
    directory: Path, name: str, seed: int = 0, steps: np.ndarray = STEPS, *, only: tuple[str, ...] = KINDS
) -> Results:
    """All results of a random walk, but no figures; with `only`, no more than some analyses and the forward
    perplexity."""
    frames = np.cumsum(np.random.default_rng(seed).normal(size=(len(steps), 60, 12)), axis=0).astype(np.float16)
    results = Results(name, directory)
    results.path.mkdir(parents=True)
    for mode in ("forward", "unmask", "last-word") if only == KINDS else ("forward",):
        table = perplexity_table(seed, steps, last_word=mode == "last-word")
        (results.path / f"perplexity-{mode}.csv").write_text(table.to_dataframe().to_csv())
        details = {"location": name, "corpus": "text.jsonl", "corpus_passages": 9, "dtype": "float32", "device": "cpu"}
        results.record(f"perplexity-{mode}", details)
    history = History.from_array(frames, steps, name=name, tensor=EMBED_OUT, missing={GONE: "lost"})
    commits = {str(step): f"c{step}" for step in steps if step != GONE}
    told = {**history.provenance, "missing": {str(GONE): "lost"}, "commits": commits}
    history = replace(history, provenance=told)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(figures, "save", lambda figure, path: [])  # drawing takes time
        counts = {"rows": {"frequencies": np.arange(60)}} if "rows" in only else {}
        measure(history, only, results, options=counts)
    if only != KINDS:
        return results
    results.write_zarr("first_last", first_last())
    results.record("first_last", {"location": name, "phrase": "a cat sat"})
    return results
