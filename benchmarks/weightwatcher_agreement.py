"""The spectrum of W against WeightWatcher 0.7.7, on the same matrices and in the same run.

    python -m venv --system-site-packages ww && ww/bin/pip install weightwatcher==0.7.7   # not a dependency
    PYTHONPATH=. ww/bin/python benchmarks/weightwatcher_agreement.py [--vocab 50304] [--out FILE]

WeightWatcher drops a matrix of more than 50,000 rows without a word: `max_N` is raised here. What is compared, and
where the definitions differ, is in `DEFINITIONS`.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from pythia_dynamics.measures.spectrum import spectrum
from pythia_dynamics.sweep.compute import Compute

PRECISIONS = ("float32", "float64")
DEFINITIONS = {
    "spectral_norm": "theirs is λ_max = σ₁² of WᵀW, not divided by its rows; ours is σ₁, squared here",
    "stable_rank": "the same, Σσ²/σ₁²",
    "alpha": "the same: maximum likelihood, every eigenvalue of WᵀW but the largest as cut-off, least "
    "Kolmogorov-Smirnov distance",
    "entropy": "theirs is −Σ p ln p / ln(rank) with p = σ²/Σσ² + ε, ε = {epsilon:g}; ours (Roy & Vetterli 2007) is "
    "−Σ p ln p in nats with p = σ/Σσ; compared is theirs without ε, from our singular values, so that ε is what "
    "is left between both",
}


def matrices(vocab: int) -> dict[str, np.ndarray[Any, Any]]:
    """float32 (v, d): Gaussian noise, noise with a power law planted, and one whose rows share a direction."""
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((vocab, 512)) * 0.03).astype(np.float32)
    scales = np.arange(1, 513) ** -0.6
    planted = (rng.standard_normal((vocab, 512)) * 0.05 * scales).astype(np.float32)
    shared = noise + 0.05 * rng.standard_normal(512).astype(np.float32)
    small = (rng.standard_t(3, size=(600, 64)) * 0.1).astype(np.float32)
    return {"noise": noise, "planted power law": planted, "shared direction": shared, "small, heavy tails": small}


def theirs(weights: np.ndarray[Any, Any]) -> tuple[dict[str, float], float]:
    """WeightWatcher's figures of one linear layer, and the seconds they took."""
    import weightwatcher

    layer = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
    watcher = weightwatcher.WeightWatcher(model=torch.nn.Sequential(layer))
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        details = watcher.analyze(max_N=10**6, max_evals=10**5, min_evals=10)
    seconds = time.perf_counter() - began
    row = details.iloc[0]
    names = ("spectral_norm", "stable_rank", "alpha", "entropy")
    return {name: float(row[name]) for name in names}, seconds


def ours(weights: np.ndarray[Any, Any], precision: str) -> tuple[dict[str, float], float]:
    """Ours by WeightWatcher's names and definitions."""
    began = time.perf_counter()
    found = spectrum(weights[None], compute=Compute(precision=precision)).isel(step=0)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    sigma = found["singular_values"].to_numpy()
    p = sigma**2 / np.sum(sigma**2)
    return {
        "spectral_norm": float(sigma[0] ** 2),
        "stable_rank": float(found["stable_rank"]),
        "alpha": float(found["alpha"]),
        "entropy": float(-np.sum(p[p > 0] * np.log(p[p > 0])) / np.log(np.count_nonzero(sigma > 0))),
    }, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from weightwatcher.RMT_Util import EPSILON

    report: dict[str, Any] = {
        "machine": describe_machine(),
        "weightwatcher": version("weightwatcher"),
        "definitions": {name: text.format(epsilon=EPSILON) for name, text in DEFINITIONS.items()},
        "digits": {precision: dict.fromkeys(DEFINITIONS, 16) for precision in PRECISIONS},
        "matrices": {},
    }
    for name, weights in matrices(options.vocab).items():
        peer, peer_seconds = theirs(weights)
        entry: dict[str, Any] = {"shape": weights.shape, "weightwatcher": peer, "weightwatcher_seconds": peer_seconds}
        print(f"{name} {weights.shape}: WeightWatcher {peer_seconds:.1f} s")
        for precision in PRECISIONS:
            mine, seconds = ours(weights, precision)
            apart = {key: abs(mine[key] / peer[key] - 1) for key in peer}
            entry[precision] = {"values": mine, "seconds": seconds, "relative_difference": apart}
            digits = report["digits"][precision]
            digits |= {key: min(digits[key], int(-np.log10(max(value, 1e-16)))) for key, value in apart.items()}
            shown = ", ".join(f"{key} {value:.1e}" for key, value in apart.items())
            print(f"  {precision} {seconds:.2f} s, relative differences: {shown}", flush=True)
        report["matrices"][name] = entry
    print("digits that agree on all of them:", json.dumps(report["digits"]))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
