"""What a smaller precision changes: perplexities of a trained suite and of a random model, and the time they take.

    python benchmarks/precision.py cache/demo TEXT
    python benchmarks/precision.py cache/demo TEXT --dtype float16

The first argument is a directory of checkpoints, as `pythia-dyn demo` leaves one; TEXT is a corpus it can read. Every
checkpoint is evaluated in float32 and in the smaller precision in all modes; the differences are relative ones of the
columns of the tables. The random model has the shape of a 70m, and passages of 64 random tokens.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from perplexity import random_model

from pythia_dynamics.device import DTYPES, Dtype, resolve_dtype
from pythia_dynamics.evaluation.forward import forward_scores
from pythia_dynamics.evaluation.products import bfloat16_gain
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings

COLUMNS = {"forward": ("ppl_mean", "ppl_corpus"), "unmask": ("ppl_mean", "ppl_corpus"), "last-word": ("ppl",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("text")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--steps", default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe_machine(), "dtype": options.dtype, "bfloat16_gain": bfloat16_gain(),
        "suite": options.suite.name, "passages": options.limit, "modes": {},
        "random_70m": score_random_model(options.dtype),
    }  # fmt: skip
    for mode in MODES:
        found, seconds = [], []
        for dtype in ("float32", options.dtype):
            settings = EvaluationSettings(
                corpus=options.text, limit=options.limit, steps=options.steps, dtype=dtype, device="cpu"
            )
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(evaluate(options.suite, [mode], settings)[mode])
            seconds.append(time.perf_counter() - start)
        exact, smaller = found
        entry: dict[str, Any] = {"steps": exact.sizes["step"], "float32_seconds": seconds[0], "seconds": seconds[1]}
        for column in COLUMNS[mode]:
            difference = np.abs(smaller[column].to_numpy() / exact[column].to_numpy() - 1)
            standard_error = (exact[f"{column}_se"] / exact[column]).to_numpy()
            entry[column] = {
                "median": float(np.nanmedian(difference)), "largest": float(np.nanmax(difference)),
                "median_in_standard_errors": float(np.nanmedian(difference / standard_error)),
            }  # fmt: skip
        entry["nonfinite"] = int(smaller["nonfinite"].sum())
        report["modes"][mode] = entry
    out = options.out or Path(__file__).parent / "results" / f"precision-{options.dtype}.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def score_random_model(name: Dtype) -> dict[str, float]:
    """Forward scores of random tokens by a random 70m, in float32 and in the smaller precision."""
    model = random_model("70m")
    tokens = np.random.default_rng(0).integers(0, 50277, (16, 64)).tolist()
    scores, seconds = [], []
    for dtype in (torch.float32, resolve_dtype(name)):
        model.to(dtype)
        forward_scores(model, tokens[:2])
        start = time.perf_counter()
        scores.append(forward_scores(model, tokens).nll)
        seconds.append(time.perf_counter() - start)
    per_token = np.abs(scores[1] - scores[0]) / 63
    return {
        "float32_seconds": seconds[0], "seconds": seconds[1],
        "largest_difference_of_nll_per_token": float(per_token.max()),
        "difference_of_mean_nll_per_token": float(abs(scores[1].sum() - scores[0].sum()) / 63 / 16),
    }  # fmt: skip


if __name__ == "__main__":
    main()
